//! Instants to which a unit can be brought, and intervals in which there is none.

use crate::unit::branch::BranchId;
use blocks::{ByteLen, CheckpointId, Extent, Generation, Seq, WallClock};

/// What a checkpoint promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// What a power cut at that instant would have left.
    Crash,
    /// File systems were frozen: they are clean.
    FileSystem,
    /// Applications were at rest as well.
    Application,
    /// Blocks changed while they were read; taken by explicit wish only.
    Fuzzy,
}

/// What a new checkpoint is to say of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointSpec {
    /// A name; may be empty.
    pub name: String,
    /// What it promises.
    pub consistency: Consistency,
    /// The instant on the source's clock.
    pub source_time: WallClock,
    /// How long writers stood still, in milliseconds.
    pub frozen_ms: u64,
    /// For each disk, the last write before the instant; shorter or empty where that is not known.
    pub seqs: Vec<Seq>,
    /// For each disk, the extents that the promise leaves out; shorter or empty where there are none.
    pub excluded: Vec<Vec<Extent>>,
}

/// A sealed instant of all disks of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its number.
    pub id: CheckpointId,
    /// The branch it belongs to.
    pub branch: BranchId,
    /// Its name; may be empty.
    pub name: String,
    /// What it promises.
    pub consistency: Consistency,
    /// The instant on the source's clock.
    pub source_time: WallClock,
    /// When it was sealed, on the server's clock.
    pub server_time: WallClock,
    /// How long writers stood still, in milliseconds.
    pub frozen_ms: u64,
    /// The unit's generation then.
    pub generation: Generation,
    /// The size of each disk then.
    pub lens: Vec<ByteLen>,
    /// As in [`CheckpointSpec`].
    pub seqs: Vec<Seq>,
    /// As in [`CheckpointSpec`].
    pub excluded: Vec<Vec<Extent>>,
    /// Bytes that changed since the checkpoint before it on the branch; a byte that changed in several parts of that
    /// time counts for each.
    pub changed: ByteLen,
    /// It can be neither deleted nor consolidated away before this instant on the server's clock; 0 where it is not
    /// protected.
    pub protected_until: WallClock,
}

/// An interval in which no checkpoint can be offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// From when.
    pub from: WallClock,
    /// Until when; 0 while it goes on.
    pub until: WallClock,
    /// Why, for the administrator.
    pub cause: String,
}

impl Checkpoint {
    /// Protected until somebody says otherwise.
    pub const FOREVER: WallClock = WallClock(u64::MAX);

    /// Whether it must stay now.
    pub fn is_protected(&self, now: WallClock) -> bool {
        self.protected_until > now
    }
}

impl CheckpointSpec {
    /// A crash-consistent checkpoint of now, without a name.
    pub fn crash_consistent_now() -> CheckpointSpec {
        CheckpointSpec {
            name: String::new(),
            consistency: Consistency::Crash,
            source_time: WallClock::now(),
            frozen_ms: 0,
            seqs: Vec::new(),
            excluded: Vec::new(),
        }
    }
}
