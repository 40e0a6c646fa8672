//! What the store promises when its storage fails in the middle of something, one promise a test.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use blocks::*;
use std::sync::Arc;
use store::testing::CrashStorage;
use store::*;

const LEN: u64 = 1 << 20;
const DISK: DiskIndex = DiskIndex(0);

fn open_with(storage: &CrashStorage, options: StoreOptions) -> Store {
    let store = Store::open(Arc::new(storage.clone()), options).unwrap();
    assert!(store.damaged_units().is_empty(), "{:?}", store.findings());
    store
}

fn options() -> StoreOptions {
    StoreOptions { reserve: ByteLen::ZERO, merge_in_background: false, ..StoreOptions::default() }
}

fn open(storage: &CrashStorage) -> Store {
    open_with(storage, options())
}

fn machine() -> MachineId {
    MachineId(Id::from_bytes([1; 16]).unwrap())
}

fn spec(len: u64) -> UnitSpec {
    UnitSpec {
        machine: machine(),
        name: "box".into(),
        definition: Vec::new(),
        disks: vec![DiskSpec { len: ByteLen::new(len), serial: "S1".into(), device: "/dev/sda".into() }],
        image_format: ImageFormat::Raw,
    }
}

fn head(unit: &Unit) -> Arc<BranchDisk> {
    unit.disk(unit.main_branch(), DISK).unwrap()
}

fn write(volume: &dyn Volume, start: u64, len: usize, byte: u8) {
    volume.write_at(ByteOffset::new(start), &vec![byte; len], false, RequestClass::Guest).unwrap();
}

fn seal(unit: &Unit) -> CheckpointId {
    unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now()).unwrap().into_inner()
}

fn byte_at(volume: &dyn Volume, at: u64) -> u8 {
    let mut sector = [0; 512];
    volume.read_at(ByteOffset::new(at / 512 * 512), &mut sector, RequestClass::Guest).unwrap();
    sector[(at % 512) as usize]
}

/// A removal that failed half-way leaves its mark in the folder. A machine that is registered again must not end up
/// under that mark: the next start would take the new unit for rubbish.
#[test]
fn a_unit_made_where_a_removal_failed_is_there_after_a_restart() {
    let storage = CrashStorage::new();
    let store = open(&storage);
    let dir = format!("units/{}", machine());
    storage.make_dir(&dir).unwrap();
    storage.open(&format!("{dir}/removed"), OpenMode::CreateNew).unwrap();
    let unit = store.create_unit(spec(LEN)).unwrap();
    write(&*head(&unit), 0, 512, 7);
    head(&unit).flush().unwrap();
    drop((unit, store));
    let unit = open(&storage.crash(1)).unit(machine()).expect("what was acknowledged is there");
    assert_eq!(byte_at(&*head(&unit), 0), 7);
}

/// A folder's files vanish in any order, so the mark of a removal has to outlive the rest.
#[test]
fn a_power_cut_in_a_removal_leaves_all_of_a_unit_or_nothing() {
    for changes in 0.. {
        let storage = CrashStorage::new();
        let store = open(&storage);
        let unit = store.create_unit(spec(LEN)).unwrap();
        write(&*head(&unit), 0, 512, 7);
        seal(&unit);
        write(&*head(&unit), 0, 512, 8);
        head(&unit).flush().unwrap();
        drop(unit);
        storage.power_off_after(changes);
        let removed = store.remove_unit(machine());
        for seed in 0..20 {
            let after = open(&storage.crash(seed));
            match after.unit(machine()) {
                Some(unit) => assert_eq!(byte_at(&*head(&unit), 0), 8, "cut at {changes}, seed {seed}"),
                None => assert!(after.create_unit(spec(LEN)).is_ok(), "cut at {changes}, seed {seed}"),
            }
        }
        if removed.is_ok() {
            return;
        }
    }
}

