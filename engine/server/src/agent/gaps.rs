//! Intervals without checkpoints, as the server itself notices them.
//!
//! A gap begins when something happens that keeps checkpoints from being made, and every open one ends with the next
//! checkpoint that is sealed, which is when one can be offered again. They are in the unit, so that a restart of the
//! server neither loses nor closes them.

use blocks::{Result, WallClock};
use store::{Gap, Unit};

/// Why no checkpoint can be made.
pub(crate) const LOST: &str = "the agent's connection was lost";
/// Why no checkpoint can be made.
pub(crate) const SILENT: &str = "the machine was not heard of";
/// Why no checkpoint can be made.
pub(crate) const SHUTDOWN: &str = "the server was stopped";
/// Why no checkpoint can be made.
pub(crate) const SCAN: &str = "the disks are hashed again: what changed is not known";

/// Why no checkpoint can be made.
pub(crate) const FULL: &str = "the store is full";
/// Why no checkpoint can be made.
pub(crate) const QUOTA: &str = "the machine's quota is reached";

/// Something keeps checkpoints from being made from now on. Nothing new where a gap with this cause is open already,
/// or where there has never been a checkpoint, so that none is missed.
pub(crate) fn begin(unit: &Unit, cause: &str) -> Result<()> {
    if unit.checkpoints().is_empty() || unit.gaps().iter().any(|gap| is_open(gap) && gap.cause == cause) {
        return Ok(());
    }
    unit.record_gap(Gap { from: WallClock::now(), until: WallClock(0), cause: cause.into() })
}

/// A checkpoint is there: what was open has ended.
pub(crate) fn end_all(unit: &Unit) -> Result<()> {
    let now = WallClock::now();
    for gap in unit.gaps().into_iter().filter(is_open) {
        unit.record_gap(Gap { until: now.max(gap.from), ..gap })?;
    }
    Ok(())
}

fn is_open(gap: &Gap) -> bool {
    gap.until == WallClock(0)
}
