use super::super::battery::{CLASS, MIB, Shape, check, create, extent, file, reopen};
use super::super::{FaultKind, ImageFormat, ImageOptions, open_image, open_image_with};
use crate::testing::{CrashStorage, History};
use blocks::{
    Allocation, ByteLen, ByteOffset, Error, ErrorKind, Extent, OpenMode, Storage, StorageFile, Volume,
};
use std::sync::Arc;

const CLUSTER: u64 = 64 << 10;
const SHAPE: Shape = Shape { format: ImageFormat::Qcow2, block: CLUSTER, table: 512 * MIB };

/// Lengths around the boundaries of clusters, L2 tables and other formats' limits.
const LENS: [u64; 10] = [
    512,
    CLUSTER - 512,
    CLUSTER,
    CLUSTER + 512,
    64 * MIB + 512,
    512 * MIB,
    512 * MIB + 512,
    1_000_000_512,
    4 << 40,
    1 << 51,
];

#[test]
fn random_histories_match_the_model_and_survive_reopening() {
    SHAPE.survives_reopening(&LENS);
}

#[test]
fn a_crash_at_any_change_keeps_what_was_flushed() {
    SHAPE.survives_crashes(&[5 * MIB + 512, 64 * MIB, 600 * MIB], 50);
}

#[test]
fn a_crash_at_every_change_of_one_history_keeps_what_was_flushed() {
    SHAPE.survives_a_crash_at_every_change(7 * MIB);
}

#[test]
fn a_failed_write_poisons() {
    SHAPE.is_poisoned_by_a_failed_write();
}

#[test]
fn a_failed_sync_is_not_forgotten() {
    SHAPE.forgets_nothing_after_a_failed_sync();
}

#[test]
fn a_full_storage_is_an_error_and_loses_nothing() {
    SHAPE.loses_nothing_on_a_full_storage();
}

/// An image of 4 MiB with clusters and counts of the smallest size, as nobody makes them by default: tables of one
/// sector, so that every kind of growth happens within a few megabytes.
fn create_small(storage: &CrashStorage, refcount_order: u32, version: u32) -> Arc<dyn StorageFile> {
    let file = storage.open("image.file", OpenMode::CreateNew).unwrap();
    let put = |at: u64, bytes: &[u8]| file.write_at(ByteOffset::new(at), bytes).unwrap();
    file.set_len(ByteLen::new(512 * 6)).unwrap();
    let len = 4 * MIB;
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    put(20, &9_u32.to_be_bytes());
    put(24, &len.to_be_bytes());
    put(36, &u32::try_from(len / (512 * 64)).unwrap().to_be_bytes());
    put(40, &(512_u64 * 3).to_be_bytes());
    put(48, &512_u64.to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    if version == 3 {
        put(96, &refcount_order.to_be_bytes());
        put(100, &104_u32.to_be_bytes());
    }
    put(512, &1024_u64.to_be_bytes());
    // Clusters 0 to 4: header, refcount table, counts, and an L1 table of 128 entries in two.
    let header = super::header::Header::read(&*file).unwrap();
    put(1024, &super::refcounts::Refcounts::new(&header, vec![1024]).encode_block(0..5));
    file.set_len(ByteLen::new(512 * 5)).unwrap();
    file.sync().unwrap();
    storage.sync_dir("").unwrap();
    file
}

#[test]
fn small_clusters_make_tables_grow_and_survive_crashes() {
    for order in [0, 1, 3, 4, 6] {
        for seed in 0..12 {
            let mut storage = CrashStorage::new();
            create_small(&storage, order, 3);
            let windows = vec![extent(0, MIB), extent(3 * MIB + 512, MIB - 512)];
            let mut history = History::new(seed, windows);
            for round in 0..3 {
                let context = format!("order {order}, seed {seed}, round {round}");
                let image =
                    reopen(&storage, ImageFormat::Qcow2).unwrap_or_else(|error| panic!("{context}: {error}"));
                history.check_crashed(&*image).unwrap_or_else(|error| panic!("{context}: {error}"));
                history.adopt(&*image).unwrap();
                image.flush().unwrap();
                storage.power_off_after(seed * 37 % 150 + 20);
                while history.step(&*image).is_ok() {}
                drop(image);
                storage = storage.crash(seed * 3 + round);
                let report = check(&storage, ImageFormat::Qcow2, false);
                assert_eq!(report.damaged(), 0, "{context}: {:?}", report.faults());
            }
            let report = check(&storage, ImageFormat::Qcow2, true);
            assert_eq!(report.damaged(), 0);
            assert!(check(&storage, ImageFormat::Qcow2, false).is_clean());
            let image = reopen(&storage, ImageFormat::Qcow2).unwrap();
            history.check_crashed(&*image).unwrap();
        }
    }
}

/// The refcount table itself has to move: 64 blocks of 256 counts are 8 MiB of file.
#[test]
fn the_refcount_table_grows_and_a_crash_meanwhile_loses_nothing() {
    let grown = |stop: Option<u64>| {
        let storage = CrashStorage::new();
        create_small(&storage, 6, 3);
        // Counts of 8 bytes: a block counts 64 clusters, the table 64 * 64 * 512 = 2 MiB of file.
        let image = reopen(&storage, ImageFormat::Qcow2).unwrap();
        image.write_at(ByteOffset::ZERO, &vec![5; MIB as usize], true, CLASS).unwrap();
        let before = storage.changes();
        if let Some(stop) = stop {
            storage.power_off_after(stop);
        }
        let result = image.write_at(ByteOffset::new(MIB), &vec![6; 3 * MIB as usize], true, CLASS);
        drop(image);
        (storage.clone(), storage.changes() - before, result.is_ok())
    };
    let (storage, changes, done) = grown(None);
    assert!(done);
    let header = super::header::Header::read(&*file(&storage)).unwrap();
    assert!(header.refcount_table_clusters > 1, "the table has moved");
    assert!(check(&storage, ImageFormat::Qcow2, false).is_clean());
    let step = (changes / 60).max(1);
    for stop in (0..changes).step_by(step as usize) {
        let (storage, _, _) = grown(Some(stop));
        for seed in 0..3 {
            let after = storage.crash(stop * 7 + seed);
            let image = reopen(&after, ImageFormat::Qcow2).unwrap();
            let mut bytes = vec![0; MIB as usize];
            image.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 5), "stop {stop}, seed {seed}");
            let report = check(&after, ImageFormat::Qcow2, false);
            assert_eq!(report.damaged(), 0, "stop {stop}, seed {seed}: {:?}", report.faults());
        }
    }
}

