//! All sessions of a server.

use crate::agent::{Charge, RestoreLink};
use crate::control::api::{CheckpointInfo, FailbackInfo, Progress, SessionInfo};
use crate::session::beginning::Beginning;
use crate::session::context::{Context, SessionsOptions};
use crate::session::failback::{self, FailbackOptions};
use crate::session::info::{checkpoint_info, parked_words, session_info};
use crate::session::live::{LiveSession, session_dir};
use crate::session::migrate::{Migration, MigrationProgress, Target};
use crate::session::pull;
use crate::session::record::{
    MigrationEvent, MigrationRecord, MigrationState, MomentRecord, SessionEvent, SessionRecord, SessionState,
};
use crate::session::volume::lock;
use blocks::{
    DiskIndex, Error, ErrorKind, Generation, Id, MachineId, Result, SessionId, Volume, WallClock,
    monotonic_now,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use store::{BranchId, BranchKind, Checkpoint, Store, Unit};

/// How long a disk must be flushed and idle before it is durably noted that nothing waits for a flush.
const MARK_IDLE: Duration = Duration::from_secs(30);
/// How often waiting calls look at what they wait for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Every session of a server. Methods block; call them where that is allowed (`spawn_blocking`), never on a task.
/// Dropping it ends the exports and stops background work; sessions go on at the next [`Sessions::open`].
pub struct Sessions {
    store: Arc<Store>,
    context: Arc<Context>,
    live: Mutex<BTreeMap<SessionId, Arc<LiveSession>>>,
    /// Held while a session begins or ends, so that no two take charge of a machine.
    turn: Mutex<()>,
    closing: Arc<AtomicBool>,
}

/// What is wanted of a migration; see [`crate::control::api::Request::Migrate`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigrateOptions {
    /// Which disk; may be missing where there is one.
    pub disk: Option<DiskIndex>,
    /// An absolute path or an NBD URI; missing where only a pivot of the running copy is wanted.
    pub to: Option<String>,
    /// A format's name (`store::ImageFormat`); raw where it is missing.
    pub format: Option<String>,
    /// Bytes a second at most.
    pub rate: Option<u64>,
    /// Switch to the copy as soon as it is in step.
    pub pivot: bool,
}

impl Sessions {
    /// Resumes every session of the store: exports under the same names, migrations from their last marks. A session
    /// whose disks cannot be opened is held, and the others are not affected.
    pub fn open(store: Arc<Store>, options: SessionsOptions) -> Result<Arc<Sessions>> {
        let sessions = Sessions::open_in(store, Context::new(options))?;
        sessions.watch_marks()?;
        Ok(sessions)
    }

    /// The same without the thread that calls [`Sessions::settle_marks`] now and then.
    pub(crate) fn open_in(store: Arc<Store>, context: Context) -> Result<Arc<Sessions>> {
        let sessions = Arc::new(Sessions {
            store,
            context: Arc::new(context),
            live: Mutex::default(),
            turn: Mutex::default(),
            closing: Arc::default(),
        });
        for unit in sessions.store.units() {
            // One machine's trouble is not the others'.
            if let Err(error) = sessions.resume_unit(&unit) {
                tracing::error!("not every session of {} can be resumed: {error}", unit.name());
            }
        }
        Ok(sessions)
    }

    fn resume_unit(&self, unit: &Arc<Unit>) -> Result<()> {
        let records = SessionRecord::load_all(unit)?;
        for branch in unit.branches() {
            // A fork whose record did not make it: nobody was told of the session.
            if let BranchKind::Session(id) = branch.kind
                && !records.iter().any(|(known, _)| *known == id)
            {
                tracing::warn!("session {id} of {} was never begun; its branch goes", unit.name());
                unit.drop_branch(branch.id)?;
            }
        }
        for (id, record) in records {
            let session = self.resume(id, unit, record)?;
            lock(&self.live).insert(id, session);
        }
        Ok(())
    }

