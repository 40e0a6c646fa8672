//! Deleting checkpoints and merging what lies between those that stay: what comes back, what is refused, and what a cut at
//! any change or a full storage leaves.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/unit.rs"]
mod support;

use blocks::*;
use std::collections::BTreeMap;
use store::testing::{CrashStorage, Random};
use store::*;
use support::*;

const BLOCK: u64 = 64 << 10;

fn logs_len(storage: &CrashStorage) -> u64 {
    let dir = format!("units/{}/disk0", machine(1));
    let logs = storage.list(&dir).unwrap().into_iter().filter(|name| name.ends_with(".log"));
    logs.map(|name| storage.open(&format!("{dir}/{name}"), OpenMode::Read).unwrap().len().unwrap().get())
        .sum()
}

fn thin(unit: &Unit, goal: ThinGoal) -> Result<ThinReport> {
    unit.thin(goal, &|_| true)
}

/// A main branch of so many checkpoints; each writes the same half of the disk anew, in 4 KiB.
fn overwritten(unit: &Unit, checkpoints: u8) -> Vec<CheckpointId> {
    let round = |byte: u8| {
        for at in (0..LEN / 2).step_by(4096) {
            write(&*head(unit), at, 4096, byte);
        }
        seal(unit, unit.main_branch())
    };
    (1..=checkpoints).map(round).collect()
}

#[test]
fn what_was_overwritten_between_checkpoints_gives_its_space_back() {
    let storage = CrashStorage::new();
    let unit = open(&storage).create_unit(spec(1)).unwrap();
    let checkpoints = overwritten(&unit, 10);
    let full = logs_len(&storage);
    let view = unit.view(checkpoints[9], DISK).unwrap();
    unit.delete_checkpoints(&checkpoints[1..9]).unwrap();
    assert_eq!(unit.checkpoints().len(), 2);
    let report = thin(&unit, ThinGoal::Worthwhile).unwrap();
    assert_eq!(report.deltas, 8);
    assert_eq!(byte_at(&view, 4096), 10, "an open view goes on reading what it had");
    drop(view);
    let left = logs_len(&storage);
    assert!(left < full / 4, "{left} of {full} bytes are left");
    assert_eq!(full - left, report.freed.get());
    let last = unit.checkpoint(checkpoints[9]).unwrap();
    assert_eq!(last.changed.get(), LEN / 2, "each byte that changed since the first is counted once");
    assert_eq!(thin(&unit, ThinGoal::Everything).unwrap(), ThinReport::default(), "nothing is left to do");
    for unit in [unit, open(&storage.crash(4)).unit(machine(1)).unwrap()] {
        for (at, byte) in [(checkpoints[0], 1), (checkpoints[9], 10)] {
            let view = unit.view(at, DISK).unwrap();
            assert_eq!((byte_at(&view, 4096), byte_at(&view, LEN - 1)), (byte, 0));
        }
        assert_eq!(byte_at(&*head(&unit), 4096), 10);
    }
}

/// A delta that was overwritten within itself is worth merging with nobody.
#[test]
fn what_was_overwritten_between_two_checkpoints_comes_back_too() {
    let storage = CrashStorage::new();
    let unit = open(&storage).create_unit(spec(1)).unwrap();
    for byte in 1..=10 {
        write(&*head(&unit), 0, 256 << 10, byte);
    }
    seal(&unit, unit.main_branch());
    let full = logs_len(&storage);
    thin(&unit, ThinGoal::Worthwhile).unwrap();
    assert!(logs_len(&storage) < full / 8, "{} of {full}", logs_len(&storage));
    assert_eq!(byte_at(&*head(&unit), 5), 10);
}