#[test]
fn zeroes_and_discards_take_no_room_and_status_says_so() {
    let storage = CrashStorage::new();
    let image = create(&storage, ImageFormat::Qcow2, 64 * MIB);
    let kinds = |image: &dyn Volume| -> Vec<(u64, u64, Allocation)> {
        let runs = image.status(extent(0, 64 * MIB)).unwrap();
        runs.iter().map(|run| (run.extent.start().get(), run.extent.len().get(), run.allocation)).collect()
    };
    image.write_zeroes(extent(0, 64 * MIB), false, false, CLASS).unwrap();
    image.discard(extent(512, 60 * MIB), false, CLASS).unwrap();
    assert_eq!(kinds(&*image), [(0, 64 * MIB, Allocation::Hole)]);
    image.write_at(ByteOffset::new(4 * MIB), &[1; 64 << 10], false, CLASS).unwrap();
    let (hole, data) = (Allocation::Hole, Allocation::Data);
    let after = 4 * MIB + (64 << 10);
    let expected = [(0, 4 * MIB, hole), (4 * MIB, 64 << 10, data), (after, 64 * MIB - after, hole)];
    assert_eq!(kinds(&*image), expected);
    image.discard(extent(4 * MIB, 64 << 10), false, CLASS).unwrap();
    assert_eq!(kinds(&*image), [(0, 64 * MIB, hole)]);
    image.write_zeroes(extent(8 * MIB, 4096), true, false, CLASS).unwrap();
    assert_eq!(kinds(&*image)[1], (8 * MIB, 4096, data), "asked to keep room");
}

fn patch(file: &dyn StorageFile, at: u64, bytes: &[u8]) {
    file.write_at(ByteOffset::new(at), bytes).unwrap();
}

fn opening(storage: &CrashStorage) -> Error {
    let error = reopen(storage, ImageFormat::Qcow2).map(drop).unwrap_err();
    assert!(error.to_string().contains("image.file"), "names the file: {error}");
    error
}

