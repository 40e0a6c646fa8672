//! What an administrator has to know before it hurts: how much history a quota buys, who keeps the horizon, what is full.

use crate::drill;
use crate::ladder::{Holds, Ladder};
use crate::retention;
use crate::services::Services;
use crate::takeover::Policy;
use blocks::{ByteLen, CheckpointId, Result, WallClock};
use std::time::Duration;
use store::{BranchKind, Checkpoint, PinHolder, Unit, Usage};

/// Something that wants a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Alarm {
    /// Which one it is, while its words change.
    pub kind: &'static str,
    /// For people: names the thing and what to do.
    pub words: String,
}

/// Of a quota, history is shortened from this part on, in percent, and so far.
const SHORTEN_ABOVE: u64 = 90;
const SHORTEN_TO: u64 = 80;
/// Over how long churn is measured.
const CHURN_TIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Free space below so many reserves is an alarm.
const RESERVES_LOW: u64 = 2;

/// Up to where a history that has outgrown its quota is to be consolidated: as few checkpoints as make room, and no pin
/// passed. The newest always stays one.
pub(crate) fn shorten(line: &[Checkpoint], holds: &Holds, usage: Usage) -> Option<CheckpointId> {
    let quota = usage.quota?;
    let used = usage.total();
    if used <= percent(quota, SHORTEN_ABOVE) {
        return None;
    }
    let wanted = used.saturating_sub(percent(quota, SHORTEN_TO));
    let pinned = holds.pinned.first().copied();
    let mut freed = ByteLen::ZERO;
    let mut up_to = None;
    for checkpoint in
        line.iter().filter(|checkpoint| holds.horizon.is_none_or(|horizon| checkpoint.id > horizon))
    {
        if pinned.is_some_and(|pinned| checkpoint.id > pinned) || (freed >= wanted && up_to.is_some()) {
            break;
        }
        freed += checkpoint.changed;
        up_to = Some(checkpoint.id);
    }
    up_to
}

/// How much history fits a quota at the present churn, `None` where nothing is known of it or nothing bounds it. Never more
/// than the ladder wants.
///
/// Walks the ladder: the newest rung costs what changes, a coarser one what it was seen to hold for each hour of it,
/// which is less where the same bytes are written again and again.
pub(crate) fn window_bought(
    line: &[Checkpoint],
    ladder: &Ladder,
    usage: Usage,
    now: WallClock,
) -> Option<Duration> {
    let quota = usage.quota?;
    let churn = rate(line, now, Duration::ZERO, CHURN_TIME)?;
    let mut room = percent(quota, SHORTEN_ABOVE).saturating_sub(usage.images).get() as f64;
    let mut from = Duration::ZERO;
    for until in ladder.times() {
        let seen = if from.is_zero() { None } else { rate(line, now, from, until) };
        let per_second = seen.map_or(churn, |seen| seen.min(churn)).max(f64::MIN_POSITIVE);
        let wanted = (until - from).as_secs_f64();
        let affordable = room / per_second;
        if affordable < wanted {
            return Some(from + Duration::from_secs_f64(affordable));
        }
        room -= per_second * wanted;
        from = until;
    }
    Some(ladder.window())
}

/// Bytes a second that the checkpoints hold whose age is in that range, where they say enough to tell.
fn rate(line: &[Checkpoint], now: WallClock, from: Duration, until: Duration) -> Option<f64> {
    let age = |checkpoint: &Checkpoint| Duration::from_millis(now.0.saturating_sub(checkpoint.server_time.0));
    let within: Vec<_> = line.iter().filter(|checkpoint| (from..until).contains(&age(checkpoint))).collect();
    let (first, last) = (within.first()?, within.last()?);
    let seconds = (last.server_time.0.saturating_sub(first.server_time.0)) as f64 / 1000.0;
    // What the first holds was written before the time that is looked at.
    let changed: u64 = within.iter().skip(1).map(|checkpoint| checkpoint.changed.get()).sum();
    (seconds > 0.0).then(|| changed as f64 / seconds)
}

