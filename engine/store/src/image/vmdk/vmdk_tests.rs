use super::super::battery::{CLASS, MIB, NAME, Shape, check, create, extent, file, reopen};
use super::super::{
    FaultKind, ImageFormat, ImageKind, ImageOptions, NewImage, check_image_with, create_image_with,
    open_image_with,
};
use crate::export_volume;
use crate::testing::{CrashStorage, History};
use blocks::{
    Allocation, ByteLen, ByteOffset, Error, ErrorKind, Extent, OpenMode, Storage, StorageFile, Volume,
};
use std::sync::Arc;

const FORMAT: ImageFormat = ImageFormat::Vmdk;
const GRAIN: u64 = 64 << 10;
const TABLE: u64 = 32 * MIB;
const SHAPE: Shape = Shape { format: FORMAT, block: GRAIN, table: TABLE };

/// Lengths around the boundaries of grains, tables and the format.
const LENS: [u64; 10] = [
    512,
    GRAIN - 512,
    GRAIN,
    GRAIN + 512,
    TABLE,
    TABLE + 512,
    64 * MIB + 512,
    1_000_000_512,
    127 << 30,
    2047 << 30,
];

#[test]
fn random_histories_match_the_model_and_survive_reopening() {
    SHAPE.survives_reopening(&LENS);
}

