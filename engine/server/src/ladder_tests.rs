use super::*;
use blocks::{ByteLen, Generation};
use store::{BranchId, Consistency};

const MINUTE: u64 = 60_000;
/// A midnight, in milliseconds.
const MIDNIGHT: u64 = 20_000 * 24 * 60 * MINUTE;

pub(crate) fn checkpoint(id: u64, server_time_ms: u64) -> Checkpoint {
    Checkpoint {
        id: CheckpointId(id),
        branch: BranchId(1),
        name: String::new(),
        consistency: Consistency::Crash,
        source_time: WallClock(0),
        server_time: WallClock(server_time_ms),
        frozen_ms: 0,
        generation: Generation(1),
        lens: Vec::new(),
        seqs: Vec::new(),
        excluded: Vec::new(),
        changed: ByteLen::ZERO,
        protected_until: WallClock(0),
    }
}

pub(crate) fn holds(horizon: Option<u64>, pinned: &[u64]) -> Holds {
    let pinned = pinned.iter().map(|id| CheckpointId(*id)).collect();
    Holds { horizon: horizon.map(CheckpointId), pinned }
}

#[test]
fn what_is_too_old_goes_into_the_images_unless_it_is_needed() {
    let line = [checkpoint(1, 1_000), checkpoint(2, 2_000), checkpoint(4, 3_000), checkpoint(5, 9_000)];
    let at = |now, horizon, pinned: &[u64]| {
        let choice =
            Ladder::all(Duration::from_secs(5)).choose(&line, &holds(horizon, pinned), WallClock(now));
        assert!(choice.thin.is_empty(), "all are kept while they are kept");
        choice.consolidate.map(|id| id.0)
    };
    assert_eq!(at(5_999, None, &[]), None);
    assert_eq!(at(6_000, None, &[]), Some(1));
    assert_eq!(at(8_000, None, &[]), Some(4));
    assert_eq!(at(8_000, Some(2), &[]), Some(4));
    assert_eq!(at(8_000, Some(4), &[]), None, "it is the horizon already");
    assert_eq!(at(8_000, None, &[3]), Some(2), "a session's checkpoint beside the main line holds it");
    assert_eq!(at(8_000, Some(2), &[2, 4]), None);
    assert_eq!(at(99_000, None, &[]), Some(5));
}

#[test]
fn without_history_the_newest_is_always_what_the_images_hold() {
    let line = [checkpoint(1, 1_000), checkpoint(2, 2_000)];
    let choice = Ladder::none().choose(&line, &holds(Some(1), &[]), WallClock(2_000));
    assert_eq!(choice, Choice { consolidate: Some(CheckpointId(2)), thin: Vec::new() });
}

/// A checkpoint every ten minutes for 20 days, thinned as time passes.
#[test]
fn the_default_keeps_all_for_hours_one_an_hour_for_days_and_one_a_day_for_weeks() {
    let ladder = Ladder::default();
    let mut line: Vec<Checkpoint> = Vec::new();
    let mut horizon = None;
    for tick in 0..20 * 24 * 6 {
        let now = MIDNIGHT + tick * 10 * MINUTE;
        line.push(checkpoint(tick + 1, now));
        let choice = ladder.choose(&line, &holds(horizon, &[]), WallClock(now));
        line.retain(|checkpoint| !choice.thin.contains(&checkpoint.id));
        if let Some(up_to) = choice.consolidate {
            line.retain(|checkpoint| checkpoint.id >= up_to);
            horizon = Some(up_to.0);
        }
    }
    let now = line.last().unwrap().server_time.0;
    let ages: Vec<u64> = line.iter().map(|checkpoint| (now - checkpoint.server_time.0) / MINUTE).collect();
    let within = |from: u64, to: u64| ages.iter().filter(|age| (from..to).contains(age)).count();
    assert_eq!(within(0, 4 * 60), 24, "every one");
    assert!((42..=50).contains(&within(4 * 60, 48 * 60)), "{} in the hours", within(4 * 60, 48 * 60));
    // The day that is just getting too old is thinned when all of it is.
    assert!(
        (11..=12).contains(&within(72 * 60, 14 * 24 * 60)),
        "{} in the days",
        within(72 * 60, 14 * 24 * 60)
    );
    assert!(within(48 * 60, 72 * 60) <= 25);
    assert!(ages[0] >= 14 * 24 * 60, "the window is as long as was asked for: {}", ages[0]);
    // Those of the days are the last of each day.
    for age in ages.iter().filter(|age| (3 * 24 * 60..14 * 24 * 60).contains(*age)) {
        assert_eq!((now - age * MINUTE) % (24 * 60 * MINUTE), (24 * 60 - 10) * MINUTE);
    }
}

#[test]
fn an_hour_is_thinned_at_once_and_only_when_it_is_over() {
    let ladder: Ladder = "all=1h,hourly=1d".parse().unwrap();
    let mut line: Vec<_> = (0..12).map(|i| checkpoint(i + 1, MIDNIGHT + i * 10 * MINUTE)).collect();
    let thin = |line: &[Checkpoint], holds: &Holds, minutes: u64| -> Vec<u64> {
        let choice = ladder.choose(line, holds, WallClock(MIDNIGHT + minutes * MINUTE));
        choice.thin.iter().map(|id| id.0).collect()
    };
    let none = Holds::default();
    assert!(thin(&line, &none, 119).is_empty(), "the last of the first hour is younger than an hour");
    assert_eq!(thin(&line, &none, 120), [1, 2, 3, 4, 5]);
    assert_eq!(thin(&line, &holds(None, &[2]), 120), [1, 3, 4, 5], "what is pinned stays");
    assert_eq!(thin(&line, &holds(Some(3), &[]), 120), [4, 5], "what the images hold stays");
    line[0].name = "before-upgrade".into();
    line[3].protected_until = WallClock(u64::MAX);
    assert_eq!(thin(&line, &none, 120), [2, 3, 5]);
    assert!(!thin(&line, &none, 20 * 60).contains(&12), "the newest of all stays");
}

#[test]
fn ladders_are_read_as_they_are_written() {
    for text in ["all=4h,hourly=2d,daily=14d", "none", "all=4h", "15m=1d,weekly=60d"] {
        let ladder: Ladder = text.parse().unwrap();
        assert_eq!(ladder.to_string().parse::<Ladder>().unwrap(), ladder, "{ladder}");
    }
    assert_eq!(Ladder::default().to_string(), "all=4h,hourly=2d,daily=14d");
    assert_eq!("all=4h, hourly=2d, daily=14d".parse::<Ladder>().unwrap(), Ladder::default());
    assert_eq!("4h".parse::<Ladder>().unwrap(), Ladder::all(Duration::from_secs(4 * HOUR)));
    for text in ["", "soon", "all", "all=4h,hourly", "hourly=2d,all=4h", "all=4h,hourly=3h", "yearly=9d"] {
        let error = text.parse::<Ladder>().unwrap_err().to_string();
        assert!(error.contains("all=4h,hourly=2d,daily=14d"), "{error}");
    }
}
