//! The best rung that a disk, a kernel and an administrator's wish allow, and why.

#[cfg(debug_assertions)]
use super::disk::WholeDisk;
use super::ebpf::EbpfTracker;
#[cfg(debug_assertions)]
use super::program::Mutant;
use super::scan::ScanTracker;
use super::{Tracker, TrackerKind};
use blocks::{Error, ErrorKind, Result};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// What the administrator asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TrackerWish {
    /// The best that works.
    #[default]
    Auto,
    /// This rung or none.
    Only(TrackerKind),
}

impl FromStr for TrackerWish {
    type Err = Error;

    fn from_str(text: &str) -> Result<TrackerWish> {
        match text {
            "auto" => Ok(TrackerWish::Auto),
            "ebpf" => Ok(TrackerWish::Only(TrackerKind::Ebpf)),
            "scan" => Ok(TrackerWish::Only(TrackerKind::Scan)),
            "tap" => Ok(TrackerWish::Only(TrackerKind::Tap)),
            _ => {
                let context = format!("'{text}' is not a tracker: auto, ebpf, tap or scan");
                Err(Error::new(ErrorKind::InvalidInput, context))
            }
        }
    }
}

/// The tracker for the whole disk at `device`, and for people why it is this one. What an earlier process pinned for the
/// disk is taken over; everything that process had taken is marked again.
///
/// Errors: `Busy` if another process tracks the disk; `InvalidInput` for what is no whole disk; `Unsupported`, with the
/// reason, where the wish cannot be had, and for a tap, which is opened on its own.
pub fn best(device: &Path, wish: TrackerWish) -> Result<(Arc<dyn Tracker>, String)> {
    let scan = |why: String| -> Result<(Arc<dyn Tracker>, String)> {
        Ok((Arc::new(ScanTracker::open(device)?), why))
    };
    if wish == TrackerWish::Only(TrackerKind::Scan) {
        return scan("scan: asked for".into());
    }
    if wish == TrackerWish::Only(TrackerKind::Tap) {
        let context = format!("{}: a tap is in the way of the writes, not beside it", device.display());
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    match EbpfTracker::open(device) {
        Ok((tracker, how)) => {
            let why = format!("ebpf: {how}; {}", tracker.trust());
            Ok((Arc::new(tracker), why))
        }
        Err(error) if wish != TrackerWish::Auto || is_final(error.kind()) => Err(error),
        Err(error) => scan(format!("scan: no eBPF tracker: {error}")),
    }
}

/// Whether a lower rung would not help or must not be taken.
fn is_final(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Busy | ErrorKind::InvalidInput | ErrorKind::NotFound)
}

/// A tracker with a deliberate defect, for the tests that must notice it; also takes disks that [`best`] refuses. Debug
/// builds only.
#[cfg(debug_assertions)]
#[doc(hidden)]
pub fn open_mutant(device: &Path, mutant: Mutant) -> Result<Arc<dyn Tracker>> {
    Ok(Arc::new(EbpfTracker::open_disk(WholeDisk::open(device)?, mutant)?.0))
}
