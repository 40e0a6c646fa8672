//! What can be said about a target's content without reading it.

use super::Target;
use crate::copy::Replica;
use crate::tracker::{Agreement, Trust};
use blocks::Result;
use std::time::Duration;
use wire::TargetKnowledge;

/// How long writes may still be in flight once the target is held exclusively.
const QUIET_WAIT: Duration = Duration::from_secs(2);

/// Known only where the target is the protected disk and its map is unbroken and trusted; asked after the target is
/// held, so that nothing changes any more.
pub(super) fn of(target: &Target, replica: Option<&Replica>) -> Result<TargetKnowledge> {
    let unknown = |reason: String| Ok(TargetKnowledge::Unknown { reason });
    let device = target.device.display();
    let Some(replica) = replica.filter(|replica| target.is_disk(&replica.disk)) else {
        return unknown(format!("{device} is not the disk that was protected"));
    };
    if replica.is_scanned() {
        return unknown(format!("{device}: the scan rung knows nothing between two scans"));
    }
    // An agent that has stood by from its start has scanned nothing, and nothing to agree with.
    if let Trust::Untrusted { reason } = replica.tracker.trust() {
        return unknown(format!("{device}: {reason}"));
    }
    if let Agreement::InFlight { bytes } = replica.tracker.agree(QUIET_WAIT)? {
        return unknown(format!("{device}: {bytes} bytes were in flight all the time"));
    }
    match (replica.tracker.trust(), replica.tracker.base()) {
        (Trust::Untrusted { reason }, _) => unknown(format!("{device}: {reason}")),
        (Trust::Trusted, None) => unknown(format!("{device}: nothing was acknowledged under this map")),
        (Trust::Trusted, Some(base)) => {
            let changed = replica.tracker.changed()?;
            if changed.extents() > wire::EXTENTS_MAX {
                return unknown(format!("{device}: it changed in {} places", changed.extents()));
            }
            let changed = changed.iter().map(|(extent, ())| extent).collect();
            Ok(TargetKnowledge::Known { store: base.store, acked: base.acked, changed })
        }
    }
}
