//! After a failed write nobody knows what the file holds: nothing more is acknowledged until it is reopened.

use blocks::{Error, ErrorKind, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Remembers that a write or sync has failed.
#[derive(Debug, Default)]
pub(super) struct Poison(AtomicBool);

impl Poison {
    /// Runs a write or sync, unless an earlier one failed: then `Poisoned`. A failure of this one poisons.
    pub(super) fn guard<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.0.load(Ordering::Acquire) {
            let context = format!("{name}: an earlier write or sync failed; it must be reopened");
            return Err(Error::new(ErrorKind::Poisoned, context));
        }
        work().inspect_err(|_| self.0.store(true, Ordering::Release))
    }
}

/// `ReadOnly` unless the volume was opened for writing.
pub(super) fn check_writable(writable: bool, name: &str) -> Result<()> {
    if writable {
        return Ok(());
    }
    Err(Error::new(ErrorKind::ReadOnly, format!("{name} is open for reading only")))
}
