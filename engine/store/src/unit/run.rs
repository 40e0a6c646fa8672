//! Runs: neighbouring deltas with nothing between them that anybody can ask for, so that they can become one. Pure:
//! nothing here touches a file.
//!
//! ```text
//!   checkpoint 4          checkpoint 7 (5 and 6 were deleted)       head
//!        │                     │                                     │
//!   ──●──●──────●──────●───────●──────────●──────────────────────────●
//!        a      b      c       d          e                          f
//!               └──── run ─────┘          └────────── run ───────────┘
//! ```
//! A run ends at a boundary: where a checkpoint of any branch ends, where a branch goes on or forks, and up to where the
//! image is being changed. So no merge crosses a pin, and every place that can be asked for stays one.

use crate::unit::branch::{BranchId, DeltaId, Edition};
use crate::unit::lineage::Removed;
use crate::unit::manifest::{Delta, Manifest, MergedIndex};
use blocks::{ByteLen, DiskIndex, Error, ErrorKind, PlantedBug, Result, Seq};
use std::collections::{BTreeMap, BTreeSet};

/// Neighbouring deltas of one branch on one disk, the oldest first; at least one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Run {
    pub disk: DiskIndex,
    pub deltas: Vec<Edition>,
}

impl Run {
    /// The delta whose place the merged one takes.
    pub(crate) fn last(&self) -> Option<Edition> {
        self.deltas.last().copied()
    }

    /// What the merged delta's files are called by: higher than that of every one of these, and so is every sum that
    /// it is part of.
    pub(crate) fn revision(&self) -> u32 {
        self.deltas.iter().map(|edition| edition.revision).sum::<u32>() + 1
    }
}

impl Manifest {
    /// The runs of a disk, by their last delta. Single deltas are runs too.
    pub(crate) fn runs(&self, disk: DiskIndex) -> Vec<Run> {
        let boundaries = self.boundaries(disk);
        let mut runs: BTreeMap<DeltaId, Vec<Edition>> = BTreeMap::new();
        // By number, so that a parent comes before its children.
        for (id, delta) in self.deltas.iter().filter(|(_, delta)| delta.disk == disk) {
            let same_branch = self.deltas.get(&delta.parent).is_some_and(|p| p.branch == delta.branch);
            let goes_on = same_branch && !boundaries.contains(&delta.parent);
            let mut deltas = if goes_on { runs.remove(&delta.parent) } else { None }.unwrap_or_default();
            deltas.push(self.edition(*id));
            runs.insert(*id, deltas);
        }
        runs.into_values().map(|deltas| Run { disk, deltas }).collect()
    }

    /// The highest number in a delta and below, where that is known: for every boundary it is.
    pub(crate) fn seq_at(&self, disk: DiskIndex, delta: DeltaId) -> Option<Seq> {
        let place = usize::from(disk.0);
        let of_checkpoints = self.checkpoints.values().filter_map(|sealed| sealed.ends.get(place).copied());
        let of_branches =
            self.branches.values().filter_map(|b| b.ends.get(place).map(|end| (end.sealed, end.sealed_seq)));
        of_checkpoints.chain(of_branches).find(|(end, _)| *end == delta).map(|(_, seq)| seq)
    }

    /// Whether the deltas of `run` are as they were when it was chosen, and still a run.
    pub(crate) fn is_run(&self, run: &Run) -> bool {
        self.runs(run.disk).iter().any(|now| now.deltas.starts_with(&run.deltas))
            && run.last().is_some_and(|last| self.boundaries(run.disk).contains(&last.delta))
    }

    /// Puts one delta, stored as `stored` says, in the place of a run. Gives what became superfluous: the run's files and
    /// every merged index that may point into them.
    pub(crate) fn replace_run(&mut self, run: &Run, stored: Stored) -> Result<Removed> {
        let wrong = || Error::new(ErrorKind::NotFound, "the deltas that were merged are gone");
        let (Some(first), Some(last)) = (run.deltas.first(), run.last()) else { return Err(wrong()) };
        let parent = self.deltas.get(&first.delta).ok_or_else(wrong)?.parent;
        let before = *self.deltas.get(&last.delta).ok_or_else(wrong)?;
        let covered: ByteLen =
            run.deltas.iter().filter_map(|e| self.deltas.get(&e.delta)).map(|d| d.covered).sum();
        let gone: BTreeSet<DeltaId> = run.deltas.iter().map(|edition| edition.delta).collect();
        let mut removed = self.remove_deltas(&gone);
        self.merged.retain(|merged| {
            let stays = merged.disk != run.disk || merged.last < first.delta || merged.first > last.delta;
            if !stays {
                removed.merged.push(*merged);
            }
            stays
        });
        let Stored { log_len, entries, covered: covered_now, .. } = stored;
        let delta =
            Delta { parent, log_len, entries, covered: covered_now, revision: run.revision(), ..before };
        self.deltas.insert(last.delta, delta);
        self.recount(run.disk, last.delta, delta.branch, covered.saturating_sub(covered_now));
        Ok(removed)
    }

    /// Whether the line that a merged index is over is the one that `before` had, as far as the image has not got it.
    pub(crate) fn has_line_of(&self, before: &Manifest, merged: &MergedIndex) -> bool {
        let floor = self.floor(merged.disk);
        if merged.last <= floor {
            return false;
        }
        let mut at = merged.last;
        while at >= merged.first && at > floor {
            let (Some(now), Some(then)) = (self.deltas.get(&at), before.deltas.get(&at)) else {
                return false;
            };
            if (now.parent, now.revision) != (then.parent, then.revision) {
                return false;
            }
            at = now.parent;
        }
        true
    }

    /// The checkpoint that ends with a delta says how much changed before it; `less` of that was counted twice.
    fn recount(&mut self, disk: DiskIndex, end: DeltaId, branch: BranchId, less: ByteLen) {
        let place = usize::from(disk.0);
        let ends_here = |ends: &[(DeltaId, Seq)]| ends.get(place).is_some_and(|(delta, _)| *delta == end);
        let mut found = self.checkpoints.values_mut();
        if let Some(sealed) = found.find(|s| s.checkpoint.branch == branch && ends_here(&s.ends)) {
            sealed.checkpoint.changed = sealed.checkpoint.changed.saturating_sub(less);
        }
    }

    /// The deltas of a disk that a merge must end with.
    fn boundaries(&self, disk: DiskIndex) -> BTreeSet<DeltaId> {
        let place = usize::from(disk.0);
        let mut boundaries: BTreeSet<DeltaId> =
            self.checkpoints.values().filter_map(|sealed| Some(sealed.ends.get(place)?.0)).collect();
        boundaries.extend(self.branches.values().filter_map(|b| Some(b.ends.get(place)?.sealed)));
        if PlantedBug::MergeCrossesPin.is_planted() {
            let pinned = self.branches.values().filter_map(|branch| self.checkpoints.get(&branch.base?));
            for end in pinned.filter_map(|sealed| sealed.ends.get(place)) {
                boundaries.remove(&end.0);
            }
            return boundaries;
        }
        boundaries.extend(self.replay.iter().filter_map(|replay| replay.floors.get(place)));
        let mut parents = BTreeSet::new();
        for delta in self.deltas.values().filter(|delta| delta.disk == disk) {
            if !parents.insert(delta.parent) {
                boundaries.insert(delta.parent);
            }
        }
        boundaries
    }
}

/// How a merged delta is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stored {
    pub log_len: ByteLen,
    pub entries: u64,
    pub covered: ByteLen,
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