/// The image grows while it is written, so a consolidation can find the storage full. It must stop before it writes
/// what does not fit: a failed write would keep the image from being written until the next restart, and consolidating
/// is how space comes back.
#[test]
fn a_consolidation_without_room_goes_on_when_there_is_some() {
    const BIG: u64 = 64 << 20;
    let storage = CrashStorage::new();
    let options = StoreOptions { reserve: ByteLen::new(8 << 20), ..options() };
    let store = open_with(&storage, options.clone());
    let unit = store.create_unit(spec(BIG)).unwrap();
    for at in (0..BIG / 2).step_by(1 << 20) {
        write(&*head(&unit), at, 1 << 20, 7);
    }
    let checkpoint = seal(&unit);
    // The logs take 32 MiB, the image wants as much again.
    storage.set_capacity(Some(ByteLen::new(50 << 20)));
    let full = unit.consolidate(checkpoint, &|_, _| true).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::NoSpace, "{full}");
    unit.set_note("still", Some(vec![1])).expect("there is room for manifests");
    storage.set_capacity(None);
    unit.consolidate(checkpoint, &|_, _| true).unwrap();
    assert_eq!(unit.horizon(), Some(checkpoint));
    for at in [0, BIG / 4, BIG / 2 - 512] {
        assert_eq!(byte_at(&*head(&unit), at), 7, "at {at}");
    }
}

