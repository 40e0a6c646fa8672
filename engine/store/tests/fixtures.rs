//! Stores as earlier code wrote them are opened, read, scrubbed and carried on by today's code.
//!
//! `v1` has version 1 of every format (log, index, merged index, manifest, marker, checksum sidecar), `v2` has compressed
//! payloads: records of version 2, and the indexes and the marker of version 2 that tell of them.
//! `UNDERSTUDY_WRITE_FIXTURES=1 cargo test -p understudy-store --test fixtures` writes the files where they are missing
//! and never touches what is there: only the code of that version can make them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use blocks::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::*;

const LEN: u64 = 256 << 10;
const DISK: DiskIndex = DiskIndex(0);
/// Enough checkpoints that eight neighbours become one index.
const STEPS: u64 = 10;

fn folder(version: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{version}/store"))
}

fn machine() -> MachineId {
    MachineId(Id::from_bytes([0x2a; 16]).unwrap())
}

fn open(folder: &Path, compress: Compression) -> Store {
    let options = StoreOptions {
        reserve: ByteLen::ZERO,
        merge_in_background: false,
        compress,
        ..StoreOptions::default()
    };
    Store::open(Arc::new(HostStorage::new(folder).unwrap()), options).unwrap()
}

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

/// What step `step` writes: data of a few sectors, zeroes, a discard.
fn write_step(step: u64, disk: &mut [u8], mut write: impl FnMut(Extent, Payload<'_>)) {
    let data = vec![u8::try_from(step).unwrap() + 1; 3 * 512];
    for (extent, payload) in [
        (extent(step * 4096, 3 * 512), Payload::Data(&data)),
        (extent(LEN / 2 + step * 512, 3 * 512), Payload::Data(&data)),
        (
            extent(LEN / 2 + step * 512, 512),
            if step.is_multiple_of(2) { Payload::Zero } else { Payload::Discard },
        ),
    ] {
        let range = extent.start().get() as usize..extent.end().get() as usize;
        match payload {
            Payload::Data(bytes) => disk[range].copy_from_slice(bytes),
            Payload::Zero | Payload::Discard => disk[range].fill(0),
        }
        write(extent, payload);
    }
}

/// The disk after each step, and after what was never sealed.
fn expected() -> Vec<Vec<u8>> {
    let mut disk = vec![0; LEN as usize];
    (0..=STEPS)
        .map(|step| {
            write_step(step, &mut disk, |_, _| {});
            disk.clone()
        })
        .collect()
}

fn make(folder: &Path, compress: Compression) {
    std::fs::create_dir_all(folder).unwrap();
    let store = open(folder, compress);
    let disks = vec![DiskSpec { len: ByteLen::new(LEN), serial: "S1".into(), device: "/dev/sda".into() }];
    let spec = UnitSpec {
        machine: machine(),
        name: "old-timer".into(),
        definition: br#"{"cpus":2}"#.to_vec(),
        disks,
        image_format: ImageFormat::Raw,
    };
    let unit = store.create_unit(spec).unwrap();
    let head = unit.disk(unit.main_branch(), DISK).unwrap();
    let (mut disk, mut seq) = (vec![0; LEN as usize], 0);
    let mut put = |extent, payload: Payload<'_>| {
        seq += 1;
        head.append(Seq(seq), extent, payload).unwrap();
    };
    for step in 0..STEPS {
        write_step(step, &mut disk, &mut put);
        let name = format!("step {step}");
        let spec = CheckpointSpec { name, ..CheckpointSpec::crash_consistent_now() };
        unit.seal(unit.main_branch(), spec).unwrap();
        if step == 0 {
            unit.consolidate(unit.checkpoints()[0].id, &|_, _| true).unwrap();
        }
    }
    unit.record_gap(Gap { from: WallClock(1), until: WallClock(2), cause: "the machine was away".into() })
        .unwrap();
    unit.set_note("session/none", Some(b"{}".to_vec())).unwrap();
    write_step(STEPS, &mut disk, &mut put);
    head.sync().unwrap();
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn read(volume: &dyn Volume) -> Vec<u8> {
    let mut bytes = vec![0; LEN as usize];
    volume.read_at(ByteOffset::ZERO, &mut bytes, RequestClass::Guest).unwrap();
    bytes
}

#[test]
fn a_store_of_version_1_is_opened_read_and_carried_on() {
    carry_on("v1", Compression::Never);
}

#[test]
fn a_store_with_compressed_payloads_is_opened_read_and_carried_on() {
    carry_on("v2", Compression::Always);
}

fn carry_on(version: &str, made: Compression) {
    let folder = folder(version);
    if std::env::var_os("UNDERSTUDY_WRITE_FIXTURES").is_some() && !folder.exists() {
        make(&folder, made);
    }
    let work = tempfile::tempdir().unwrap();
    copy_dir(&folder, work.path());
    let store = open(work.path(), Compression::Never);
    assert_eq!(store.damaged_units(), [], "{:?}", store.findings());
    assert_eq!(store.findings(), Vec::<String>::new());
    let unit = store.unit(machine()).unwrap();
    assert_eq!((unit.name().as_str(), unit.definition()), ("old-timer", br#"{"cpus":2}"#.to_vec()));
    assert_eq!(unit.scrub(&Pace::unlimited(), &|_, _| {}).unwrap().findings, []);
    assert_eq!(unit.gaps()[0].cause, "the machine was away");
    assert_eq!(unit.note("session/none").unwrap(), b"{}");
    let expected = expected();
    let checkpoints = unit.checkpoints();
    assert_eq!(checkpoints.len() as u64, STEPS);
    for (checkpoint, expected) in checkpoints.iter().zip(&expected) {
        assert!(read(&unit.view(checkpoint.id, DISK).unwrap()) == *expected, "{}", checkpoint.name);
    }
    let head = unit.disk(unit.main_branch(), DISK).unwrap();
    assert!(read(&*head) == expected[STEPS as usize], "what was acknowledged and not sealed");
    assert_eq!(head.last_seq(), Seq((STEPS + 1) * 3));
    // And it is carried on: what is written now is found together with the old.
    head.append(Seq(100), extent(0, 512), Payload::Data(&[9; 512])).unwrap();
    let newest = unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now()).unwrap().into_inner();
    unit.consolidate(newest, &|_, _| true).unwrap();
    let mut after = expected[STEPS as usize].clone();
    after[..512].fill(9);
    drop((head, unit, store));
    let store = open(work.path(), Compression::Never);
    let unit = store.unit(machine()).unwrap();
    assert!(read(&unit.view(newest, DISK).unwrap()) == after, "the consolidated whole");
}

/// Hashes of blocks as version 1 kept them: of the newest checkpoint of the store of version 1.
#[test]
fn hashes_of_version_1_stay_readable() {
    let kept = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/blocks.hashes");
    let work = tempfile::tempdir().unwrap();
    copy_dir(&folder("v1"), work.path());
    let name = format!("units/{}/disk0/blocks.hashes", machine());
    let hash = |block: u64| [u8::try_from(block).unwrap() + 1; 32];
    let hashes = |unit: &Unit| unit.block_hashes(unit.checkpoints().last().unwrap().id, DISK).unwrap();
    if std::env::var_os("UNDERSTUDY_WRITE_FIXTURES").is_some() && !kept.exists() {
        let store = open(work.path(), Compression::Never);
        let hashes = hashes(&store.unit(machine()).unwrap());
        [0, 3].into_iter().for_each(|block| hashes.put(block, &hash(block)));
        std::fs::copy(work.path().join(&name), &kept).unwrap();
    }
    std::fs::copy(&kept, work.path().join(&name)).unwrap();
    let store = open(work.path(), Compression::Never);
    let hashes = hashes(&store.unit(machine()).unwrap());
    let known: Vec<_> = (0..4).map(|block| hashes.get(block)).collect();
    assert_eq!(known, [Some(hash(0)), None, None, Some(hash(3))]);
}
