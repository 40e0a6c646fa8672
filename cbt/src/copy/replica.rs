//! One disk and how far its copy has come.

use super::digests::hash_blocks;
use super::outbox::{Outbox, Receiver};
use super::scan::{InitialCopy, Manner};
use super::{Digests, Piece, READ_BYTES, pieces};
use crate::disk::{AlignedBuffer, Disk, DiskLock};
use crate::link::Link;
use crate::tracker::{Taking, Tracker, TrackerKind};
use blocks::{ByteLen, DiskIndex, Error, ErrorKind, Extent, ExtentSet, Result, Seq};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much is taken from the tracker at a time.
const TAKING_BYTES: ByteLen = ByteLen::new(32 << 20);

/// A protected disk.
///
/// ```text
///  Idle ──welcome──► Initial(copy) ──everything acked, scan finished──► Tracking
///    ▲                    │ scan voided: again                            │
///    └────────────────────┴────────── connection gone ────────────────────┘
/// ```
pub(crate) struct Replica {
    pub index: DiskIndex,
    pub disk: Disk,
    pub tracker: Arc<dyn Tracker>,
    /// What the user leaves out of every promise.
    pub excluded_by_user: Vec<Extent>,
    pub phase: Phase,
    /// A pass over the whole disk that is still to begin.
    pub wanted: Option<Manner>,
    pub buffer: AlignedBuffer,
    pub outbox: Option<Outbox>,
    /// Takings whose data was sent, with the last number of each.
    pub takings: VecDeque<(u64, Seq)>,
    /// Scan rung only: what each block held when it was last sent.
    pub digests: Option<Digests>,
    /// Set while the server is told what was written since: see verify.
    pub written_since: Option<ExtentSet>,
    /// How long reading has taken since somebody last set it to zero: what a frozen disk would have to wait.
    pub read_time: Duration,
    /// Kept only to be held.
    _lock: DiskLock,
}

/// How far a copy has come on this connection.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Nothing is copied.
    Idle,
    /// The disk is gone through once.
    Initial(InitialCopy),
    /// Only what changes is sent.
    Tracking,
}

/// A piece of a disk that was read while it stood still.
#[derive(Debug)]
pub(crate) struct Shipment {
    pub extent: Extent,
    /// `None`: zeroes.
    pub bytes: Option<Vec<u8>>,
}

/// What was read of a disk while it stood still, to be sent afterwards.
#[derive(Debug, Default)]
pub(crate) struct Held {
    shipments: Vec<Shipment>,
    takings: Vec<u64>,
    bytes: u64,
}

/// What a look at a frozen disk found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// Nothing has changed outside what is excluded.
    Nothing,
    /// Something had changed and is held now.
    Something,
    /// More has changed than may be held.
    TooMuch,
}

impl Replica {
    pub fn new(
        index: DiskIndex,
        disk: Disk,
        tracker: Arc<dyn Tracker>,
        excluded_by_user: Vec<Extent>,
        lock: DiskLock,
    ) -> Replica {
        Replica {
            index,
            disk,
            tracker,
            excluded_by_user,
            phase: Phase::Idle,
            wanted: None,
            buffer: AlignedBuffer::new(ByteLen::new(READ_BYTES).as_usize()),
            outbox: None,
            takings: VecDeque::new(),
            digests: None,
            written_since: None,
            read_time: Duration::ZERO,
            _lock: lock,
        }
    }

    /// Whether a checkpoint can be taken.
    pub fn is_tracking(&self) -> bool {
        matches!(self.phase, Phase::Tracking)
    }

    /// Whether the rung knows nothing between two scans.
    pub fn is_scanned(&self) -> bool {
        self.tracker.kind() == TrackerKind::Scan
    }

    /// Begins to send to this receiver, after what it has (`durable`) and what was ever sent.
    pub fn connect(&mut self, receiver: Receiver, durable: Seq) {
        let sent = self.tracker.base().map_or(Seq(0), |base| base.sent).max(self.last_sent());
        self.outbox = Some(Outbox::new(self.index, receiver, durable, durable.max(sent)));
    }

    /// The connection is gone: what was sent and not acknowledged is marked again.
    pub fn disconnect(&mut self) -> Result<()> {
        self.phase = Phase::Idle;
        self.wanted = None;
        self.written_since = None;
        if let Some(outbox) = &mut self.outbox {
            outbox.close(&*self.tracker)?;
        }
        self.requeue()
    }

