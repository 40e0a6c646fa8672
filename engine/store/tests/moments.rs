//! States between two checkpoints: every one that a machine of several disks had, and none that it had not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/unit.rs"]
mod support;

use blocks::*;
use std::sync::Arc;
use std::time::Duration;
use store::testing::{CrashStorage, Random};
use store::*;
use support::*;

const DISKS: u16 = 2;
const BLOCK: u64 = 4096;

/// Writes of a machine in their order, each one block, and what the disks were after each.
struct Story {
    unit: Arc<Unit>,
    random: Random,
    last: WriteTime,
    seqs: Vec<Seq>,
    now: Vec<Vec<u8>>,
    /// Of every write with a time: the blocks of all disks after it.
    states: Vec<(WriteTime, Vec<Vec<u8>>)>,
    checkpoints: Vec<(CheckpointId, Vec<Vec<u8>>)>,
}

fn several() -> UnitSpec {
    let one = spec(1);
    let disk = one.disks[0].clone();
    UnitSpec { disks: vec![disk; usize::from(DISKS)], ..one }
}

impl Story {
    fn new(unit: Arc<Unit>, seed: u64) -> Story {
        let now = vec![vec![0; (LEN / BLOCK) as usize]; unit.disks().len()];
        let seqs = vec![Seq(0); now.len()];
        let (states, checkpoints) = (Vec::new(), Vec::new());
        Story { unit, random: Random::new(seed), last: WriteTime(0), seqs, now, states, checkpoints }
    }

    fn write(&mut self, is_timed: bool) {
        let disk = self.random.below(self.now.len() as u64) as usize;
        let (at, byte) = (self.random.below(LEN / BLOCK), self.random.below(256) as u8);
        let volume = self.unit.disk(self.unit.main_branch(), DiskIndex(disk as u16)).unwrap();
        let seq = self.seqs[disk].max(volume.last_seq()).next();
        let bytes = vec![byte; BLOCK as usize];
        let payload = match byte {
            0..64 => Payload::Discard,
            64..96 => Payload::Zero,
            _ => Payload::Data(&bytes),
        };
        let time = WriteTime(WriteTime::ago(Duration::ZERO).0.max(self.last.0 + 1));
        let extent = extent(at * BLOCK, BLOCK);
        match is_timed {
            true => volume.append_in_order(seq, time, extent, payload).unwrap(),
            false => volume.append(seq, extent, payload).unwrap(),
        }
        self.seqs[disk] = seq;
        self.now[disk][at as usize] = if byte < 96 { 0 } else { byte };
        if is_timed {
            self.last = time;
            self.states.push((time, self.now.clone()));
        }
    }

    fn checkpoint(&mut self) {
        let id = seal(&self.unit, self.unit.main_branch());
        self.checkpoints.push((id, self.now.clone()));
        // So that no write is of the same millisecond.
        std::thread::sleep(Duration::from_millis(2));
    }

    /// What the disks were at a moment, by its own words.
    fn state_of(&self, moment: &Moment) -> &[Vec<u8>] {
        match moment.time {
            Some(time) => &self.states.iter().find(|(at, _)| *at == time).expect("a time of a write").1,
            None => &self.checkpoints.iter().find(|(id, _)| *id == moment.base).unwrap().1,
        }
    }

    fn assert_is(&self, moment: &Moment) {
        let branch = self.unit.fork_at(moment, session(9)).unwrap();
        for (index, expected) in self.state_of(moment).iter().enumerate() {
            let disk = self.unit.disk(branch, DiskIndex(index as u16)).unwrap();
            let mut bytes = vec![0; LEN as usize];
            disk.read_at(ByteOffset::ZERO, &mut bytes, RequestClass::Guest).unwrap();
            for (at, byte) in expected.iter().enumerate() {
                let block = &bytes[at * BLOCK as usize..][..BLOCK as usize];
                assert!(block.iter().all(|found| found == byte), "disk {index}, block {at}, {moment:?}");
            }
        }
        self.unit.drop_branch(branch).unwrap();
    }
}

#[test]
fn every_write_in_order_can_be_asked_for() {
    for seed in 0..6 {
        let spec = if seed % 2 == 0 { several() } else { spec(1) };
        let unit = open(&CrashStorage::new()).create_unit(spec).unwrap();
        let mut story = Story::new(unit, seed);
        story.checkpoint();
        for _ in 0..60 {
            story.write(true);
            if story.random.below(12) == 0 {
                story.checkpoint();
            }
        }
        for (index, (time, _)) in story.states.iter().enumerate() {
            let moment = story.unit.moment(*time).unwrap().unwrap();
            match moment.time {
                Some(found) => assert_eq!(found, *time, "seed {seed}, write {index}"),
                // The last write before a checkpoint.
                None => assert_eq!(story.state_of(&moment), &story.states[index].1[..]),
            }
            story.assert_is(&moment);
            let before = story.unit.moment(WriteTime(time.0 - 1)).unwrap().unwrap();
            assert!(before.time.is_none_or(|found| found < *time));
        }
        assert!(story.unit.moment(WriteTime(1)).unwrap().is_none(), "before the first checkpoint");
    }
}

