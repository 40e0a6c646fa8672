use super::*;
use blocks::Id;
use store::testing::{CrashStorage, Random};

fn owner() -> MapOwner {
    let id = Id::from_bytes([7; 16]).unwrap();
    MapOwner { session: SessionId(id), disk: DiskIndex(0), len: ByteLen::new(10_000 << BLOCK.get()) }
}

fn block(block: u64) -> Extent {
    Extent::new(BLOCK.start_of(block), BLOCK.len()).unwrap()
}

/// After a failed sync the kernel's cache shows a mark that no medium has, as clean; a map that is opened again must not
/// build on it.
#[test]
fn what_a_failed_sync_has_left_in_the_cache_is_put_on_the_medium_by_the_next_opening() {
    for seed in 0..50 {
        let storage = CrashStorage::new();
        let map = DirtyMap::create(&storage, "map", owner(), &BlockSet::new()).unwrap();
        storage.fail_sync(1);
        assert!(map.mark(block(3)).is_err());
        drop(map);
        let restarted = storage.survive();
        let map = DirtyMap::open(&restarted, "map", owner()).unwrap();
        map.mark(block(7)).unwrap();
        let after = DirtyMap::open(&restarted.crash(seed), "map", owner())
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(after.contains(7), "seed {seed}");
    }
}

#[test]
fn no_mark_that_was_promised_is_lost_to_a_power_cut() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let storage = CrashStorage::new();
        let initial = BlockSet::touched(&[block(1), block(2), block(900)].into_iter().collect());
        let map = DirtyMap::create(&storage, "map", owner(), &initial).unwrap();
        let mut promised = initial.clone();
        storage.power_off_after(random.below(60));
        for _ in 0..40 {
            let first = random.below(9_000);
            let mut wanted = BlockSet::new();
            (0..1 + random.below(60))
                .for_each(|step| wanted.insert_block(first + step * (1 + random.below(3))));
            match map.mark_all(&wanted) {
                Ok(()) => promised.union(&wanted),
                Err(_) => break,
            }
        }
        let after = storage.crash(seed);
        let map =
            DirtyMap::open(&after, "map", owner()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let mut union = map.blocks();
        union.union(&promised);
        assert_eq!(union, map.blocks(), "seed {seed}: a promised mark is gone");
        // What memory says must be what the medium says, also after the next cut.
        map.mark(block(9_999)).unwrap();
        let again = DirtyMap::open(&after.crash(seed + 1), "map", owner()).unwrap();
        assert_eq!(again.blocks(), map.blocks(), "seed {seed}");
    }
}

#[test]
fn damage_in_the_middle_is_an_error_and_a_foreign_map_is_refused() {
    let storage = CrashStorage::new();
    let map = DirtyMap::create(&storage, "map", owner(), &BlockSet::new()).unwrap();
    map.mark(block(1)).unwrap();
    map.mark(block(5)).unwrap();
    drop(map);
    let other = MapOwner { disk: DiskIndex(1), ..owner() };
    assert_eq!(DirtyMap::open(&storage, "map", other).unwrap_err().kind(), ErrorKind::Corrupt);
    storage.flip_bit("map", ByteOffset::new(HEADER_BYTES + 6), 0).unwrap();
    let error = DirtyMap::open(&storage, "map", owner()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("byte 512"), "{error}");
}

#[test]
fn marks_of_many_threads_share_syncs_and_a_failed_one_poisons() {
    let storage = CrashStorage::new();
    let map = DirtyMap::create(&storage, "map", owner(), &BlockSet::new()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let map = &map;
            scope.spawn(move || (0..200).for_each(|step| map.mark(block(thread * 200 + step)).unwrap()));
        }
    });
    assert_eq!(map.blocks().count(), 1600);
    storage.fail_sync(1);
    assert!(map.mark(block(1)).is_ok(), "marked already: nothing to sync");
    assert!(map.mark(block(5_000)).is_err());
    assert_eq!(map.mark(block(5_001)).unwrap_err().kind(), ErrorKind::Poisoned);
}

/// The bytes of version 1, kept so that they stay readable; the files are made once by that version's code, by
/// `UNDERSTUDY_WRITE_FIXTURES=1`, which never touches what is there.
#[test]
fn a_map_of_version_1_stays_readable() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/dirty.map");
    let storage = CrashStorage::new();
    if std::env::var_os("UNDERSTUDY_WRITE_FIXTURES").is_some() && !path.exists() {
        let initial = BlockSet::touched(&[block(1), block(2), block(900)].into_iter().collect());
        let map = DirtyMap::create(&storage, "made", owner(), &initial).unwrap();
        map.mark(block(5)).unwrap();
        let file = storage.open("made", OpenMode::Read).unwrap();
        let mut bytes = vec![0; file.len().unwrap().as_usize()];
        file.read_at(ByteOffset::ZERO, &mut bytes).unwrap();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    storage.open("map", OpenMode::CreateNew).unwrap().write_at(ByteOffset::ZERO, &bytes).unwrap();
    let map = DirtyMap::open(&storage, "map", owner()).unwrap();
    assert_eq!(map.blocks().blocks().collect::<Vec<_>>(), [1, 2, 5, 900]);
    assert_eq!(DirtyMap::owner_of(&bytes), Some(owner()));
}
