use super::super::{
    FaultKind, ImageFormat, ImageOptions, NewImage, check_image, create_child, create_image,
    create_image_with, merge_image, open_image, open_image_with,
};
use crate::testing::{CrashStorage, History, Random};
use blocks::{
    Allocation, ByteLen, ByteOffset, Error, ErrorKind, Extent, OpenMode, RequestClass, SECTOR_BYTES, Storage,
    StorageFile, Volume,
};
use std::sync::Arc;

const CLASS: RequestClass = RequestClass::Guest;
const MIB: u64 = 1 << 20;

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

fn create(storage: &CrashStorage, len: u64) -> Arc<dyn Volume> {
    let image = create_image(storage, "image.vhd", ImageFormat::Vhd, ByteLen::new(len)).unwrap();
    storage.sync_dir("").unwrap();
    image
}

fn reopen(storage: &CrashStorage) -> blocks::Result<Arc<dyn Volume>> {
    open_image(storage.open("image.vhd", OpenMode::ReadWrite)?, Some(ImageFormat::Vhd), true)
}

/// Windows at the start, over a block boundary, and at the end.
fn windows(len: u64) -> Vec<Extent> {
    let mut windows = vec![extent(0, len.min(64 << 10))];
    if len > 4 * MIB {
        windows.push(extent(2 * MIB - (64 << 10), 128 << 10));
        windows.push(extent(2 * MIB, 2 * MIB + 512));
    }
    let tail = len.min(256 << 10);
    windows.push(extent(len - tail, tail));
    windows
}

/// Lengths around the boundaries of blocks, of the largest geometry (127.5 GiB) and of the format.
const LENS: [u64; 10] = [
    512,
    2 * MIB - 512,
    2 * MIB,
    2 * MIB + 512,
    64 * MIB + 512,
    1_000_000_512,
    127 << 30,
    65535 * 16 * 255 * 512,
    65535 * 16 * 255 * 512 + 512,
    2040 << 30,
];

#[test]
fn random_histories_match_the_model_and_survive_reopening() {
    for (seed, len) in LENS.into_iter().enumerate() {
        let storage = CrashStorage::new();
        let mut image = create(&storage, len);
        let mut history = History::new(seed as u64, windows(len));
        for round in 0..4 {
            assert_eq!(image.len(), ByteLen::new(len));
            for _ in 0..40 {
                history.step(&*image).unwrap();
            }
            history
                .check(&*image)
                .unwrap_or_else(|error| panic!("seed {seed}, {len} bytes, round {round}: {error}"));
            drop(image);
            image = reopen(&storage).unwrap();
        }
    }
}

#[test]
fn a_crash_at_any_change_keeps_what_was_flushed() {
    for seed in 0..150_u64 {
        let mut random = Random::new(seed);
        let len = [5 * MIB + 512, 64 * MIB, 300 * MIB][random.below(3) as usize];
        let storage = CrashStorage::new();
        let mut image = create(&storage, len);
        let mut history = History::new(seed, windows(len));
        let mut storage = storage;
        for round in 0..4 {
            storage.power_off_after(random.below(60));
            while history.step(&*image).is_ok() {}
            storage = storage.crash(random.number());
            let context = format!("seed {seed}, round {round}");
            image = reopen(&storage).unwrap_or_else(|error| panic!("{context}: does not open: {error}"));
            history.check_crashed(&*image).unwrap_or_else(|error| panic!("{context}: {error}"));
            history.adopt(&*image).unwrap();
            // What was read after a crash must not change by itself later: it counts as flushed.
            image.flush().unwrap();
        }
    }
}

