//! Clones, and deltas as files: side by side, outliving what they start from, cut off anywhere, on a full storage.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/unit.rs"]
mod support;

use blocks::*;
use std::sync::Arc;
use store::testing::{CrashStorage, Random};
use store::*;
use support::*;

fn put(unit: &Unit, branch: BranchId, at: u64, byte: u8) -> Result<()> {
    unit.disk(branch, DISK)?.write_at(ByteOffset::new(at), &[byte; 4096], false, RequestClass::Guest)
}

#[test]
fn sessions_stand_side_by_side_and_see_nothing_of_each_other() {
    let unit = open(&CrashStorage::new()).create_unit(spec(1)).unwrap();
    let main = unit.main_branch();
    let checkpoints = [1, 2].map(|byte| {
        put(&unit, main, 0, byte).unwrap();
        seal(&unit, main)
    });
    let branches: Vec<BranchId> =
        (0..6u8).map(|i| unit.fork(checkpoints[usize::from(i % 2)], session(i + 1)).unwrap()).collect();
    for (i, branch) in branches.iter().enumerate() {
        put(&unit, *branch, 8192, 100 + i as u8).unwrap();
    }
    for (i, branch) in branches.iter().enumerate() {
        let disk = unit.disk(*branch, DISK).unwrap();
        assert_eq!((byte_at(&*disk, 0), byte_at(&*disk, 8192)), (1 + (i % 2) as u8, 100 + i as u8));
    }
    assert_eq!(unit.pins().len(), 6);
}

#[test]
fn a_clone_outlives_its_session() {
    let storage = CrashStorage::new();
    let unit = open(&storage).create_unit(spec(1)).unwrap();
    let main = unit.main_branch();
    put(&unit, main, 0, 1).unwrap();
    let base = seal(&unit, main);
    let branch = unit.fork(base, session(1)).unwrap();
    put(&unit, branch, 4096, 2).unwrap();
    let early = seal(&unit, branch);
    put(&unit, branch, 8192, 3).unwrap();
    let late = seal(&unit, branch);
    put(&unit, branch, 4096, 4).unwrap();
    let (first, _) = unit.clone_at(early, "early").unwrap();
    let (second, named) = unit.clone_at(late, "late").unwrap();
    assert_eq!(kind(unit.clone_at(late, "late")), ErrorKind::AlreadyExists);
    assert_eq!(kind(unit.clone_at(late, "")), ErrorKind::InvalidInput);
    put(&unit, second, 0, 9).unwrap();
    seal(&unit, second);
    unit.drop_branch(branch).unwrap();
    drop(unit);
    let unit = open(&storage.crash(1)).unit(machine(1)).unwrap();
    let bytes = |branch| {
        let disk = unit.disk(branch, DISK).unwrap();
        [0, 4096, 8192].map(|at| byte_at(&*disk, at))
    };
    assert_eq!((bytes(first), bytes(second)), ([1, 2, 0], [9, 2, 3]));
    assert_eq!(byte_at(&unit.view(named, DISK).unwrap(), 0), 1, "the clone's first checkpoint");
    let info = |id| unit.branches().into_iter().find(|info| info.id == id).unwrap();
    assert_eq!((info(second).base, info(second).name.as_str()), (Some(base), "late"));
    assert_eq!((info(first).base, info(first).kind), (Some(early), BranchKind::Clone));
    // The heir may go as well: what the other clone starts from is handed on.
    unit.drop_branch(second).unwrap();
    assert_eq!((bytes(first), info(first).base), ([1, 2, 0], Some(base)));
    assert!(unit.checkpoint(early).is_some() && unit.checkpoint(late).is_none());
    unit.drop_branch(first).unwrap();
    assert_eq!(unit.branches().len(), 1);
    unit.consolidate(base, &|_, _| true).unwrap();
}

