//! The failback from the first message to the last.

use crate::agent::RestoreLink;
use crate::control::api::{FailbackInfo, Progress};
use crate::session::failback::FailbackOptions;
use crate::session::failback::adopt::{adopt, adoption, finish};
use crate::session::failback::disk_work::DiskWork;
use crate::session::failback::line::Line;
use crate::session::failback::parked::Parked;
use crate::session::failback::plan::{Knowledge, compare, weigh};
use crate::session::failback::unsent::keep;
use crate::session::failback::verify::verify;
use crate::session::live::LiveSession;
use crate::session::pull::millis_since;
use crate::session::record::{SessionEvent, SessionState};
use blocks::{DiskIndex, Error, ErrorKind, Extent, ExtentSet, Result, monotonic_now};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use store::Store;
use wire::{RestoreBegin, RestoreDisk, ServerMessage, TargetKnowledge};

/// After so many rounds a cutover does not wait for a guest that keeps writing.
const ROUNDS_MAX: u32 = 20;

/// Whether work goes on, and who is told.
type Report<'a> = &'a dyn Fn(Progress) -> bool;

/// Brings the session home, or in step without `cutover`: then it is parked. Goes on with a parked failback onto the same
/// devices; otherwise `link` is called for a way to the agent. The caller has occupied the session.
pub(crate) fn run(
    store: &Store,
    session: &Arc<LiveSession>,
    link: impl FnOnce() -> Result<RestoreLink>,
    options: &FailbackOptions,
    report: Report<'_>,
) -> Result<FailbackInfo> {
    check(session, options)?;
    let _failing_back = Flag::raise(&session.failing_back);
    let finishing = matches!(session.record.get().state(), SessionState::Finishing { .. });
    let timeout = session.context.answer_timeout;
    let parked = session.unpark().filter(|parked| parked.is_onto(&options.devices));
    let goes_on = parked.is_some();
    let (mut line, works) = match parked.map(Parked::into_parts) {
        Some((line, works)) => (line.wake(timeout)?, works),
        None => {
            (Line::new(link()?, new_restore(), timeout)?, session.disks.iter().map(DiskWork::new).collect())
        }
    };
    let withdrawn_at = finishing.then(monotonic_now);
    let mut failback = Failback { store, session, options, report, works, withdrawn_at };
    match failback.run(&mut line, goes_on) {
        Ok(info) => {
            if !options.cutover {
                session.park(Parked::new(line, failback.works, &options.devices));
            }
            Ok(info)
        }
        Err(error) => {
            line.abort(error.to_string());
            if let Err(error) = failback.undo() {
                tracing::error!("session {} cannot be served again: {error}", session.id);
            }
            Err(error)
        }
    }
}

/// A number that no other failback has.
fn new_restore() -> u64 {
    let bytes = blocks::random_bytes(rand::random);
    u64::from_le_bytes(std::array::from_fn(|at| bytes[at]))
}

fn check(session: &LiveSession, options: &FailbackOptions) -> Result<()> {
    let record = session.record.get();
    let refuse = |kind, why: &str| Err(Error::new(kind, format!("session {}: {why}", session.id)));
    if options.machine != session.unit.machine() {
        return refuse(ErrorKind::Unsupported, "it can only go home to the machine that it stands in for");
    }
    if record.drill {
        return refuse(ErrorKind::Unsupported, "a drill cannot go home: the machine was never relieved");
    }
    match record.state() {
        SessionState::Running => {}
        SessionState::Finishing { .. } if options.cutover => return Ok(()),
        SessionState::Finishing { .. } => {
            return refuse(
                ErrorKind::InvalidInput,
                "it is the machine's history already: repeat with cutover",
            );
        }
        state => return refuse(ErrorKind::InvalidInput, &format!("it does not run any more: {state}")),
    }
    match session.held() {
        Some(why) => Err(Error::new(ErrorKind::Busy, why)),
        None => Ok(()),
    }
}

struct Flag<'a>(&'a AtomicBool);

impl Flag<'_> {
    fn raise(flag: &AtomicBool) -> Flag<'_> {
        flag.store(true, Ordering::SeqCst);
        Flag(flag)
    }
}

impl Drop for Flag<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

struct Failback<'a> {
    store: &'a Store,
    session: &'a Arc<LiveSession>,
    options: &'a FailbackOptions,
    report: Report<'a>,
    works: Vec<DiskWork>,
    /// When the exports were taken away; from then on nothing is written to the session.
    withdrawn_at: Option<Instant>,
}

