//! What agent and server say to each other. docs/formats/wire.md has the byte tables.
//!
//! One connection carries everything of one machine, in order, both ways. Data of one disk is numbered by [`Seq`]; the
//! server acknowledges a number only when everything up to it is on its medium. Whoever reconnects says what it knows,
//! and the other side decides what is missing: nothing, a scan, or everything.

use blocks::{
    BlockShift, ByteLen, CheckpointId, DiskIndex, Extent, Generation, Id, MachineId, Seq, SessionId, StoreId,
    WallClock,
};

/// BLAKE3 of one block of a disk.
pub type BlockHash = [u8; 32];

/// What an agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentMessage {
    /// First on every connection but an enrolment.
    Hello(Hello),
    /// Trades a one-time token for a certificate; the only message of its connection.
    Enroll(EnrollRequest),
    /// Says that the machine lives, and how far behind the server is.
    Heartbeat(Heartbeat),
    /// A changed extent of a disk.
    Write(Write),
    /// A write of the machine, in the order of all its writes on all its disks.
    WriteInOrder {
        /// What was written.
        write: Write,
        /// How long before it was sent it had been completed, in microseconds.
        age_us: u64,
    },
    /// Every disk is at the instant described; seal it.
    Checkpoint(CheckpointReport),
    /// No checkpoint can be offered for this interval.
    Gap(GapReport),
    /// Hashes of what a disk holds, to be compared with the newest state the server has (scan rung), or with a
    /// checkpoint (verify).
    Hashes(HashReport),
    /// A clean stop: no heartbeat will come, and that is no failure.
    Goodbye,
    /// The answer to a [`ServerMessage::TakeCheckpoint`] that came to nothing.
    CheckpointFailed {
        /// Which request; see [`CheckpointReport::request`].
        request: u64,
        /// Why.
        reason: String,
    },
    /// The answer to [`ServerMessage::RestoreBegin`]: the target is held open and nothing else writes to it.
    RestoreReady(RestoreReady),
    /// A restore cannot begin or go on; nothing more of it will be written.
    RestoreFailed {
        /// Which restore.
        restore: u64,
        /// Why, for the administrator: names the device.
        reason: String,
    },
    /// Everything of this restore up to and including `sync` is on the target's medium.
    RestoreSynced {
        /// Which restore.
        restore: u64,
        /// Which [`ServerMessage::RestoreSync`].
        sync: u64,
    },
    /// The answer to [`ServerMessage::RestoreRead`]: what the target held there when it was asked.
    RestoreData {
        /// Which restore.
        restore: u64,
        /// Which disk.
        disk: DiskIndex,
        /// Where: exactly what was asked for.
        extent: Extent,
        /// What.
        payload: Payload,
    },
    /// Replication from this machine goes on from here; the target is no longer held.
    RestoreFinished {
        /// Which restore.
        restore: u64,
    },
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// The answer to a hello.
    Welcome(Welcome),
    /// The connection ends here, and why.
    Refused(Refusal),
    /// The answer to an enrolment.
    Enrolled(EnrollReply),
    /// Everything of this disk up to and including `seq` is on the server's medium.
    Ack {
        /// Which disk.
        disk: DiskIndex,
        /// Up to where.
        seq: Seq,
    },
    /// The checkpoint of that request is sealed and durable.
    CheckpointSealed {
        /// Which [`CheckpointReport::request`].
        request: u64,
        /// Its number from now on.
        checkpoint: CheckpointId,
    },
    /// Take a checkpoint now.
    TakeCheckpoint {
        /// Chosen by the server, with the highest bit set; the report carries it back.
        request: u64,
        /// The name it shall have; may be empty.
        name: String,
        /// Hash every block of every disk afterwards and report blocks that nothing wrote since
        /// ([`HashPurpose::Verify`]).
        verify: bool,
    },
    /// The answer to [`AgentMessage::Hashes`]: which of those blocks differ and are to be sent (scan rung only).
    Differing {
        /// Which disk.
        disk: DiskIndex,
        /// The range that was asked about.
        range: Extent,
        /// What differs in it; may be empty.
        extents: Vec<Extent>,
    },
    /// The server cannot take data now (store full, quota); hold what changed, go on when [`ServerMessage::Resume`]
    /// comes.
    Hold {
        /// Why, for the administrator.
        reason: String,
    },
    /// Data is welcome again, from the first unacknowledged on.
    Resume,
    /// Open the target exclusively and say what is known of its content.
    RestoreBegin(RestoreBegin),
    /// Hash this range of the target in 64 KiB blocks and report ([`HashPurpose::Restore`]).
    RestoreHash {
        /// Which restore.
        restore: u64,
        /// Which disk.
        disk: DiskIndex,
        /// Which range.
        range: Extent,
    },
    /// Read this range of the target, at most [`crate::PAYLOAD_BYTES_MAX`], and answer
    /// [`AgentMessage::RestoreData`]: what the machine wrote but never sent is kept before it is overwritten.
    RestoreRead {
        /// Which restore.
        restore: u64,
        /// Which disk.
        disk: DiskIndex,
        /// Which range.
        range: Extent,
    },
    /// Write this to the target.
    RestoreWrite {
        /// Which restore.
        restore: u64,
        /// Which disk.
        disk: DiskIndex,
        /// Where.
        extent: Extent,
        /// What.
        payload: Payload,
    },
    /// Sync the target and answer [`AgentMessage::RestoreSynced`]. Doubles as the window of the stream: a server keeps
    /// at most two unanswered.
    RestoreSync {
        /// Which restore.
        restore: u64,
        /// Rising number.
        sync: u64,
    },
    /// The target holds exactly `checkpoint`. Start its tracker afresh from that state, release it, take `generation`,
    /// answer [`AgentMessage::RestoreFinished`] and replicate from there.
    RestoreFinish {
        /// Which restore.
        restore: u64,
        /// The machine's new generation.
        generation: Generation,
        /// What the disks hold now.
        checkpoint: CheckpointId,
        /// Each disk's sequence number to go on from.
        seqs: Vec<(DiskIndex, Seq)>,
    },
    /// Release the target; what was written to it stays. A tracker has marked it like any other write, so a disk that
    /// was known before is known afterwards, with that in [`TargetKnowledge::Known::changed`]; any other target counts as
    /// unknown.
    RestoreAbort {
        /// Which restore.
        restore: u64,
        /// Why.
        reason: String,
    },
}

