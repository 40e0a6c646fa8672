//! Sessions, and what is done with them.

use serde::{Deserialize, Serialize};

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionInfo {
    pub session: String,
    pub machine: String,
    pub machine_name: String,
    pub checkpoint: u64,
    /// Where it began between that checkpoint and the next: with these writes too.
    #[serde(default)]
    pub moment: Option<MomentInfo>,
    pub drill: bool,
    /// `running`, `migrating`, `pivoted`, `failing-back`, `home` (ended by failback), `stopped`, `held` (not served until
    /// what `detail` says is done).
    pub state: String,
    pub detail: String,
    /// From the request to the exports being served, in milliseconds (achieved RTO of the storage).
    pub rto_ms: u64,
    /// Age of the checkpoint, or of the last write behind it, when the machine was lost or the session was started, in
    /// milliseconds.
    pub rpo_ms: u64,
    pub disks: Vec<SessionDisk>,
    /// The stand-in, where one was started.
    #[serde(default)]
    pub guest: Option<Box<GuestInfo>>,
}

/// The writes behind a checkpoint that a session began with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MomentInfo {
    /// When the last of them was completed, by the server's clock: RFC 3339 with microseconds; `--at` takes it.
    pub time: String,
    pub writes: u64,
}

/// A stand-in. The paths are those of the server's host, for its user alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestInfo {
    /// `starting`, `running`, `paused`, `disk-trouble` (stands still until its disks are served again), `off`, `stopped`,
    /// `silent` (does not answer), `ended`.
    pub state: String,
    pub detail: String,
    /// When it was started, in milliseconds since 1970 on the server's clock.
    pub started_ms: u64,
    /// From the request to the probe's success, in milliseconds (achieved RTO of the service).
    pub rto_ms: Option<u64>,
    /// What its network cards are plugged into, forwarded ports included.
    pub network: String,
    /// The serial console: a unix socket for one client at a time, and what it has said.
    pub console: String,
    pub console_log: String,
    /// QEMU's control protocol, and the screen by VNC: unix sockets.
    pub qmp: String,
    pub vnc: String,
    /// What is not as in the machine.
    pub notes: Vec<String>,
}

/// A disk of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionDisk {
    pub index: u16,
    pub len: u64,
    /// Standard NBD URIs, one a listener.
    pub uris: Vec<String>,
    /// Bytes that the guest has written over, each counted once.
    pub written_bytes: u64,
    pub clients: u64,
    pub migration: Option<MigrationInfo>,
}

/// A migration of one disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrationInfo {
    pub to: String,
    pub format: String,
    /// `copying`, `in-step`, `pivoted`, `failed`.
    pub state: String,
    pub detail: String,
    pub copied_bytes: u64,
    pub left_bytes: u64,
}

/// A failback.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailbackInfo {
    pub session: String,
    pub machine: String,
    /// `in-step` (rounds sent, the session goes on) or `home`.
    pub state: String,
    pub disks: Vec<FailbackDisk>,
    /// From stopping the exports to the machine being in charge, in milliseconds; 0 without cutover.
    pub downtime_ms: u64,
    /// What the machine's disks hold now, with cutover.
    pub checkpoint: Option<u64>,
}

/// A disk that came home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailbackDisk {
    pub index: u16,
    /// Whether the target's content was known; otherwise why not.
    pub known: bool,
    pub reason: String,
    /// Bytes that may differ, in whole 64 KiB blocks (known), or the disk's size.
    pub changed_bytes: u64,
    /// Bytes hashed at the target.
    pub hashed_bytes: u64,
    /// Bytes read from the session.
    pub read_bytes: u64,
    /// Bytes of data sent.
    pub sent_bytes: u64,
    /// Bytes of zeroes sent as such.
    pub zeroed_bytes: u64,
    /// Bytes hashed at the target and found equal after the last round.
    pub verified_bytes: u64,
}
