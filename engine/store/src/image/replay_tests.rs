use super::super::{ImageFormat, create_image, open_image, with_sums};
use super::*;
use crate::testing::{CrashStorage, Random};
use blocks::{ExtentSet, MemoryVolume, OpenMode, Storage};
use std::cell::Cell;
use std::sync::Arc;

const CLASS: RequestClass = RequestClass::Background;
const LEN: u64 = (9 << 20) + 512;

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

fn create(storage: &CrashStorage, format: ImageFormat, len: u64) -> Arc<SummedImage> {
    let image = create_image(storage, "image", format, ByteLen::new(len)).unwrap();
    let image = with_sums(image, storage.open("sums", OpenMode::CreateNew).unwrap()).unwrap();
    storage.sync_dir("").unwrap();
    image
}

fn reopen(storage: &CrashStorage, format: ImageFormat) -> Arc<SummedImage> {
    let image = open_image(storage.open("image", OpenMode::ReadWrite).unwrap(), Some(format), true).unwrap();
    with_sums(image, storage.open("sums", OpenMode::ReadWrite).unwrap()).unwrap()
}

fn content(volume: &dyn Volume) -> Vec<u8> {
    let mut bytes = vec![0; volume.len().as_usize()];
    volume.read_at(ByteOffset::ZERO, &mut bytes, CLASS).unwrap();
    bytes
}

/// Pieces in order, some side by side, some apart, some long; applied to the model at once.
fn pieces(random: &mut Random, model: &MemoryVolume) -> Vec<ReplayPiece> {
    let mut pieces = Vec::new();
    let mut at = random.below(400) * 512;
    while at < LEN {
        let longest = if random.chance(10) { 5000 } else { 60 };
        let piece = extent(at, ((1 + random.below(longest)) * 512).min(LEN - at));
        let content = match random.below(6) {
            0 => ReplayContent::Zero,
            1 => ReplayContent::Discard,
            _ => {
                let mut bytes = vec![0; piece.len().as_usize()];
                random.fill(&mut bytes);
                ReplayContent::Data(bytes)
            }
        };
        match &content {
            ReplayContent::Data(bytes) => model.write_at(piece.start(), bytes, false, CLASS).unwrap(),
            _ => model.discard(piece, false, CLASS).unwrap(),
        }
        pieces.push(ReplayPiece { extent: piece, content });
        at = piece.end().get() + if random.chance(60) { 0 } else { random.below(300) * 512 };
    }
    pieces
}

#[test]
fn what_is_replayed_is_there_and_verifies() {
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let format = ImageFormat::ALL[seed as usize % ImageFormat::ALL.len()];
        let storage = CrashStorage::new();
        let image = create(&storage, format, LEN);
        let model = MemoryVolume::new(ByteLen::new(LEN));
        for _ in 0..3 {
            let pieces = pieces(&mut random, &model);
            let bytes: ByteLen = pieces.iter().map(|piece| piece.extent.len()).sum();
            let done = Cell::new(ByteLen::ZERO);
            let progress = |now| {
                done.set(now);
                true
            };
            replay(pieces.into_iter().map(Ok), &image, &progress).unwrap();
            assert_eq!(done.get(), bytes);
        }
        assert!(content(&*image) == model.snapshot(), "seed {seed}");
        assert!(content(&*reopen(&storage, format)) == model.snapshot(), "seed {seed}");
    }
}

#[test]
fn each_block_is_read_and_written_once() {
    let storage = CrashStorage::new();
    let image = create(&storage, ImageFormat::Raw, LEN);
    image.write_at(ByteOffset::ZERO, &vec![1; 1 << 20], true, CLASS).unwrap();
    let before = storage.changes();
    // 64 pieces of 4 KiB side by side: one write of data, one of checksums.
    let side_by_side = (0..64).map(|at| {
        Ok(ReplayPiece {
            extent: extent(4096 + at * 4096, 4096),
            content: ReplayContent::Data(vec![2; 4096]),
        })
    });
    replay(side_by_side, &image, &|_| true).unwrap();
    assert_eq!(storage.changes() - before, 2);
}

#[test]
fn a_crash_anywhere_in_a_replay_is_mended_by_repeating_it() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let format = ImageFormat::ALL[seed as usize % ImageFormat::ALL.len()];
        let storage = CrashStorage::new();
        let image = create(&storage, format, LEN);
        let model = MemoryVolume::new(ByteLen::new(LEN));
        replay(pieces(&mut random, &model).into_iter().map(Ok), &image, &|_| true).unwrap();
        image.flush().unwrap();
        let again = pieces(&mut random, &model);
        let touched: ExtentSet = again.iter().map(|piece| piece.extent).collect();
        let mut storage = storage;
        let mut image = image;
        for attempt in 0..3 {
            storage.power_off_after(random.below(80));
            let done = replay(again.iter().cloned().map(Ok), &image, &|_| true).and_then(|()| image.flush());
            storage = storage.crash(random.number());
            image = reopen(&storage, format);
            image.redo(&touched);
            let context = format!("seed {seed}, attempt {attempt}, finished {}", done.is_ok());
            let found = content(&*image);
            let wanted = model.snapshot();
            assert!(untouched(&touched).all(|range| found[range.clone()] == wanted[range]), "{context}");
        }
        replay(again.iter().cloned().map(Ok), &image, &|_| true).unwrap();
        image.flush().unwrap();
        assert!(image.unverified().is_zero());
        let verified = reopen(&storage.crash(seed), format);
        assert!(content(&*verified) == model.snapshot(), "seed {seed}");
    }
}

/// The ranges that no piece touches.
fn untouched(touched: &ExtentSet) -> impl Iterator<Item = std::ops::Range<usize>> {
    touched.lookup(extent(0, LEN)).filter_map(|piece| match piece {
        blocks::Piece::Hole(hole) => Some(hole.start().get() as usize..hole.end().get() as usize),
        blocks::Piece::Data(..) => None,
    })
}

#[test]
fn pieces_that_make_no_sense_and_ends_are_reported() {
    let storage = CrashStorage::new();
    let image = create(&storage, ImageFormat::Raw, LEN);
    let zero = |start, len| Ok(ReplayPiece { extent: extent(start, len), content: ReplayContent::Zero });
    let kind = |pieces: Vec<Result<ReplayPiece>>, go_on| {
        replay(pieces.into_iter(), &image, &|_| go_on).unwrap_err().kind()
    };
    assert_eq!(kind(vec![zero(4096, 4096), zero(512, 512)], true), ErrorKind::InvalidInput);
    assert_eq!(kind(vec![zero(4096, 4096), zero(4096, 512)], true), ErrorKind::InvalidInput);
    let short = ReplayPiece { extent: extent(0, 1024), content: ReplayContent::Data(vec![1; 512]) };
    assert_eq!(kind(vec![Ok(short)], true), ErrorKind::InvalidInput);
    assert_eq!(kind(vec![zero(LEN, 512)], true), ErrorKind::OutOfRange);
    assert_eq!(kind(vec![zero(LEN - 512, 2 << 20)], true), ErrorKind::OutOfRange);
    assert_eq!(kind(vec![zero(0, 512)], false), ErrorKind::Cancelled);
    assert_eq!(kind(vec![Err(Error::corrupt("a log"))], true), ErrorKind::Corrupt);
    replay(std::iter::empty(), &image, &|_| true).unwrap();
}
