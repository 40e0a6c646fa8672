use super::super::battery::{CLASS, MIB, NAME, Shape, check, create, extent, file, reopen};
use super::super::{
    FaultKind, ImageFormat, ImageOptions, NewImage, create_image_with, open_image, open_image_with,
};
use super::header::{Headers, checksum};
use crate::testing::CrashStorage;
use blocks::{
    Allocation, BlockShift, ByteLen, ByteOffset, Error, ErrorKind, OpenMode, Storage, StorageFile, Volume,
};
use std::sync::Arc;

const FORMAT: ImageFormat = ImageFormat::Vhdx;
const BLOCK: u64 = 8 * MIB;
const SHAPE: Shape = Shape { format: FORMAT, block: BLOCK, table: 64 * MIB };

/// Lengths around the boundaries of blocks, of chunks (4 GiB), of our two block sizes and of the format.
const LENS: [u64; 11] = [
    512,
    BLOCK - 512,
    BLOCK,
    BLOCK + 512,
    64 * MIB + 512,
    1_000_000_512,
    4 << 30,
    (4 << 30) + 512,
    4 << 40,
    (4 << 40) + 512,
    64 << 40,
];

#[test]
fn random_histories_match_the_model_and_survive_reopening() {
    SHAPE.survives_reopening(&LENS);
}

#[test]
fn a_crash_at_any_change_keeps_what_was_flushed() {
    SHAPE.survives_crashes(&[5 * MIB + 512, 64 * MIB, 600 * MIB], 80);
}

