//! Questions about a unit's tree of deltas, and the changes to it. Pure: nothing here touches a file.

use crate::index::merge::MERGE_FAN_IN;
use crate::unit::branch::{BranchId, BranchKind, DeltaId, Edition};
use crate::unit::manifest::{Branch, BranchEnd, Manifest, MergedIndex};
use blocks::{ByteLen, CheckpointId, DiskIndex, Error, ErrorKind, Result};
use std::collections::BTreeSet;

/// An index that is part of a line: of one delta (tier 0, first = last) or merged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub first: DeltaId,
    pub last: DeltaId,
    pub tier: u8,
    pub revision: u32,
}

/// What a change to the lineage makes superfluous.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Removed {
    pub deltas: Vec<(DiskIndex, Edition)>,
    pub merged: Vec<MergedIndex>,
}

impl Manifest {
    /// The deltas from `end` down to the image, the newest first. `Corrupt` where one is missing.
    pub(crate) fn line(&self, disk: DiskIndex, end: DeltaId) -> Result<Vec<DeltaId>> {
        let floor = self.floor(disk);
        let mut line = Vec::new();
        let mut at = end;
        while at > floor {
            let delta = self.deltas.get(&at).filter(|delta| delta.disk == disk).ok_or_else(|| {
                Error::corrupt(format!("manifest of {}: disk {disk} has no delta {at}", self.name))
            })?;
            line.push(at);
            at = delta.parent;
        }
        Ok(line)
    }

    /// The fewest indexes, the newest first, that cover the line from `end` down to the image.
    pub(crate) fn cover(&self, disk: DiskIndex, end: DeltaId) -> Vec<Span> {
        let floor = self.floor(disk);
        let mut cover = Vec::new();
        let mut at = end;
        while at > floor {
            let merged = self.merged.iter().filter(|merged| merged.disk == disk && merged.last == at);
            let best = merged.min_by_key(|merged| merged.first);
            let span = match best {
                Some(merged) => {
                    let MergedIndex { first, tier, revision, .. } = *merged;
                    Span { first, last: at, tier, revision }
                }
                None => self.span(at),
            };
            cover.push(span);
            // The first delta of a span may be in the image already; then so is all below it.
            let Some(first) = self.deltas.get(&span.first) else { break };
            at = first.parent;
        }
        cover
    }

    /// A delta's own index.
    pub(crate) fn span(&self, delta: DeltaId) -> Span {
        Span { first: delta, last: delta, tier: 0, revision: self.edition(delta).revision }
    }

    /// How a sealed delta is stored now.
    pub(crate) fn edition(&self, delta: DeltaId) -> Edition {
        Edition { delta, revision: self.deltas.get(&delta).map_or(0, |delta| delta.revision) }
    }

    /// Which neighbours of the line down from `end` should become one index: the oldest that are enough of a size.
    pub(crate) fn merge_choice(&self, disk: DiskIndex, end: DeltaId) -> Option<Vec<Span>> {
        let cover = self.cover(disk, end);
        let runs = cover.chunk_by(|a, b| a.tier == b.tier);
        let run = runs.rev().find(|run| run.len() >= MERGE_FAN_IN)?;
        Some(run[run.len() - MERGE_FAN_IN..].to_vec())
    }

    /// The deltas that one of two lines has and the other has not.
    pub(crate) fn line_difference(&self, disk: DiskIndex, a: DeltaId, b: DeltaId) -> Result<Vec<DeltaId>> {
        let a: BTreeSet<_> = self.line(disk, a)?.into_iter().collect();
        let b: BTreeSet<_> = self.line(disk, b)?.into_iter().collect();
        Ok(a.symmetric_difference(&b).copied().collect())
    }

