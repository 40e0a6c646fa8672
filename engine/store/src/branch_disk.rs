//! One disk of one branch: what is being written over everything sealed below it.
//!
//! ```text
//!            append ──► log of the open delta ──► map of the open delta     (memory, bounded by sealing a part)
//!                                                   │ not here
//!            read ────► resolve ────────────────────┤
//!                                                   ▼
//!                                   stack: sealed indexes, newest first, then the image
//! ```
//! Appends of a disk are ordered by one lock, which is not the one that readers take: a reader waits only for an
//! insertion into the map, never for a write or a sync. Locks are taken in the order unit, append, sync or layers.

use crate::index::entry::Entry;
use crate::index::stack::{Holes, Stack};
use crate::index::writer::{IndexHeader, IndexWriter};
use crate::journal::location::{Location, RecordKind};
use crate::journal::log::{LogWriter, PreparedWrite};
use crate::journal::packer::Packer;
use crate::journal::record::LogIdentity;
use crate::plan::{Plan, PlanPiece, PlanPieces, status_in_windows};
use crate::store::StoreOptions;
use crate::stored_file::{FileTable, StoredFile};
use crate::unit::Unit;
use crate::unit::branch::{BranchId, DeltaId, Edition};
use crate::unit::files;
use crate::unit::lineage::Span;
use crate::unit::space::SpaceCount;
use blocks::{
    BlockShift, ByteLen, ByteOffset, DiskIndex, Durable, Error, ErrorKind, Extent, ExtentMap, ExtentSet,
    ExtentStatus, FileRange, OpenMode, Piece, PlantedBug, RequestClass, Result, Seq, Synced, Volume,
    WriteTime, check_request, is_zero,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Instant;

/// How much is appended between two looks at the free space.
const SPACE_CHECK_BYTES: u64 = 4 << 20;

/// What an extent gets.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// These bytes, as many as the extent is long.
    Data(&'a [u8]),
    /// Zeroes.
    Zero,
    /// Nothing: it reads as zeroes and takes no space.
    Discard,
}

/// The head of a branch on one disk: reads see every append at once. One object for all who use it.
#[derive(Debug)]
pub struct BranchDisk {
    identity: BranchDiskIdentity,
    /// In bytes; grows with the main branch's disk.
    len: AtomicU64,
    unit: Weak<Unit>,
    table: Arc<FileTable>,
    /// What the whole unit takes up.
    space: Arc<SpaceCount>,
    options: StoreOptions,
    append: Mutex<Appender>,
    layers: RwLock<Layers>,
    sync: Mutex<SyncState>,
    sync_done: Condvar,
    poison: OnceLock<String>,
    packer: Packer,
}

/// Which disk of which branch.
#[derive(Clone, Debug)]
pub(crate) struct BranchDiskIdentity {
    pub branch: BranchId,
    pub disk: DiskIndex,
    pub salt: u64,
    /// The unit's folder.
    pub unit_dir: String,
}

/// What an open delta holds when its branch is opened.
#[derive(Debug)]
pub(crate) struct OpenDelta {
    pub id: DeltaId,
    pub log: Arc<StoredFile>,
    pub map: ExtentMap<Location>,
    /// The end of the log, all of it synced; `None` where there is no log yet.
    pub log_len: Option<ByteOffset>,
    pub last_seq: Seq,
    pub last_time: Option<WriteTime>,
}

#[derive(Debug)]
struct Appender {
    delta: DeltaId,
    log: Arc<StoredFile>,
    writer: Option<LogWriter>,
    /// Whether the log's name is on the medium.
    named: bool,
    last_seq: Seq,
    last_time: Option<WriteTime>,
    /// What went past the page cache since the last sync began.
    straight: ByteLen,
    /// How much may be appended before the free space is looked at again.
    allowance: u64,
}

#[derive(Debug)]
struct Layers {
    map: ExtentMap<Location>,
    log: Arc<StoredFile>,
    stack: Arc<Stack>,
}

#[derive(Debug)]
struct SyncState {
    running: bool,
    /// Everything up to here is on the medium, as `proof` shows.
    seq: Seq,
    proof: Option<Synced>,
    /// How much of which delta's log that is.
    delta: DeltaId,
    len: ByteOffset,
}

/// A branch disk whose open delta is on the medium with its index, and that takes no appends until this is dropped.
#[derive(Debug)]
pub(crate) struct Sealing<'a> {
    disk: &'a BranchDisk,
    appender: MutexGuard<'a, Appender>,
    sealed: Option<SealedDelta>,
}

