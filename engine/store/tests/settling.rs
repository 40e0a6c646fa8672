//! An image that is being changed is recognised by its name, whatever happens; and a quota bounds replication alone.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/unit.rs"]
mod support;

use blocks::*;
use store::testing::CrashStorage;
use store::*;
use support::*;

fn image(storage: &CrashStorage) -> Option<Vec<u8>> {
    let name = format!("units/{}/disk0/image.raw", machine(1));
    let file = storage.open(&name, OpenMode::Read).ok()?;
    let mut bytes = vec![0; file.len().unwrap().as_usize()];
    file.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
    Some(bytes)
}

/// Two states that differ in many places.
fn two_checkpoints(unit: &Unit) -> [CheckpointId; 2] {
    [1, 2].map(|byte| {
        for at in (0..LEN).step_by(128 << 10) {
            write(&*head(unit), at, 70_000 / 512 * 512, byte);
        }
        seal(unit, unit.main_branch())
    })
}

fn state(byte: u8) -> Vec<u8> {
    let mut bytes = vec![0; LEN as usize];
    for at in (0..LEN as usize).step_by(128 << 10) {
        bytes[at..at + 70_000 / 512 * 512].fill(byte);
    }
    bytes
}

#[test]
fn a_half_settled_image_says_so_by_its_name() {
    let storage = CrashStorage::new();
    let unit = open(&storage).create_unit(spec(1)).unwrap();
    let [first, second] = two_checkpoints(&unit);
    unit.consolidate(first, &|_, _| true).unwrap();
    assert_eq!(image(&storage).unwrap(), state(1));
    let called_off = unit.consolidate(second, &|done, total| done.get() * 2 < total.get());
    assert_eq!(kind(called_off), ErrorKind::Cancelled);
    assert!(image(&storage).is_none(), "nobody takes it for a checkpoint");
    assert!(unit.image_name(DISK).unwrap().ends_with(SETTLING_SUFFIX));
    drop(unit);
    let unit = open(&storage.crash(1)).unit(machine(1)).unwrap();
    assert!(unit.image_name(DISK).unwrap().ends_with(SETTLING_SUFFIX), "a restart changes nothing of that");
    assert_eq!(byte_at(&*head(&unit), 5), 2);
    drop(unit);
    let unit = open(&storage).unit(machine(1)).unwrap();
    unit.consolidate(second, &|_, _| true).unwrap();
    assert_eq!(image(&storage).unwrap(), state(2));
    assert!(unit.image_name(DISK).unwrap().ends_with("image.raw"));
}

/// Whenever the power is cut: where there is a file of the image's own name it is one checkpoint or the other, whole.
#[test]
fn an_image_of_that_name_is_a_whole_checkpoint_at_every_cut() {
    let mut half_settled = 0;
    for cut in 0.. {
        let storage = CrashStorage::new();
        let store = open(&storage);
        let unit = store.create_unit(spec(1)).unwrap();
        let [first, second] = two_checkpoints(&unit);
        unit.consolidate(first, &|_, _| true).unwrap();
        storage.power_off_after(cut);
        let finished = unit.consolidate(second, &|_, _| true).is_ok();
        drop((unit, store));
        for seed in 0..4 {
            let after = storage.crash(seed);
            match image(&after) {
                Some(found) => assert!(found == state(1) || found == state(2), "cut {cut}, seed {seed}"),
                None => half_settled += 1,
            }
            let unit = open(&after).unit(machine(1)).unwrap();
            assert_eq!(byte_at(&*head(&unit), 5), 2);
            unit.consolidate(second, &|_, _| true).unwrap();
            assert_eq!(image(&after).unwrap(), state(2), "cut {cut}, seed {seed}");
        }
        if finished {
            break;
        }
    }
    assert!(half_settled > 10, "it was half-settled {half_settled} times only");
}

/// The storage is full at every page in turn while the image is written.
#[test]
fn a_storage_that_fills_up_in_the_middle_of_settling_loses_nothing() {
    let mut refused = 0;
    for pages in (0..).step_by(3) {
        let storage = CrashStorage::new();
        let store = open(&storage);
        let unit = store.create_unit(spec(1)).unwrap();
        let [first, second] = two_checkpoints(&unit);
        unit.consolidate(first, &|_, _| true).unwrap();
        storage.set_capacity(Some(ByteLen::new(used(&storage) + pages * 4096)));
        let full = unit.consolidate(second, &|_, _| true);
        if let Err(error) = &full {
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
            refused += 1;
        }
        assert_eq!(byte_at(&*head(&unit), 5), 2);
        drop((unit, store));
        let after = storage.crash(pages);
        let unit = open(&after).unit(machine(1)).unwrap();
        unit.consolidate(second, &|_, _| true).unwrap();
        assert_eq!(image(&after).unwrap(), state(2), "{pages} pages were free");
        if full.is_ok() {
            break;
        }
    }
    assert!(refused > 0, "it was never full");
}

#[test]
fn a_quota_stops_replication_alone_and_is_kept() {
    let storage = CrashStorage::new();
    let store = open(&storage);
    let (unit, other) = (store.create_unit(spec(1)).unwrap(), store.create_unit(spec(2)).unwrap());
    assert_eq!(kind(unit.set_quota(Some(ByteLen::ZERO))), ErrorKind::InvalidInput);
    // The image counts with what it takes up, which here is its length.
    unit.set_quota(Some(ByteLen::new(LEN + (300 << 10)))).unwrap();
    let append = |unit: &Unit, seq: u64| {
        head(unit).append(Seq(seq), extent(0, 65536), Payload::Data(&[seq as u8; 65536]))
    };
    let stopped = (1..).find(|seq| append(&unit, *seq).is_err()).unwrap();
    assert_eq!(stopped, 5, "four times 64 KiB fit");
    let error = append(&unit, stopped).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("quota"), "{error}");
    assert!(unit.is_quota_reached(ByteLen::new(65536)).unwrap());
    // Neither another machine, nor a checkpoint, nor a guest is stopped.
    (1..20).for_each(|seq| append(&other, seq).unwrap());
    let at = seal(&unit, unit.main_branch());
    let branch = unit.fork(at, session(1)).unwrap();
    write(&*unit.disk(branch, DISK).unwrap(), 0, 65536, 9);
    unit.drop_branch(branch).unwrap();
    drop((unit, other, store));
    let unit = open(&storage.crash(2)).unit(machine(1)).unwrap();
    assert_eq!(kind(append(&unit, stopped)), ErrorKind::NoSpace, "a restart keeps it");
    // Room by consolidation, by thinning and by a larger quota.
    unit.consolidate(at, &|_, _| true).unwrap();
    (stopped..stopped + 4).for_each(|seq| append(&unit, seq).unwrap());
    seal(&unit, unit.main_branch());
    assert_eq!(kind(append(&unit, stopped + 4)), ErrorKind::NoSpace);
    assert!(unit.thin(ThinGoal::Worthwhile, &|_| true).unwrap().freed.get() > 0);
    append(&unit, stopped + 4).unwrap();
    unit.set_quota(None).unwrap();
    (stopped + 5..stopped + 20).for_each(|seq| append(&unit, seq).unwrap());
    assert_eq!(unit.usage().unwrap().quota, None);
}