    fn resume(&self, id: SessionId, unit: &Arc<Unit>, mut record: SessionRecord) -> Result<Arc<LiveSession>> {
        if let SessionState::Adopting { .. } = record.state() {
            match failback::adoption(unit, &record)? {
                Some(superseded) => record.apply(SessionEvent::Adopted { superseded })?,
                None => record.apply(SessionEvent::Undo)?,
            }
            record.save(unit)?;
        }
        let takes_charge = !record.drill && record.state() == SessionState::Running;
        while takes_charge && unit.generation() < record.generation() {
            unit.promote()?;
        }
        let session = Arc::new(LiveSession::open(id, Arc::clone(unit), Arc::clone(&self.context), record));
        if session.held().is_none()
            && let Err(error) = self.start(&session)
        {
            session.hold(error.to_string());
        }
        if let Some(why) = session.held() {
            tracing::error!("session {id} of {} is not served: {why}", unit.name());
        }
        Ok(session)
    }

    /// Serves a session's disks and lets its migrations go on.
    fn start(&self, session: &Arc<LiveSession>) -> Result<()> {
        let record = session.record.get();
        if record.state() != SessionState::Running {
            return Ok(());
        }
        session.serve()?;
        session.start_migrations()
    }

    /// Begins a session: a branch at the checkpoint or the moment, served. Unless it is a drill, it takes charge of the machine: the
    /// unit's generation rises, and the old primary is fenced. A session that is in charge already and began at the
    /// same place is returned as it is. Reads indexes, and the writes behind the checkpoint of a moment; no other data.
    pub fn recover(
        &self,
        unit: &Arc<Unit>,
        beginning: impl Into<Beginning>,
        drill: bool,
    ) -> Result<SessionInfo> {
        let begun = monotonic_now();
        let beginning = beginning.into();
        let checkpoint = beginning.base();
        let base = unit.checkpoint(checkpoint).ok_or_else(|| {
            let context = format!("{} has no checkpoint {checkpoint}", unit.name());
            Error::new(ErrorKind::NotFound, context)
        })?;
        let id = new_session()?;
        // Taking the writes of a moment over may take a while, in which other machines have their turn.
        let forked = match &beginning {
            Beginning::Moment { moment, .. } => Some(unit.fork_at(moment, BranchKind::Session(id))?),
            Beginning::Checkpoint(_) => None,
        };
        let _turn = lock(&self.turn);
        let Some(same) = self.same_in_charge(unit, &beginning, drill).transpose() else {
            return self.begin(unit, (&base, beginning.record()), (id, forked), drill, begun);
        };
        forked.map_or(Ok(()), |branch| unit.drop_branch(branch))?;
        same
    }

    /// The session that is in charge already, where it began there: the command is repeated, perhaps because its answer was
    /// lost. `Busy` where it began elsewhere.
    fn same_in_charge(&self, unit: &Unit, beginning: &Beginning, drill: bool) -> Result<Option<SessionInfo>> {
        let Some(other) = self.session_in_charge(unit.machine()).filter(|_| !drill) else { return Ok(None) };
        let session = self.find(&other.to_string())?;
        let record = session.record.get();
        if record.base() == beginning.base() && record.moment == beginning.record() {
            return session_info(&session).map(Some);
        }
        let context =
            format!("session {other} is in charge of {} already: stop it, or run a drill", unit.name());
        Err(Error::new(ErrorKind::Busy, context))
    }

    /// Begins a session on a branch that was forked for it, or is now. The turn is ours.
    fn begin(
        &self,
        unit: &Arc<Unit>,
        (base, moment): (&Checkpoint, Option<MomentRecord>),
        (id, forked): (SessionId, Option<BranchId>),
        drill: bool,
        begun: Instant,
    ) -> Result<SessionInfo> {
        let branch = forked.map_or_else(|| unit.fork(base.id, BranchKind::Session(id)), Ok)?;
        self.context.step("recover.forked");
        let generation = if drill { unit.generation() } else { Generation(unit.generation().0 + 1) };
        let disks = unit.disks().len();
        let mut record = SessionRecord::begin(id, unit.machine(), base.id, branch, generation, drill, disks);
        let as_of = moment.as_ref().map_or(base.server_time.0, |moment| moment.time_us / 1000);
        record.rpo_ms = WallClock::now().0.saturating_sub(as_of);
        record.moment = moment;
        record.save(unit)?;
        self.context.step("recover.recorded");
        if !drill {
            unit.promote()?;
            self.context.step("recover.promoted");
        }
        let session = Arc::new(LiveSession::open(id, Arc::clone(unit), Arc::clone(&self.context), record));
        lock(&self.live).insert(id, Arc::clone(&session));
        if session.held().is_none()
            && let Err(error) = session.serve()
        {
            session.hold(error.to_string());
        }
        if let Some(why) = session.held() {
            return Err(Error::new(
                ErrorKind::Io,
                format!("session {id} is in charge and cannot be served: {why}"),
            ));
        }
        let rto_ms = pull::millis_since(begun);
        session.record.update(|record| {
            record.rto_ms = rto_ms;
            Ok(())
        })?;
        session_info(&session)
    }

