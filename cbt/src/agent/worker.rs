//! The thread that owns the disks.

use super::config::{AgentConfig, SendMode};
use super::orders::ends_agent;
use super::state::State;
use super::trouble::Trouble;
use super::verify::Verify;
use super::vitals::{DiskVitals, Vitals};
use crate::barrier::{self, Outcome, excluded, while_frozen};
use crate::copy::{Manner, Phase, Receiver, Replica};
use crate::hooks::Hooks;
use crate::link::Link;
use crate::mounts::superblocks;
use crate::restore::Restore;
use crate::tap::Order;
use crate::tracker::Trust;
use crate::watchdog::Watchdog;
use blocks::{ByteLen, Error, ErrorKind, Result, WallClock};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{
    AgentMessage, Continuity, DiskHello, DiskWelcome, GapReport, Role, ServerMessage, StartFrom, Welcome,
};

/// How long the worker rests when nothing was marked.
const IDLE_WAIT: Duration = Duration::from_millis(100);
/// A pass that found less than this is followed by a rest, so that a block written all the time is not sent all the
/// time.
const BUSY_BYTES: u64 = 4 << 20;
/// How often the tracker's word is asked for.
const TRUST_EVERY: Duration = Duration::from_secs(1);
/// How long a disk that could not be read or frozen is left alone.
const RETRY_WAIT: Duration = Duration::from_secs(2);
/// How many requested checkpoints wait for the first copy to be through.
const REQUESTS_MAX: usize = 16;

/// How the work on one connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The connection is gone, or a stop was asked for.
    Gone,
    /// A failback has ended, and nothing else was wanted.
    Restored,
    /// The server has to be told anew what the disks are, and why.
    Changed(String),
    /// The agent cannot go on.
    Final(Error),
}

/// A checkpoint somebody asked for.
#[derive(Debug)]
pub(super) struct Request {
    pub number: u64,
    pub name: String,
    pub verify: bool,
}

/// Everything that outlives a connection.
pub(super) struct Worker {
    pub config: Arc<AgentConfig>,
    pub replicas: Vec<Replica>,
    pub watchdog: Option<Watchdog>,
    pub state: State,
    pub vitals: Arc<Vitals>,
    pub inside_session: bool,
    /// A failback has ended.
    pub restored: bool,
    pub hooks: Hooks,
    /// The order of the machine's writes, where its disks are tapped.
    pub order: Option<Arc<Order>>,
    /// When regions were last taken off the activity logs.
    pub rested: Instant,
    /// Set by each welcome.
    pub was_connected: bool,
    /// A target of the failback that has just ended is longer than what it was given.
    pub came_home_longer: Option<String>,
    next_request: u64,
    trouble: Trouble,
    watchdog_trouble: Trouble,
    pub(super) tap_trouble: Trouble,
}

/// What lives as long as one connection.
pub(super) struct Session {
    pub link: Link,
    pub receiver: Receiver,
    pub source: bool,
    pub held_by_server: bool,
    pub restore: Option<Restore>,
    pub requests: VecDeque<Request>,
    pub verify: Option<Verify>,
    pub next_checkpoint: Option<Instant>,
    next_pass: Instant,
    next_trust: Instant,
    retry_at: Instant,
    pub gap_since: Option<WallClock>,
    /// Which loss of the order of writes the server was told of.
    pub fall_reported: Option<WallClock>,
}

impl Worker {
    pub fn new(
        config: Arc<AgentConfig>,
        (replicas, order): (Vec<Replica>, Option<Arc<Order>>),
        state: State,
        vitals: Arc<Vitals>,
    ) -> Worker {
        let inside_session = crate::session::own_session().is_some();
        let hooks = Hooks::new(&config.hooks_dir, &config.run_dir, config.hook_timeout);
        hooks.recover();
        Worker {
            hooks,
            order,
            rested: Instant::now(),
            config,
            replicas,
            watchdog: None,
            state,
            vitals,
            inside_session,
            restored: false,
            was_connected: false,
            came_home_longer: None,
            next_request: 1,
            trouble: Trouble::default(),
            watchdog_trouble: Trouble::default(),
            tap_trouble: Trouble::default(),
        }
    }

    /// What the agent can show of each disk.
    pub fn describe(&self) -> Vec<DiskHello> {
        let describe = |replica: &Replica| DiskHello {
            device: replica.disk.path().display().to_string(),
            serial: replica.disk.serial(),
            len: replica.disk.len(),
            tracker: replica.tracker.kind().to_string(),
            continuity: continuity(replica),
        };
        self.replicas.iter().map(describe).collect()
    }

