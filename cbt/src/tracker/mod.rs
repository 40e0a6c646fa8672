//! What knows which extents of a disk changed, and the ladder of ways to know it.
//!
//! Every block of a disk is in one of these states:
//!
//! ```text
//!            write                take                     acknowledge
//!   clean ──────────► marked ──────────────► pending ────────────────────► clean
//!                       ▲                       │
//!                       └── write, mark, requeue┘   (a block can be marked and pending at once)
//! ```
//!
//! A block is *changed* while it is marked or pending. The one promise: where a tracker is [`Trust::Trusted`], the
//! disk differs from what the server has acknowledged at most where it is changed. A tracker that cannot keep the
//! promise says so and why; it never guesses.
//!
//! How the agent uses one:
//!
//! - every pass: [`Tracker::take`], **then** read, send, and [`Tracker::acknowledge`] when the server has it on its
//!   medium. A write that lands between the two marks its blocks again, so that what was read too early is read again;
//! - not trusted: [`Tracker::begin_scan`], hash the whole disk, [`Tracker::mark`] what differs,
//!   [`Tracker::finish_scan`]. Writes meanwhile are marked as ever; nothing has to stand still, except that a disk
//!   which is never idle may have to be frozen for a moment for `begin_scan`;
//! - barrier: frozen, take and read until nothing is marked, then [`Tracker::agree`];
//! - after a resumption: compare [`Tracker::base`] with the server, then [`Tracker::requeue`];
//! - restored: [`Tracker::reset`].

mod base;
mod changed;
mod counts;
mod disk;
mod ebpf;
mod ladder;
mod ledger;
mod pins;
mod program;
mod scan;
mod words;

pub use base::Base;
pub(crate) use base::identity;
pub(crate) use changed::Changed;
pub(crate) use ebpf::EbpfTracker;
pub use ladder::{TrackerWish, best};
pub(crate) use ledger::{Ledger, shorten};
pub use pins::detach;
pub(crate) use pins::is_pinned;

#[cfg(debug_assertions)]
#[doc(hidden)]
pub use {ladder::open_mutant, program::Mutant};

use blocks::{BlockShift, ByteLen, Extent, ExtentSet, Result};
use std::fmt;
use std::time::Duration;

/// What knows which extents of one whole disk changed.
///
/// Called from several threads; no call waits for the disk or the network. Nothing here reads or writes the disk.
pub trait Tracker: Send + Sync {
    /// Which rung of the ladder this is.
    fn kind(&self) -> TrackerKind;

    /// The size of the disk when tracking began. A disk of another size now is not trusted.
    fn len(&self) -> ByteLen;

    /// Whether the disk has no bytes.
    fn is_empty(&self) -> bool {
        self.len().is_zero()
    }

    /// The size of one block of the map: extents that come out are multiples of it (but the disk's end may cut the
    /// last one), extents that go in are widened to it.
    fn grain(&self) -> BlockShift;

    /// Whether the map can be relied on, asked afresh with each call: the disk's identity and size and what the
    /// kernel side has flagged are looked at. Once untrusted, it stays so until [`Tracker::finish_scan`] or
    /// [`Tracker::reset`].
    fn trust(&self) -> Trust;

    /// Moves marked blocks to pending and returns them: sorted, disjoint, about `bytes_max` bytes (at least one
    /// block if any is marked; the rest stays marked). An empty taking means that nothing is marked; it needs no
    /// acknowledgement. The caller must read the disk only after this returns.
    fn take(&self, bytes_max: ByteLen) -> Result<Taking>;

    /// The server has this taking on its medium: its blocks are no longer pending, except where a later taking that
    /// is not acknowledged has the same block. `NotFound` for a number that is unknown, acknowledged already or from
    /// before [`Tracker::requeue`].
    fn acknowledge(&self, taking: u64) -> Result<()>;

    /// After a resumption: everything pending is marked again, and all takings so far are forgotten.
    fn requeue(&self) -> Result<()>;

    /// The backlog: bytes that are marked or pending.
    fn backlog(&self) -> Result<ByteLen>;

    /// What is marked or pending.
    fn changed(&self) -> Result<ExtentSet>;

    /// What has to be compared with the server before the marks say all: where an earlier process may have left something
    /// unsent. Empty on a rung whose marks outlive the process; [`Tracker::finish_scan`] ends it.
    fn doubtful(&self) -> ExtentSet {
        ExtentSet::new()
    }

    /// What people should know of it beside its kind and trust.
    fn remark(&self) -> Option<String> {
        None
    }

    /// Marks these extents: a read of them failed, or a scan found that they differ.
    fn mark(&self, extents: &[Extent]) -> Result<()>;

