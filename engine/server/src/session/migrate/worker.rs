//! The background copy of one disk.
//!
//! ```text
//!   pass over the disk from the mark's position --> rounds over what the guest wrote --> in step --> pivot
//!        |  every GiB or 10 s: flush target, mark (position, delta)     |  flush target, mark
//! ```
//!
//! A mark says: the target's medium holds everything before `position` as it was at the end of `delta`. After a restart
//! the rest of the disk and whatever changed since `delta` are copied again. During the first pass `delta` stays where
//! the migration began; a round seals a part *before* it takes the watch's blocks, so once they are copied that part
//! is the new mark. The branch is synced before a mark and before a round's copy, so that after the death of the host every
//! write that the target may hold is in the branch too, and `changed_since` finds its block. A target that fails ends the migration and nothing else.

use crate::session::block_set::BlockSet;
use crate::session::dirty_map::{DirtyMap, MapOwner};
use crate::session::live::{LiveDisk, LiveSession, map_name, session_dir};
use crate::session::migrate::{Copier, Pace, Target};
use crate::session::pivoted_volume::PivotedVolume;
use crate::session::record::{MigrationEvent, MigrationRecord};
use crate::session::volume::{WriteWatch, lock};
use blocks::{ByteLen, ByteOffset, DiskIndex, Error, ErrorKind, Extent, ExtentSet, Result, Volume};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::DeltaId;

/// How much may be left when guests are made to wait for the rest.
const SHORT: ByteLen = ByteLen::new(16 << 20);
/// How much time passes between two marks, where not enough is copied to want one earlier.
const MARK_EVERY: Duration = Duration::from_secs(10);
/// How often a copy in step looks for new writes.
const STEP_EVERY: Duration = Duration::from_millis(500);
/// From this round on a guest that writes faster than its disk is copied is slowed down, where a pivot is wanted.
const PATIENT_ROUNDS: u32 = 4;
const BRAKE_STEP: Duration = Duration::from_micros(500);
const BRAKE_MAX: Duration = Duration::from_millis(50);

/// A migration that runs in a thread of its own.
pub(crate) struct Migration {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    pivot: AtomicBool,
    ended: AtomicBool,
    in_step: AtomicBool,
    rate: AtomicU64,
    copied: AtomicU64,
    left: AtomicU64,
    turn: Mutex<()>,
    news: Condvar,
}

/// How far a migration is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MigrationProgress {
    pub copied: ByteLen,
    pub left: ByteLen,
    pub in_step: bool,
    pub ended: bool,
}

impl Migration {
    /// Goes on from the record's mark. `new`: nothing was ever copied, so the target is made.
    pub fn start(
        session: &Arc<LiveSession>,
        index: DiskIndex,
        record: &MigrationRecord,
        new: bool,
    ) -> Result<Migration> {
        let shared = Arc::new(Shared::default());
        shared.pivot.store(record.pivot, Ordering::SeqCst);
        shared.rate.store(record.rate.unwrap_or(0), Ordering::SeqCst);
        let target = Target::parse(&record.to, Some(&record.format))?;
        let (weak, theirs, record) = (Arc::downgrade(session), Arc::clone(&shared), record.clone());
        let name = format!("migrate-{index}");
        let run = move || {
            run(&weak, index, &target, &record, new, &theirs);
            theirs.ended.store(true, Ordering::SeqCst);
            theirs.wake();
        };
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(run)
            .map_err(|error| Error::io("starting the thread of a migration", error))?;
        Ok(Migration { shared, thread: Some(thread) })
    }

    /// Wishes that came later: a pivot, another rate.
    pub fn set(&self, pivot: bool, rate: Option<u64>) {
        self.shared.pivot.store(pivot, Ordering::SeqCst);
        self.shared.rate.store(rate.unwrap_or(0), Ordering::SeqCst);
        self.shared.wake();
    }

    /// How far it is.
    pub fn progress(&self) -> MigrationProgress {
        MigrationProgress {
            copied: ByteLen::new(self.shared.copied.load(Ordering::Relaxed)),
            left: ByteLen::new(self.shared.left.load(Ordering::Relaxed)),
            in_step: self.shared.in_step.load(Ordering::SeqCst),
            ended: self.shared.ended.load(Ordering::SeqCst),
        }
    }

    /// Calls it off and waits until it has stopped. What it has recorded stays.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a migration has panicked");
        }
    }
}

impl Drop for Migration {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Shared {
    fn wake(&self) {
        let _turn = lock(&self.turn);
        self.news.notify_all();
    }

