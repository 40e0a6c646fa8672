//! A random history of one unit, played on the store and on the model.

use crate::naive::{Disk, Naive, NaiveBranch, NaiveCheckpoint, NaiveHead, Write};
use blocks::*;
use std::sync::Arc;
use store::testing::{CrashStorage, Random};
use store::*;

const DISK_SECTORS: u64 = 1024;
/// Disks that have become this long grow no more.
const GROWN_SECTORS: u64 = 1400;

#[derive(Debug, Default, Clone)]
pub struct Counts {
    crashes: u64,
    torn_tails: u64,
    seals: u64,
    merged: u64,
    consolidations: u64,
    replays_resumed: u64,
    adoptions: u64,
    forks: u64,
    drops: u64,
    busy: u64,
    differences: u64,
    deleted: u64,
    thinned: u64,
    grown: u64,
    images_grown: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.crashes += other.crashes;
        self.torn_tails += other.torn_tails;
        self.seals += other.seals;
        self.merged += other.merged;
        self.consolidations += other.consolidations;
        self.replays_resumed += other.replays_resumed;
        self.adoptions += other.adoptions;
        self.forks += other.forks;
        self.drops += other.drops;
        self.busy += other.busy;
        self.differences += other.differences;
        self.deleted += other.deleted;
        self.thinned += other.thinned;
        self.grown += other.grown;
        self.images_grown += other.images_grown;
    }

    /// A history in which something never happens proves nothing about it.
    pub fn assert_all_happened(&self) {
        let all = [
            self.crashes,
            self.torn_tails,
            self.seals,
            self.merged,
            self.consolidations,
            self.replays_resumed,
            self.adoptions,
            self.forks,
            self.drops,
            self.busy,
            self.differences,
            self.deleted,
            self.thinned,
            self.grown,
            self.images_grown,
        ];
        assert!(all.iter().all(|count| *count > 0), "some things never happened: {self:?}");
    }
}

/// What was going on when the power went.
#[derive(Debug, Clone)]
enum Doing {
    Write(BranchId, usize, Write),
    Sync,
    Seal(BranchId),
    Fork(CheckpointId),
    Drop(BranchId),
    Adopt(BranchId),
    Consolidate(CheckpointId),
    Part,
    Promote,
    Delete(CheckpointId),
    Thin,
    Grow(Vec<ByteLen>),
}

pub struct History {
    seed: u64,
    random: Random,
    storage: CrashStorage,
    store: Option<Store>,
    unit: Option<Arc<Unit>>,
    machine: MachineId,
    naive: Naive,
    generation: u64,
    /// A consolidation that was interrupted: what it was up to.
    replaying: Option<CheckpointId>,
    counts: Counts,
}

/// Half of the histories have compressed logs. Of all, long writes in a row go past the page cache.
fn options(seed: u64) -> StoreOptions {
    StoreOptions {
        reserve: ByteLen::ZERO,
        part_extents_max: 12,
        part_log_bytes_max: ByteLen::new(400 << 10),
        index_cache: ByteLen::new(64 << 10),
        merge_in_background: false,
        compress: if seed.is_multiple_of(2) { Compression::Always } else { Compression::Never },
        long_write: ByteLen::new(2 << 10),
        ..StoreOptions::default()
    }
}

fn open(storage: &CrashStorage, seed: u64) -> Store {
    Store::open(Arc::new(storage.clone()), options(seed)).unwrap()
}

fn read_all(volume: &dyn Volume) -> Disk {
    let mut disk = vec![0; volume.len().as_usize()];
    volume.read_at(ByteOffset::ZERO, &mut disk, RequestClass::Guest).unwrap();
    disk
}

fn assert_same(found: &Disk, expected: &Disk, what: &str) {
    if found != expected {
        let at = found.iter().zip(expected).position(|(a, b)| a != b);
        panic!("{what}: differs at {at:?}, sector {:?}", at.map(|at| at / 512));
    }
}