/// A delta that is ready to be sealed.
#[derive(Clone, Debug)]
pub(crate) struct SealedDelta {
    pub id: DeltaId,
    pub log: Arc<StoredFile>,
    pub log_len: ByteLen,
    pub index: IndexHeader,
}

impl BranchDisk {
    pub(crate) fn new(
        identity: BranchDiskIdentity,
        unit: Weak<Unit>,
        (table, space): (Arc<FileTable>, Arc<SpaceCount>),
        options: StoreOptions,
        open: OpenDelta,
        (disk_len, stack): (ByteLen, Arc<Stack>),
    ) -> Result<BranchDisk> {
        let packer = Packer::new(options.compress);
        let log_identity = LogIdentity { salt: identity.salt, delta: open.id };
        let writer = match open.log_len {
            Some(len) => {
                let file = table.storage().open(open.log.name(), OpenMode::ReadWrite)?;
                Some(LogWriter::new(file, log_identity, len).with_straight(options.long_write))
            }
            None => None,
        };
        let appender = Appender {
            delta: open.id,
            log: Arc::clone(&open.log),
            writer,
            named: open.log_len.is_some(),
            last_seq: open.last_seq,
            last_time: open.last_time,
            allowance: 0,
            straight: ByteLen::ZERO,
        };
        let layers = Layers { map: open.map, log: open.log, stack };
        let len = open.log_len.unwrap_or_default();
        let sync = SyncState { running: false, seq: Seq(0), proof: None, delta: open.id, len };
        Ok(BranchDisk {
            identity,
            len: AtomicU64::new(disk_len.get()),
            unit,
            table,
            space,
            options,
            append: Mutex::new(appender),
            layers: RwLock::new(layers),
            sync: Mutex::new(sync),
            sync_done: Condvar::new(),
            packer,
            poison: OnceLock::new(),
        })
    }

    /// Appends a write. With the kernel and visible to readers when this returns; on the medium after the next
    /// [`BranchDisk::sync`] that begins after it. `seq` is higher than any before. Errors that changed nothing:
    /// `InvalidInput`, `OutOfRange`, `NoSpace` where the reserve would be touched or the unit's quota passed; any other poisons
    /// the disk.
    pub fn append(&self, seq: Seq, extent: Extent, payload: Payload<'_>) -> Result<()> {
        self.write(Some(seq), None, extent, payload).map(drop)
    }

    /// As [`BranchDisk::append`], of a write that is one of all the machine's writes in their order, completed at that time: a
    /// state between two checkpoints can be asked for by it ([`Unit::moment`]). Times must rise over all disks of the
    /// branch; of what came before on this one, [`BranchDisk::last_time`] tells the highest.
    pub fn append_in_order(
        &self,
        seq: Seq,
        time: WriteTime,
        extent: Extent,
        payload: Payload<'_>,
    ) -> Result<()> {
        self.write(Some(seq), Some(time), extent, payload).map(drop)
    }

    /// The highest time of a write, as far as it is known: what was sealed before the store was opened is not looked at.
    pub fn last_time(&self) -> Option<WriteTime> {
        lock(&self.append).last_time
    }