#[test]
fn a_crash_at_every_change_of_one_history_keeps_what_was_flushed() {
    for stop in 0.. {
        let storage = CrashStorage::new();
        let image = create(&storage, 7 * MIB);
        let mut history = History::new(7, windows(7 * MIB));
        storage.power_off_after(stop);
        let died = (0..60).any(|_| history.step(&*image).is_err());
        for seed in 0..4 {
            let after = storage.crash(stop * 10 + seed);
            let image = reopen(&after).unwrap_or_else(|error| panic!("stop {stop}, seed {seed}: {error}"));
            history
                .check_crashed(&*image)
                .unwrap_or_else(|error| panic!("stop {stop}, seed {seed}: {error}"));
        }
        if !died {
            assert!(stop > 60, "the history has that many changes");
            return;
        }
    }
}

#[test]
fn a_failed_write_poisons() {
    let storage = CrashStorage::new();
    let image = create(&storage, 8 * MIB);
    storage.fail_write(1);
    assert_eq!(image.write_at(ByteOffset::ZERO, &[1; 512], false, CLASS).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(
        image.write_at(ByteOffset::ZERO, &[1; 512], false, CLASS).unwrap_err().kind(),
        ErrorKind::Poisoned
    );
    assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Poisoned);
    reopen(&storage).unwrap().write_at(ByteOffset::ZERO, &[1; 512], true, CLASS).unwrap();
}

#[test]
fn a_full_storage_is_an_error_and_loses_nothing() {
    let storage = CrashStorage::new();
    let image = create(&storage, 64 * MIB);
    image.write_at(ByteOffset::ZERO, &[1; 4096], true, CLASS).unwrap();
    storage.set_capacity(Some(ByteLen::new(MIB)));
    let full = (0..32).find_map(|at| {
        image.write_at(ByteOffset::new(at * 2 * MIB + 8192), &[2; 256 << 10], false, CLASS).err()
    });
    assert_eq!(full.unwrap().kind(), ErrorKind::NoSpace);
    storage.set_capacity(None);
    let mut bytes = [0; 4096];
    let image = reopen(&storage).unwrap();
    image.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap();
    assert_eq!(bytes, [1; 4096]);
    image.write_at(ByteOffset::new(40 * MIB), &[3; 4096], true, CLASS).unwrap();
}

#[test]
fn lengths_that_do_not_fit_are_refused_before_anything_is_created() {
    let storage = CrashStorage::new();
    let refused = |len: u64| {
        create_image(&storage, "image.vhd", ImageFormat::Vhd, ByteLen::new(len)).map(drop).unwrap_err().kind()
    };
    assert_eq!(refused((2040 << 30) + 512), ErrorKind::Unsupported);
    assert_eq!(refused(1 << 50), ErrorKind::Unsupported);
    assert_eq!(refused(513), ErrorKind::InvalidInput);
    assert_eq!(refused(0), ErrorKind::InvalidInput);
    assert!(storage.list("").unwrap().is_empty());
    assert_eq!(storage.changes(), 0);
}

#[test]
fn zeroes_and_discards_take_no_room_and_status_says_so() {
    let storage = CrashStorage::new();
    let image = create(&storage, 64 * MIB);
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
    assert_eq!(
        kinds(&*image),
        [(0, 4 * MIB, hole), (4 * MIB, 64 << 10, data), (after, 64 * MIB - after, hole)],
        "data lies on pages of the file, so that nothing beside it counts as data"
    );
    image.discard(extent(4 * MIB, 64 << 10), false, CLASS).unwrap();
    assert_eq!(kinds(&*image), [(0, 64 * MIB, hole)]);
    image.write_zeroes(extent(8 * MIB, 4096), true, false, CLASS).unwrap();
    assert_eq!(kinds(&*image)[1], (8 * MIB, 4096, data), "asked to keep room");
}

fn file(storage: &CrashStorage) -> Arc<dyn StorageFile> {
    storage.open("image.vhd", OpenMode::ReadWrite).unwrap()
}

fn patch(file: &dyn StorageFile, at: u64, bytes: &[u8]) {
    file.write_at(ByteOffset::new(at), bytes).unwrap();
}