impl History {
    pub fn new(seed: u64) -> History {
        let mut random = Random::new(seed);
        let storage = CrashStorage::new();
        let store = open(&storage, seed);
        let machine = MachineId(Id::from_bytes([9; 16]).unwrap());
        let disks = 1 + random.below(2);
        let disk =
            DiskSpec { len: ByteLen::new(DISK_SECTORS * 512), serial: "s".into(), device: "/dev/x".into() };
        let spec = UnitSpec {
            machine,
            name: "box".into(),
            definition: b"{}".to_vec(),
            disks: vec![disk; disks as usize],
            image_format: ImageFormat::ALL[random.below(ImageFormat::ALL.len() as u64) as usize],
        };
        let unit = store.create_unit(spec).unwrap();
        let mut naive = Naive::default();
        let head = NaiveHead::new(vec![0; (DISK_SECTORS * 512) as usize], Seq(0));
        let heads = vec![head; disks as usize];
        naive.branches.insert(unit.main_branch(), NaiveBranch { heads, base: None });
        History {
            seed,
            random,
            storage,
            store: Some(store),
            unit: Some(unit),
            machine,
            naive,
            generation: 1,
            replaying: None,
            counts: Counts::default(),
        }
    }

    fn unit(&self) -> Arc<Unit> {
        Arc::clone(self.unit.as_ref().unwrap())
    }

    pub fn run(mut self, steps: u64) -> Counts {
        for _ in 0..steps {
            if self.random.chance(4) {
                let changes = self.random.below(40);
                self.storage.power_off_after(changes);
                for _ in 0..60 {
                    if let Some(doing) = self.step() {
                        self.crash(Some(doing));
                        break;
                    }
                }
                // Reads only, or a cut at rest.
                if self.storage.changes() > 0 && self.random.chance(30) {
                    self.crash(None);
                }
                self.crash(None);
            } else if let Some(doing) = self.step() {
                panic!("failed without a fault: {doing:?}");
            }
            if self.random.chance(10) {
                self.check_everything();
            }
        }
        self.crash(None);
        self.counts
    }

    fn some_branch(&mut self) -> BranchId {
        let branches: Vec<BranchId> = self.naive.branches.keys().copied().collect();
        branches[self.random.below(branches.len() as u64) as usize]
    }

    fn some_checkpoint(&mut self) -> Option<CheckpointId> {
        let ids: Vec<CheckpointId> = self.naive.checkpoints.keys().copied().collect();
        if ids.is_empty() { None } else { Some(ids[self.random.below(ids.len() as u64) as usize]) }
    }

    /// One step; what was being done where it failed.
    fn step(&mut self) -> Option<Doing> {
        match self.random.below(100) {
            0..=52 => self.write(),
            53..=54 => self.thin(),
            55..=62 => self.sync(),
            63..=65 => self.part(),
            66..=79 => self.seal(),
            80..=81 => self.grow(),
            82..=85 => self.fork(),
            86..=88 => self.drop_branch(),
            89..=90 => self.adopt(),
            91..=95 => self.consolidate(),
            96..=97 => {
                self.difference();
                None
            }
            98 => self.promote(),
            _ => {
                self.check_everything();
                None
            }
        }
    }

    fn write(&mut self) -> Option<Doing> {
        let branch = self.some_branch();
        let disks = self.naive.branches[&branch].heads.len() as u64;
        let disk = self.random.below(disks) as usize;
        let disk_sectors = self.naive.branches[&branch].heads[disk].durable.len() as u64 / 512;
        let start = self.random.below(disk_sectors);
        let longest = if self.random.chance(10) { 300 } else { 20 };
        let sectors = (1 + self.random.below(longest)).min(disk_sectors - start);
        let extent = Extent::new(ByteOffset::new(start * 512), ByteLen::new(sectors * 512)).unwrap();
        let mut bytes = vec![0; extent.len().as_usize()];
        let kind = self.random.below(10);
        if kind < 8 {
            self.random.fill(&mut bytes);
        }
        let volume = self.unit().disk(branch, DiskIndex(disk as u16)).unwrap();
        let seq = Seq(self.naive.branches[&branch].heads[disk].last_seq().0 + 1);
        let outcome = if self.random.chance(50) {
            let payload = match kind {
                8 => Payload::Zero,
                9 => Payload::Discard,
                _ => Payload::Data(&bytes),
            };
            volume.append(seq, extent, payload)
        } else {
            match kind {
                8 => volume.write_zeroes(extent, false, false, RequestClass::Guest),
                9 => volume.discard(extent, false, RequestClass::Guest),
                _ => volume.write_at(extent.start(), &bytes, false, RequestClass::Guest),
            }
        };
        let write = Write { seq, extent, bytes };
        match outcome {
            Ok(()) => {
                self.naive.branches.get_mut(&branch).unwrap().heads[disk].since.push(write);
                None
            }
            Err(_) => Some(Doing::Write(branch, disk, write)),
        }
    }