/// Clones, a session's end, the end of a clone and of the machine. What was promised so far is in `promised`.
fn story(store: &Store, promised: &mut Vec<(CheckpointId, u8)>) -> Result<()> {
    let Some(unit) = store.unit(machine(1)) else { return Ok(()) };
    let main = unit.main_branch();
    put(&unit, main, 0, 1)?;
    let base = unit.seal(main, CheckpointSpec::crash_consistent_now())?.into_inner();
    promised.push((base, 1));
    let branch = unit.fork(base, session(1))?;
    put(&unit, branch, 0, 2)?;
    let at = unit.seal(branch, CheckpointSpec::crash_consistent_now())?.into_inner();
    promised.push((at, 2));
    let (clone, named) = unit.clone_at(at, "kept")?;
    promised.push((named, 2));
    put(&unit, clone, 0, 3)?;
    promised.push((unit.seal(clone, CheckpointSpec::crash_consistent_now())?.into_inner(), 3));
    unit.drop_branch(branch)?;
    promised.retain(|(id, _)| *id == base);
    unit.drop_branch(clone)?;
    promised.clear();
    drop(unit);
    store.remove_unit(machine(1))
}

fn check(store: &Store, promised: &[(CheckpointId, u8)], when: &str) {
    for (at, byte) in promised {
        let unit = store.unit(machine(1)).unwrap_or_else(|| panic!("{when}: the unit is gone"));
        let view = unit.view(*at, DISK).unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(byte_at(&view, 0), *byte, "{when}: checkpoint {at}");
    }
}

/// Goes on where it was interrupted, to the same end.
fn finish(store: &Store) {
    if let Some(unit) = store.unit(machine(1)) {
        let others = |kind| unit.branches().into_iter().filter(move |info| info.kind == kind);
        for info in others(session(1)).chain(others(BranchKind::Clone)).collect::<Vec<_>>() {
            unit.drop_branch(info.id).unwrap();
        }
        assert_eq!(unit.branches().len(), 1);
        drop(unit);
        store.remove_unit(machine(1)).unwrap();
    }
    assert!(store.create_unit(spec(1)).is_ok());
}

#[test]
fn a_power_cut_at_every_change_of_clone_and_delete_loses_nothing() {
    for cut in 0.. {
        let storage = CrashStorage::new();
        let store = open(&storage);
        drop(store.create_unit(spec(1)).unwrap());
        storage.power_off_after(cut);
        let mut promised = Vec::new();
        let finished = story(&store, &mut promised).is_ok();
        drop(store);
        for seed in 0..3 {
            let store = open(&storage.crash(seed));
            check(&store, &promised, &format!("cut after {cut}, seed {seed}"));
            finish(&store);
        }
        if finished {
            assert!(cut > 50, "the story has {cut} changes only");
            return;
        }
    }
}

#[test]
fn a_storage_that_fills_up_anywhere_in_clone_and_delete_loses_nothing() {
    let mut refused = 0;
    for pages in 0.. {
        let storage = CrashStorage::new();
        let store = open(&storage);
        drop(store.create_unit(spec(1)).unwrap());
        storage.set_capacity(Some(ByteLen::new(used(&storage) + pages * 4096)));
        let mut promised = Vec::new();
        let outcome = story(&store, &mut promised);
        check(&store, &promised, &format!("{pages} pages were free"));
        drop(store);
        let after = storage.crash(pages);
        let store = open(&after);
        check(&store, &promised, &format!("{pages} pages were free, restarted"));
        finish(&store);
        match outcome {
            Ok(()) => break,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Poisoned), "{error}")
            }
        }
        refused += 1;
    }
    assert!(refused > 5, "it was full {refused} times only");
}

/// A storage for files beside the store's.
struct Shelf(CrashStorage);

impl Shelf {
    fn extract(&self, unit: &Unit, from: CheckpointId, to: CheckpointId) -> DeltaFile {
        let name = format!("{from}-{to}.delta");
        let file = self.0.open(&name, OpenMode::CreateNew).unwrap();
        unit.extract((from, to), DISK, file, &|_| true).unwrap();
        self.open(&name).unwrap()
    }

