//! A unit of one small disk over a storage that fails like hardware.
#![allow(dead_code, reason = "each test uses what it needs")]

use blocks::*;
use std::sync::Arc;
use store::testing::CrashStorage;
use store::*;

pub const LEN: u64 = 1 << 20;
pub const DISK: DiskIndex = DiskIndex(0);

pub fn options() -> StoreOptions {
    StoreOptions { reserve: ByteLen::ZERO, merge_in_background: false, ..StoreOptions::default() }
}

pub fn open(storage: &CrashStorage) -> Store {
    let store = Store::open(Arc::new(storage.clone()), options()).unwrap();
    assert!(store.damaged_units().is_empty(), "{:?}", store.findings());
    store
}

pub fn machine(byte: u8) -> MachineId {
    MachineId(Id::from_bytes([byte; 16]).unwrap())
}

pub fn session(byte: u8) -> BranchKind {
    BranchKind::Session(SessionId(Id::from_bytes([byte; 16]).unwrap()))
}

pub fn spec(byte: u8) -> UnitSpec {
    UnitSpec {
        machine: machine(byte),
        name: format!("box-{byte}"),
        definition: b"{}".to_vec(),
        disks: vec![DiskSpec { len: ByteLen::new(LEN), serial: "S1".into(), device: "/dev/sda".into() }],
        image_format: ImageFormat::Raw,
    }
}

pub fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

pub fn head(unit: &Unit) -> Arc<BranchDisk> {
    unit.disk(unit.main_branch(), DISK).unwrap()
}

pub fn write(volume: &dyn Volume, start: u64, len: usize, byte: u8) {
    volume.write_at(ByteOffset::new(start), &vec![byte; len], false, RequestClass::Guest).unwrap();
}

pub fn seal(unit: &Unit, branch: BranchId) -> CheckpointId {
    unit.seal(branch, CheckpointSpec::crash_consistent_now()).unwrap().into_inner()
}

pub fn byte_at(volume: &dyn Volume, at: u64) -> u8 {
    let mut sector = [0; 512];
    volume.read_at(ByteOffset::new(at / 512 * 512), &mut sector, RequestClass::Guest).unwrap();
    sector[(at % 512) as usize]
}

pub fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().expect("an error").kind()
}

/// How much of its capacity a storage has used, in bytes.
pub fn used(storage: &CrashStorage) -> u64 {
    const PLENTY: u64 = 1 << 40;
    storage.set_capacity(Some(ByteLen::new(PLENTY)));
    let used = PLENTY - storage.free_space().unwrap().unwrap().get();
    storage.set_capacity(None);
    used
}