    /// The session that is in charge, if it began with a moment that was asked for in these words.
    pub(crate) fn moment_in_charge(&self, unit: &Unit, asked: &str) -> Result<Option<SessionInfo>> {
        let Some(session) = self.session_in_charge(unit.machine()) else { return Ok(None) };
        let session = self.find(&session.to_string())?;
        let moment = session.record.get().moment;
        let is_it = moment.is_some_and(|moment| moment.asked == asked.trim());
        is_it.then(|| session_info(&session)).transpose()
    }

    /// Every session, ended ones that are still remembered included.
    pub fn list(&self) -> Result<Vec<SessionInfo>> {
        let all: Vec<_> = lock(&self.live).values().cloned().collect();
        all.iter().map(|session| session_info(session)).collect()
    }

    /// The identity of every session, and whether its disks are served.
    pub(crate) fn served(&self) -> Vec<(SessionId, bool)> {
        let all: Vec<_> = lock(&self.live).values().cloned().collect();
        let is_served = |session: &LiveSession| {
            session.record.get().state() == SessionState::Running && session.held().is_none()
        };
        all.iter().map(|session| (session.id, is_served(session))).collect()
    }

    /// The session of that identity, or whose identity begins so and no other's does.
    pub fn get(&self, session: &str) -> Result<SessionInfo> {
        session_info(&*self.find(session)?)
    }

    /// The unit that a session belongs to, and the session's whole identity.
    pub fn unit_of(&self, session: &str) -> Result<(SessionId, Arc<Unit>)> {
        let session = self.find(session)?;
        Ok((session.id, Arc::clone(&session.unit)))
    }

    /// A disk of a session as it is now, for reading; writes by guests go on meanwhile.
    pub fn volume(&self, session: &str, disk: Option<DiskIndex>) -> Result<Arc<dyn Volume>> {
        let session = self.find(session)?;
        Ok(Arc::clone(&session.disk(disk)?.volume) as Arc<dyn Volume>)
    }

    pub(crate) fn find(&self, wanted: &str) -> Result<Arc<LiveSession>> {
        let wanted = wanted.to_ascii_lowercase();
        let live = lock(&self.live);
        let mut found =
            live.iter().filter(|(id, _)| !wanted.is_empty() && id.to_string().starts_with(&wanted));
        match (found.next(), found.next()) {
            (Some((_, session)), None) => Ok(Arc::clone(session)),
            (None, _) => Err(Error::new(ErrorKind::NotFound, format!("there is no session '{wanted}'"))),
            (Some(_), Some(_)) => {
                let context = format!("more than one session begins with '{wanted}'");
                Err(Error::new(ErrorKind::InvalidInput, context))
            }
        }
    }

    /// Ends a session: its clients are disconnected once their requests are answered, its migrations stop, and the
    /// machine may be the source again. What the guest wrote stays as a branch, or goes with `discard`; of a session
    /// that has ended already, the branch and the record go with `discard`. A pivoted disk's target is left as it is.
    pub fn stop(&self, session: &str, discard: bool) -> Result<SessionInfo> {
        let session = self.find(session)?;
        let _turn = lock(&self.turn);
        let occupied = session.occupy()?;
        if session.record.get().state() == SessionState::Running {
            drop(session.unpark());
            session.withdraw();
            session.stop_migrations();
            for disk in &session.disks {
                disk.volume.close(true);
                disk.volume.flush()?;
            }
            session.record.update(|record| {
                record.disks.iter_mut().for_each(|disk| disk.unflushed_boot = None);
                record.apply(SessionEvent::Stop)
            })?;
            self.context.step("stop.recorded");
        }
        let record = session.record.get();
        match record.state() {
            SessionState::Stopped | SessionState::Home { .. } => {}
            state => {
                let context =
                    format!("session {} is on its way home ({state:?}); repeat the failback", session.id);
                return Err(Error::new(ErrorKind::Busy, context));
            }
        }
        let info = session_info(&session)?;
        let id = session.id;
        lock(&self.live).remove(&id);
        drop(occupied);
        drop(session);
        let unit = self.unit(&info)?;
        let discarded = if discard { Some(self.discard(&unit, id, &record)) } else { None };
        if !matches!(discarded, Some(Ok(()))) {
            // Also where it could not be discarded: it is remembered, and the call can be repeated.
            let ended = LiveSession::open(id, unit, Arc::clone(&self.context), record);
            lock(&self.live).insert(id, Arc::new(ended));
        }
        discarded.unwrap_or(Ok(())).map(|()| info)
    }