/// Who an agent is and what it can show of each disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// From an earlier registration; `None` at the first start.
    pub machine: Option<MachineId>,
    /// The machine's name: 1 to 63 of `a-z A-Z 0-9 . _ -`.
    pub name: String,
    /// The generation that the agent last learnt; 0 when it has none.
    pub generation: Generation,
    /// The kernel's boot id.
    pub boot: Id,
    /// Set where the agent finds itself inside a recovered session.
    pub session: Option<SessionId>,
    /// The machine's definition as JSON (see [`crate::Inventory`]).
    pub inventory: String,
    /// The disks to be protected; the position is the [`DiskIndex`].
    pub disks: Vec<DiskHello>,
}

/// A disk as the agent finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskHello {
    /// The device's path on the machine.
    pub device: String,
    /// A serial number, WWN or other name that stays with the disk; may be empty.
    pub serial: String,
    /// Its size, a multiple of 512.
    pub len: ByteLen,
    /// What tracks its changes, for people: `ebpf`, `scan`.
    pub tracker: String,
    /// What the tracker can vouch for.
    pub continuity: Continuity,
}

/// How much of a disk's state an agent can account for since the server last acknowledged something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// Nothing is known: the server has nothing yet, or the tracker missed something. All must be hashed or sent.
    Unknown {
        /// Why, for the administrator.
        reason: String,
    },
    /// One unbroken trusted map since then: what changed after the server's `acked` is marked.
    Tracked {
        /// The store that gave the acknowledgements.
        store: StoreId,
        /// The highest number that it acknowledged as far as the agent knows.
        acked: Seq,
        /// The highest number that the agent ever sent.
        sent: Seq,
    },
}

/// What a server answers a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The server's store.
    pub store: StoreId,
    /// The machine's identity, new at the first hello.
    pub machine: MachineId,
    /// The machine's generation.
    pub generation: Generation,
    /// What the agent is to do.
    pub role: Role,
    /// One for each disk of the hello.
    pub disks: Vec<DiskWelcome>,
}

/// What an agent is to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The source: it replicates.
    Source,
    /// Fenced, because a stand-in was promoted: it sends no data and waits for a failback.
    Standby {
        /// Why, for the administrator.
        reason: String,
    },
}

/// Where a disk's replication goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskWelcome {
    /// Everything up to here is durable; the next number sent is higher than this and than any sent before.
    pub durable: Seq,
    /// What has to be done before a checkpoint can be offered.
    pub start: StartFrom,
}

/// How replication of a disk begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFrom {
    /// The server has nothing: send everything that is not zero.
    Everything,
    /// Hash everything, send what differs.
    Scan,
    /// Send what is marked as changed.
    Marked,
}

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For the program.
    pub kind: RefusalKind,
    /// For the administrator.
    pub reason: String,
}

/// Why a connection ends, as far as an agent acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The two speak no common version.
    Version,
    /// A wrong, used or expired token, or a certificate that is not that machine's. Final.
    Identity,
    /// Another agent of that name or machine is connected, or the name belongs to another machine.
    Taken,
    /// A disk has vanished, shrunk or does not match. Final until an administrator acts.
    Disks,
    /// Try again later.
    Busy,
    /// The server is shutting down; try again soon.
    Shutdown,
}

