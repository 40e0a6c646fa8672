use super::super::battery::{MIB, extent};
use super::super::{create_image, with_sums};
use super::*;
use crate::testing::{CrashStorage, History};
use blocks::{OpenMode, Storage};

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