/// Puts a right checksum on a footer or header that has been changed.
fn seal(file: &dyn StorageFile, at: u64, len: usize, checksum_at: usize) {
    let mut bytes = vec![0; len];
    file.read_at(ByteOffset::new(at), &mut bytes).unwrap();
    let sum = super::footer::checksum(&bytes, checksum_at).to_be_bytes();
    patch(file, at + checksum_at as u64, &sum);
}

fn opening(storage: &CrashStorage) -> Error {
    let error = reopen(storage).map(drop).unwrap_err();
    assert!(error.to_string().contains("image.vhd"), "names the file: {error}");
    error
}

/// A VHD of 16 MiB with its first two blocks allocated.
fn hostile() -> (CrashStorage, Arc<dyn StorageFile>) {
    let storage = CrashStorage::new();
    let image = create(&storage, 16 * MIB);
    image.write_at(ByteOffset::ZERO, &vec![1; 4 * MIB as usize], true, CLASS).unwrap();
    let file = file(&storage);
    (storage, file)
}

#[test]
fn tables_that_lead_astray_are_refused() {
    let cases: [(&str, u32); 6] = [
        ("past the file", 0x7fff_ffff),
        ("just past the file", (16 * MIB / 512) as u32),
        ("on the footer copy", 0),
        ("on the header", 2),
        ("on the table", 3),
        ("within another block", 100),
    ];
    for (what, entry) in cases {
        let (storage, file) = hostile();
        patch(&*file, 1536 + 4 * 3, &entry.to_be_bytes());
        let error = opening(&storage);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
    let (storage, file) = hostile();
    let mut entry = [0; 4];
    file.read_at(ByteOffset::new(1536), &mut entry).unwrap();
    patch(&*file, 1536 + 4 * 3, &entry);
    assert_eq!(opening(&storage).kind(), ErrorKind::Corrupt, "two entries for one block");
}

#[test]
fn headers_that_make_no_sense_are_refused() {
    let cases: [(&str, u64, &[u8], ErrorKind); 9] = [
        ("table past the file", 512 + 16, &(1_u64 << 40).to_be_bytes(), ErrorKind::Corrupt),
        ("table past everything", 512 + 16, &u64::MAX.to_be_bytes(), ErrorKind::Corrupt),
        ("table on the header", 512 + 16, &512_u64.to_be_bytes(), ErrorKind::Corrupt),
        ("table askew", 512 + 16, &1537_u64.to_be_bytes(), ErrorKind::Corrupt),
        ("too few entries", 512 + 28, &7_u32.to_be_bytes(), ErrorKind::Corrupt),
        ("far too many entries", 512 + 28, &u32::MAX.to_be_bytes(), ErrorKind::Corrupt),
        ("no block size", 512 + 32, &0_u32.to_be_bytes(), ErrorKind::Unsupported),
        ("odd block size", 512 + 32, &(3_u32 << 20).to_be_bytes(), ErrorKind::Unsupported),
        ("tiny blocks", 512 + 32, &512_u32.to_be_bytes(), ErrorKind::Unsupported),
    ];
    for (what, at, bytes, kind) in cases {
        let (storage, file) = hostile();
        patch(&*file, at, bytes);
        assert_eq!(opening(&storage).kind(), ErrorKind::Corrupt, "{what}: checksum");
        seal(&*file, 512, 1024, 36);
        let error = opening(&storage);
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
}

#[test]
fn footers_that_make_no_sense_are_refused() {
    let cases: [(&str, u64, &[u8], ErrorKind); 7] = [
        ("no length", 48, &0_u64.to_be_bytes(), ErrorKind::Corrupt),
        ("odd length", 48, &513_u64.to_be_bytes(), ErrorKind::Corrupt),
        ("endless", 48, &(u64::MAX - 511).to_be_bytes(), ErrorKind::Corrupt),
        ("longer than its table", 48, &(18 * MIB).to_be_bytes(), ErrorKind::Corrupt),
        ("header past the file", 16, &u64::MAX.to_be_bytes(), ErrorKind::Corrupt),
        ("differencing", 60, &4_u32.to_be_bytes(), ErrorKind::Unsupported),
        ("unknown type", 60, &9_u32.to_be_bytes(), ErrorKind::Unsupported),
    ];
    for (what, at, bytes, kind) in cases {
        let (storage, file) = hostile();
        let end = file.len().unwrap().get() - 512;
        for footer in [0, end] {
            patch(&*file, footer + at, bytes);
            seal(&*file, footer, 512, 64);
        }
        let error = opening(&storage);
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
    let (storage, file) = hostile();
    patch(&*file, 48, &(14 * MIB).to_be_bytes());
    seal(&*file, 0, 512, 64);
    assert_eq!(opening(&storage).kind(), ErrorKind::Corrupt, "two footers that disagree");
    file.set_len(ByteLen::new(100)).unwrap();
    assert_eq!(opening(&storage).kind(), ErrorKind::Corrupt, "too short");
}

#[test]
fn either_footer_is_enough_and_the_other_is_put_right() {
    let (storage, file) = hostile();
    let end = file.len().unwrap().get() - 512;
    for lost in [0, end] {
        patch(&*file, lost, &[0; 512]);
        let image = reopen(&storage).unwrap();
        let mut byte = [0; 512];
        image.read_at(ByteOffset::new(4 * MIB - 512), &mut byte, CLASS).unwrap();
        assert_eq!(byte, [1; 512]);
        assert!(matches!(super::open(&*file).unwrap(), super::Opened::Dynamic(parts) if parts.footers_agree));
    }
    storage.fail_read(1);
    let changes = storage.changes();
    assert_eq!(opening(&storage).kind(), ErrorKind::Io, "what cannot be read is not replaced");
    assert_eq!(storage.changes(), changes);
    patch(&*file, 0, &[0; 512]);
    let changes = storage.changes();
    open_image(storage.open("image.vhd", OpenMode::Read).unwrap(), None, false).unwrap();
    assert_eq!(storage.changes(), changes, "opening for reading repairs nothing");
}

/// What other writers leave: a block of which only some sectors are marked present, with other bytes in the rest.
fn partial_block() -> (CrashStorage, Arc<dyn StorageFile>) {
    let (storage, file) = hostile();
    let mut entry = [0; 4];
    file.read_at(ByteOffset::new(1536), &mut entry).unwrap();
    let bitmap = u64::from(u32::from_be_bytes(entry)) * SECTOR_BYTES;
    let mut bytes = [0; 512];
    bytes[0] = 0b1010_0000;
    bytes[511] = 1;
    patch(&*file, bitmap, &bytes);
    file.sync().unwrap();
    (storage, file)
}

fn sectors_present(image: &dyn Volume, first: u64, count: u64) -> Vec<u8> {
    let mut bytes = vec![9; (count * 512) as usize];
    image.read_at(ByteOffset::new(first * 512), &mut bytes, CLASS).unwrap();
    bytes.chunks(512).map(|sector| sector[0]).collect()
}

#[test]
fn clear_bits_read_as_zero_and_stay_so_when_neighbours_are_written() {
    let (storage, _file) = partial_block();
    let image = reopen(&storage).unwrap();
    assert_eq!(sectors_present(&*image, 0, 6), [1, 0, 1, 0, 0, 0]);
    assert_eq!(sectors_present(&*image, 4094, 3), [0, 1, 1]);
    let first = image.status(extent(0, 512 * 3)).unwrap();
    let kinds: Vec<_> = first.iter().map(|run| run.allocation).collect();
    assert_eq!(kinds, [Allocation::Data, Allocation::Hole, Allocation::Data]);
    image.write_at(ByteOffset::new(512 * 3), &[7; 512], false, CLASS).unwrap();
    assert_eq!(sectors_present(&*image, 0, 6), [1, 0, 1, 7, 0, 0]);
    image.flush().unwrap();
    for seed in 0..20 {
        let again = reopen(&storage.crash(seed)).unwrap();
        assert_eq!(sectors_present(&*again, 0, 6), [1, 0, 1, 7, 0, 0], "seed {seed}");
    }
}

#[test]
fn a_crash_while_a_partial_block_is_written_brings_nothing_back() {
    for stop in 0..8 {
        for seed in 0..30 {
            let (storage, _file) = partial_block();
            let image = reopen(&storage).unwrap();
            storage.power_off_after(stop);
            let _ = image.write_at(ByteOffset::new(512 * 3), &[7; 512], false, CLASS);
            let found = sectors_present(&*reopen(&storage.crash(seed)).unwrap(), 0, 6);
            let newest = found[3];
            assert!(newest == 0 || newest == 7, "stop {stop}, seed {seed}");
            assert_eq!(found, [1, 0, 1, newest, 0, 0], "stop {stop}, seed {seed}");
        }
    }
}

#[test]
fn a_fixed_vhd_is_a_raw_disk_with_a_footer() {
    let storage = CrashStorage::new();
    let mut footer = super::Footer::new(ByteLen::new(MIB), super::DiskType::Dynamic).unwrap().encode();
    footer[60..64].copy_from_slice(&2_u32.to_be_bytes());
    footer[16..24].fill(0xff);
    let file = storage.open("image.vhd", OpenMode::CreateNew).unwrap();
    patch(&*file, MIB, &footer);
    seal(&*file, MIB, 512, 64);
    file.read_at(ByteOffset::new(MIB), &mut footer).unwrap();
    let image = open_image(file.clone(), None, true).unwrap();
    assert_eq!(image.len(), ByteLen::new(MIB));
    image.write_at(ByteOffset::new(MIB - 512), &[5; 512], true, CLASS).unwrap();
    assert_eq!(
        image.write_at(ByteOffset::new(MIB), &[5; 512], true, CLASS).unwrap_err().kind(),
        ErrorKind::OutOfRange
    );
    let mut kept = [0; 512];
    file.read_at(ByteOffset::new(MIB), &mut kept).unwrap();
    assert_eq!(kept, footer);
    file.set_len(ByteLen::new(MIB / 2)).unwrap();
    patch(&*file, MIB / 2, &footer);
    assert_eq!(opening(&storage).kind(), ErrorKind::Corrupt, "shorter than it says");
}

#[test]
fn damaged_bytes_never_panic_nor_take_memory_without_bound() {
    let seed_base: u64 =
        std::env::var("UNDERSTUDY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("UNDERSTUDY_SEED={seed_base}");
    let (storage, _file) = hostile();
    let pristine = storage.crash(0);
    let mut opened = 0;
    for seed in seed_base..seed_base + 1000 {
        let mut random = Random::new(seed);
        let storage = pristine.crash(0);
        let file = file(&storage);
        let len = file.len().unwrap().get();
        for _ in 0..1 + random.below(4) {
            let structures = 1536 + 32;
            let at = match random.below(8) {
                0 => len - 512 + random.below(512),
                1 => random.below(len),
                _ => random.below(structures),
            };
            patch(&*file, at, &[random.number() as u8]);
        }
        if random.chance(20) {
            file.set_len(ByteLen::new(random.below(len))).unwrap();
        } else if random.chance(80) {
            // Past the checksums, where the interesting paths are.
            for (at, len, checksum_at) in [(0, 512, 64), (512, 1024, 36), (len - 512, 512, 64)] {
                seal(&*file, at, len, checksum_at);
            }
        }
        let Ok(image) = reopen(&storage) else { continue };
        opened += 1;
        let mut buffer = vec![0; (4 * MIB).min(image.len().get()) as usize];
        let _ = image.read_at(ByteOffset::ZERO, &mut buffer, CLASS);
        let _ = image.status(Extent::whole(image.len()).unwrap());
        let _ = image.write_at(ByteOffset::new(image.len().get() - 512), &[1; 512], true, CLASS);
    }
    assert!((30..970).contains(&opened), "both outcomes are tried: {opened} opened");
}

#[test]
fn a_fixed_vhd_is_made() {
    let storage = CrashStorage::new();
    let new = NewImage { fixed: true, ..NewImage::new(ImageFormat::Vhd, ByteLen::new(3 * MIB + 512)) };
    let image = create_image_with(&storage, "image.vhd", new).unwrap();
    let mut history = History::new(4, vec![extent(0, MIB), extent(3 * MIB, 512)]);
    (0..40).for_each(|_| history.step(&*image).unwrap());
    drop(image);
    let image = reopen(&storage).unwrap();
    assert_eq!(image.len(), ByteLen::new(3 * MIB + 512));
    history.check(&*image).unwrap();
    assert_eq!(file(&storage).len().unwrap(), ByteLen::new(3 * MIB + 1024));
    assert!(check_image(&file(&storage), None, false).unwrap().faults().is_empty());
}

#[test]
fn closing_leaves_no_room_and_check_names_what_a_crash_leaves() {
    let (storage, file) = hostile();
    assert!(check_image(&file, None, false).unwrap().faults().is_empty());
    let end = file.len().unwrap();
    let image = reopen(&storage).unwrap();
    image.write_at(ByteOffset::new(8 * MIB), &[1; 512], true, CLASS).unwrap();
    // As after a power cut: room for one more block was made, and not used.
    let crashed = storage.crash(1);
    drop(image);
    assert!(check_image(&file, None, false).unwrap().faults().is_empty());
    assert!(file.len().unwrap() > end);
    let file = self::file(&crashed);
    let report = check_image(&file, None, false).unwrap();
    assert_eq!((report.damaged(), report.faults().len()), (0, 1), "{:?}", report.faults());
    assert!(report.leaked() >= ByteLen::new(2 * MIB) && report.faults()[0].kind == FaultKind::Leak);
    assert_eq!(check_image(&file, None, true).unwrap().repaired(), 1);
    assert!(check_image(&file, None, false).unwrap().faults().is_empty());
    assert_eq!(sectors_present(&*reopen(&crashed).unwrap(), 16 * 1024, 1), [1]);
}

#[test]
fn check_names_each_fault_of_the_table_and_mends_a_lost_footer() {
    let (_storage, file) = hostile();
    let mut entries = [0; 8];
    file.read_at(ByteOffset::new(1536), &mut entries).unwrap();
    // The second entry leads to the first block, and a third one nowhere: the second block is leaked.
    patch(&*file, 1540, &entries[..4]);
    patch(&*file, 1544, &0x7fff_ffff_u32.to_be_bytes());
    let report = check_image(&file, None, true).unwrap();
    assert_eq!((report.damaged(), report.repaired()), (2, 0), "{:?}", report.faults());
    assert_eq!(report.leaked(), ByteLen::new(2 * MIB + 4096), "{:?}", report.faults());
    for lost in [0, 1] {
        let (storage, file) = hostile();
        let end = file.len().unwrap().get() - 512;
        patch(&*file, [0, end][lost], &[0; 512]);
        let report = check_image(&file, None, false).unwrap();
        assert_eq!((report.faults().len(), report.faults()[0].kind), (1, FaultKind::Pending));
        assert_eq!(check_image(&file, None, true).unwrap().repaired(), 1);
        assert!(check_image(&file, None, false).unwrap().faults().is_empty());
        assert_eq!(sectors_present(&*reopen(&storage).unwrap(), 8191, 2), [1, 0]);
    }
}

/// A parent of 9 MiB and a bit, of which what `history` says is written, and a child of it.
fn family(history: &mut History) -> CrashStorage {
    let storage = CrashStorage::new();
    let parent = create_image(&storage, "parent.vhd", ImageFormat::Vhd, ByteLen::new(9 * MIB + 512)).unwrap();
    (0..30).for_each(|_| history.step(&*parent).unwrap());
    parent.flush().unwrap();
    drop(parent);
    let parent = storage.open("parent.vhd", OpenMode::ReadWrite).unwrap();
    parent.sync().unwrap();
    create_child(&storage, "image.vhd", &*parent).unwrap();
    storage.sync_dir("").unwrap();
    history.flushed();
    storage
}

fn family_windows() -> Vec<Extent> {
    vec![extent(0, 64 << 10), extent(2 * MIB - 4096, 2 * MIB + 8192), extent(9 * MIB - 4096, 4608)]
}

fn open_child(storage: &CrashStorage, writable: bool) -> blocks::Result<Arc<dyn Volume>> {
    let parents = vec![storage.open("parent.vhd", OpenMode::Read)?];
    let file = storage.open("image.vhd", OpenMode::ReadWrite)?;
    open_image_with(file, ImageOptions { writable, parents, ..ImageOptions::default() })
}

/// Every sector is the parent's or one that was written to the child, at every moment of the power cut.
#[test]
fn children_are_written_over_their_parent_and_survive_crashes() {
    for seed in 0..40 {
        let mut history = History::new(seed, family_windows());
        let mut storage = family(&mut history);
        for round in 0..3 {
            let image = open_child(&storage, true).unwrap();
            storage.power_off_after(seed * 7 % 40 + round);
            while history.step(&*image).is_ok() {}
            drop(image);
            storage = storage.crash(seed + round);
            let image = open_child(&storage, true).unwrap();
            history
                .check_crashed(&*image)
                .unwrap_or_else(|error| panic!("seed {seed}, round {round}: {error}"));
            history.adopt(&*image).unwrap();
            image.flush().unwrap();
            assert_eq!(check_image(&file(&storage), None, false).unwrap().damaged(), 0);
        }
    }
}

#[test]
fn a_merged_parent_is_the_disk_that_the_child_was_however_often_it_was_interrupted() {
    let mut history = History::new(9, family_windows());
    let storage = family(&mut history);
    let image = open_child(&storage, true).unwrap();
    (0..40).for_each(|_| history.step(&*image).unwrap());
    history.check(&*image).unwrap();
    assert!(image.status(extent(0, 9 * MIB)).unwrap().len() > 1);
    drop(image);
    let merge = |storage: &CrashStorage, go_on: bool| {
        let parent = storage.open("parent.vhd", OpenMode::ReadWrite).unwrap();
        merge_image(file(storage), parent, &|_, _| go_on)
    };
    assert_eq!(merge(&storage, false).unwrap_err().kind(), ErrorKind::Cancelled);
    storage.power_off_after(7);
    assert!(merge(&storage, true).is_err());
    let storage = storage.crash(3);
    history.check(&*open_child(&storage, false).unwrap()).unwrap();
    merge(&storage, true).unwrap();
    let parent = storage.open("parent.vhd", OpenMode::Read).unwrap();
    history.check(&*open_image(Arc::clone(&parent), None, false).unwrap()).unwrap();
    assert!(check_image(&parent, None, false).unwrap().is_clean());
}

#[test]
fn a_child_knows_its_parent() {
    let mut history = History::new(2, family_windows());
    let storage = family(&mut history);
    assert_eq!(opening(&storage).kind(), ErrorKind::Unsupported, "a parent that was not allowed");
    let other = create_image(&storage, "other.vhd", ImageFormat::Vhd, ByteLen::new(9 * MIB + 512)).unwrap();
    drop(other);
    storage.rename("other.vhd", "parent.vhd").unwrap();
    let error = open_child(&storage, false).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let parent = storage.open("parent.vhd", OpenMode::ReadWrite).unwrap();
    assert_eq!(merge_image(file(&storage), parent, &|_, _| true).unwrap_err().kind(), ErrorKind::Corrupt);
    let raw = create_image(&storage, "raw", ImageFormat::Raw, ByteLen::new(MIB)).unwrap();
    drop(raw);
    let raw = storage.open("raw", OpenMode::Read).unwrap();
    assert_eq!(create_child(&storage, "c", &*raw).unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(!storage.list("").unwrap().contains(&"c".to_owned()));
}