    /// Puts everything appended before this call on the medium. Callers that wait at the same time share one sync.
    pub fn sync(&self) -> Result<Durable<Seq>> {
        let target = self.last_seq();
        let mut state = lock(&self.sync);
        loop {
            self.check_poison()?;
            match state.proof {
                Some(proof) if state.seq >= target => return Ok(Durable::new(state.seq, proof)),
                _ if !state.running => break,
                _ => state = self.sync_done.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
        state.running = true;
        drop(state);
        let outcome = self.sync_log();
        let mut state = lock(&self.sync);
        state.running = false;
        self.sync_done.notify_all();
        match outcome {
            Ok((delta, seq, len, proof)) => {
                state.cover(delta, seq, len, proof);
                Ok(Durable::new(seq, proof))
            }
            Err(error) => Err(self.poisoned_by(error)),
        }
    }

    /// The highest number appended so far, here or below where this branch forked; 0 where there is none.
    pub fn last_seq(&self) -> Seq {
        lock(&self.append).last_seq
    }

    /// What the branch's own deltas have, the open one included. Exact, or in blocks as [`Unit::difference`].
    pub fn changed_since_fork(&self) -> Result<ExtentSet> {
        self.changed_since(DeltaId::IMAGE)
    }

    /// Seals what is open, without a checkpoint; everything appended before is in deltas up to the one returned.
    pub fn seal_part(&self) -> Result<DeltaId> {
        self.unit()?.seal_part(self, |_| true)
    }

    /// What the branch's own deltas behind `after` have, the open one included. Exact, or in blocks as
    /// [`Unit::difference`].
    pub fn changed_since(&self, after: DeltaId) -> Result<ExtentSet> {
        self.unit()?.own_changes(self.identity.branch, self.identity.disk, after)
    }

    pub(crate) fn identity(&self) -> &BranchDiskIdentity {
        &self.identity
    }

    /// The disk is longer from now on, as the manifest that was published says.
    pub(crate) fn grow(&self, len: ByteLen) {
        self.len.fetch_max(len.get(), Ordering::AcqRel);
    }

    /// What the open delta has.
    pub(crate) fn open_changes(&self) -> ExtentSet {
        let layers = self.layers.read().unwrap_or_else(PoisonError::into_inner);
        layers.map.iter().map(|(extent, _)| extent).collect()
    }

    /// How long the open delta's log is.
    pub(crate) fn open_log_len(&self) -> ByteLen {
        lock(&self.append).writer.as_ref().map_or(ByteLen::ZERO, |writer| writer.len() - ByteOffset::ZERO)
    }

    /// The log of the open delta and how much of it is known to be on the medium; `None` where that is nothing.
    pub(crate) fn durable_log(&self) -> Option<(DeltaId, ByteOffset)> {
        let sync = lock(&self.sync);
        (sync.len > ByteOffset::ZERO).then_some((sync.delta, sync.len))
    }

    /// Lets nothing be written any more.
    pub(crate) fn close(&self, why: String) {
        let _appender = lock(&self.append);
        // An earlier reason is as good.
        let _ = self.poison.set(why);
    }

    /// The open delta's log goes with its last user.
    pub(crate) fn doom_open_log(&self) {
        lock(&self.append).log.doom();
    }

    /// Puts other sealed layers below the open delta: the same content, otherwise stored.
    pub(crate) fn replace_stack(&self, stack: Arc<Stack>) {
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        let _old = std::mem::replace(&mut layers.stack, stack);
        drop(layers);
    }

    /// Whether the open delta has reached its bound.
    pub(crate) fn is_part_full(&self) -> bool {
        let extents = self.layers.read().unwrap_or_else(PoisonError::into_inner).map.extents();
        let log_len = lock(&self.append).writer.as_ref().map_or(0, |writer| writer.len().get());
        extents >= self.options.part_extents_max || log_len >= self.options.part_log_bytes_max.get()
    }

    /// Stops appends, syncs the open delta and writes its index.
    pub(crate) fn begin_seal(&self) -> Result<Sealing<'_>> {
        self.check_poison()?;
        let mut appender = lock(&self.append);
        self.check_poison()?;
        let appending = &mut *appender;
        let sealed = match &mut appending.writer {
            Some(writer) if writer.len() > ByteOffset::ZERO => {
                writer.trim().map_err(|error| self.poisoned_by(error))?;
                let proof = match PlantedBug::IndexBeforeData.is_planted() {
                    true => Synced::after_completed_sync(),
                    false => writer.file().sync().map_err(|error| self.poisoned_by(error))?,
                };
                let log_len = writer.len() - ByteOffset::ZERO;
                let index = self.write_index(appending.delta)?;
                let dir = files::disk_dir(&self.identity.unit_dir, self.identity.disk);
                self.table.storage().sync_dir(&dir).map_err(|error| self.poisoned_by(error))?;
                // Only now: that has put the log's name on the medium too.
                lock(&self.sync).cover(appending.delta, appending.last_seq, writer.len(), proof);
                Some(SealedDelta { id: appending.delta, log: Arc::clone(&appending.log), log_len, index })
            }
            _ => None,
        };
        Ok(Sealing { disk: self, appender, sealed })
    }

    /// The index, synced; its name is not. An error has changed nothing: the next attempt makes another file.
    fn write_index(&self, delta: DeltaId) -> Result<IndexHeader> {
        let identity = &self.identity;
        let span = Span { first: delta, last: delta, tier: 0, revision: 0 };
        let name = files::index_name(&identity.unit_dir, identity.disk, span);
        let file = files::create_anew(&**self.table.storage(), &name)?;
        let mut writer = IndexWriter::new(file, identity.salt, delta, delta);
        let layers = self.layers.read().unwrap_or_else(PoisonError::into_inner);
        for (extent, location) in layers.map.iter() {
            writer.push(Entry { extent, delta, location: *location })?;
        }
        drop(layers);
        Ok(writer.finish()?.0)
    }

    fn unit(&self) -> Result<Arc<Unit>> {
        self.unit.upgrade().ok_or_else(|| Error::new(ErrorKind::NotFound, "the store was closed"))
    }

    fn check_poison(&self) -> Result<()> {
        match self.poison.get() {
            Some(why) => Err(Error::new(ErrorKind::Poisoned, why.clone())),
            None => Ok(()),
        }
    }

    fn poisoned_by(&self, error: Error) -> Error {
        let (branch, disk) = (self.identity.branch, self.identity.disk);
        let why =
            format!("disk {disk} of branch {branch} takes no writes until the store is reopened: {error}");
        // The first failure is the cause; those behind it are its consequences.
        let _ = self.poison.set(why);
        self.sync_done.notify_all();
        error
    }

    fn sync_log(&self) -> Result<(DeltaId, Seq, ByteOffset, Synced)> {
        let (delta, seq, file, len, straight, named) = {
            let mut appender = lock(&self.append);
            let straight = std::mem::take(&mut appender.straight);
            appender.writer.iter_mut().for_each(LogWriter::rest);
            let writer = appender.writer.as_ref();
            let (file, len) =
                (writer.map(|w| Arc::clone(w.file())), writer.map_or(ByteOffset::ZERO, LogWriter::len));
            (appender.delta, appender.last_seq, file, len, straight, appender.named)
        };
        let dir = files::disk_dir(&self.identity.unit_dir, self.identity.disk);
        let Some(file) = file else {
            return Ok((delta, seq, len, self.table.storage().sync_dir(&dir)?));
        };
        let (begun, before) = (Instant::now(), lock(&self.sync).len);
        let proof = file.sync()?;
        // What went straight to the medium was there before.
        let synced = len.get().saturating_sub(before.get() + straight.get());
        self.packer.note_medium(synced, begun.elapsed());
        if !named {
            self.table.storage().sync_dir(&dir)?;
            let mut appender = lock(&self.append);
            if appender.delta == delta {
                appender.named = true;
            }
        }
        Ok((delta, seq, len, proof))
    }

    fn write(
        &self,
        seq: Option<Seq>,
        time: Option<WriteTime>,
        extent: Extent,
        payload: Payload<'_>,
    ) -> Result<Seq> {
        check_request(self.len(), BlockShift::SECTOR, extent.start(), extent.len())?;
        let write = match payload {
            Payload::Data(data) if ByteLen::of(data) != extent.len() => {
                let context = format!("{} bytes for {extent}", data.len());
                return Err(Error::new(ErrorKind::InvalidInput, context));
            }
            Payload::Data(data) if is_zero(data) => PreparedWrite::empty(extent, RecordKind::Zero),
            Payload::Data(data) => PreparedWrite::data(extent, data, &self.packer),
            Payload::Zero => PreparedWrite::empty(extent, RecordKind::Zero),
            Payload::Discard => PreparedWrite::empty(extent, RecordKind::Discard),
        };
        let write = write.at(time);
        self.check_poison()?;
        if self.is_part_full() {
            self.unit()?.seal_part(self, BranchDisk::is_part_full)?;
        }
        let mut appender = lock(&self.append);
        self.check_poison()?;
        let is_replication = seq.is_some();
        let seq = appender.next_seq(seq)?;
        appender.take_space(write.log_len(), &self.table, self.options.reserve)?;
        self.space.take(write.log_len(), is_replication, appender.log.name())?;
        let identity = LogIdentity { salt: self.identity.salt, delta: appender.delta };
        let synced_to = lock(&self.sync).len;
        let writer = appender.writer(&self.table, identity, self.options.long_write)?;
        let locations = writer.append(seq, &write, synced_to).map_err(|error| self.poisoned_by(error))?;
        if let Some((bytes, took)) = writer.went_straight() {
            self.packer.note_medium(bytes.get(), took);
            appender.straight += bytes;
        }
        appender.last_seq = seq;
        appender.last_time = appender.last_time.max(time);
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        for (extent, location) in locations {
            layers.map.insert(extent, location);
        }
        Ok(seq)
    }

    fn plan(&self, range: Extent) -> Result<(Plan, Arc<Stack>)> {
        let mut pieces = PlanPieces::new();
        let mut holes = Holes::new();
        let stack = {
            let layers = self.layers.read().unwrap_or_else(PoisonError::into_inner);
            for piece in layers.map.lookup(range) {
                match piece {
                    Piece::Data(extent, location) => {
                        pieces.push(PlanPiece::at(extent, location, &layers.log))
                    }
                    Piece::Hole(extent) => holes.push(extent),
                }
            }
            Arc::clone(&layers.stack)
        };
        stack.resolve(holes, &mut pieces)?;
        Ok((Plan::new(pieces), stack))
    }

    /// Background work makes way for guests.
    fn note(&self, class: RequestClass) {
        if class == RequestClass::Guest {
            self.options.guests.note();
        }
    }

    fn guest_write(&self, extent: Option<Extent>, payload: Payload<'_>, fua: bool) -> Result<()> {
        if let Some(extent) = extent {
            self.write(None, None, extent, payload)?;
        }
        if fua { self.flush() } else { Ok(()) }
    }
}

impl Volume for BranchDisk {
    fn len(&self) -> ByteLen {
        ByteLen::new(self.len.load(Ordering::Acquire))
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        let range = check_request(self.len(), BlockShift::SECTOR, offset, ByteLen::of(buffer))?;
        let Some(range) = range else { return Ok(()) };
        self.note(class);
        let (plan, stack) = self.plan(range)?;
        plan.read(offset, buffer, stack.image(), class)
    }