    fn open(&self, name: &str) -> Result<DeltaFile> {
        DeltaFile::open(self.0.open(name, OpenMode::Read).unwrap())
    }

    fn merge(&self, files: &[DeltaFile], name: &str, prefer: Prefer) -> Result<(DeltaMerge, DeltaFile)> {
        let merged = merge_deltas(files, self.0.open(name, OpenMode::CreateNew).unwrap(), prefer)?;
        Ok((merged, self.open(name).unwrap()))
    }
}

fn read(volume: &dyn Volume) -> Vec<u8> {
    let mut bytes = vec![0; LEN as usize];
    volume.read_at(ByteOffset::ZERO, &mut bytes, RequestClass::Guest).unwrap();
    bytes
}

fn image_of(unit: &Unit, at: CheckpointId) -> Arc<dyn Volume> {
    let image = create_image(&CrashStorage::new(), "image", ImageFormat::Raw, ByteLen::new(LEN)).unwrap();
    copy_volume(&unit.view(at, DISK).unwrap(), &*image, &|_, _| true).unwrap();
    image
}

#[test]
fn exported_deltas_are_merged_and_applied() {
    let unit = open(&CrashStorage::new()).create_unit(spec(1)).unwrap();
    let (main, mut random) = (unit.main_branch(), Random::new(3));
    let mut checkpoints = Vec::new();
    for _ in 0..6 {
        for _ in 0..30 {
            let sectors = 1 + random.below(200);
            let range = extent(random.below(LEN / 512 - sectors) * 512, sectors * 512);
            let mut bytes = vec![0; range.len().as_usize()];
            random.fill(&mut bytes);
            match random.below(5) {
                0 => head(&unit).write_zeroes(range, false, false, RequestClass::Guest).unwrap(),
                1 => head(&unit).discard(range, false, RequestClass::Guest).unwrap(),
                _ => head(&unit).write_at(range.start(), &bytes, false, RequestClass::Guest).unwrap(),
            }
        }
        checkpoints.push(seal(&unit, main));
    }
    unit.consolidate(checkpoints[0], &|_, _| true).unwrap();
    let shelf = Shelf(CrashStorage::new());
    let files: Vec<_> = checkpoints.windows(2).map(|pair| shelf.extract(&unit, pair[0], pair[1])).collect();
    let (merged, one) = shelf.merge(&files, "all.delta", Prefer::Neither).unwrap();
    assert_eq!((one.header().from, one.header().to), (checkpoints[0], checkpoints[5]));
    assert_eq!(merged.decided, ByteLen::ZERO, "along a line the newest wins without a word");
    assert!(merged.len < files.iter().map(|file| file.covered()).sum(), "what was overwritten is in it once");
    // The same as what the store itself says has changed.
    let whole = shelf.extract(&unit, checkpoints[0], checkpoints[5]);
    assert_eq!(whole.covered(), merged.covered);
    let expected = read(&unit.view(checkpoints[5], DISK).unwrap());
    for delta in [&one, &whole] {
        let image = image_of(&unit, checkpoints[0]);
        // Interrupted, and repeated.
        let half = |done: ByteLen, total: ByteLen| done.get() * 2 < total.get();
        assert_eq!(kind(apply_delta(delta, &*image, &half)), ErrorKind::Cancelled);
        apply_delta(delta, &*image, &|_, _| true).unwrap();
        assert!(read(&*image) == expected);
    }
    let file = shelf.0.open("x", OpenMode::CreateNew).unwrap();
    assert_eq!(
        kind(unit.extract((checkpoints[3], checkpoints[1]), DISK, file, &|_| true)),
        ErrorKind::Unsupported
    );
    let small = create_image(&CrashStorage::new(), "i", ImageFormat::Raw, ByteLen::new(LEN / 2)).unwrap();
    assert_eq!(kind(apply_delta(&one, &*small, &|_, _| true)), ErrorKind::InvalidInput);
}

