//! What a scrub has found.

use blocks::{ByteLen, ByteOffset, CheckpointId, DiskIndex, Extent};
use std::fmt;

use crate::unit::branch::BranchId;

/// How many findings are described; the others are counted.
pub(crate) const FINDINGS_MAX: usize = 1000;
/// How many checkpoints a finding's line names.
const NAMED_MAX: usize = 8;

/// Something that is not as it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The unit's name, or its folder where the name cannot be read.
    pub unit: String,
    /// Which disk; `None` where it is about the unit as a whole.
    pub disk: Option<DiskIndex>,
    /// The file, as the storage names it.
    pub file: String,
    /// Where in the file, as far as that is known.
    pub offset: Option<ByteOffset>,
    /// The bytes of the disk that cannot be read because of it; `None` where nobody needs what is damaged.
    pub extent: Option<Extent>,
    /// What is wrong.
    pub what: String,
    /// The checkpoints that are touched by it, rising.
    pub checkpoints: Vec<CheckpointId>,
    /// The branches whose newest state is touched by it, rising.
    pub branches: Vec<BranchId>,
    /// Whether it can be put right without guessing, and how; otherwise why not.
    pub remedy: Remedy,
}

/// What can be done about a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// It is rebuilt exactly from what is whole.
    Exact(RepairStep),
    /// Nothing that is stored says what it should be.
    None(&'static str),
}

/// A repair that needs no guess.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairStep {
    /// An index of several deltas is only there for speed: it is given up, and made again in time.
    DropMerged,
    /// The index of one delta follows from its log.
    RebuildIndex,
    /// The store's identity is in every manifest.
    RebuildMarker,
}

/// What a scrub has done and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Bytes that were read and checked.
    pub read: ByteLen,
    /// The findings, the first thousand of them.
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub more: u64,
    /// What is not damage but worth knowing, such as the tail that a crash has left.
    pub notes: Vec<String>,
}

impl ScrubReport {
    /// How many findings there are.
    pub fn count(&self) -> u64 {
        self.findings.len() as u64 + self.more
    }

    /// Whether further findings are only counted.
    pub(crate) fn is_full(&self) -> bool {
        self.findings.len() >= FINDINGS_MAX
    }

    pub(crate) fn add(&mut self, finding: Finding) {
        if self.is_full() { self.more += 1 } else { self.findings.push(finding) }
    }

    /// Adds what another part of the same work has done.
    pub fn absorb(&mut self, other: ScrubReport) {
        self.read += other.read;
        self.more += other.more;
        self.notes.extend(other.notes);
        other.findings.into_iter().for_each(|finding| self.add(finding));
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.unit)?;
        if let Some(disk) = self.disk {
            write!(f, "disk {disk}: ")?;
        }
        if let Some(extent) = self.extent {
            write!(f, "{extent} cannot be read: ")?;
        }
        f.write_str(&self.what)?;
        if !self.checkpoints.is_empty() {
            write!(f, "; touches {}", checkpoints(&self.checkpoints))?;
        }
        for branch in &self.branches {
            write!(f, "; touches the newest state of branch {branch}")?;
        }
        Ok(())
    }
}

fn checkpoints(ids: &[CheckpointId]) -> String {
    match ids {
        [one] => format!("checkpoint {one}"),
        few if few.len() <= NAMED_MAX => {
            format!("checkpoints {}", few.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
        [first, .., last] => format!("{} checkpoints from {first} to {last}", ids.len()),
        [] => "no checkpoint".to_owned(),
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remedy::Exact(RepairStep::DropMerged) => {
                f.write_str("can be repaired: it is made again from others")
            }
            Remedy::Exact(RepairStep::RebuildIndex) => {
                f.write_str("can be repaired: it follows from the log")
            }
            Remedy::Exact(RepairStep::RebuildMarker) => {
                f.write_str("can be repaired: every unit knows the store's identity")
            }
            Remedy::None(why) => write!(f, "cannot be repaired: {why}"),
        }
    }
}
