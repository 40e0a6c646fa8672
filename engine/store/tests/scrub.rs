//! Whatever is damaged is found and named, with the checkpoints that it touches; what can be made again exactly is.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use blocks::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use store::testing::{CrashStorage, Random};
use store::*;

const LEN: u64 = 512 << 10;
const DISK: DiskIndex = DiskIndex(0);

fn options() -> StoreOptions {
    StoreOptions { reserve: ByteLen::ZERO, merge_in_background: false, ..StoreOptions::default() }
}

fn machine() -> MachineId {
    MachineId(Id::from_bytes([7; 16]).unwrap())
}

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

fn read(volume: &dyn Volume, extent: Extent) -> Result<Vec<u8>> {
    let mut bytes = vec![0; extent.len().as_usize()];
    volume.read_at(extent.start(), &mut bytes, RequestClass::Background).map(|()| bytes)
}

fn whole() -> Extent {
    extent(0, LEN)
}

fn write_some(disk: &BranchDisk, random: &mut Random, writes: u64) {
    for _ in 0..writes {
        let sectors = 1 + random.below(40);
        let at = random.below(LEN / 512 - sectors) * 512;
        let mut bytes = vec![1 + (at / 512) as u8 % 200; (sectors * 512) as usize];
        if random.chance(50) {
            random.fill(&mut bytes);
        }
        let extent = extent(at, sectors * 512);
        let payload = match random.below(8) {
            0 => Payload::Zero,
            1 => Payload::Discard,
            _ => Payload::Data(&bytes),
        };
        disk.append(disk.last_seq().next(), extent, payload).unwrap();
    }
}

/// Two branches, an image, merged indexes, thinned deltas, an open delta; and what every checkpoint holds.
fn history(storage: &CrashStorage, seed: u64) -> Vec<(CheckpointId, Vec<u8>)> {
    let mut random = Random::new(seed);
    // Logs with and without compressed payloads.
    let compress = if random.chance(50) { Compression::Always } else { Compression::Never };
    let store = Store::open(Arc::new(storage.clone()), StoreOptions { compress, ..options() }).unwrap();
    let disks = vec![DiskSpec { len: ByteLen::new(LEN), serial: "S".into(), device: "/dev/sda".into() }];
    let spec = UnitSpec {
        machine: machine(),
        name: "box".into(),
        definition: b"{}".to_vec(),
        disks,
        image_format: ImageFormat::Raw,
    };
    let unit = store.create_unit(spec).unwrap();
    let main = unit.disk(unit.main_branch(), DISK).unwrap();
    for _ in 0..12 {
        write_some(&main, &mut random, 6);
        unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now()).unwrap();
    }
    let third = unit.checkpoints()[2].id;
    unit.consolidate(third, &|_, _| true).unwrap();
    let sparse: Vec<_> = unit.checkpoints()[6..8].iter().map(|checkpoint| checkpoint.id).collect();
    unit.delete_checkpoints(&sparse).unwrap();
    assert!(unit.thin(ThinGoal::Everything, &|_| true).unwrap().deltas > 0);
    let session = BranchKind::Session(SessionId(Id::from_bytes([9; 16]).unwrap()));
    let branch = unit.fork(unit.checkpoints()[4].id, session).unwrap();
    write_some(&unit.disk(branch, DISK).unwrap(), &mut random, 6);
    unit.seal(branch, CheckpointSpec::crash_consistent_now()).unwrap();
    for disk in [main, unit.disk(branch, DISK).unwrap()] {
        write_some(&disk, &mut random, 3);
        disk.sync().unwrap();
        write_some(&disk, &mut random, 1);
        disk.sync().unwrap();
    }
    let held = |checkpoint: &Checkpoint| {
        (checkpoint.id, read(&unit.view(checkpoint.id, DISK).unwrap(), whole()).unwrap())
    };
    unit.checkpoints().iter().map(held).collect()
}

