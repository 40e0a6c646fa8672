use super::*;
use crate::ladder::tests::{checkpoint, holds};

const HOUR_MS: u64 = 3_600_000;
const GIB: u64 = 1 << 30;

/// A checkpoint an hour for so many hours, of 1 GiB each; now is the time of the last.
fn line(hours: u64) -> Vec<Checkpoint> {
    let one = |hour| Checkpoint { changed: ByteLen::new(GIB), ..checkpoint(hour + 1, hour * HOUR_MS) };
    (0..=hours).map(one).collect()
}

fn usage(images: u64, journal: u64, quota: u64) -> Usage {
    Usage { images: ByteLen::new(images), journal: ByteLen::new(journal), quota: Some(ByteLen::new(quota)) }
}

fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 3600)
}

#[test]
fn a_history_that_outgrows_its_quota_is_shortened_by_as_little_as_makes_room() {
    let line = line(20);
    let up_to = |used_gib: u64, holds: &Holds| {
        shorten(&line, holds, usage(10 * GIB, (used_gib - 10) * GIB, 100 * GIB)).map(|id| id.0)
    };
    assert_eq!(up_to(90, &holds(None, &[])), None);
    assert_eq!(up_to(91, &holds(None, &[])), Some(11));
    assert_eq!(up_to(91, &holds(Some(4), &[])), Some(15), "what is consolidated already gives nothing");
    assert_eq!(up_to(91, &holds(None, &[5])), Some(5), "no pin is passed");
    assert_eq!(up_to(91, &holds(Some(5), &[5])), None);
    assert_eq!(up_to(400, &holds(None, &[])), Some(21), "at most up to the newest");
    assert_eq!(shorten(&line, &holds(None, &[]), Usage { quota: None, ..usage(GIB, GIB, 1) }), None);
}

#[test]
fn what_a_quota_buys_follows_from_churn() {
    let (line, ladder) = (line(48), Ladder::all(hours(200)));
    let now = line.last().unwrap().server_time;
    let bought = |quota| window_bought(&line, &ladder, usage(10 * GIB, 0, quota * GIB), now).unwrap();
    // 90 GiB may be used, 10 of them are the images: 80 hours of 1 GiB.
    assert!((bought(100).as_secs_f64() / 3600.0 - 80.0).abs() < 0.5, "{:?}", bought(100));
    assert_eq!(bought(1000), hours(200), "never more than is wanted");
    assert!(bought(5) < hours(1));
    assert_eq!(
        window_bought(&line[..1], &ladder, usage(0, 0, GIB), now),
        None,
        "nothing is known of its churn"
    );
}

/// Rungs that were thinned cost what they were seen to hold.
#[test]
fn thinned_history_is_cheaper() {
    let mut line = line(48);
    line.iter_mut().take(25).for_each(|checkpoint| checkpoint.changed = ByteLen::new(GIB / 10));
    let now = line.last().unwrap().server_time;
    let ladder: Ladder = "all=24h,hourly=480h".parse().unwrap();
    // 24 GiB for the first day, then a tenth for each hour: 66 GiB more are 660 hours.
    assert_eq!(window_bought(&line, &ladder, usage(0, 0, 100 * GIB), now), Some(hours(480)));
    let bought = window_bought(&line, &ladder, usage(0, 0, 40 * GIB), now).unwrap();
    assert!((bought.as_secs_f64() / 3600.0 - 144.0).abs() < 8.0, "{bought:?}");
}

/// A unit whose main line was superseded by a session that came home, and one checkpoint that is protected.
#[test]
fn whoever_keeps_the_horizon_is_named_with_what_to_do() {
    use blocks::{ByteLen, Id, MachineId, SessionId};
    use std::sync::Arc;
    use store::testing::CrashStorage;
    use store::{BranchKind, CheckpointSpec, DiskSpec, ImageFormat, Store, StoreOptions, UnitSpec};
    let id = |byte| Id::from_bytes([byte; 16]).unwrap();
    let options =
        StoreOptions { reserve: ByteLen::ZERO, merge_in_background: false, ..StoreOptions::default() };
    let store = Store::open(Arc::new(CrashStorage::new()), options).unwrap();
    let disk = DiskSpec { len: ByteLen::new(1 << 20), serial: String::new(), device: "/dev/x".into() };
    let spec = UnitSpec {
        machine: MachineId(id(1)),
        name: "web".into(),
        definition: Vec::new(),
        disks: vec![disk],
        image_format: ImageFormat::Raw,
    };
    let unit = store.create_unit(spec).unwrap();
    let seal = |branch| unit.seal(branch, CheckpointSpec::crash_consistent_now()).unwrap().into_inner();
    let alarms = |later: Duration| {
        let now = WallClock(WallClock::now().0 + later.as_millis() as u64);
        let found = of_history(&unit, &Ladder::all(hours(1)), now).unwrap();
        found.into_iter().map(|alarm| (alarm.kind, alarm.words)).collect::<Vec<_>>()
    };
    let only = |mut alarms: Vec<(&'static str, String)>| {
        assert_eq!(alarms.len(), 1, "{alarms:?}");
        alarms.remove(0)
    };
    let base = seal(unit.main_branch());
    seal(unit.main_branch());
    assert!(alarms(hours(2)).is_empty(), "nobody holds anything");
    unit.protect_checkpoint(base, Checkpoint::FOREVER).unwrap();
    assert!(alarms(Duration::ZERO).is_empty(), "nothing is due yet");
    let (kind, words) = only(alarms(hours(2)));
    assert!(kind == "horizon" && words.contains("protection"), "{words}");
    unit.protect_checkpoint(base, WallClock(0)).unwrap();
    let branch = unit.fork(base, BranchKind::Session(SessionId(id(2)))).unwrap();
    let old = unit.adopt(branch).unwrap();
    seal(branch);
    let (kind, words) = only(alarms(Duration::ZERO));
    assert!(kind == "superseded" && words.contains(&format!("branch drop web {old}")), "{words}");
    unit.set_quota(Some(ByteLen::new(1 << 20))).unwrap();
    assert!(alarms(Duration::ZERO).iter().any(|(kind, _)| *kind == "quota"));
    unit.set_quota(None).unwrap();
    unit.drop_branch(old).unwrap();
    assert!(alarms(Duration::ZERO).is_empty());
}
