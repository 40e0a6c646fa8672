use super::*;
use std::collections::BTreeSet;

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

fn create(storage: &CrashStorage, name: &str) -> Arc<dyn StorageFile> {
    storage.open(name, OpenMode::CreateNew).unwrap()
}

fn content(storage: &CrashStorage, name: &str) -> Option<Vec<u8>> {
    let file = storage.open(name, OpenMode::Read).ok()?;
    let mut bytes = vec![0; file.len().unwrap().as_usize()];
    file.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
    Some(bytes)
}

#[test]
fn synced_data_never_vanishes() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let storage = CrashStorage::new();
        storage.make_dir("a/b").unwrap();
        for dir in ["", "a"] {
            storage.sync_dir(dir).unwrap();
        }
        let file = create(&storage, "a/b/file.new");
        let mut model = Vec::new();
        for _ in 0..20 {
            let offset = random.below(20_000) as usize;
            let mut data = vec![0; 1 + random.below(9000) as usize];
            random.fill(&mut data);
            file.write_at(ByteOffset::new(offset as u64), &data).unwrap();
            model.resize(model.len().max(offset + data.len()), 0);
            model[offset..offset + data.len()].copy_from_slice(&data);
            if random.chance(20) {
                let (start, len) = (random.below(20_000), 1 + random.below(9000));
                file.punch_hole(extent(start, len)).unwrap();
                let end = model.len().min((start + len) as usize);
                model[(start as usize).min(end)..end].fill(0);
            }
            if random.chance(10) {
                let len = random.below(30_000);
                file.set_len(ByteLen::new(len)).unwrap();
                model.resize(len as usize, 0);
            }
        }
        file.sync().unwrap();
        storage.rename("a/b/file.new", "a/b/file").unwrap();
        storage.sync_dir("a/b").unwrap();
        // What is not synced touches other sectors only.
        let beyond = model.len().next_multiple_of(512) as u64;
        file.write_at(ByteOffset::new(beyond), &[1; 5000]).unwrap();
        create(&storage, "a/b/other");
        let left = content(&storage.crash(seed), "a/b/file").expect("the entry was synced");
        assert!(left.len() >= model.len() && left[..model.len()] == model, "seed {seed}");
        let twice = content(&storage.crash(seed).crash(seed + 1), "a/b/file");
        assert_eq!(twice, Some(left), "a crash leaves nothing unsynced, seed {seed}");
        assert_eq!(content(&storage, "a/b/file").unwrap()[..model.len()], model, "the original is untouched");
    }
}

#[test]
fn unsynced_data_is_sometimes_lost_sometimes_torn_sometimes_kept() {
    let storage = CrashStorage::new();
    let file = create(&storage, "file");
    file.write_at(ByteOffset::ZERO, &[1; 2048]).unwrap();
    file.sync().unwrap();
    storage.sync_dir("").unwrap();
    file.write_at(ByteOffset::ZERO, &[2; 2048]).unwrap();
    let outcomes: BTreeSet<Vec<u8>> =
        (0..100).map(|seed| content(&storage.crash(seed), "file").unwrap()).collect();
    assert!(outcomes.contains(&vec![1; 2048]) && outcomes.contains(&vec![2; 2048]));
    assert!(outcomes.len() > 4, "torn in several ways");
    for outcome in outcomes {
        assert_eq!(outcome.len(), 2048);
        for sector in outcome.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "never torn within a sector");
        }
    }
}

#[test]
fn later_writes_can_survive_earlier_ones_but_not_within_a_sector() {
    let storage = CrashStorage::new();
    let file = create(&storage, "file");
    file.set_len(ByteLen::new(8192)).unwrap();
    file.sync().unwrap();
    storage.sync_dir("").unwrap();
    file.write_at(ByteOffset::new(0), &[1; 4]).unwrap();
    file.write_at(ByteOffset::new(4096), &[2; 4]).unwrap();
    file.write_at(ByteOffset::new(4), &[3; 4]).unwrap();
    let mut reordered = false;
    for seed in 0..100 {
        let bytes = content(&storage.crash(seed), "file").unwrap();
        reordered |= bytes[4096] == 2 && bytes[0] == 0;
        assert!(bytes[4] == 0 || bytes[0] == 1, "one sector is written as one");
    }
    assert!(reordered);
}