fn check_rest(storage: &CrashStorage) -> ScrubReport {
    let storage: Arc<dyn Storage> = Arc::new(storage.clone());
    check(&storage, &Pace::unlimited(), &|_, _, _| {}).unwrap()
}

fn names(storage: &CrashStorage, dir: &str) -> Vec<String> {
    let inside = |name: String| if dir.is_empty() { name } else { format!("{dir}/{name}") };
    let here = storage.list(dir).unwrap().into_iter().map(inside);
    here.flat_map(|name| if storage.list(&name).is_ok() { names(storage, &name) } else { vec![name] })
        .collect()
}

#[test]
fn what_is_whole_is_found_whole() {
    let storage = CrashStorage::new();
    history(&storage, 1);
    let report = check_rest(&storage);
    assert_eq!((report.findings, report.notes), (vec![], vec![]));
    assert!(report.read > ByteLen::new(LEN), "{}", report.read);
    let store = Store::open(Arc::new(storage), options()).unwrap();
    let unit = store.unit(machine()).unwrap();
    let open = unit.scrub(&Pace::unlimited(), &|_, _| {}).unwrap();
    assert_eq!((open.findings, open.read), (vec![], report.read), "beside a running server the same is read");
}

/// A bit is flipped somewhere in the store, again and again. It is found, its file is named, and the checkpoints that it
/// touches are exactly those that cannot be read in the extent that is named.
#[test]
fn every_flipped_bit_is_found_and_its_checkpoints_are_named() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let whole_storage = CrashStorage::new();
    let expected = history(&whole_storage, seed);
    let files = names(&whole_storage, "");
    let mut random = Random::new(seed);
    let mut touching = 0;
    for round in 0..250 {
        let storage = whole_storage.crash(0);
        let name = &files[random.below(files.len() as u64) as usize];
        let len = storage.open(name, OpenMode::Read).unwrap().len().unwrap().get();
        let (at, bit) = (random.below(len), random.below(8) as u8);
        // The rest of the first page of a sidecar means nothing.
        if name.ends_with(".sums") && (28..4096).contains(&at) {
            continue;
        }
        storage.flip_bit(name, ByteOffset::new(at), bit).unwrap();
        let what = format!("seed {seed}, round {round}: bit {bit} of byte {at} of {name}");
        let report = check_rest(&storage);
        // The format's limit: behind the last sync that a later record of an open log tells of, rot looks like a torn
        // tail. A running server knows better, and sealed logs have no such part.
        let is_tail = |note: &String| note.starts_with(name.as_str()) && note.contains("torn tail");
        if report.count() == 0 && report.notes.iter().any(is_tail) {
            assert!(at > 0 && name.ends_with(".log"), "{what}");
            continue;
        }
        assert!(report.count() > 0, "{what} was not found; notes {:?}", report.notes);
        let stem = |name: &str| name.replace(".sums", "").replace(".raw", "");
        let of_file = |finding: &Finding| stem(&finding.file) == stem(name);
        assert!(report.findings.iter().any(of_file), "{what}: found is {:#?}", report.findings);
        compare(&storage, &expected, &report, &what);
        touching +=
            report.findings.iter().filter(|f| f.extent.is_some() && !f.checkpoints.is_empty()).count();
    }
    assert!(touching > 20, "seed {seed}: only {touching} findings touched a checkpoint");
}