    fn sync(&mut self) -> Option<Doing> {
        let branch = self.some_branch();
        for disk in 0..self.naive.branches[&branch].heads.len() {
            let volume = self.unit().disk(branch, DiskIndex(disk as u16)).unwrap();
            match volume.sync() {
                Ok(durable) => {
                    let head = &mut self.naive.branches.get_mut(&branch).unwrap().heads[disk];
                    assert!(*durable.get() >= head.last_seq() || head.since.is_empty());
                    head.settle(*durable.get());
                }
                Err(_) => return Some(Doing::Sync),
            }
        }
        None
    }

    fn part(&mut self) -> Option<Doing> {
        let branch = self.some_branch();
        let volume = self.unit().disk(branch, DiskIndex(0)).unwrap();
        match volume.seal_part() {
            Ok(_) => {
                let head = &mut self.naive.branches.get_mut(&branch).unwrap().heads[0];
                head.settle(head.last_seq());
                None
            }
            Err(_) => Some(Doing::Part),
        }
    }

    fn seal(&mut self) -> Option<Doing> {
        let branch = self.some_branch();
        match self.unit().seal(branch, CheckpointSpec::crash_consistent_now()) {
            Ok(id) => {
                self.counts.seals += 1;
                self.sealed(branch, *id.get());
                None
            }
            Err(_) => Some(Doing::Seal(branch)),
        }
    }

    fn sealed(&mut self, branch: BranchId, id: CheckpointId) {
        let naive = self.naive.branches.get_mut(&branch).unwrap();
        naive.heads.iter_mut().for_each(|head| head.settle(head.last_seq()));
        let disks = naive.now();
        self.naive.checkpoints.insert(id, NaiveCheckpoint { branch, disks });
    }

    /// The disks of the main branch become longer, some by whole blocks and some not.
    fn grow(&mut self) -> Option<Doing> {
        let unit = self.unit();
        let mut longer = |disk: &DiskSpec| {
            let sectors = disk.len.get() / 512;
            let added = [0, 1, 8, 1 + self.random.below(60)][self.random.below(4) as usize];
            ByteLen::new(if sectors < GROWN_SECTORS { sectors + added } else { sectors } * 512)
        };
        let lens: Vec<ByteLen> = unit.disks().iter().map(&mut longer).collect();
        let shorter = vec![ByteLen::new(512); lens.len()];
        assert_eq!(unit.grow(&shorter).unwrap_err().kind(), ErrorKind::InvalidInput);
        match unit.grow(&lens) {
            Ok(_) => {
                self.grown(&lens);
                None
            }
            Err(_) => Some(Doing::Grow(lens)),
        }
    }

    fn grown(&mut self, lens: &[ByteLen]) {
        self.counts.grown += 1;
        let main = self.unit().main_branch();
        let heads = &mut self.naive.branches.get_mut(&main).unwrap().heads;
        for (head, len) in heads.iter_mut().zip(lens) {
            head.durable.resize(len.as_usize(), 0);
        }
    }

    fn fork(&mut self) -> Option<Doing> {
        if self.naive.branches.len() > 5 {
            return None;
        }
        let at = self.some_checkpoint()?;
        let session = SessionId(Id::from_bytes([self.random.below(200) as u8 + 1; 16]).unwrap());
        match self.unit().fork(at, BranchKind::Session(session)) {
            Ok(id) => {
                self.counts.forks += 1;
                self.forked(at, id);
                None
            }
            Err(_) => Some(Doing::Fork(at)),
        }
    }

    fn forked(&mut self, at: CheckpointId, id: BranchId) {
        let unit = self.unit();
        let checkpoint = self.naive.checkpoints[&at].clone();
        let head = |(disk, bytes): (usize, Disk)| {
            NaiveHead::new(bytes, unit.disk(id, DiskIndex(disk as u16)).unwrap().last_seq())
        };
        let heads = checkpoint.disks.into_iter().enumerate().map(head).collect();
        self.naive.branches.insert(id, NaiveBranch { heads, base: Some(at) });
    }

