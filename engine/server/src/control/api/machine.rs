//! A machine: how one is let in, what it is, and what came of looking at what is stored of it.

use serde::{Deserialize, Serialize};

/// What came of a drill.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DrillInfo {
    pub machine: String,
    pub checkpoint: u64,
    /// Milliseconds since 1970 on the server's clock.
    pub started_ms: u64,
    pub probe: String,
    pub passed: bool,
    /// Why not.
    pub detail: String,
    /// From the request to the exports being served, to the first read of a disk, and to the probe's success, in
    /// milliseconds.
    pub exports_ms: u64,
    pub first_read_ms: Option<u64>,
    pub rto_ms: Option<u64>,
    /// Age of the checkpoint when the drill began, in milliseconds.
    pub rpo_ms: u64,
    /// A PNG file of the screen at the end.
    pub picture: Option<String>,
    /// The end of what was said on the serial console.
    pub console: String,
    /// What was not as in the machine.
    pub notes: Vec<String>,
}

/// What a scrub of one machine came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScrubMachine {
    pub machine: String,
    /// Empty where the unit cannot be opened.
    pub name: String,
    pub read_bytes: u64,
    /// How many findings there are; at most a thousand are described.
    pub damage: u64,
    pub findings: Vec<FindingInfo>,
}

/// Something that is not as it was stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FindingInfo {
    pub disk: Option<u16>,
    pub file: String,
    /// Where in the file.
    pub offset: Option<u64>,
    /// Start and length, in bytes, of what cannot be read of the disk.
    pub extent: Option<(u64, u64)>,
    /// The checkpoints, and the branches whose newest state, it touches.
    pub checkpoints: Vec<u64>,
    pub branches: Vec<u64>,
    /// All of it, for people.
    pub text: String,
    /// Whether `understudy store check --repair` can put it right, and otherwise why nothing can.
    pub remedy: String,
}

/// A token to paste into `understudy agent --token`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenInfo {
    pub token: String,
    pub expires_in_seconds: u64,
}

/// A machine's definition as it was written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DefinitionInfo {
    pub machine: String,
    /// The checkpoint of which its disks have their lengths; of a session, the one that it began with.
    pub checkpoint: u64,
    /// For whom: `libvirt`, `vmx`, `ovf` or `qemu`.
    #[serde(rename = "as")]
    pub form: String,
    pub text: String,
    /// What is known but not said in it, and what is left to do.
    pub notes: Vec<String>,
}

/// What came of comparing a machine with its stand-in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifyInfo {
    pub machine: String,
    pub checkpoint: u64,
    pub disks: Vec<VerifyDisk>,
}

/// One disk of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifyDisk {
    pub index: u16,
    pub equal_bytes: u64,
    /// Written since the checkpoint, or excluded, and therefore not compared.
    pub skipped_bytes: u64,
    /// Start and length of each range that differs.
    pub differing: Vec<(u64, u64)>,
}
