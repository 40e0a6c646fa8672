//! The disk under an export: what lies below may be exchanged while the guest goes on.
//!
//! ```text
//!   guest -> [unflushed mark] -> gate (shared) -> inner volume -> watches note the blocks -> reply
//!                                gate (exclusive) = quiesced: no write is in flight, new ones wait
//! ```
//!
//! A watch is told of a write after it happened and before it is answered. Whoever copies takes the watch's blocks
//! first and reads them then: a write that its read missed is in the watch again. So copies and writes need no lock
//! against each other; the last round is made while the volume is quiesced, and then nothing can be missing.
//!
//! Locks are taken in this order: gate, then the session's record. Never quiesce while holding a record.

use crate::session::block_set::BlockSet;
use blocks::{
    Arrived, BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentStatus, FileRange,
    RequestClass, Result, Volume, check_request, monotonic_now,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant};

/// Called with `true` before the first write that a flush has to cover, with `false` when there is none left; must
/// have put that on the medium when it returns.
pub(crate) type UnflushedHook = Box<dyn Fn(bool) -> Result<()> + Send + Sync>;

/// A volume whose inside can be exchanged.
pub(crate) struct SessionVolume {
    len: ByteLen,
    inner: RwLock<Arc<dyn Volume>>,
    gate: RwLock<()>,
    closed: AtomicBool,
    /// How long each write is held up, in microseconds.
    brake_us: AtomicU64,
    watches: RwLock<Vec<Weak<WriteWatch>>>,
    unflushed: Unflushed,
}

/// Whether writes were completed that no flush has covered: known durably, so that it is known after the host died.
struct Unflushed {
    hook: UnflushedHook,
    marked: AtomicBool,
    turn: Mutex<()>,
    completed: AtomicU64,
    flushed: AtomicU64,
    last_write: Mutex<Instant>,
}

/// The blocks that were written since they were last taken.
#[derive(Debug, Default)]
pub(crate) struct WriteWatch {
    blocks: Mutex<BlockSet>,
}

/// No write is in flight and none begins while this lives. Hold it for a moment only: guests wait.
pub(crate) struct Quiesced<'a> {
    volume: &'a SessionVolume,
    _gate: RwLockWriteGuard<'a, ()>,
}

impl WriteWatch {
    /// The blocks so far; from now on the watch is empty.
    pub fn take(&self) -> BlockSet {
        std::mem::take(&mut *lock(&self.blocks))
    }

    /// Puts blocks back that could not be copied.
    pub fn put_back(&self, blocks: &BlockSet) {
        lock(&self.blocks).union(blocks);
    }

    /// How many bytes are in it, in whole blocks.
    pub fn bytes(&self) -> ByteLen {
        lock(&self.blocks).bytes()
    }
}

impl Quiesced<'_> {
    /// Puts `inner` below; it must hold what the one before it held.
    pub fn switch(&self, inner: Arc<dyn Volume>) {
        *self.volume.inner.write().unwrap_or_else(PoisonError::into_inner) = inner;
    }
}

impl Quiesced<'_> {
    /// Refuses writes from now on.
    pub fn close(&self) {
        self.volume.closed.store(true, Ordering::SeqCst);
    }
}

impl SessionVolume {
    /// A volume of `len` bytes over `inner`, which may be longer. `marked`: the hook's `true` is on the medium already.
    pub fn new(len: ByteLen, inner: Arc<dyn Volume>, marked: bool, hook: UnflushedHook) -> SessionVolume {
        SessionVolume {
            len,
            inner: RwLock::new(inner),
            gate: RwLock::new(()),
            closed: AtomicBool::new(false),
            brake_us: AtomicU64::new(0),
            watches: RwLock::default(),
            unflushed: Unflushed {
                hook,
                marked: AtomicBool::new(marked),
                turn: Mutex::new(()),
                // Writes of an earlier process may lie in the page cache: only a flush says otherwise.
                completed: AtomicU64::new(u64::from(marked)),
                flushed: AtomicU64::new(0),
                last_write: Mutex::new(monotonic_now()),
            },
        }
    }

    /// Waits for the writes in flight and holds new ones until the guard is dropped.
    pub fn quiesce(&self) -> Quiesced<'_> {
        Quiesced { volume: self, _gate: self.gate.write().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Notes every write that completes from now on, for as long as the watch is held.
    pub fn watch(&self) -> Arc<WriteWatch> {
        let watch = Arc::new(WriteWatch::default());
        let mut watches = self.watches.write().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|old| old.strong_count() > 0);
        watches.push(Arc::downgrade(&watch));
        watch
    }

    /// Refuses writes (`true`) or takes them again. Takes effect for writes in flight when this returns.
    pub fn close(&self, closed: bool) {
        let _quiesced = self.quiesce();
        self.closed.store(closed, Ordering::SeqCst);
    }

