//! What the store promises, one promise a test.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use blocks::*;
use std::sync::Arc;
use store::testing::{CrashStorage, Random};
use store::*;

const LEN: u64 = 1 << 20;
const DISK: DiskIndex = DiskIndex(0);

fn options() -> StoreOptions {
    StoreOptions { reserve: ByteLen::ZERO, merge_in_background: false, ..StoreOptions::default() }
}

fn machine(byte: u8) -> MachineId {
    MachineId(Id::from_bytes([byte; 16]).unwrap())
}

fn session(byte: u8) -> BranchKind {
    BranchKind::Session(SessionId(Id::from_bytes([byte; 16]).unwrap()))
}

fn spec(byte: u8, name: &str) -> UnitSpec {
    UnitSpec {
        machine: machine(byte),
        name: name.into(),
        definition: b"{}".to_vec(),
        disks: vec![DiskSpec { len: ByteLen::new(LEN), serial: "S1".into(), device: "/dev/sda".into() }],
        image_format: ImageFormat::Raw,
    }
}

fn try_open(storage: &CrashStorage) -> Result<Store> {
    Store::open(Arc::new(storage.clone()), options())
}

fn open(storage: &CrashStorage) -> Store {
    let store = try_open(storage).unwrap();
    assert!(store.damaged_units().is_empty(), "{:?}", store.findings());
    store
}

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

fn head(unit: &Unit) -> Arc<BranchDisk> {
    unit.disk(unit.main_branch(), DISK).unwrap()
}

fn write(volume: &dyn Volume, start: u64, len: usize, byte: u8) {
    volume.write_at(ByteOffset::new(start), &vec![byte; len], false, RequestClass::Guest).unwrap();
}

fn seal(unit: &Unit, branch: BranchId) -> CheckpointId {
    unit.seal(branch, CheckpointSpec::crash_consistent_now()).unwrap().into_inner()
}

fn byte_at(volume: &dyn Volume, at: u64) -> u8 {
    let mut sector = [0; 512];
    volume.read_at(ByteOffset::new(at / 512 * 512), &mut sector, RequestClass::Guest).unwrap();
    sector[(at % 512) as usize]
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().expect("an error").kind()
}

#[test]
fn a_new_store_stays_the_same_one() {
    let storage = CrashStorage::new();
    let id = open(&storage).id();
    assert_eq!(open(&storage.crash(1)).id(), id);
}

#[test]
fn a_folder_in_use_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Store::open(Arc::new(HostStorage::new(folder.path()).unwrap()), StoreOptions::default());
    let held = open().unwrap();
    let error = open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
    drop(held);
    open().unwrap();
}

#[test]
fn names_and_machines_are_unique_and_impossible_disks_leave_nothing() {
    let storage = CrashStorage::new();
    let store = open(&storage);
    store.create_unit(spec(1, "box")).unwrap();
    assert_eq!(kind(store.create_unit(spec(1, "other"))), ErrorKind::AlreadyExists);
    assert_eq!(kind(store.create_unit(spec(2, "box"))), ErrorKind::AlreadyExists);
    let mut large = spec(3, "large");
    large.image_format = ImageFormat::Vhd;
    large.disks[0].len = ByteLen::new(2041 << 30);
    assert_eq!(kind(store.create_unit(large)), ErrorKind::Unsupported);
    let mut odd = spec(4, "odd");
    odd.disks[0].len = ByteLen::new(1000);
    assert_eq!(kind(store.create_unit(odd)), ErrorKind::InvalidInput);
    assert_eq!(storage.list("units").unwrap(), [machine(1).to_string()]);
    assert_eq!(store.unit_by_name("box").unwrap().machine(), machine(1));
}

