use super::super::{ImageFormat, create_image, open_image};
use super::*;
use crate::testing::{CrashStorage, History, Random};
use blocks::{ByteWriter, ErrorKind, MemoryVolume, OpenMode, Storage};

const CLASS: RequestClass = RequestClass::Guest;
const LEN: u64 = (5 << 20) + 512;

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

fn create(storage: &CrashStorage, len: u64) -> Arc<SummedImage> {
    let image = create_image(storage, "image", ImageFormat::Raw, ByteLen::new(len)).unwrap();
    let sums = with_sums(image, storage.open("sums", OpenMode::CreateNew).unwrap()).unwrap();
    storage.sync_dir("").unwrap();
    sums
}

fn reopen(storage: &CrashStorage) -> Result<Arc<SummedImage>> {
    let image = open_image(storage.open("image", OpenMode::ReadWrite)?, Some(ImageFormat::Raw), true)?;
    with_sums(image, storage.open("sums", OpenMode::ReadWrite)?)
}

#[test]
fn random_histories_match_the_model_and_verify_after_reopening() {
    for seed in 0..30 {
        let storage = CrashStorage::new();
        let mut image = create(&storage, LEN);
        let mut history = History::new(seed, vec![extent(0, LEN)]);
        for _ in 0..3 {
            for _ in 0..30 {
                history.step(&*image).unwrap();
            }
            history.check(&*image).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            image = reopen(&storage).unwrap();
        }
        history.check(&*image).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn any_flipped_bit_is_found_and_named() {
    let storage = CrashStorage::new();
    let image = create(&storage, LEN);
    image.write_at(ByteOffset::new(1 << 20), &[7; 200 << 10], true, CLASS).unwrap();
    let mut random = Random::new(1);
    for _ in 0..200 {
        // Rot of data, and rot of what was never written and should be zero.
        let at = ByteOffset::new(random.below(LEN));
        let bit = random.below(8) as u8;
        storage.flip_bit("image", at, bit).unwrap();
        let sector = ByteOffset::new(at.get() / 512 * 512);
        let error = image.read_at(sector, &mut [0; 512], CLASS).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let block = extent(at.get() >> 12 << 12, 1);
        let shown = error.to_string();
        assert!(shown.contains("sums") && shown.contains(&format!("bytes {}..", block.start())), "{shown}");
        if sector.get() < LEN - 512 {
            let partial = image.write_at(sector, &[1; 512], false, CLASS).unwrap_err();
            assert_eq!(partial.kind(), ErrorKind::Corrupt, "damage is not summed over");
        }
        storage.flip_bit("image", at, bit).unwrap();
        image.read_at(sector, &mut [0; 512], CLASS).unwrap();
    }
    storage.flip_bit("sums", ByteOffset::new(4096 + 256 * 4), 3).unwrap();
    let fresh = reopen(&storage).unwrap();
    assert_eq!(
        fresh.read_at(ByteOffset::new(1 << 20), &mut [0; 512], CLASS).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    fresh.read_at(ByteOffset::new((1 << 20) + 4096), &mut [0; 512], CLASS).unwrap();
}

#[test]
fn a_sidecar_of_another_disk_or_none_is_refused() {
    let storage = CrashStorage::new();
    create(&storage, LEN);
    let other = || Arc::new(MemoryVolume::new(ByteLen::new(LEN - 512)));
    let sums = || storage.open("sums", OpenMode::ReadWrite).unwrap();
    let refused = |error: Error| {
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("sums"), "{error}");
    };
    refused(with_sums(other(), sums()).unwrap_err());
    for at in 0..28 {
        storage.flip_bit("sums", ByteOffset::new(at), 2).unwrap();
        refused(reopen(&storage).unwrap_err());
        storage.flip_bit("sums", ByteOffset::new(at), 2).unwrap();
    }
    sums().set_len(ByteLen::new(4096)).unwrap();
    refused(reopen(&storage).unwrap_err());
}

#[test]
fn a_block_of_a_replay_is_excused_until_it_is_written() {
    let storage = CrashStorage::new();
    let image = create(&storage, LEN);
    image.write_at(ByteOffset::ZERO, &[1; 128 << 10], true, CLASS).unwrap();
    // A crash between the data and its checksum.
    storage.open("image", OpenMode::ReadWrite).unwrap().write_at(ByteOffset::ZERO, &[2; 512]).unwrap();
    let image = reopen(&storage).unwrap();
    assert_eq!(image.read_at(ByteOffset::ZERO, &mut [0; 512], CLASS).unwrap_err().kind(), ErrorKind::Corrupt);
    image.redo(&[extent(100, 412)].into_iter().collect());
    assert_eq!(image.unverified(), image.block().len());
    let mut bytes = [0; 1024];
    image.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap();
    assert_eq!((bytes[0], bytes[1023]), (2, 1));
    image.write_at(ByteOffset::ZERO, &[3; 512], true, CLASS).unwrap();
    assert!(image.unverified().is_zero());
    let again = reopen(&storage).unwrap();
    again.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap();
    assert_eq!((bytes[0], bytes[1023]), (3, 1));
}

#[test]
fn a_failed_write_poisons_and_is_not_hidden() {
    let storage = CrashStorage::new();
    let image = create(&storage, LEN);
    storage.fail_write(2);
    assert_eq!(
        image.write_at(ByteOffset::ZERO, &[1; 65536], false, CLASS).unwrap_err().kind(),
        ErrorKind::Io
    );
    assert_eq!(
        image.write_at(ByteOffset::ZERO, &[1; 65536], false, CLASS).unwrap_err().kind(),
        ErrorKind::Poisoned
    );
    assert_eq!(image.flush().unwrap_err().kind(), ErrorKind::Poisoned);
    let again = reopen(&storage).unwrap();
    assert_eq!(again.read_at(ByteOffset::ZERO, &mut [0; 512], CLASS).unwrap_err().kind(), ErrorKind::Corrupt);
    storage.fail_sync(2);
    assert_eq!(again.flush().unwrap_err().kind(), ErrorKind::Io, "the checksums are synced too");
    assert_eq!(again.flush().unwrap_err().kind(), ErrorKind::Poisoned);
}

#[test]
fn readers_never_see_a_torn_block() {
    let storage = CrashStorage::new();
    let image = create(&storage, 1 << 20);
    std::thread::scope(|scope| {
        for writer in 0..2_u8 {
            let image = &image;
            scope.spawn(move || {
                for round in 0..400_u64 {
                    let mut bytes = vec![writer * 100 + (round % 100) as u8 + 1; 40 << 10];
                    bytes[0] = bytes[1];
                    image.write_at(ByteOffset::new((20 << 10) * (round % 4)), &bytes, false, CLASS).unwrap();
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let mut bytes = vec![0; 100 << 10];
                for _ in 0..400 {
                    image.read_at(ByteOffset::ZERO, &mut bytes, CLASS).expect("every block verifies");
                }
            });
        }
    });
}

#[test]
fn zeroing_a_large_disk_touches_neither_its_data_nor_much_of_the_table() {
    let storage = CrashStorage::new();
    let image = create(&storage, 4 << 40);
    image.write_at(ByteOffset::new(3 << 40), &[1; 512], false, CLASS).unwrap();
    let changes = storage.changes();
    image.discard(extent(512, (4 << 40) - 1024), false, CLASS).unwrap();
    assert!(storage.changes() - changes < 3 * 4096 + 10, "a few changes for each GiB");
    let mut bytes = [9; 512];
    image.read_at(ByteOffset::new(3 << 40), &mut bytes, CLASS).unwrap();
    assert_eq!(bytes, [0; 512]);
}

#[test]
fn a_sidecar_with_larger_blocks_is_used_as_it_is() {
    let storage = CrashStorage::new();
    create(&storage, LEN);
    let mut header = ByteWriter::new();
    header.bytes(b"USTYSUMS").u32(1).u32(16).u64(LEN).checksum();
    let sums = storage.open("sums", OpenMode::ReadWrite).unwrap();
    sums.write_at(ByteOffset::ZERO, &header.into_bytes()).unwrap();
    sums.set_len(ByteLen::new(4096 + 4 * LEN.div_ceil(64 << 10))).unwrap();
    let image = reopen(&storage).unwrap();
    assert_eq!(image.block(), BlockShift::KIB_64);
    image.write_at(ByteOffset::new(1 << 20), &[7; 512], true, CLASS).unwrap();
    storage.flip_bit("image", ByteOffset::new((1 << 20) + (60 << 10)), 0).unwrap();
    let read = reopen(&storage).unwrap().read_at(ByteOffset::new(1 << 20), &mut [0; 512], CLASS);
    assert_eq!(read.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_checksum_of_nothing_is_never_that_of_data() {
    assert_eq!(Sum::of(&[0; 512]), Sum::ZERO);
    let mut random = Random::new(3);
    let mut bytes = [0; 512];
    for _ in 0..1000 {
        random.fill(&mut bytes);
        assert_ne!(Sum::of(&bytes), Sum::ZERO);
    }
}