impl Failback<'_> {
    /// `goes_on`: what may differ was found by an earlier call, and what the machine never sent is kept.
    fn run(&mut self, line: &mut Line, goes_on: bool) -> Result<FailbackInfo> {
        if goes_on {
            self.works.iter_mut().for_each(DiskWork::take_watched);
        } else {
            let unsent = self.plan(line)?;
            self.keep_unsent(line, &unsent)?;
        }
        self.rounds(line)?;
        if !self.options.cutover {
            line.sync()?;
            return Ok(self.info("in-step", None, 0));
        }
        self.withdraw();
        self.send_watched(line)?;
        line.sync()?;
        self.session.context.step("failback.sent");
        self.verify(line)?;
        self.session.context.step("failback.verified");
        let quiet_since = self.withdrawn_at.unwrap_or_else(monotonic_now);
        if self.session.record.get().state() == SessionState::Running {
            adopt(self.session, quiet_since)?;
        }
        let checkpoint = finish(line, self.session, &self.options.serials)?;
        let downtime_ms = millis_since(quiet_since);
        Ok(self.info("home", Some(checkpoint.0), downtime_ms))
    }

    /// Has the targets opened, and fills the first round. What the machine wrote and never sent is returned.
    fn plan(&mut self, line: &mut Line) -> Result<Vec<(DiskIndex, ExtentSet)>> {
        let session = self.session;
        let device = |disk: DiskIndex| {
            let named = self.options.devices.iter().find(|(index, _)| *index == disk);
            named.map_or_else(String::new, |(_, device)| device.clone())
        };
        let disks: Vec<RestoreDisk> = self
            .works
            .iter()
            .map(|work| RestoreDisk {
                disk: work.disk.index,
                device: device(work.disk.index),
                len: work.disk.len(),
            })
            .collect();
        if let Some((index, _)) =
            self.options.devices.iter().find(|(index, _)| usize::from(index.0) >= disks.len())
        {
            let context = format!("session {} has no disk {index}", session.id);
            return Err(Error::new(ErrorKind::NotFound, context));
        }
        let usual = session.unit.disks();
        let is_usual = |disk: &RestoreDisk| {
            let spec = usual.get(usize::from(disk.disk.0));
            disk.device.is_empty() || spec.is_some_and(|spec| spec.device == disk.device)
        };
        let redirected: Vec<bool> = disks.iter().map(|disk| !is_usual(disk)).collect();
        let begin = RestoreBegin { restore: line.restore(), session: session.id, disks };
        line.send(ServerMessage::RestoreBegin(begin))?;
        let ready = line.ready()?;
        if ready.disks.len() != self.works.len() {
            let context =
                format!("the agent speaks of {} disks, not {}", ready.disks.len(), self.works.len());
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        session.context.step("failback.begun");
        let mut unsent = Vec::new();
        for (index, (said, redirected)) in ready.disks.into_iter().zip(redirected).enumerate() {
            let extents = self.plan_disk(line, index, said, redirected)?;
            unsent.push((self.works[index].disk.index, extents));
        }
        Ok(unsent)
    }

    fn plan_disk(
        &mut self,
        line: &mut Line,
        index: usize,
        said: TargetKnowledge,
        redirected: bool,
    ) -> Result<ExtentSet> {
        let session = self.session;
        let record = session.record.get();
        let work = &mut self.works[index];
        let len = work.disk.len();
        let knowledge = weigh(session, work, said, self.store.id())?;
        let (candidates, unsent, main) = match knowledge {
            Knowledge::Known { differs, unsent } => {
                work.info.known = true;
                work.consider(&differs);
                if !record.failback.written {
                    work.next = differs;
                    return Ok(unsent);
                }
                // An earlier attempt has sent some of it: the tracker counts that as changed, the hashes tell.
                (differs, unsent, None)
            }
            Knowledge::Unknown(reason) => {
                tracing::info!("disk {} of the target is hashed as a whole: {reason}", work.disk.index);
                work.info.reason = reason;
                work.info.changed_bytes = len.get();
                let keeps = !redirected && !self.options.discard_unsent && record.failback.unsent.is_none();
                let main = keeps && record.state() == SessionState::Running;
                let main = main
                    .then(|| session.unit.disk(session.unit.main_branch(), work.disk.index))
                    .transpose()?;
                (Extent::whole(len).into_iter().collect(), ExtentSet::new(), main)
            }
        };
        let step = format!("comparing disk {}", work.disk.index);
        let mut told = teller(self.report, step, candidates.covered().get());
        let found = compare(line, work, &candidates, main.as_ref(), &mut told)?;
        Ok(if work.info.known { unsent } else { found })
    }

    fn keep_unsent(&mut self, line: &mut Line, unsent: &[(DiskIndex, ExtentSet)]) -> Result<()> {
        let record = self.session.record.get();
        let done = record.failback.unsent.is_some() || record.failback.written;
        if self.options.discard_unsent || done || record.state() != SessionState::Running {
            return Ok(());
        }
        let total: u64 = unsent.iter().map(|(_, extents)| extents.covered().get()).sum();
        // Said beforehand: of an unknown disk that is all in which it differs.
        let mib = total as f64 / f64::from(1 << 20);
        let step = format!("keeping {mib:.1} MiB that the machine holds and never sent");
        let mut told = teller(self.report, step, total);
        if total > 0 {
            told(0)?;
        }
        if let Some(kept) = keep(line, self.session, unsent, &mut told)? {
            self.session.record.update(|record| {
                record.failback.unsent = Some(kept.0);
                Ok(())
            })?;
        }
        self.session.context.step("failback.unsent-kept");
        Ok(())
    }

    /// Sends until what the guest has written meanwhile fits a short round.
    fn rounds(&mut self, line: &mut Line) -> Result<()> {
        self.session.record.update(|record| {
            record.failback.written = true;
            Ok(())
        })?;
        self.session.context.step("failback.writing");
        for round in 1.. {
            self.send_round(line, round)?;
            let left: u64 = self.works.iter().map(|work| work.watch.bytes().get()).sum();
            let patient = !self.options.cutover || round < ROUNDS_MAX;
            if left <= self.session.context.short_round.get() || !patient {
                break;
            }
            self.works.iter_mut().for_each(DiskWork::take_watched);
        }
        self.session.context.step("failback.rounds-sent");
        Ok(())
    }

    fn send_round(&mut self, line: &mut Line, round: u32) -> Result<()> {
        for work in &mut self.works {
            let step = format!("sending disk {}, round {round}", work.disk.index);
            let mut told = teller(self.report, step, work.next_bytes());
            work.send_round(line, &mut told)?;
        }
        Ok(())
    }

    fn send_watched(&mut self, line: &mut Line) -> Result<()> {
        self.works.iter_mut().for_each(DiskWork::take_watched);
        self.send_round(line, ROUNDS_MAX + 1)
    }

    /// From here on nothing is written to the session.
    fn withdraw(&mut self) {
        self.withdrawn_at.get_or_insert_with(monotonic_now);
        self.session.withdraw();
        self.session.stop_migrations();
        self.session.disks.iter().for_each(|disk| disk.volume.close(true));
        self.session.context.step("failback.withdrawn");
    }

    fn verify(&mut self, line: &mut Line) -> Result<()> {
        for work in &mut self.works {
            let step = format!("verifying disk {}", work.disk.index);
            let mut told = teller(self.report, step, work.sent.bytes().get());
            verify(line, work, &mut told)?;
        }
        Ok(())
    }

    /// After an error: the session serves again, unless its branch is the machine's history already.
    fn undo(&mut self) -> Result<()> {
        let record = self.session.record.get();
        if let SessionState::Adopting { .. } = record.state() {
            let event = match adoption(&self.session.unit, &record)? {
                Some(superseded) => SessionEvent::Adopted { superseded },
                None => SessionEvent::Undo,
            };
            self.session.record.update(|record| record.apply(event))?;
        }
        if self.withdrawn_at.is_none() || self.session.record.get().state() != SessionState::Running {
            return Ok(());
        }
        self.session.disks.iter().for_each(|disk| disk.volume.close(false));
        self.session.serve()?;
        self.session.start_migrations()
    }

    fn info(&self, state: &str, checkpoint: Option<u64>, downtime_ms: u64) -> FailbackInfo {
        FailbackInfo {
            session: self.session.id.to_string(),
            machine: self.session.unit.name(),
            state: state.to_owned(),
            disks: self.works.iter().map(|work| work.info.clone()).collect(),
            downtime_ms,
            checkpoint,
        }
    }
}

/// Counts up, tells, and turns a wish to stop into an error.
fn teller(report: Report<'_>, step: String, total: u64) -> impl FnMut(u64) -> Result<()> {
    let mut done = 0;
    move |bytes| {
        done += bytes;
        match report(Progress { step: step.clone(), done, total: total.max(done) }) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Cancelled, "the failback was called off")),
        }
    }
}