    fn read_located(
        &self,
        offset: ByteOffset,
        buffer: &mut [u8],
        class: RequestClass,
    ) -> Result<Option<FileRange>> {
        let range = check_request(self.len(), BlockShift::SECTOR, offset, ByteLen::of(buffer))?;
        let Some(range) = range else { return Ok(None) };
        self.note(class);
        let (plan, stack) = self.plan(range)?;
        plan.read_located(offset, buffer, stack.image(), class)
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, class: RequestClass) -> Result<()> {
        self.note(class);
        let extent = check_request(self.len(), BlockShift::SECTOR, offset, ByteLen::of(data))?;
        self.guest_write(extent, Payload::Data(data), fua)
    }

    fn write_zeroes(&self, extent: Extent, _: bool, fua: bool, _: RequestClass) -> Result<()> {
        self.guest_write(Some(extent), Payload::Zero, fua)
    }

    fn discard(&self, extent: Extent, fua: bool, _: RequestClass) -> Result<()> {
        self.guest_write(Some(extent), Payload::Discard, fua)
    }

    fn flush(&self) -> Result<()> {
        self.sync().map(drop)
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        check_request(self.len(), BlockShift::SECTOR, extent.start(), extent.len())?;
        status_in_windows(extent, |window| {
            let (plan, stack) = self.plan(window)?;
            plan.status(stack.image())
        })
    }