    /// The branch's own deltas on a disk, the newest first.
    pub(crate) fn own_line(&self, branch: BranchId, disk: DiskIndex) -> Result<Vec<DeltaId>> {
        let end = self.end(branch, disk)?.sealed;
        let own = |id: &DeltaId| self.deltas.get(id).is_some_and(|delta| delta.branch == branch);
        Ok(self.line(disk, end)?.into_iter().take_while(own).collect())
    }

    pub(crate) fn end(&self, branch: BranchId, disk: DiskIndex) -> Result<BranchEnd> {
        self.disk_spec(disk)?;
        Ok(self.branch(branch)?.ends[usize::from(disk.0)])
    }

    pub(crate) fn set_end(&mut self, branch: BranchId, disk: DiskIndex, end: BranchEnd) -> Result<()> {
        self.branch(branch)?;
        if let Some(slot) = self.branches.get_mut(&branch).and_then(|b| b.ends.get_mut(usize::from(disk.0))) {
            *slot = end;
        }
        Ok(())
    }

    /// Starts a branch at a checkpoint.
    pub(crate) fn fork(&mut self, at: CheckpointId, kind: BranchKind, name: &str) -> Result<BranchId> {
        let start = self.sealed(at)?;
        let starts: Vec<_> = start.ends.iter().copied().zip(start.checkpoint.lens.iter().copied()).collect();
        let id = BranchId(self.next_branch);
        self.next_branch += 1;
        let mut ends = Vec::with_capacity(starts.len());
        for ((sealed, sealed_seq), len) in starts {
            ends.push(BranchEnd { sealed, sealed_seq, open: self.take_delta(), len });
        }
        self.branches.insert(id, Branch { kind, name: name.to_owned(), base: Some(at), ends });
        Ok(id)
    }

    /// Removes a branch with its own deltas and checkpoints. Where clones start from it, the one that starts last takes over
    /// what lies below its start. `Busy` where another branch starts from what would go.
    pub(crate) fn drop_branch(&mut self, id: BranchId) -> Result<Removed> {
        self.branch(id)?;
        if id == self.main {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{}: the main branch stays", self.name)));
        }
        self.hand_over_to_clone(id)?;
        let starts_here =
            |base: CheckpointId| self.sealed(base).is_ok_and(|sealed| sealed.checkpoint.branch == id);
        if let Some((other, branch)) = self.branches.iter().find(|(_, b)| b.base.is_some_and(starts_here)) {
            let context = format!("{}: {} (branch {other}) starts from branch {id}", self.name, branch.kind);
            return Err(Error::new(ErrorKind::Busy, context));
        }
        self.branches.remove(&id);
        self.checkpoints.retain(|_, sealed| sealed.checkpoint.branch != id);
        let own = self.deltas.iter().filter(|(_, delta)| delta.branch == id).map(|(id, _)| *id).collect();
        Ok(self.remove_deltas(&own))
    }

    /// Gives what a branch has below the start of a clone to that clone, where a clone is the last to start from it.
    fn hand_over_to_clone(&mut self, id: BranchId) -> Result<()> {
        let is_of = |base: CheckpointId| self.sealed(base).is_ok_and(|sealed| sealed.checkpoint.branch == id);
        let starting =
            self.branches.iter().filter_map(|(heir, branch)| Some((branch.base?, *heir, branch.kind)));
        let Some((base, heir, BranchKind::Clone)) =
            starting.filter(|(base, ..)| is_of(*base)).max_by_key(|(base, ..)| *base)
        else {
            return Ok(());
        };
        let below = self.branch(id)?.base;
        for disk in self.disk_indexes() {
            let end = self.sealed(base)?.ends[usize::from(disk.0)].0;
            for delta in self.line(disk, end)? {
                self.deltas.entry(delta).and_modify(|delta| {
                    if delta.branch == id {
                        delta.branch = heir;
                    }
                });
            }
        }
        for (_, sealed) in self.checkpoints.range_mut(..=base) {
            if sealed.checkpoint.branch == id {
                sealed.checkpoint.branch = heir;
            }
        }
        self.branches.entry(heir).and_modify(|branch| branch.base = below);
        Ok(())
    }

