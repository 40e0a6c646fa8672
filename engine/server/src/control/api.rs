//! What an administrator asks of a running server, and what it answers.
//!
//! Over the unix socket `DATA/control.sock` (mode 0600): one JSON [`Request`] on a line, then any number of
//! [`Event::Progress`] lines, then one [`Event::Done`] or [`Event::Failed`]. Closing the connection calls off what can be
//! called off without losing anything; repeating a command goes on where it stopped. These types are also what `--json`
//! prints, so a field may be added but never changes its meaning.

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

/// A server and its machines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The store's identity.
    pub store: String,
    /// Room left, in bytes.
    pub free_bytes: Option<u64>,
    /// The server's resident memory, in bytes.
    pub memory_bytes: u64,
    /// Its machines, by name.
    pub machines: Vec<MachineStatus>,
    /// What wants a person, of the store as a whole.
    #[serde(default)]
    pub alarms: Vec<AlarmInfo>,
    /// Who uses the disks that are served; of one machine, those of its sessions.
    #[serde(default)]
    pub nbd: NbdStatus,
}

/// The NBD server since it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NbdStatus {
    /// Connections that are open, those in their handshake included.
    pub connections: u64,
    /// Connections that were given a place.
    pub accepted: u64,
    /// Connections that were not, for want of a place.
    pub turned_away: u64,
    /// Handshakes that came to nothing.
    pub failed_handshakes: u64,
    pub exports: Vec<ExportStatus>,
}

/// An export and who uses it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportStatus {
    pub export: String,
    /// Those that are connected.
    pub clients: Vec<ClientStatus>,
    /// What they and those before them did since the export is served.
    pub traffic: TrafficStatus,
}

/// A connection to an export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientStatus {
    pub connection: u64,
    /// `ADDRESS:PORT`, or `unix:pid=PID,uid=UID`.
    pub address: String,
    /// The names in its certificate.
    pub names: Vec<String>,
    pub encrypted: bool,
    pub connected_ms: u64,
    pub traffic: TrafficStatus,
}

/// Requests over NBD.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficStatus {
    /// Those that are being worked on.
    pub in_flight: u64,
    /// The kinds of which there was one.
    pub operations: Vec<OperationStatus>,
}

/// The requests of one kind that were answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// `read`, `write`, `flush`, `trim`, `write-zeroes`, `cache`, `block-status`, `unknown`.
    pub operation: String,
    pub requests: u64,
    /// Those of them that were answered with an error.
    pub errors: u64,
    /// The lengths of the ranges of those that were not.
    pub bytes: u64,
    /// What the median took, one of a hundred, one of a thousand, and the longest, in nanoseconds: from having the request with
    /// its payload to having sent the reply. The first three are up to a quarter too high.
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub longest_ns: u64,
    /// All of them together.
    pub total_ns: u64,
    pub latency: Vec<LatencyBucket>,
}

/// So many requests took less than the bound, and not less than the bound before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyBucket {
    /// None where nothing bounds it.
    pub below_ns: Option<u64>,
    pub requests: u64,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineStatus {
    pub machine: String,
    pub name: String,
    pub generation: u64,
    /// `initial-copy`, `scanning`, `protected`, `held`, `disconnected`, `failed` (heartbeats stopped), `stopped` (said
    /// goodbye), `promoted` (a session is in charge), `failing-back`.
    pub state: String,
    /// Why, where there is more to say.
    pub detail: String,
    /// Since its last heartbeat, in milliseconds.
    pub heartbeat_age_ms: Option<u64>,
    /// Age of the newest checkpoint, in milliseconds: what would be lost now (achieved RPO).
    pub rpo_ms: Option<u64>,
    pub checkpoints: u64,
    pub gaps: u64,
    pub disks: Vec<DiskStatus>,
    /// Who keeps the horizon from moving, for people.
    pub pins: Vec<String>,
    /// The ladder by which its history is kept.
    #[serde(default)]
    pub keep: String,
    /// What is done when it fails, in words that begin with `notify`, `recover` or `boot`.
    #[serde(default)]
    pub on_failure: String,
    /// How far back its history goes now, in milliseconds.
    #[serde(default)]
    pub window_ms: Option<u64>,
    #[serde(default)]
    pub space: SpaceStatus,
    /// What wants a person.
    #[serde(default)]
    pub alarms: Vec<AlarmInfo>,
    /// What the last scrub came to; none where there was none yet.
    #[serde(default)]
    pub scrub: Option<ScrubStatus>,
    /// How it is drilled; none where it never was.
    #[serde(default)]
    pub drill: Option<DrillStatus>,
    /// What consolidation has done since the server started.
    #[serde(default)]
    pub consolidation: ConsolidationStatus,
}

