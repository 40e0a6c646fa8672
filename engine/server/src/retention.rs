//! Keeping the history as long as was asked for: what is older goes into the images, what is too dense is thinned, what
//! does not fit a machine's quota goes sooner. Quietly, in the background, but for alarms, which are logged when they begin.

use crate::alarms::{self, Alarm};
use crate::background::again_and_again;
use crate::ladder::{Choice, Holds, Ladder};
use crate::services::Services;
use crate::stop::Stop;
use blocks::{ErrorKind, MachineId, Result, WallClock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use store::{Checkpoint, Pace, ThinGoal, Unit};

/// How often deltas are looked at that no deleted checkpoint points to.
const THIN_EVERY: Duration = Duration::from_secs(60);
/// The note of a unit that says how long its history is kept; where there is none the server's ladder counts.
const KEEP_NOTE: &str = "keep";

/// What is remembered from one look to the next.
#[derive(Debug, Default)]
struct Memory {
    thinned: BTreeMap<MachineId, Instant>,
    alarms: BTreeMap<MachineId, BTreeSet<&'static str>>,
}

/// Looks after every unit until `stop` is set; one at a time, ending at once where a person wants to consolidate.
pub(crate) async fn run(services: Arc<Services>, stop: Stop) {
    let watched = services.clone();
    let pause = move || {
        let all = watched.store.units().into_iter();
        let every = all.map(|unit| ladder_of(&watched, &unit).interval()).min();
        every.unwrap_or(Duration::from_secs(1))
    };
    let mut memory = Memory::default();
    let work = move |stopping: &AtomicBool| look_after_all(&services, &mut memory, stopping);
    again_and_again("looking after the history", stop, pause, work).await;
}

/// How long the history of a unit is kept.
pub(crate) fn ladder_of(services: &Services, unit: &Unit) -> Ladder {
    let note = unit.note(KEEP_NOTE).and_then(|note| String::from_utf8(note).ok());
    match note.map(|text| text.parse::<Ladder>()) {
        None => services.keep.clone(),
        Some(Ok(ladder)) => ladder,
        Some(Err(error)) => {
            tracing::error!(
                unit = unit.name(),
                "its own ladder is not understood, the server's counts: {error}"
            );
            services.keep.clone()
        }
    }
}

/// Keeps a ladder of its own with a unit, or the server's again with `None`.
pub(crate) fn set_ladder(unit: &Unit, ladder: Option<&Ladder>) -> Result<()> {
    unit.set_note(KEEP_NOTE, ladder.map(|ladder| ladder.to_string().into_bytes()))
}

/// The checkpoints of a unit's main line, and what holds it.
pub(crate) fn main_line(unit: &Unit) -> (Vec<Checkpoint>, Holds) {
    let main = unit.main_branch();
    let mut line = unit.checkpoints();
    line.retain(|checkpoint| checkpoint.branch == main);
    let pinned = unit.pins().into_iter().map(|pin| pin.checkpoint).collect();
    (line, Holds { horizon: unit.horizon().or(unit.replaying()), pinned })
}

fn look_after_all(services: &Services, memory: &mut Memory, stopping: &AtomicBool) {
    for unit in services.store.units() {
        report_alarms(services, &unit, memory);
        let Some(_turn) = services.consolidating.for_the_background() else { return };
        let go_on = || !stopping.load(Ordering::Acquire) && !services.consolidating.must_make_room();
        if !go_on() {
            return;
        }
        match look_after(services, &unit, memory, &go_on) {
            Ok(()) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::Busy | ErrorKind::Cancelled | ErrorKind::NotFound) =>
            {
                tracing::debug!(%error, unit = unit.name(), "the history is left as it is for now");
            }
            Err(error) => {
                tracing::error!(%error, unit = unit.name(), "the history could not be looked after")
            }
        }
    }
}

fn look_after(
    services: &Services,
    unit: &Unit,
    memory: &mut Memory,
    go_on: &(dyn Fn() -> bool + Sync),
) -> Result<()> {
    let ladder = ladder_of(services, unit);
    let (line, holds) = main_line(unit);
    let now = WallClock::now();
    let Choice { consolidate, thin } = ladder.choose(&line, &holds, now);
    // An interrupted replay is finished even where nothing new is due.
    let due = consolidate.or_else(|| unit.replaying());
    let up_to = alarms::shorten(&line, &holds, unit.usage()?).max(due);
    if let Some(up_to) = up_to {
        let pace = Pace::new(services.consolidate_rate, Some(&services.guests), go_on);
        let report = unit.consolidate_at_pace(up_to, &pace, &|_, _| go_on())?;
        tracing::info!(
            unit = unit.name(),
            %up_to,
            changed_bytes = report.written.get(),
            image_written_bytes = report.image_written.get(),
            image_read_bytes = report.image_read.get(),
            zeroed_bytes = report.zeroed.get(),
            freed_bytes = report.freed.get(),
            amplification = report.amplification(),
            "consolidated"
        );
    }
    unit.delete_checkpoints(&thin)?;
    let last = memory.thinned.get(&unit.machine());
    if thin.is_empty() && last.is_some_and(|last| last.elapsed() < THIN_EVERY) {
        return Ok(());
    }
    let report = unit.thin(ThinGoal::Worthwhile, &|_| go_on())?;
    memory.thinned.insert(unit.machine(), Instant::now());
    if report.deltas > 0 {
        tracing::debug!(unit = unit.name(), checkpoints = thin.len(), ?report, "thinned");
    }
    Ok(())
}

fn report_alarms(services: &Services, unit: &Unit, memory: &mut Memory) {
    let alarms = match alarms::of_unit(services, unit) {
        Ok(alarms) => alarms,
        Err(error) => {
            tracing::warn!(%error, unit = unit.name(), "its space cannot be told");
            return;
        }
    };
    let known = memory.alarms.entry(unit.machine()).or_default();
    for Alarm { kind, words } in alarms.iter().filter(|alarm| !known.contains(alarm.kind)) {
        tracing::warn!(unit = unit.name(), alarm = kind, "{words}");
    }
    for kind in known.iter().filter(|kind| !alarms.iter().any(|alarm| alarm.kind == **kind)) {
        tracing::info!(unit = unit.name(), alarm = kind, "is over");
    }
    *known = alarms.iter().map(|alarm| alarm.kind).collect();
}