/// Bytes for an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// These bytes, as many as the extent is long, at most [`crate::PAYLOAD_BYTES_MAX`].
    Data(Vec<u8>),
    /// Zeroes, of any length.
    Zero,
}

/// A changed extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Which disk.
    pub disk: DiskIndex,
    /// Its number: rising by one a write on each disk.
    pub seq: Seq,
    /// Where; a multiple of 512 both ways.
    pub extent: Extent,
    /// What.
    pub payload: Payload,
}

/// What a checkpoint promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// What a power cut at that instant would have left.
    Crash,
    /// File systems were frozen: they are clean.
    FileSystem,
    /// Hooks brought the applications to rest as well.
    Application,
    /// Blocks changed while they were read; taken by explicit wish only.
    Fuzzy,
}

/// All disks are at one instant, and everything up to it has been sent before this message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointReport {
    /// Chosen by whoever asked: the agent counts from 1, the server sets the highest bit.
    pub request: u64,
    /// A name; may be empty.
    pub name: String,
    /// What it promises.
    pub consistency: Consistency,
    /// The instant on the machine's clock.
    pub taken_at: WallClock,
    /// How long writers stood still, in milliseconds.
    pub frozen_ms: u64,
    /// One for each disk.
    pub disks: Vec<DiskInstant>,
}

/// One disk at a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskInstant {
    /// The last write before the instant.
    pub seq: Seq,
    /// The disk's size then.
    pub len: ByteLen,
    /// Extents that the promise leaves out (swap, what the user excluded).
    pub excluded: Vec<Extent>,
}

/// An interval without a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GapReport {
    /// From when on the machine's clock.
    pub from: WallClock,
    /// Until when; 0 when it goes on.
    pub until: WallClock,
    /// Why, for the administrator.
    pub cause: String,
}

/// How an agent is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The machine's clock.
    pub now: WallClock,
    /// For each disk: bytes that are marked but not acknowledged.
    pub backlog: Vec<ByteLen>,
    /// For each disk: bytes written to it since the agent started.
    pub churn: Vec<ByteLen>,
    /// For each disk: what tracks it and how far that is to be trusted, for people.
    pub trackers: Vec<String>,
}

/// What hashes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashPurpose {
    /// The scan rung: the server answers [`ServerMessage::Differing`].
    Scan,
    /// Comparison with this checkpoint. Blocks that were written since are left out.
    Verify {
        /// The [`CheckpointReport::request`] of the checkpoint to compare with.
        request: u64,
        /// Whether this is the last report for this disk.
        last: bool,
    },
    /// The answer to [`ServerMessage::RestoreHash`] of that restore.
    Restore {
        /// Which restore.
        restore: u64,
    },
}

/// Hashes of consecutive blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashReport {
    /// What for.
    pub purpose: HashPurpose,
    /// Which disk.
    pub disk: DiskIndex,
    /// What was hashed; it starts at a multiple of the block size.
    pub range: Extent,
    /// The block size.
    pub block: BlockShift,
    /// One for each block that the range touches; the last block of a disk may be short. `None`: not known, skip it.
    pub hashes: Vec<Option<BlockHash>>,
}

/// A failback onto one machine begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreBegin {
    /// Chosen by the server.
    pub restore: u64,
    /// Which session comes home, for messages.
    pub session: SessionId,
    /// The disks to be written.
    pub disks: Vec<RestoreDisk>,
}

/// A disk to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreDisk {
    /// Which disk of the machine.
    pub disk: DiskIndex,
    /// Onto which device; empty for the one that the agent protects under that index.
    pub device: String,
    /// How many bytes it must hold.
    pub len: ByteLen,
}

/// The targets of a restore are open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreReady {
    /// Which restore.
    pub restore: u64,
    /// One for each disk of [`RestoreBegin`], in its order.
    pub disks: Vec<TargetKnowledge>,
}

/// What an agent can say about the content of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetKnowledge {
    /// It is the disk that was protected, under one unbroken trusted map in this boot: outside `changed` it holds what
    /// this store acknowledged up to `acked`.
    Known {
        /// Which store.
        store: StoreId,
        /// Up to where.
        acked: Seq,
        /// What was written since, whether it was sent or not.
        changed: Vec<Extent>,
    },
    /// It must be hashed.
    Unknown {
        /// Why, for the administrator.
        reason: String,
    },
}

/// A one-time token for a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrollRequest {
    /// The token's secret part.
    pub secret: String,
    /// The name that the machine will have.
    pub name: String,
    /// A certificate signing request, PEM. The key never leaves the machine.
    pub request_pem: String,
}

/// A certificate for an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrollReply {
    /// The agent's certificate, PEM.
    pub certificate_pem: String,
    /// The server's authority, PEM.
    pub authority_pem: String,
}
