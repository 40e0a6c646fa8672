//! What an administrator asks of a running server, and what it answers.
//!
//! Over the unix socket `DATA/control.sock` (mode 0600): one JSON [`Request`] on a line, then any number of
//! [`Event::Progress`] lines, then one [`Event::Done`] or [`Event::Failed`]. Closing the connection calls off what can be
//! called off without losing anything; repeating a command goes on where it stopped. These types are also what `--json`
//! prints, so a field may be added but never changes its meaning.

mod history;
mod machine;
mod session;
mod status;

pub use history::{Branch, BranchList, CheckpointInfo, CheckpointList, GapInfo, Settled, ThinnedInfo};
pub use machine::{DefinitionInfo, DrillInfo, FindingInfo, ScrubMachine, TokenInfo, VerifyDisk, VerifyInfo};
pub use session::{
    FailbackDisk, FailbackInfo, GuestInfo, MigrationInfo, MomentInfo, SessionDisk, SessionInfo,
};
pub use status::{
    AlarmInfo, ClientStatus, ConsolidationStatus, DiskStatus, DrillStatus, ExportStatus, LatencyBucket,
    MachineStatus, NbdStatus, OperationStatus, ScrubStatus, SpaceStatus, Status, TrafficStatus,
};

use serde::{Deserialize, Serialize};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// All machines, or one. Done with [`Reply::Status`].
    Status {
        /// A name or identity; all where it is missing.
        machine: Option<String>,
    },
    /// A one-time token for an agent. Done with [`Reply::Token`].
    Enroll {
        /// The only machine name that it shall be good for.
        name: Option<String>,
        /// For a rescue system on the machine of that name, whose own certificate stays in force.
        #[serde(default)]
        rescue: bool,
        /// How long it is good for, in seconds.
        seconds: u64,
    },
    /// Take a checkpoint now, of a machine (by its agent) or of a session. Done with [`Reply::Checkpoint`].
    Checkpoint {
        /// A machine's name or identity, or a session's identity.
        of: String,
        /// A name for it; may be empty.
        name: String,
        /// It cannot be deleted before this: RFC 3339, `YYYY-MM-DD [HH:MM[:SS]]` in UTC, or `forever`.
        #[serde(default)]
        protect_until: Option<String>,
    },
    /// Forget checkpoints; what later ones need of them stays. All of them or none. Done with [`Reply::Thinned`].
    DeleteCheckpoints {
        /// A name or identity.
        machine: String,
        /// Numbers, or names (the newest of that name).
        checkpoints: Vec<String>,
    },
    /// Protect a checkpoint, or protect it no longer. Done with [`Reply::Checkpoint`].
    ProtectCheckpoint {
        /// A name or identity.
        machine: String,
        /// A number or name.
        checkpoint: String,
        /// As in `checkpoint`; no longer where it is missing.
        until: Option<String>,
    },
    /// Change how long a machine's history is kept, how much room it may take up, and what is done when it fails. Done with
    /// [`Reply::Status`].
    SetMachine {
        /// A name or identity.
        machine: String,
        /// A ladder, or `default` for the server's.
        keep: Option<String>,
        /// In bytes; 0 is none.
        quota: Option<u64>,
        /// `notify`, `recover` or `boot`.
        #[serde(default)]
        on_failure: Option<String>,
        /// Who is asked before it counts as dead: `tcp:HOST:PORT`, `command:PROGRAM` or `none`.
        #[serde(default)]
        probe: Option<String>,
        /// How often it is drilled, in milliseconds; 0 is never.
        #[serde(default)]
        drill_every_ms: Option<u64>,
        /// How its stand-in is started in these drills, the probe included; as before where it is missing.
        #[serde(default)]
        drill_boot: Option<BootRequest>,
    },
    /// Start a stand-in apart from everything, measure until its probe succeeds, and take it away again. Done with
    /// [`Reply::Drill`].
    Drill {
        /// A name or identity.
        machine: String,
        /// As in `recover`.
        at: Option<String>,
        /// With a probe.
        boot: BootRequest,
    },
    /// What came of a machine's drills. Done with [`Reply::Drills`].
    Drills {
        /// A name or identity.
        machine: String,
    },
    /// Take the next machine of this name for the one that came home, though its disks have no serial numbers to tell by.
    /// Done with [`Reply::Status`].
    AdmitMachine {
        /// A name or identity.
        machine: String,
    },
    /// The checkpoints and gaps of a machine. Done with [`Reply::Checkpoints`].
    Checkpoints {
        /// A name or identity.
        machine: String,
    },
    /// The lines of a machine's history. Done with [`Reply::Branches`].
    Branches {
        /// A name or identity.
        machine: String,
    },
    /// Make a line that stays until it is dropped, whatever becomes of the session that it starts from. It begins with a
    /// checkpoint of its name, by which it is recovered. Done with [`Reply::Checkpoint`].
    Clone {
        /// A machine's name or identity, or a session's identity.
        of: String,
        /// As in `recover`; of a session, where it is missing, a checkpoint of now.
        at: Option<String>,
        /// What it is called.
        name: String,
    },
    /// Write what changed between two checkpoints of a disk into a new file (docs/formats/delta.md). Done with
    /// [`Reply::Exported`].
    ExportDelta {
        /// A name or identity.
        machine: String,
        /// Which disk; may be missing where there is one.
        disk: Option<u16>,
        /// As in `recover`: what whoever applies it has already.
        since: String,
        /// As in `recover`.
        at: Option<String>,
        /// An absolute path that does not exist yet.
        output: String,
    },
    /// Give up a clone, or a superseded branch: what the losing side of a failback had written. Done with
    /// [`Reply::Branches`].
    DropBranch {
        /// A name or identity.
        machine: String,
        /// Its number.
        branch: u64,
    },
    /// Bring the image files alone to a checkpoint. Done with [`Reply::Settled`].
    Settle {
        /// A name or identity.
        machine: String,
        /// A checkpoint's number or name, or a time; the newest where it is missing.
        at: Option<String>,
    },
    /// Start a session. Done with [`Reply::Session`].
    Recover {
        /// A name or identity.
        machine: String,
        /// A checkpoint's number or name, or a time (the newest not after it); the newest where it is missing.
        at: Option<String>,
        /// Leave the machine in charge: it goes on replicating, and the session is only looked at or drilled in.
        drill: bool,
        /// Start the stand-in on it. Where the session is there already, so is what runs.
        #[serde(default)]
        boot: Option<BootRequest>,
    },
    /// Start the stand-in on a session that is there, if it does not run. Done with [`Reply::Session`].
    Boot {
        /// Its identity, or an unambiguous beginning of it.
        session: String,
        /// How.
        boot: BootRequest,
    },
    /// Do something with a session's stand-in. Done with [`Reply::Session`].
    Guest {
        /// Its identity, or an unambiguous beginning of it.
        session: String,
        /// What.
        order: GuestOrder,
    },
    /// Write what is on a stand-in's screen into a new PNG file. Done with [`Reply::Exported`].
    Screenshot {
        /// Its identity, or an unambiguous beginning of it.
        session: String,
        /// An absolute path that does not exist yet.
        output: String,
    },
    /// All sessions. Done with [`Reply::Sessions`].
    Sessions,
    /// One session. Done with [`Reply::Session`].
    Session {
        /// Its identity, or an unambiguous beginning of it.
        session: String,
    },
    /// End a session, its stand-in first. What its guest wrote is dropped with `discard`, otherwise kept as a branch. Done
    /// with [`Reply::Session`].
    StopSession {
        /// Its identity, or an unambiguous beginning of it.
        session: String,
        /// Drop what the guest wrote.
        discard: bool,
        /// How long the guest may take to switch itself off before it is ended; a minute where nothing is said.
        #[serde(default)]
        patience_ms: Option<u64>,
    },
    /// The guest of a `held` session was restarted after the server's host was: serve its disks again. Done with
    /// [`Reply::Session`].
    GuestRestarted {
        /// Its identity, or an unambiguous beginning of it.
        session: String,
    },
    /// Copy a session's disk elsewhere while it is in use; then pivot if asked. Done with [`Reply::Session`].
    Migrate {
        /// Its identity, or an unambiguous beginning of it.
        session: String,
        /// Which disk; may be missing where there is one.
        disk: Option<u16>,
        /// An absolute path (file or block device) or an NBD URI. Nothing where only `pivot` is wanted of a copy that is
        /// already in step.
        to: Option<String>,
        /// A format's name (`store::ImageFormat`); raw where it is missing.
        format: Option<String>,
        /// Bytes a second at most.
        rate: Option<u64>,
        /// Switch to the copy as soon as it is in step.
        pivot: bool,
    },
    /// Bring a machine's disks to a session's state. Done with [`Reply::Failback`].
    Failback {
        /// Its identity, or an unambiguous beginning of it.
        session: String,
        /// The machine whose agent writes.
        to: String,
        /// Onto other devices than the protected ones: disk number and path there.
        disks: Vec<(u16, String)>,
        /// Stop the session's exports, send the rest, verify, give the machine charge again. Without it rounds are sent while the
        /// guest goes on, and the command ends when what is left fits one short round.
        cutover: bool,
        /// Overwrite what the machine wrote but never sent, without keeping it.
        discard_unsent: bool,
    },
    /// Write a checkpoint or session into a new file. Done with [`Reply::Exported`].
    Export {
        /// A machine's name or identity, or a session's identity.
        of: String,
        /// Which disk; may be missing where there is one.
        disk: Option<u16>,
        /// As in `recover`.
        at: Option<String>,
        /// The name of a kind of image (`store::ImageKind`), or `ova`: all disks in one archive.
        format: String,
        /// Of an archive, `1` (where it is missing) or `2`.
        #[serde(default)]
        ovf_version: Option<String>,
        /// An absolute path that does not exist yet.
        output: String,
    },
    /// Show the datastore in a folder until the connection is closed for writing. A [`Progress`] that begins with `mounted
    /// at` says that it is there. Done with [`Reply::Unmounted`].
    Mount {
        /// An absolute path.
        folder: String,
        /// Other users may read, too.
        #[serde(default)]
        allow_other: bool,
        /// Sessions are not written either.
        #[serde(default)]
        read_only: bool,
    },
    /// Write down what a machine is, for whoever runs a stand-in of it. Done with [`Reply::Definition`].
    Definition(DefinitionRequest),
    /// Read everything that is stored again and check it. Done with [`Reply::Scrubbed`].
    Scrub {
        /// A name or identity; all machines where it is missing.
        machine: Option<String>,
        /// Bytes a second at most.
        rate: Option<u64>,
    },
    /// Compare a live machine with its stand-in. Done with [`Reply::Verified`].
    Verify {
        /// A name or identity.
        machine: String,
    },
    /// Forget a machine and free its space. Refused while it is connected or has sessions. Done with [`Reply::Removed`].
    RemoveMachine {
        /// A name or identity.
        machine: String,
    },
}

