//! Kept hashes of blocks are right for the state that they are asked for, whatever happens in between.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use blocks::*;
use std::sync::Arc;
use store::testing::{CrashStorage, Random};
use store::*;

const BLOCK: u64 = 64 << 10;
const BLOCKS: u64 = 140;
const DISK: DiskIndex = DiskIndex(0);

fn open(storage: &CrashStorage) -> Store {
    let options =
        StoreOptions { reserve: ByteLen::ZERO, merge_in_background: false, ..StoreOptions::default() };
    Store::open(Arc::new(storage.clone()), options).unwrap()
}

fn machine() -> MachineId {
    MachineId(Id::from_bytes([7; 16]).unwrap())
}

fn make(store: &Store) -> Arc<Unit> {
    // The last block is short.
    let len = ByteLen::new(BLOCKS * BLOCK - 512);
    let disks = vec![DiskSpec { len, serial: "S".into(), device: "/dev/sda".into() }];
    let (name, definition) = ("box".into(), Vec::new());
    let spec = UnitSpec { machine: machine(), name, definition, disks, image_format: ImageFormat::Raw };
    store.create_unit(spec).unwrap()
}

/// Writes a few sectors somewhere; how many blocks that may have touched.
fn write(unit: &Unit, random: &mut Random, writes: u64) -> u64 {
    let head = unit.disk(unit.main_branch(), DISK).unwrap();
    for _ in 0..writes {
        let at = random.below((BLOCKS - 1) * BLOCK / 512) * 512;
        let mut bytes = vec![0; 512 * (1 + random.below(8)) as usize];
        random.fill(&mut bytes);
        let extent = Extent::new(ByteOffset::new(at), ByteLen::of(&bytes)).unwrap();
        let payload = if random.chance(20) { Payload::Discard } else { Payload::Data(&bytes) };
        head.append(head.last_seq().next(), extent, payload).unwrap();
    }
    2 * writes
}

fn seal(unit: &Unit) -> CheckpointId {
    unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now()).unwrap().into_inner()
}

/// Asks for every block's hash, computes those that are not known, compares those that are. How many were computed.
fn hash_all(unit: &Unit, at: CheckpointId, what: &str) -> u64 {
    let view = unit.view(at, DISK).unwrap();
    let hashes = unit.block_hashes(at, DISK).unwrap();
    let mut computed = 0;
    for block in 0..BLOCKS {
        let mut bytes = vec![0; BLOCK.min(view.len().get() - block * BLOCK) as usize];
        view.read_at(ByteOffset::new(block * BLOCK), &mut bytes, RequestClass::Background).unwrap();
        let hash = *blake3::hash(&bytes).as_bytes();
        match hashes.get(block) {
            Some(known) => assert!(known == hash, "{what}: block {block} at checkpoint {at}"),
            None => {
                hashes.put(block, &hash);
                computed += 1;
            }
        }
    }
    computed
}

#[test]
fn only_what_changed_is_computed_again() {
    let storage = CrashStorage::new();
    let store = open(&storage);
    let unit = make(&store);
    let mut random = Random::new(2);
    write(&unit, &mut random, 100);
    assert_eq!(hash_all(&unit, seal(&unit), "first"), BLOCKS);
    assert_eq!(hash_all(&unit, seal(&unit), "nothing was written since"), 0);
    let touched = write(&unit, &mut random, 5);
    let newest = seal(&unit);
    let computed = hash_all(&unit, newest, "five writes");
    assert!((1..=touched).contains(&computed), "{computed}");
    // Consolidation takes the deltas away that tell what changed: the hashes are taken along first.
    let touched = write(&unit, &mut random, 5);
    let newest = seal(&unit);
    unit.consolidate(newest, &|_, _| true).unwrap();
    let computed = hash_all(&unit, newest, "consolidated");
    assert!((1..=touched).contains(&computed), "{computed}");
    drop((unit, store));
    let store = open(&storage.crash(1));
    assert_eq!(store.findings(), Vec::<String>::new(), "the file is no rubbish");
    let unit = store.unit(machine()).unwrap();
    let computed = hash_all(&unit, newest, "reopened after a crash");
    assert!(computed <= BLOCKS, "what was never synced may be gone: {computed}");
    assert_eq!(hash_all(&unit, seal(&unit), "and again"), 0);
}

#[test]
fn an_older_checkpoint_gets_no_hashes_and_takes_none_away() {
    let store = open(&CrashStorage::new());
    let unit = make(&store);
    let mut random = Random::new(3);
    write(&unit, &mut random, 20);
    let older = seal(&unit);
    write(&unit, &mut random, 20);
    let newer = seal(&unit);
    hash_all(&unit, newer, "newer");
    assert_eq!(hash_all(&unit, older, "older"), BLOCKS);
    assert_eq!(hash_all(&unit, older, "older again"), BLOCKS, "they are kept for one state");
    assert_eq!(hash_all(&unit, newer, "newer again"), 0);
}

/// Random histories with consolidation, sessions that become the main line, and power cuts: what is known is right.
#[test]
fn what_is_known_is_right_whatever_happens() {
    let first = rand::random::<u64>();
    println!("first seed {first}");
    for seed in (0..4).map(|step| first.wrapping_add(step)) {
        let mut storage = CrashStorage::new();
        let mut random = Random::new(seed);
        let mut store = open(&storage);
        let mut unit = make(&store);
        for step in 0..25 {
            let what = format!("seed {seed}, step {step}");
            let writes = random.below(6);
            write(&unit, &mut random, writes);
            let newest = seal(&unit);
            match random.below(6) {
                0 => drop(hash_all(&unit, newest, &what)),
                1 => {
                    let own: Vec<_> = unit.checkpoints();
                    let at = own[random.below(own.len() as u64) as usize].id;
                    hash_all(&unit, at, &what);
                }
                2 => drop(unit.consolidate(newest, &|_, _| true)),
                3 => {
                    let session = BranchKind::Session(SessionId(Id::from_bytes([9; 16]).unwrap()));
                    let branch = unit.fork(newest, session).unwrap();
                    hash_all(&unit, newest, &what);
                    let old = unit.adopt(branch).unwrap();
                    unit.drop_branch(old).unwrap();
                }
                4 => {
                    drop((unit, store));
                    storage = storage.crash(random.number());
                    store = open(&storage);
                    unit = store.unit(machine()).unwrap();
                }
                _ => {}
            }
            let newest = unit.checkpoints().last().unwrap().id;
            hash_all(&unit, newest, &what);
        }
    }
}