#[test]
fn zeroes_and_discards_still_hide_what_lies_below() {
    let storage = CrashStorage::new();
    let unit = open(&storage).create_unit(spec(1)).unwrap();
    let main = unit.main_branch();
    write(&*head(&unit), 0, 65536, 1);
    let first = seal(&unit, main);
    head(&unit).write_zeroes(extent(0, 4096), false, false, RequestClass::Guest).unwrap();
    let inner = seal(&unit, main);
    head(&unit).discard(extent(4096, 4096), false, RequestClass::Guest).unwrap();
    write(&*head(&unit), 8192, 512, 3);
    let last = seal(&unit, main);
    unit.delete_checkpoints(&[inner]).unwrap();
    assert_eq!(thin(&unit, ThinGoal::Everything).unwrap().deltas, 1);
    let view = unit.view(last, DISK).unwrap();
    assert_eq!([0, 4095, 4096, 8191, 8192, 8704].map(|at| byte_at(&view, at)), [0, 0, 0, 0, 3, 1]);
    let runs = view.status(extent(0, 16384)).unwrap();
    let kinds: Vec<_> = runs.iter().map(|run| run.allocation).collect();
    assert_eq!(kinds, [Allocation::Zero, Allocation::Hole, Allocation::Data]);
    assert_eq!(byte_at(&unit.view(first, DISK).unwrap(), 0), 1);
}

