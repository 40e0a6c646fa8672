//! Proving that a target holds what was sent.

use crate::session::block_set::{BLOCK, BlockSet, block_range};
use crate::session::failback::disk_work::DiskWork;
use crate::session::failback::line::Line;
use crate::session::failback::plan::hash_at_target;
use blocks::{Error, ErrorKind, Result};

/// Compares every block that was sent with what the target holds; what differs is sent once more and compared again.
/// Nothing may be written to the session meanwhile. `Corrupt` where the target does not keep what it is given.
pub(crate) fn verify(
    line: &mut Line,
    work: &mut DiskWork,
    told: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let blocks = std::mem::take(&mut work.sent);
    let wrong = differing(line, work, &blocks, told)?;
    if wrong.is_empty() {
        return Ok(());
    }
    let (count, index) = (wrong.count(), work.disk.index);
    tracing::warn!("{count} blocks of disk {index} differ at the target and are sent again");
    work.next = wrong.extents(work.disk.len());
    work.send_round(line, told)?;
    line.sync()?;
    work.sent = BlockSet::new();
    let still = differing(line, work, &wrong, told)?;
    match still.blocks().next() {
        None => Ok(()),
        Some(block) => {
            let offset = BLOCK.start_of(block);
            let context = format!(
                "disk {index} of the machine does not keep what is written to it: {} blocks differ, the first at byte \
                 {offset}",
                still.count()
            );
            Err(Error::new(ErrorKind::Corrupt, context))
        }
    }
}

fn differing(
    line: &mut Line,
    work: &mut DiskWork,
    blocks: &BlockSet,
    told: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<BlockSet> {
    let mut wrong = BlockSet::new();
    let extents = blocks.extents(work.disk.len());
    hash_at_target(line, work, &extents, told, &mut |work, report| {
        let first = BLOCK.block_of(report.range.start());
        for (block, theirs) in (first..).zip(&report.hashes) {
            let ours = work.hash_of(block)?;
            match block_range(block, 1, work.disk.len()) {
                Some(extent) if *theirs == Some(ours) => work.info.verified_bytes += extent.len().get(),
                _ => wrong.insert_block(block),
            }
        }
        Ok(())
    })?;
    Ok(wrong)
}