#[test]
fn facts_of_a_unit_survive() {
    let storage = CrashStorage::new();
    let unit = open(&storage).create_unit(spec(1, "box")).unwrap();
    unit.set_definition(b"new".to_vec()).unwrap();
    unit.set_note("migration", Some(vec![7; 64 << 10])).unwrap();
    unit.set_note("gone", Some(vec![1])).unwrap();
    unit.set_note("gone", None).unwrap();
    assert_eq!(kind(unit.set_note("long", Some(vec![0; (64 << 10) + 1]))), ErrorKind::InvalidInput);
    assert_eq!(unit.promote().unwrap().get().0, 2);
    let gap = |until| Gap { from: WallClock(5), until: WallClock(until), cause: "frozen too long".into() };
    unit.record_gap(gap(0)).unwrap();
    unit.record_gap(gap(9)).unwrap();
    let unit = open(&storage.crash(3)).unit(machine(1)).unwrap();
    assert_eq!(unit.definition(), b"new");
    assert_eq!(unit.notes(), ["migration"]);
    assert_eq!(unit.note("migration").unwrap().len(), 64 << 10);
    assert_eq!(unit.generation(), Generation(2));
    assert_eq!(unit.gaps(), [gap(9)]);
}

#[test]
fn zero_discard_and_data_are_told_apart() {
    let unit = open(&CrashStorage::new()).create_unit(spec(1, "box")).unwrap();
    let disk = head(&unit);
    disk.append(Seq(1), extent(0, 4096), Payload::Data(&[1; 4096])).unwrap();
    disk.append(Seq(2), extent(1024, 512), Payload::Zero).unwrap();
    disk.append(Seq(3), extent(2048, 512), Payload::Discard).unwrap();
    let expected = [
        (1024, Allocation::Data),
        (512, Allocation::Zero),
        (512, Allocation::Data),
        (512, Allocation::Hole),
        (1536, Allocation::Data),
        (LEN - 4096, Allocation::Hole),
    ];
    let runs = |volume: &dyn Volume| -> Vec<_> {
        let runs = volume.status(extent(0, LEN)).unwrap();
        runs.iter().map(|run| (run.extent.len().get(), run.allocation)).collect()
    };
    assert_eq!(runs(&*disk), expected);
    let at = seal(&unit, unit.main_branch());
    assert_eq!(runs(&*disk), expected);
    let view = unit.view(at, DISK).unwrap();
    assert_eq!(runs(&view), expected);
    assert_eq!(
        kind(view.write_at(ByteOffset::ZERO, &[0; 512], false, RequestClass::Guest)),
        ErrorKind::ReadOnly
    );
}

#[test]
fn wrong_requests_change_nothing() {
    let unit = open(&CrashStorage::new()).create_unit(spec(1, "box")).unwrap();
    let disk = head(&unit);
    disk.append(Seq(5), extent(0, 512), Payload::Zero).unwrap();
    assert_eq!(kind(disk.append(Seq(5), extent(0, 512), Payload::Zero)), ErrorKind::InvalidInput);
    assert_eq!(kind(disk.append(Seq(6), extent(0, 512), Payload::Data(&[1; 511]))), ErrorKind::InvalidInput);
    assert_eq!(kind(disk.append(Seq(6), extent(1, 512), Payload::Zero)), ErrorKind::InvalidInput);
    assert_eq!(kind(disk.append(Seq(6), extent(LEN, 512), Payload::Zero)), ErrorKind::OutOfRange);
    assert_eq!(disk.last_seq(), Seq(5));
    assert_eq!(disk.sync().unwrap().into_inner(), Seq(5));
    assert_eq!(kind(unit.view(CheckpointId(77), DISK)), ErrorKind::NotFound);
    assert_eq!(kind(unit.disk(unit.main_branch(), DiskIndex(1))), ErrorKind::NotFound);
    assert_eq!(kind(unit.drop_branch(unit.main_branch())), ErrorKind::InvalidInput);
}

