//! The three bitmaps against a naive model, with a "kernel" that marks at any moment.

use super::*;
use blocks::ByteOffset;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

const SHIFT: BlockShift = BlockShift::KIB_4;

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

fn blocks_of(extents: &[Extent]) -> BTreeSet<u64> {
    extents.iter().flat_map(|extent| extent.blocks(SHIFT)).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Mark(u64, u64),
    Take(u64),
    Acknowledge(usize),
    Requeue,
    MarkSince,
    ForgetSince,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..300_u64, 1..150_u64).prop_map(|(start, len)| Step::Mark(start, len)),
        4 => (1..200_u64).prop_map(Step::Take),
        4 => (0..6_usize).prop_map(Step::Acknowledge),
        1 => Just(Step::Requeue),
        1 => Just(Step::MarkSince),
        1 => Just(Step::ForgetSince),
    ];
    prop::collection::vec(step, 1..120)
}

/// What the trait's contract says, one set for each word of it.
#[derive(Default)]
struct Model {
    marked: BTreeSet<u64>,
    open: BTreeMap<u64, BTreeSet<u64>>,
    pending: BTreeSet<u64>,
    since: BTreeSet<u64>,
}

proptest! {
    #[test]
    fn equals_the_naive_model(blocks in 1..300_u64, cut in 0..4096_u64, steps in steps()) {
        let len = ByteLen::new(blocks * 4096 - cut.min(blocks * 4096 - 512) / 512 * 512);
        let changed = Changed::owned(SHIFT, len);
        let blocks = len.blocks(SHIFT);
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Mark(start, count) => {
                    let start = start % blocks;
                    let end = ByteOffset::new((start + count) * 4096 - 100).min(len.end());
                    let extent = Extent::between(ByteOffset::new(start * 4096 + 5), end).unwrap();
                    changed.mark(&[extent]).unwrap();
                    model.marked.extend(extent.blocks(SHIFT));
                }
                Step::Take(count) => {
                    let taking = changed.take(ByteLen::new(count * 4096));
                    let taken = blocks_of(&taking.extents);
                    prop_assert!(taken.is_subset(&model.marked));
                    prop_assert_eq!(taken.len() as u64, count.min(model.marked.len() as u64));
                    let apart = |pair: &[Extent]| pair[0].end() < pair[1].start();
                    prop_assert!(taking.extents.windows(2).all(apart), "{:?}", taking.extents);
                    prop_assert!(taking.extents.iter().all(|extent| extent.end() <= len.end()));
                    model.marked.retain(|block| !taken.contains(block));
                    model.pending.extend(&taken);
                    model.since.extend(&taken);
                    if !taken.is_empty() {
                        model.open.insert(taking.number, taken);
                    }
                }
                Step::Acknowledge(which) => {
                    let Some(number) = model.open.keys().nth(which).copied() else {
                        prop_assert!(changed.acknowledge(u64::MAX).is_err());
                        continue;
                    };
                    changed.acknowledge(number).unwrap();
                    let done = model.open.remove(&number).unwrap();
                    let later: BTreeSet<u64> =
                        model.open.range(number..).flat_map(|(_, blocks)| blocks.iter().copied()).collect();
                    model.pending.retain(|block| !done.contains(block) || later.contains(block));
                    prop_assert!(changed.acknowledge(number).is_err());
                }
                Step::Requeue => {
                    changed.requeue();
                    model.marked.append(&mut model.pending);
                    model.open.clear();
                }
                Step::MarkSince => {
                    changed.hold().mark_since();
                    model.marked.extend(&model.since);
                }
                Step::ForgetSince => {
                    changed.hold().forget_since();
                    model.since.clear();
                }
            }
            let expected: BTreeSet<u64> = model.marked.union(&model.pending).copied().collect();
            let found: Vec<Extent> = changed.changed().iter().map(|(extent, ())| extent).collect();
            prop_assert_eq!(blocks_of(&found), expected.clone());
            prop_assert_eq!(changed.backlog(), ByteLen::new((expected.len() as u64 * 4096).min(len.get())));
            prop_assert_eq!(changed.nothing_marked(), model.marked.is_empty());
        }
    }
}

#[test]
fn a_small_taking_goes_round_the_whole_disk() {
    let changed = Changed::owned(SHIFT, ByteLen::new(1 << 20));
    let mut seen = BTreeSet::new();
    for _ in 0..256 {
        // A start of the disk that is written all the time.
        changed.mark(&[extent(0, 1 << 20)]).unwrap();
        seen.extend(blocks_of(&changed.take(ByteLen::new(1)).extents));
    }
    assert_eq!(seen.len(), 256);
}

#[test]
fn marks_past_the_end_are_refused_as_a_whole() {
    let changed = Changed::owned(SHIFT, ByteLen::new(8192));
    assert_eq!(changed.mark(&[extent(0, 512), extent(8000, 512)]).unwrap_err().kind(), ErrorKind::OutOfRange);
    assert!(changed.nothing_marked());
}

/// A writer (the kernel's side) changes a word of "disk" and marks it, over and over, while takings copy it. When all
/// is quiet and all takings are done, the copy must equal the disk.
#[test]
fn nothing_is_lost_while_marks_race_with_takings() {
    const BLOCKS: u64 = 200;
    let changed = Arc::new(Changed::owned(SHIFT, ByteLen::new(BLOCKS * 4096)));
    let disk: Arc<Vec<AtomicU64>> = Arc::new((0..BLOCKS).map(|_| AtomicU64::new(0)).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (changed, disk, stop) = (Arc::clone(&changed), Arc::clone(&disk), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut value = 0_u64;
            while !stop.load(SeqCst) {
                value += 1;
                let block = value.wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS;
                disk[block as usize].store(value, SeqCst);
                changed.marks[(block / 64) as usize].fetch_or(1 << (block % 64), SeqCst);
            }
        })
    };
    let mut copy = vec![0; BLOCKS as usize];
    let copy_taking = |copy: &mut Vec<u64>| {
        let taking = changed.take(ByteLen::new(20 * 4096));
        for block in blocks_of(&taking.extents) {
            copy[block as usize] = disk[block as usize].load(SeqCst);
        }
        if !taking.extents.is_empty() {
            changed.acknowledge(taking.number).unwrap();
        }
        taking.extents.is_empty()
    };
    for _ in 0..20_000 {
        copy_taking(&mut copy);
    }
    stop.store(true, SeqCst);
    writer.join().unwrap();
    while !copy_taking(&mut copy) {}
    assert_eq!(changed.backlog(), ByteLen::ZERO);
    let disk: Vec<u64> = disk.iter().map(|word| word.load(SeqCst)).collect();
    assert_eq!(copy, disk);
}