/// Reads everything from a damaged store, as far as it can be opened, and compares it with the findings.
fn compare(storage: &CrashStorage, expected: &[(CheckpointId, Vec<u8>)], report: &ScrubReport, what: &str) {
    let named: BTreeSet<_> =
        report.findings.iter().flat_map(|finding| &finding.checkpoints).copied().collect();
    let Ok(store) = Store::open(Arc::new(storage.crash(0)), options()) else { return };
    let Some(unit) = store.unit(machine()) else { return };
    for (id, content) in expected {
        let view = unit.view(*id, DISK);
        match view
            .as_ref()
            .map_err(|error| error.to_string())
            .and_then(|view| read(view, whole()).map_err(|error| error.to_string()))
        {
            Ok(found) => {
                assert!(found == *content, "{what}: checkpoint {id} reads as something else, silently")
            }
            Err(error) => {
                assert!(named.contains(id), "{what}: checkpoint {id} is touched and not named: {error}")
            }
        }
        for finding in report.findings.iter().filter(|finding| !finding.checkpoints.contains(id)) {
            if let (Ok(view), Some(extent)) = (&view, finding.extent) {
                assert!(
                    read(view, extent).is_ok(),
                    "{what}: checkpoint {id} cannot read {extent} and is not named"
                );
            }
        }
        for finding in report.findings.iter().filter(|finding| finding.checkpoints.contains(id)) {
            if let (Ok(view), Some(extent)) = (&view, finding.extent) {
                assert!(
                    read(view, extent).is_err(),
                    "{what}: checkpoint {id} is named, and reads {extent}: {finding}"
                );
            }
        }
    }
}

/// The same beside a running server, which also knows how far its open logs were synced.
#[test]
fn a_scrub_of_an_open_unit_finds_every_flipped_bit() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let whole_storage = CrashStorage::new();
    history(&whole_storage, seed);
    let files = names(&whole_storage, "units");
    let mut random = Random::new(seed);
    for round in 0..150 {
        let storage = whole_storage.crash(0);
        let store = Store::open(Arc::new(storage.clone()), options()).unwrap();
        let name = &files[random.below(files.len() as u64) as usize];
        let len = storage.open(name, OpenMode::Read).unwrap().len().unwrap().get();
        let (at, bit) = (random.below(len), random.below(8) as u8);
        if name.ends_with(".sums") && (28..4096).contains(&at) {
            continue;
        }
        // An image stays open, and its sidecar's header was read when it was opened: only a check at rest reads it again.
        if name.ends_with(".sums") && at < 28 {
            continue;
        }
        storage.flip_bit(name, ByteOffset::new(at), bit).unwrap();
        let what = format!("seed {seed}, round {round}: bit {bit} of byte {at} of {name}");
        let report = store.unit(machine()).unwrap().scrub(&Pace::unlimited(), &|_, _| {}).unwrap();
        assert!(report.count() > 0, "{what} was not found");
        for finding in &report.findings {
            assert!(!finding.to_string().is_empty() && !finding.remedy.to_string().is_empty());
        }
    }
}

fn repaired(storage: &CrashStorage) -> (Vec<String>, ScrubReport) {
    let storage: Arc<dyn Storage> = Arc::new(storage.clone());
    repair(&storage, &Pace::unlimited(), &|_, _, _| {}).unwrap()
}

fn all_as_before(storage: &CrashStorage, expected: &[(CheckpointId, Vec<u8>)]) {
    let store = Store::open(Arc::new(storage.clone()), options()).unwrap();
    assert_eq!(store.damaged_units(), []);
    let unit = store.unit(machine()).unwrap();
    for (id, content) in expected {
        assert!(read(&unit.view(*id, DISK).unwrap(), whole()).unwrap() == *content, "checkpoint {id}");
    }
}

#[test]
fn indexes_and_the_marker_are_made_again() {
    let first = u64::from(rand::random::<u32>());
    // Thinning drops merged indexes, so not every history ends with one.
    let with_merged_index = |seed: u64| {
        println!("seed {seed}");
        let storage = CrashStorage::new();
        let expected = history(&storage, seed);
        let files = names(&storage, "");
        let merged = |name: &String| name.ends_with(".index") && name.contains('-');
        files.iter().any(merged).then_some((storage, expected, files))
    };
    let (whole_storage, expected, files) =
        (first..first + 50).find_map(with_merged_index).expect("one of fifty ends with a merged index");
    let can_be_made_again = |name: &&String| name.ends_with(".index") || *name == "store";
    let again: Vec<_> = files.iter().filter(can_be_made_again).collect();
    for name in again {
        for missing in [false, true] {
            let storage = whole_storage.crash(0);
            if missing {
                storage.remove(name).unwrap();
            } else {
                storage.flip_bit(name, ByteOffset::new(20), 3).unwrap();
            }
            assert!(check_rest(&storage).count() > 0, "{name}");
            let (done, left) = repaired(&storage);
            assert_eq!(left.count(), 0, "{name}: {done:?}, left is {:#?}", left.findings);
            assert!(done.iter().any(|line| line.contains(name.as_str())), "{name}: {done:?}");
            all_as_before(&storage, &expected);
        }
    }
}