#[test]
fn across_branches_what_differs_is_named_and_nothing_is_guessed() {
    let unit = open(&CrashStorage::new()).create_unit(spec(1)).unwrap();
    let main = unit.main_branch();
    put(&unit, main, 0, 1).unwrap();
    let base = seal(&unit, main);
    let branch = unit.fork(base, session(1)).unwrap();
    for (line, byte) in [(main, 2), (branch, 3)] {
        put(&unit, line, 8192, byte).unwrap();
        put(&unit, line, 65536, 7).unwrap();
        put(&unit, line, 131_072 * u64::from(byte), byte).unwrap();
    }
    let (a, b) = (seal(&unit, main), seal(&unit, branch));
    let shelf = Shelf(CrashStorage::new());
    let files = [shelf.extract(&unit, base, a), shelf.extract(&unit, base, b)];
    let error = shelf.merge(&files, "no.delta", Prefer::Neither).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("4096 bytes at 8192"), "{error}");
    assert!(!error.to_string().contains("65536"), "what is equal is no conflict: {error}");
    for (prefer, name, byte) in [(Prefer::First, "first", 2), (Prefer::Last, "last", 3)] {
        let (merged, file) = shelf.merge(&files, name, prefer).unwrap();
        assert_eq!(merged.decided, ByteLen::new(4096));
        let image = image_of(&unit, base);
        apply_delta(&file, &*image, &|_, _| true).unwrap();
        let found = [0, 8192, 65536, 262_144, 393_216].map(|at| byte_at(&*image, at));
        assert_eq!(found, [1, byte, 7, 2, 3]);
    }
    let other = open(&CrashStorage::new()).create_unit(spec(2)).unwrap();
    let (x, y) = (seal(&other, other.main_branch()), seal(&other, other.main_branch()));
    let strange = [files[0].clone(), Shelf(CrashStorage::new()).extract(&other, x, y)];
    assert_eq!(kind(shelf.merge(&strange, "strange", Prefer::Last)), ErrorKind::InvalidInput);
}

#[test]
fn a_damaged_or_cut_delta_file_is_refused() {
    let unit = open(&CrashStorage::new()).create_unit(spec(1)).unwrap();
    let main = unit.main_branch();
    let from = seal(&unit, main);
    put(&unit, main, 4096, 5).unwrap();
    head(&unit).discard(extent(65536, 512), false, RequestClass::Guest).unwrap();
    let to = seal(&unit, main);
    let shelf = Shelf(CrashStorage::new());
    shelf.extract(&unit, from, to);
    let name = format!("{from}-{to}.delta");
    let whole = shelf.0.open(&name, OpenMode::Read).unwrap();
    let mut bytes = vec![0; whole.len().unwrap().as_usize()];
    whole.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
    let image = create_image(&CrashStorage::new(), "i", ImageFormat::Raw, ByteLen::new(LEN)).unwrap();
    let try_it = |bytes: &[u8]| -> Result<()> {
        let storage = CrashStorage::new();
        let file = storage.open("d", OpenMode::CreateNew).unwrap();
        file.write_at(ByteOffset::ZERO, bytes).unwrap();
        apply_delta(&DeltaFile::open(file)?, &*image, &|_, _| true)
    };
    try_it(&bytes).unwrap();
    for cut in (0..bytes.len()).filter(|at| *at < 700 || at % 97 == 0 || bytes.len() - at < 40) {
        assert_eq!(kind(try_it(&bytes[..cut])), ErrorKind::Corrupt, "cut at {cut}");
    }
    for bit in (0..bytes.len() * 8).step_by(11) {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(kind(try_it(&flipped)), ErrorKind::Corrupt | ErrorKind::Unsupported), "bit {bit}");
    }
}
