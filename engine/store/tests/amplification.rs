//! What consolidation writes into an image, counted at the image file itself.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use blocks::*;
use std::sync::Arc;
use store::testing::{CountingStorage, CrashStorage, Random};
use store::*;

const DISK: DiskIndex = DiskIndex(0);
const BLOCK: u64 = 4096;
const BLOCKS: u64 = 2048;
const OVERWRITES: u64 = 10;

/// A storage that counts what is written to images.
fn counting() -> Arc<CountingStorage> {
    Arc::new(CountingStorage::new(Arc::new(CrashStorage::new()), |name| {
        name.contains("/image.") && !name.ends_with(".sums")
    }))
}

fn block(number: u64) -> Extent {
    Extent::new(ByteOffset::new(number * BLOCK), ByteLen::new(BLOCK)).unwrap()
}

fn unit(storage: &Arc<CountingStorage>, image_format: ImageFormat) -> (Store, Arc<Unit>) {
    let options =
        StoreOptions { reserve: ByteLen::ZERO, merge_in_background: false, ..StoreOptions::default() };
    let store = Store::open(storage.clone(), options).unwrap();
    let len = ByteLen::new(4 * BLOCKS * BLOCK);
    let spec = UnitSpec {
        machine: MachineId(Id::from_bytes([1; 16]).unwrap()),
        name: "box".into(),
        definition: b"{}".to_vec(),
        disks: vec![DiskSpec { len, serial: "S".into(), device: "/dev/sda".into() }],
        image_format,
    };
    let unit = store.create_unit(spec).unwrap();
    (store, unit)
}

/// Every block is written ten times, in another order each time, over five checkpoints; the last version of each eighth
/// one is a discard. What the disk holds in the end.
fn overwrite(unit: &Unit, random: &mut Random) -> Vec<Option<u64>> {
    let head = unit.disk(unit.main_branch(), DISK).unwrap();
    let mut content = vec![None; BLOCKS as usize];
    for round in 0..OVERWRITES {
        let mut order: Vec<u64> = (0..BLOCKS).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at as u64 + 1) as usize);
        }
        for number in order {
            if round + 1 == OVERWRITES && number % 8 == 0 {
                head.append(head.last_seq().next(), block(number), Payload::Discard).unwrap();
                content[number as usize] = None;
                continue;
            }
            let fill = round * BLOCKS + number + 1;
            let bytes = fill.to_le_bytes().repeat(BLOCK as usize / 8);
            head.append(head.last_seq().next(), block(number), Payload::Data(&bytes)).unwrap();
            content[number as usize] = Some(fill);
        }
        if round % 2 == 1 {
            unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now()).unwrap();
        }
    }
    content
}

fn check(unit: &Unit, content: &[Option<u64>]) {
    let newest = unit.checkpoints().last().unwrap().id;
    let view = unit.view(newest, DISK).unwrap();
    let mut bytes = vec![0; BLOCK as usize];
    for (number, fill) in (0..).zip(content) {
        view.read_at(block(number).start(), &mut bytes, RequestClass::Guest).unwrap();
        let expected = fill.unwrap_or(0).to_le_bytes().repeat(BLOCK as usize / 8);
        assert!(bytes == expected, "block {number}");
    }
}

#[test]
fn ten_overwrites_of_each_block_are_written_once() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    for format in [ImageFormat::Raw, ImageFormat::Vhd] {
        let storage = counting();
        let (_store, unit) = unit(&storage, format);
        let content = overwrite(&unit, &mut Random::new(seed));
        let before = storage.counts().written_bytes;
        let newest = unit.checkpoints().last().unwrap().id;
        let report = unit.consolidate(newest, &|_, _| true).unwrap();
        let written = storage.counts().written_bytes - before;
        let changed = content.iter().flatten().count() as u64 * BLOCK;
        let ratio = written as f64 / changed as f64;
        println!("{format}: {changed} bytes changed, {written} written to the image: {ratio:.4}");
        assert!(ratio <= 1.05, "seed {seed}: {format}: {written} bytes written for {changed} that changed");
        assert_eq!(
            (report.written.get(), report.image_written.get()),
            (changed, written),
            "the metric is the truth"
        );
        assert_eq!(report.zeroed.get(), BLOCKS / 8 * BLOCK);
        assert_eq!(report.amplification(), Some(ratio));
        assert_eq!(unit.consolidated().image_written, report.image_written);
        check(&unit, &content);
    }
}

/// What was data before and is discarded becomes a hole of the image, not zeroes.
#[test]
fn discards_become_holes() {
    let storage = counting();
    let (_store, unit) = unit(&storage, ImageFormat::Raw);
    let head = unit.disk(unit.main_branch(), DISK).unwrap();
    let range = Extent::new(ByteOffset::ZERO, ByteLen::new(1 << 20)).unwrap();
    let image = unit.image_name(DISK).unwrap();
    for (payload, holds) in [(Payload::Data(&[7; 1 << 20]), true), (Payload::Discard, false)] {
        head.append(head.last_seq().next(), range, payload).unwrap();
        let sealed =
            unit.seal(unit.main_branch(), CheckpointSpec::crash_consistent_now()).unwrap().into_inner();
        let before = storage.counts().written_bytes;
        unit.consolidate(sealed, &|_, _| true).unwrap();
        assert_eq!(storage.counts().written_bytes - before, if holds { 1 << 20 } else { 0 });
        let file = storage.open(&image, OpenMode::Read).unwrap();
        let data = file.next_data(ByteOffset::ZERO).unwrap().and_then(|data| data.intersect(range));
        assert_eq!(data.is_some(), holds, "{data:?}");
    }
}

#[test]
fn a_consolidation_is_called_off_by_its_pace_and_goes_on_later() {
    let storage = counting();
    let (_store, unit) = unit(&storage, ImageFormat::Raw);
    let content = overwrite(&unit, &mut Random::new(3));
    let newest = unit.checkpoints().last().unwrap().id;
    let asked = std::sync::atomic::AtomicU64::new(0);
    let go_on = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 100;
    let pace = Pace::new(None, None, &go_on);
    let error = unit.consolidate_at_pace(newest, &pace, &|_, _| true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(unit.replaying(), Some(newest));
    check(&unit, &content);
    let spent = unit.consolidated();
    assert!(spent.written > ByteLen::ZERO, "what a vain attempt has cost counts");
    unit.consolidate(newest, &|_, _| true).unwrap();
    assert_eq!(unit.horizon(), Some(newest));
    check(&unit, &content);
    assert!(unit.consolidated().written > spent.written);
}
