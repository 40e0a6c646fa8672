//! A tapped disk: what writes to it goes to the disk and into the order of the machine's writes.

use super::activity::Activity;
use super::medium::{Medium, aligned};
use super::order::Order;
use crate::tracker::{Changed, Trust};
use blocks::{
    AlignedBuffer, Allocation, BlockShift, ByteLen, ByteOffset, DiskIndex, Extent, ExtentSet, ExtentStatus,
    RequestClass, Result, Turns, Volume, check_request, is_zero,
};
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most that one entry of the order carries, and one request to the disk.
pub(super) const PIECE: ByteLen = ByteLen::new(1 << 20);
const _: () = assert!(PIECE.get() <= wire::PAYLOAD_BYTES_MAX as u64);
/// How long a region is left alone before it is taken off the activity log.
const IDLE: Duration = Duration::from_secs(10);

thread_local! {
    /// What a thread that serves the tap reads into.
    static BUFFER: RefCell<Option<AlignedBuffer>> = const { RefCell::new(None) };
}

/// See the module. A [`Volume`] for who shows it, a [`crate::Tracker`] for the copy cycle.
///
/// Unlike other volumes it is not poisoned by a failed write: it stands in the place of a disk, which answers each
/// request for itself. What a failed write left behind is read again before the server is told anything of it.
pub(crate) struct TapDisk {
    pub(super) index: DiskIndex,
    pub(super) name: String,
    pub(super) len: ByteLen,
    pub(super) changed: Changed,
    pub(super) order: Arc<Order>,
    pub(super) activity: Activity,
    pub(super) written: AtomicU64,
    sector: BlockShift,
    medium: Box<dyn Medium>,
    turns: Turns,
    doubt: Mutex<Doubt>,
}

/// What is to be compared before the marks say all.
#[derive(Debug, Default)]
struct Doubt {
    /// Where the server may lack something that no mark of this process tells.
    doubtful: ExtentSet,
    /// What was on when this process began.
    logged: ExtentSet,
    /// Numbers the comparisons.
    scan: u64,
    /// The comparison that is under way has come to nothing.
    voided: bool,
}

/// A disk and what it is made of, for [`TapDisk::new`].
pub(super) struct Parts {
    pub index: DiskIndex,
    pub name: String,
    pub len: ByteLen,
    pub sector: BlockShift,
    pub medium: Box<dyn Medium>,
    pub activity: Activity,
    /// What the log had on.
    pub logged: ExtentSet,
    pub order: Arc<Order>,
}

impl TapDisk {
    /// A tap over these parts; what the log had on is doubtful, and so are the two ends of the disk, where a program that
    /// wrote past the tap has most likely left its traces.
    pub(super) fn new(parts: Parts) -> TapDisk {
        let Parts { index, name, len, sector, medium, activity, logged, order } = parts;
        let mut doubtful = logged.clone();
        let head = Extent::between(ByteOffset::ZERO, len.end().min(PIECE.end()));
        let tail = Extent::between(ByteOffset::new(len.saturating_sub(PIECE).get()), len.end());
        let tail = tail.map(|tail| tail.align_out(BlockShift::KIB_64));
        let ends = [head, tail.and_then(|tail| tail.intersect(Extent::whole(len)?))];
        ends.into_iter().flatten().for_each(|end| doubtful.insert(end, ()));
        let doubt = Mutex::new(Doubt { doubtful, logged, scan: 0, voided: false });
        let changed = Changed::owned(BlockShift::KIB_4, len);
        let (turns, written) = (Turns::default(), AtomicU64::new(0));
        TapDisk { index, name, len, sector, changed, order, activity, written, medium, turns, doubt }
    }

    /// One change of the disk: the log, the disk, the order.
    fn change(
        &self,
        extent: Extent,
        payload: Option<AlignedBuffer>,
        act: impl FnOnce(&dyn Medium, Option<&AlignedBuffer>) -> Result<()>,
    ) -> Result<()> {
        let _turn = self.turns.take(extent);
        self.activity.cover(extent)?;
        blocks::crash_point("tap.covered");
        match act(&*self.medium, payload.as_ref()) {
            Ok(()) => {
                blocks::crash_point("tap.written");
                self.written.fetch_add(extent.len().get(), Ordering::Relaxed);
                let payload = payload.filter(|bytes| !is_zero(bytes));
                self.order.put(self.index, extent, payload, &self.changed)
            }
            Err(error) if error.kind() == blocks::ErrorKind::Unsupported => Err(error),
            Err(error) => {
                let cause = format!("{}: a write failed ({error})", self.name);
                self.order.spoil(extent, &cause, &self.changed)?;
                Err(error)
            }
        }
    }

    fn zero(&self, extent: Extent, punch: bool, fua: bool) -> Result<()> {
        self.change(extent, None, |medium, _| medium.zero(extent, punch))?;
        if fua { self.medium.flush() } else { Ok(()) }
    }

    fn extent(&self, offset: ByteOffset, len: ByteLen) -> Result<Option<Extent>> {
        check_request(self.len, self.sector, offset, len)
    }

