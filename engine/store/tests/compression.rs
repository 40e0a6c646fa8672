//! Compressed payloads: the same disk in less room, whatever is done with it, and refused by programs that do not know them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use blocks::*;
use std::sync::Arc;
use store::testing::{CrashStorage, Random};
use store::*;

const LEN: u64 = 4 << 20;
const DISK: DiskIndex = DiskIndex(0);

fn open(storage: &CrashStorage, compress: Compression) -> Store {
    let options = StoreOptions {
        reserve: ByteLen::ZERO,
        merge_in_background: false,
        compress,
        ..StoreOptions::default()
    };
    Store::open(Arc::new(storage.clone()), options).unwrap()
}

fn machine() -> MachineId {
    MachineId(Id::from_bytes([7; 16]).unwrap())
}

fn unit(store: &Store) -> Arc<Unit> {
    let disks = vec![DiskSpec { len: ByteLen::new(LEN), serial: "S".into(), device: "/dev/sda".into() }];
    let (name, definition) = ("box".into(), Vec::new());
    let spec = UnitSpec { machine: machine(), name, definition, disks, image_format: ImageFormat::Raw };
    store.create_unit(spec).unwrap()
}

/// Text of a kind: half of it repeats.
fn text(random: &mut Random, len: usize) -> Vec<u8> {
    let mut bytes = vec![b' '; len];
    for chunk in bytes.chunks_mut(32) {
        random.fill(&mut chunk[..8]);
    }
    bytes
}

fn log_bytes(storage: &CrashStorage, unit: &Unit) -> u64 {
    let image = unit.image_name(DISK).unwrap();
    let dir = image.rsplit_once('/').unwrap().0;
    let logs = storage.list(dir).unwrap().into_iter().filter(|name| name.ends_with(".log"));
    logs.map(|name| storage.open(&format!("{dir}/{name}"), OpenMode::Read).unwrap().len().unwrap().get())
        .sum()
}

fn write_and_check(compress: Compression) -> u64 {
    let storage = CrashStorage::new();
    let store = open(&storage, compress);
    let unit = unit(&store);
    let mut random = Random::new(5);
    let mut disk = vec![0; LEN as usize];
    let mut checkpoints = Vec::new();
    for round in 0..12 {
        let head = unit.disk(unit.main_branch(), DISK).unwrap();
        for _ in 0..20 {
            let sectors = 1 + random.below(300);
            let at = random.below(LEN / 512 - sectors) * 512;
            let bytes = text(&mut random, (sectors * 512) as usize);
            let extent = Extent::new(ByteOffset::new(at), ByteLen::of(&bytes)).unwrap();
            head.append(head.last_seq().next(), extent, Payload::Data(&bytes)).unwrap();
            disk[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        }
        head.sync().unwrap();
        if round < 11 {
            let id =
                unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now()).unwrap().into_inner();
            checkpoints.push((id, disk.clone()));
        }
    }
    let len = log_bytes(&storage, &unit);
    drop((unit, store));
    // Read by a program that compresses nothing itself.
    let after = storage.crash(1);
    let store = open(&after, Compression::Never);
    let unit = store.unit(machine()).unwrap();
    assert_eq!(unit.scrub(&Pace::unlimited(), &|_, _| {}).unwrap().findings, []);
    compare(&*unit.disk(unit.main_branch(), DISK).unwrap(), &disk, &mut random);
    for (id, disk) in &checkpoints {
        compare(&unit.view(*id, DISK).unwrap(), disk, &mut random);
    }
    // Thinning leaves compressed what it finds so.
    let before = log_bytes(&after, &unit);
    let sparse: Vec<_> = checkpoints[3..7].iter().map(|(id, _)| *id).collect();
    unit.delete_checkpoints(&sparse).unwrap();
    let thinned = unit.thin(ThinGoal::Worthwhile, &|_| true).unwrap();
    assert!(thinned.deltas > 0 && log_bytes(&after, &unit) + thinned.freed.get() == before, "{thinned:?}");
    for (id, disk) in checkpoints.iter().filter(|(id, _)| !sparse.contains(id)) {
        compare(&unit.view(*id, DISK).unwrap(), disk, &mut random);
    }
    assert_eq!(unit.scrub(&Pace::unlimited(), &|_, _| {}).unwrap().findings, []);
    let (last, disk) = checkpoints.last().unwrap();
    unit.consolidate(*last, &|_, _| true).unwrap();
    compare(&unit.view(*last, DISK).unwrap(), disk, &mut random);
    len
}

/// As a whole, and in small pieces that begin within a payload.
fn compare(volume: &dyn Volume, disk: &[u8], random: &mut Random) {
    let mut bytes = vec![0; disk.len()];
    volume.read_at(ByteOffset::ZERO, &mut bytes, RequestClass::Guest).unwrap();
    assert!(bytes == disk);
    for _ in 0..200 {
        let sectors = 1 + random.below(20);
        let at = (random.below(LEN / 512 - sectors) * 512) as usize;
        let part = &mut bytes[..(sectors * 512) as usize];
        volume.read_at(ByteOffset::new(at as u64), part, RequestClass::Guest).unwrap();
        assert!(*part == disk[at..at + part.len()], "at {at}");
    }
}

#[test]
fn it_is_the_same_disk_in_less_room() {
    let (plain, packed) = (write_and_check(Compression::Never), write_and_check(Compression::Always));
    println!("logs of {plain} bytes became {packed}");
    assert!(packed * 10 < plain * 6, "{plain} bytes became {packed}");
}

/// Programs of that version would take newer records for a torn tail.
#[test]
fn a_store_of_an_older_version_becomes_one_of_this_before_it_has_newer_records() {
    let marker = |storage: &CrashStorage| {
        let mut bytes = [0; 26];
        storage.open("store", OpenMode::ReadWrite).unwrap().read_at(ByteOffset::ZERO, &mut bytes).unwrap();
        bytes
    };
    for older in [1, 2] {
        let storage = CrashStorage::new();
        let id = open(&storage, Compression::Never).id();
        let mut bytes = marker(&storage);
        assert_eq!(bytes[4], 3);
        bytes[4] = older;
        let crc = blocks::crc32c(&bytes[..22]);
        bytes[22..].copy_from_slice(&crc.to_le_bytes());
        let file = storage.open("store", OpenMode::ReadWrite).unwrap();
        file.write_at(ByteOffset::ZERO, &bytes).unwrap();
        file.sync().unwrap();
        assert_eq!(open(&storage, Compression::Never).id(), id);
        assert_eq!(marker(&storage.crash(3))[4], 3, "and on the medium");
    }
}
