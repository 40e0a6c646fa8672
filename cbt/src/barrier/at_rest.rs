//! An instant of a tapped machine: nothing has to be read, so file systems are frozen only while it is put into the
//! order of the machine's writes.

use super::freeze::{self, FrozenSystems};
use super::{BarrierSettings, consistency};
use crate::disk::DeviceNumber;
use crate::hooks::Hooks;
use crate::mounts::superblocks;
use crate::tap::{Moment, Order};
use crate::watchdog::Watchdog;
use blocks::{Result, WallClock};
use std::time::Instant;
use wire::Consistency;

/// Puts an instant into the order, with what is mounted from these devices at rest. `Some`: why there is none. Logs
/// nothing while anything is frozen.
pub(crate) fn put_instant(
    devices: &[DeviceNumber],
    order: &Order,
    watchdog: &mut Option<Watchdog>,
    settings: &BarrierSettings,
    hooks: &Hooks,
    (request, name, verify): (u64, &str, bool),
) -> Result<Option<String>> {
    let systems = superblocks(devices);
    if let Some(watchdog) = watchdog.as_mut() {
        freeze::sync_by(watchdog, &systems);
    }
    let rest = hooks.rest().unwrap_or_else(|error| {
        tracing::warn!("this checkpoint is one without the applications: {error}");
        None
    });
    let began = Instant::now();
    let frozen = match FrozenSystems::freeze(&systems, watchdog.as_mut(), settings.budget) {
        Ok(frozen) => frozen,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let consistency = match consistency(&systems, &frozen) {
        Consistency::FileSystem if rest.is_some() => Consistency::Application,
        other => other,
    };
    let (taken_at, frozen_for, request) = (WallClock::now(), began.elapsed(), Some(request));
    let moment = Moment { taken_at, consistency, frozen: frozen_for, request, name: name.to_owned(), verify };
    let put = order.put_instant(moment);
    if let (Err(error), Some(request)) = (frozen.thaw(), request) {
        tracing::warn!("{error}: this checkpoint is as after a power cut");
        order.weaken(request);
    }
    drop(rest);
    Ok((!put).then(|| "the tap lost the order of writes at that moment".to_owned()))
}