#[test]
fn a_failed_sync_or_write_poisons_the_disk_until_it_is_reopened() {
    for fail_write in [false, true] {
        let storage = CrashStorage::new();
        let store = open(&storage);
        let unit = store.create_unit(spec(1, "box")).unwrap();
        let disk = head(&unit);
        write(&*disk, 0, 512, 1);
        disk.sync().unwrap();
        if fail_write {
            storage.fail_write(1);
            assert_eq!(
                kind(disk.write_at(ByteOffset::ZERO, &[2; 512], false, RequestClass::Guest)),
                ErrorKind::Io
            );
        } else {
            write(&*disk, 0, 512, 2);
            storage.fail_sync(1);
            assert_eq!(kind(disk.sync()), ErrorKind::Io);
        }
        assert_eq!(kind(disk.sync()), ErrorKind::Poisoned);
        assert_eq!(
            kind(disk.write_at(ByteOffset::ZERO, &[3; 512], false, RequestClass::Guest)),
            ErrorKind::Poisoned
        );
        assert_eq!(
            kind(unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now())),
            ErrorKind::Poisoned
        );
        drop((disk, unit, store));
        let store = open(&storage.crash(4));
        let disk = head(&store.unit(machine(1)).unwrap());
        assert!([1, 2].contains(&byte_at(&*disk, 0)));
        write(&*disk, 0, 512, 4);
        disk.sync().unwrap();
    }
}

#[test]
fn a_full_store_refuses_before_it_writes_and_goes_on_when_there_is_room() {
    let storage = CrashStorage::new();
    let reserve = ByteLen::new(1 << 20);
    storage.set_capacity(Some(ByteLen::new(3 << 20)));
    let store = Store::open(Arc::new(storage.clone()), StoreOptions { reserve, ..options() }).unwrap();
    let unit = store.create_unit(spec(1, "box")).unwrap();
    let disk = head(&unit);
    write(&*disk, 0, 512, 1);
    disk.sync().unwrap();
    let mut data = vec![0; 64 << 10];
    Random::new(1).fill(&mut data);
    let mut written = 0;
    let error = loop {
        match disk.write_at(ByteOffset::new(512), &data, false, RequestClass::Guest) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1000, "the store never fills");
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(byte_at(&*disk, 512), data[0]);
    // The reserve is there for this.
    seal(&unit, unit.main_branch());
    storage.set_capacity(None);
    write(&*disk, 512, 512, 9);
    disk.sync().unwrap();
    assert_eq!(byte_at(&*disk, 512), 9);
}

