//! Which checkpoints and branches need what is damaged.

use super::walk::Scrubber;
use crate::plan::{PlanPiece, PlanSource};
use crate::unit::branch::{BranchId, DeltaId};
use blocks::{ByteOffset, CheckpointId, DiskIndex, Extent};
use std::collections::BTreeMap;

/// What cannot be relied on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Damaged {
    /// The payload at that offset of the delta's log.
    Payload(DeltaId, ByteOffset),
    /// The whole log of a delta.
    Log(DeltaId),
    /// A block of the image.
    Image,
    /// The index of those deltas.
    Index(DeltaId, DeltaId),
}

/// Who is touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    pub checkpoints: Vec<CheckpointId>,
    pub branches: Vec<BranchId>,
}

impl Scrubber<'_> {
    /// Whose view of `extent` leans on what is damaged. An index that cannot be read counts for every line that asks it.
    pub(super) fn touched(&mut self, disk: DiskIndex, extent: Option<Extent>, damaged: Damaged) -> Touched {
        let position = usize::from(disk.0);
        let manifest = std::sync::Arc::clone(&self.manifest);
        // Many checkpoints end with the same delta of this disk: each end is asked once.
        let mut known: BTreeMap<DeltaId, bool> = BTreeMap::new();
        let mut leans = |end: DeltaId| match known.get(&end) {
            Some(known) => *known,
            None => {
                let leans = self.leans(disk, end, extent, damaged);
                known.insert(end, leans);
                leans
            }
        };
        let ends = |ends: &[(DeltaId, blocks::Seq)]| ends.get(position).map(|end| end.0);
        let checkpoints = manifest.checkpoints.iter();
        let checkpoints = checkpoints
            .filter(|(_, sealed)| ends(&sealed.ends).is_some_and(&mut leans))
            .map(|(id, _)| *id)
            .collect();
        let branches = manifest.branches.iter();
        let branches = branches
            .filter(|(_, branch)| branch.ends.get(position).is_some_and(|end| leans(end.sealed)))
            .map(|(id, _)| *id)
            .collect();
        Touched { checkpoints, branches }
    }

    fn leans(&mut self, disk: DiskIndex, end: DeltaId, extent: Option<Extent>, damaged: Damaged) -> bool {
        if let Damaged::Index(first, last) = damaged {
            let cover = self.manifest.cover(disk, end);
            return cover.iter().any(|span| (span.first, span.last) == (first, last));
        }
        if let Damaged::Log(delta) = damaged {
            return self.manifest.line(disk, end).is_ok_and(|line| line.contains(&delta));
        }
        let Some(extent) = extent else { return false };
        let manifest = std::sync::Arc::clone(&self.manifest);
        let plan = self.inventory.stack(&manifest, disk, end).and_then(|stack| stack.plan(extent));
        match plan {
            Ok(plan) => plan.pieces().iter().any(|piece| self.is_on(piece, disk, damaged)),
            Err(_) => true,
        }
    }

    fn is_on(&mut self, piece: &PlanPiece, disk: DiskIndex, damaged: Damaged) -> bool {
        match (&piece.source, damaged) {
            (PlanSource::Image, Damaged::Image) => true,
            (PlanSource::Log(log, location), Damaged::Payload(delta, at)) => {
                location.payload == at
                    && log.id() == self.inventory.log(disk, self.manifest.edition(delta)).id()
            }
            _ => false,
        }
    }
}