#[test]
fn a_crash_at_every_change_of_one_history_keeps_what_was_flushed() {
    SHAPE.survives_a_crash_at_every_change(20 * MIB);
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

#[test]
fn holes_are_known_and_discards_give_room_back() {
    let storage = CrashStorage::new();
    let image = create(&storage, FORMAT, 64 * MIB);
    let kinds = |image: &dyn Volume| -> Vec<(u64, u64, Allocation)> {
        let runs = image.status(extent(0, 64 * MIB)).unwrap();
        runs.iter().map(|run| (run.extent.start().get(), run.extent.len().get(), run.allocation)).collect()
    };
    image.discard(extent(512, 60 * MIB), false, CLASS).unwrap();
    let (hole, data) = (Allocation::Hole, Allocation::Data);
    assert_eq!(kinds(&*image), [(0, 64 * MIB, hole)]);
    image.write_at(ByteOffset::new(9 * MIB), &[1; 64 << 10], false, CLASS).unwrap();
    let after = 9 * MIB + (64 << 10);
    let expected = [(0, 9 * MIB, hole), (9 * MIB, 64 << 10, data), (after, 64 * MIB - after, hole)];
    assert_eq!(kinds(&*image), expected);
    image.write_zeroes(extent(9 * MIB, 64 << 10), false, false, CLASS).unwrap();
    assert_eq!(kinds(&*image), [(0, 64 * MIB, hole)]);
}

#[test]
fn fixed_disks_and_sectors_of_4096_bytes() {
    for (fixed, logical_sector) in
        [(true, BlockShift::SECTOR), (true, BlockShift::KIB_4), (false, BlockShift::KIB_4)]
    {
        let storage = CrashStorage::new();
        let len = ByteLen::new(5 * BLOCK + 4096);
        let new = NewImage { fixed, logical_sector, ..NewImage::new(FORMAT, len) };
        let image = create_image_with(&storage, NAME, new).unwrap();
        assert_eq!((image.len(), image.alignment()), (len, logical_sector));
        image.write_at(ByteOffset::new(5 * BLOCK), &[7; 4096], true, CLASS).unwrap();
        let odd = image.write_at(ByteOffset::new(512), &[7; 512], true, CLASS);
        assert_eq!(odd.is_err(), logical_sector == BlockShift::KIB_4);
        drop(image);
        let report = check(&storage, FORMAT, false);
        assert!(report.faults().is_empty(), "{:?}", report.faults());
        let mut bytes = [0; 4096];
        reopen(&storage, FORMAT).unwrap().read_at(ByteOffset::new(5 * BLOCK), &mut bytes, CLASS).unwrap();
        assert_eq!(bytes, [7; 4096]);
    }
    let storage = CrashStorage::new();
    let new =
        NewImage { logical_sector: BlockShift::KIB_4, ..NewImage::new(FORMAT, ByteLen::new(MIB + 512)) };
    assert_eq!(create_image_with(&storage, NAME, new).map(drop).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(storage.changes(), 0);
}

/// A disk of which one block is written and flushed, and another written with its entry in the log only.
fn with_a_log() -> CrashStorage {
    let storage = CrashStorage::new();
    let image = create(&storage, FORMAT, 64 * MIB);
    image.write_at(ByteOffset::ZERO, &[1; 4096], true, CLASS).unwrap();
    image.flush().unwrap();
    // Header, the block's room and data, the log entry, and the header again; the entry itself never comes.
    let before = storage.changes();
    image.write_at(ByteOffset::new(20 * MIB), &[2; 4096], false, CLASS).unwrap();
    let after = storage.changes();
    drop(image);
    let again = CrashStorage::new();
    let image = create(&again, FORMAT, 64 * MIB);
    image.write_at(ByteOffset::ZERO, &[1; 4096], true, CLASS).unwrap();
    image.flush().unwrap();
    again.power_off_after(after - before - 1);
    assert!(image.write_at(ByteOffset::new(20 * MIB), &[2; 4096], false, CLASS).is_err());
    drop(image);
    // A seed with which all that was written is there.
    let crashed = (0..50).map(|seed| again.crash(seed));
    crashed
        .into_iter()
        .find(|storage| Headers::read(&*file(storage)).unwrap().current.has_log())
        .expect("the header is on the medium")
}

#[test]
fn a_log_is_replayed_in_memory_or_in_the_file() {
    let storage = with_a_log();
    let changes = storage.changes();
    let read = open_image(storage.open(NAME, OpenMode::Read).unwrap(), None, false).unwrap();
    let bytes_at = |image: &dyn Volume, at: u64| {
        let mut bytes = [0; 4096];
        image.read_at(ByteOffset::new(at), &mut bytes, CLASS).unwrap();
        bytes
    };
    assert_eq!(bytes_at(&*read, 20 * MIB), [2; 4096]);
    assert_eq!(bytes_at(&*read, 0), [1; 4096]);
    assert_eq!(storage.changes(), changes, "opening for reading changes nothing");
    let report = check(&storage, FORMAT, false);
    assert!(report.faults().iter().any(|fault| fault.kind == FaultKind::Pending), "{:?}", report.faults());
    assert_eq!(report.damaged(), 0);
    for stop in 0..8 {
        let storage = storage.crash(0);
        storage.power_off_after(stop);
        let opened = reopen(&storage, FORMAT).is_ok();
        for seed in 0..5 {
            let after = storage.crash(seed);
            let image = reopen(&after, FORMAT).unwrap();
            assert_eq!(bytes_at(&*image, 20 * MIB), [2; 4096], "stop {stop}, seed {seed}");
            assert!(!Headers::read(&*file(&after)).unwrap().current.has_log());
        }
        assert!(opened || stop < 7, "replaying takes fewer changes");
    }
    let repaired = check(&storage, FORMAT, true);
    assert!(repaired.repaired() > 0 && repaired.is_clean(), "{:?}", repaired.faults());
    assert!(check(&storage, FORMAT, false).faults().is_empty());
}

#[test]
fn a_log_that_is_cut_or_empty_is_refused() {
    let storage = with_a_log();
    let handle = file(&storage);
    let headers = Headers::read(&*handle).unwrap();
    handle.set_len(ByteLen::new(5 * MIB)).unwrap();
    let error = opening(&storage);
    assert!(error.to_string().contains("cut"), "{error}");
    let storage = with_a_log();
    let handle = file(&storage);
    handle.punch_hole(headers.current.log).unwrap();
    assert_eq!(opening(&storage).kind(), ErrorKind::Corrupt);
}

fn patch(file: &dyn StorageFile, at: u64, bytes: &[u8]) {
    file.write_at(ByteOffset::new(at), bytes).unwrap();
}

/// Puts right checksums on both headers and region tables.
fn seal(file: &dyn StorageFile) {
    for (at, len) in [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10)] {
        let mut bytes = vec![0; len];
        if file.read_at(ByteOffset::new(at), &mut bytes).is_ok() {
            patch(file, at + 4, &checksum(&bytes, 4).to_le_bytes());
        }
    }
}

fn opening(storage: &CrashStorage) -> Error {
    let error = reopen(storage, FORMAT).map(drop).unwrap_err();
    assert!(error.to_string().contains(NAME), "names the file: {error}");
    error
}

fn written() -> (CrashStorage, Arc<dyn StorageFile>) {
    let storage = CrashStorage::new();
    let image = create(&storage, FORMAT, 64 * MIB);
    image.write_at(ByteOffset::ZERO, &vec![1; 17 * MIB as usize], true, CLASS).unwrap();
    image.flush().unwrap();
    drop(image);
    let file = file(&storage);
    (storage, file)
}

#[test]
fn structures_that_make_no_sense_are_refused() {
    let region = 192_u64 << 10;
    let item = 2 * MIB + (64 << 10);
    let cases: [(&str, u64, &[u8], ErrorKind); 18] = [
        ("another version", (64 << 10) + 66, &2_u16.to_le_bytes(), ErrorKind::Unsupported),
        ("a log askew", (64 << 10) + 72, &4096_u64.to_le_bytes(), ErrorKind::Corrupt),
        ("a log on the table", (64 << 10) + 72, &(3 * MIB).to_le_bytes(), ErrorKind::Corrupt),
        ("a log past the file", (64 << 10) + 72, &(1_u64 << 40).to_le_bytes(), ErrorKind::Corrupt),
        ("a gigantic log", (64 << 10) + 68, &0xfff0_0000_u32.to_le_bytes(), ErrorKind::Corrupt),
        ("too many regions", region + 8, &u32::MAX.to_le_bytes(), ErrorKind::Corrupt),
        ("an unknown region", region + 16, &[9; 16], ErrorKind::Unsupported),
        ("a region past the file", region + 32, &(1_u64 << 40).to_le_bytes(), ErrorKind::Corrupt),
        ("a region askew", region + 32, &(3 * MIB + 512).to_le_bytes(), ErrorKind::Corrupt),
        ("regions that overlap", region + 32, &(2 * MIB).to_le_bytes(), ErrorKind::Corrupt),
        ("too many items", 2 * MIB + 10, &u16::MAX.to_le_bytes(), ErrorKind::Corrupt),
        ("an unknown item", 2 * MIB + 32, &[9; 16], ErrorKind::Unsupported),
        ("an item past its region", 2 * MIB + 48, &u32::MAX.to_le_bytes(), ErrorKind::Corrupt),
        ("items on each other", 2 * MIB + 80, &(64_u32 << 10).to_le_bytes(), ErrorKind::Corrupt),
        ("odd blocks", item, &(3_u32 << 20).to_le_bytes(), ErrorKind::Corrupt),
        ("tiny blocks", item, &4096_u32.to_le_bytes(), ErrorKind::Corrupt),
        ("an endless disk", item + 8, &u64::MAX.to_le_bytes(), ErrorKind::Corrupt),
        ("odd sectors", item + 32, &1024_u32.to_le_bytes(), ErrorKind::Corrupt),
    ];
    for (what, at, bytes, kind) in cases {
        let (storage, file) = written();
        for twin in [0, 64 << 10] {
            patch(&*file, at + if at < MIB { twin } else { 0 }, bytes);
        }
        seal(&*file);
        let error = opening(&storage);
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
}

#[test]
fn entries_that_lead_astray_are_refused() {
    for (what, entry) in [
        ("past the file", (1_u64 << 40) | 6),
        ("on the headers", 6),
        ("on the log", MIB | 6),
        ("on the table", (3 * MIB) | 6),
        ("on another block", (12 * MIB) | 6),
        ("partly present without a parent", (4 * MIB) | 7),
        ("an unknown state", 4),
        ("reserved bits", (28 * MIB) | 8 | 6),
    ] {
        let (storage, file) = written();
        patch(&*file, 3 * MIB, &entry.to_le_bytes());
        let error = opening(&storage);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
}

#[test]
fn either_header_and_either_region_table_is_enough() {
    let (storage, file) = written();
    for lost in [64 << 10, 128 << 10, 192 << 10, 256 << 10] {
        patch(&*file, lost, &[0; 4096]);
        drop(open_image(file.clone(), None, false).unwrap());
        let report = check(&storage, FORMAT, true);
        assert_eq!((report.repaired(), report.damaged()), (1, 0), "{lost}: {:?}", report.faults());
        assert!(check(&storage, FORMAT, false).faults().is_empty());
    }
    let mut bytes = vec![0; 17 * MIB as usize];
    reopen(&storage, FORMAT).unwrap().read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 1));
}

#[test]
fn room_that_nothing_uses_is_named_and_given_back() {
    let (storage, file) = written();
    let end = file.len().unwrap();
    file.set_len(end + ByteLen::new(5 * MIB)).unwrap();
    let report = check(&storage, FORMAT, false);
    assert_eq!(report.leaked(), ByteLen::new(5 * MIB));
    assert_eq!(report.faults()[0].place, Some(extent(end.get(), 5 * MIB)));
    assert!(check(&storage, FORMAT, true).is_clean());
    assert_eq!(file.len().unwrap(), end);
}

/// Nobody here makes differencing disks, so a dynamic one is made into one by hand: block 0 is partly present, block 1
/// the parent's, block 2 zero.
fn make_child(storage: &CrashStorage, linkage: &str) -> Arc<dyn StorageFile> {
    let parent =
        create_image_with(storage, "parent.vhdx", NewImage::new(FORMAT, ByteLen::new(64 * MIB))).unwrap();
    parent.write_at(ByteOffset::ZERO, &vec![9; 40 * MIB as usize], true, CLASS).unwrap();
    drop(parent);
    let id =
        Headers::read(&*storage.open("parent.vhdx", OpenMode::Read).unwrap()).unwrap().current.data_write;
    let linkage = linkage.replace("ID", &uuid::Uuid::from_bytes_le(id).braced().to_string());
    let image = create(storage, FORMAT, 64 * MIB);
    image.write_at(ByteOffset::ZERO, &[1; 2048], true, CLASS).unwrap();
    image.flush().unwrap();
    drop(image);
    let file = file(storage);
    let end = file.len().unwrap().get();
    file.set_len(ByteLen::new(end + MIB)).unwrap();
    // Sectors 0 and 2 are ours.
    patch(&*file, end, &[0b101]);
    patch(&*file, 3 * MIB, &((4 * MIB) | 7).to_le_bytes());
    patch(&*file, 3 * MIB + 16, &2_u64.to_le_bytes());
    // 512 entries of blocks of 8 MiB to a chunk; then its bitmap.
    patch(&*file, 3 * MIB + 512 * 8, &(end | 6).to_le_bytes());
    patch(&*file, 2 * MIB + (64 << 10) + 4, &2_u32.to_le_bytes());
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let texts = [("parent_linkage", linkage.as_str()), ("relative_path", "..\\elsewhere\\parent.vhdx")];
    let mut locator = vec![0; 20 + 2 * 12];
    locator[..16].copy_from_slice(&uuid::uuid!("b04aefb7-d19e-4a81-b789-25b8e9445913").to_bytes_le());
    locator[18] = 2;
    for (index, (key, value)) in texts.into_iter().enumerate() {
        for (field, text) in [(0, key), (1, value)] {
            let (at, text) = (locator.len() as u32, utf16(text));
            let entry = 20 + index * 12;
            locator[entry + field * 4..entry + field * 4 + 4].copy_from_slice(&at.to_le_bytes());
            let len = (text.len() as u16).to_le_bytes();
            locator[entry + 8 + field * 2..entry + 10 + field * 2].copy_from_slice(&len);
            locator.extend(text);
        }
    }
    let at = 2 * MIB + (128 << 10);
    patch(&*file, at, &locator);
    let entry = 2 * MIB + 32 + 5 * 32;
    patch(&*file, entry, &uuid::uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").to_bytes_le());
    patch(&*file, entry + 16, &(128_u32 << 10).to_le_bytes());
    patch(&*file, entry + 20, &(locator.len() as u32).to_le_bytes());
    patch(&*file, entry + 24, &4_u32.to_le_bytes());
    patch(&*file, 2 * MIB + 10, &6_u16.to_le_bytes());
    file
}

#[test]
fn a_differencing_disk_is_read_over_the_parent_that_it_was_made_for() {
    let storage = CrashStorage::new();
    let child = make_child(&storage, "ID");
    let refused = open_image(child.clone(), None, false).map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let parents = || vec![storage.open("parent.vhdx", OpenMode::Read).unwrap()];
    let options = ImageOptions { parents: parents(), ..ImageOptions::default() };
    let image = open_image_with(child.clone(), options.clone()).unwrap();
    let sector = |at: u64| {
        let mut bytes = [0; 512];
        image.read_at(ByteOffset::new(at), &mut bytes, CLASS).unwrap();
        bytes[0]
    };
    assert_eq!([0, 512, 1024, 1536].map(sector), [1, 9, 1, 9]);
    assert_eq!([BLOCK, 2 * BLOCK, 3 * BLOCK, 50 * MIB].map(sector), [9, 0, 9, 0]);
    let whole = image.status(extent(0, 64 * MIB)).unwrap();
    assert_eq!(whole.iter().map(|run| run.extent.len()).sum::<ByteLen>(), ByteLen::new(64 * MIB));
    let writable = ImageOptions { writable: true, ..options };
    assert_eq!(open_image_with(child, writable).map(drop).unwrap_err().kind(), ErrorKind::Unsupported);
    // A parent that was written since is another one.
    let parent = storage.open("parent.vhdx", OpenMode::ReadWrite).unwrap();
    open_image(parent, None, true).unwrap().write_at(ByteOffset::ZERO, &[1; 512], true, CLASS).unwrap();
    let options = ImageOptions { parents: parents(), ..ImageOptions::default() };
    assert_eq!(open_image_with(file(&storage), options).map(drop).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn damaged_bytes_never_panic_nor_take_memory_without_bound() {
    let (pristine, _file) = written();
    let item = 2 * MIB + (64 << 10);
    let places = [
        extent(64 << 10, 80),
        extent(128 << 10, 80),
        extent(192 << 10, 80),
        extent(2 * MIB, 32 + 5 * 32),
        extent(item, 40),
        extent(3 * MIB, 64),
    ];
    SHAPE.takes_damaged_bytes(&pristine, 250, &places, seal);
    let places = [extent(64 << 10, 80), extent(128 << 10, 80), extent(MIB, 8192 + 64), extent(3 * MIB, 64)];
    SHAPE.takes_damaged_bytes(&with_a_log(), 250, &places, |file| {
        seal(file);
        let mut entry = [0; 8192];
        if file.read_at(ByteOffset::new(MIB), &mut entry).is_ok() {
            patch(file, MIB + 4, &checksum(&entry, 4).to_le_bytes());
        }
    });
}