#[test]
fn rot_in_a_log_is_reported_with_file_offset_and_extent() {
    let storage = CrashStorage::new();
    let store = open(&storage);
    let unit = store.create_unit(spec(1, "box")).unwrap();
    let disk = head(&unit);
    write(&*disk, 0, 4096, 1);
    write(&*disk, 8192, 4096, 2);
    let at = seal(&unit, unit.main_branch());
    let name = format!("units/{}/disk0/1.log", machine(1));
    storage.flip_bit(&name, ByteOffset::new(64 + 700), 1).unwrap();
    let view = unit.view(at, DISK).unwrap();
    let mut buffer = [0; 512];
    let error = view.read_at(ByteOffset::new(512), &mut buffer, RequestClass::Guest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let text = error.to_string();
    assert!(text.contains(&name) && text.contains("offset 64") && text.contains("bytes 512..1024"), "{text}");
    assert_eq!(byte_at(&view, 8192), 2);
}

/// What lay behind a torn record must not come back when the place of the torn one is written again.
#[test]
fn what_was_cut_never_returns() {
    let storage = CrashStorage::new();
    let unit = open(&storage).create_unit(spec(1, "box")).unwrap();
    for (start, byte) in [(0, 1), (4096, 2), (8192, 3)] {
        write(&*head(&unit), start, 512, byte);
    }
    drop(unit);
    let name = format!("units/{}/disk0/1.log", machine(1));
    storage.flip_bit(&name, ByteOffset::new(64 + 512 + 64 + 9), 2).unwrap();
    let store = open(&storage);
    assert!(store.findings()[0].contains("torn tail of 1152 bytes at offset 576"), "{:?}", store.findings());
    let unit = store.unit(machine(1)).unwrap();
    assert_eq!(head(&unit).last_seq(), Seq(1));
    write(&*head(&unit), 4096, 512, 4);
    head(&unit).sync().unwrap();
    drop((unit, store));
    let unit = open(&storage.crash(1)).unit(machine(1)).unwrap();
    assert_eq!(head(&unit).last_seq(), Seq(2));
    let bytes = [0, 4096, 8192].map(|at| byte_at(&*head(&unit), at));
    assert_eq!(bytes, [1, 4, 0]);
}

/// What a kill leaves of long writes that went past the page cache is no torn tail, and nothing of it is lost.
#[test]
fn a_kill_in_the_middle_of_long_writes_is_no_finding() {
    let storage = CrashStorage::new();
    let open = |storage: CrashStorage| {
        let options = StoreOptions { long_write: ByteLen::new(4096), ..options() };
        Store::open(Arc::new(storage), options).unwrap()
    };
    let unit = open(storage.clone()).create_unit(spec(1, "box")).unwrap();
    for block in 0..40 {
        write(&*head(&unit), block * 8192, 8192, block as u8 + 1);
    }
    let log = storage.open(&format!("units/{}/disk0/1.log", machine(1)), OpenMode::Read).unwrap();
    assert_eq!(log.len().unwrap().get() % 4096, 0, "it ends with a block that is filled up");
    drop((unit, log));
    let store = open(storage.survive());
    assert_eq!(store.findings(), [] as [String; 0]);
    let unit = store.unit(machine(1)).unwrap();
    for block in 0..40 {
        assert_eq!(byte_at(&*head(&unit), block * 8192 + 8191), block as u8 + 1);
    }
    assert_eq!(head(&unit).last_seq(), Seq(40));
    let sealed = seal(&unit, unit.main_branch());
    assert_eq!(byte_at(&unit.view(sealed, DISK).unwrap(), 39 * 8192), 40);
}

#[test]
fn rot_in_the_image_is_found() {
    let storage = CrashStorage::new();
    let unit = open(&storage).create_unit(spec(1, "box")).unwrap();
    write(&*head(&unit), 0, 4096, 1);
    let at = seal(&unit, unit.main_branch());
    unit.consolidate(at, &|_, _| true).unwrap();
    storage.flip_bit(&unit.image_name(DISK).unwrap(), ByteOffset::new(100), 1).unwrap();
    let view = unit.view(at, DISK).unwrap();
    assert_eq!(kind(view.read_at(ByteOffset::ZERO, &mut [0; 512], RequestClass::Guest)), ErrorKind::Corrupt);
}

#[test]
fn a_damaged_unit_leaves_the_others_usable_and_is_left_alone() {
    let storage = CrashStorage::new();
    let store = open(&storage);
    for (byte, name) in [(1, "one"), (2, "two"), (3, "three")] {
        let unit = store.create_unit(spec(byte, name)).unwrap();
        write(&*head(&unit), 0, 512, byte);
        head(&unit).sync().unwrap();
        write(&*head(&unit), 0, 512, byte);
        head(&unit).sync().unwrap();
    }
    drop(store);
    storage.flip_bit(&format!("units/{}/manifest", machine(1)), ByteOffset::new(30), 0).unwrap();
    storage.flip_bit(&format!("units/{}/disk0/1.log", machine(2)), ByteOffset::new(30), 0).unwrap();
    let store = try_open(&storage).unwrap();
    let damaged = store.damaged_units();
    assert_eq!(damaged.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [machine(1), machine(2)]);
    assert!(damaged[0].1.contains("manifest"), "{damaged:?}");
    assert!(damaged[1].1.contains("1.log") && damaged[1].1.contains("offset 0"), "{damaged:?}");
    assert_eq!(store.units().len(), 1);
    assert_eq!(byte_at(&*head(&store.unit(machine(3)).unwrap()), 0), 3);
    assert_eq!(kind(store.create_unit(spec(1, "again"))), ErrorKind::AlreadyExists);
    drop(store);
    storage.flip_bit(&format!("units/{}/manifest", machine(1)), ByteOffset::new(30), 0).unwrap();
    storage.flip_bit(&format!("units/{}/disk0/1.log", machine(2)), ByteOffset::new(30), 0).unwrap();
    assert_eq!(open(&storage).units().len(), 3);
}

#[test]
fn a_missing_file_or_marker_is_damage_not_emptiness() {
    let storage = CrashStorage::new();
    let unit = open(&storage).create_unit(spec(1, "box")).unwrap();
    write(&*head(&unit), 0, 512, 1);
    seal(&unit, unit.main_branch());
    drop(unit);
    storage.remove(&format!("units/{}/disk0/1.index", machine(1))).unwrap();
    let damaged = try_open(&storage).unwrap().damaged_units();
    assert!(damaged[0].1.contains("1.index is missing"), "{damaged:?}");
    storage.remove("store").unwrap();
    assert_eq!(kind(try_open(&storage)), ErrorKind::Corrupt);
}

#[test]
fn the_horizon_passes_no_pin_and_names_the_holder() {
    let unit = open(&CrashStorage::new()).create_unit(spec(1, "box")).unwrap();
    let main = unit.main_branch();
    let mut checkpoints = Vec::new();
    for byte in 1..=3 {
        write(&*head(&unit), 0, 512, byte);
        checkpoints.push(seal(&unit, main));
    }
    let view = unit.view(checkpoints[0], DISK).unwrap();
    let error = unit.consolidate(checkpoints[1], &|_, _| true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("an open view of disk 0"), "{error}");
    unit.consolidate(checkpoints[0], &|_, _| true).unwrap();
    assert_eq!(byte_at(&view, 0), 1);
    drop(view);
    let branch = unit.fork(checkpoints[0], session(4)).unwrap();
    let error = unit.consolidate(checkpoints[2], &|_, _| true).unwrap_err();
    assert!(error.to_string().contains(&session(4).to_string()), "{error}");
    assert_eq!(unit.pins().len(), 1);
    unit.drop_branch(branch).unwrap();
    let newest = unit.view(checkpoints[2], DISK).unwrap();
    let report = unit.consolidate(checkpoints[2], &|_, _| true).unwrap();
    assert_eq!((report.written.get(), report.deltas), (512, 2));
    assert_eq!((byte_at(&newest, 0), byte_at(&*head(&unit), 0)), (3, 3));
    assert_eq!(unit.horizon(), Some(checkpoints[2]));
    assert_eq!(kind(unit.view(checkpoints[1], DISK)), ErrorKind::NotFound);
}

#[test]
fn consolidated_logs_go_with_their_last_reader() {
    let storage = CrashStorage::new();
    let unit = open(&storage).create_unit(spec(1, "box")).unwrap();
    for byte in 1..=9 {
        write(&*head(&unit), u64::from(byte) * 512, 512, byte);
        seal(&unit, unit.main_branch());
    }
    let newest = unit.checkpoints().last().unwrap().id;
    let view = unit.view(newest, DISK).unwrap();
    let files = || storage.list(&format!("units/{}/disk0", machine(1))).unwrap();
    unit.consolidate(newest, &|_, _| true).unwrap();
    assert!(files().contains(&"9.log".to_owned()));
    assert_eq!(byte_at(&view, 9 * 512), 9);
    drop(view);
    assert_eq!(files(), ["image.raw", "image.sums"]);
    assert_eq!(byte_at(&*head(&unit), 9 * 512), 9);
}

#[test]
fn what_is_in_use_is_not_removed() {
    let storage = CrashStorage::new();
    let store = open(&storage);
    let unit = store.create_unit(spec(1, "box")).unwrap();
    write(&*head(&unit), 0, 512, 1);
    let at = seal(&unit, unit.main_branch());
    let branch = unit.fork(at, session(1)).unwrap();
    let disk = unit.disk(branch, DISK).unwrap();
    assert_eq!(kind(unit.drop_branch(branch)), ErrorKind::Busy);
    assert_eq!(kind(store.remove_unit(machine(1))), ErrorKind::Busy);
    write(&*disk, 0, 512, 2);
    let inner = seal(&unit, branch);
    drop(disk);
    let view = unit.view(inner, DISK).unwrap();
    assert_eq!(kind(unit.drop_branch(branch)), ErrorKind::Busy);
    drop(view);
    let nested = unit.fork(inner, session(2)).unwrap();
    assert_eq!(kind(unit.drop_branch(branch)), ErrorKind::Busy);
    unit.drop_branch(nested).unwrap();
    unit.drop_branch(branch).unwrap();
    store.remove_unit(machine(1)).unwrap();
    assert_eq!(kind(unit.promote()), ErrorKind::NotFound);
    assert!(storage.list("units").unwrap().is_empty());
}

#[test]
fn differences_are_exact_to_the_sector_and_see_both_sides_of_a_fork() {
    let unit = open(&CrashStorage::new()).create_unit(spec(1, "box")).unwrap();
    let main = unit.main_branch();
    write(&*head(&unit), 0, 65536, 1);
    let base = seal(&unit, main);
    let branch = unit.fork(base, session(1)).unwrap();
    write(&*head(&unit), 512, 512, 2);
    let tail = seal(&unit, main);
    let disk = unit.disk(branch, DISK).unwrap();
    write(&*disk, 4096, 1024, 3);
    let part = disk.seal_part().unwrap();
    write(&*disk, 8192, 512, 4);
    let set = |extents: &[(u64, u64)]| -> ExtentSet { extents.iter().map(|(s, l)| extent(*s, *l)).collect() };
    let difference = |a, b| unit.difference(a, b, DISK).unwrap();
    let (head, tail) = (Point::Head(branch), Point::Checkpoint(tail));
    assert_eq!(difference(head, tail), set(&[(512, 512), (4096, 1024), (8192, 512)]));
    assert_eq!(difference(Point::Checkpoint(base), tail), set(&[(512, 512)]));
    assert_eq!(disk.changed_since_fork().unwrap(), set(&[(4096, 1024), (8192, 512)]));
    assert_eq!(disk.changed_since(part).unwrap(), set(&[(8192, 512)]));
    let superseded = unit.adopt(branch).unwrap();
    assert_eq!((superseded, unit.main_branch()), (main, branch));
    assert_eq!(
        difference(Point::Head(superseded), Point::Head(branch)),
        set(&[(512, 512), (4096, 1024), (8192, 512)])
    );
    assert_eq!(byte_at(&*disk, 512), 1);
    assert_eq!(byte_at(&*unit.disk(superseded, DISK).unwrap(), 512), 2);
    let info = unit.branches().into_iter().find(|info| info.id == superseded).unwrap();
    assert_eq!((info.kind, info.base), (BranchKind::Superseded, Some(base)));
    assert_eq!(unit.checkpoint(base).unwrap().branch, branch);
}

#[test]
fn memory_is_bounded_by_parts_and_parts_are_recovered() {
    let storage = CrashStorage::new();
    let options = StoreOptions { part_extents_max: 100, ..options() };
    let store = Store::open(Arc::new(storage.clone()), options).unwrap();
    let unit = store.create_unit(spec(1, "box")).unwrap();
    let disk = head(&unit);
    for number in 0..1000u64 {
        write(&*disk, number * 1024, 512, (number % 255) as u8 + 1);
    }
    disk.sync().unwrap();
    let files = storage.list(&format!("units/{}/disk0", machine(1))).unwrap();
    assert!(files.iter().filter(|name| name.ends_with(".log")).count() >= 10, "{files:?}");
    assert!(files.iter().any(|name| name.contains('-')), "nothing was merged: {files:?}");
    let unit = open(&storage.crash(9)).unit(machine(1)).unwrap();
    assert_eq!(head(&unit).last_seq(), Seq(1000));
    for number in 0..1000u64 {
        assert_eq!(byte_at(&*head(&unit), number * 1024), (number % 255) as u8 + 1);
    }
}

#[test]
fn a_disk_of_one_pebibyte_fits_every_format() {
    let storage = CrashStorage::new();
    let mut spec = spec(1, "large");
    let len = 1u64 << 50;
    spec.disks[0].len = ByteLen::new(len);
    let unit = open(&storage).create_unit(spec).unwrap();
    let disk = head(&unit);
    disk.write_zeroes(extent(0, len), false, false, RequestClass::Guest).unwrap();
    write(&*disk, len - 512, 512, 7);
    disk.sync().unwrap();
    let unit = open(&storage.crash(1)).unit(machine(1)).unwrap();
    let at = seal(&unit, unit.main_branch());
    let view = unit.view(at, DISK).unwrap();
    assert_eq!((byte_at(&view, len - 1), byte_at(&view, len / 2)), (7, 0));
    assert_eq!(unit.checkpoint(at).unwrap().changed.get(), len);
    let runs: Vec<_> =
        view.status(extent(0, len)).unwrap().iter().map(|run| run.extent.len().get()).collect();
    assert_eq!(runs, [len - 512, 512]);
}

/// Readers, writers, syncs, seals, merges and consolidation at once, on real files.
#[test]
fn everything_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions { part_extents_max: 64, reserve: ByteLen::ZERO, ..StoreOptions::default() };
    let store = Store::open(Arc::new(HostStorage::new(folder.path()).unwrap()), options.clone()).unwrap();
    let unit = store.create_unit(spec(1, "box")).unwrap();
    let main = unit.main_branch();
    let stripes = 4u64;
    std::thread::scope(|scope| {
        for stripe in 0..stripes {
            let disk = head(&unit);
            scope.spawn(move || {
                let mut random = Random::new(stripe);
                for round in 0..300u64 {
                    let at = stripe * (LEN / stripes) + random.below(LEN / stripes / 512 - 8) * 512;
                    let mut data = vec![0; 4096];
                    random.fill(&mut data);
                    disk.write_at(ByteOffset::new(at), &data, round % 10 == 0, RequestClass::Guest).unwrap();
                    let mut found = vec![0; 4096];
                    disk.read_at(ByteOffset::new(at), &mut found, RequestClass::Guest).unwrap();
                    assert_eq!(found, data);
                }
            });
        }
        let unit = &unit;
        scope.spawn(move || {
            for round in 0..40 {
                let at = seal(unit, main);
                let view = unit.view(at, DISK).unwrap();
                let mut before = vec![0; LEN as usize];
                view.read_at(ByteOffset::ZERO, &mut before, RequestClass::Background).unwrap();
                if round % 8 == 7 {
                    unit.consolidate(at, &|_, _| true).unwrap();
                }
                let mut after = vec![0; LEN as usize];
                view.read_at(ByteOffset::ZERO, &mut after, RequestClass::Background).unwrap();
                assert!(before == after, "a view changed");
            }
        });
    });
    let mut expected = vec![0; LEN as usize];
    head(&unit).read_at(ByteOffset::ZERO, &mut expected, RequestClass::Guest).unwrap();
    head(&unit).sync().unwrap();
    drop((unit, store));
    let store = Store::open(Arc::new(HostStorage::new(folder.path()).unwrap()), options).unwrap();
    let mut found = vec![0; LEN as usize];
    head(&store.unit(machine(1)).unwrap())
        .read_at(ByteOffset::ZERO, &mut found, RequestClass::Guest)
        .unwrap();
    assert!(found == expected);
}