    fn last_sent(&self) -> Seq {
        self.outbox.as_ref().map_or(Seq(0), Outbox::last)
    }

    pub fn outbox(&mut self) -> Result<&mut Outbox> {
        self.outbox.as_mut().ok_or_else(|| Error::new(ErrorKind::Cancelled, "not connected"))
    }

    /// Sends data and zeroes of what was read; `zeroes_too` unless the server holds zeroes there already.
    pub fn ship(&mut self, link: &Link, extent: Extent, bytes: Vec<u8>, zeroes_too: bool) -> Result<()> {
        let tracker = Arc::clone(&self.tracker);
        let outbox = self.outbox()?;
        for piece in pieces(extent, &bytes) {
            match piece {
                Piece::Data(part, _) if part == extent => {
                    return outbox.data(link, &*tracker, extent, bytes);
                }
                Piece::Data(part, data) => outbox.data(link, &*tracker, part, data.to_vec())?,
                Piece::Zero(part) if zeroes_too => outbox.zero(link, &*tracker, part)?,
                Piece::Zero(_) => {}
            }
        }
        Ok(())
    }

    /// Reads and sends an extent of any length.
    pub fn copy(&mut self, link: &Link, extent: Extent, zeroes_too: bool) -> Result<()> {
        for part in extent.split(ByteLen::new(READ_BYTES)) {
            let began = Instant::now();
            let bytes = self.disk.read(part, &mut self.buffer)?.to_vec();
            self.read_time += began.elapsed();
            self.ship(link, part, bytes, zeroes_too)?;
        }
        Ok(())
    }

    /// One taking: taken, read, sent. How many bytes were taken.
    pub fn copy_marked(&mut self, link: &Link) -> Result<ByteLen> {
        let taking = self.tracker.take(TAKING_BYTES)?;
        if taking.extents.is_empty() {
            return Ok(ByteLen::ZERO);
        }
        blocks::crash_point("copy.taken");
        self.note_written(&taking);
        for extent in &taking.extents {
            if let Err(error) = self.copy(link, *extent, true) {
                self.tracker.mark(&taking.extents)?;
                return Err(error);
            }
        }
        let tracker = Arc::clone(&self.tracker);
        let last = self.outbox()?.flush(link, &*tracker)?;
        self.takings.push_back((taking.number, last));
        Ok(taking.bytes())
    }

    fn note_written(&mut self, taking: &Taking) {
        if let Some(written) = &mut self.written_since {
            taking.extents.iter().for_each(|extent| written.insert(*extent, ()));
        }
    }

    /// Scan rung: goes through the whole disk and sends what differs from what was sent last.
    pub fn sweep(&mut self, link: &Link) -> Result<ByteLen> {
        let mut sent = ByteLen::ZERO;
        for part in self.parts() {
            link.check()?;
            for differing in self.differing(part)? {
                let bytes = self.buffer[offset_in(part, differing)].to_vec();
                sent += differing.len();
                self.ship(link, differing, bytes, true)?;
            }
        }
        let tracker = Arc::clone(&self.tracker);
        self.outbox()?.flush(link, &*tracker)?;
        Ok(sent)
    }

    /// The disk in reads.
    fn parts(&self) -> Vec<Extent> {
        Extent::whole(self.disk.len())
            .into_iter()
            .flat_map(|whole| whole.split(ByteLen::new(READ_BYTES)))
            .collect()
    }

    /// Reads `part` into the buffer; the runs of blocks in it that are not what they were.
    fn differing(&mut self, part: Extent) -> Result<Vec<Extent>> {
        let began = Instant::now();
        let hashes = hash_blocks(self.disk.read(part, &mut self.buffer)?);
        self.read_time += began.elapsed();
        let digests = self.digests.as_mut().ok_or_else(too_large)?;
        let mut changed = ExtentSet::new();
        for (block, hash) in part.split(super::digests::HASH_BLOCK.len()).zip(&hashes) {
            if digests.note(super::digests::HASH_BLOCK.block_of(block.start()), hash) {
                changed.insert(block, ());
            }
        }
        Ok(changed.iter().map(|(extent, ())| extent).collect())
    }

