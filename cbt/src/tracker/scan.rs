//! The scan rung: nothing is known between two scans. Never trusted; the agent hashes the whole disk each cycle and puts
//! what differs in here, so that sending and acknowledging are the same on every rung.

use super::changed::Changed;
use super::disk::WholeDisk;
use super::{Agreement, Base, Census, Scan, Taking, Tracker, TrackerKind, Trust};
use blocks::{BlockShift, ByteLen, Error, ErrorKind, Extent, ExtentSet, Result};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// See the module.
pub(crate) struct ScanTracker {
    disk: WholeDisk,
    changed: Changed,
    kernel_at_start: ByteLen,
    base: Mutex<Option<Base>>,
}

impl ScanTracker {
    /// The rung for this disk, in blocks of 64 KiB, the unit of hashing.
    pub fn open(device: &Path) -> Result<ScanTracker> {
        let disk = WholeDisk::open(device)?;
        let changed = Changed::owned(BlockShift::KIB_64, disk.identity()?.len);
        let kernel_at_start = disk.kernel_written()?;
        Ok(ScanTracker { disk, changed, kernel_at_start, base: Mutex::default() })
    }

    fn refuse<T>(&self) -> Result<T> {
        let context = format!("{}: a scan proves nothing about later writes", self.disk.name());
        Err(Error::new(ErrorKind::Unsupported, context))
    }
}

impl Tracker for ScanTracker {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Scan
    }

    fn len(&self) -> ByteLen {
        self.changed.len()
    }

    fn grain(&self) -> BlockShift {
        self.changed.shift()
    }

    fn trust(&self) -> Trust {
        Trust::Untrusted { reason: "scanning knows nothing of the writes between two scans".into() }
    }

    fn take(&self, bytes_max: ByteLen) -> Result<Taking> {
        Ok(self.changed.take(bytes_max))
    }

    fn acknowledge(&self, taking: u64) -> Result<()> {
        self.changed.acknowledge(taking)
    }

    fn requeue(&self) -> Result<()> {
        self.changed.requeue();
        Ok(())
    }

    fn backlog(&self) -> Result<ByteLen> {
        Ok(self.changed.backlog())
    }

    fn changed(&self) -> Result<ExtentSet> {
        Ok(self.changed.changed())
    }

    fn mark(&self, extents: &[Extent]) -> Result<()> {
        self.changed.mark(extents)
    }

    fn begin_scan(&self, _within: Duration) -> Result<Scan> {
        self.refuse()
    }

    fn finish_scan(&self, _scan: Scan, _base: Base) -> Result<()> {
        self.refuse()
    }

    /// Forgets what was found; trusted it never is.
    fn reset(&self, base: Base) -> Result<()> {
        self.changed.forget_all();
        self.set_base(base)
    }

    fn base(&self) -> Option<Base> {
        *self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kept in memory only: after a restart everything is scanned anyway.
    fn set_base(&self, base: Base) -> Result<()> {
        *self.base.lock().unwrap_or_else(PoisonError::into_inner) = Some(base);
        Ok(())
    }

    /// Only the kernel counts here.
    fn census(&self) -> Result<Census> {
        let in_flight = self.disk.in_flight()?;
        Ok(Census { kernel: self.written()?, in_flight, ..Census::default() })
    }

    fn agree(&self, _within: Duration) -> Result<Agreement> {
        self.refuse()
    }

    fn written(&self) -> Result<ByteLen> {
        Ok(self.disk.kernel_written()?.saturating_sub(self.kernel_at_start))
    }
}