/// One story with every kind of publication in it, cut off after each of its changes in turn.
#[test]
fn a_power_cut_at_every_single_change_leaves_a_right_unit() {
    let mut cut = 0;
    loop {
        let storage = CrashStorage::new();
        let store = open(&storage);
        let unit = store.create_unit(spec(1, "box")).unwrap();
        storage.power_off_after(cut);
        let mut promised = Promised::default();
        let finished = story(&unit, &mut promised).is_ok();
        drop((unit, store));
        for seed in 0..3 {
            let store = open(&storage.crash(seed));
            promised
                .check(&store.unit(machine(1)).unwrap(), &format!("cut after {cut} changes, seed {seed}"));
        }
        if finished {
            assert!(cut > 60, "the story has {cut} changes only");
            return;
        }
        cut += 1;
    }
}

/// What was acknowledged: bytes of checkpoints, and the main branch's.
#[derive(Default)]
struct Promised {
    checkpoints: Vec<(CheckpointId, u8)>,
    synced: u8,
    consolidating: bool,
    adopting: bool,
    session_synced: u8,
}

fn story(unit: &Unit, promised: &mut Promised) -> Result<()> {
    let main = unit.main_branch();
    let put = |disk: &BranchDisk, byte: u8| {
        disk.write_at(ByteOffset::new(2048), &[byte; 70_000 / 512 * 512], false, RequestClass::Guest)
    };
    for byte in 1..=9 {
        put(&head(unit), byte)?;
        head(unit).sync()?;
        promised.synced = byte;
        let at = unit.seal(main, CheckpointSpec::crash_consistent_now())?.into_inner();
        promised.checkpoints.push((at, byte));
    }
    promised.consolidating = true;
    unit.consolidate(promised.checkpoints[6].0, &|_, _| true)?;
    promised.consolidating = false;
    promised.checkpoints.drain(..6);
    let base = promised.checkpoints[1].0;
    let branch = unit.fork(base, session(3))?;
    let disk = unit.disk(branch, DISK)?;
    put(&disk, 100)?;
    disk.sync()?;
    promised.session_synced = 100;
    put(&head(unit), 10)?;
    head(unit).sync()?;
    promised.synced = 10;
    promised.adopting = true;
    let old = unit.adopt(branch)?;
    promised.adopting = false;
    promised.synced = 100;
    // The tail's checkpoint goes with its branch.
    let tail = promised.checkpoints.pop();
    assert!(tail.is_some_and(|(id, _)| id > base));
    unit.drop_branch(old)
}

impl Promised {
    fn check(&self, unit: &Unit, when: &str) {
        for (at, byte) in &self.checkpoints {
            match unit.view(*at, DISK) {
                Ok(view) => {
                    assert_eq!((byte_at(&view, 2048), byte_at(&view, 70_000)), (*byte, *byte), "{when}")
                }
                Err(error) => assert!(self.consolidating && *at < self.checkpoints[6].0, "{when}: {error}"),
            }
        }
        let found = byte_at(&*head(unit), 2048);
        let adopted = self.adopting && found == self.session_synced;
        assert!(
            adopted || found == self.synced || found == self.synced + 1,
            "{when}: {found} on the main branch"
        );
        if self.session_synced > 0 {
            let any =
                unit.branches().iter().any(|info| byte_at(&*unit.disk(info.id, DISK).unwrap(), 2048) == 100);
            assert!(any, "{when}: the session's writes are gone");
        }
        if unit.replaying().is_some() {
            unit.consolidate(unit.replaying().unwrap(), &|_, _| true).unwrap();
            assert_eq!(byte_at(&*head(unit), 2048), found, "{when}: after the replay was repeated");
        }
    }
}