#[test]
fn a_crash_at_any_change_keeps_what_was_flushed() {
    SHAPE.survives_crashes(&[5 * MIB + 512, 64 * MIB, 600 * MIB], 60);
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

fn patch(file: &dyn StorageFile, at: u64, bytes: &[u8]) {
    file.write_at(ByteOffset::new(at), bytes).unwrap();
}

fn read(file: &dyn StorageFile, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_at(ByteOffset::new(at), &mut bytes).unwrap();
    bytes
}

fn opening(storage: &CrashStorage) -> Error {
    let error = reopen(storage, FORMAT).map(drop).unwrap_err();
    assert!(error.to_string().contains(NAME), "names the file: {error}");
    error
}

/// A disk of 16 MiB, of which the first 4 are written: one table. Sector 21 the redundant directory, 22 its table, 26 the
/// directory, 27 its table, 128 the first grain.
fn written() -> (CrashStorage, Arc<dyn StorageFile>) {
    let storage = CrashStorage::new();
    let image = create(&storage, FORMAT, 16 * MIB);
    image.write_at(ByteOffset::ZERO, &vec![1; 4 * MIB as usize], true, CLASS).unwrap();
    drop(image);
    let file = file(&storage);
    (storage, file)
}

const REDUNDANT: u64 = 21 * 512;
const REDUNDANT_TABLE: u64 = 22 * 512;
const MAIN: u64 = 26 * 512;
const MAIN_TABLE: u64 = 27 * 512;

#[test]
fn headers_that_make_no_sense_are_refused() {
    let far = (1_u64 << 40).to_le_bytes();
    let cases: [(&str, u64, &[u8], ErrorKind); 19] = [
        ("another version", 4, &[9], ErrorKind::Unsupported),
        ("unknown flags", 9, &[1], ErrorKind::Unsupported),
        ("other line ends", 75, b"\n", ErrorKind::Corrupt),
        ("compressed somehow", 77, &[2], ErrorKind::Unsupported),
        ("compressed without saying so", 77, &[1], ErrorKind::Unsupported),
        ("no capacity", 12, &[0; 8], ErrorKind::Unsupported),
        ("endless", 12, &[0xff; 8], ErrorKind::Corrupt),
        ("gigantic", 12, &far, ErrorKind::Unsupported),
        ("shorter than is said", 12, &30_000_u64.to_le_bytes(), ErrorKind::Corrupt),
        ("no grain", 20, &[0; 8], ErrorKind::Unsupported),
        ("an odd grain", 20, &[129], ErrorKind::Unsupported),
        ("a gigantic grain", 20, &far, ErrorKind::Unsupported),
        ("odd tables", 44, &513_u32.to_le_bytes(), ErrorKind::Unsupported),
        ("no descriptor", 28, &[0; 16], ErrorKind::Unsupported),
        ("a descriptor past the end", 28, &far, ErrorKind::Corrupt),
        ("a gigantic descriptor", 36, &far, ErrorKind::Corrupt),
        ("a directory past the end", 56, &far, ErrorKind::Corrupt),
        ("a directory on the header", 56, &[0; 8], ErrorKind::Corrupt),
        ("more metadata than file", 64, &far, ErrorKind::Corrupt),
    ];
    for (what, at, bytes, kind) in cases {
        let (storage, file) = written();
        patch(&*file, at, bytes);
        let error = opening(&storage);
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
}

/// As a power cut leaves it while the disk grows: the descriptor counts.
#[test]
fn a_header_with_more_grains_than_are_said_is_pending() {
    let (storage, file) = written();
    patch(&*file, 12, &40_000_u64.to_le_bytes());
    assert_eq!(reopen(&storage, FORMAT).unwrap().len(), ByteLen::new(16 * MIB));
    let report = check(&storage, FORMAT, false);
    assert_eq!((report.faults().len(), report.faults()[0].kind), (1, FaultKind::Pending), "{report:?}");
}

#[test]
fn tables_that_lead_astray_are_refused_where_they_are_used() {
    for (what, at, entry) in [
        ("a table past the file", MAIN, 1_u32 << 30),
        ("a table on the descriptor", MAIN, 4),
        ("a table on the other one", MAIN, 23),
    ] {
        let (storage, file) = written();
        patch(&*file, at, &entry.to_le_bytes());
        let error = opening(&storage);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
    for (what, entry) in [
        ("past the file", 1_u32 << 30),
        ("on the header", 0x0000_0001),
        ("on the directory", 26),
        ("on a table", 30),
    ] {
        let (storage, file) = written();
        patch(&*file, MAIN_TABLE, &entry.to_le_bytes());
        let image = reopen(&storage, FORMAT).unwrap();
        let mut bytes = [0; 512];
        let error = image.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        assert!(error.to_string().contains(NAME), "{error}");
        assert!(image.write_at(ByteOffset::ZERO, &[2; 512], false, CLASS).is_err(), "{what}");
        drop(image);
        let report = check(&storage, FORMAT, true);
        assert_eq!(report.damaged(), 1, "{what}: {:?}", report.faults());
    }
}

#[test]
fn check_names_faults_and_mends_what_needs_no_guess() {
    let is_whole = |storage: &CrashStorage| {
        assert!(check(storage, FORMAT, false).faults().is_empty());
        let image = reopen(storage, FORMAT).unwrap();
        let mut bytes = vec![0; 4 * MIB as usize];
        image.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 1));
    };
    let far = (1_u32 << 30).to_le_bytes();
    for (what, at, bytes, kind) in [
        ("a redundant entry", REDUNDANT_TABLE + 8, &[7, 7][..], FaultKind::Pending),
        ("the redundant directory", REDUNDANT, &far, FaultKind::Damage),
        ("the directory", MAIN, &far, FaultKind::Damage),
        ("the mark of an open file", 72, &[1], FaultKind::Pending),
    ] {
        let (storage, file) = written();
        patch(&*file, at, bytes);
        let report = check(&storage, FORMAT, false);
        assert_eq!(report.faults().len(), 1, "{what}: {:?}", report.faults());
        assert_eq!((report.faults()[0].kind, report.repaired()), (kind, 0), "{what}");
        let mended = check(&storage, FORMAT, true);
        assert_eq!((mended.repaired(), mended.damaged()), (1, 0), "{what}: {:?}", mended.faults());
        is_whole(&storage);
    }
    let (storage, file) = written();
    let end = file.len().unwrap();
    file.set_len(end + ByteLen::new(3 * GRAIN)).unwrap();
    let report = check(&storage, FORMAT, false);
    assert_eq!(report.leaked(), ByteLen::new(3 * GRAIN));
    assert_eq!(report.faults()[0].place, Some(extent(end.get(), 3 * GRAIN)));
    assert!(check(&storage, FORMAT, true).is_clean());
    assert_eq!(file.len().unwrap(), end);
    is_whole(&storage);
    // Two entries of one grain: nobody knows whose it is. The other's own is left as room that nothing uses.
    let first = read(&*file, MAIN_TABLE, 4);
    patch(&*file, MAIN_TABLE + 4, &first);
    let report = check(&storage, FORMAT, true);
    assert_eq!((report.damaged(), report.leaked()), (1, ByteLen::new(GRAIN)), "{:?}", report.faults());
}

#[test]
fn a_damaged_redundant_directory_is_read_over_and_not_written_over() {
    let (storage, file) = written();
    patch(&*file, REDUNDANT, &(1_u32 << 30).to_le_bytes());
    assert_eq!(opening(&storage).kind(), ErrorKind::Corrupt);
    let read =
        open_image_with(file, ImageOptions { format: Some(FORMAT), ..ImageOptions::default() }).unwrap();
    let mut bytes = [0; 512];
    read.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap();
    assert_eq!(bytes, [1; 512]);
}

#[test]
fn both_directories_lead_to_the_same_after_any_history() {
    let storage = CrashStorage::new();
    let image = create(&storage, FORMAT, 80 * MIB);
    let mut history =
        History::new(3, vec![extent(0, 2 * MIB), extent(31 * MIB, 3 * MIB), extent(79 * MIB, MIB)]);
    (0..60).for_each(|_| history.step(&*image).unwrap());
    drop(image);
    let file = file(&storage);
    assert!(check(&storage, FORMAT, false).faults().is_empty());
    let (one, other) = (read(&*file, 22 * 512, 3 * 2048), read(&*file, (22 + 12 + 1) * 512, 3 * 2048));
    assert!(one == other && !blocks::is_zero(&one));
}

fn content_id(file: &dyn StorageFile) -> String {
    let text = String::from_utf8(read(file, 512, 300)).unwrap();
    text.lines().find_map(|line| line.strip_prefix("CID=")).unwrap().to_owned()
}

#[test]
fn the_identity_changes_with_the_first_write_after_opening() {
    let (storage, file) = written();
    let first = content_id(&*file);
    let image = reopen(&storage, FORMAT).unwrap();
    let mut bytes = [0; 512];
    image.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap();
    image.flush().unwrap();
    assert_eq!(content_id(&*file), first, "reading changes nothing");
    image.write_at(ByteOffset::ZERO, &[2; 512], false, CLASS).unwrap();
    let second = content_id(&*file);
    assert_ne!(second, first);
    assert_eq!(
        content_id(&*storage.crash(1).open(NAME, OpenMode::Read).unwrap()),
        second,
        "on the medium first"
    );
    image.write_at(ByteOffset::ZERO, &[3; 512], false, CLASS).unwrap();
    assert_eq!(content_id(&*file), second);
    assert_eq!(read(&*file, 72, 1), [1], "marked as open");
    drop(image);
    assert_eq!(read(&*file, 72, 1), [0], "and as closed");
    reopen(&storage, FORMAT).unwrap().discard(extent(0, 512), false, CLASS).unwrap();
    assert_ne!(content_id(&*file), second);
}

#[test]
fn zeroed_grains_read_as_zeroes_and_are_written_over() {
    let (storage, file) = written();
    patch(&*file, 8, &[7]);
    patch(&*file, 4, &[2]);
    patch(&*file, MAIN_TABLE + 4, &1_u32.to_le_bytes());
    let image = reopen(&storage, FORMAT).unwrap();
    let mut bytes = vec![9; 2 * GRAIN as usize];
    image.read_at(ByteOffset::new(GRAIN), &mut bytes, CLASS).unwrap();
    assert!(bytes[..GRAIN as usize].iter().all(|byte| *byte == 0) && bytes[GRAIN as usize..][0] == 1);
    image.write_at(ByteOffset::new(GRAIN + 512), &[5; 512], true, CLASS).unwrap();
    image.read_at(ByteOffset::new(GRAIN), &mut bytes, CLASS).unwrap();
    assert!(bytes[0] == 0 && bytes[512] == 5 && bytes[1024] == 0);
}

/// Tables that are not there are made: other writers leave them out.
#[test]
fn missing_tables_are_made_and_a_crash_loses_nothing_that_was_flushed() {
    for stop in 0..60 {
        let storage = CrashStorage::new();
        drop(create(&storage, FORMAT, 80 * MIB));
        let file = file(&storage);
        for directory in [21, 21 + 1 + 12] {
            patch(&*file, directory * 512, &[0; 12]);
        }
        file.sync().unwrap();
        let image = reopen(&storage, FORMAT).unwrap();
        let mut history = History::new(stop, vec![extent(0, MIB), extent(31 * MIB, 2 * MIB)]);
        storage.power_off_after(stop);
        let died = (0..30).any(|_| history.step(&*image).is_err());
        drop(image);
        for seed in 0..3 {
            let after = storage.crash(stop * 7 + seed);
            let image = reopen(&after, FORMAT).unwrap();
            history
                .check_crashed(&*image)
                .unwrap_or_else(|error| panic!("stop {stop}, seed {seed}: {error}"));
        }
        if !died {
            history.check(&*reopen(&storage, FORMAT).unwrap()).unwrap();
        }
    }
}

#[test]
fn zeroes_and_discards_take_no_room_and_status_says_so() {
    let storage = CrashStorage::new();
    let image = create(&storage, FORMAT, 64 * MIB);
    let kinds = |image: &dyn Volume| -> Vec<(u64, u64, Allocation)> {
        let runs = image.status(extent(0, 64 * MIB)).unwrap();
        runs.iter().map(|run| (run.extent.start().get(), run.extent.len().get(), run.allocation)).collect()
    };
    image.write_zeroes(extent(0, 64 * MIB), false, false, CLASS).unwrap();
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

/// The descriptor of a disk in three extents, flat, zero and flat.
const THREE: &str = "# Disk DescriptorFile\nversion=1\nCID=0badcafe\nparentCID=ffffffff\n\
    createType=\"twoGbMaxExtentFlat\"\nRW 4096 FLAT \"one.vmdk\" 3\nRW 2048 FLAT \"two.vmdk\" 0\n";

fn three(text: &str) -> (CrashStorage, Arc<dyn StorageFile>) {
    let storage = CrashStorage::new();
    for (name, len) in [("one.vmdk", 4099 * 512), ("two.vmdk", MIB)] {
        storage.open(name, OpenMode::CreateNew).unwrap().set_len(ByteLen::new(len)).unwrap();
    }
    let file = storage.open(NAME, OpenMode::CreateNew).unwrap();
    patch(&*file, 0, text.as_bytes());
    for name in storage.list("").unwrap() {
        storage.open(&name, OpenMode::ReadWrite).unwrap().sync().unwrap();
    }
    storage.sync_dir("").unwrap();
    (storage, file)
}

fn in_folder(storage: &CrashStorage, writable: bool) -> blocks::Result<Arc<dyn Volume>> {
    let folder: Option<Arc<dyn Storage>> = Some(Arc::new(storage.clone()));
    let options = ImageOptions { writable, folder, ..ImageOptions::default() };
    open_image_with(storage.open(NAME, OpenMode::ReadWrite)?, options)
}

#[test]
fn several_extents_are_one_disk_and_survive_crashes() {
    for seed in 0..20 {
        let (mut storage, _) = three(THREE);
        let mut history = History::new(seed, vec![extent(0, MIB), extent(2 * MIB - 4096, MIB + 4096)]);
        for round in 0..3 {
            let image = in_folder(&storage, true).unwrap();
            assert_eq!(image.len(), ByteLen::new(3 * MIB));
            history.check_crashed(&*image).unwrap_or_else(|error| panic!("seed {seed}, {round}: {error}"));
            history.adopt(&*image).unwrap();
            image.flush().unwrap();
            storage.power_off_after(seed + 3 * round);
            while history.step(&*image).is_ok() {}
            drop(image);
            storage = storage.crash(seed + round);
        }
    }
}

#[test]
fn names_that_leave_the_folder_are_never_followed() {
    for name in ["/etc/passwd", "../one.vmdk", "sub/one.vmdk", "..\\\\one.vmdk", "..", ".", NAME] {
        let (storage, _) = three(&THREE.replace("one.vmdk", name));
        let error = in_folder(&storage, false).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
        assert!(error.to_string().contains(NAME), "{error}");
    }
    let (storage, file) = three(THREE);
    let error = reopen(&storage, FORMAT).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "without a folder: {error}");
    let parents = ["two.vmdk", "one.vmdk"].map(|name| storage.open(name, OpenMode::Read).unwrap()).to_vec();
    let allowed = ImageOptions { parents, ..ImageOptions::default() };
    assert_eq!(open_image_with(file, allowed).unwrap().len(), ByteLen::new(3 * MIB));
    let (storage, _) = three(&THREE.replace("\"one.vmdk\" 3", "\"gone.vmdk\" 3"));
    assert_eq!(in_folder(&storage, false).map(drop).unwrap_err().kind(), ErrorKind::NotFound);
    let (storage, _) = three(&THREE.replace("\"one.vmdk\" 3", "\"one.vmdk\" 4"));
    assert_eq!(in_folder(&storage, false).map(drop).unwrap_err().kind(), ErrorKind::Corrupt, "too short");
    let (storage, _) = three(&THREE.replace("RW 4096", "RDONLY 4096"));
    assert_eq!(in_folder(&storage, true).map(drop).unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(in_folder(&storage, false).is_ok());
}

#[test]
fn a_flat_image_is_two_files_and_none_after_an_error() {
    let storage = CrashStorage::new();
    let new = NewImage { fixed: true, ..NewImage::new(FORMAT, ByteLen::new(8 * MIB)) };
    let image = create_image_with(&storage, "a.vmdk", new).unwrap();
    image.write_at(ByteOffset::new(MIB), &[4; 512], true, CLASS).unwrap();
    drop(image);
    assert_eq!(storage.list("").unwrap(), ["a-flat.vmdk", "a.vmdk"]);
    let mut options = ImageOptions { folder: Some(Arc::new(storage.clone())), ..ImageOptions::default() };
    let file = storage.open("a.vmdk", OpenMode::Read).unwrap();
    assert!(check_image_with(&file, options.clone()).unwrap().faults().is_empty());
    let mut bytes = [0; 512];
    options.writable = true;
    let image = open_image_with(storage.open("a.vmdk", OpenMode::ReadWrite).unwrap(), options).unwrap();
    image.read_at(ByteOffset::new(MIB), &mut bytes, CLASS).unwrap();
    assert_eq!(bytes, [4; 512]);
    for name in ["a.vmdk", "a\"b.vmdk"] {
        assert!(create_image_with(&storage, name, new).is_err());
        assert_eq!(storage.list("").unwrap(), ["a-flat.vmdk", "a.vmdk"], "{name}");
    }
    storage.set_capacity(Some(ByteLen::ZERO));
    assert_eq!(create_image_with(&storage, "c.vmdk", new).map(drop).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(storage.list("").unwrap(), ["a-flat.vmdk", "a.vmdk"]);
}

/// A stream of a random disk of that length, and the disk.
fn streamed(seed: u64, len: u64, threads: usize) -> (CrashStorage, History) {
    let source = CrashStorage::new();
    let disk = create(&source, ImageFormat::Raw, len);
    let mut history = History::new(seed, super::super::battery::windows(len, GRAIN, TABLE));
    (0..60).for_each(|_| history.step(&*disk).unwrap());
    let storage = CrashStorage::new();
    export_volume(&*disk, &storage, NAME, ImageKind::VmdkStream, threads, &|_, _| true).unwrap();
    (storage, history)
}

#[test]
fn a_stream_holds_the_disk_and_is_not_written_again() {
    for (seed, len) in LENS.into_iter().enumerate().filter(|(_, len)| *len < 2030 << 30) {
        let (storage, history) = streamed(seed as u64, len, 1 + seed % 3);
        let image = open_image_with(file(&storage), ImageOptions::default()).unwrap();
        assert_eq!(image.len(), ByteLen::new(len));
        history.check(&*image).unwrap_or_else(|error| panic!("{len} bytes: {error}"));
        let report = check(&storage, FORMAT, false);
        assert!(report.faults().is_empty(), "{len} bytes: {:?}", report.faults());
        assert_eq!(opening(&storage).kind(), ErrorKind::Unsupported);
        assert!(file(&storage).len().unwrap() < ByteLen::new(16 * MIB), "holes take no room");
    }
    assert_eq!(
        ImageKind::VmdkStream.check_len(ByteLen::new(2031 << 30)).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[test]
fn a_stream_that_was_cut_or_changed_is_refused() {
    let (storage, _) = streamed(5, 64 * MIB, 2);
    let file = file(&storage);
    let len = file.len().unwrap().get();
    for cut in [512, 1024, 1536, 2048, len / 2, len - 70_000] {
        let storage = storage.survive();
        storage.open(NAME, OpenMode::ReadWrite).unwrap().set_len(ByteLen::new(len - cut)).unwrap();
        let open = open_image_with(storage.open(NAME, OpenMode::Read).unwrap(), ImageOptions::default());
        assert_eq!(open.map(drop).unwrap_err().kind(), ErrorKind::Corrupt, "{cut} bytes are missing");
    }
    // The first grain: its sector, its size, its bytes.
    for (at, bytes) in [(GRAIN, &[9][..]), (GRAIN + 8, &[0xff; 4]), (GRAIN + 40, &[0xff; 30])] {
        let storage = storage.survive();
        patch(&*storage.open(NAME, OpenMode::ReadWrite).unwrap(), at, bytes);
        assert!(check(&storage, FORMAT, false).damaged() > 0, "at {at}");
    }
}

#[test]
fn cancelled_or_failed_streams_leave_nothing() {
    let source = CrashStorage::new();
    let disk = create(&source, ImageFormat::Raw, 8 * MIB);
    disk.write_at(ByteOffset::ZERO, &vec![1; 8 * MIB as usize], false, CLASS).unwrap();
    for (stopped, kind) in [(true, ErrorKind::Cancelled), (false, ErrorKind::Io)] {
        let storage = CrashStorage::new();
        if !stopped {
            storage.fail_write(9);
        }
        let done = export_volume(&*disk, &storage, NAME, ImageKind::VmdkStream, 2, &|_, _| !stopped);
        assert_eq!(done.unwrap_err().kind(), kind);
        assert!(storage.list("").unwrap().is_empty());
    }
}

#[test]
fn children_are_read_over_the_parent_that_they_remember() {
    let (storage, parent) = written();
    let id = content_id(&*parent);
    let child = CrashStorage::new();
    drop(create(&child, FORMAT, 16 * MIB));
    let child_file = file(&child);
    let text = String::from_utf8(read(&*child_file, 512, 400)).unwrap();
    let text = text.trim_end_matches('\0').replace("parentCID=ffffffff", &format!("parentCID={id}"));
    let text = text.replace("createType", &format!("parentFileNameHint=\"/far/away/{NAME}\"\ncreateType"));
    patch(&*child_file, 512, text.as_bytes());
    let over = |writable| {
        let parents = vec![Arc::clone(&parent)];
        open_image_with(file(&child), ImageOptions { writable, parents, ..ImageOptions::default() })
    };
    let mut bytes = [0; 512];
    over(false).unwrap().read_at(ByteOffset::new(MIB), &mut bytes, CLASS).unwrap();
    assert_eq!(bytes, [1; 512]);
    assert_eq!(over(false).unwrap().status(extent(0, 4096)).unwrap()[0].allocation, Allocation::Data);
    assert_eq!(over(true).map(drop).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(opening(&child).kind(), ErrorKind::Unsupported, "a parent that was not allowed");
    reopen(&storage, FORMAT).unwrap().write_at(ByteOffset::ZERO, &[7; 512], true, CLASS).unwrap();
    assert_eq!(over(false).map(drop).unwrap_err().kind(), ErrorKind::Corrupt, "the parent was changed");
}

#[test]
fn damaged_bytes_never_panic_nor_take_memory_without_bound() {
    let (pristine, _file) = written();
    let places = [extent(0, 80), extent(512, 400), extent(REDUNDANT, 2 * 512), extent(MAIN, 3 * 512)];
    SHAPE.takes_damaged_bytes(&pristine, 400, &places, |_| {});
}

#[test]
fn damaged_bytes_of_a_stream_never_panic() {
    let (pristine, _) = streamed(6, 40 * MIB, 2);
    let len = file(&pristine).len().unwrap().get();
    let places = [extent(0, 80), extent(GRAIN, 256), extent(len - 4096, 4096)];
    for seed in 0..300 {
        let storage = pristine.survive();
        let file = file(&storage);
        let mut random = crate::testing::Random::new(seed);
        for _ in 0..1 + random.below(3) {
            let place = places[random.below(3) as usize];
            let at = place.start().get() + random.below(place.len().get());
            patch(&*file, at, &[random.number() as u8]);
        }
        let _ = check_image_with(&file, ImageOptions::default());
        let Ok(image) = open_image_with(file, ImageOptions::default()) else { continue };
        let mut at = ByteOffset::ZERO;
        while let Some(piece) =
            Extent::between(at, image.len().end()).and_then(|rest| rest.split(ByteLen::new(MIB)).next())
        {
            let mut bytes = vec![0; piece.len().as_usize()];
            let _ = image.read_at(piece.start(), &mut bytes, CLASS);
            let _ = image.status(piece);
            at = if at.get() > 80 * MIB { image.len().end() } else { piece.end() };
        }
    }
}