#[test]
fn unsynced_lengths_and_entries_come_and_go() {
    let storage = CrashStorage::new();
    let file = create(&storage, "grown");
    storage.sync_dir("").unwrap();
    file.write_at(ByteOffset::ZERO, &[1; 600]).unwrap();
    create(&storage, "made");
    let mut lens = BTreeSet::new();
    let mut made = BTreeSet::new();
    for seed in 0..100 {
        let after = storage.crash(seed);
        lens.insert(content(&after, "grown").expect("its entry was synced").len());
        made.insert(content(&after, "made").is_some());
    }
    assert_eq!(lens, BTreeSet::from([0, 600]));
    assert_eq!(made, BTreeSet::from([false, true]));
}

#[test]
fn a_rename_is_whole_or_not_at_all() {
    let storage = CrashStorage::new();
    for (name, byte) in [("manifest", 1), ("manifest.new", 2)] {
        let file = create(&storage, name);
        file.write_at(ByteOffset::ZERO, &[byte]).unwrap();
        file.sync().unwrap();
    }
    storage.sync_dir("").unwrap();
    storage.rename("manifest.new", "manifest").unwrap();
    let outcomes: BTreeSet<_> = (0..100)
        .map(|seed| storage.crash(seed))
        .map(|after| (content(&after, "manifest"), content(&after, "manifest.new").is_some()))
        .collect();
    assert_eq!(outcomes, BTreeSet::from([(Some(vec![1]), true), (Some(vec![2]), false)]));
    storage.sync_dir("").unwrap();
    assert!((0..100).all(|seed| content(&storage.crash(seed), "manifest") == Some(vec![2])));
}

#[test]
fn a_folder_is_lost_with_what_is_in_it_until_its_parent_is_synced() {
    let storage = CrashStorage::new();
    storage.make_dir("unit.new/disk").unwrap();
    create(&storage, "unit.new/disk/log").sync().unwrap();
    storage.sync_dir("unit.new/disk").unwrap();
    storage.sync_dir("unit.new").unwrap();
    storage.rename("unit.new", "unit").unwrap();
    assert!((0..50).any(|seed| content(&storage.crash(seed), "unit/disk/log").is_none()));
    storage.sync_dir("").unwrap();
    assert!((0..50).all(|seed| content(&storage.crash(seed), "unit/disk/log").is_some()));
    storage.remove_dir("unit").unwrap();
    assert_eq!(storage.list("").unwrap(), [""; 0]);
    assert!((0..50).any(|seed| content(&storage.crash(seed), "unit/disk/log").is_some()));
    storage.sync_dir("").unwrap();
    assert!((0..50).all(|seed| storage.crash(seed).list("").unwrap().is_empty()));
}

#[test]
fn the_same_seed_leaves_the_same() {
    let storage = CrashStorage::new();
    let file = create(&storage, "file");
    storage.sync_dir("").unwrap();
    (0..40).for_each(|at| file.write_at(ByteOffset::new(at * 700), &[at as u8; 900]).unwrap());
    for seed in 0..20 {
        assert_eq!(content(&storage.crash(seed), "file"), content(&storage.crash(seed), "file"));
    }
}

#[test]
fn a_failed_sync_loses_what_it_should_have_kept_even_if_repeated() {
    let storage = CrashStorage::new();
    let file = create(&storage, "file");
    file.write_at(ByteOffset::ZERO, &[1; 1024]).unwrap();
    file.sync().unwrap();
    storage.sync_dir("").unwrap();
    file.write_at(ByteOffset::ZERO, &[2; 512]).unwrap();
    storage.fail_sync(1);
    assert_eq!(file.sync().unwrap_err().kind(), ErrorKind::Io);
    file.sync().unwrap();
    assert_eq!(content(&storage, "file").unwrap()[0], 2, "the cache still shows it");
    assert!((0..50).any(|seed| content(&storage.crash(seed), "file").unwrap()[0] == 1));
    file.write_at(ByteOffset::new(512), &[3; 512]).unwrap();
    file.sync().unwrap();
    assert!((0..50).all(|seed| content(&storage.crash(seed), "file").unwrap()[512] == 3));
}