#[test]
fn what_nothing_tells_is_said_to_be_lost_and_left_as_it_is() {
    let storage = CrashStorage::new();
    history(&storage, 3);
    let files = names(&storage, "");
    let log = files.iter().find(|name| name.ends_with("/6.log")).unwrap();
    let index = log.replace(".log", ".index");
    storage.flip_bit(log, ByteOffset::new(64), 0).unwrap();
    storage.flip_bit(&index, ByteOffset::new(4096 + 20), 0).unwrap();
    let (_, left) = repaired(&storage);
    assert!(left.findings.iter().any(|finding| finding.file == *log), "{left:#?}");
    assert!(left.findings.iter().any(|finding| finding.file == index), "{left:#?}");
    for finding in &left.findings {
        assert!(matches!(finding.remedy, Remedy::None(_)), "{finding}: {}", finding.remedy);
    }
}

#[test]
fn a_damaged_manifest_is_no_rubbish_and_needs_a_copy() {
    let storage = CrashStorage::new();
    history(&storage, 4);
    let manifest = names(&storage, "").into_iter().find(|name| name.ends_with("manifest")).unwrap();
    storage.flip_bit(&manifest, ByteOffset::new(100), 0).unwrap();
    let before = names(&storage, "");
    let (_, left) = repaired(&storage);
    assert_eq!(left.count(), 1);
    assert!(
        left.findings[0].remedy.to_string().contains("named nowhere else"),
        "{}",
        left.findings[0].remedy
    );
    assert_eq!(names(&storage, ""), before, "nothing of it was removed");
}

#[test]
fn what_a_crash_leaves_is_a_note_and_no_damage() {
    let storage = CrashStorage::new();
    history(&storage, 5);
    let dir = names(&storage, "").into_iter().find(|name| name.ends_with("image.raw")).unwrap();
    let dir = dir.rsplit_once('/').unwrap().0;
    storage.open(&format!("{dir}/900.index"), OpenMode::CreateNew).unwrap();
    let open_log = names(&storage, "").into_iter().filter(|name| name.ends_with(".log"));
    // Those of thinned deltas have a revision in their names and are sealed.
    let number = |name: &String| name.rsplit('/').next().unwrap().replace(".log", "").parse::<u64>().ok();
    let open_log = open_log.max_by_key(number);
    let file = storage.open(&open_log.unwrap(), OpenMode::ReadWrite).unwrap();
    file.write_at(file.len().unwrap().end(), &[1; 100]).unwrap();
    let report = check_rest(&storage);
    assert_eq!(report.count(), 0, "{:#?}", report.findings);
    assert_eq!(report.notes.len(), 2, "{:?}", report.notes);
}

