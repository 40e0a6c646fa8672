//! Taking a disk under protection.

use super::config::{AgentConfig, DiskConfig};
use crate::barrier::check_excluded;
use crate::copy::Replica;
use crate::disk::{Disk, DiskLock};
use crate::tap::{self, Order};
use crate::tracker::{self, Tracker, TrackerKind, TrackerWish};
use blocks::{DiskIndex, Error, ErrorKind, Result};
use std::sync::Arc;

/// Opens, locks and tracks every disk of the configuration; where they are tapped, also the order of their writes. Nothing
/// is held where one of them cannot be.
pub(super) fn protect_all(config: &AgentConfig) -> Result<(Vec<Replica>, Option<Arc<Order>>)> {
    if config.disks.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, "no disk is named: an agent protects at least one"));
    }
    let tapped = config.tracker == TrackerWish::Only(TrackerKind::Tap);
    let order = tapped.then(|| Arc::new(Order::new(config.tap.queue_bytes, config.tap.checkpoint_every)));
    let indexed = config.disks.iter().enumerate();
    let index = |position| {
        let too_many = |_| Error::new(ErrorKind::InvalidInput, "too many disks");
        u16::try_from(position).map(DiskIndex).map_err(too_many)
    };
    let protected: Result<Vec<_>> =
        indexed.map(|(position, disk)| protect(config, index(position)?, disk, order.as_ref())).collect();
    Ok((protected?, order))
}

/// Opens, locks and tracks one disk.
pub(super) fn protect(
    config: &AgentConfig,
    index: DiskIndex,
    disk: &DiskConfig,
    order: Option<&Arc<Order>>,
) -> Result<Replica> {
    let device = disk.device.display().to_string();
    let open = match order {
        Some(_) => Disk::open_part(&disk.device)?,
        None => Disk::open(&disk.device)?,
    };
    check_excluded(&disk.exclude, open.len(), &device)?;
    let lock = DiskLock::acquire(&config.run_dir, &open)?;
    if let Some(order) = order {
        return tapped(config, index, disk, order, (open, lock));
    }
    tap::forget(&open, &config.state_dir)?;
    let (tracker, why) = tracker::best(&disk.device, config.tracker)?;
    tracing::info!("{device}: tracker {why}");
    Ok(Replica::new(index, open, tracker, disk.exclude.clone(), lock))
}

fn tapped(
    config: &AgentConfig,
    index: DiskIndex,
    disk: &DiskConfig,
    order: &Arc<Order>,
    (open, lock): (Disk, DiskLock),
) -> Result<Replica> {
    let device = disk.device.display();
    let front = config.tap.front.as_ref().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("{device}: nothing here can show a tapped disk"))
    })?;
    let (tap, sector) = tap::open(index, &open, &config.state_dir, order)?;
    let shown = front.show(&disk.device, tap.clone(), sector)?;
    let trust = Tracker::trust(&*tap);
    tracing::info!("{device}: tracker tap, {trust}; use {} in its place", shown.device.display());
    let mut replica = Replica::new(index, open, tap.clone(), disk.exclude.clone(), lock);
    replica.tap = Some((tap, shown.number));
    Ok(replica)
}