#[test]
fn faults_strike_when_asked() {
    let storage = CrashStorage::new();
    let file = create(&storage, "file");
    storage.fail_write(2);
    file.write_at(ByteOffset::ZERO, &[1; 2048]).unwrap();
    assert_eq!(file.write_at(ByteOffset::ZERO, &[2; 2048]).unwrap_err().kind(), ErrorKind::Io);
    let bytes = content(&storage, "file").unwrap();
    assert_eq!((bytes[1023], bytes[1024]), (2, 1), "a failed write may have written a part");
    storage.fail_read(1);
    assert_eq!(file.read_at(ByteOffset::ZERO, &mut [0; 1]).unwrap_err().kind(), ErrorKind::Io);
    file.read_at(ByteOffset::ZERO, &mut [0; 1]).unwrap();
    storage.flip_bit("file", ByteOffset::new(1024), 1).unwrap();
    assert_eq!(content(&storage, "file").unwrap()[1024], 3);
    assert_eq!(content(&storage.crash(0), "absent"), None);
    storage.power_off_after(1);
    file.sync().unwrap();
    assert_eq!(file.sync().unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(file.write_at(ByteOffset::ZERO, &[1]).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(storage.sync_dir("").unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn a_full_storage_says_so_and_has_room_again() {
    let storage = CrashStorage::new();
    storage.set_capacity(Some(ByteLen::new(16 << 10)));
    let file = create(&storage, "file");
    file.write_at(ByteOffset::ZERO, &[1; 12 << 10]).unwrap();
    assert_eq!(storage.free_space().unwrap(), Some(ByteLen::new(4 << 10)));
    let full = file.write_at(ByteOffset::new(12 << 10), &[1; 8 << 10]).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::NoSpace);
    assert_eq!(file.len().unwrap(), ByteLen::new(16 << 10), "what fitted was written");
    file.punch_hole(extent(0, 8 << 10)).unwrap();
    assert_eq!(storage.free_space().unwrap(), Some(ByteLen::new(8 << 10)));
    create(&storage, "other").write_at(ByteOffset::ZERO, &[1; 8 << 10]).unwrap();
    storage.remove("file").unwrap();
    assert_eq!(storage.free_space().unwrap(), Some(ByteLen::new(8 << 10)));
}

#[test]
fn a_killed_program_leaves_what_it_wrote_and_no_fault() {
    let storage = CrashStorage::new();
    storage.set_capacity(Some(ByteLen::new(64 << 10)));
    let file = create(&storage, "file");
    file.write_at(ByteOffset::ZERO, &[1; 1000]).unwrap();
    storage.power_off_after(0);
    assert!(!storage.has_lost_power(), "nothing was refused yet");
    assert_eq!(file.sync().unwrap_err().kind(), ErrorKind::Io);
    assert!(storage.has_lost_power());
    let after = storage.survive();
    assert_eq!(content(&after, "file"), Some(vec![1; 1000]), "the kernel has it");
    assert!(
        (0..50).any(|seed| content(&after.crash(seed), "file") != Some(vec![1; 1000])),
        "the medium has not"
    );
    assert_eq!(after.free_space().unwrap(), Some(ByteLen::new(60 << 10)), "the room is what it was");
    after.open("file", OpenMode::ReadWrite).unwrap().sync().unwrap();
    after.sync_dir("").unwrap();
    assert!((0..50).all(|seed| content(&after.crash(seed), "file") == Some(vec![1; 1000])));
}

#[test]
fn a_slow_storage_says_how_long_it_took_and_nobody_waits() {
    let storage = CrashStorage::new();
    let each = Duration::from_secs(3600);
    storage.set_latency(each);
    let file = create(&storage, "file");
    file.write_at(ByteOffset::ZERO, &[1]).unwrap();
    file.read_at(ByteOffset::ZERO, &mut [0]).unwrap();
    file.sync().unwrap();
    assert_eq!(storage.take_busy(), each * 4);
    assert_eq!(storage.take_busy(), Duration::ZERO);
}

#[test]
fn faults_are_counted_when_they_strike() {
    let storage = CrashStorage::new();
    storage.make_dir("a/b").unwrap();
    let file = create(&storage, "a/b/file");
    storage.fail_write(1);
    storage.fail_sync(1);
    storage.fail_read(1);
    storage.fail_sync_dir(1);
    assert_eq!(storage.faults(), FaultCounts::default());
    file.write_at(ByteOffset::ZERO, &[1; 1024]).unwrap_err();
    file.sync().unwrap_err();
    file.read_at(ByteOffset::ZERO, &mut [0]).unwrap_err();
    storage.sync_dir("a").unwrap_err();
    storage.set_capacity(Some(ByteLen::ZERO));
    file.write_at(ByteOffset::new(1 << 20), &[1]).unwrap_err();
    let each = FaultCounts { reads: 1, writes: 1, syncs: 1, dir_syncs: 1, no_space: 1 };
    assert_eq!(storage.faults(), each);
    assert_eq!(storage.files(), [("a/b/file".to_owned(), file.len().unwrap())]);
}
