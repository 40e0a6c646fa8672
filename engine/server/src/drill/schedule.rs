//! When drills are due, and the task that plays them.

use super::report::reports;
use super::run::{Drill, drill, take_away};
use crate::agent::Charge;
use crate::alarms::Alarm;
use crate::background::again_and_again;
use crate::control::api::{BootRequest, DrillInfo, DrillStatus};
use crate::retention;
use crate::services::Services;
use crate::stand_in::StandInRecord;
use crate::stop::Stop;
use blocks::{Error, ErrorKind, MachineId, Result, WallClock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use store::Unit;

/// The note of a unit that says how often it is drilled.
const NOTE: &str = "drill/schedule";
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a machine is left alone when a drill could not even be reported.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// When that was.
type Failures = BTreeMap<MachineId, Instant>;

/// How often a machine is drilled, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Schedule {
    pub every_ms: u64,
    /// When it was set: until the first drill, it counts from here.
    pub since_ms: u64,
    pub boot: BootRequest,
}

impl Schedule {
    /// A unit's; `None` where it is not drilled. `Corrupt` where it cannot be read.
    pub fn load(unit: &Unit) -> Result<Option<Schedule>> {
        let Some(note) = unit.note(NOTE) else { return Ok(None) };
        let context = || format!("the drills of '{}'", unit.name());
        serde_json::from_slice(&note)
            .map(Some)
            .map_err(|error| Error::with_source(ErrorKind::Corrupt, context(), error))
    }

    /// Keeps it with a unit; with `None` the unit is drilled no more.
    pub fn save(schedule: Option<&Schedule>, unit: &Unit) -> Result<()> {
        let bytes = schedule.map(serde_json::to_vec).transpose();
        let bytes = bytes
            .map_err(|error| Error::with_source(ErrorKind::InvalidInput, "the schedule of drills", error))?;
        unit.set_note(NOTE, bytes)
    }

    /// When the next is due, the last having begun at `last`: in milliseconds since 1970.
    fn due_ms(&self, last: Option<u64>) -> u64 {
        last.map_or(self.since_ms, |last| last.saturating_add(self.every_ms))
    }
}

/// What a unit's last drill came to.
fn last(services: &Services, unit: &Unit) -> Result<Option<DrillInfo>> {
    Ok(reports(&services.data, unit.machine(), 1)?.pop())
}

/// A unit's schedule and last drill, for people; `None` where there is neither.
pub(crate) fn status(services: &Services, unit: &Unit) -> Result<Option<DrillStatus>> {
    let schedule = Schedule::load(unit)?;
    // One that cannot be read is an alarm.
    let last = last(services, unit).unwrap_or_default();
    if schedule.is_none() && last.is_none() {
        return Ok(None);
    }
    let every_ms = schedule.as_ref().map(|schedule| schedule.every_ms);
    let probe = schedule.and_then(|schedule| schedule.boot.probe);
    Ok(Some(DrillStatus { every_ms, probe, last }))
}

/// What is wrong with a unit's drills.
pub(crate) fn alarm(services: &Services, unit: &Unit) -> Result<Option<Alarm>> {
    let last = match last(services, unit) {
        Ok(last) => last,
        Err(error) => {
            let words = format!("what its last drill came to cannot be read: {error}");
            return Ok(Some(Alarm { kind: "drill", words }));
        }
    };
    if let Some(failed) = last.as_ref().filter(|last| !last.passed) {
        let words = format!("its last drill, of checkpoint {}, failed: {}", failed.checkpoint, failed.detail);
        return Ok(Some(Alarm { kind: "drill", words }));
    }
    let Some(schedule) = Schedule::load(unit)? else { return Ok(None) };
    let overdue = schedule.due_ms(last.map(|last| last.started_ms)).saturating_add(schedule.every_ms);
    let is_overdue = WallClock::now().0 > overdue;
    let words = "its drill is overdue; the server's log says what keeps it from being played".to_owned();
    Ok(is_overdue.then_some(Alarm { kind: "drill", words }))
}

/// Plays the drills that are due, one at a time, until `stop` is heard, having taken away those that were `interrupted`. One
/// that is called off then is played anew after the next start.
pub(crate) async fn run(services: Arc<Services>, interrupted: Interrupted, stop: Stop) {
    let (mut interrupted, mut failures) = (Some(interrupted), Failures::default());
    let work = move |stopping: &AtomicBool| {
        if let Some(interrupted) = interrupted.take() {
            interrupted.take_away(&services);
        }
        play_due(&services, &mut failures, stopping);
    };
    again_and_again("playing drills", stop, || LOOK_EVERY, work).await;
}

/// The sessions of drills in whose middle a server ended: nobody waits for them any more.
pub(crate) struct Interrupted(Vec<(String, Arc<Unit>)>);

impl Interrupted {
    /// Those that are there. Call before anybody can ask for a drill: its session would be taken for one of them.
    pub fn find(services: &Services) -> Interrupted {
        let sessions = services.sessions.list().unwrap_or_else(|error| {
            tracing::error!(%error, "whether drills were interrupted cannot be told");
            Vec::new()
        });
        let mut found = Vec::new();
        for session in sessions.into_iter().filter(|session| session.drill) {
            let Ok((_, unit)) = services.sessions.unit_of(&session.session) else { continue };
            let is_ours = |record: StandInRecord| record.in_drill;
            match StandInRecord::load(&unit, &session.session).map(|record| record.is_some_and(is_ours)) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(error) => tracing::error!(%error, "what a drill has left cannot be told"),
            }
            found.push((session.session, unit));
        }
        Interrupted(found)
    }

    fn take_away(self, services: &Services) {
        for (session, unit) in self.0 {
            tracing::warn!(session, "an interrupted drill is taken away");
            if let Err(error) = take_away(services, &unit, &session) {
                tracing::error!(%error, session, "an interrupted drill is left");
            }
        }
    }
}

fn play_due(services: &Services, failures: &mut Failures, stopping: &AtomicBool) {
    let go_on = |_: &str| !stopping.load(Ordering::Acquire);
    failures.retain(|_, at| at.elapsed() < RETRY_AFTER);
    for unit in services.store.units() {
        if failures.contains_key(&unit.machine()) {
            continue;
        }
        let played = match due(services, &unit) {
            Ok(Some(due)) if go_on("") => drill(services, &due, &go_on).map(drop),
            other => other.map(drop),
        };
        if let Err(error) = played {
            tracing::error!(%error, unit = unit.name(), "no drill");
            failures.insert(unit.machine(), Instant::now());
        }
    }
}

/// The drill that is due. None while a session is in charge of the machine: it is the real thing.
fn due(services: &Services, unit: &Arc<Unit>) -> Result<Option<Drill>> {
    let Some(schedule) = Schedule::load(unit)? else { return Ok(None) };
    // After one that cannot be read the next is played at once, and is the last one then.
    let last = last(services, unit).unwrap_or_default();
    let is_due = WallClock::now().0 >= schedule.due_ms(last.map(|last| last.started_ms));
    if !is_due || services.sessions.session_in_charge(unit.machine()).is_some() {
        return Ok(None);
    }
    let (line, _) = retention::main_line(unit);
    let newest = line.last().map(|newest| newest.id);
    Ok(newest.map(|checkpoint| Drill { unit: unit.clone(), checkpoint, boot: schedule.boot }))
}
