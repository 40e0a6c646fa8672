//! What a unit must be: whole disks in memory, and what may have become of calls that failed.

use super::content::{Content, SECTOR, Version, compare, read};
use super::failure::{Failure, Outcome, ensure};
use blocks::{CheckpointId, DiskIndex, Generation, MachineId, Seq, Volume};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{BranchId, Unit};

/// A write as the server got it.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub seq: Seq,
    pub first: usize,
    pub versions: Vec<Version>,
}

/// One disk of a branch: what must be on the medium, and what was written since.
#[derive(Clone, Debug)]
pub(super) struct Head {
    durable: Content,
    durable_seq: Seq,
    since: Vec<Write>,
    now: Content,
    /// A write that failed: it may be there after a restart.
    doubt: Option<Write>,
}

#[derive(Clone, Debug)]
pub(super) struct BranchModel {
    pub heads: Vec<Head>,
    pub base: Option<CheckpointId>,
    /// Something was copied into it in an order that is not modelled: nothing is known until it is sealed.
    pub loose: bool,
}

#[derive(Clone, Debug)]
pub(super) struct CheckpointModel {
    pub branch: BranchId,
    pub disks: Vec<Content>,
}

/// What a call that failed may have done nevertheless.
#[derive(Clone, Debug)]
pub(super) enum Doubt {
    Seal(BranchId, Vec<Content>),
    Fork(CheckpointId),
    Drop(BranchId),
    Delete(CheckpointId),
    Consolidate(CheckpointId),
    Promote,
}

/// How the server came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Its process died; what it wrote is in the kernel's cache.
    Killed,
    /// Its host lost power.
    PowerLoss,
}

#[derive(Clone, Debug)]
pub(super) struct UnitModel {
    pub machine: MachineId,
    /// Number of the machine in the simulation: part of what is written.
    pub tag: u16,
    pub main: BranchId,
    pub branches: BTreeMap<BranchId, BranchModel>,
    pub checkpoints: BTreeMap<CheckpointId, CheckpointModel>,
    pub generation: Generation,
    pub doubts: Vec<Doubt>,
}

/// The number of a disk in what is written to it.
pub(super) fn disk_tag(machine: u16, disk: usize) -> u16 {
    machine * 8 + disk as u16
}

pub(super) fn apply(content: &mut Content, first: usize, versions: &[Version]) {
    content[first..first + versions.len()].copy_from_slice(versions);
}

impl Head {
    pub fn new(content: Content, seq: Seq) -> Head {
        Head { durable: content.clone(), durable_seq: seq, since: Vec::new(), now: content, doubt: None }
    }

    pub fn now(&self) -> &Content {
        &self.now
    }

    pub fn last_seq(&self) -> Seq {
        self.since.last().map_or(self.durable_seq, |write| write.seq)
    }

    fn grow(&mut self, len: usize) {
        self.now.resize(len, 0);
        self.durable.resize(len, 0);
    }

    pub fn push(&mut self, write: Write) {
        apply(&mut self.now, write.first, &write.versions);
        self.since.push(write);
    }

    pub fn fail(&mut self, write: Write) {
        self.doubt = Some(write);
    }

    /// Everything up to `seq` is on the medium.
    pub fn settle(&mut self, seq: Seq) {
        if seq > self.durable_seq {
            for write in self.since.iter().filter(|write| write.seq <= seq) {
                apply(&mut self.durable, write.first, &write.versions);
            }
            self.since.retain(|write| write.seq > seq);
            self.durable_seq = seq;
        }
    }

    /// The server was restarted and has everything up to `found`.
    fn restart(&mut self, found: Seq, end: End) -> Outcome {
        ensure(found >= self.durable_seq, || {
            format!(
                "write {} was acknowledged or flushed, and {} is the last there",
                self.durable_seq.0, found.0
            )
        })?;
        ensure(end == End::PowerLoss || found >= self.last_seq(), || {
            format!("write {} was with the kernel, and {} is the last there", self.last_seq().0, found.0)
        })?;
        if let Some(doubt) = self.doubt.take()
            && doubt.seq > self.last_seq()
            && found >= doubt.seq
        {
            self.push(doubt);
        }
        ensure(found <= self.last_seq(), || {
            format!("write {} is there, and {} was the last one made", found.0, self.last_seq().0)
        })?;
        self.settle(found);
        self.since.clear();
        self.now = self.durable.clone();
        Ok(())
    }
}