    /// While the disk stands still: takes what is marked and holds what it reads, at most `room` bytes, not past
    /// `until`. Logs nothing, sends nothing.
    pub fn hold(
        &mut self,
        held: &mut Held,
        room: u64,
        until: Instant,
        excluded: &ExtentSet,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Found> {
        if self.is_scanned() {
            return self.hold_scanned(held, room, until, go_on);
        }
        let taking = self.tracker.take(ByteLen::new(room.saturating_sub(held.bytes).max(1)))?;
        if taking.extents.is_empty() {
            return Ok(Found::Nothing);
        }
        self.note_written(&taking);
        held.takings.push(taking.number);
        let too_much = held.bytes + taking.bytes().get() > room;
        let mut read = Ok(());
        for part in taking.extents.iter().flat_map(|extent| extent.split(ByteLen::new(READ_BYTES))) {
            if too_much || Instant::now() >= until || !go_on() {
                read = Err(Error::new(ErrorKind::Cancelled, "the budget is used up"));
            }
            read = read.and_then(|()| self.hold_part(held, part));
        }
        if too_much || read.is_err() {
            // Marked again, so that this taking may be acknowledged without anything of it having been sent.
            self.tracker.mark(&taking.extents)?;
        }
        read.or_else(|error| if too_much { Ok(()) } else { Err(error) })?;
        let only_excluded = taking.extents.iter().all(|extent| excluded.contains(*extent));
        Ok(if too_much {
            Found::TooMuch
        } else if only_excluded {
            Found::Nothing
        } else {
            Found::Something
        })
    }

    fn hold_part(&mut self, held: &mut Held, part: Extent) -> Result<()> {
        let bytes = self.disk.read(part, &mut self.buffer)?;
        held.add(part, bytes);
        Ok(())
    }

    fn hold_scanned(
        &mut self,
        held: &mut Held,
        room: u64,
        until: Instant,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Found> {
        let before = held.bytes;
        for part in self.parts() {
            if Instant::now() >= until || !go_on() {
                self.digests = Digests::new(self.disk.len());
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    "reading the whole disk takes longer than the budget",
                ));
            }
            for differing in self.differing(part)? {
                let bytes = &self.buffer[offset_in(part, differing)];
                held.add(differing, bytes);
            }
            if held.bytes > room {
                return Ok(Found::TooMuch);
            }
        }
        Ok(if held.bytes == before { Found::Nothing } else { Found::Something })
    }

    /// Sends what was held; afterwards everything up to the instant has been sent.
    pub fn ship_held(&mut self, link: &Link, held: Held) -> Result<Seq> {
        let tracker = Arc::clone(&self.tracker);
        for Shipment { extent, bytes } in held.shipments {
            match bytes {
                Some(bytes) => self.outbox()?.data(link, &*tracker, extent, bytes)?,
                None => self.outbox()?.zero(link, &*tracker, extent)?,
            }
        }
        let last = self.outbox()?.flush(link, &*tracker)?;
        self.takings.extend(held.takings.into_iter().map(|number| (number, last)));
        Ok(last)
    }

    /// Tells the tracker what the server has on its medium. The base first: a crash between the two then leaves too much
    /// marked, never too little.
    pub fn take_acks(&mut self, link: &Link) -> Result<()> {
        let acked = link.acked(self.index);
        if let Some(outbox) = &mut self.outbox {
            outbox.note_acked(&*self.tracker, acked)?;
        }
        while let Some((number, last)) = self.takings.front().copied()
            && last <= acked
        {
            self.takings.pop_front();
            self.tracker.acknowledge(number)?;
        }
        Ok(())
    }

    /// What was sent and not acknowledged is to be sent again, though the connection goes on.
    pub fn requeue(&mut self) -> Result<()> {
        self.takings.clear();
        self.tracker.requeue()
    }
}

impl Held {
    fn add(&mut self, extent: Extent, bytes: &[u8]) {
        for piece in pieces(extent, bytes) {
            self.shipments.push(match piece {
                Piece::Data(extent, bytes) => {
                    self.bytes += extent.len().get();
                    Shipment { extent, bytes: Some(bytes.to_vec()) }
                }
                Piece::Zero(extent) => Shipment { extent, bytes: None },
            });
        }
    }
}

fn offset_in(part: Extent, inner: Extent) -> std::ops::Range<usize> {
    (inner.start() - part.start()).as_usize()..(inner.end() - part.start()).as_usize()
}

fn too_large() -> Error {
    let context =
        "the scan rung remembers a hash of each 64 KiB and the disk is over 192 GiB: use the ebpf tracker";
    Error::new(ErrorKind::Unsupported, context)
}
