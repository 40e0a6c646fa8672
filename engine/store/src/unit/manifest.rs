//! Everything that a unit knows of itself, as one immutable version.

use crate::image::ImageFormat;
use crate::unit::branch::{BranchId, BranchKind, DeltaId};
use crate::unit::checkpoint::{Checkpoint, Gap};
use crate::unit::lineage::Span;
use blocks::{
    ByteLen, CheckpointId, DiskIndex, Error, ErrorKind, Generation, MachineId, Result, Seq, StoreId,
};
use std::collections::BTreeMap;

/// What a new unit is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitSpec {
    /// The machine, and the unit.
    pub machine: MachineId,
    /// The machine's name, unique in the store.
    pub name: String,
    /// What the machine is, opaque to the store.
    pub definition: Vec<u8>,
    /// Its disks, at least one; the position is the [`DiskIndex`].
    pub disks: Vec<DiskSpec>,
    /// What the images are.
    pub image_format: ImageFormat,
}

/// A disk of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// Its size, a multiple of 512 and not 0.
    pub len: ByteLen,
    /// A serial number, WWN or other name that stays with the disk; may be empty.
    pub serial: String,
    /// The device's path on the machine.
    pub device: String,
}

/// One version of a unit's manifest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Manifest {
    pub store: StoreId,
    /// Random; ties the unit's files to it.
    pub salt: u64,
    pub machine: MachineId,
    pub name: String,
    pub definition: Vec<u8>,
    pub image_format: ImageFormat,
    pub disks: Vec<DiskSpec>,
    pub generation: Generation,
    pub next_delta: u64,
    pub next_branch: u64,
    pub next_checkpoint: u64,
    pub main: BranchId,
    /// What the image holds.
    pub horizon: Option<CheckpointId>,
    /// For each disk: what deltas up to this one wrote is in the image.
    pub floors: Vec<DeltaId>,
    /// How long the disk of each image is: as long as the horizon's, or as it was in the beginning.
    pub image_lens: Vec<ByteLen>,
    pub replay: Option<Replay>,
    pub branches: BTreeMap<BranchId, Branch>,
    /// The sealed ones behind the floors.
    pub deltas: BTreeMap<DeltaId, Delta>,
    pub merged: Vec<MergedIndex>,
    pub checkpoints: BTreeMap<CheckpointId, SealedCheckpoint>,
    pub gaps: Vec<Gap>,
    pub notes: BTreeMap<String, Vec<u8>>,
    /// How much of the storage the unit may take up; `None` is as much as there is.
    pub quota: Option<ByteLen>,
}

/// The image is being changed to hold a later checkpoint: until that is done, only views that lie over everything
/// up to it are right.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Replay {
    pub up_to: CheckpointId,
    /// What the floors will be.
    pub floors: Vec<DeltaId>,
}

/// A line of deltas.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Branch {
    pub kind: BranchKind,
    /// What people call it; may be empty.
    pub name: String,
    pub base: Option<CheckpointId>,
    /// One for each disk.
    pub ends: Vec<BranchEnd>,
}

/// Where a branch goes on, on one disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BranchEnd {
    /// The newest sealed delta below, perhaps one that the image has already; 0 where there never was one.
    pub sealed: DeltaId,
    /// The highest number in it and below.
    pub sealed_seq: Seq,
    /// The delta that is appended to. Its log need not exist.
    pub open: DeltaId,
    /// How long the disk is there. Never shorter than below; the main branch's is the unit's.
    pub len: ByteLen,
}

/// A sealed delta.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Delta {
    pub disk: DiskIndex,
    pub branch: BranchId,
    pub parent: DeltaId,
    pub log_len: ByteLen,
    pub entries: u64,
    pub covered: ByteLen,
    /// How often deltas were merged to get here; its files are called by it.
    pub revision: u32,
}

/// An index over several deltas of a line, in addition to their own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MergedIndex {
    pub disk: DiskIndex,
    pub first: DeltaId,
    pub last: DeltaId,
    /// How often neighbours were merged to get here.
    pub tier: u8,
    /// The sum of its deltas' revisions: over other logs of the same deltas it is another file.
    pub revision: u32,
}

/// A checkpoint and where it lies.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SealedCheckpoint {
    pub checkpoint: Checkpoint,
    /// For each disk, the newest delta that belongs to it, and the highest number in that and below.
    pub ends: Vec<(DeltaId, Seq)>,
}

impl Manifest {
    pub(crate) fn branch(&self, id: BranchId) -> Result<&Branch> {
        self.branches.get(&id).ok_or_else(|| self.missing(format!("branch {id}")))
    }

    pub(crate) fn sealed(&self, id: CheckpointId) -> Result<&SealedCheckpoint> {
        self.checkpoints.get(&id).ok_or_else(|| self.missing(format!("checkpoint {id}")))
    }

    pub(crate) fn disk_spec(&self, disk: DiskIndex) -> Result<&DiskSpec> {
        self.disks.get(usize::from(disk.0)).ok_or_else(|| self.missing(format!("disk {disk}")))
    }

    /// The numbers of the disks.
    pub(crate) fn disk_indexes(&self) -> impl Iterator<Item = DiskIndex> + use<> {
        (0..u16::try_from(self.disks.len()).unwrap_or(u16::MAX)).map(DiskIndex)
    }

    pub(crate) fn floor(&self, disk: DiskIndex) -> DeltaId {
        self.floors.get(usize::from(disk.0)).copied().unwrap_or(DeltaId::IMAGE)
    }

    /// The length that a disk's image has, and the one that it has once the consolidation that is going on is done.
    pub(crate) fn image_len(&self, disk: DiskIndex) -> Result<(ByteLen, ByteLen)> {
        let at = usize::from(disk.0);
        self.disk_spec(disk)?;
        let now = self.image_lens[at];
        let becoming = match &self.replay {
            Some(replay) => self.sealed(replay.up_to)?.checkpoint.lens[at],
            None => now,
        };
        Ok((now, becoming))
    }

    pub(crate) fn take_delta(&mut self) -> DeltaId {
        let id = DeltaId(self.next_delta);
        self.next_delta += 1;
        id
    }

    fn missing(&self, what: String) -> Error {
        Error::new(ErrorKind::NotFound, format!("{} has no {what}", self.name))
    }
}

impl MergedIndex {
    /// The part of a line that it is over.
    pub(crate) fn span(&self) -> Span {
        Span { first: self.first, last: self.last, tier: self.tier, revision: self.revision }
    }
}