/// How a machine is drilled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DrillStatus {
    /// How often, in milliseconds; missing where only people do it.
    pub every_ms: Option<u64>,
    /// By what it is measured then.
    pub probe: Option<String>,
    pub last: Option<DrillInfo>,
}

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

/// What a machine takes up on the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpaceStatus {
    pub images_bytes: u64,
    /// Logs and indexes, those of sessions and branches included.
    pub journal_bytes: u64,
    pub quota_bytes: Option<u64>,
    /// How much history the quota buys at the present churn, in milliseconds; never more than the ladder wants. Missing
    /// without a quota, and while nothing is known of the churn.
    pub window_bought_ms: Option<u64>,
}

/// Something that wants a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlarmInfo {
    /// `drill` (the last failed, or none was played in time), `failed`, `held`, `quota`, `window` (the quota buys less
    /// history than is wanted), `superseded` (such a branch keeps the horizon), `horizon` (overdue), `space` (of the store).
    pub alarm: String,
    /// For people.
    pub words: String,
}

/// What came of deleting checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThinnedInfo {
    pub machine: String,
    pub deleted: Vec<u64>,
    /// Bytes of the journal that are free now, and bytes written to get there.
    pub freed_bytes: u64,
    pub written_bytes: u64,
}

/// What consolidation has done since the server started, attempts that were called off included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConsolidationStatus {
    /// Bytes of data that changed, each byte once however often it was written before.
    pub changed_bytes: u64,
    /// Bytes that became zero.
    pub zeroed_bytes: u64,
    /// Bytes written to the image files, with everything that their format adds.
    pub image_written_bytes: u64,
    /// Bytes read back from the images.
    pub image_read_bytes: u64,
    pub log_read_bytes: u64,
    pub freed_bytes: u64,
    /// `image_written_bytes` for each of `changed_bytes`; none where nothing changed.
    pub amplification: Option<f64>,
}

/// What the last scrub of a machine came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// When it ended, in milliseconds since 1970 on the server's clock.
    pub finished_ms: u64,
    pub read_bytes: u64,
    /// How many findings there were.
    pub damage: u64,
    /// The first of them, for people.
    pub findings: Vec<String>,
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

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskStatus {
    pub index: u16,
    pub device: String,
    pub len: u64,
    pub tracker: String,
    /// Bytes that have changed but are not acknowledged.
    pub backlog_bytes: u64,
    /// Bytes written at the source, a second, over the last minute or less.
    pub churn_bytes_per_second: u64,
    /// Bytes received from the agent since the server started.
    pub received_bytes: u64,
    /// Milliseconds until the backlog is sent at the present rate.
    pub eta_ms: Option<u64>,
    /// The image file and the checkpoint it holds.
    pub image: String,
    pub horizon: Option<u64>,
}

/// A token to paste into `understudy agent --token`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenInfo {
    pub token: String,
    pub expires_in_seconds: u64,
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

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionInfo {
    pub session: String,
    pub machine: String,
    pub machine_name: String,
    pub checkpoint: u64,
    pub drill: bool,
    /// `running`, `migrating`, `pivoted`, `failing-back`, `home` (ended by failback), `stopped`, `held` (not served until
    /// what `detail` says is done).
    pub state: String,
    pub detail: String,
    /// From the request to the exports being served, in milliseconds (achieved RTO of the storage).
    pub rto_ms: u64,
    /// Age of the checkpoint when the machine was lost or the session was started, in milliseconds.
    pub rpo_ms: u64,
    pub disks: Vec<SessionDisk>,
    /// The stand-in, where one was started.
    #[serde(default)]
    pub guest: Option<Box<GuestInfo>>,
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
