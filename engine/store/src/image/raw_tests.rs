use super::super::{ImageFormat, create_image, open_image};
use crate::testing::{CrashStorage, History};
use blocks::{Allocation, ByteLen, ByteOffset, ErrorKind, Extent, OpenMode, RequestClass, Storage, Volume};
use std::sync::Arc;

const CLASS: RequestClass = RequestClass::Guest;

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

fn create(storage: &CrashStorage, len: u64) -> Arc<dyn Volume> {
    let image = create_image(storage, "image.raw", ImageFormat::Raw, ByteLen::new(len)).unwrap();
    storage.sync_dir("").unwrap();
    image
}

#[test]
fn random_histories_match_the_model_across_crashes() {
    for seed in 0..60 {
        let len = (8 << 20) + 512 * (seed % 9);
        let mut storage = CrashStorage::new();
        let mut image = create(&storage, len);
        let mut history = History::new(seed, vec![extent(0, 1 << 20), extent(len - 4096, 4096)]);
        for _ in 0..3 {
            storage.power_off_after(seed % 23 + 5);
            while history.step(&*image).is_ok() {}
            history.check_crashed(&*image).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            storage = storage.crash(seed);
            image = open_image(storage.open("image.raw", OpenMode::ReadWrite).unwrap(), None, true).unwrap();
            assert_eq!(image.len(), ByteLen::new(len));
            history.check_crashed(&*image).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            history.adopt(&*image).unwrap();
            image.flush().unwrap();
        }
    }
}

#[test]
fn holes_are_known_and_zeroes_give_room_back() {
    let storage = CrashStorage::new();
    let image = create(&storage, 1 << 40);
    image.write_at(ByteOffset::new(1 << 30), &[1; 8192], false, CLASS).unwrap();
    let runs = image.status(extent(0, 1 << 40)).unwrap();
    let kinds: Vec<_> = runs.iter().map(|run| run.allocation).collect();
    assert_eq!(kinds, [Allocation::Hole, Allocation::Data, Allocation::Hole]);
    assert_eq!(runs[1].extent, extent(1 << 30, 8192));
    image.discard(extent(0, 1 << 40), true, CLASS).unwrap();
    assert_eq!(image.status(extent(0, 1 << 40)).unwrap().len(), 1);
    image.write_zeroes(extent(4096, 4096), true, false, CLASS).unwrap();
    assert_eq!(
        image.status(extent(4096, 4096)).unwrap()[0].allocation,
        Allocation::Data,
        "asked to keep room"
    );
}

#[test]
fn what_is_read_only_stays_as_it_is() {
    let storage = CrashStorage::new();
    create(&storage, 4096);
    let image = open_image(storage.open("image.raw", OpenMode::Read).unwrap(), None, false).unwrap();
    assert!(image.is_read_only());
    let refused = image.write_at(ByteOffset::ZERO, &[1; 512], false, CLASS).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);
    assert_eq!(image.discard(extent(0, 512), false, CLASS).unwrap_err().kind(), ErrorKind::ReadOnly);
    image.flush().unwrap();
}

#[test]
fn a_file_that_is_no_disk_is_refused() {
    let storage = CrashStorage::new();
    let file = storage.open("odd", OpenMode::CreateNew).unwrap();
    file.write_at(ByteOffset::ZERO, &[1; 700]).unwrap();
    let error = open_image(file, Some(ImageFormat::Raw), true).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("odd"), "{error}");
}
