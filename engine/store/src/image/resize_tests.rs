use super::super::battery::{CLASS, MIB, NAME, extent, file};
use super::super::{CheckReport, NewImage, check_image_with, create_image_with};
use super::*;
use crate::testing::{CrashStorage, History};
use blocks::{OpenMode, Storage};

const LEN: u64 = 20 * MIB + 512;

/// A format, and whether its blocks have their places from the start.
type Kind = (ImageFormat, bool);

const KINDS: [Kind; 7] = [
    (ImageFormat::Raw, false),
    (ImageFormat::Vhdx, false),
    (ImageFormat::Qcow2, false),
    (ImageFormat::Vhd, false),
    (ImageFormat::Vhd, true),
    (ImageFormat::Vmdk, false),
    (ImageFormat::Vmdk, true),
];
/// Those that also become shorter.
const SHRINKING: [Kind; 5] = [KINDS[0], KINDS[2], KINDS[3], KINDS[4], KINDS[6]];

fn options(storage: &CrashStorage, (format, fixed): Kind, writable: bool) -> ImageOptions {
    // The second file of a flat VMDK.
    let flat = NewImage { fixed, ..NewImage::new(format, ByteLen::new(LEN)) }.files(NAME);
    let others = flat[1..].iter().map(|name| storage.open(name, OpenMode::ReadWrite).unwrap());
    ImageOptions { format: Some(format), writable, parents: others.collect(), folder: None }
}

fn resize(storage: &CrashStorage, kind: Kind, len: u64) -> Result<()> {
    resize_image_with(&file(storage), options(storage, kind, true), ByteLen::new(len))
}

fn reopen(storage: &CrashStorage, kind: Kind) -> Result<Arc<dyn Volume>> {
    open_image_with(file(storage), options(storage, kind, true))
}

fn check(storage: &CrashStorage, kind: Kind, repair: bool) -> CheckReport {
    check_image_with(&file(storage), options(storage, kind, repair)).unwrap()
}

fn made_with(kind: Kind, len: u64, windows: Vec<Extent>) -> (CrashStorage, History) {
    let storage = CrashStorage::new();
    let (format, fixed) = kind;
    let new = NewImage { fixed, ..NewImage::new(format, ByteLen::new(len)) };
    let image = create_image_with(&storage, NAME, new).unwrap();
    storage.sync_dir("").unwrap();
    let mut history = History::new(3, windows);
    (0..40).for_each(|_| history.step(&*image).unwrap());
    image.flush().unwrap();
    history.flushed();
    drop(image);
    // What closing has done is on the medium, so that what a power cut takes is the new length's.
    for name in storage.list("").unwrap() {
        storage.open(&name, OpenMode::ReadWrite).unwrap().sync().unwrap();
    }
    (storage, history)
}

fn made(kind: Kind) -> (CrashStorage, History) {
    made_with(kind, LEN, vec![extent(0, MIB), extent(LEN - MIB, MIB)])
}

/// The image is as long as one of `lens`, holds what it held, and zeroes behind that; it can be written to its end.
fn is_whole(after: &CrashStorage, kind: Kind, history: &History, lens: &[u64], context: &str) {
    // It is written to, which the caller's copy is not.
    let after = &after.survive();
    let image = reopen(after, kind).unwrap_or_else(|error| panic!("{context}: {error}"));
    history.check_crashed(&*image).unwrap_or_else(|error| panic!("{context}: {error}"));
    let len = image.len().get();
    assert!(lens.contains(&len), "{context}: {len} bytes");
    if len > LEN {
        let mut fresh = vec![1; MIB.min(len - LEN) as usize];
        for at in [LEN, len - fresh.len() as u64] {
            image.read_at(ByteOffset::new(at), &mut fresh, CLASS).unwrap();
            assert!(blocks::is_zero(&fresh), "{context}: what is new is zero");
        }
    }
    image.write_at(ByteOffset::new(len - 512), &[5; 512], true, CLASS).unwrap();
    drop(image);
    if kind.0 != ImageFormat::Raw {
        let report = check(after, kind, false);
        assert_eq!(report.damaged(), 0, "{context}: {:?}", report.faults());
    }
}