/// Which machine's definition, for whom, and where its disks are to be had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinitionRequest {
    /// A machine's name or identity, or a session's identity.
    pub of: String,
    /// As in `recover`; not of a session.
    #[serde(default)]
    pub at: Option<String>,
    /// `libvirt`, `vmx`, `ovf` or `qemu`.
    #[serde(rename = "as")]
    pub form: String,
    /// `1` (where it is missing) or `2`.
    #[serde(default)]
    pub ovf_version: Option<String>,
    /// A file for each disk, in the disks' order: `PATH[:FORMAT]`, or an NBD URI. Where there is none, a session's own URIs.
    #[serde(default)]
    pub disks: Vec<String>,
    /// `auto` (where it is missing), `kvm` or `tcg`.
    #[serde(default)]
    pub acceleration: Option<String>,
    /// The UEFI firmware that QEMU loads, and the file in which it keeps its variables.
    #[serde(default)]
    pub firmware_code: Option<String>,
    #[serde(default)]
    pub firmware_vars: Option<String>,
}

/// How a stand-in is started. What is missing is as the machine is, or as it suits most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRequest {
    /// In bytes; the machine's own, or as much as the host has, where it is missing.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Processors, in the same way.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// `user[,restrict=on][,net=..][,host=..][,hostfwd=..]...` (where it is missing), `bridge=NAME` or `none`; in a drill
    /// without a way out.
    #[serde(default)]
    pub network: Option<String>,
    /// `auto` (where it is missing), `kvm` or `tcg`.
    #[serde(default)]
    pub acceleration: Option<String>,
    /// The UEFI firmware that QEMU loads, and the variables that a copy is made of: both or neither.
    #[serde(default)]
    pub firmware_code: Option<String>,
    #[serde(default)]
    pub firmware_vars: Option<String>,
    /// A kernel of the server's host, by absolute path, that is started in place of what is on the disk.
    #[serde(default)]
    pub kernel: Option<String>,
    #[serde(default)]
    pub initrd: Option<String>,
    #[serde(default)]
    pub append: Option<String>,
    /// Wait until it does its work: `tcp:PORT`, `agent` or `console:TEXT`.
    #[serde(default)]
    pub probe: Option<String>,
    /// For so long; five minutes where nothing is said.
    #[serde(default)]
    pub probe_timeout_ms: Option<u64>,
}

