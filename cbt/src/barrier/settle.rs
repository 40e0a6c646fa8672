//! Reading what is left while nothing is written.

use crate::copy::{Bounds, Found, Held, Replica};
use crate::disk::IoCounts;
use crate::tracker::{Agreement, Trust};
use blocks::{ExtentSet, Result};
use std::time::{Duration, Instant};

/// How long one look for an agreement waits for writes in flight.
const AGREE_WAIT: Duration = Duration::from_millis(100);

/// Whether every disk is held at one instant.
pub(super) enum Settled {
    Exact,
    Not(String),
}

/// Takes and reads until two looks at all disks in a row, with the counts agreeing in between, find nothing: the state
/// between them is the instant. Logs nothing; sends only what there is no room for.
pub(super) fn settle(
    replicas: &mut [Replica],
    held: &mut [Held],
    excluded: &[ExtentSet],
    bounds: &Bounds<'_>,
) -> Result<Settled> {
    let mut looks: Vec<Option<IoCounts>> = vec![None; replicas.len()];
    let mut agreed = false;
    loop {
        if !(bounds.go_on)() {
            return Ok(Settled::Not("the watchdog died while the file systems were frozen".into()));
        }
        let mut found = Found::Nothing;
        for (((replica, held), excluded), look) in
            replicas.iter_mut().zip(held.iter_mut()).zip(excluded).zip(&mut looks)
        {
            if look_at(replica, held, excluded, look, bounds)? == Found::Something {
                found = Found::Something;
            }
        }
        if agreed && found == Found::Nothing {
            return Ok(all_trusted(replicas));
        }
        if Instant::now() >= bounds.until {
            return Ok(Settled::Not(disturbed(replicas, found)));
        }
        agreed = found == Found::Nothing && agree(replicas)?;
    }
}

fn look_at(
    replica: &mut Replica,
    held: &mut Held,
    excluded: &ExtentSet,
    look: &mut Option<IoCounts>,
    bounds: &Bounds<'_>,
) -> Result<Found> {
    if !replica.is_scanned() {
        return replica.hold(held, excluded, bounds);
    }
    // Nothing marks what changes here; that the kernel has counted no write since the last look stands for it.
    let now = replica.disk.io_counts()?;
    let counted = (now.written, now.writes);
    if look.is_some_and(|before| (before.written, before.writes) == counted)
        && replica.disk.writes_in_flight() == 0
    {
        return Ok(Found::Nothing);
    }
    *look = Some(now);
    replica.hold(held, excluded, bounds)?;
    Ok(Found::Something)
}

/// Whether the counts of every disk agree; where one does not, there is more to read.
fn agree(replicas: &[Replica]) -> Result<bool> {
    let mut all = true;
    for replica in replicas.iter().filter(|replica| !replica.is_scanned()) {
        // Queued short is not trusted from here on, which the last look finds.
        all &= matches!(replica.tracker.agree(AGREE_WAIT)?, Agreement::Agree | Agreement::QueuedShort { .. });
    }
    Ok(all)
}

fn all_trusted(replicas: &[Replica]) -> Settled {
    for replica in replicas.iter() {
        let device = replica.disk.path().display();
        match replica.tracker.trust() {
            Trust::Untrusted { reason } if !replica.is_scanned() => {
                return Settled::Not(format!("{device}: the tracker is not trusted: {reason}"));
            }
            _ => {}
        }
        if replica.disk.len_now().ok() != Some(replica.disk.len()) {
            return Settled::Not(format!("{device}: the disk has another size than when the agent started"));
        }
    }
    Settled::Exact
}

fn disturbed(replicas: &[Replica], found: Found) -> String {
    let marked = |replica: &Replica| {
        let changed = replica.tracker.changed().unwrap_or_default();
        let first = changed.iter().next().map(|(extent, ())| extent);
        first.map(|extent| format!("{} ({extent})", replica.disk.path().display()))
    };
    let where_ = replicas.iter().filter_map(marked).next().unwrap_or_else(|| "the disk".into());
    match found {
        Found::Nothing => {
            "writes were in flight, or the counts did not agree, until the budget was used up".into()
        }
        _ => format!("{where_} was written to under the frozen file systems until the budget was used up"),
    }
}