/// Cuts the power at every change while the length changes, and goes on afterwards.
fn survives_power_cuts(made: &dyn Fn() -> (CrashStorage, History), kind: Kind, old_len: u64, new_len: u64) {
    for stop in 0.. {
        let (storage, history) = made();
        storage.power_off_after(stop);
        let done = resize(&storage, kind, new_len);
        for seed in 0..6 {
            let after = storage.crash(stop * 7 + seed);
            let context = format!("{kind:?}, stop {stop}, seed {seed}");
            let lens: &[u64] = if done.is_ok() { &[new_len] } else { &[old_len, new_len] };
            // As it was left, and made as long as was wanted.
            is_whole(&after, kind, &history, lens, &context);
            resize(&after, kind, new_len).unwrap_or_else(|error| panic!("{context}: {error}"));
            is_whole(&after, kind, &history, &[new_len], &context);
        }
        if done.is_ok() {
            return;
        }
    }
}

#[test]
fn a_power_cut_while_growing_leaves_the_one_length_or_the_other() {
    for kind in KINDS {
        survives_power_cuts(&|| made(kind), kind, LEN, 90 * MIB + 1024);
    }
}

/// As other writers may leave it: the file ends where the disk does, in the middle of a block.
#[test]
fn a_vhdx_whose_last_block_is_cut_becomes_longer() {
    let kind = (ImageFormat::Vhdx, false);
    let made = || {
        let (storage, history) = made_with(kind, LEN, vec![extent(LEN - MIB, MIB)]);
        let file = file(&storage);
        let beyond = LEN.next_multiple_of(8 * MIB) - LEN;
        file.set_len(ByteLen::new(file.len().unwrap().get() - beyond)).unwrap();
        file.sync().unwrap();
        (storage, history)
    };
    survives_power_cuts(&made, kind, LEN, 90 * MIB + 1024);
}

#[test]
fn a_power_cut_while_shrinking_leaves_the_one_length_or_the_other() {
    for kind in SHRINKING {
        // Ends within a block, of which the rest was written, and is zero.
        let made = || {
            let (storage, history) = made_with(kind, LEN, vec![extent(0, MIB), extent(9 * MIB, MIB)]);
            let image = reopen(&storage, kind).unwrap();
            image.write_at(ByteOffset::new(11 * MIB), &[7; 512], true, CLASS).unwrap();
            image.discard(extent(11 * MIB, MIB), true, CLASS).unwrap();
            (storage, history)
        };
        survives_power_cuts(&made, kind, LEN, 10 * MIB + 512);
    }
}

/// Growth that no longer fits where the tables are: blocks in the way of a VHD's table are moved, a VMDK's directories are.
#[test]
fn tables_grow_beyond_their_room() {
    for kind in [(ImageFormat::Vhd, false), (ImageFormat::Vmdk, false)] {
        let far = 40 << 30;
        survives_power_cuts(&|| made(kind), kind, LEN, far);
        let (storage, history) = made(kind);
        for len in [LEN + 512, 5 << 30, far, far + (1 << 30), 900 << 30] {
            resize(&storage, kind, len).unwrap();
            is_whole(&storage, kind, &history, &[len], &format!("{kind:?}, {len} bytes"));
        }
        let report = check(&storage, kind, false);
        assert_eq!(report.damaged(), 0, "{:?}", report.faults());
        if kind.0 == ImageFormat::Vhd {
            assert!(report.is_clean(), "{:?}", report.faults());
        }
    }
}

#[test]
fn a_failed_write_or_sync_is_an_error_and_loses_nothing() {
    for kind in KINDS {
        for nth in (1..30).step_by(2) {
            for fail in [CrashStorage::fail_write, CrashStorage::fail_sync] {
                let (storage, history) = made(kind);
                fail(&storage, nth);
                let new_len = 8 << 30;
                let done = resize(&storage, kind, new_len);
                let lens: &[u64] = if done.is_ok() { &[new_len] } else { &[LEN, new_len] };
                // Readers see what the cache has; a power cut takes what the failed sync did not put there.
                for after in [storage.survive(), storage.crash(nth)] {
                    is_whole(&after, kind, &history, lens, &format!("{kind:?}, {nth}: {done:?}"));
                }
            }
        }
    }
}

#[test]
fn a_full_medium_is_an_error_and_loses_nothing() {
    for kind in KINDS {
        let (storage, history) = made(kind);
        storage.set_capacity(Some(ByteLen::ZERO));
        let done = resize(&storage, kind, 40 << 30);
        storage.set_capacity(None);
        is_whole(&storage, kind, &history, &[LEN, 40 << 30], &format!("{kind:?}: {done:?}"));
        resize(&storage, kind, 40 << 30).unwrap();
        is_whole(&storage, kind, &history, &[40 << 30], &format!("{kind:?}, again"));
    }
}