    fn drop_branch(&mut self) -> Option<Doing> {
        let branch = self.some_branch();
        if branch == self.unit().main_branch() {
            return None;
        }
        match self.unit().drop_branch(branch) {
            Ok(()) => {
                self.counts.drops += 1;
                self.dropped(branch);
                None
            }
            Err(error) if error.kind() == ErrorKind::Busy => {
                self.counts.busy += 1;
                let needed = |other: &NaiveBranch| {
                    other.base.is_some_and(|base| self.naive.checkpoints[&base].branch == branch)
                };
                assert!(self.naive.branches.values().any(needed), "{error}");
                None
            }
            Err(_) => Some(Doing::Drop(branch)),
        }
    }

    fn dropped(&mut self, branch: BranchId) {
        self.naive.branches.remove(&branch);
        self.naive.checkpoints.retain(|_, checkpoint| checkpoint.branch != branch);
    }

    fn adopt(&mut self) -> Option<Doing> {
        let branch = self.some_branch();
        let main = self.unit().main_branch();
        if branch == main {
            return None;
        }
        let base = self.naive.branches[&branch].base.unwrap();
        match self.unit().adopt(branch) {
            Ok(old) => {
                assert_eq!(old, main);
                self.counts.adoptions += 1;
                self.adopted(main, branch);
                None
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                assert_ne!(self.naive.checkpoints[&base].branch, main);
                self.settle_parts(&[main, branch]);
                None
            }
            Err(_) => Some(Doing::Adopt(branch)),
        }
    }

    fn settle_parts(&mut self, branches: &[BranchId]) {
        for branch in branches {
            let naive = self.naive.branches.get_mut(branch).unwrap();
            naive.heads.iter_mut().for_each(|head| head.settle(head.last_seq()));
        }
    }

    fn adopted(&mut self, old: BranchId, branch: BranchId) {
        let base = self.naive.branches[&branch].base.unwrap();
        for (_, checkpoint) in self.naive.checkpoints.range_mut(..=base) {
            if checkpoint.branch == old {
                checkpoint.branch = branch;
            }
        }
        self.naive.branches.get_mut(&branch).unwrap().base = None;
        self.naive.branches.get_mut(&old).unwrap().base = Some(base);
    }