    /// Removes what a session that has ended has left. The record goes last, so that repeating it goes on.
    fn discard(&self, unit: &Unit, id: SessionId, record: &SessionRecord) -> Result<()> {
        let is_kept = unit.branches().iter().any(|branch| branch.id == record.branch());
        if is_kept && record.state() == SessionState::Stopped {
            unit.drop_branch(record.branch())?;
        }
        self.context.storage.remove_dir(&session_dir(id))?;
        record.forget(unit)
    }

    fn unit(&self, info: &SessionInfo) -> Result<Arc<Unit>> {
        let gone = || Error::new(ErrorKind::NotFound, format!("there is no machine {}", info.machine));
        self.store.unit(info.machine.parse()?).ok_or_else(gone)
    }

    /// The guest of a held session was restarted after the server's host was: serve its disks again.
    pub fn guest_restarted(&self, session: &str) -> Result<SessionInfo> {
        let session = self.find(session)?;
        let _turn = lock(&self.turn);
        if session.held().is_none() {
            return session_info(&session);
        }
        session.release()?;
        let (id, unit, record) = (session.id, Arc::clone(&session.unit), session.record.get());
        lock(&self.live).remove(&id);
        drop(session);
        let session = self.resume(id, &unit, record)?;
        lock(&self.live).insert(id, Arc::clone(&session));
        match session.held() {
            Some(why) => Err(Error::new(ErrorKind::Busy, why)),
            None => session_info(&session),
        }
    }

    /// Seals a crash-consistent checkpoint on a session's branch. Writers wait for it a short while.
    pub fn checkpoint(&self, session: &str, name: &str) -> Result<CheckpointInfo> {
        let session = self.find(session)?;
        let _occupied = session.occupy()?;
        self.running(&session)?;
        let id = pull::seal_session(&session, name)?;
        let missing = || Error::new(ErrorKind::NotFound, format!("checkpoint {id} is gone"));
        let checkpoint = session.unit.checkpoint(id).ok_or_else(missing)?;
        Ok(checkpoint_info(&checkpoint, format!("session {}", session.id)))
    }

    fn running(&self, session: &LiveSession) -> Result<()> {
        match (session.record.get().state(), session.held()) {
            (SessionState::Running, None) => Ok(()),
            (SessionState::Running, Some(why)) => Err(Error::new(ErrorKind::Busy, why)),
            (state, _) => {
                let context = format!("session {} does not run any more: {state}", session.id);
                Err(Error::new(ErrorKind::InvalidInput, context))
            }
        }
    }

    /// Begins to copy a disk elsewhere, or changes what is wanted of the copy that runs. Returns at once.
    pub fn migrate(&self, session: &str, options: &MigrateOptions) -> Result<SessionInfo> {
        let session = self.find(session)?;
        let _turn = lock(&self.turn);
        let _occupied = session.occupy()?;
        self.running(&session)?;
        let disk = session.disk(options.disk)?;
        let before = session.record.get().disk(disk.index)?.migration.clone();
        let record = plan(before.as_ref(), disk, options)?;
        let is_new = match record {
            Plan::Begin(ref target) => {
                target.check_new(disk.len())?;
                true
            }
            Plan::Retry | Plan::GoOn => false,
        };
        let mut migration = match (record, before) {
            (Plan::Begin(target), _) => {
                let to = target.to_string();
                MigrationRecord::begin(to, target.format().to_string(), disk.branch.seal_part()?)
            }
            (Plan::Retry, Some(mut before)) => {
                before.apply(MigrationEvent::Retry)?;
                before
            }
            (_, Some(before)) => before,
            (_, None) => return Err(Error::new(ErrorKind::InvalidInput, "say where to with --to")),
        };
        migration.pivot = options.pivot || (migration.pivot && options.to.is_none());
        migration.rate = options.rate.or(migration.rate);
        let wanted = migration.clone();
        session.record.update(|record| {
            record.disk_mut(disk.index)?.migration = Some(migration);
            Ok(())
        })?;
        self.context.step("migrate.recorded");
        let runs = disk.with_migration(|running| {
            let runs = !is_new && !running.progress().ended;
            if runs {
                running.set(wanted.pivot, wanted.rate);
            }
            runs
        });
        if runs != Some(true) && *wanted.state() != MigrationState::Pivoted {
            session.start_migration(disk, &wanted, is_new)?;
        }
        session_info(&session)
    }

