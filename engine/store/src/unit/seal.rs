//! Sealing: what is open becomes a delta with an index, and perhaps a checkpoint.
//!
//! The order is log synced, index written and synced, manifest published, acknowledged. A crash before the manifest
//! leaves an open delta whose log is whole, and an index that opening removes.

use crate::branch_disk::{BranchDisk, SealedDelta, Sealing};
use crate::unit::Unit;
use crate::unit::branch::{BranchId, DeltaId};
use crate::unit::checkpoint::{Checkpoint, CheckpointSpec};
use crate::unit::manifest::{BranchEnd, Delta, Manifest, SealedCheckpoint};
use crate::unit::space::index_len;
use crate::unit::unit::UnitState;
use blocks::{
    ByteLen, CheckpointId, DiskIndex, Durable, Error, ErrorKind, Generation, PlantedBug, Result, Seq, Synced,
    WallClock, crash_point,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Unit {
    /// Syncs and seals what is open on every disk of the branch, and records that instant as a checkpoint. Appends to
    /// the branch wait meanwhile; reads do not.
    pub fn seal(&self, branch: BranchId, spec: CheckpointSpec) -> Result<Durable<CheckpointId>> {
        self.seal_if(branch, spec, |_| Ok(()))
    }

    /// The same for a source of that generation: `Fenced`, and no checkpoint, where the unit was promoted since.
    pub fn seal_under(
        &self,
        generation: Generation,
        branch: BranchId,
        spec: CheckpointSpec,
    ) -> Result<Durable<CheckpointId>> {
        self.seal_if(branch, spec, |manifest| match manifest.generation == generation {
            true => Ok(()),
            false => {
                let (name, newer) = (&manifest.name, manifest.generation);
                let context = format!("{name}: generation {generation} seals nothing, {newer} is in charge");
                Err(Error::new(ErrorKind::Fenced, context))
            }
        })
    }

    fn seal_if(
        &self,
        branch: BranchId,
        spec: CheckpointSpec,
        may: impl Fn(&Manifest) -> Result<()>,
    ) -> Result<Durable<CheckpointId>> {
        let disks = self.branch_disks(branch)?;
        // The long part of the wait for the medium happens while appends still go on.
        if !PlantedBug::IndexBeforeData.is_planted() {
            disks.iter().try_for_each(|disk| disk.sync().map(drop))?;
        }
        crash_point("seal.synced");
        let mut state = self.lock_open()?;
        may(&state.manifest)?;
        let mut next = (*state.manifest).clone();
        let sealings = disks.iter().map(|disk| disk.begin_seal()).collect::<Result<Vec<_>>>()?;
        next.seal_deltas(branch, &sealings)?;
        let id = next.add_checkpoint(branch, spec)?;
        let synced = self.finish_seal(&mut state, next, sealings)?;
        if branch == state.manifest.main {
            self.torn_tails.store(false, Ordering::Release);
        }
        drop(state);
        self.request_merges(&disks);
        Ok(Durable::new(id, synced))
    }

    /// Seals one disk's open delta without a checkpoint, if it still is as `wanted`.
    pub(crate) fn seal_part(
        &self,
        disk: &BranchDisk,
        wanted: impl Fn(&BranchDisk) -> bool,
    ) -> Result<DeltaId> {
        let (branch, index) = (disk.identity().branch, disk.identity().disk);
        disk.sync()?;
        let mut state = self.lock_open()?;
        let mut next = (*state.manifest).clone();
        let before = next.end(branch, index)?.sealed;
        if !wanted(disk) {
            return Ok(before);
        }
        let sealing = disk.begin_seal()?;
        let Some(sealed) = sealing.sealed().map(|sealed| sealed.id) else { return Ok(before) };
        next.seal_deltas(branch, std::slice::from_ref(&sealing))?;
        self.finish_seal(&mut state, next, vec![sealing])?;
        drop(state);
        self.merges.request(&self.me, branch, index);
        Ok(sealed)
    }

    pub(super) fn branch_disks(&self, branch: BranchId) -> Result<Vec<Arc<BranchDisk>>> {
        let disks = self.manifest().disk_indexes();
        disks.map(|disk| self.disk(branch, disk)).collect()
    }

    fn request_merges(&self, disks: &[Arc<BranchDisk>]) {
        for disk in disks {
            self.merges.request(&self.me, disk.identity().branch, disk.identity().disk);
        }
    }

    fn finish_seal(
        &self,
        state: &mut UnitState,
        next: Manifest,
        sealings: Vec<Sealing<'_>>,
    ) -> Result<Synced> {
        let mut stacks = Vec::with_capacity(sealings.len());
        for sealing in &sealings {
            let Some(sealed) = sealing.sealed() else { continue };
            let disk = sealing.identity().disk;
            // An earlier attempt may have left a reader of the file that was just written anew.
            state.inventory.forget_index(disk, &next.span(sealed.id));
            state.inventory.keep_log(sealed.id, &sealed.log);
            stacks.push(state.inventory.stack(&next, disk, sealed.id)?);
        }
        crash_point("seal.indexed");
        let synced = match state.publish(self.storage(), &self.dir, next) {
            Ok(synced) => {
                crash_point("seal.published");
                synced
            }
            Err(error) => {
                if let Some(why) = &state.poison {
                    // Either version may be the published one: what is appended now might be lost.
                    sealings.into_iter().for_each(|sealing| sealing.poison(why));
                }
                return Err(error);
            }
        };
        let mut stacks = stacks.into_iter();
        for sealing in sealings {
            let identity = sealing.identity().clone();
            if let Some(sealed) = sealing.sealed() {
                self.space.add(index_len(sealed.index.entries));
            }
            if sealing.sealed().is_some()
                && let Some(stack) = stacks.next()
            {
                sealing.commit(state.manifest.end(identity.branch, identity.disk)?.open, stack);
            }
        }
        Ok(synced)
    }
}

impl Manifest {
    fn seal_deltas(&mut self, branch: BranchId, sealings: &[Sealing<'_>]) -> Result<()> {
        for sealing in sealings {
            if let Some(sealed) = sealing.sealed() {
                self.seal_delta(branch, sealing.identity().disk, sealed, sealing.last_seq())?;
            }
        }
        Ok(())
    }

    fn seal_delta(
        &mut self,
        branch: BranchId,
        disk: DiskIndex,
        sealed: &SealedDelta,
        seq: Seq,
    ) -> Result<()> {
        let end = self.end(branch, disk)?;
        let delta = Delta {
            disk,
            branch,
            parent: end.sealed,
            log_len: sealed.log_len,
            entries: sealed.index.entries,
            covered: sealed.index.covered,
            revision: 0,
        };
        self.deltas.insert(sealed.id, delta);
        let open = self.take_delta();
        self.set_end(branch, disk, BranchEnd { sealed: sealed.id, sealed_seq: seq, open, len: end.len })
    }

    fn add_checkpoint(&mut self, branch: BranchId, spec: CheckpointSpec) -> Result<CheckpointId> {
        let id = CheckpointId(self.next_checkpoint);
        self.next_checkpoint += 1;
        let ends = self.branch(branch)?.ends.iter().map(|end| (end.sealed, end.sealed_seq)).collect();
        let checkpoint = Checkpoint {
            id,
            branch,
            name: spec.name,
            consistency: spec.consistency,
            source_time: spec.source_time,
            server_time: WallClock::now(),
            frozen_ms: spec.frozen_ms,
            generation: self.generation,
            lens: self.branch(branch)?.ends.iter().map(|end| end.len).collect(),
            seqs: spec.seqs,
            excluded: spec.excluded,
            changed: self.changed_since_checkpoint(branch)?,
            protected_until: WallClock(0),
        };
        self.checkpoints.insert(id, SealedCheckpoint { checkpoint, ends });
        Ok(id)
    }

    fn changed_since_checkpoint(&self, branch: BranchId) -> Result<ByteLen> {
        let mut of_branch = self.checkpoints.values().filter(|sealed| sealed.checkpoint.branch == branch);
        let before = of_branch.next_back().or(match self.branch(branch)?.base {
            Some(base) => Some(self.sealed(base)?),
            None => None,
        });
        let mut changed = ByteLen::ZERO;
        for (disk, end) in self.disk_indexes().zip(&self.branch(branch)?.ends) {
            let until = before.map_or(DeltaId::IMAGE, |before| before.ends[usize::from(disk.0)].0);
            let mut at = end.sealed;
            while at > until
                && let Some(delta) = self.deltas.get(&at)
            {
                changed += delta.covered;
                at = delta.parent;
            }
        }
        Ok(changed)
    }
}
