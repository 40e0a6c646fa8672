//! The nodes and lines of a unit's lineage.

use blocks::{CheckpointId, SessionId};
use std::fmt;

/// A delta: what changed on one disk of one branch between two moments. Numbers rise over the whole unit and along
/// every line of descent, and are never used again. 0 stands for the image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeltaId(pub u64);

/// A line of deltas; never used again after it was dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BranchId(pub u64);

/// What a branch is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum BranchKind {
    /// The line that replication appends to; every unit has exactly one.
    Main,
    /// The writes of a recovery in progress.
    Session(SessionId),
    /// What a main branch held beyond the point from which another took over.
    Superseded,
    /// A line that somebody has made to stay.
    Clone,
}

/// A branch as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BranchInfo {
    /// Its number.
    pub id: BranchId,
    /// What it is for.
    pub kind: BranchKind,
    /// What people call it; may be empty.
    pub name: String,
    /// Where it forked; `None` for the main branch.
    pub base: Option<CheckpointId>,
}

/// A state that can be compared with another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Point {
    /// A sealed instant.
    Checkpoint(CheckpointId),
    /// The newest state of a branch, with what is not sealed yet.
    Head(BranchId),
}

/// A delta as it is stored now. Merging gives it another log and index under new names, so that whoever still reads the
/// old ones is not disturbed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Edition {
    pub delta: DeltaId,
    /// How often deltas were merged to get here.
    pub revision: u32,
}

impl Edition {
    /// As it is when it is sealed.
    pub(crate) fn first(delta: DeltaId) -> Edition {
        Edition { delta, revision: 0 }
    }
}

impl DeltaId {
    /// The image: what every line descends from.
    pub const IMAGE: DeltaId = DeltaId(0);
}

impl fmt::Display for DeltaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for BranchKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BranchKind::Main => f.write_str("main branch"),
            BranchKind::Session(session) => write!(f, "session {session}"),
            BranchKind::Superseded => f.write_str("superseded branch"),
            BranchKind::Clone => f.write_str("clone"),
        }
    }
}
