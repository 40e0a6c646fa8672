use super::super::battery::{MIB, extent};
use super::super::{create_image, with_sums};
use super::*;
use crate::storage::HostStorage;
use crate::testing::{CrashStorage, History};
use blocks::{OpenMode, Storage};
use std::os::unix::fs::FileExt;

/// Neither the old end nor the new one is a block's.
const LEN: ByteLen = ByteLen::new((6 << 20) + 512);
const GROWN: ByteLen = ByteLen::new((44 << 20) + 1536);

fn made(format: ImageFormat) -> (CrashStorage, History) {
    let storage = CrashStorage::new();
    let image = create_image(&storage, "image", format, LEN).unwrap();
    with_sums(image, storage.open("sums", OpenMode::CreateNew).unwrap()).unwrap();
    storage.sync_dir("").unwrap();
    let image = open(&storage, format, LEN, LEN).unwrap();
    let mut history = History::new(5, vec![extent(0, MIB), extent(LEN.get() - 2048, 2048)]);
    (0..40).for_each(|_| history.step(&*image).unwrap());
    image.flush().unwrap();
    history.flushed();
    drop(image);
    (storage, history)
}

fn open(
    storage: &CrashStorage,
    format: ImageFormat,
    len: ByteLen,
    becoming: ByteLen,
) -> Result<Arc<SummedImage>> {
    let (image, sums) =
        (storage.open("image", OpenMode::ReadWrite)?, storage.open("sums", OpenMode::ReadWrite)?);
    open_summed((image, format), sums, (len, becoming), true)
}

/// Everything is there, and nothing is excused from its checksum.
fn is_grown(image: &SummedImage, history: &History, context: &str) {
    assert_eq!(image.len(), GROWN, "{context}");
    assert!(image.unverified().is_zero(), "{context}");
    history.check(image).unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut fresh = vec![1; (GROWN - LEN).as_usize()];
    image.read_at(LEN.end(), &mut fresh, RequestClass::Guest).unwrap();
    assert!(blocks::is_zero(&fresh), "{context}");
}

/// The power is cut at every change of both files.
#[test]
fn a_power_cut_leaves_a_disk_of_one_length_whole_and_repeating_ends_it() {
    for format in ImageFormat::ALL {
        for stop in 0.. {
            let (storage, history) = made(format);
            let image = open(&storage, format, LEN, LEN).unwrap();
            storage.power_off_after(stop);
            let done = image.grow(GROWN);
            drop(image);
            for seed in 0..4 {
                let context = format!("{format}, stop {stop}, seed {seed}");
                let after = storage.crash(stop * 5 + seed);
                let image = open(&after, format, LEN, GROWN).unwrap();
                assert!(image.len() == LEN || image.len() == GROWN, "{context}");
                history.check(&*image).unwrap_or_else(|error| panic!("{context}: {error}"));
                image.grow(GROWN).unwrap_or_else(|error| panic!("{context}: {error}"));
                is_grown(&image, &history, &context);
                drop(image);
                is_grown(&open(&after, format, GROWN, GROWN).unwrap(), &history, &context);
                assert!(open(&after, format, LEN, LEN).is_err(), "{context}: it is longer than it should be");
            }
            if done.is_ok() {
                break;
            }
        }
    }
}

/// Somebody reads all the time: every read finds what was there, or zeroes behind it.
#[test]
fn who_reads_meanwhile_is_not_disturbed() {
    for format in ImageFormat::ALL {
        let (storage, history) = made(format);
        let image = open(&storage, format, LEN, LEN).unwrap();
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                for _ in 0..50 {
                    history.check(&*image).unwrap();
                }
            });
            let mut len = LEN;
            while len < GROWN {
                len = (len + ByteLen::new(MIB + 512)).min(GROWN);
                image.grow(len).unwrap();
            }
            reading.join().unwrap();
        });
        is_grown(&image, &history, &format.to_string());
    }
}

#[test]
fn a_full_medium_leaves_it_as_it_was() {
    let (storage, history) = made(ImageFormat::Vmdk);
    let image = open(&storage, ImageFormat::Vmdk, LEN, LEN).unwrap();
    storage.set_capacity(Some(ByteLen::ZERO));
    assert_eq!(image.grow(ByteLen::new(40 << 30)).unwrap_err().kind(), ErrorKind::NoSpace);
    storage.set_capacity(None);
    assert_eq!(image.len(), LEN);
    history.check(&*image).unwrap();
    image.grow(GROWN).unwrap();
    is_grown(&image, &history, "with room");
}