    /// Waits until a disk's copy is in step, or with `pivot` until it is the disk. `progress` returns whether to wait
    /// on; the migration goes on either way. An error where it failed.
    pub fn wait_migration(
        &self,
        session: &str,
        disk: Option<DiskIndex>,
        pivot: bool,
        progress: &dyn Fn(Progress) -> bool,
    ) -> Result<SessionInfo> {
        let session = self.find(session)?;
        let index = session.disk(disk)?.index;
        loop {
            let record = session.record.get();
            let migration = record.disk(index)?.migration.clone();
            let state = migration.map(|migration| migration.state().clone());
            let running = session.disk(Some(index))?.with_migration(Migration::progress).unwrap_or_default();
            match state {
                Some(MigrationState::Pivoted) if running.ended || running == MigrationProgress::default() => {
                    return session_info(&session);
                }
                Some(MigrationState::InStep { .. }) if !pivot && running.in_step => {
                    return session_info(&session);
                }
                Some(MigrationState::Failed { detail, .. }) => return Err(Error::new(ErrorKind::Io, detail)),
                None => {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        format!("disk {index} is not being migrated"),
                    ));
                }
                _ => {}
            }
            let copied = running.copied.get();
            let step = format!("copying disk {index}");
            if !progress(Progress { step, done: copied, total: copied + running.left.get() }) {
                return session_info(&session);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Brings the machine's disks to the session's state over a link to its agent; see [`FailbackOptions`].
    /// `progress` returns whether to go on. Without cutover the failback is in step at the end and waits, the agent still
    /// holding the targets: the next call onto the same devices sends only what was written since, and counts on. `link` is
    /// called where none waits. After an error the session goes on serving, and repeating the call goes on
    /// where this one stopped, unless the machine was already given charge: then repeating it is the only way. A cutover
    /// of a session that is home already succeeds and does nothing.
    pub fn failback(
        &self,
        session: &str,
        link: impl FnOnce() -> Result<RestoreLink>,
        options: &FailbackOptions,
        progress: &dyn Fn(Progress) -> bool,
    ) -> Result<FailbackInfo> {
        let session = self.find(session)?;
        if let SessionState::Home { checkpoint } = session.record.get().state()
            && options.cutover
            && options.machine == session.unit.machine()
        {
            return Ok(already_home(&session, checkpoint));
        }
        let occupied = session.occupy()?;
        let info = failback::run(&self.store, &session, link, options, progress);
        drop(occupied);
        if session.record.get().state() != SessionState::Running {
            session.stop_migrations();
            let (id, unit, record) = (session.id, Arc::clone(&session.unit), session.record.get());
            let ended = LiveSession::open(id, unit, Arc::clone(&self.context), record);
            lock(&self.live).insert(id, Arc::new(ended));
        }
        info
    }

    /// A failback onto this machine that is in step and waits for the next call, in words for an administrator.
    pub fn parked_failback(&self, machine: MachineId) -> Option<String> {
        let live: Vec<_> = lock(&self.live).values().cloned().collect();
        live.iter()
            .filter(|session| session.unit.machine() == machine)
            .find_map(|session| parked_words(session))
    }

    /// A machine's sessions whose disks are served.
    pub(crate) fn with_disks(&self, machine: MachineId) -> Vec<Arc<LiveSession>> {
        let of_machine = |session: &&Arc<LiveSession>| {
            session.unit.machine() == machine && !session.disks.is_empty() && session.held().is_none()
        };
        lock(&self.live).values().filter(of_machine).cloned().collect()
    }

    /// What the exports of a machine's sessions are called.
    pub fn export_names(&self, machine: MachineId) -> Vec<String> {
        let live: Vec<_> = lock(&self.live).values().cloned().collect();
        live.iter()
            .filter(|session| session.unit.machine() == machine)
            .flat_map(|session| session.disks.iter().map(|disk| session.export_name(disk.index)))
            .collect()
    }

    /// Takes marks of unflushed writes away where disks have come to rest.
    fn watch_marks(self: &Arc<Self>) -> Result<()> {
        let (weak, closing) = (Arc::downgrade(self), Arc::clone(&self.closing));
        let watch = move || {
            while !closing.load(Ordering::SeqCst) {
                std::thread::park_timeout(MARK_IDLE / 3);
                let Some(sessions) = weak.upgrade() else { return };
                sessions.settle_marks(MARK_IDLE);
            }
        };
        let thread = std::thread::Builder::new().name("sessions".into()).spawn(watch);
        thread.map(drop).map_err(|error| Error::io("starting the thread that watches sessions", error))
    }

    pub(crate) fn settle_marks(&self, idle: Duration) {
        let all: Vec<_> = lock(&self.live).values().cloned().collect();
        for session in all {
            // Only to let go of one whose agent is gone.
            session.parked_since();
            for disk in &session.disks {
                if let Err(error) = disk.volume.settle_mark(idle) {
                    tracing::warn!("disk {} of session {}: {error}", disk.index, session.id);
                }
            }
        }
    }
}

/// What [`Sessions::migrate`] comes to.
enum Plan {
    Begin(Target),
    Retry,
    GoOn,
}

fn plan(
    before: Option<&MigrationRecord>,
    disk: &crate::session::live::LiveDisk,
    options: &MigrateOptions,
) -> Result<Plan> {
    let target = options.to.as_ref().map(|to| Target::parse(to, options.format.as_deref())).transpose()?;
    let same = |record: &MigrationRecord, target: &Target| {
        target.to_string() == record.to && target.format().to_string() == record.format
    };
    let Some(record) = before else {
        let missing = || Error::new(ErrorKind::InvalidInput, "say where the disk shall be copied to");
        return Ok(Plan::Begin(target.ok_or_else(missing)?));
    };
    match (record.state(), target) {
        (MigrationState::Pivoted, None) => Ok(Plan::GoOn),
        (MigrationState::Pivoted, Some(target)) if same(record, &target) => Ok(Plan::GoOn),
        (MigrationState::Pivoted, Some(_)) => {
            let context = format!("disk {} was pivoted to {} already", disk.index, record.to);
            Err(Error::new(ErrorKind::Unsupported, context))
        }
        (MigrationState::Failed { .. }, Some(target)) if !same(record, &target) => Ok(Plan::Begin(target)),
        (MigrationState::Failed { .. }, _) => Ok(Plan::Retry),
        (_, Some(target)) if !same(record, &target) => {
            let context = format!("disk {} is being copied to {} already", disk.index, record.to);
            Err(Error::new(ErrorKind::Busy, context))
        }
        _ => Ok(Plan::GoOn),
    }
}

fn new_session() -> Result<SessionId> {
    let bytes = blocks::random_bytes(rand::random);
    let zero = || Error::new(ErrorKind::Io, "the random numbers are all zero");
    Id::from_bytes(bytes).map(SessionId).ok_or_else(zero)
}

/// What repeating the last call of a failback comes to once everything is done.
fn already_home(session: &LiveSession, checkpoint: u64) -> FailbackInfo {
    FailbackInfo {
        session: session.id.to_string(),
        machine: session.unit.name(),
        state: "home".into(),
        disks: Vec::new(),
        downtime_ms: 0,
        checkpoint: Some(checkpoint),
    }
}

impl Charge for Sessions {
    fn session_in_charge(&self, machine: MachineId) -> Option<SessionId> {
        let live = lock(&self.live);
        let in_charge = |session: &&Arc<LiveSession>| {
            let record = session.record.get();
            session.unit.machine() == machine && !record.drill && record.state().has_disks()
        };
        live.values().find(in_charge).map(|session| session.id)
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        for session in lock(&self.live).values() {
            session.withdraw();
            session.stop_migrations();
        }
    }
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("sessions", &lock(&self.live).len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "manager_tests.rs"]
mod tests;