fn percent(of: ByteLen, percent: u64) -> ByteLen {
    ByteLen::new(of.get() / 100 * percent)
}

/// Everything that is wrong with a unit.
pub(crate) fn of_unit(services: &Services, unit: &Unit) -> Result<Vec<Alarm>> {
    let mut alarms = Vec::new();
    match services.agents.machine(unit.machine()).state() {
        ("held", reason) => {
            alarms.push(Alarm { kind: "held", words: format!("nothing is acknowledged: {reason}") });
        }
        ("failed", reason) => {
            alarms.push(Alarm { kind: "failed", words: format!("it has failed: {reason}") })
        }
        _ => {}
    }
    if let Err(error) = Policy::of(unit) {
        alarms.push(Alarm { kind: "policy", words: format!("it will not be recovered by itself: {error}") });
    }
    alarms.extend(drill::alarm(services, unit)?);
    alarms.extend(of_history(unit, &retention::ladder_of(services, unit), WallClock::now())?);
    Ok(alarms)
}

/// What is wrong with a unit's history and space.
fn of_history(unit: &Unit, ladder: &Ladder, now: WallClock) -> Result<Vec<Alarm>> {
    let mut alarms = Vec::new();
    let mut alarm = |kind, words| alarms.push(Alarm { kind, words });
    let (line, _) = retention::main_line(unit);
    let usage = unit.usage()?;
    if let Some(quota) = usage.quota {
        if usage.total() > percent(quota, SHORTEN_ABOVE) {
            alarm(
                "quota",
                format!("{} of its quota of {quota} bytes are used: its history is shortened", usage.total()),
            );
        }
        let bought = window_bought(&line, ladder, usage, now);
        if let Some(bought) = bought.filter(|bought| *bought < ladder.window()) {
            let (bought, wanted) =
                (humantime::format_duration(whole(bought)), humantime::format_duration(ladder.window()));
            let words = format!(
                "its quota buys about {bought} of history as fast as it changes now, {wanted} are wanted"
            );
            alarm("window", words);
        }
    }
    for branch in unit.branches().into_iter().filter(|branch| branch.kind == BranchKind::Superseded) {
        if let Some(base) = branch.base {
            let (name, id) = (unit.name(), branch.id);
            let words = format!(
                "superseded branch {id} keeps the horizon at checkpoint {base}: `understudy branch drop {name} {id}` gives it up"
            );
            alarm("superseded", words);
        }
    }
    let old = |id| {
        let found = line.iter().find(|checkpoint| checkpoint.id == id);
        found.is_some_and(|c| Duration::from_millis(now.0.saturating_sub(c.server_time.0)) > ladder.window())
    };
    let superseded = |holder| matches!(holder, PinHolder::Branch { kind: BranchKind::Superseded, .. });
    let overdue = unit.pins().into_iter().find(|pin| old(pin.checkpoint) && !superseded(pin.holder));
    if let Some(pin) = overdue.filter(|pin| line.iter().any(|checkpoint| checkpoint.id > pin.checkpoint)) {
        let words =
            format!("the horizon is overdue: checkpoint {} is held by {}", pin.checkpoint, pin.holder);
        alarm("horizon", words);
    }
    Ok(alarms)
}

/// What is wrong with the store as a whole.
pub(crate) fn of_store(services: &Services) -> Result<Vec<Alarm>> {
    let reserve = services.store.options().reserve;
    let low = ByteLen::new(reserve.get().saturating_mul(RESERVES_LOW));
    Ok(match services.store.free_space()? {
        Some(free) if free < low => {
            let words = format!("{free} bytes are free; below {reserve} nothing is acknowledged any more");
            vec![Alarm { kind: "space", words }]
        }
        _ => Vec::new(),
    })
}

/// Nobody reads milliseconds of days.
fn whole(duration: Duration) -> Duration {
    let seconds = duration.as_secs();
    Duration::from_secs(if seconds >= 600 { seconds / 60 * 60 } else { seconds })
}

#[cfg(test)]
#[path = "alarms_tests.rs"]
mod tests;
