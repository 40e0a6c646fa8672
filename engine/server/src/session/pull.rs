//! Bringing a session's branch to the state of its disks, and sealing it.

use crate::session::live::{LiveDisk, LiveSession};
use crate::session::migrate::{Copier, Pace};
use crate::session::volume::WriteWatch;
use blocks::{CheckpointId, ExtentSet, Result, Seq, Volume, WallClock, monotonic_now};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use store::{CheckpointSpec, Consistency};

/// Seals a checkpoint that every disk of the session is equal to. Guests' writes wait for a short while; before that,
/// what pivoted disks hold is copied into the branch.
pub(crate) fn seal_session(session: &LiveSession, name: &str) -> Result<CheckpointId> {
    let stop = AtomicBool::new(false);
    let mut watches: Vec<Option<Arc<WriteWatch>>> = Vec::new();
    for disk in &session.disks {
        let Some(map) = disk.map() else {
            disk.branch.sync()?;
            watches.push(None);
            continue;
        };
        // The watch comes first: what is written after it is in the watch, what came before is in the map.
        let watch = disk.volume.watch();
        pull(disk, &map.blocks().extents(disk.len()), &stop)?;
        pull(disk, &watch.take().extents(disk.len()), &stop)?;
        disk.branch.sync()?;
        watches.push(Some(watch));
    }
    let begun = monotonic_now();
    let quiesced: Vec<_> = session.disks.iter().map(|disk| disk.volume.quiesce()).collect();
    for (disk, watch) in session.disks.iter().zip(&watches) {
        if let Some(watch) = watch {
            pull(disk, &watch.take().extents(disk.len()), &stop)?;
        }
    }
    let sealed = seal_branch(session, name, begun)?;
    drop(quiesced);
    Ok(sealed)
}

/// Seals the branch as it is. Nothing may be written meanwhile.
pub(crate) fn seal_branch(session: &LiveSession, name: &str, quiet_since: Instant) -> Result<CheckpointId> {
    let seqs: Vec<Seq> = session.disks.iter().map(|disk| disk.branch.last_seq()).collect();
    let spec = CheckpointSpec {
        name: name.to_owned(),
        consistency: Consistency::Crash,
        source_time: WallClock::now(),
        frozen_ms: millis_since(quiet_since),
        seqs,
        excluded: Vec::new(),
    };
    let sealed = session.unit.seal(session.record.get().branch(), spec)?;
    Ok(sealed.into_inner())
}

/// How many milliseconds have passed since.
pub(crate) fn millis_since(begun: Instant) -> u64 {
    let passed = monotonic_now().saturating_duration_since(begun);
    u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
}

fn pull(disk: &LiveDisk, extents: &ExtentSet, stop: &AtomicBool) -> Result<()> {
    let source = disk.volume.inner();
    let target = Arc::clone(&disk.branch) as Arc<dyn Volume>;
    let mut copier = Copier { source: &*source, target, pace: &mut Pace::new(None), stop };
    for (extent, ()) in extents.iter() {
        copier.copy(extent, false, &mut |_| {})?;
    }
    Ok(())
}
