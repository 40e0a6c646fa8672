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
use blocks::{
    ByteLen, ByteOffset, DiskIndex, Error, ErrorKind, Extent, ExtentSet, Result, Volume, monotonic_now,
};
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

/// A migration that runs.
pub(crate) struct Migration {
    shared: Arc<Shared>,
    hands: Hands,
}

/// Who takes its steps.
enum Hands {
    /// A thread of its own.
    Thread(Option<JoinHandle<()>>),
    /// Whoever plays the simulation.
    #[cfg(feature = "simulation")]
    Stepped(Box<Mutex<Stepped>>),
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
        let plan = Plan { index, target, record: record.clone(), new };
        #[cfg(feature = "simulation")]
        if session.context.stepped {
            let stepped = Stepped { session: Arc::downgrade(session), plan, work: None, ended: false };
            return Ok(Migration { shared, hands: Hands::Stepped(Box::new(Mutex::new(stepped))) });
        }
        let (weak, theirs) = (Arc::downgrade(session), Arc::clone(&shared));
        let name = format!("migrate-{index}");
        let run = move || {
            run(&weak, &plan, &theirs);
            theirs.end();
        };
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(run)
            .map_err(|error| Error::io("starting the thread of a migration", error))?;
        Ok(Migration { shared, hands: Hands::Thread(Some(thread)) })
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
        match &mut self.hands {
            Hands::Thread(thread) => {
                if let Some(thread) = thread.take()
                    && thread.thread().id() != std::thread::current().id()
                    && thread.join().is_err()
                {
                    tracing::error!("the thread of a migration has panicked");
                }
            }
            #[cfg(feature = "simulation")]
            Hands::Stepped(stepped) => drop(lock(stepped).work.take()),
        }
    }
}

impl Drop for Migration {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Shared {
    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.wake();
    }

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

/// What is to be copied where.
struct Plan {
    index: DiskIndex,
    target: Target,
    record: MigrationRecord,
    new: bool,
}

/// The body of the thread.
fn run(session: &Weak<LiveSession>, plan: &Plan, shared: &Arc<Shared>) {
    let Some(session) = session.upgrade() else { return };
    let result = Work::open(&session, plan, shared).and_then(|mut work| {
        let result = work.run();
        work.disk.volume.brake(Duration::ZERO);
        result
    });
    if let Err(error) = result {
        give_up(&session, plan, shared, &error);
    }
}

/// Records that a migration came to nothing, unless it was called off.
fn give_up(session: &LiveSession, plan: &Plan, shared: &Shared, error: &Error) {
    let (index, target) = (plan.index, &plan.target);
    if shared.stop.load(Ordering::SeqCst) {
        tracing::debug!("the migration of disk {index} of session {} has stopped: {error}", session.id);
        return;
    }
    tracing::warn!("the migration of disk {index} of session {} to {target} failed: {error}", session.id);
    let failed = MigrationEvent::Fail { detail: error.to_string() };
    if let Err(error) = session.record.migration(index, failed) {
        tracing::error!("that cannot be recorded: {error}");
    }
}

/// A migration whose steps somebody else calls for.
#[cfg(feature = "simulation")]
struct Stepped {
    session: Weak<LiveSession>,
    plan: Plan,
    work: Option<Work>,
    ended: bool,
}

#[cfg(feature = "simulation")]
impl Migration {
    /// Does what the thread would do next, unless this migration has one.
    pub fn step(&self) {
        let Hands::Stepped(stepped) = &self.hands else { return };
        let mut stepped = lock(stepped);
        let Some(session) = stepped.session.upgrade().filter(|_| !stepped.ended) else { return };
        let outcome = match stepped.work.as_mut() {
            Some(work) => work.step(),
            None => Work::open(&session, &stepped.plan, &self.shared).map(|work| {
                stepped.work = Some(work);
                Next::GoOn
            }),
        };
        match outcome {
            Ok(Next::GoOn | Next::Rest(_)) => return,
            Ok(Next::Done) => {}
            Err(error) => give_up(&session, &stepped.plan, &self.shared, &error),
        }
        (stepped.ended, stepped.work) = (true, None);
        self.shared.end();
    }
}

/// What the work goes on with.
struct Work {
    session: Arc<LiveSession>,
    disk: Arc<LiveDisk>,
    target: Arc<dyn Volume>,
    skip_holes: bool,
    watch: Arc<WriteWatch>,
    pace: Pace,
    shared: Arc<Shared>,
    position: ByteOffset,
    delta: DeltaId,
    marked: Instant,
    unmarked: u64,
    rounds: u32,
    brake: Duration,
    map: Option<Arc<DirtyMap>>,
}

/// What comes after a step.
enum Next {
    /// Another one.
    GoOn,
    /// Another one, after a while or when there is news.
    Rest(Duration),
    /// Nothing: the target is the disk.
    Done,
}

impl Work {
    fn open(session: &Arc<LiveSession>, plan: &Plan, shared: &Arc<Shared>) -> Result<Work> {
        let (position, delta) = plan
            .record
            .state()
            .mark()
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the disk was pivoted already"))?;
        let disk = Arc::clone(session.disk(Some(plan.index))?);
        // Before anything is read: what is written from now on is in the watch, the rest in deltas.
        let watch = disk.volume.watch();
        let anew = plan.new || position == 0;
        let target = match anew {
            true => plan.target.begin(disk.len())?,
            false => plan.target.open(disk.len())?,
        };
        if let Some(done) = Extent::between(ByteOffset::ZERO, ByteOffset::new(position)) {
            let changed = disk.branch.changed_since(delta)?;
            let again: ExtentSet = changed.iter().filter_map(|(extent, ())| extent.intersect(done)).collect();
            watch.put_back(&BlockSet::touched(&again));
        }
        shared.copied.store(position, Ordering::Relaxed);
        Ok(Work {
            session: Arc::clone(session),
            disk,
            target,
            // Behind the mark of an earlier attempt lies what it has copied and nobody has noted.
            skip_holes: anew && plan.target.begins_empty(),
            watch,
            pace: Pace::new(shared.rate()),
            shared: Arc::clone(shared),
            position: ByteOffset::new(position),
            delta,
            marked: monotonic_now(),
            unmarked: 0,
            rounds: 0,
            brake: Duration::ZERO,
            map: None,
        })
    }