/// The lengths of a unit's disks, in sectors.
fn lens(unit: &Unit) -> Vec<usize> {
    unit.disks().iter().map(|disk| disk.len.as_usize() / SECTOR).collect()
}

impl BranchModel {
    pub fn now(&self) -> Vec<Content> {
        self.heads.iter().map(|head| head.now().clone()).collect()
    }
}

impl UnitModel {
    pub fn new(unit: &Unit, tag: u16) -> UnitModel {
        let heads = lens(unit).into_iter().map(|len| Head::new(vec![0; len], Seq(0))).collect();
        let branch = BranchModel { heads, base: None, loose: false };
        UnitModel {
            machine: unit.machine(),
            tag,
            main: unit.main_branch(),
            branches: BTreeMap::from([(unit.main_branch(), branch)]),
            checkpoints: BTreeMap::new(),
            generation: unit.generation(),
            doubts: Vec::new(),
        }
    }

    /// The unit's disks may have grown, all the others must be as they were.
    pub fn follow_growth(&mut self, unit: &Unit) -> Outcome {
        let main = self.main;
        for (head, len) in self.branch(main)?.heads.iter_mut().zip(lens(unit)) {
            ensure(len >= head.now.len(), || format!("a disk of {} sectors has {len}", head.now.len()))?;
            head.grow(len);
        }
        Ok(())
    }

    pub fn branch(&mut self, id: BranchId) -> Outcome<&mut BranchModel> {
        self.branches.get_mut(&id).ok_or_else(|| Failure::new(format!("the model has no branch {id}")))
    }

    pub fn sealed(&mut self, branch: BranchId, id: CheckpointId, disks: Vec<Content>) {
        self.checkpoints.insert(id, CheckpointModel { branch, disks });
        self.settle(branch);
    }

    /// What is open of a branch was sealed.
    pub fn settle(&mut self, branch: BranchId) {
        if let Some(branch) = self.branches.get_mut(&branch) {
            branch.heads.iter_mut().for_each(|head| head.settle(head.last_seq()));
        }
    }

    pub fn forked(&mut self, unit: &Unit, at: CheckpointId, id: BranchId) -> Outcome {
        let Some(base) = self.checkpoints.get(&at) else {
            return Err(Failure::new(format!("a branch starts at checkpoint {at}, which is not there")));
        };
        let mut heads = Vec::new();
        for (disk, content) in (0..).zip(&base.disks) {
            heads.push(Head::new(content.clone(), unit.disk(id, DiskIndex(disk))?.last_seq()));
        }
        self.branches.insert(id, BranchModel { heads, base: Some(at), loose: false });
        Ok(())
    }

    pub fn dropped(&mut self, branch: BranchId) {
        self.branches.remove(&branch);
        self.checkpoints.retain(|_, checkpoint| checkpoint.branch != branch);
    }

    /// The checkpoints of the main branch before `up_to` are gone.
    pub fn consolidated(&mut self, up_to: CheckpointId) {
        let main = self.main;
        self.checkpoints.retain(|id, checkpoint| *id >= up_to || checkpoint.branch != main);
    }

    /// The unit was opened again: calls that failed have happened or have not; everything else must be there.
    pub fn restart(&mut self, unit: &Unit, end: End) -> Outcome {
        self.absorb(unit)?;
        self.doubts.clear();
        for (id, branch) in &mut self.branches {
            for (disk, head) in (0..).zip(&mut branch.heads) {
                let volume = match unit.disk(*id, DiskIndex(disk)) {
                    Ok(volume) => volume,
                    Err(error) => return Err(Failure::new(format!("branch {id} is gone: {error}"))),
                };
                if branch.loose {
                    let content = read(&volume, disk_tag(self.tag, usize::from(disk)))??;
                    *head = Head::new(content, volume.last_seq());
                    continue;
                }
                head.restart(volume.last_seq(), end)
                    .map_err(|failure| Failure::new(format!("branch {id}, disk {disk}: {failure}")))?;
            }
            branch.loose = false;
        }
        Ok(())
    }