    fn consolidate(&mut self) -> Option<Doing> {
        let up_to = self.some_checkpoint()?;
        let main = self.unit().main_branch();
        let cancel = self.random.chance(15);
        let before = self.horizon_len();
        let outcome = self.unit().consolidate(up_to, &|done, total| {
            assert!(done <= total);
            !cancel
        });
        match outcome {
            Ok(_) => {
                self.counts.consolidations += 1;
                if self.replaying.take().is_some() {
                    self.counts.replays_resumed += 1;
                }
                self.consolidated(up_to);
                assert_eq!(self.unit().horizon(), Some(up_to));
                self.counts.images_grown += u64::from(self.horizon_len() > before);
                None
            }
            Err(error) if error.kind() == ErrorKind::Busy => {
                self.counts.busy += 1;
                let passed = |branch: &NaiveBranch| {
                    let on_main = |base: CheckpointId| self.naive.checkpoints[&base].branch == main;
                    branch.base.is_some_and(|base| base < up_to && on_main(base))
                };
                assert!(self.naive.branches.values().any(passed), "{error}");
                None
            }
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                assert_ne!(self.naive.checkpoints[&up_to].branch, main);
                None
            }
            Err(error) if error.kind() == ErrorKind::Cancelled && cancel => {
                self.replaying = Some(up_to);
                self.consolidated(up_to);
                assert_eq!(self.unit().replaying(), Some(up_to));
                None
            }
            Err(_) => Some(Doing::Consolidate(up_to)),
        }
    }

    fn horizon_len(&self) -> Option<usize> {
        let horizon = self.unit().horizon()?;
        self.naive.checkpoints.get(&horizon).map(|checkpoint| checkpoint.disks[0].len())
    }

    /// The checkpoints before `up_to` are gone.
    fn consolidated(&mut self, up_to: CheckpointId) {
        let main = self.unit().main_branch();
        self.naive.checkpoints.retain(|id, checkpoint| *id >= up_to || checkpoint.branch != main);
    }

    /// Deletes a few checkpoints, and merges what lay between.
    fn thin(&mut self) -> Option<Doing> {
        for _ in 0..3 {
            let Some(id) = self.some_checkpoint() else { break };
            match self.unit().delete_checkpoints(&[id]) {
                Ok(()) => {
                    self.counts.deleted += 1;
                    self.naive.checkpoints.remove(&id);
                }
                Err(error) if error.kind() == ErrorKind::Busy => {
                    let branch = self.naive.checkpoints[&id].branch;
                    let mut later = self.naive.checkpoints.range(id..).skip(1);
                    let is_newest = !later.any(|(_, other)| other.branch == branch);
                    let is_base = self.naive.branches.values().any(|branch| branch.base == Some(id));
                    let in_images = self.unit().horizon() == Some(id) || self.unit().replaying() == Some(id);
                    assert!(is_newest || is_base || in_images, "{error}");
                }
                Err(_) => return Some(Doing::Delete(id)),
            }
        }
        match self.unit().thin(ThinGoal::Everything, &|_| true) {
            Ok(report) => {
                self.counts.thinned += report.deltas;
                None
            }
            Err(_) => Some(Doing::Thin),
        }
    }

    fn promote(&mut self) -> Option<Doing> {
        match self.unit().promote() {
            Ok(generation) => {
                self.generation += 1;
                assert_eq!(generation.get().0, self.generation);
                None
            }
            Err(_) => Some(Doing::Promote),
        }
    }

    fn difference(&mut self) {
        let Some(a) = self.some_checkpoint() else { return };
        let branch = self.some_branch();
        let unit = self.unit();
        let disks = self.naive.branches[&branch].now();
        for (disk, (now, then)) in disks.iter().zip(&self.naive.checkpoints[&a].disks).enumerate() {
            let index = DiskIndex(disk as u16);
            let changed = unit.difference(Point::Checkpoint(a), Point::Head(branch), index).unwrap();
            let other = unit.difference(Point::Head(branch), Point::Checkpoint(a), index).unwrap();
            assert_eq!(changed, other);
            for (sector, (a, b)) in now.chunks(512).zip(then.chunks(512)).enumerate() {
                let extent = Extent::new(ByteOffset::new(sector as u64 * 512), ByteLen::new(512)).unwrap();
                assert!(a == b || changed.contains(extent), "sector {sector} differs and is not named");
            }
        }
        assert!(unit.difference(Point::Head(branch), Point::Head(branch), DiskIndex(0)).unwrap().is_empty());
        self.counts.differences += 1;
    }

    /// Power cut and restart.
    fn crash(&mut self, doing: Option<Doing>) {
        self.counts.crashes += 1;
        self.unit = None;
        self.store = None;
        let seed = self.random.number();
        self.storage = self.storage.crash(seed);
        let store = open(&self.storage, self.seed);
        assert!(store.damaged_units().is_empty(), "{:?}", store.findings());
        self.counts.torn_tails +=
            store.findings().iter().filter(|finding| finding.contains("torn")).count() as u64;
        let unit = store.unit(self.machine).unwrap();
        (self.store, self.unit) = (Some(store), Some(unit));
        self.reconcile(doing);
        self.check_everything();
    }

    /// What was being done when the power went has happened or has not.
    fn reconcile(&mut self, doing: Option<Doing>) {
        let unit = self.unit();
        match doing.clone() {
            Some(Doing::Write(branch, disk, write)) => {
                self.naive.branches.get_mut(&branch).unwrap().heads[disk].since.push(write);
            }
            Some(Doing::Adopt(branch)) if unit.main_branch() == branch => {
                let old = *self.naive.branches.iter().find(|(_, b)| b.base.is_none()).unwrap().0;
                self.adopted(old, branch);
            }
            Some(Doing::Fork(at)) => {
                let known = |id: &BranchId| self.naive.branches.contains_key(id);
                if let Some(new) = unit.branches().into_iter().find(|info| !known(&info.id)) {
                    assert_eq!(new.base, Some(at));
                    self.forked(at, new.id);
                }
            }
            Some(Doing::Drop(branch)) if !unit.branches().iter().any(|info| info.id == branch) => {
                self.dropped(branch)
            }
            Some(Doing::Seal(branch)) => {
                let known = |id: &CheckpointId| self.naive.checkpoints.contains_key(id);
                if let Some(new) = unit.checkpoints().into_iter().find(|checkpoint| !known(&checkpoint.id)) {
                    assert_eq!(new.branch, branch);
                    self.sealed(branch, new.id);
                }
            }
            Some(Doing::Consolidate(up_to)) => {
                if unit.replaying() == Some(up_to) {
                    self.replaying = Some(up_to);
                    self.consolidated(up_to);
                } else if unit.horizon() == Some(up_to) {
                    self.replaying = None;
                    self.consolidated(up_to);
                }
            }
            Some(Doing::Delete(id)) if unit.checkpoint(id).is_none() => {
                self.naive.checkpoints.remove(&id);
            }
            Some(Doing::Grow(lens)) => {
                let found: Vec<_> = unit.disks().iter().map(|disk| disk.len).collect();
                if found == lens {
                    self.grown(&lens);
                }
            }
            Some(Doing::Promote) => {
                let found = unit.generation().0;
                assert!(found == self.generation || found == self.generation + 1);
                self.generation = found;
            }
            _ => {}
        }
        assert_eq!(unit.replaying(), self.replaying);
        for (id, branch) in &mut self.naive.branches {
            for (disk, head) in branch.heads.iter_mut().enumerate() {
                let found = unit.disk(*id, DiskIndex(disk as u16)).unwrap().last_seq();
                assert!(
                    found >= head.durable_seq,
                    "write {:?} was durable, {found:?} is there",
                    head.durable_seq
                );
                assert!(found <= head.last_seq(), "{found:?} was never written");
                head.since.retain(|write| write.seq <= found);
                head.settle(found);
            }
        }
    }

    fn check_everything(&mut self) {
        let unit = self.unit();
        assert_eq!(unit.generation().0, self.generation);
        let ids: Vec<_> = unit.checkpoints().iter().map(|checkpoint| checkpoint.id).collect();
        assert_eq!(ids, self.naive.checkpoints.keys().copied().collect::<Vec<_>>());
        let main = &self.naive.branches[&unit.main_branch()];
        let lens: Vec<_> = unit.disks().iter().map(|disk| disk.len.as_usize()).collect();
        assert_eq!(lens, main.heads.iter().map(|head| head.durable.len()).collect::<Vec<_>>());
        let branches: Vec<_> = unit.branches().iter().map(|info| info.id).collect();
        assert_eq!(branches, self.naive.branches.keys().copied().collect::<Vec<_>>());
        for (id, checkpoint) in &self.naive.checkpoints {
            assert_eq!(unit.checkpoint(*id).unwrap().branch, checkpoint.branch);
            for (disk, expected) in checkpoint.disks.iter().enumerate() {
                let view = unit.view(*id, DiskIndex(disk as u16)).unwrap();
                assert_same(&read_all(&view), expected, &format!("checkpoint {id}, disk {disk}"));
                check_status(&view, expected);
                assert!(view.depth() <= 7 * 4, "{} indexes", view.depth());
            }
        }
        for (id, branch) in &self.naive.branches {
            for (disk, head) in branch.heads.iter().enumerate() {
                let volume = unit.disk(*id, DiskIndex(disk as u16)).unwrap();
                let expected = head.now();
                assert_same(&read_all(&*volume), &expected, &format!("branch {id}, disk {disk}"));
                check_status(&*volume, &expected);
                if let Some(base) = branch.base {
                    let changed = volume.changed_since_fork().unwrap();
                    let before = &self.naive.checkpoints[&base].disks[disk];
                    for (sector, (a, b)) in expected.chunks(512).zip(before.chunks(512)).enumerate() {
                        let start = ByteOffset::new(sector as u64 * 512);
                        let extent = Extent::new(start, ByteLen::new(512)).unwrap();
                        assert!(a == b || changed.contains(extent));
                    }
                }
            }
        }
        let merged =
            (0..2).filter_map(|disk| self.storage.list(&format!("units/{}/disk{disk}", self.machine)).ok());
        self.counts.merged += merged.flatten().filter(|name| name.contains('-')).count() as u64;
    }
}

fn check_status(volume: &dyn Volume, expected: &Disk) {
    let runs = volume.status(Extent::whole(volume.len()).unwrap()).unwrap();
    let mut at = ByteOffset::ZERO;
    for run in runs {
        assert_eq!(run.extent.start(), at);
        at = run.extent.end();
        if run.allocation.reads_as_zero() {
            let from = run.extent.start().get() as usize;
            assert!(is_zero(&expected[from..from + run.extent.len().as_usize()]), "{run:?} is not zero");
        }
    }
    assert_eq!(at, volume.len().end());
}
