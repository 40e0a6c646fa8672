//! Taking a disk under protection.

use super::config::{AgentConfig, DiskConfig};
use crate::barrier::check_excluded;
use crate::copy::Replica;
use crate::disk::{Disk, DiskLock};
use crate::tracker;
use blocks::{DiskIndex, Error, ErrorKind, Result};

/// Opens, locks and tracks every disk of the configuration. Nothing is held where one of them cannot be.
pub(super) fn protect_all(config: &AgentConfig) -> Result<Vec<Replica>> {
    if config.disks.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, "no disk is named: an agent protects at least one"));
    }
    let indexed = config.disks.iter().enumerate();
    let index = |position| {
        let too_many = |_| Error::new(ErrorKind::InvalidInput, "too many disks");
        u16::try_from(position).map(DiskIndex).map_err(too_many)
    };
    indexed.map(|(position, disk)| protect(config, index(position)?, disk)).collect()
}

/// Opens, locks and tracks one disk.
pub(super) fn protect(config: &AgentConfig, index: DiskIndex, disk: &DiskConfig) -> Result<Replica> {
    let device = disk.device.display().to_string();
    let open = Disk::open(&disk.device)?;
    check_excluded(&disk.exclude, open.len(), &device)?;
    let lock = DiskLock::acquire(&config.run_dir, &open)?;
    let (tracker, why) = tracker::best(&disk.device, config.tracker)?;
    tracing::info!("{device}: tracker {why}");
    Ok(Replica::new(index, open, tracker, disk.exclude.clone(), lock))
}