    /// Makes `branch` the main branch; the old one keeps, as a superseded branch, what it has beyond the fork.
    pub(crate) fn adopt(&mut self, branch: BranchId) -> Result<BranchId> {
        let old = self.main;
        let base = self.branch(branch)?.base;
        let Some(base) = base.filter(|base| self.sealed(*base).is_ok_and(|b| b.checkpoint.branch == old))
        else {
            let context = format!("{}: branch {branch} does not start from the main branch", self.name);
            return Err(Error::new(ErrorKind::Unsupported, context));
        };
        for disk in self.disk_indexes() {
            let end = self.sealed(base)?.ends[usize::from(disk.0)].0;
            for id in self.line(disk, end)? {
                self.deltas.entry(id).and_modify(|delta| delta.branch = branch);
            }
        }
        for (_, sealed) in self.checkpoints.range_mut(..=base) {
            if sealed.checkpoint.branch == old {
                sealed.checkpoint.branch = branch;
            }
        }
        self.main = branch;
        self.follow_main()?;
        for (id, kind, base) in [(branch, BranchKind::Main, None), (old, BranchKind::Superseded, Some(base))]
        {
            self.branches.entry(id).and_modify(|branch| (branch.kind, branch.base) = (kind, base));
        }
        Ok(old)
    }

    /// The unit's disks are as long as the main branch's.
    fn follow_main(&mut self) -> Result<()> {
        let lens: Vec<_> = self.branch(self.main)?.ends.iter().map(|end| end.len).collect();
        self.disks.iter_mut().zip(lens).for_each(|(disk, len)| disk.len = len);
        Ok(())
    }

    /// Makes the main branch's disks longer, as many as are named.
    pub(crate) fn grow(&mut self, lens: &[ByteLen]) -> Result<()> {
        let main = self.main;
        for (disk, len) in self.disk_indexes().zip(lens) {
            let end = self.end(main, disk)?;
            self.set_end(main, disk, BranchEnd { len: end.len.max(*len), ..end })?;
        }
        self.follow_main()
    }

    /// Says that a replay up to a checkpoint begins: the checkpoints before it can no longer be offered.
    pub(crate) fn begin_replay(&mut self, up_to: CheckpointId) -> Result<()> {
        let floors = self.sealed(up_to)?.ends.iter().map(|(end, _)| *end).collect();
        let main = self.main;
        self.checkpoints.retain(|id, sealed| *id >= up_to || sealed.checkpoint.branch != main);
        self.replay = Some(crate::unit::manifest::Replay { up_to, floors });
        Ok(())
    }

    /// Says that the replay is done: the image has it.
    pub(crate) fn end_replay(&mut self) -> Result<Removed> {
        let Some(replay) = self.replay.take() else { return Ok(Removed::default()) };
        let mut gone = BTreeSet::new();
        for (disk, floor) in self.disk_indexes().zip(&replay.floors) {
            gone.extend(self.line(disk, *floor)?);
        }
        self.image_lens = self.sealed(replay.up_to)?.checkpoint.lens.clone();
        self.horizon = Some(replay.up_to);
        self.floors = replay.floors;
        Ok(self.remove_deltas(&gone))
    }

    /// Forgets deltas, and the merged indexes that end with one of them.
    pub(super) fn remove_deltas(&mut self, gone: &BTreeSet<DeltaId>) -> Removed {
        let mut removed = Removed::default();
        for id in gone {
            let edition = self.edition(*id);
            removed.deltas.extend(self.deltas.remove(id).map(|delta| (delta.disk, edition)));
        }
        self.merged.retain(|merged| {
            let stays = !gone.contains(&merged.last);
            if !stays {
                removed.merged.push(*merged);
            }
            stays
        });
        removed
    }
}

#[cfg(test)]
#[path = "lineage_tests.rs"]
pub(crate) mod tests;