    /// Begins a scan of the whole disk. Must be called before the first byte of the scan is read.
    ///
    /// Notes what the counts stand at, for which it needs an instant with no write in flight; it waits at most
    /// `within` for one and fails with `Busy` if there was none. The caller may then freeze the file systems, ask
    /// again and thaw at once. `Unsupported` where the rung cannot become trusted at all.
    fn begin_scan(&self, within: Duration) -> Result<Scan>;

    /// Every block has been hashed since `begin_scan`, and those that differ from what the server acknowledged
    /// (`base.acked`) are marked or pending: trusted from here on. `Busy` if the scan was voided meanwhile (the disk
    /// was re-attached or resized, the counts did not add up, another scan began): scan again.
    fn finish_scan(&self, scan: Scan, base: Base) -> Result<()>;

    /// The disk's content **is** what the server acknowledged: forgets all marks and takings, trusted from here on.
    /// Only for a disk that nothing writes to meanwhile and whose writes have all been flushed; `Busy`, and not
    /// trusted, if a write was seen during the call.
    fn reset(&self, base: Base) -> Result<()>;

    /// What the marks are relative to; `None` while there is nothing that they could be relative to.
    fn base(&self) -> Option<Base>;

    /// Notes a newer base. It survives the agent's death at any instant. `base.sent` is to be noted before it is sent.
    fn set_base(&self, base: Base) -> Result<()>;

    /// What was counted since tracking began.
    fn census(&self) -> Result<Census>;

    /// At a barrier, frozen, after the last read: do the counts prove that no write was missed? Waits at most `within`
    /// for writes that are still in flight.
    fn agree(&self, within: Duration) -> Result<Agreement>;

    /// Bytes written and discarded since tracking began, as far as this rung knows (churn).
    fn written(&self) -> Result<ByteLen>;
}

/// The rungs of the ladder that live here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrackerKind {
    /// Tracepoint programs mark a bitmap.
    Ebpf,
    /// Both sides hash; nothing is known between two scans.
    Scan,
    /// Every write passes through this process, in order; by explicit wish only.
    Tap,
}

impl fmt::Display for TrackerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrackerKind::Ebpf => "ebpf",
            TrackerKind::Scan => "scan",
            TrackerKind::Tap => "tap",
        })
    }
}

/// Whether a map can be relied on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trust {
    /// The disk differs from the base at most where it is changed.
    Trusted,
    /// It may differ anywhere.
    Untrusted {
        /// Why, for the administrator.
        reason: String,
    },
}

impl Trust {
    /// Whether the map can be relied on.
    pub const fn is_trusted(&self) -> bool {
        matches!(self, Trust::Trusted)
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trust::Trusted => f.write_str("trusted"),
            Trust::Untrusted { reason } => write!(f, "not trusted: {reason}"),
        }
    }
}

/// Blocks that were taken for sending.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taking {
    /// Rises with each taking of this process; never 0.
    pub number: u64,
    /// What to read now: sorted, disjoint, not touching. May be empty.
    pub extents: Vec<Extent>,
}

impl Taking {
    /// How many bytes were taken.
    pub fn bytes(&self) -> ByteLen {
        self.extents.iter().map(|extent| extent.len()).sum()
    }
}

/// A scan that has begun. Worth nothing to another tracker or process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scan(pub(crate) u64);

/// Three independent counts of the same writes, all since tracking began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Census {
    /// Bytes that the tracker saw on their way to the device.
    pub queued: ByteLen,
    /// Bytes that the tracker saw completed.
    pub completed: ByteLen,
    /// Bytes written and discarded, from `/sys/block/DISK/stat`.
    pub kernel: ByteLen,
    /// Write requests that the device has now, from `/sys/block/DISK/inflight`.
    pub in_flight: u64,
    /// Runs of tracking programs that the kernel left out, on any disk; a second witness only.
    pub missed_runs: u64,
}

/// What the counts say at a barrier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Agreement {
    /// All three are equal with nothing in flight: no write was missed since the last agreement.
    Agree,
    /// Completions were missed, so what was taken before its write had completed may have been read too early.
    /// Everything taken since the last agreement **has been marked again**: take and read it, still frozen, then ask
    /// again.
    CompletedShort {
        /// Bytes missed.
        by: ByteLen,
    },
    /// Writes were missed altogether, or the counts contradict each other. The tracker is no longer trusted.
    QueuedShort {
        /// Bytes missed; 0 for a contradiction.
        by: ByteLen,
    },
    /// Writes were in flight all the time: not at rest, nothing is proven either way.
    InFlight {
        /// Bytes on their way.
        bytes: ByteLen,
    },
}