/// What a failed sync of a folder has lost nobody knows, and another one that succeeds proves nothing about it.
#[test]
fn a_seal_whose_folder_cannot_be_synced_acknowledges_nothing_more() {
    let storage = CrashStorage::new();
    let store = open(&storage);
    let unit = store.create_unit(spec(LEN)).unwrap();
    write(&*head(&unit), 0, 512, 7);
    head(&unit).flush().unwrap();
    // The first folder that a seal syncs is the disk's, for the name of the index.
    storage.fail_sync_dir(1);
    let spec = CheckpointSpec::crash_consistent_now;
    assert_eq!(unit.seal(unit.main_branch(), spec()).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(unit.seal(unit.main_branch(), spec()).unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(head(&unit).flush().unwrap_err().kind(), ErrorKind::Poisoned);
    drop((unit, store));
    let unit = open(&storage.crash(3)).unit(machine()).unwrap();
    assert_eq!(byte_at(&*head(&unit), 0), 7);
    seal(&unit);
}

/// A difference of millions of extents is given in whole blocks, so that memory stays bounded; it may say too much,
/// never too little, and nothing past the end of the disk.
#[test]
fn a_difference_of_very_many_extents_is_given_in_blocks() {
    const EXTENTS: u64 = 300_000;
    const DISK_LEN: u64 = EXTENTS * 1024 + 512;
    let unit = open(&CrashStorage::new()).create_unit(spec(DISK_LEN)).unwrap();
    let before = seal(&unit);
    let disk = head(&unit);
    let written = |index: u64| Extent::new(ByteOffset::new(index * 1024), ByteLen::new(512)).unwrap();
    for index in 0..=EXTENTS {
        disk.append(Seq(index + 1), written(index), Payload::Discard).unwrap();
    }
    let difference =
        unit.difference(Point::Checkpoint(before), Point::Head(unit.main_branch()), DISK).unwrap();
    for changed in [difference, disk.changed_since_fork().unwrap()] {
        assert!(changed.extents() <= 256 << 10, "{} extents", changed.extents());
        assert!((0..=EXTENTS).all(|index| changed.contains(written(index))));
        let last = changed.iter().last().unwrap().0;
        assert!(last.end().get() <= DISK_LEN, "{last}");
    }
}

/// Writes, seals and consolidates; whatever fails ends it. Gives the byte that every block must have.
fn until_it_fails(unit: &Unit) -> (Result<()>, u8) {
    let mut promised = 0;
    let mut go_on = || -> Result<()> {
        for round in 1..=4 {
            let disk = head(unit);
            for at in [0, LEN / 2, LEN - 4096] {
                disk.write_at(ByteOffset::new(at), &[round; 4096], false, RequestClass::Guest)?;
            }
            disk.flush()?;
            promised = round;
            let sealed = unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now())?;
            unit.consolidate(sealed.into_inner(), &|_, _| true)?;
        }
        Ok(())
    };
    (go_on(), promised)
}

/// After a sync has failed, what it was to put on the medium is in the kernel's cache, marked as clean: a program that
/// starts again reads it, and its own syncs succeed without writing it. What it acknowledges must be there nevertheless.
#[test]
fn a_restart_after_a_failed_sync_acknowledges_only_what_is_on_the_medium() {
    for format in ImageFormat::ALL {
        for folders in [false, true] {
            for nth in 1.. {
                let storage = CrashStorage::new();
                let store = open(&storage);
                let unit = store.create_unit(UnitSpec { image_format: format, ..spec(LEN) }).unwrap();
                if folders {
                    storage.fail_sync_dir(nth)
                } else {
                    storage.fail_sync(nth)
                }
                let (outcome, promised) = until_it_fails(&unit);
                drop((unit, store));
                if outcome.is_ok() {
                    break;
                }
                let what = format!("{format}, sync {nth} failed, of a folder: {folders}");
                eprintln!("{what}: {outcome:?}");
                let store = open(&storage);
                let unit = store.unit(machine()).unwrap();
                head(&unit).flush().unwrap();
                let newest = byte_at(&*head(&unit), 0);
                assert!(newest >= promised, "{what}");
                if let Some(last) = unit.checkpoints().last() {
                    unit.consolidate(last.id, &|_, _| true).unwrap();
                }
                drop((unit, store));
                for seed in 0..12 {
                    let store = open(&storage.crash(seed));
                    let disk = head(&store.unit(machine()).unwrap());
                    for at in [0, LEN / 2, LEN - 4096].map(|at| at + 512) {
                        assert!(byte_at(&*disk, at) >= promised, "{what}, seed {seed}, at {at}");
                    }
                    assert_eq!(byte_at(&*disk, 0), newest, "{what}, seed {seed}");
                }
            }
        }
    }
}

#[test]
fn a_removal_that_failed_goes_on_when_it_is_repeated() {
    let storage = CrashStorage::new();
    let store = open(&storage);
    drop(store.create_unit(spec(LEN)).unwrap());
    storage.fail_sync_dir(1);
    assert_eq!(store.remove_unit(machine()).unwrap_err().kind(), ErrorKind::Io);
    store.remove_unit(machine()).unwrap();
    assert!(storage.list("units").unwrap().is_empty());
    assert_eq!(store.remove_unit(machine()).unwrap_err().kind(), ErrorKind::NotFound);
}

/// Whoever makes a store or a unit may die before the folder above is synced. The next one finds it in the kernel's cache,
/// and what it acknowledges must not go with the name.
#[test]
fn a_unit_that_was_found_after_a_kill_stays_when_the_power_goes() {
    for changes in 0.. {
        let storage = CrashStorage::new();
        storage.power_off_after(changes);
        let made =
            Store::open(Arc::new(storage.clone()), options()).and_then(|store| store.create_unit(spec(LEN)));
        let is_made = made.is_ok();
        drop(made);
        let killed = storage.survive();
        let store = open(&killed);
        assert_eq!(store.damaged_units(), [], "cut at {changes}");
        if let Some(unit) = store.unit(machine()) {
            write(&*head(&unit), 0, 512, 7);
            head(&unit).flush().unwrap();
            for seed in 0..20 {
                let unit = open(&killed.crash(seed)).unit(machine());
                let unit = unit.unwrap_or_else(|| panic!("cut at {changes}, seed {seed}: the unit is gone"));
                assert_eq!(byte_at(&*head(&unit), 0), 7, "cut at {changes}, seed {seed}");
            }
        }
        if is_made {
            return;
        }
    }
}

/// A manifest must not reach the medium before the folders that it names: the unit would be damaged, though nobody was told
/// of it, and its machine could not be registered again.
#[test]
fn a_power_cut_while_a_unit_is_made_leaves_no_damaged_unit() {
    for changes in 0.. {
        let storage = CrashStorage::new();
        let store = open(&storage);
        storage.power_off_after(changes);
        let is_made = store.create_unit(spec(LEN)).is_ok();
        for seed in 0..40 {
            let after = open(&storage.crash(seed));
            assert_eq!(after.damaged_units(), [], "cut at {changes}, seed {seed}");
        }
        if is_made {
            return;
        }
    }
}

/// The appender of a machine that was promoted meanwhile may still hold a report of a checkpoint. Sealed, it would be history
/// of the new generation, and the machine would be fenced for good once the session is given up.
#[test]
fn a_source_of_an_older_generation_seals_nothing() {
    let unit = open(&CrashStorage::new()).create_unit(spec(LEN)).unwrap();
    let (main, before) = (unit.main_branch(), unit.generation());
    let spec = CheckpointSpec::crash_consistent_now;
    unit.seal_under(before, main, spec()).unwrap();
    unit.promote().unwrap();
    assert_eq!(unit.seal_under(before, main, spec()).unwrap_err().kind(), ErrorKind::Fenced);
    assert_eq!(unit.checkpoints().len(), 1);
    unit.seal_under(unit.generation(), main, spec()).unwrap();
}
