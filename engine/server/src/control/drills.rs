//! Requests about drills.

use super::api::{BootRequest, Progress, Reply};
use super::job::Job;
use super::{machines, sessions};
use crate::agent::blocking;
use crate::drill::{self, Drill, Schedule};
use crate::services::Services;
use blocks::{Error, ErrorKind, Result, WallClock};
use std::sync::Arc;
use store::Unit;

pub(super) async fn drill(
    services: Arc<Services>,
    machine: String,
    at: Option<String>,
    boot: BootRequest,
    job: Job,
) -> Result<Reply> {
    blocking(move || {
        let unit = machines::find(&services.store, &machine)?;
        let checkpoint = sessions::choose(&unit, at.as_deref())?;
        let report = |step: &str| job.report(Progress { step: step.to_owned(), done: 0, total: 0 });
        drill::drill(&services, &Drill { unit, checkpoint, boot }, &report).map(Reply::Drill)
    })
    .await
}

pub(super) async fn list(services: Arc<Services>, machine: String) -> Result<Reply> {
    blocking(move || {
        let unit = machines::find(&services.store, &machine)?;
        let drills = drill::reports(&services.data, unit.machine(), usize::MAX)?;
        Ok(Reply::Drills { machine: unit.name(), drills })
    })
    .await
}

/// Changes when and how a unit is drilled; what is not said stays.
pub(super) fn set(unit: &Unit, every_ms: Option<u64>, boot: Option<BootRequest>) -> Result<()> {
    if every_ms == Some(0) {
        return Schedule::save(None, unit);
    }
    let before = Schedule::load(unit)?;
    let missing = |what: &str| {
        Error::new(ErrorKind::InvalidInput, format!("'{}' has no drills yet: say {what}", unit.name()))
    };
    let every_ms = every_ms.or(before.as_ref().map(|before| before.every_ms));
    let every_ms = every_ms.ok_or_else(|| missing("--drill-every"))?;
    let boot = boot.or(before.map(|before| before.boot)).ok_or_else(|| missing("--drill-probe"))?;
    let probe = boot.probe.as_deref().ok_or_else(|| missing("--drill-probe"))?;
    probe.parse::<hypervisor::Probe>()?;
    Schedule::save(Some(&Schedule { every_ms, since_ms: WallClock::now().0, boot }), unit)
}