#[test]
fn what_somebody_needs_is_not_deleted_and_the_holder_is_named() {
    let storage = CrashStorage::new();
    let unit = open(&storage).create_unit(spec(1)).unwrap();
    let checkpoints = overwritten(&unit, 6);
    let refusal = |id| {
        let error = unit.delete_checkpoints(&[checkpoints[3], id]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(unit.checkpoint(checkpoints[3]).is_some(), "all of them or none");
        error.to_string()
    };
    unit.consolidate(checkpoints[0], &|_, _| true).unwrap();
    assert!(refusal(checkpoints[0]).contains("the images hold"));
    assert!(refusal(checkpoints[5]).contains("newest"));
    let view = unit.view(checkpoints[1], DISK).unwrap();
    assert!(refusal(checkpoints[1]).contains("an open view of disk 0"));
    drop(view);
    let branch = unit.fork(checkpoints[1], session(7)).unwrap();
    assert!(refusal(checkpoints[1]).contains("session"));
    unit.protect_checkpoint(checkpoints[2], Checkpoint::FOREVER).unwrap();
    assert!(refusal(checkpoints[2]).contains("protection"));
    let past = unit.consolidate(checkpoints[4], &|_, _| true).unwrap_err();
    assert_eq!(past.kind(), ErrorKind::Busy, "the horizon passes no protected checkpoint");
    unit.drop_branch(branch).unwrap();
    let past = unit.consolidate(checkpoints[4], &|_, _| true).unwrap_err();
    assert!(past.to_string().contains("protection"), "{past}");
    assert_eq!(kind(unit.delete_checkpoints(&[CheckpointId(99)])), ErrorKind::NotFound);
    // Protection that is over, and one that is taken back.
    unit.protect_checkpoint(checkpoints[2], WallClock(5)).unwrap();
    unit.delete_checkpoints(&[checkpoints[2]]).unwrap();
    unit.protect_checkpoint(checkpoints[3], Checkpoint::FOREVER).unwrap();
    unit.protect_checkpoint(checkpoints[3], WallClock(0)).unwrap();
    unit.delete_checkpoints(&[checkpoints[3]]).unwrap();
    assert_eq!(unit.checkpoints().len(), 4);
}

/// A branch that starts in the middle keeps its base whatever is merged around it.
#[test]
fn no_merge_crosses_the_base_of_a_branch() {
    let unit = open(&CrashStorage::new()).create_unit(spec(1)).unwrap();
    let checkpoints = overwritten(&unit, 6);
    let branch = unit.fork(checkpoints[2], session(1)).unwrap();
    unit.delete_checkpoints(&[checkpoints[1], checkpoints[3], checkpoints[4]]).unwrap();
    thin(&unit, ThinGoal::Everything).unwrap();
    let disk = unit.disk(branch, DISK).unwrap();
    assert_eq!(byte_at(&*disk, 0), 3);
    write(&*disk, 0, 512, 77);
    assert_eq!((byte_at(&*disk, 0), byte_at(&*head(&unit), 0)), (77, 6));
    let changed = unit.difference(Point::Head(branch), Point::Checkpoint(checkpoints[2]), DISK).unwrap();
    assert_eq!(changed.iter().map(|(extent, ())| extent.len().get()).sum::<u64>(), 512);
}

/// What must be there, by checkpoint: the byte of each block.
type Expected = BTreeMap<CheckpointId, Vec<u8>>;

/// A story with every step of deleting and merging in it, over two branches and the horizon. Says what it has done so far
/// in `expected`; what it is about to delete goes from there first.
fn story(unit: &Unit, random: &mut Random, expected: &mut Expected) -> Result<()> {
    let main = unit.main_branch();
    let mut blocks = vec![0; (LEN / BLOCK) as usize];
    let mut round =
        |branch: BranchId, blocks: &mut Vec<u8>, expected: &mut Expected| -> Result<CheckpointId> {
            let disk = unit.disk(branch, DISK)?;
            for _ in 0..3 {
                let place = random.below(blocks.len() as u64) as usize;
                let byte = 1 + random.below(250) as u8;
                disk.write_at(
                    ByteOffset::new(place as u64 * BLOCK),
                    &[byte; BLOCK as usize],
                    false,
                    RequestClass::Guest,
                )?;
                blocks[place] = byte;
            }
            disk.seal_part()?;
            let at = unit.seal(branch, CheckpointSpec::crash_consistent_now())?.into_inner();
            expected.insert(at, blocks.clone());
            Ok(at)
        };
    let mut line = Vec::new();
    for _ in 0..7 {
        line.push(round(main, &mut blocks, expected)?);
    }
    let branch = unit.fork(line[3], session(3))?;
    let mut other = expected[&line[3]].clone();
    let mut side = Vec::new();
    for _ in 0..3 {
        side.push(round(branch, &mut other, expected)?);
    }
    for gone in [line[1], line[2], line[4], side[1]] {
        expected.remove(&gone);
    }
    unit.delete_checkpoints(&[line[1], line[2], line[4], side[1]])?;
    unit.thin(ThinGoal::Everything, &|_| true)?;
    line.push(round(main, &mut blocks, expected)?);
    expected.remove(&line[0]);
    unit.consolidate(line[3], &|_, _| true)?;
    expected.remove(&line[5]);
    unit.delete_checkpoints(&[line[5]])?;
    unit.thin(ThinGoal::Worthwhile, &|_| true).map(drop)
}

fn check(unit: &Unit, expected: &Expected, when: &str) {
    for (at, blocks) in expected {
        let view = unit.view(*at, DISK).unwrap_or_else(|error| panic!("{when}: {error}"));
        for (place, byte) in blocks.iter().enumerate() {
            assert_eq!(
                byte_at(&view, place as u64 * BLOCK + 700),
                *byte,
                "{when}: checkpoint {at}, block {place}"
            );
        }
    }
}

/// Finishes what may have been interrupted, and looks again.
fn go_on(unit: &Unit, expected: &Expected, when: &str) {
    check(unit, expected, when);
    if let Some(up_to) = unit.replaying() {
        unit.consolidate(up_to, &|_, _| true).unwrap();
    }
    thin(unit, ThinGoal::Everything).unwrap();
    check(unit, expected, &format!("{when}, after going on"));
}

#[test]
fn a_power_cut_at_every_change_leaves_every_checkpoint_that_was_to_stay() {
    for cut in 0.. {
        let storage = CrashStorage::new();
        let store = open(&storage);
        let unit = store.create_unit(spec(1)).unwrap();
        storage.power_off_after(cut);
        let mut expected = Expected::new();
        let finished = story(&unit, &mut Random::new(11), &mut expected).is_ok();
        drop((unit, store));
        for seed in 0..2 {
            let after = storage.crash(seed);
            let when = format!("cut after {cut} changes, seed {seed}");
            go_on(&open(&after).unit(machine(1)).unwrap(), &expected, &when);
            // Nothing is left lying about.
            assert!(open(&after).findings().is_empty(), "{when}: {:?}", open(&after).findings());
        }
        if finished {
            assert!(cut > 120, "the story has {cut} changes only");
            return;
        }
    }
}

/// The storage fills up at every page in turn: what cannot be done is refused with everything as it was, and goes on when
/// there is room.
#[test]
fn a_storage_that_fills_up_in_the_middle_of_thinning_loses_nothing() {
    let mut refused = 0;
    for pages in 0.. {
        let storage = CrashStorage::new();
        let store = open(&storage);
        let unit = store.create_unit(spec(1)).unwrap();
        let checkpoints = overwritten(&unit, 4);
        let expected = [0, 3].map(|i: usize| (checkpoints[i], 1 + i as u8));
        let free = pages * 4096;
        storage.set_capacity(Some(ByteLen::new(support::used(&storage) + free)));
        let outcome =
            unit.delete_checkpoints(&checkpoints[1..3]).and_then(|()| thin(&unit, ThinGoal::Everything));
        if let Err(error) = &outcome {
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
            refused += 1;
        }
        let look = |unit: &Unit| {
            for (at, byte) in expected {
                assert_eq!(byte_at(&unit.view(at, DISK).unwrap(), 9), byte, "{free} bytes free");
            }
        };
        look(&unit);
        drop((unit, store));
        let after = storage.crash(pages);
        let unit = open(&after).unit(machine(1)).unwrap();
        look(&unit);
        let inner: Vec<_> =
            unit.checkpoints().iter().map(|c| c.id).filter(|id| checkpoints[1..3].contains(id)).collect();
        unit.delete_checkpoints(&inner).unwrap();
        thin(&unit, ThinGoal::Everything).unwrap();
        look(&unit);
        assert!(logs_len(&after) <= LEN + 3 * 4096 * 2, "{} bytes are left", logs_len(&after));
        if outcome.is_ok() {
            break;
        }
    }
    assert!(refused > 100, "it was full {refused} times only");
}

/// Thinning, consolidation, merged indexes, seals, forks and readers at once, on real files.
#[test]
fn thinning_disturbs_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions { part_extents_max: 64, reserve: ByteLen::ZERO, ..StoreOptions::default() };
    let storage = std::sync::Arc::new(HostStorage::new(folder.path()).unwrap());
    let store = Store::open(storage, options).unwrap();
    let unit = store.create_unit(spec(1)).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let done = &done;
    std::thread::scope(|scope| {
        let unit = &unit;
        scope.spawn(move || {
            let mut random = Random::new(5);
            let mut expected = vec![0; LEN as usize];
            let disk = head(unit);
            for round in 0..60u64 {
                for _ in 0..40 {
                    let at = random.below(LEN / 512 - 8) as usize * 512;
                    random.fill(&mut expected[at..at + 4096]);
                    disk.write_at(
                        ByteOffset::new(at as u64),
                        &expected[at..at + 4096],
                        false,
                        RequestClass::Guest,
                    )
                    .unwrap();
                }
                let at = seal(unit, unit.main_branch());
                let view = unit.view(at, DISK).unwrap();
                let mut found = vec![0; LEN as usize];
                for volume in [&view as &dyn Volume, &*disk] {
                    volume.read_at(ByteOffset::ZERO, &mut found, RequestClass::Guest).unwrap();
                    assert!(found == expected, "round {round}");
                }
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        scope.spawn(move || {
            let mut random = Random::new(6);
            let mut merged = 0;
            while !done.load(std::sync::atomic::Ordering::Acquire) {
                let ids: Vec<_> =
                    unit.checkpoints().iter().map(|c| c.id).filter(|_| random.chance(60)).collect();
                for id in ids {
                    // The newest, or one that is being looked at.
                    let _ = unit.delete_checkpoints(&[id]);
                }
                merged += thin(unit, ThinGoal::Everything).unwrap().deltas;
                let all = unit.checkpoints();
                if let Some(oldest) = all.first().filter(|_| random.chance(20)) {
                    match unit.consolidate(oldest.id, &|_, _| true) {
                        Ok(_) => {}
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error}"),
                    }
                }
            }
            assert!(merged > 10, "{merged} deltas were merged only");
        });
    });
}