    /// What the unit has and the model has not, and the other way round, must come of calls that failed.
    pub fn absorb(&mut self, unit: &Unit) -> Outcome {
        let doubts = self.doubts.clone();
        ensure(unit.main_branch() == self.main, || format!("branch {} is the main one", unit.main_branch()))?;
        self.follow_growth(unit)?;
        let promotions = doubts.iter().filter(|doubt| matches!(doubt, Doubt::Promote)).count() as u64;
        let generation = unit.generation();
        ensure(generation >= self.generation && generation.0 <= self.generation.0 + promotions, || {
            format!("the generation is {generation}, not {}", self.generation)
        })?;
        if generation > self.generation {
            self.doubts.retain(|doubt| !matches!(doubt, Doubt::Promote));
        }
        self.generation = generation;
        for doubt in &doubts {
            match doubt {
                Doubt::Drop(branch) if !unit.branches().iter().any(|info| info.id == *branch) => {
                    self.dropped(*branch);
                }
                Doubt::Delete(id) if unit.checkpoint(*id).is_none() => {
                    self.checkpoints.remove(id);
                }
                Doubt::Consolidate(up_to)
                    if unit.replaying() == Some(*up_to) || unit.horizon() == Some(*up_to) =>
                {
                    self.consolidated(*up_to);
                }
                _ => {}
            }
        }
        for branch in unit.branches() {
            if !self.branches.contains_key(&branch.id) {
                let doubted = |doubt: &Doubt| matches!(doubt, Doubt::Fork(at) if Some(*at) == branch.base);
                ensure(doubts.iter().any(doubted), || format!("branch {} has come from nowhere", branch.id))?;
                self.forked(unit, branch.base.unwrap_or(CheckpointId(0)), branch.id)?;
            }
        }
        for checkpoint in unit.checkpoints() {
            if !self.checkpoints.contains_key(&checkpoint.id) {
                let content = doubts.iter().rev().find_map(|doubt| match doubt {
                    Doubt::Seal(branch, disks) if *branch == checkpoint.branch => Some(disks.clone()),
                    _ => None,
                });
                let Some(content) = content else {
                    let what = format!("checkpoint {} has come from nowhere", checkpoint.id);
                    return Err(Failure::new(what));
                };
                self.sealed(checkpoint.branch, checkpoint.id, content);
            }
        }
        Ok(())
    }

    /// Compares everything that the unit offers with what it must be. With `tolerant`, what cannot be read because it is
    /// damaged is counted instead.
    pub fn check(&self, unit: &Arc<Unit>, tolerant: bool) -> Outcome<u64> {
        let mut damaged = 0;
        let mut found_damage = |found: blocks::Result<Content>| match found {
            Ok(content) => Ok(Some(content)),
            Err(error) if tolerant && error.kind() == blocks::ErrorKind::Corrupt => {
                damaged += 1;
                Ok(None)
            }
            Err(error) => Err(Failure::from(error)),
        };
        let ids: Vec<_> = unit.checkpoints().iter().map(|checkpoint| checkpoint.id).collect();
        let expected: Vec<_> = self.checkpoints.keys().copied().collect();
        ensure(ids == expected, || format!("the checkpoints are {ids:?}, not {expected:?}"))?;
        let ids: Vec<_> = unit.branches().iter().map(|info| info.id).collect();
        let expected: Vec<_> = self.branches.keys().copied().collect();
        ensure(ids == expected, || format!("the branches are {ids:?}, not {expected:?}"))?;
        for (id, checkpoint) in &self.checkpoints {
            for (disk, expected) in (0..).zip(&checkpoint.disks) {
                let found = match unit.view(*id, DiskIndex(disk)) {
                    Ok(view) => read(&view, disk_tag(self.tag, usize::from(disk)))?,
                    Err(error) => Err(error),
                };
                if let Some(found) = found_damage(found)? {
                    compare(&found, expected, &format!("checkpoint {id}, disk {disk}"))?;
                }
            }
        }
        for (id, branch) in self.branches.iter().filter(|(_, branch)| !branch.loose) {
            for (disk, head) in (0..).zip(&branch.heads) {
                let volume: Arc<dyn Volume> = unit.disk(*id, DiskIndex(disk))?;
                let found = read(&volume, disk_tag(self.tag, usize::from(disk)))?;
                if let Some(found) = found_damage(found)? {
                    compare(&found, head.now(), &format!("branch {id}, disk {disk}"))?;
                }
            }
        }
        Ok(damaged)
    }
}