    /// What the server may lack: marked, pending, under way, in the queue, or doubtful.
    pub(super) fn due(&self) -> ExtentSet {
        // In the order in which a write moves on, so that none is missed on its way.
        let mut due = self.turns.under_way();
        self.order.each(self.index, |extent| due.insert(extent, ()));
        due.union(&self.changed.changed());
        due.union(&self.doubt().doubtful);
        due
    }

    /// Writes that are under way: none where the file systems above stand still.
    pub(super) fn is_at_rest(&self) -> bool {
        self.turns.under_way().is_empty()
    }

    /// What has to be compared before the marks say all.
    pub(super) fn doubtful(&self) -> ExtentSet {
        self.doubt().doubtful.clone()
    }

    /// Takes regions off the activity log that were left alone; at the end, all that the server has.
    pub fn rest(&self, at_the_end: bool) -> Result<()> {
        if !self.activity.trust().is_trusted() || !self.doubt().doubtful.is_empty() {
            return Ok(());
        }
        let idle = if at_the_end { Duration::ZERO } else { IDLE };
        self.activity.rest(idle, || self.due())
    }

    /// The server found these to differ. Where no write of the tap explains that, the disk was written past it: then it
    /// is not trusted any more.
    pub fn note_differing(&self, extents: &[Extent]) -> Result<()> {
        let mut doubt = self.doubt();
        if doubt.voided || !self.activity.trust().is_trusted() {
            return Ok(());
        }
        let blocks = extents.iter().flat_map(|extent| extent.split(BlockShift::KIB_64.len()));
        let mut strays =
            blocks.filter(|block| !doubt.logged.overlaps(*block) && !self.activity.is_on(*block));
        let Some(stray) = strays.next() else { return Ok(()) };
        doubt.voided = true;
        drop(doubt);
        let reason = format!("{} was written past the tap ({stray})", self.name);
        tracing::warn!("{reason}: all of it is compared");
        self.activity.set_trust(Trust::Untrusted { reason }, None)
    }

    /// A comparison begins.
    pub(super) fn begin_scan(&self) -> u64 {
        let mut doubt = self.doubt();
        doubt.scan += 1;
        doubt.voided = false;
        doubt.scan
    }

    /// Whether this comparison is the one that was begun last, and nothing has voided it; then nothing is doubtful any
    /// more.
    pub(super) fn finish_scan(&self, scan: u64) -> bool {
        let mut doubt = self.doubt();
        let counts = doubt.scan == scan && !doubt.voided;
        if counts {
            doubt.doubtful = ExtentSet::new();
        }
        counts
    }

    fn doubt(&self) -> MutexGuard<'_, Doubt> {
        self.doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Volume for TapDisk {
    fn len(&self) -> ByteLen {
        self.len
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn alignment(&self) -> BlockShift {
        self.sector
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], _: RequestClass) -> Result<()> {
        let Some(extent) = self.extent(offset, ByteLen::of(buffer))? else { return Ok(()) };
        BUFFER.with_borrow_mut(|aligned| {
            let aligned = aligned.get_or_insert_with(|| AlignedBuffer::new(PIECE.as_usize()));
            for part in extent.split(PIECE) {
                self.medium.read(part, aligned)?;
                let into = &mut buffer[within(extent, part)];
                into.copy_from_slice(&aligned[..into.len()]);
            }
            Ok(())
        })
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, _: RequestClass) -> Result<()> {
        let Some(extent) = self.extent(offset, ByteLen::of(data))? else { return Ok(()) };
        for part in extent.split(PIECE) {
            let bytes = aligned(&data[within(extent, part)]);
            self.change(part, Some(bytes), |medium, bytes| match bytes {
                Some(bytes) => medium.write(part, bytes),
                None => Ok(()),
            })?;
        }
        if fua { self.medium.flush() } else { Ok(()) }
    }

    fn write_zeroes(&self, extent: Extent, keep: bool, fua: bool, _: RequestClass) -> Result<()> {
        let Some(extent) = self.extent(extent.start(), extent.len())? else { return Ok(()) };
        if !keep && self.zero(extent, true, fua).is_ok() {
            return Ok(());
        }
        self.zero(extent, false, fua)
    }

    /// A hole where the disk makes zeroes of it; `Unsupported` otherwise.
    fn discard(&self, extent: Extent, fua: bool, _: RequestClass) -> Result<()> {
        match self.extent(extent.start(), extent.len())? {
            Some(extent) => self.zero(extent, true, fua),
            None => Ok(()),
        }
    }

    fn flush(&self) -> Result<()> {
        self.medium.flush()?;
        self.order.flushed();
        Ok(())
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        let checked = self.extent(extent.start(), extent.len())?;
        Ok(checked.map(|extent| ExtentStatus { extent, allocation: Allocation::Data }).into_iter().collect())
    }
}

/// Where the part's bytes are among those of the whole.
fn within(whole: Extent, part: Extent) -> std::ops::Range<usize> {
    (part.start() - whole.start()).as_usize()..(part.end() - whole.start()).as_usize()
}