    /// Works until the connection ends.
    pub fn work(&mut self, link: Link, welcome: &Welcome) -> End {
        let receiver =
            Receiver { store: welcome.store, machine: welcome.machine, generation: welcome.generation };
        let now = Instant::now();
        let mut session = Session {
            link,
            receiver,
            source: welcome.role == Role::Source && !self.inside_session,
            held_by_server: false,
            restore: None,
            requests: VecDeque::new(),
            verify: None,
            next_checkpoint: None,
            next_pass: now,
            next_trust: now,
            retry_at: now,
            gap_since: None,
            fall_reported: None,
        };
        let begun = self.begin(&session, &welcome.disks);
        let ended = begun.and_then(|()| {
            while !(self.restored && self.config.restore_only) {
                if let Some(reason) = self.other_sizes(&session) {
                    return Ok(End::Changed(reason));
                }
                self.turn(&mut session)?;
            }
            Ok(End::Restored)
        });
        if let Some(order) = &self.order {
            order.disconnected(self.replicas.iter().any(|replica| !replica.takings.is_empty()));
        }
        for replica in &mut self.replicas {
            if let Err(error) = replica.disconnect() {
                tracing::warn!("{}: {error}", replica.disk.path().display());
            }
        }
        match ended {
            Ok(end) => end,
            Err(error) if error.kind() == ErrorKind::Cancelled => End::Gone,
            Err(error) => End::Final(error),
        }
    }

    fn begin(&mut self, session: &Session, disks: &[DiskWelcome]) -> Result<()> {
        self.note_vitals();
        if !session.source {
            return Ok(());
        }
        for (replica, welcome) in self.replicas.iter_mut().zip(disks) {
            let known = continuity(replica);
            replica.connect(session.receiver, welcome.durable);
            let device = replica.disk.path().display();
            match how_to_start(&known, welcome, session.receiver) {
                Start::Tracking => replica.phase = Phase::Tracking,
                Start::Initial(manner) => {
                    tracing::info!("{device}: going through the whole disk ({manner:?})");
                    // Begun in the first turn, where a disk that is never idle can be frozen for it.
                    replica.phase = Phase::Idle;
                    replica.wanted = Some(manner);
                }
            }
        }
        if let Some(order) = self.order.clone() {
            self.begin_tapped(session, &order, disks);
        }
        Ok(())
    }

    /// One round: orders first, then whatever is due. `Cancelled` ends the connection, anything else the agent.
    fn turn(&mut self, session: &mut Session) -> Result<()> {
        session.link.check()?;
        let mut busy = false;
        while let Some(order) = session.link.next_order(Duration::ZERO)? {
            self.obey_or_stumble(session, order)?;
            busy = true;
        }
        if session.source && !session.held_by_server && Instant::now() >= session.retry_at {
            match self.replicate(session) {
                Ok(worked) => {
                    self.trouble.is_over();
                    busy |= worked;
                }
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                Err(error) => self.stumble(session, &error)?,
            }
        }
        self.note_vitals();
        if !busy && let Some(order) = session.link.next_order(IDLE_WAIT)? {
            self.obey_or_stumble(session, order)?;
        }
        Ok(())
    }

    fn obey_or_stumble(&mut self, session: &mut Session, order: ServerMessage) -> Result<()> {
        match self.obey(session, order) {
            Err(error) if error.kind() != ErrorKind::Cancelled && !ends_agent(&error) => {
                self.stumble(session, &error)
            }
            other => other,
        }
    }

    /// A disk could not be read, or its tracker not asked: said, and tried again later.
    fn stumble(&mut self, session: &mut Session, error: &Error) -> Result<()> {
        self.trouble.say(format!("replication stands still: {error}; trying again"));
        session.retry_at = Instant::now() + RETRY_WAIT;
        self.report_gap(session, error.to_string())
    }

    /// Whether there was something to do.
    fn replicate(&mut self, session: &mut Session) -> Result<bool> {
        let mut busy = self.check_trust(session)?;
        for position in 0..self.replicas.len() {
            busy |= self.initial(session, position)?;
        }
        if !self.replicas.iter().all(Replica::is_tracking) {
            for replica in self.replicas.iter_mut().filter(|replica| replica.is_tracking()) {
                replica.take_acks(&session.link)?;
                busy |= !replica.copy_marked(&session.link)?.is_zero();
            }
            return Ok(busy);
        }
        if let Some(verify) = session.verify.as_mut().filter(|verify| verify.sealed) {
            busy = true;
            if !verify.step(&mut self.replicas, &session.link)? {
                session.verify = None;
            }
        }
        if let Some(order) = self.order.clone() {
            return Ok(self.replicate_tapped(session, &order)? || busy);
        }
        if let Some(request) = self.due_request(session) {
            self.checkpoint(session, request)?;
            return Ok(true);
        }
        Ok(self.pass(session)? || busy)
    }

