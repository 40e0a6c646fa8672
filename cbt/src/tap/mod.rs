//! The in-line tap: a disk's writes pass through here, to the disk and, in order, to the server.
//!
//! ```text
//!  whoever shows the volume ─► disk: range lock ─► activity log ─► medium (the disk) ─► order ─► the worker ─► server
//!                                                                                  └─► marks, where the order is full
//! ```
//!
//! This room never learns how the volume is shown: [`TapFront`] is given from outside. docs/design/0019-tap.md has
//! the states, the crash points and the figures.

mod activity;
mod disk;
mod medium;
mod memory;
mod order;
mod slot;
mod tracker;

#[cfg(test)]
mod tests;

pub(crate) use disk::TapDisk;
pub use memory::never_wait_for_own_writes;
pub(crate) use order::{Mode, Moment, Next, Order, OrderedWrite};

use crate::disk::{DeviceNumber, Disk};
use activity::{Activity, SlotFile};
use blocks::{BlockShift, ByteLen, DiskIndex, Result, Volume};
use medium::BareDisk;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How a tap works.
#[derive(Clone)]
pub struct TapSettings {
    /// How far apart the checkpoints of flushes are at least; zero: each flush is one.
    pub checkpoint_every: Duration,
    /// How much memory the writes that the server has not acknowledged may take; what goes beyond is marked.
    pub queue_bytes: ByteLen,
    /// Who shows tapped disks to the machine; `None` where nobody does, and then nothing can be tapped.
    pub front: Option<Arc<dyn TapFront>>,
}

impl Default for TapSettings {
    fn default() -> TapSettings {
        let (checkpoint_every, queue_bytes) = (Duration::from_secs(5), ByteLen::new(64 << 20));
        TapSettings { checkpoint_every, queue_bytes, front: None }
    }
}

impl fmt::Debug for TapSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TapSettings({:?}, {} bytes)", self.checkpoint_every, self.queue_bytes)
    }
}

/// Shows volumes to this machine as block devices.
pub trait TapFront: Send + Sync {
    /// Shows the volume that stands in the place of the disk at `device`; where.
    fn show(&self, device: &Path, volume: Arc<dyn Volume>, sector: BlockShift) -> Result<Shown>;
}

/// A block device that shows a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    /// What is to be mounted.
    pub device: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
}

/// Claims a disk and begins to tap it.
pub(crate) fn open(
    index: DiskIndex,
    disk: &Disk,
    state_dir: &Path,
    order: &Arc<Order>,
) -> Result<(Arc<TapDisk>, BlockShift)> {
    let medium = BareDisk::claim(disk.path())?;
    let sector = medium.sector();
    let (slots, found) = SlotFile::open(&log_path(state_dir, disk))?;
    let (activity, logged) = Activity::open(Box::new(slots), found, &known_as(disk), disk.len())?;
    let name = disk.path().display().to_string();
    let (len, medium, order) = (disk.len(), Box::new(medium), Arc::clone(order));
    let parts = disk::Parts { index, name, len, sector, medium, activity, logged, order };
    Ok((Arc::new(TapDisk::new(parts)), sector))
}

/// The disk is tracked in another way from now on: an earlier tap's log would be wrong after that.
pub(crate) fn forget(disk: &Disk, state_dir: &Path) -> Result<()> {
    activity::remove(&log_path(state_dir, disk))
}

fn log_path(state_dir: &Path, disk: &Disk) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = known_as(disk).chars().map(plain).take(100).collect();
    state_dir.join("tap").join(format!("{name}.log"))
}

/// The disk's serial number, or its name where it has none.
fn known_as(disk: &Disk) -> String {
    let name = || disk.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    Some(disk.serial()).filter(|serial| !serial.is_empty()).unwrap_or_else(name)
}

/// For the fuzz targets: reads a slot of an activity log, and what it wrote of it; whether both are equal.
pub(crate) fn read_slot_again(bytes: &[u8]) -> Result<bool> {
    let slot = slot::Slot::decode(bytes)?;
    Ok(slot::Slot::decode(&slot.encode())? == slot)
}
