//! One disk and how far its copy has come.

use super::digests::hash_blocks;
use super::outbox::{Outbox, Receiver};
use super::reader::{Reader, Shipment, Stretch, stretches};
use super::scan::{InitialCopy, Manner};
use super::{Digests, READ_BYTES, pieces};
use crate::disk::{DeviceNumber, Disk, DiskLock};
use crate::link::Link;
use crate::tap::{OrderedWrite, TapDisk};
use crate::tracker::{Taking, Tracker, TrackerKind};
use blocks::{AlignedBuffer, ByteLen, DiskIndex, Error, ErrorKind, Extent, ExtentSet, Result, Seq};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// How much is taken from the tracker at a time.
pub(super) const TAKING_BYTES: ByteLen = ByteLen::new(32 << 20);

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
    pub reader: Reader,
    /// What alone the next pass compares; `None`: the whole disk.
    pub only: Option<ExtentSet>,
    /// Bytes that the pass has compared, and of those that differed.
    pub compared: (ByteLen, ByteLen),
    /// The same disk as the tap's, and the device that shows it.
    pub tap: Option<(Arc<TapDisk>, DeviceNumber)>,
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
            reader: Reader::new(),
            only: None,
            compared: (ByteLen::ZERO, ByteLen::ZERO),
            tap: None,
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

    /// The device that the machine's file systems are on.
    pub fn used_as(&self) -> DeviceNumber {
        self.tap.as_ref().map_or(self.disk.number(), |(_, shown)| *shown)
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
        self.only = None;
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
        self.outbox.as_mut().ok_or_else(not_connected)
    }

    /// Sends data and zeroes of what was read; `zeroes_too` unless the server holds zeroes there already.
    pub fn ship(&mut self, link: &Link, extent: Extent, bytes: &[u8], zeroes_too: bool) -> Result<()> {
        let tracker = Arc::clone(&self.tracker);
        let outbox = self.outbox()?;
        let shipments = pieces(extent, bytes).into_iter().map(Shipment::from);
        shipments
            .filter(|shipment| zeroes_too || shipment.bytes.is_some())
            .try_for_each(|shipment| outbox.ship(link, &*tracker, shipment))
    }

    /// One taking: taken, read, sent. How many bytes were taken.
    pub fn copy_marked(&mut self, link: &Link) -> Result<ByteLen> {
        let tracker = Arc::clone(&self.tracker);
        let taking = tracker.take(TAKING_BYTES)?;
        if taking.extents.is_empty() {
            return Ok(ByteLen::ZERO);
        }
        blocks::crash_point("copy.taken");
        self.note_written(&taking);
        let (reader, outbox, disk) = self.reading()?;
        let sent = reader.read(disk, &stretches(&taking.extents), Stretch::shipments, |shipments| {
            shipments.into_iter().try_for_each(|shipment| outbox.ship(link, &*tracker, shipment))
        });
        if let Err(error) = sent {
            tracker.mark(&taking.extents)?;
            return Err(error);
        }
        let last = outbox.flush(link, &*tracker)?;
        self.takings.push_back((taking.number, last));
        Ok(taking.bytes())
    }

    /// What reading into the outbox needs, apart from the rest.
    pub fn reading(&mut self) -> Result<(&mut Reader, &mut Outbox, &Disk)> {
        let outbox = self.outbox.as_mut().ok_or_else(not_connected)?;
        Ok((&mut self.reader, outbox, &self.disk))
    }

    pub fn note_written(&mut self, taking: &Taking) {
        if let Some(written) = &mut self.written_since {
            taking.extents.iter().for_each(|extent| written.insert(*extent, ()));
        }
    }

    /// Sends a write as it was made, at the latest with the next [`Link::send_gathered`]; its number.
    pub fn send_in_order(&mut self, link: &Link, write: &OrderedWrite) -> Result<Seq> {
        if let Some(written) = &mut self.written_since {
            written.insert(write.extent, ());
        }
        let tracker = Arc::clone(&self.tracker);
        self.outbox()?.write_in_order(link, &*tracker, write)
    }

    /// The number of the last write, everything having been sent.
    pub fn sent_all(&mut self, link: &Link) -> Result<Seq> {
        let tracker = Arc::clone(&self.tracker);
        self.outbox()?.flush(link, &*tracker)
    }

    /// Scan rung: goes through the whole disk and sends what differs from what was sent last.
    pub fn sweep(&mut self, link: &Link) -> Result<ByteLen> {
        let mut sent = ByteLen::ZERO;
        for part in self.parts() {
            link.check()?;
            for differing in self.differing(part)? {
                let bytes = self.buffer[offset_in(part, differing)].to_vec();
                sent += differing.len();
                self.ship(link, differing, &bytes, true)?;
            }
        }
        let tracker = Arc::clone(&self.tracker);
        self.outbox()?.flush(link, &*tracker)?;
        Ok(sent)
    }

    /// The disk in reads.
    pub fn parts(&self) -> Vec<Extent> {
        Extent::whole(self.disk.len())
            .into_iter()
            .flat_map(|whole| whole.split(ByteLen::new(READ_BYTES)))
            .collect()
    }

    /// Reads `part` into the buffer; the runs of blocks in it that are not what they were.
    pub fn differing(&mut self, part: Extent) -> Result<Vec<Extent>> {
        let began = Instant::now();
        let hashes = hash_blocks(self.disk.read(part, &mut self.buffer)?);
        self.reader.read_time += began.elapsed();
        let digests = self.digests.as_mut().ok_or_else(too_large)?;
        let mut changed = ExtentSet::new();
        for (block, hash) in part.split(super::digests::HASH_BLOCK.len()).zip(&hashes) {
            if digests.note(super::digests::HASH_BLOCK.block_of(block.start()), hash) {
                changed.insert(block, ());
            }
        }
        Ok(changed.iter().map(|(extent, ())| extent).collect())
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

pub(super) fn offset_in(part: Extent, inner: Extent) -> std::ops::Range<usize> {
    (inner.start() - part.start()).as_usize()..(inner.end() - part.start()).as_usize()
}

fn not_connected() -> Error {
    Error::new(ErrorKind::Cancelled, "not connected")
}

fn too_large() -> Error {
    let context =
        "the scan rung remembers a hash of each 64 KiB and the disk is over 192 GiB: use the ebpf tracker";
    Error::new(ErrorKind::Unsupported, context)
}