    /// A record without a payload, whatever the length.
    fn zeroes_fast(&self, _: bool) -> bool {
        true
    }
}

impl Appender {
    fn next_seq(&self, asked: Option<Seq>) -> Result<Seq> {
        match asked {
            None => Ok(self.last_seq.next()),
            Some(seq) if seq > self.last_seq => Ok(seq),
            Some(Seq(seq)) => {
                let context = format!("write {seq} comes after write {}", self.last_seq.0);
                Err(Error::new(ErrorKind::InvalidInput, context))
            }
        }
    }

    /// `NoSpace` where the log cannot grow by `len` without touching the reserve.
    fn take_space(&mut self, len: ByteLen, table: &FileTable, reserve: ByteLen) -> Result<()> {
        if self.allowance < len.get() {
            let free = table.storage().free_space()?.unwrap_or(ByteLen::new(u64::MAX));
            let room = free.saturating_sub(reserve).get();
            if room < len.get() {
                let context = format!(
                    "{}: {free} bytes are free and {reserve} are kept in reserve, {len} more are needed",
                    self.log.name()
                );
                return Err(Error::new(ErrorKind::NoSpace, context));
            }
            // The fuller, the more often: others fill the same storage.
            self.allowance = (room / 8).clamp(len.get(), SPACE_CHECK_BYTES.max(len.get()));
        }
        self.allowance -= len.get();
        Ok(())
    }

