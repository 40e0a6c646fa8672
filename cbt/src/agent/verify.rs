//! Comparing the source with a checkpoint: hashes of what nothing has written since.

use crate::copy::{HASH_BLOCK, Replica, Stretch, hash_blocks, stretches};
use crate::link::Link;
use blocks::{ByteOffset, Extent, ExtentSet, Result};
use wire::{AgentMessage, BlockHash, HashPurpose, HashReport};

/// How much one report covers.
const REPORT_BYTES: u64 = 16 << 20;

/// A verification in progress; replication goes on between its steps.
#[derive(Debug)]
pub(super) struct Verify {
    request: u64,
    /// Set when the checkpoint is sealed, so that what was sent for it is no longer pending.
    pub sealed: bool,
    excluded: Vec<ExtentSet>,
    disk: usize,
    next: ByteOffset,
}

impl Verify {
    /// Begins right after the checkpoint's instant: from here on what is written is remembered.
    pub fn begin(request: u64, replicas: &mut [Replica], excluded: Vec<ExtentSet>) -> Verify {
        replicas.iter_mut().for_each(|replica| replica.written_since = Some(ExtentSet::new()));
        Verify { request, sealed: false, excluded, disk: 0, next: ByteOffset::ZERO }
    }

    /// The request that it belongs to.
    pub fn request(&self) -> u64 {
        self.request
    }

    /// Reports the next range; false when there is none.
    pub fn step(&mut self, replicas: &mut [Replica], link: &Link) -> Result<bool> {
        let Some(replica) = replicas.get_mut(self.disk) else { return Ok(false) };
        let end = replica.disk.len().end();
        let stop = end.min(ByteOffset::new(self.next.get().saturating_add(REPORT_BYTES)));
        if let Some(range) = Extent::between(self.next, stop) {
            let last = stop == end;
            let purpose = HashPurpose::Verify { request: self.request, last };
            let nothing = ExtentSet::new();
            let excluded = self.excluded.get(self.disk).unwrap_or(&nothing);
            let hashes = hashes(replica, range, excluded)?;
            let report = HashReport { purpose, disk: replica.index, range, block: HASH_BLOCK, hashes };
            link.send(AgentMessage::Hashes(report))?;
            self.next = stop;
        }
        if stop == end {
            replica.written_since = None;
            self.disk += 1;
            self.next = ByteOffset::ZERO;
        }
        Ok(self.disk < replicas.len())
    }
}

fn hashes(replica: &mut Replica, range: Extent, excluded: &ExtentSet) -> Result<Vec<Option<BlockHash>>> {
    let mut hashes = Vec::new();
    let make = |_: &Stretch, bytes: &[u8]| hash_blocks(bytes);
    replica.reader.read(&replica.disk, &stretches(&[range]), make, |made| {
        hashes.extend(made);
        Ok(())
    })?;
    // Asked after the read: what was written before or while it was read is marked by now.
    let marked = replica.tracker.changed()?;
    let written = replica.written_since.as_ref();
    let untouched = |block: Extent| {
        !marked.overlaps(block)
            && !excluded.overlaps(block)
            && !written.is_some_and(|written| written.overlaps(block))
    };
    let as_sent = |block: Extent, hash: &BlockHash| match &replica.digests {
        Some(digests) => digests.is(HASH_BLOCK.block_of(block.start()), hash),
        None => true,
    };
    let known = range.split(HASH_BLOCK.len()).zip(hashes);
    Ok(known.map(|(block, hash)| (untouched(block) && as_sent(block, &hash)).then_some(hash)).collect())
}