    fn initial(&mut self, session: &mut Session, position: usize) -> Result<bool> {
        let replica = &mut self.replicas[position];
        if let Some(manner) = replica.wanted {
            let begun = match replica.begin_initial(manner) {
                Err(error) if error.kind() == ErrorKind::Busy => self.begin_frozen(position, manner),
                other => other,
            };
            begun?;
            self.replicas[position].wanted = None;
            return Ok(true);
        }
        match replica.step_initial(&session.link) {
            Ok(worked) => {
                if worked && replica.is_tracking() {
                    say_through(replica);
                    replica.only = None;
                }
                Ok(worked)
            }
            Err(error) if error.kind() == ErrorKind::Busy => {
                tracing::warn!("{}: the pass was voided ({error})", replica.disk.path().display());
                replica.phase = Phase::Idle;
                replica.wanted = Some(Manner::Compare);
                replica.only = None;
                let reason = error.to_string();
                self.report_gap(session, reason).map(|()| true)
            }
            Err(error) => Err(error),
        }
    }

    fn begin_frozen(&mut self, position: usize, manner: Manner) -> Result<()> {
        self.ensure_watchdog();
        let budget = self.config.barrier.budget;
        let replica = &mut self.replicas[position];
        while_frozen(replica, &mut self.watchdog, budget, |replica| replica.begin_initial(manner))
            .map_err(|error| Error::with_source(ErrorKind::Busy, "no quiet instant to begin at", error))
    }

    /// A tracker that is no longer trusted means a pass over the whole disk.
    fn check_trust(&mut self, session: &mut Session) -> Result<bool> {
        if Instant::now() < session.next_trust {
            return Ok(false);
        }
        session.next_trust = Instant::now() + TRUST_EVERY;
        let mut lost = None;
        for replica in
            self.replicas.iter_mut().filter(|replica| replica.is_tracking() && !replica.is_scanned())
        {
            if let Trust::Untrusted { reason } = replica.tracker.trust() {
                let device = replica.disk.path().display();
                tracing::warn!("{device}: the tracker is not trusted any more ({reason}); scanning");
                lost = Some(format!("{device}: {reason}"));
                replica.phase = Phase::Idle;
                replica.wanted = Some(Manner::Compare);
                replica.only = None;
            }
        }
        match lost {
            Some(reason) => {
                if let Some(order) = &self.order {
                    self.abandon_order(order, &reason);
                }
                self.report_gap(session, reason).map(|()| true)
            }
            None => Ok(false),
        }
    }

    pub fn new_request(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request - 1
    }

    pub fn due_request(&mut self, session: &mut Session) -> Option<Request> {
        if let Some(request) = session.requests.pop_front() {
            return Some(request);
        }
        if session.next_checkpoint.is_some_and(|due| Instant::now() < due) {
            return None;
        }
        let number = self.new_request();
        Some(Request { number, name: String::new(), verify: false })
    }

    /// Remembers a checkpoint that somebody asked for until it can be taken.
    pub fn request(&mut self, session: &mut Session, request: Request) -> Result<()> {
        let refuse = |reason: String| AgentMessage::CheckpointFailed { request: request.number, reason };
        if !session.source {
            return session
                .link
                .send(refuse("this machine is not the source: a stand-in was promoted".into()));
        }
        if session.requests.len() >= REQUESTS_MAX {
            return session.link.send(refuse("too many checkpoints are waiting for the first copy".into()));
        }
        session.requests.push_back(request);
        Ok(())
    }

