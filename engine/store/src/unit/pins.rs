//! Who needs which checkpoint: the horizon passes none of them.

use crate::unit::branch::{BranchId, BranchKind};
use crate::unit::checkpoint::Checkpoint;
use blocks::{CheckpointId, DiskIndex, WallClock};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A checkpoint that is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pin {
    /// Which one.
    pub checkpoint: CheckpointId,
    /// By whom.
    pub holder: PinHolder,
}

/// Who holds a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PinHolder {
    /// Open views of that disk; gone with the process.
    View {
        /// The disk they show.
        disk: DiskIndex,
        /// How many there are.
        count: u64,
    },
    /// A branch that starts there; durable.
    Branch {
        /// Its number.
        id: BranchId,
        /// What it is for.
        kind: BranchKind,
    },
    /// Somebody who wants it to stay; durable.
    Protection {
        /// Before this instant; [`crate::Checkpoint::FOREVER`] is until somebody says otherwise.
        until: WallClock,
    },
}

impl fmt::Display for PinHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PinHolder::View { disk, count: 1 } => write!(f, "an open view of disk {disk}"),
            PinHolder::View { disk, count } => write!(f, "{count} open views of disk {disk}"),
            PinHolder::Protection { until: Checkpoint::FOREVER } => f.write_str("its protection"),
            PinHolder::Protection { until } => write!(f, "its protection until {} ms", until.0),
            PinHolder::Branch { id, kind } => write!(f, "{kind} (branch {id})"),
        }
    }
}

/// The pins of open views.
#[derive(Debug, Default)]
pub(crate) struct ViewPins {
    counts: Mutex<BTreeMap<(CheckpointId, DiskIndex), u64>>,
}

/// Holds a checkpoint until it is dropped.
#[derive(Debug)]
pub(crate) struct ViewPin {
    pins: Arc<ViewPins>,
    key: (CheckpointId, DiskIndex),
}

impl ViewPins {
    pub(crate) fn pin(self: &Arc<Self>, checkpoint: CheckpointId, disk: DiskIndex) -> ViewPin {
        let key = (checkpoint, disk);
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert(0) += 1;
        ViewPin { pins: Arc::clone(self), key }
    }

    pub(crate) fn list(&self) -> Vec<Pin> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let pin = |(&(checkpoint, disk), &count): (&(CheckpointId, DiskIndex), &u64)| Pin {
            checkpoint,
            holder: PinHolder::View { disk, count },
        };
        counts.iter().map(pin).collect()
    }
}

impl Drop for ViewPin {
    fn drop(&mut self) {
        let mut counts = self.pins.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}