#[test]
fn what_was_copied_is_reached_by_the_next_checkpoint_alone() {
    for seed in 0..20 {
        println!("seed {seed}");
        let unit = open(&CrashStorage::new()).create_unit(several()).unwrap();
        let mut story = Story::new(unit, seed);
        story.checkpoint();
        for _ in 0..80 {
            let is_timed = story.random.below(8) != 0;
            story.write(is_timed);
            if story.random.below(12) == 0 {
                story.checkpoint();
            }
        }
        for (time, _) in story.states.clone() {
            let moment = story.unit.moment(time).unwrap().unwrap();
            assert!(moment.time.is_none_or(|found| found <= time));
            story.assert_is(&moment);
        }
    }
}

/// Each disk's log may have lost its end alone: what is left behind the newest checkpoint is no state of the machine.
#[test]
fn after_a_power_cut_there_is_nothing_behind_the_newest_checkpoint_of_several_disks() {
    for disks in [1, DISKS] {
        let storage = CrashStorage::new();
        let spec = UnitSpec { disks: vec![several().disks[0].clone(); usize::from(disks)], ..several() };
        let mut story = Story::new(open(&storage).create_unit(spec).unwrap(), 7);
        story.checkpoint();
        (0..20).for_each(|_| story.write(true));
        let first = story.unit.disk(story.unit.main_branch(), DISK).unwrap();
        first.sync().unwrap();
        let storage = storage.crash(3);
        let unit = open(&storage).unit(machine(1)).unwrap();
        assert_eq!(unit.has_torn_tails(), disks > 1);
        story.unit = unit;
        let moment = story.unit.moment(story.last).unwrap().unwrap();
        assert_eq!(moment.writes == 0, disks > 1, "{moment:?}");
        if disks == 1 {
            assert_eq!(moment.time, Some(story.last), "{moment:?}");
        }
        story.assert_is(&moment);
        let before = story.last;
        drop(moment);
        story.write(false);
        story.checkpoint();
        // Neither is it with the next checkpoint, nor after another restart.
        story.unit = open(&storage.crash(4)).unit(machine(1)).unwrap();
        let moment = story.unit.moment(before).unwrap().unwrap();
        assert_eq!(moment.base, story.checkpoints[0].0);
        assert_eq!(moment.time.is_none(), disks > 1, "{moment:?}");
        story.write(true);
        assert!(!story.unit.has_torn_tails());
        let moment = story.unit.moment(story.last).unwrap().unwrap();
        assert_eq!((moment.time, moment.writes), (Some(story.last), 1));
    }
}

#[test]
fn single_writes_stay_as_long_as_the_checkpoints_around_them() {
    let unit = open(&CrashStorage::new()).create_unit(spec(1)).unwrap();
    let mut story = Story::new(unit, 1);
    story.checkpoint();
    // The same blocks again and again: merging would give most of it back.
    (0..2000).for_each(|_| story.write(true));
    let middle = story.states[1000].0;
    story.checkpoint();
    story.write(true);
    story.checkpoint();
    for goal in [ThinGoal::Worthwhile, ThinGoal::Everything] {
        assert_eq!(story.unit.thin(goal, &|_| true).unwrap(), ThinReport::default());
        assert_eq!(story.unit.moment(middle).unwrap().unwrap().time, Some(middle));
    }
    story.unit.delete_checkpoints(&[story.checkpoints[1].0]).unwrap();
    assert!(story.unit.thin(ThinGoal::Everything, &|_| true).unwrap().freed > ByteLen::ZERO);
    let moment = story.unit.moment(middle).unwrap().unwrap();
    assert_eq!((moment.base, moment.time), (story.checkpoints[0].0, None));
    story.assert_is(&moment);
}

#[test]
fn the_checkpoint_below_a_moment_stays_and_full_storage_leaves_no_branch() {
    let storage = CrashStorage::new();
    let reserve = ByteLen::new(64 << 10);
    let store = Store::open(Arc::new(storage.clone()), StoreOptions { reserve, ..options() }).unwrap();
    let mut story = Story::new(store.create_unit(spec(1)).unwrap(), 2);
    story.checkpoint();
    (0..50).for_each(|_| story.write(true));
    let time = story.last;
    story.checkpoint();
    story.checkpoint();
    let moment = story.unit.moment(WriteTime(time.0 - 1)).unwrap().unwrap();
    let base = story.checkpoints[0].0;
    assert_eq!(moment.base, base);
    assert_eq!(kind(story.unit.delete_checkpoints(&[base])), ErrorKind::Busy);
    let taken = used(&storage);
    storage.set_capacity(Some(ByteLen::new(taken + 8192) + reserve));
    let branches = story.unit.branches();
    assert_eq!(kind(story.unit.fork_at(&moment, session(1))), ErrorKind::NoSpace);
    assert_eq!(story.unit.branches(), branches);
    storage.set_capacity(None);
    story.assert_is(&moment);
    drop(moment);
    story.unit.delete_checkpoints(&[base]).unwrap();
}
