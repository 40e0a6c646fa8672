//! What a unit must be, said as simply as possible: whole disks in memory.

use blocks::{CheckpointId, Extent, Seq};
use std::collections::BTreeMap;
use store::BranchId;

pub type Disk = Vec<u8>;

#[derive(Clone, Debug)]
pub struct Write {
    pub seq: Seq,
    pub extent: Extent,
    pub bytes: Vec<u8>,
}

/// One disk of a branch: what is certainly on the medium, and what was written since.
#[derive(Clone, Debug)]
pub struct NaiveHead {
    pub durable: Disk,
    pub durable_seq: Seq,
    pub since: Vec<Write>,
}

#[derive(Clone, Debug)]
pub struct NaiveBranch {
    pub heads: Vec<NaiveHead>,
    pub base: Option<CheckpointId>,
}

#[derive(Clone, Debug)]
pub struct NaiveCheckpoint {
    pub branch: BranchId,
    pub disks: Vec<Disk>,
}

#[derive(Clone, Debug, Default)]
pub struct Naive {
    pub branches: BTreeMap<BranchId, NaiveBranch>,
    pub checkpoints: BTreeMap<CheckpointId, NaiveCheckpoint>,
}

pub fn apply(disk: &mut Disk, extent: Extent, bytes: &[u8]) {
    let start = extent.start().get() as usize;
    disk[start..start + bytes.len()].copy_from_slice(bytes);
}

impl NaiveHead {
    pub fn new(disk: Disk, seq: Seq) -> NaiveHead {
        NaiveHead { durable: disk, durable_seq: seq, since: Vec::new() }
    }

    pub fn last_seq(&self) -> Seq {
        self.since.last().map_or(self.durable_seq, |write| write.seq)
    }

    /// The disk after the writes up to `seq`.
    pub fn at(&self, seq: Seq) -> Disk {
        let mut disk = self.durable.clone();
        for write in self.since.iter().filter(|write| write.seq <= seq) {
            apply(&mut disk, write.extent, &write.bytes);
        }
        disk
    }

    pub fn now(&self) -> Disk {
        self.at(self.last_seq())
    }

    /// Everything up to `seq` is on the medium.
    pub fn settle(&mut self, seq: Seq) {
        if seq >= self.durable_seq {
            self.durable = self.at(seq);
            self.durable_seq = seq;
            self.since.retain(|write| write.seq > seq);
        }
    }
}

impl NaiveBranch {
    pub fn now(&self) -> Vec<Disk> {
        self.heads.iter().map(NaiveHead::now).collect()
    }
}
