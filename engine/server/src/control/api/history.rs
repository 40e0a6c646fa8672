//! A machine's history: its checkpoints, gaps and branches.

use serde::{Deserialize, Serialize};

/// What came of deleting checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThinnedInfo {
    pub machine: String,
    pub deleted: Vec<u64>,
    /// Bytes of the journal that are free now, and bytes written to get there.
    pub freed_bytes: u64,
    pub written_bytes: u64,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    pub checkpoint: u64,
    pub name: String,
    /// `main`, `session <id>`, `clone` or `superseded`.
    pub branch: String,
    /// `crash`, `file-system`, `application`, `fuzzy`.
    pub consistency: String,
    /// Milliseconds since 1970 on the server's clock; `--at TIME` means this one.
    pub server_time_ms: u64,
    /// The same as RFC 3339.
    pub time: String,
    /// Milliseconds since 1970 on the machine's clock.
    pub source_time_ms: u64,
    /// How long writers stood still.
    pub frozen_ms: u64,
    /// Bytes changed since the checkpoint before it.
    pub changed_bytes: u64,
    /// Bytes that the promise leaves out.
    pub excluded_bytes: u64,
    /// Until when it cannot be deleted: RFC 3339 or `forever`; missing where it is not protected.
    #[serde(default)]
    pub protected_until: Option<String>,
}

/// A machine's history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointList {
    pub machine: String,
    pub checkpoints: Vec<CheckpointInfo>,
    pub gaps: Vec<GapInfo>,
}

/// An interval without checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GapInfo {
    pub from_ms: u64,
    /// 0 while it goes on.
    pub until_ms: u64,
    pub cause: String,
}

/// The lines of a machine's history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the field names are the JSON; those that need words have them")]
pub struct BranchList {
    pub machine: String,
    pub branches: Vec<Branch>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the field names are the JSON; those that need words have them")]
pub struct Branch {
    pub branch: u64,
    /// `main`, `session <id>`, `clone` or `superseded`.
    pub kind: String,
    /// What a clone is called.
    #[serde(default)]
    pub name: String,
    /// The checkpoint that it forked at, which it keeps from being consolidated; none for the main line.
    pub base: Option<u64>,
    /// Its own checkpoints.
    pub checkpoints: Vec<u64>,
}

/// Images at a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settled {
    pub checkpoint: u64,
    /// One path a disk.
    pub images: Vec<String>,
    /// Bytes that the journal held for it, and bytes written into the images.
    pub journal_bytes: u64,
    pub written_bytes: u64,
}