/// An image that a consolidation was called off in is checked by the name that it has meanwhile.
#[test]
fn a_half_settled_image_is_checked_too() {
    let storage = CrashStorage::new();
    let expected = history(&storage, 10);
    let store = Store::open(Arc::new(storage.clone()), options()).unwrap();
    let unit = store.unit(machine()).unwrap();
    let fifth = unit.checkpoints().iter().map(|checkpoint| checkpoint.id).nth(2).unwrap();
    let called_off = unit.consolidate(fifth, &|done, total| done.get() * 2 < total.get());
    assert_eq!(called_off.unwrap_err().kind(), ErrorKind::Cancelled);
    let image = unit.image_name(DISK).unwrap();
    assert!(image.ends_with(SETTLING_SUFFIX));
    assert_eq!(unit.scrub(&Pace::unlimited(), &|_, _| {}).unwrap().findings, []);
    let kept: Vec<_> = unit.checkpoints().into_iter().map(|checkpoint| checkpoint.id).collect();
    drop((unit, store));
    let report = check_rest(&storage);
    assert_eq!(report.findings, []);
    assert_eq!(report.notes.len(), 1, "it has to be repeated: {:?}", report.notes);
    let open = |storage: &CrashStorage| storage.open(&image, OpenMode::ReadWrite).unwrap();
    let (damaged, len) = (storage.crash(0), open(&storage).len().unwrap().as_usize());
    open(&damaged).write_at(ByteOffset::ZERO, &vec![0xaa; len]).unwrap();
    let report = check_rest(&damaged);
    assert!(report.findings.iter().any(|finding| finding.file == image), "{:#?}", report.findings);
    repaired(&storage);
    all_as_before(&storage, &expected.into_iter().filter(|(id, _)| kept.contains(id)).collect::<Vec<_>>());
}

/// Nothing stands still for a scrub, and what goes on meanwhile is no damage.
#[test]
fn a_scrub_beside_writes_seals_thinning_and_consolidation_finds_nothing() {
    let storage = CrashStorage::new();
    history(&storage, 6);
    let store = Store::open(Arc::new(storage), options()).unwrap();
    let unit = store.unit(machine()).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(8);
            let main = unit.disk(unit.main_branch(), DISK).unwrap();
            for _ in 0..40 {
                write_some(&main, &mut random, 5);
                main.sync().unwrap();
                unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now()).unwrap();
                let own: Vec<_> =
                    unit.checkpoints().into_iter().filter(|c| c.branch == unit.main_branch()).collect();
                if random.chance(30)
                    && let [.., sparse, _, _] = own.as_slice()
                {
                    let _ = unit.delete_checkpoints(&[sparse.id]);
                    unit.thin(ThinGoal::Everything, &|_| true).unwrap();
                }
                // The session's base holds the horizon at first.
                if let [.., before, _] = own.as_slice() {
                    let _ = unit.consolidate(before.id, &|_, _| true);
                }
            }
            ended.store(true, Ordering::Release);
        });
        let mut scrubs = 0;
        while !ended.load(Ordering::Acquire) || scrubs == 0 {
            let report = unit.scrub(&Pace::unlimited(), &|_, _| {}).unwrap();
            assert_eq!(report.findings, [], "scrub {scrubs}");
            scrubs += 1;
            if scrubs == 2 {
                let branches = unit.branches().into_iter().filter(|branch| branch.kind != BranchKind::Main);
                branches.for_each(|branch| unit.drop_branch(branch.id).unwrap());
            }
        }
    });
}

#[test]
fn a_store_in_use_and_a_folder_without_one_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let storage = || -> Arc<dyn Storage> { Arc::new(HostStorage::new(folder.path()).unwrap()) };
    let checked = |storage| check(&storage, &Pace::unlimited(), &|_, _, _| {});
    assert_eq!(checked(storage()).unwrap_err().kind(), ErrorKind::InvalidInput);
    let store = Store::open(storage(), options()).unwrap();
    assert_eq!(checked(storage()).unwrap_err().kind(), ErrorKind::Busy);
    drop(store);
    assert_eq!(checked(storage()).unwrap().count(), 0);
}

#[test]
fn a_scrub_can_be_called_off() {
    let storage = CrashStorage::new();
    history(&storage, 9);
    let store = Store::open(Arc::new(storage), options()).unwrap();
    let pace = Pace::new(None, None, &|| false);
    let error = store.unit(machine()).unwrap().scrub(&pace, &|_, _| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}