    fn checkpoint(&mut self, session: &mut Session, request: Request) -> Result<()> {
        let asked = request.number >> 63 == 1;
        session.next_checkpoint = Some(Instant::now() + self.config.checkpoint_every);
        self.ensure_watchdog();
        let began = WallClock::now();
        let outcome = barrier::take_checkpoint(
            &mut self.replicas,
            &session.link,
            &mut self.watchdog,
            &self.config.barrier,
            &self.hooks,
            (request.number, &request.name),
        );
        match outcome {
            // What was frozen may have been made for the longer disk already.
            Ok(Outcome::Taken(_)) if self.other_sizes(session).is_some() => Ok(()),
            Ok(Outcome::Taken(report)) => {
                tracing::debug!("checkpoint {}: frozen for {} ms", request.number, report.frozen_ms);
                session.gap_since = None;
                if request.verify {
                    let excluded = self.replicas.iter().map(excluded).collect();
                    session.verify = Some(Verify::begin(request.number, &mut self.replicas, excluded));
                }
                session.link.send(AgentMessage::Checkpoint(report))
            }
            Ok(Outcome::Missed(cause)) => {
                tracing::warn!("no checkpoint: {cause}");
                session.gap_since.get_or_insert(began);
                if asked {
                    let failed =
                        AgentMessage::CheckpointFailed { request: request.number, reason: cause.clone() };
                    session.link.send(failed)?;
                }
                self.report_gap(session, cause)
            }
            Err(error) => {
                session.link.check()?;
                if asked {
                    let reason = error.to_string();
                    session.link.send(AgentMessage::CheckpointFailed { request: request.number, reason })?;
                }
                Err(error)
            }
        }
    }

    fn report_gap(&mut self, session: &mut Session, cause: String) -> Result<()> {
        let now = WallClock::now();
        let from = *session.gap_since.get_or_insert(now);
        session.link.send(AgentMessage::Gap(GapReport { from, until: now, cause }))
    }

    fn pass(&mut self, session: &mut Session) -> Result<bool> {
        for replica in &mut self.replicas {
            replica.take_acks(&session.link)?;
        }
        let now = Instant::now();
        if now < session.next_pass {
            return Ok(false);
        }
        let mut copied = ByteLen::ZERO;
        for replica in self.replicas.iter_mut().filter(|replica| !replica.is_scanned()) {
            copied += replica.copy_marked(&session.link)?;
        }
        let busy = copied.get() >= BUSY_BYTES;
        if let (SendMode::Every(every), false) = (self.config.send, busy) {
            session.next_pass = now + every;
        }
        Ok(busy)
    }

    /// Nothing is frozen without a living watchdog; one that died is replaced.
    pub fn ensure_watchdog(&mut self) {
        if self.watchdog.as_mut().is_some_and(Watchdog::is_alive) {
            return;
        }
        self.watchdog = None;
        let disks: Vec<_> = self.replicas.iter().map(Replica::used_as).collect();
        if superblocks(&disks).is_empty() {
            return;
        }
        match Watchdog::start(&self.config.watchdog, &self.config.run_dir) {
            Ok(watchdog) => {
                self.watchdog_trouble.is_over();
                self.watchdog = Some(watchdog);
            }
            Err(error) => {
                self.watchdog_trouble.say(format!("no watchdog, so no file system is frozen: {error}"));
            }
        }
    }

    pub fn note_vitals(&self) {
        let vitals = |replica: &Replica| DiskVitals {
            tracker: Arc::clone(&replica.tracker),
            unscanned: replica.unscanned(),
        };
        self.vitals.set(self.replicas.iter().map(vitals).collect());
    }
}

fn say_through(replica: &Replica) {
    let device = replica.disk.path().display();
    match &replica.only {
        None => tracing::info!("{device}: the first copy is through"),
        Some(_) => {
            let (compared, differed) = replica.compared;
            tracing::info!("{device}: compared {compared} bytes, of which {differed} differed and were sent");
        }
    }
}

enum Start {
    Tracking,
    Initial(Manner),
}

/// What to do first: what the server says, but never less than what the agent's own knowledge asks for.
fn how_to_start(known: &Continuity, welcome: &DiskWelcome, receiver: Receiver) -> Start {
    let fits = match known {
        // A store that has more than was ever sent from here knows a later state of this disk than the map does: the disk
        // was set back.
        Continuity::Tracked { store, acked, sent } => {
            *store == receiver.store && (*acked..=*sent).contains(&welcome.durable)
        }
        Continuity::Unknown { .. } => false,
    };
    match welcome.start {
        StartFrom::Everything => Start::Initial(Manner::Everything),
        StartFrom::Marked if fits => Start::Tracking,
        StartFrom::Marked | StartFrom::Scan => Start::Initial(Manner::Compare),
    }
}

fn continuity(replica: &Replica) -> Continuity {
    if replica.is_scanned() {
        return Continuity::Unknown { reason: "the scan rung knows nothing between two scans".into() };
    }
    match (replica.tracker.trust(), replica.tracker.base()) {
        (Trust::Untrusted { reason }, _) => Continuity::Unknown { reason },
        (Trust::Trusted, None) => Continuity::Unknown { reason: "nothing was acknowledged yet".into() },
        (Trust::Trusted, Some(base)) => {
            Continuity::Tracked { store: base.store, acked: base.acked, sent: base.sent }
        }
    }
}