    fn wait(&self, timeout: Duration) {
        let turn = lock(&self.turn);
        if !self.stop.load(Ordering::SeqCst) {
            drop(self.news.wait_timeout(turn, timeout).unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::SeqCst)).filter(|rate| *rate > 0)
    }
}

fn run(
    session: &Weak<LiveSession>,
    index: DiskIndex,
    target: &Target,
    record: &MigrationRecord,
    new: bool,
    shared: &Shared,
) {
    let Some(session) = session.upgrade() else { return };
    let result = session.disk(Some(index)).and_then(|disk| {
        let mut work = Work::open(&session, disk, target, record, new, shared)?;
        let result = work.run();
        disk.volume.brake(Duration::ZERO);
        result
    });
    match result {
        Err(error) if shared.stop.load(Ordering::SeqCst) => {
            tracing::debug!("the migration of disk {index} of session {} has stopped: {error}", session.id);
        }
        Err(error) => {
            tracing::warn!(
                "the migration of disk {index} of session {} to {target} failed: {error}",
                session.id
            );
            let failed = MigrationEvent::Fail { detail: error.to_string() };
            if let Err(error) = session.record.migration(index, failed) {
                tracing::error!("that cannot be recorded: {error}");
            }
        }
        Ok(()) => {}
    }
}

/// What the thread works with.
struct Work<'a> {
    session: &'a LiveSession,
    disk: &'a LiveDisk,
    target: Arc<dyn Volume>,
    skip_holes: bool,
    watch: Arc<WriteWatch>,
    copier: Copier<'a>,
    shared: &'a Shared,
    position: ByteOffset,
    delta: DeltaId,
    marked: Instant,
    unmarked: u64,
    map: Option<Arc<DirtyMap>>,
}

