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