/// Each format names its bound, and what the tables of one image can hold.
#[test]
fn what_does_not_fit_is_refused_beforehand() {
    for (format, gib) in [
        (ImageFormat::Vhd, 2040),
        (ImageFormat::Vmdk, 2047),
        (ImageFormat::Vhdx, 1022),
        (ImageFormat::Qcow2, 4096),
    ] {
        let (storage, _) = made(format);
        let image = open(&storage, format, LEN, LEN).unwrap();
        image.check_growth(ByteLen::new(gib << 30)).unwrap();
        let error = image.check_growth(ByteLen::new((gib + 1) << 30)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(&format!("({gib} GiB)")), "{error}");
        assert_eq!(image.len(), LEN);
    }
}

/// What a reader was told of is handed on later, perhaps when the disk is longer already.
#[test]
fn bytes_that_were_located_stay_where_they_are_when_the_disk_becomes_longer() {
    const LEN: ByteLen = ByteLen::new(96 << 20);
    const GROWN: ByteLen = ByteLen::new(500 << 30);
    let piece = 64 << 10;
    for format in ImageFormat::ALL {
        let folder = tempfile::tempdir().unwrap();
        let storage = HostStorage::new(folder.path()).unwrap();
        let image = create_image(&storage, "image", format, LEN).unwrap();
        with_sums(image, storage.open("sums", OpenMode::CreateNew).unwrap()).unwrap();
        let (file, sums) =
            (storage.open("image", OpenMode::ReadWrite), storage.open("sums", OpenMode::ReadWrite));
        let image = open_summed((file.unwrap(), format), sums.unwrap(), (LEN, LEN), true).unwrap();
        for at in (0..LEN.get()).step_by(MIB as usize) {
            let data = vec![(at / MIB) as u8 + 1; MIB as usize];
            image.write_at(ByteOffset::new(at), &data, false, RequestClass::Guest).unwrap();
        }
        let mut located = Vec::new();
        for at in (0..LEN.get()).step_by(piece) {
            let mut read = vec![0; piece];
            let found = image.read_located(ByteOffset::new(at), &mut read, RequestClass::Guest).unwrap();
            assert!(read.iter().all(|byte| *byte == (at / MIB) as u8 + 1), "{format} at {at}");
            located.extend(found.map(|found| (found, read)));
        }
        let share = located.len() * piece * 100 / LEN.as_usize();
        match format {
            ImageFormat::Qcow2 | ImageFormat::Vmdk => assert_eq!(share, 0, "they may move what is anywhere"),
            ImageFormat::Vhd => {
                assert!((60..70).contains(&share), "{share} of 100: but for the first 32 MiB")
            }
            _ => assert!(share > 90, "{format}: {share} of 100"),
        }
        image.grow(GROWN).unwrap();
        for (found, read) in located {
            let mut bytes = vec![0; piece];
            found.file.read_exact_at(&mut bytes, found.offset.get()).unwrap();
            assert!(bytes == read, "{format}: {:?} was moved", found.offset);
        }
    }
}

/// It is held against its checksum whether it is handed on from the file or not.
#[test]
fn damage_is_found_before_anything_is_said_of_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let storage = HostStorage::new(folder.path()).unwrap();
    let len = ByteLen::new(4 << 20);
    let image = create_image(&storage, "image", ImageFormat::Raw, len).unwrap();
    with_sums(image, storage.open("sums", OpenMode::CreateNew).unwrap()).unwrap();
    let (file, sums) =
        (storage.open("image", OpenMode::ReadWrite), storage.open("sums", OpenMode::ReadWrite));
    let image = open_summed((file.unwrap(), ImageFormat::Raw), sums.unwrap(), (len, len), true).unwrap();
    image.write_at(ByteOffset::ZERO, &[7; 1 << 20], false, RequestClass::Guest).unwrap();
    let mut read = vec![0; 64 << 10];
    let locate = |at, read: &mut [u8]| image.read_located(ByteOffset::new(at), read, RequestClass::Guest);
    assert!(locate(0, &mut read).unwrap().is_some());
    std::fs::File::options()
        .write(true)
        .open(folder.path().join("image"))
        .unwrap()
        .write_all_at(&[8], 9)
        .unwrap();
    assert_eq!(locate(0, &mut read).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(locate(64 << 10, &mut read).unwrap().is_some());
}
