//! Keeping the history as long as was asked for: what is older goes into the images, quietly.

use crate::services::Services;
use crate::stop::Stop;
use blocks::{CheckpointId, ErrorKind, WallClock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use store::{Checkpoint, Unit};

/// Looks after every unit until `stop` is set; one at a time, ending at once where a person wants to consolidate.
pub(crate) async fn run(services: Arc<Services>, keep: Duration, mut stop: Stop) {
    let every = (keep / 10).clamp(Duration::from_secs(1), Duration::from_secs(60));
    let stopping = Arc::new(AtomicBool::new(false));
    loop {
        tokio::select! {
            () = stop.heard() => return,
            () = tokio::time::sleep(every) => {}
        }
        let (services, stopping_seen) = (services.clone(), stopping.clone());
        let mut work = tokio::task::spawn_blocking(move || consolidate_all(&services, keep, &stopping_seen));
        tokio::select! {
            () = stop.heard() => {
                stopping.store(true, Ordering::Release);
                // Consolidation can stop anywhere and goes on at the next start.
                let _ = work.await;
                return;
            }
            done = &mut work => if done.is_err() {
                tracing::error!("consolidation panicked");
            }
        }
    }
}

fn consolidate_all(services: &Services, keep: Duration, stopping: &AtomicBool) {
    for unit in services.store.units() {
        let Some(_turn) = services.consolidating.for_the_background() else { return };
        let go_on = |_, _| !stopping.load(Ordering::Acquire) && !services.consolidating.must_make_room();
        if !go_on((), ()) {
            return;
        }
        let Some(up_to) = due(&unit, WallClock::now(), keep) else { continue };
        match unit.consolidate(up_to, &|_, _| go_on((), ())) {
            Ok(report) => tracing::debug!(unit = unit.name(), %up_to, ?report, "consolidated"),
            Err(error)
                if matches!(error.kind(), ErrorKind::Busy | ErrorKind::Cancelled | ErrorKind::NotFound) =>
            {
                tracing::debug!(%error, unit = unit.name(), "not consolidated now");
            }
            Err(error) => {
                tracing::error!(%error, unit = unit.name(), "the history could not be consolidated")
            }
        }
    }
}

pub(crate) fn due(unit: &Unit, now: WallClock, keep: Duration) -> Option<CheckpointId> {
    let main = unit.main_branch();
    let line: Vec<_> =
        unit.checkpoints().into_iter().filter(|checkpoint| checkpoint.branch == main).collect();
    let pinned = unit.pins().into_iter().map(|pin| pin.checkpoint).min();
    choose(&line, unit.horizon(), pinned, now, keep)
}

/// The newest checkpoint of the main line that is older than `keep`, not past a pin, and past the horizon.
fn choose(
    line: &[Checkpoint],
    horizon: Option<CheckpointId>,
    pinned: Option<CheckpointId>,
    now: WallClock,
    keep: Duration,
) -> Option<CheckpointId> {
    let keep = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
    let old = |checkpoint: &&Checkpoint| checkpoint.server_time.0.saturating_add(keep) <= now.0;
    let free = |checkpoint: &&Checkpoint| pinned.is_none_or(|pinned| checkpoint.id <= pinned);
    let newest = line.iter().filter(old).filter(free).map(|checkpoint| checkpoint.id).max()?;
    Some(newest).filter(|newest| horizon.is_none_or(|horizon| *newest > horizon))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{ByteLen, Generation};
    use store::{BranchId, Consistency};

    fn checkpoint(id: u64, server_time_ms: u64) -> Checkpoint {
        Checkpoint {
            id: CheckpointId(id),
            branch: BranchId(1),
            name: String::new(),
            consistency: Consistency::Crash,
            source_time: WallClock(0),
            server_time: WallClock(server_time_ms),
            frozen_ms: 0,
            generation: Generation(1),
            lens: Vec::new(),
            seqs: Vec::new(),
            excluded: Vec::new(),
            changed: ByteLen::ZERO,
            protected_until: WallClock(0),
        }
    }

    #[test]
    fn what_is_too_old_goes_unless_it_is_needed() {
        let line = [checkpoint(1, 1_000), checkpoint(2, 2_000), checkpoint(4, 3_000), checkpoint(5, 9_000)];
        let at = |now, horizon: Option<u64>, pinned: Option<u64>| {
            let keep = Duration::from_secs(5);
            let (horizon, pinned) = (horizon.map(CheckpointId), pinned.map(CheckpointId));
            choose(&line, horizon, pinned, WallClock(now), keep).map(|id| id.0)
        };
        assert_eq!(at(5_999, None, None), None);
        assert_eq!(at(6_000, None, None), Some(1));
        assert_eq!(at(8_000, None, None), Some(4));
        assert_eq!(at(8_000, Some(2), None), Some(4));
        assert_eq!(at(8_000, Some(4), None), None, "it is the horizon already");
        assert_eq!(at(8_000, None, Some(3)), Some(2), "a session's checkpoint beside the main line holds it");
        assert_eq!(at(8_000, Some(2), Some(2)), None);
        assert_eq!(at(99_000, None, None), Some(5));
    }
}