    fn run(&mut self) -> Result<()> {
        loop {
            match self.step()? {
                Next::GoOn => {}
                Next::Rest(time) => self.shared.wait(time),
                Next::Done => return Ok(()),
            }
        }
    }

    /// A piece of the first pass, or a round. Guests write between any two steps.
    fn step(&mut self) -> Result<Next> {
        if self.shared.stop.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Cancelled, "the migration was called off"));
        }
        match Extent::between(self.position, self.disk.len().end()) {
            Some(rest) => self.pass_on(rest).map(|()| Next::GoOn),
            None => self.catch_up(),
        }
    }

    /// The next piece of the first pass.
    fn pass_on(&mut self, rest: Extent) -> Result<()> {
        let step = self.session.context.mark_bytes.min(ByteLen::new(64 << 20));
        let Some(piece) = rest.split(step).next() else { return Ok(()) };
        self.shared.left.store((rest.len() + self.watch.bytes()).get(), Ordering::Relaxed);
        self.pace.set_rate(self.shared.rate());
        self.copy(piece, self.skip_holes)?;
        self.position = piece.end();
        if self.mark_is_due() {
            self.mark(self.position, self.delta)?;
        }
        Ok(())
    }

    /// A round over what the guest wrote, and the pivot where it is wanted and little is left.
    fn catch_up(&mut self) -> Result<Next> {
        let before = self.watch.bytes();
        self.round()?;
        self.rounds += 1;
        let left = self.watch.bytes();
        self.shared.left.store(left.get(), Ordering::Relaxed);
        let pivot = self.shared.pivot.load(Ordering::SeqCst);
        if left > SHORT {
            if pivot && self.rounds > PATIENT_ROUNDS && left.get() > before.get() / 2 {
                self.brake = (self.brake + BRAKE_STEP).min(BRAKE_MAX);
                self.disk.volume.brake(self.brake);
            }
            return Ok(Next::GoOn);
        }
        if !self.shared.in_step.swap(true, Ordering::SeqCst) {
            self.mark_all_copied()?;
            self.session.record.migration(self.disk.index, MigrationEvent::InStep)?;
            self.session.context.step("migrate.in-step");
            self.shared.wake();
        }
        if pivot {
            return self.pivot().map(|()| Next::Done);
        }
        Ok(Next::Rest(STEP_EVERY))
    }

    fn copy(&mut self, extent: Extent, skip_holes: bool) -> Result<()> {
        let (unmarked, copied) = (&mut self.unmarked, &self.shared.copied);
        let mut copier = Copier {
            source: &*self.disk.branch,
            target: Arc::clone(&self.target),
            pace: &mut self.pace,
            stop: &self.shared.stop,
        };
        copier.copy(extent, skip_holes, &mut |done| {
            *unmarked += done.len().get();
            copied.fetch_add(done.len().get(), Ordering::Relaxed);
        })
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
        let since = monotonic_now().saturating_duration_since(self.marked);
        self.unmarked >= self.session.context.mark_bytes.get() || since >= MARK_EVERY
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
        self.pace.set_rate(self.shared.rate());
        for (extent, ()) in blocks.extents(self.disk.len()).iter() {
            self.copy(extent, false)?;
        }
        Ok(())
    }

    fn mark(&mut self, position: ByteOffset, delta: DeltaId) -> Result<()> {
        self.disk.branch.sync()?;
        self.target.flush()?;
        let mark = MigrationEvent::Mark { position: position.get(), delta };
        self.session.record.migration(self.disk.index, mark)?;
        (self.delta, self.marked, self.unmarked) = (delta, monotonic_now(), 0);
        self.session.context.step("migrate.marked");
        Ok(())
    }

    /// Puts the target in the disk's place. Guests' writes wait from the last round to the switch.
    fn pivot(&mut self) -> Result<()> {
        let (id, index) = (self.session.id, self.disk.index);
        let (context, disk) = (Arc::clone(&self.session.context), Arc::clone(&self.disk));
        let storage = &*context.storage;
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

        self.pace.set_rate(None);
        let quiesced = disk.volume.quiesce();
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