#[test]
fn shrinking_cuts_off_zeroes_only() {
    for kind in KINDS {
        let (storage, _) = made(kind);
        let image = reopen(&storage, kind).unwrap();
        image.write_at(ByteOffset::new(8 * MIB), &[7; 512], false, CLASS).unwrap();
        image.discard(extent(8 * MIB + 512, LEN - 8 * MIB - 512), true, CLASS).unwrap();
        drop(image);
        let error = resize(&storage, kind, 8 * MIB).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(&(8 * MIB).to_string()), "says where: {error}");
        let shrunk = resize(&storage, kind, 8 * MIB + 512);
        if !SHRINKING.contains(&kind) {
            assert_eq!(shrunk.unwrap_err().kind(), ErrorKind::Unsupported);
            continue;
        }
        shrunk.unwrap();
        let image = reopen(&storage, kind).unwrap();
        assert_eq!(image.len(), ByteLen::new(8 * MIB + 512));
        let mut bytes = [0; 512];
        image.read_at(ByteOffset::new(8 * MIB), &mut bytes, CLASS).unwrap();
        assert_eq!(bytes, [7; 512]);
        drop(image);
        resize(&storage, kind, LEN).unwrap();
        let image = reopen(&storage, kind).unwrap();
        let mut bytes = vec![1; 4 * MIB as usize];
        image.read_at(ByteOffset::new(8 * MIB + 512), &mut bytes, CLASS).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "{kind:?}");
        drop(image);
        if kind.0 != ImageFormat::Raw {
            assert!(check(&storage, kind, false).is_clean(), "{kind:?}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    for (kind, far) in [
        ((ImageFormat::Qcow2, false), 5 << 40),
        ((ImageFormat::Vhdx, false), 2 << 40),
        ((ImageFormat::Vhd, false), (2040 << 30) + 512),
        ((ImageFormat::Vhd, true), (2040 << 30) + 512),
        ((ImageFormat::Vmdk, false), (2047 << 30) + 512),
        ((ImageFormat::Vmdk, true), (62 << 40) + 512),
    ] {
        let (storage, history) = made(kind);
        assert_eq!(resize(&storage, kind, far).unwrap_err().kind(), ErrorKind::Unsupported, "{kind:?}");
        assert_eq!(resize(&storage, kind, LEN + 1).unwrap_err().kind(), ErrorKind::InvalidInput);
        history.check(&*reopen(&storage, kind).unwrap()).unwrap();
        resize(&storage, kind, 1 << 39).unwrap();
        history.check(&*reopen(&storage, kind).unwrap()).unwrap();
    }
}

#[test]
fn a_child_keeps_its_length() {
    let (storage, _) = made((ImageFormat::Vhd, false));
    storage.rename(NAME, "parent").unwrap();
    let parent = storage.open("parent", OpenMode::Read).unwrap();
    super::super::create_child(&storage, NAME, &*parent).unwrap();
    let options = ImageOptions { parents: vec![parent], ..ImageOptions::default() };
    let error = resize_image_with(&file(&storage), options, ByteLen::new(2 * LEN)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("differencing"), "{error}");
}

/// What a power cut leaves of a fixed VHD that was to become longer.
#[test]
fn a_fixed_vhd_is_recognised_in_front_of_a_hole() {
    let kind = (ImageFormat::Vhd, true);
    let (storage, history) = made(kind);
    let cut = file(&storage);
    let whole = cut.len().unwrap();
    cut.set_len(whole + ByteLen::new(700 * MIB)).unwrap();
    assert_eq!(probe_image(&*cut).unwrap(), ImageFormat::Vhd);
    history.check(&*reopen(&storage, kind).unwrap()).unwrap();
    assert_eq!(check(&storage, kind, false).faults().len(), 1);
    assert_eq!(check(&storage, kind, true).repaired(), 1);
    assert!(check(&storage, kind, false).faults().is_empty());
    assert_eq!(cut.len().unwrap(), whole);
    // A footer that is not where its disk ends is a guest's.
    let mut footer = [0; 512];
    cut.read_at(ByteOffset::new(LEN), &mut footer).unwrap();
    cut.write_at(ByteOffset::new(LEN), &[0; 512]).unwrap();
    cut.write_at(ByteOffset::new(LEN - 512), &footer).unwrap();
    assert_eq!(probe_image(&*cut).unwrap(), ImageFormat::Raw);
}