    /// Holds up each write for so long, where a guest writes faster than its disk can be copied.
    pub fn brake(&self, delay: Duration) {
        self.brake_us.store(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What lies below now.
    pub fn inner(&self) -> Arc<dyn Volume> {
        Arc::clone(&self.inner.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the mark of unflushed writes away where nothing was written for `idle` and all is flushed.
    pub fn settle_mark(&self, idle: Duration) -> Result<()> {
        let unflushed = &self.unflushed;
        let rested = monotonic_now().saturating_duration_since(*lock(&unflushed.last_write));
        if !unflushed.marked.load(Ordering::SeqCst) || rested < idle {
            return Ok(());
        }
        let _quiesced = self.quiesce();
        let all = unflushed.completed.load(Ordering::SeqCst) == unflushed.flushed.load(Ordering::SeqCst);
        if all {
            let _turn = lock(&unflushed.turn);
            (unflushed.hook)(false)?;
            unflushed.marked.store(false, Ordering::SeqCst);
        }
        Ok(())
    }

    fn mark_unflushed(&self) -> Result<()> {
        let unflushed = &self.unflushed;
        if !unflushed.marked.load(Ordering::SeqCst) {
            let _turn = lock(&unflushed.turn);
            if !unflushed.marked.load(Ordering::SeqCst) {
                (unflushed.hook)(true)?;
                unflushed.marked.store(true, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    fn change(
        &self,
        extent: Option<Extent>,
        fua: bool,
        change: impl FnOnce(&dyn Volume) -> Result<()>,
    ) -> Result<()> {
        let Some(extent) = extent else { return Ok(()) };
        match self.brake_us.load(Ordering::Relaxed) {
            0 => {}
            delay => std::thread::sleep(Duration::from_micros(delay)),
        }
        // The mark cannot be set under the gate (it takes the record), and may be taken away before we are inside.
        let _gate = loop {
            if !fua {
                self.mark_unflushed()?;
            }
            let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            if fua || self.unflushed.marked.load(Ordering::SeqCst) {
                break gate;
            }
        };
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::ReadOnly, "the session takes no more writes"));
        }
        let result = change(&*self.inner());
        // A failed write may have changed something too.
        for watch in
            self.watches.read().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade)
        {
            lock(&watch.blocks).insert(extent);
        }
        if !fua {
            self.unflushed.completed.fetch_add(1, Ordering::SeqCst);
        }
        *lock(&self.unflushed.last_write) = monotonic_now();
        result
    }

    fn check(&self, offset: ByteOffset, len: ByteLen) -> Result<Option<Extent>> {
        check_request(self.len, BlockShift::SECTOR, offset, len)
    }
}

impl Volume for SessionVolume {
    fn len(&self) -> ByteLen {
        self.len
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        match self.check(offset, ByteLen::of(buffer))? {
            Some(_) => self.inner().read_at(offset, buffer, class),
            None => Ok(()),
        }
    }

    fn read_located(
        &self,
        offset: ByteOffset,
        buffer: &mut [u8],
        class: RequestClass,
    ) -> Result<Option<FileRange>> {
        match self.check(offset, ByteLen::of(buffer))? {
            Some(_) => self.inner().read_located(offset, buffer, class),
            None => Ok(None),
        }
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, class: RequestClass) -> Result<()> {
        let extent = self.check(offset, ByteLen::of(data))?;
        self.change(extent, fua, |inner| inner.write_at(offset, data, fua, class))
    }

    fn write_zeroes(
        &self,
        extent: Extent,
        keep_allocated: bool,
        fua: bool,
        class: RequestClass,
    ) -> Result<()> {
        let checked = self.check(extent.start(), extent.len())?;
        self.change(checked, fua, |inner| inner.write_zeroes(extent, keep_allocated, fua, class))
    }

    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        let checked = self.check(extent.start(), extent.len())?;
        self.change(checked, fua, |inner| inner.discard(extent, fua, class))
    }

    fn flush(&self) -> Result<()> {
        let covered = self.unflushed.completed.load(Ordering::SeqCst);
        self.inner().flush()?;
        self.unflushed.flushed.fetch_max(covered, Ordering::SeqCst);
        Ok(())
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        self.check(extent.start(), extent.len())?;
        self.inner().status(extent)
    }

    fn arrived_len_min(&self) -> Option<ByteLen> {
        self.inner().arrived_len_min()
    }

    fn write_arrived(&self, extent: Extent, from: &mut dyn Arrived, class: RequestClass) -> Result<bool> {
        let checked = self.check(extent.start(), extent.len())?;
        let mut has_landed = false;
        self.change(checked, false, |inner| {
            has_landed = inner.write_arrived(extent, from, class)?;
            Ok(())
        })?;
        Ok(has_landed)
    }

    fn zeroes_fast(&self, keep_allocated: bool) -> bool {
        self.inner().zeroes_fast(keep_allocated)
    }
}

/// A panicking holder leaves sets and counters that are still right.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
