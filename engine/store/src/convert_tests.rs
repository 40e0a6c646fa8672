use super::*;
use crate::testing::{CrashStorage, History};
use crate::{ImageFormat, create_image};
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const CLASS: RequestClass = RequestClass::Guest;

fn image(name: &str, format: ImageFormat, len: u64) -> Arc<dyn Volume> {
    create_image(&CrashStorage::new(), name, format, ByteLen::new(len)).unwrap()
}

fn written(seed: u64, len: u64) -> (Arc<dyn Volume>, History) {
    let from = image("from", ImageFormat::Raw, len);
    let window = |at, len| Extent::new(ByteOffset::new(at), ByteLen::new(len)).unwrap();
    let mut history = History::new(seed, vec![window(0, 2 * MIB), window(len - 3 * MIB, 3 * MIB)]);
    (0..60).for_each(|_| history.step(&*from).unwrap());
    (from, history)
}

#[test]
fn every_format_becomes_equal_with_any_number_of_threads() {
    let len = 40 * MIB + 512;
    for (seed, format) in ImageFormat::ALL.into_iter().enumerate() {
        for threads in [1, 3, 8] {
            let (from, history) = written(seed as u64, len);
            let to = image("to", format, len);
            let seen = Mutex::new(ByteLen::ZERO);
            let progress = |done: ByteLen, total: ByteLen| {
                assert_eq!(total, ByteLen::new(len));
                *locked(&seen) = done;
                true
            };
            convert_volume(&*from, &*to, threads, &progress).unwrap();
            assert_eq!(*locked(&seen), ByteLen::new(len), "all of it is told");
            history.check(&*to).unwrap_or_else(|error| panic!("{format}, {threads} threads: {error}"));
            assert_eq!(compare_volumes(&*from, &*to, threads, &|_, _| true).unwrap(), None);
            let at = ByteOffset::new(len - 512);
            to.write_at(at, &[1; 512], false, CLASS).unwrap();
            let found = compare_volumes(&*from, &*to, threads, &|_, _| true).unwrap();
            assert_eq!(found, Some(Difference::At(at)), "{format}");
        }
    }
}

#[test]
fn the_first_difference_is_found_however_many_there_are() {
    let (one, other) = (image("one", ImageFormat::Raw, 64 * MIB), image("other", ImageFormat::Vhd, 64 * MIB));
    for at in [50 * MIB, 20 * MIB + 1024, 63 * MIB] {
        other.write_at(ByteOffset::new(at), &[1; 512], false, CLASS).unwrap();
    }
    let found = compare_volumes(&*one, &*other, 4, &|_, _| true).unwrap();
    assert_eq!(found, Some(Difference::At(ByteOffset::new(20 * MIB + 1024))));
}

#[test]
fn what_only_the_longer_one_has_counts_unless_it_is_zero() {
    let (one, other) = (image("one", ImageFormat::Raw, MIB), image("other", ImageFormat::Raw, 2 * MIB + 512));
    let compare = || compare_volumes(&*other, &*one, 2, &|_, _| true).unwrap();
    assert_eq!(compare(), Some(Difference::LengthOnly));
    other.write_zeroes(Extent::whole(other.len()).unwrap(), true, false, CLASS).unwrap();
    assert_eq!(compare(), Some(Difference::LengthOnly));
    other.write_at(ByteOffset::new(2 * MIB), &[1; 512], false, CLASS).unwrap();
    assert_eq!(compare(), Some(Difference::At(ByteOffset::new(2 * MIB))));
}

#[test]
fn it_can_be_called_off_and_a_small_target_is_refused() {
    let (from, _) = written(1, 8 * MIB);
    let to = image("to", ImageFormat::Vhd, 8 * MIB);
    let error = convert_volume(&*from, &*to, 3, &|_, _| false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let small = image("small", ImageFormat::Vhd, 4 * MIB);
    let error = convert_volume(&*from, &*small, 3, &|_, _| true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn an_error_of_the_target_ends_all_threads() {
    let (from, _) = written(2, 8 * MIB);
    let storage = CrashStorage::new();
    let to = create_image(&storage, "to", ImageFormat::Qcow2, from.len()).unwrap();
    storage.fail_write(3);
    let error = convert_volume(&*from, &*to, 4, &|_, _| true).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned), "{error}");
}
