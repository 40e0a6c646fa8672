//! What may differ between a target and the session.

use crate::session::block_set::{BLOCK, whole_blocks};
use crate::session::failback::disk_work::{CHUNK, DiskWork};
use crate::session::failback::line::Line;
use crate::session::live::LiveSession;
use crate::session::record::SessionState;
use blocks::{
    ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentSet, RequestClass, Result, StoreId, Volume,
};
use std::collections::VecDeque;
use std::sync::Arc;
use store::{BranchDisk, BranchId, Point};
use wire::{HashReport, ServerMessage, TargetKnowledge};

/// How much is asked for in one message, and how many of them are unanswered at most.
const HASH_RANGE: ByteLen = ByteLen::new(64 << 20);
const HASHES_OPEN_MAX: usize = 3;

/// What a target is worth.
pub(crate) enum Knowledge {
    /// These extents may differ; `unsent` was written by the machine and may never have been sent.
    Known { differs: ExtentSet, unsent: ExtentSet },
    /// Everything may differ, because.
    Unknown(String),
}

/// Weighs what an agent says of a target. `redirected`: onto another device than the protected one.
pub(crate) fn weigh(
    session: &LiveSession,
    work: &DiskWork,
    said: TargetKnowledge,
    store: StoreId,
) -> Result<Knowledge> {
    let (unit, disk) = (&session.unit, work.disk.index);
    let (acked, changed) = match said {
        TargetKnowledge::Unknown { reason } => return Ok(Knowledge::Unknown(reason)),
        TargetKnowledge::Known { store: theirs, .. } if theirs != store => {
            return Ok(Knowledge::Unknown(format!("it knows the store {theirs}, not this one")));
        }
        TargetKnowledge::Known { acked, changed, .. } => (acked, changed),
    };
    let main = unit.main_branch();
    let record = session.record.get();
    // What the machine's disk descends from: the main branch, or what it was before the session's took its place.
    let old = match record.state() {
        SessionState::Finishing { superseded, .. } => {
            let superseded = BranchId(superseded);
            match unit.branches().iter().any(|branch| branch.id == superseded) {
                true => Point::Head(superseded),
                // It held nothing and was dropped.
                false if unit.checkpoint(record.base()).is_some() => Point::Checkpoint(record.base()),
                false => return Ok(Knowledge::Unknown("what it descends from is no longer kept".to_owned())),
            }
        }
        _ => Point::Head(main),
    };
    let newest = unit.disk(main, disk)?.last_seq().max(work.disk.branch.last_seq());
    if acked > newest && matches!(old, Point::Head(branch) if branch == main) {
        let reason = format!("it was acknowledged up to {}, and the store has {} only", acked.0, newest.0);
        return Ok(Knowledge::Unknown(reason));
    }
    let disk_extent = Extent::whole(work.disk.len());
    let within = |extent: Extent| disk_extent.and_then(|whole| extent.intersect(whole));
    let unsent: ExtentSet = changed.into_iter().filter_map(within).collect();
    // What the main branch has behind the session's end, of a disk that has grown, is not the session's.
    let differs = unit.difference(Point::Head(record.branch()), old, disk)?;
    let mut differs: ExtentSet = differs.iter().filter_map(|(extent, ())| within(extent)).collect();
    differs.union(&unsent);
    if let Some(map) = work.disk.map() {
        differs.union(&map.blocks().extents(work.disk.len()));
    }
    Ok(Knowledge::Known { differs, unsent })
}

/// Compares whole blocks of the target with the session by their hashes. Blocks that differ go into the next round;
/// with `main`, those of them that the main branch does not hold either are returned: the machine wrote them and never
/// sent them.
pub(crate) fn compare(
    line: &mut Line,
    work: &mut DiskWork,
    extents: &ExtentSet,
    main: Option<&Arc<BranchDisk>>,
    told: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<ExtentSet> {
    let mut unsent = ExtentSet::new();
    hash_at_target(line, work, extents, told, &mut |work, report| {
        let theirs = &report.hashes;
        for extent in report.range.split(CHUNK) {
            let chunk = work.read(extent)?;
            let first = BLOCK.block_of(report.range.start());
            for (block, ours) in chunk.hashes() {
                let hash =
                    usize::try_from(block - first).ok().and_then(|at| theirs.get(at)).copied().flatten();
                if hash == Some(ours) {
                    continue;
                }
                let Some(differing) = crate::session::block_set::block_range(block, 1, work.disk.len())
                else {
                    continue;
                };
                work.next.insert(differing, ());
                if let (Some(main), Some(hash)) = (main, hash)
                    && hash_in(main, differing)? != hash
                {
                    unsent.insert(differing, ());
                }
            }
        }
        Ok(())
    })?;
    Ok(unsent)
}

fn hash_in(volume: &Arc<BranchDisk>, extent: Extent) -> Result<[u8; 32]> {
    let mut bytes = vec![0; extent.len().as_usize()];
    volume.read_at(extent.start(), &mut bytes, RequestClass::Background)?;
    Ok(*blake3::hash(&bytes).as_bytes())
}

/// Has the target hash `extents`, and hands each report over, in order and checked.
pub(crate) fn hash_at_target(
    line: &mut Line,
    work: &mut DiskWork,
    extents: &ExtentSet,
    told: &mut dyn FnMut(u64) -> Result<()>,
    each: &mut dyn FnMut(&mut DiskWork, &HashReport) -> Result<()>,
) -> Result<()> {
    let whole = whole_blocks(extents, work.disk.len());
    let mut ranges = whole.iter().flat_map(|(run, ())| run.split(HASH_RANGE));
    // Where each unanswered range's next report must begin, and where the range ends.
    let mut open: VecDeque<(ByteOffset, ByteOffset)> = VecDeque::new();
    loop {
        while open.len() < HASHES_OPEN_MAX
            && let Some(range) = ranges.next()
        {
            let (restore, disk) = (line.restore(), work.disk.index);
            line.send(ServerMessage::RestoreHash { restore, disk, range })?;
            open.push_back((range.start(), range.end()));
        }
        let Some((at, end)) = open.pop_front() else { return Ok(()) };
        let report = line.hashes(work.disk.index)?;
        check_report(&report, at, end)?;
        let len = report.range.len().get();
        work.info.hashed_bytes += len;
        each(work, &report)?;
        told(len)?;
        if report.range.end() < end {
            open.push_front((report.range.end(), end));
        }
    }
}

fn check_report(report: &HashReport, at: ByteOffset, end: ByteOffset) -> Result<()> {
    let fits = report.block == BLOCK
        && report.range.start() == at
        && report.range.end() <= end
        && (report.range.end() == end || report.range.end().is_aligned(BLOCK))
        && report.hashes.len() as u64 == report.range.len().blocks(BLOCK);
    match fits {
        true => Ok(()),
        false => {
            let (range, count) = (report.range, report.hashes.len());
            let context =
                format!("the agent sent {count} hashes of {range}; from {at} to {end} were asked for");
            Err(Error::new(ErrorKind::InvalidInput, context))
        }
    }
}