/// A disk of 16 MiB of which the first 4 are written: L2 table in cluster 4, data behind it.
fn written() -> (CrashStorage, Arc<dyn StorageFile>) {
    let storage = CrashStorage::new();
    let image = create(&storage, ImageFormat::Qcow2, 16 * MIB);
    image.write_at(ByteOffset::ZERO, &vec![1; 4 * MIB as usize], true, CLASS).unwrap();
    drop(image);
    let file = file(&storage);
    (storage, file)
}

#[test]
fn headers_that_make_no_sense_are_refused() {
    let far = (1_u64 << 40).to_be_bytes();
    let cases: [(&str, u64, &[u8], ErrorKind); 19] = [
        ("another version", 4, &9_u32.to_be_bytes(), ErrorKind::Unsupported),
        ("encrypted", 32, &1_u32.to_be_bytes(), ErrorKind::Unsupported),
        ("tiny clusters", 20, &8_u32.to_be_bytes(), ErrorKind::Corrupt),
        ("huge clusters", 20, &63_u32.to_be_bytes(), ErrorKind::Corrupt),
        ("no length", 24, &0_u64.to_be_bytes(), ErrorKind::Corrupt),
        ("odd length", 24, &513_u64.to_be_bytes(), ErrorKind::Corrupt),
        ("endless", 24, &u64::MAX.to_be_bytes(), ErrorKind::Corrupt),
        ("longer than its table", 24, &(1_u64 << 40).to_be_bytes(), ErrorKind::Corrupt),
        ("L1 past the file", 40, &far, ErrorKind::Corrupt),
        ("L1 on the header", 40, &0_u64.to_be_bytes(), ErrorKind::Corrupt),
        ("L1 askew", 40, &(CLUSTER + 8).to_be_bytes(), ErrorKind::Corrupt),
        ("far too large an L1", 36, &u32::MAX.to_be_bytes(), ErrorKind::Corrupt),
        ("refcount table past the file", 48, &far, ErrorKind::Corrupt),
        ("refcount table on the L1", 48, &(3 * CLUSTER).to_be_bytes(), ErrorKind::Corrupt),
        ("no refcount table", 56, &0_u32.to_be_bytes(), ErrorKind::Corrupt),
        ("far too large a refcount table", 56, &u32::MAX.to_be_bytes(), ErrorKind::Corrupt),
        ("unknown features", 72, &(1_u64 << 40).to_be_bytes(), ErrorKind::Unsupported),
        ("data elsewhere", 72, &4_u64.to_be_bytes(), ErrorKind::Unsupported),
        ("odd counts", 96, &7_u32.to_be_bytes(), ErrorKind::Corrupt),
    ];
    for (what, at, bytes, kind) in cases {
        let (storage, file) = written();
        patch(&*file, at, bytes);
        let error = opening(&storage);
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
}

#[test]
fn tables_that_lead_astray_are_refused_where_they_are_used() {
    let l1 = 3 * CLUSTER;
    for (what, at, entry) in [
        ("L2 past the file", l1, (1 << 40) | super::entry::COPIED),
        ("L2 askew", l1, (CLUSTER + 512) | super::entry::COPIED),
        ("L2 on the refcount table", l1, CLUSTER | super::entry::COPIED),
        ("L2 on the header", l1, super::entry::COPIED),
        ("counts past the file", CLUSTER + 8, 1 << 40),
        ("counts on the L1", CLUSTER + 8, l1),
    ] {
        let (storage, file) = written();
        patch(&*file, at, &entry.to_be_bytes());
        let error = opening(&storage);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
    let l2 = 4 * CLUSTER;
    for (what, entry) in [
        ("past the file", (1 << 40) | super::entry::COPIED),
        ("askew", (6 * CLUSTER + 512) | super::entry::COPIED),
        ("on the L1", l1 | super::entry::COPIED),
        ("on the L2", l2 | super::entry::COPIED),
        ("on the header", super::entry::COPIED),
        ("reserved bits", (6 * CLUSTER) | 2),
        ("compressed past the file", (1 << 62) | (1 << 40)),
        ("compressed on a table", (1 << 62) | l1),
    ] {
        let (storage, file) = written();
        patch(&*file, l2, &entry.to_be_bytes());
        let image = reopen(&storage, ImageFormat::Qcow2).unwrap();
        let mut bytes = [0; 512];
        let read = image.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap_err();
        assert_eq!(read.kind(), ErrorKind::Corrupt, "{what}: {read}");
        assert!(read.to_string().contains("image.file"), "{read}");
        assert!(image.write_at(ByteOffset::ZERO, &[2; 512], false, CLASS).is_err(), "{what}");
        drop(image);
        let report = check(&storage, ImageFormat::Qcow2, true);
        assert_eq!(report.damaged(), 1, "{what}: {:?}", report.faults());
        let leaks = report.faults().iter().filter(|fault| fault.kind == FaultKind::Leak);
        assert!(leaks.clone().all(|leak| !leak.repaired), "a broken entry may own what seems leaked");
    }
}

#[test]
fn check_names_faults_and_mends_what_needs_no_guess() {
    let counts_at = 2 * CLUSTER;
    // A leak behind all data, a count that is too low, and a flag that is wrong.
    let (storage, file) = written();
    let last = file.len().unwrap().get() / CLUSTER;
    patch(&*file, counts_at + last * 2, &1_u16.to_be_bytes());
    patch(&*file, counts_at + 6 * 2, &0_u16.to_be_bytes());
    let mut entry = [0; 8];
    file.read_at(ByteOffset::new(4 * CLUSTER + 16), &mut entry).unwrap();
    entry[0] &= 0x7f;
    patch(&*file, 4 * CLUSTER + 16, &entry);
    let report = check(&storage, ImageFormat::Qcow2, false);
    assert_eq!((report.damaged(), report.leaked()), (2, ByteLen::new(CLUSTER)), "{:?}", report.faults());
    let places: Vec<_> = report.faults().iter().filter_map(|fault| fault.place).collect();
    assert!(places.contains(&extent(6 * CLUSTER, CLUSTER)), "{places:?}");
    assert!(places.contains(&extent(last * CLUSTER, CLUSTER)), "{places:?}");
    let mended = check(&storage, ImageFormat::Qcow2, true);
    assert_eq!((mended.repaired(), mended.damaged(), mended.leaked()), (3, 0, ByteLen::ZERO));
    assert!(check(&storage, ImageFormat::Qcow2, false).faults().is_empty());
    let image = reopen(&storage, ImageFormat::Qcow2).unwrap();
    let mut bytes = vec![0; 4 * MIB as usize];
    image.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 1));
}