    fn writer(
        &mut self,
        table: &FileTable,
        identity: LogIdentity,
        long_write: ByteLen,
    ) -> Result<&mut LogWriter> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => {
                let file = files::create_anew(&**table.storage(), self.log.name())?;
                self.named = false;
                LogWriter::new(file, identity, ByteOffset::ZERO).with_straight(long_write)
            }
        };
        Ok(self.writer.insert(writer))
    }
}

impl SyncState {
    fn cover(&mut self, delta: DeltaId, seq: Seq, len: ByteOffset, proof: Synced) {
        self.seq = self.seq.max(seq);
        self.proof = Some(proof);
        if self.delta == delta {
            self.len = self.len.max(len);
        }
    }
}

impl Sealing<'_> {
    /// What is to be sealed; `None` where nothing was written.
    pub(crate) fn sealed(&self) -> Option<&SealedDelta> {
        self.sealed.as_ref()
    }

    pub(crate) fn last_seq(&self) -> Seq {
        self.appender.last_seq
    }

    pub(crate) fn identity(&self) -> &BranchDiskIdentity {
        &self.disk.identity
    }

    /// Nobody knows whether the seal was published: nothing may be written any more.
    pub(crate) fn poison(self, why: &str) {
        // An earlier reason is as good.
        let _ = self.disk.poison.set(why.to_owned());
    }

    /// The seal is published: go on with the delta `next`, over `stack`.
    pub(crate) fn commit(mut self, next: DeltaId, stack: Arc<Stack>) {
        let identity = &self.disk.identity;
        let log =
            self.disk.table.file(files::log_name(&identity.unit_dir, identity.disk, Edition::first(next)));
        let mut sync = lock(&self.disk.sync);
        (sync.delta, sync.len) = (next, ByteOffset::ZERO);
        drop(sync);
        let mut layers = self.disk.layers.write().unwrap_or_else(PoisonError::into_inner);
        *layers = Layers { map: ExtentMap::new(), log: Arc::clone(&log), stack };
        drop(layers);
        (self.appender.delta, self.appender.log, self.appender.writer) = (next, log, None);
        self.appender.straight = ByteLen::ZERO;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "branch_disk_tests.rs"]
mod tests;