impl<'a> Work<'a> {
    fn open(
        session: &'a LiveSession,
        disk: &'a LiveDisk,
        target: &'a Target,
        record: &MigrationRecord,
        new: bool,
        shared: &'a Shared,
    ) -> Result<Work<'a>> {
        let (position, delta) = record
            .state()
            .mark()
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the disk was pivoted already"))?;
        // Before anything is read: what is written from now on is in the watch, the rest in deltas.
        let watch = disk.volume.watch();
        let volume =
            if new || position == 0 { target.begin(disk.len())? } else { target.open(disk.len())? };
        let position = ByteOffset::new(position);
        if let Some(done) = Extent::between(ByteOffset::ZERO, position) {
            let changed = disk.branch.changed_since(delta)?;
            let again: ExtentSet = changed.iter().filter_map(|(extent, ())| extent.intersect(done)).collect();
            watch.put_back(&BlockSet::touched(&again));
        }
        let source: &'a dyn Volume = &*disk.branch;
        Ok(Work {
            session,
            disk,
            target: Arc::clone(&volume),
            skip_holes: target.begins_empty(),
            watch,
            copier: Copier { source, target: volume, pace: Pace::new(shared.rate()), stop: &shared.stop },
            shared,
            position,
            delta,
            marked: Instant::now(),
            unmarked: 0,
            map: None,
        })
    }

    fn run(&mut self) -> Result<()> {
        self.first_pass()?;
        let mut rounds = 0;
        let mut brake = Duration::ZERO;
        loop {
            let before = self.watch.bytes();
            self.round()?;
            rounds += 1;
            let left = self.watch.bytes();
            self.shared.left.store(left.get(), Ordering::Relaxed);
            let pivot = self.shared.pivot.load(Ordering::SeqCst);
            if left <= SHORT {
                if !self.shared.in_step.swap(true, Ordering::SeqCst) {
                    self.mark_all_copied()?;
                    self.session.record.migration(self.disk.index, MigrationEvent::InStep)?;
                    self.session.context.step("migrate.in-step");
                    self.shared.wake();
                }
                if pivot {
                    return self.pivot();
                }
                self.shared.wait(STEP_EVERY);
            } else if pivot && rounds > PATIENT_ROUNDS && left.get() > before.get() / 2 {
                brake = (brake + BRAKE_STEP).min(BRAKE_MAX);
                self.disk.volume.brake(brake);
            }
            if self.shared.stop.load(Ordering::SeqCst) {
                return Err(Error::new(ErrorKind::Cancelled, "the migration was called off"));
            }
        }
    }

    fn first_pass(&mut self) -> Result<()> {
        let end = self.disk.len().end();
        self.shared.copied.store(self.position.get(), Ordering::Relaxed);
        while let Some(rest) = Extent::between(self.position, end) {
            let step = self.session.context.mark_bytes.min(ByteLen::new(64 << 20));
            let Some(piece) = rest.split(step).next() else { break };
            self.shared.left.store((rest.len() + self.watch.bytes()).get(), Ordering::Relaxed);
            self.copier.pace.set_rate(self.shared.rate());
            let (skip, unmarked, copied) = (self.skip_holes, &mut self.unmarked, &self.shared.copied);
            self.copier.copy(piece, skip, &mut |done| {
                *unmarked += done.len().get();
                copied.fetch_add(done.len().get(), Ordering::Relaxed);
            })?;
            self.position = piece.end();
            if self.mark_is_due() {
                self.mark(self.position, self.delta)?;
            }
        }
        Ok(())
    }

    /// Copies what the watch has; after a while, or where it was much, the result is marked.
    fn round(&mut self) -> Result<()> {
        let sealed = match self.mark_is_due() && !self.watch.bytes().is_zero() {
            true => Some(self.disk.branch.seal_part()?),
            false => None,
        };
        self.copy_watched()?;
        match sealed {
            Some(delta) => self.mark(self.position, delta),
            None => Ok(()),
        }
    }

    fn mark_is_due(&self) -> bool {
        self.unmarked >= self.session.context.mark_bytes.get() || self.marked.elapsed() >= MARK_EVERY
    }

    fn mark_all_copied(&mut self) -> Result<()> {
        let delta = self.disk.branch.seal_part()?;
        self.copy_watched()?;
        self.mark(self.position, delta)
    }

    fn copy_watched(&mut self) -> Result<()> {
        let blocks = self.watch.take();
        if let Some(map) = &self.map {
            map.mark_all(&blocks)?;
        }
        if blocks.is_empty() {
            return Ok(());
        }
        // A write that the target has and the branch loses with its host would be missed by `changed_since`.
        let result = self.disk.branch.sync().and_then(|_| self.copy_blocks(&blocks));
        if result.is_err() {
            self.watch.put_back(&blocks);
        }
        self.session.context.step("migrate.round-copied");
        result
    }

    fn copy_blocks(&mut self, blocks: &BlockSet) -> Result<()> {
        self.copier.pace.set_rate(self.shared.rate());
        for (extent, ()) in blocks.extents(self.disk.len()).iter() {
            let (unmarked, copied) = (&mut self.unmarked, &self.shared.copied);
            self.copier.copy(extent, false, &mut |done| {
                *unmarked += done.len().get();
                copied.fetch_add(done.len().get(), Ordering::Relaxed);
            })?;
        }
        Ok(())
    }

    fn mark(&mut self, position: ByteOffset, delta: DeltaId) -> Result<()> {
        self.disk.branch.sync()?;
        self.target.flush()?;
        let mark = MigrationEvent::Mark { position: position.get(), delta };
        self.session.record.migration(self.disk.index, mark)?;
        (self.delta, self.marked, self.unmarked) = (delta, Instant::now(), 0);
        self.session.context.step("migrate.marked");
        Ok(())
    }

    /// Puts the target in the disk's place. Guests' writes wait from the last round to the switch.
    fn pivot(&mut self) -> Result<()> {
        let (id, index) = (self.session.id, self.disk.index);
        let storage = &*self.session.context.storage;
        storage.make_dir(&session_dir(id))?;
        storage.sync_dir("sessions")?;
        storage.sync_dir("")?;
        // What differs from the base up to now; what is written from now on passes through the watch.
        let changed = BlockSet::touched(&self.disk.branch.changed_since_fork()?);
        let owner = MapOwner { session: id, disk: index, len: self.disk.len() };
        let map = Arc::new(DirtyMap::create(storage, &map_name(id, index), owner, &changed)?);
        self.map = Some(Arc::clone(&map));
        self.session.context.step("pivot.map-written");
        self.copy_watched()?;
        self.target.flush()?;

        self.copier.pace.set_rate(None);
        let quiesced = self.disk.volume.quiesce();
        self.copy_watched()?;
        self.target.flush()?;
        self.session.context.step("pivot.copied");
        if let Err(error) = self.session.record.migration(index, MigrationEvent::Pivot) {
            // The medium may hold the record all the same: nobody can say which side would count after a restart.
            quiesced.close();
            return Err(
                error.context("recording the pivot; the disk takes no writes until the server is restarted")
            );
        }
        self.session.context.step("pivot.recorded");
        quiesced.switch(Arc::new(PivotedVolume::new(Arc::clone(&self.target), Arc::clone(&map))));
        self.disk.set_map(map);
        drop(quiesced);
        self.shared.left.store(0, Ordering::Relaxed);
        tracing::info!("disk {index} of session {id} is served from its copy now");
        Ok(())
    }
}