#[test]
fn what_is_marked_as_damaged_is_read_but_not_written() {
    let (storage, file) = written();
    patch(&*file, 72, &2_u64.to_be_bytes());
    assert_eq!(opening(&storage).kind(), ErrorKind::Corrupt);
    open_image(file.clone(), None, false).unwrap();
    assert!(check(&storage, ImageFormat::Qcow2, true).is_clean());
    reopen(&storage, ImageFormat::Qcow2).unwrap();
}

#[test]
fn a_backing_file_is_used_only_when_it_is_allowed() {
    let storage = CrashStorage::new();
    let (overlay, base) = with_backing(&storage, "/elsewhere/base.raw");
    let refused = open_image(overlay.clone(), None, true).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("/elsewhere/base.raw"), "{refused}");
    let other = storage.open("other.raw", OpenMode::CreateNew).unwrap();
    let options = ImageOptions { writable: true, parents: vec![other, base], ..ImageOptions::default() };
    let image = open_image_with(overlay, options).unwrap();
    let mut bytes = [0; 1024];
    image.read_at(ByteOffset::new(MIB - 512), &mut bytes, CLASS).unwrap();
    assert!(bytes[..512].iter().all(|byte| *byte == 9) && bytes[512..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_chain_that_bites_its_tail_ends() {
    let storage = CrashStorage::new();
    let (overlay, _) = with_backing(&storage, "image.file");
    let parents = vec![overlay.clone()];
    let options = ImageOptions { parents, ..ImageOptions::default() };
    assert_eq!(open_image_with(overlay, options).map(drop).unwrap_err().kind(), ErrorKind::Unsupported);
}

/// A disk of 4 MiB over a raw file of 1 MiB of nines.
fn with_backing(storage: &CrashStorage, name: &str) -> (Arc<dyn StorageFile>, Arc<dyn StorageFile>) {
    let base = storage.open("base.raw", OpenMode::CreateNew).unwrap();
    base.write_at(ByteOffset::ZERO, &vec![9; MIB as usize]).unwrap();
    base.sync().unwrap();
    drop(create(storage, ImageFormat::Qcow2, 4 * MIB));
    let file = file(storage);
    patch(&*file, 8, &512_u64.to_be_bytes());
    patch(&*file, 16, &(name.len() as u32).to_be_bytes());
    patch(&*file, 512, name.as_bytes());
    file.sync().unwrap();
    storage.sync_dir("").unwrap();
    (file, base)
}

fn open_over(storage: &CrashStorage) -> Arc<dyn Volume> {
    let parents = vec![storage.open("base.raw", OpenMode::Read).unwrap()];
    let file = storage.open("image.file", OpenMode::ReadWrite).unwrap();
    open_image_with(file, ImageOptions { writable: true, parents, ..ImageOptions::default() }).unwrap()
}

/// Every sector is old or new, never zero where the backing file shows; at every moment of the power cut.
#[test]
fn writing_over_a_backing_file_survives_a_crash_at_every_change() {
    for stop in 0.. {
        let storage = CrashStorage::new();
        with_backing(&storage, "base.raw");
        let image = open_over(&storage);
        storage.power_off_after(stop);
        let mut done = image.write_at(ByteOffset::new(CLUSTER + 512), &[5; 1024], false, CLASS);
        done = done.and_then(|()| image.discard(extent(4 * CLUSTER, CLUSTER), false, CLASS));
        done = done.and_then(|()| image.discard(extent(6 * CLUSTER + 512, 512), false, CLASS));
        done = done.and_then(|()| image.write_at(ByteOffset::new(MIB - 512), &[6; 1024], true, CLASS));
        drop(image);
        for seed in 0..8 {
            let after = storage.crash(stop * 10 + seed);
            let image = open_over(&after);
            let mut bytes = vec![0; 2 * MIB as usize];
            image.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap();
            for (number, sector) in bytes.chunks(512).enumerate() {
                let (at, found) = (number as u64 * 512, sector[0]);
                assert!(sector.iter().all(|byte| *byte == found));
                let old = if at < MIB { 9 } else { 0 };
                let new = match at {
                    _ if (CLUSTER + 512..CLUSTER + 1536).contains(&at) => 5,
                    _ if (4 * CLUSTER..5 * CLUSTER).contains(&at) || at == 6 * CLUSTER + 512 => 0,
                    _ if (MIB - 512..MIB + 512).contains(&at) => 6,
                    _ => old,
                };
                let allowed = if done.is_ok() { vec![new] } else { vec![old, new] };
                assert!(allowed.contains(&found), "stop {stop}, seed {seed}, at {at}: {found}");
            }
            assert_eq!(check(&after, ImageFormat::Qcow2, false).damaged(), 0, "stop {stop}, seed {seed}");
        }
        if done.is_ok() {
            return;
        }
    }
}

#[test]
fn damaged_bytes_never_panic_nor_take_memory_without_bound() {
    let (pristine, _file) = written();
    let places = [
        extent(0, 112),
        extent(CLUSTER, 16),
        extent(2 * CLUSTER, 160),
        extent(3 * CLUSTER, 8),
        extent(4 * CLUSTER, 512),
    ];
    SHAPE.takes_damaged_bytes(&pristine, 500, &places, |_| {});
    let small = CrashStorage::new();
    create_small(&small, 3, 3);
    let image = reopen(&small, ImageFormat::Qcow2).unwrap();
    image.write_at(ByteOffset::ZERO, &vec![1; 100 << 10], true, CLASS).unwrap();
    drop(image);
    SHAPE.takes_damaged_bytes(&small, 500, &[extent(0, 2560), extent(2560, 16384)], |_| {});
}

#[test]
fn the_whole_extent_of_a_large_disk_is_told_in_bounded_steps() {
    let storage = CrashStorage::new();
    let image = create(&storage, ImageFormat::Qcow2, 4 << 40);
    image.write_at(ByteOffset::new(3 << 40), &[1; 512], false, CLASS).unwrap();
    let mut at = ByteOffset::ZERO;
    let mut data = Vec::new();
    while let Some(rest) = Extent::between(at, image.len().end()) {
        let runs = image.status(rest).unwrap();
        at = runs.last().unwrap().extent.end();
        data.extend(runs.into_iter().filter(|run| run.allocation == Allocation::Data));
    }
    assert_eq!(data.len(), 1);
    assert!(data[0].extent.contains(extent(3 << 40, 512)) && data[0].extent.len() <= ByteLen::new(CLUSTER));
}
