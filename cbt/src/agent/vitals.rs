//! What a heartbeat says, gathered without waiting for the worker.

use crate::tracker::Tracker;
use blocks::{ByteLen, WallClock};
use std::sync::{Arc, Mutex, PoisonError};
use wire::Heartbeat;

/// Shared by the worker, which writes, and the connection, which reads.
#[derive(Default)]
pub(super) struct Vitals {
    disks: Mutex<Vec<DiskVitals>>,
}

/// One disk.
pub(super) struct DiskVitals {
    pub tracker: Arc<dyn Tracker>,
    /// What a pass over the whole disk has not reached yet.
    pub unscanned: ByteLen,
}

impl Vitals {
    /// Replaces what is known of every disk.
    pub fn set(&self, disks: Vec<DiskVitals>) {
        *self.disks.lock().unwrap_or_else(PoisonError::into_inner) = disks;
    }

    /// How the agent is doing.
    pub fn heartbeat(&self) -> Heartbeat {
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        Heartbeat {
            now: WallClock::now(),
            backlog: disks
                .iter()
                .map(|disk| disk.tracker.backlog().unwrap_or_default() + disk.unscanned)
                .collect(),
            churn: disks.iter().map(|disk| disk.tracker.written().unwrap_or_default()).collect(),
            trackers: disks
                .iter()
                .map(|disk| match disk.tracker.remark() {
                    None => format!("{} ({})", disk.tracker.kind(), disk.tracker.trust()),
                    Some(remark) => {
                        format!("{} ({}; {remark})", disk.tracker.kind(), disk.tracker.trust())
                    }
                })
                .collect(),
        }
    }
}
