use super::super::battery::{CLASS, MIB, check, create, extent, file, reopen};
use super::*;
use crate::testing::{CrashStorage, History};

const LEN: u64 = 20 * MIB + 512;

fn resize(storage: &CrashStorage, format: ImageFormat, len: u64) -> Result<()> {
    resize_image(&file(storage), Some(format), ByteLen::new(len))
}

fn made(format: ImageFormat) -> (CrashStorage, History) {
    let storage = CrashStorage::new();
    let image = create(&storage, format, LEN);
    let mut history = History::new(3, vec![extent(0, MIB), extent(LEN - MIB, MIB)]);
    (0..40).for_each(|_| history.step(&*image).unwrap());
    image.flush().unwrap();
    history.flushed();
    drop(image);
    (storage, history)
}

const FORMATS: [ImageFormat; 3] = [ImageFormat::Raw, ImageFormat::Vhdx, ImageFormat::Qcow2];

#[test]
fn a_power_cut_while_growing_leaves_the_one_length_or_the_other() {
    for format in FORMATS {
        let new_len = 90 * MIB + 1024;
        for stop in 0.. {
            let (storage, history) = made(format);
            storage.power_off_after(stop);
            let done = resize(&storage, format, new_len);
            for seed in 0..4 {
                let after = storage.crash(stop * 5 + seed);
                let context = format!("{format}, stop {stop}, seed {seed}");
                let image = reopen(&after, format).unwrap_or_else(|error| panic!("{context}: {error}"));
                history.check_crashed(&*image).unwrap_or_else(|error| panic!("{context}: {error}"));
                let len = image.len().get();
                assert!(len == new_len || (len == LEN && done.is_err()), "{context}: {len} bytes");
                let mut fresh = vec![1; MIB as usize];
                if len == new_len {
                    image.read_at(ByteOffset::new(LEN), &mut fresh, CLASS).unwrap();
                    assert!(fresh.iter().all(|byte| *byte == 0), "{context}");
                    image.write_at(ByteOffset::new(new_len - 512), &[5; 512], true, CLASS).unwrap();
                }
                drop(image);
                if format != ImageFormat::Raw {
                    assert_eq!(check(&after, format, false).damaged(), 0, "{context}");
                }
            }
            if done.is_ok() {
                break;
            }
        }
    }
}

#[test]
fn shrinking_cuts_off_zeroes_only() {
    for format in FORMATS {
        let (storage, _) = made(format);
        let image = reopen(&storage, format).unwrap();
        image.write_at(ByteOffset::new(8 * MIB), &[7; 512], false, CLASS).unwrap();
        image.discard(extent(8 * MIB + 512, LEN - 8 * MIB - 512), true, CLASS).unwrap();
        drop(image);
        let error = resize(&storage, format, 8 * MIB).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(&(8 * MIB).to_string()), "says where: {error}");
        let shrunk = resize(&storage, format, 8 * MIB + 512);
        if format == ImageFormat::Vhdx {
            assert_eq!(shrunk.unwrap_err().kind(), ErrorKind::Unsupported);
            continue;
        }
        shrunk.unwrap();
        let image = reopen(&storage, format).unwrap();
        assert_eq!(image.len(), ByteLen::new(8 * MIB + 512));
        let mut bytes = [0; 512];
        image.read_at(ByteOffset::new(8 * MIB), &mut bytes, CLASS).unwrap();
        assert_eq!(bytes, [7; 512]);
        drop(image);
        resize(&storage, format, LEN).unwrap();
        let image = reopen(&storage, format).unwrap();
        let mut bytes = vec![1; 4 * MIB as usize];
        image.read_at(ByteOffset::new(8 * MIB + 512), &mut bytes, CLASS).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "{format}");
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    for format in [ImageFormat::Vhd, ImageFormat::Vmdk] {
        let storage = CrashStorage::new();
        drop(create(&storage, format, LEN));
        assert_eq!(
            resize(&storage, format, 2 * LEN - 512).unwrap_err().kind(),
            ErrorKind::Unsupported,
            "{format}"
        );
        assert_eq!(reopen(&storage, format).unwrap().len(), ByteLen::new(LEN));
    }
    for (format, far) in [(ImageFormat::Qcow2, 5 << 40), (ImageFormat::Vhdx, 2 << 40)] {
        let (storage, history) = made(format);
        assert_eq!(resize(&storage, format, far).unwrap_err().kind(), ErrorKind::Unsupported, "{format}");
        assert_eq!(resize(&storage, format, LEN + 1).unwrap_err().kind(), ErrorKind::InvalidInput);
        history.check(&*reopen(&storage, format).unwrap()).unwrap();
        resize(&storage, format, 1 << 39).unwrap();
        history.check(&*reopen(&storage, format).unwrap()).unwrap();
    }
}