/// What is done with a stand-in that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum GuestOrder {
    /// Let it stand still.
    Pause,
    /// Let it go on.
    Unpause,
    /// Press its power button and wait; after `patience_ms` it is ended, which it does not notice.
    Shutdown { patience_ms: u64 },
}

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Long work goes on.
    Progress(Progress),
    /// It is done.
    Done {
        /// With this.
        reply: Reply,
    },
    /// It failed; nothing has changed but what the message says.
    Failed {
        /// `not-found`, `busy`, `no-space`, ... (the kinds of `blocks::ErrorKind` in kebab case).
        kind: String,
        /// For the administrator: names the thing.
        message: String,
    },
}

/// How far long work is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done, such as `copying disk 0`.
    pub step: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, as far as is known now; it may grow.
    pub total: u64,
}

/// What comes of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "each variant carries one documented type")]
pub enum Reply {
    Status(Status),
    Token(TokenInfo),
    Checkpoint(CheckpointInfo),
    Checkpoints(CheckpointList),
    Branches(BranchList),
    Thinned(ThinnedInfo),
    Settled(Settled),
    Session(SessionInfo),
    Sessions { sessions: Vec<SessionInfo> },
    Drill(DrillInfo),
    Drills { machine: String, drills: Vec<DrillInfo> },
    Failback(FailbackInfo),
    Exported { path: String, bytes: u64 },
    Definition(DefinitionInfo),
    Unmounted { folder: String, in_use: bool },
    Verified(VerifyInfo),
    Scrubbed { machines: Vec<ScrubMachine> },
    Removed { machine: String },
}
