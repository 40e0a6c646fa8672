//! What a session's disk tells about itself over NBD besides its bytes: what differs from any checkpoint of the
//! machine, and which layer a range is in. Answered from the indexes, never from data.

use crate::session::live::LiveDisk;
use crate::session::record::RecordKeeper;
use blocks::{Allocation, CheckpointId, Error, ErrorKind, Extent, ExtentSet, Piece, Result, Volume};
use nbd_server::{Metadata, MetadataRun};
use std::sync::Arc;
use store::{Point, Unit};

/// The name of the layers' context.
const DEPTH: &str = "qemu:allocation-depth";
/// Followed by the number of a checkpoint.
const SINCE: &str = "qemu:dirty-bitmap:since-";
/// A bitmap's flag for a range that may have changed.
const DIRTY: u32 = 1;
/// Depth: nothing is stored.
const NOWHERE: u32 = 0;
/// Depth: the session wrote it.
const SESSION: u32 = 1;
/// Depth: it comes from the checkpoint that the session started at.
const BASE: u32 = 2;

/// The contexts of one disk of a session.
pub(crate) struct DiskChanges {
    unit: Arc<Unit>,
    record: Arc<RecordKeeper>,
    disk: Arc<LiveDisk>,
}

impl DiskChanges {
    /// About this disk of the session that `record` describes.
    pub fn new(unit: Arc<Unit>, record: Arc<RecordKeeper>, disk: Arc<LiveDisk>) -> DiskChanges {
        DiskChanges { unit, record, disk }
    }

    /// What may differ between the checkpoint and what a guest reads now. After a pivot the branch no longer takes the
    /// guest's writes; the dirty map has had them since.
    fn since(&self, checkpoint: CheckpointId) -> Result<ExtentSet> {
        let index = self.disk.index;
        let known = self.unit.checkpoint(checkpoint).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("checkpoint {} can no longer be offered", checkpoint.0))
        })?;
        let map = self.disk.map();
        let head = Point::Head(self.record.get().branch());
        let mut changed = self.unit.difference(Point::Checkpoint(checkpoint), head, index)?;
        if let Some(map) = map {
            changed.union(&map.blocks().extents(self.disk.len()));
        }
        let len_then = known.lens.get(usize::from(index.0)).copied().unwrap_or_default();
        if let Some(grown) = Extent::between(len_then.end(), self.disk.len().end()) {
            changed.insert(grown, ());
        }
        Ok(changed)
    }

    fn depth(&self, extent: Extent) -> Result<Vec<MetadataRun>> {
        if self.disk.map().is_some() {
            return self.allocated(extent, SESSION);
        }
        let own = self.disk.branch.changed_since_fork()?;
        let mut runs = Vec::new();
        for piece in own.lookup(extent) {
            match piece {
                Piece::Data(extent, ()) => runs.push(MetadataRun { extent, flags: SESSION }),
                Piece::Hole(extent) => {
                    runs.extend(self.allocated(extent, BASE)?);
                    if runs.last().is_none_or(|run| run.extent.end() != extent.end()) {
                        return Ok(runs);
                    }
                }
            }
        }
        Ok(runs)
    }

    /// `flags` where anything is stored; may stop early.
    fn allocated(&self, extent: Extent, flags: u32) -> Result<Vec<MetadataRun>> {
        let runs = self.disk.volume.status(extent)?.into_iter();
        let flags = |allocation| if allocation == Allocation::Hole { NOWHERE } else { flags };
        Ok(runs.map(|run| MetadataRun { extent: run.extent, flags: flags(run.allocation) }).collect())
    }
}

impl Metadata for DiskChanges {
    fn contexts(&self) -> Vec<String> {
        let bitmaps =
            self.unit.checkpoints().into_iter().map(|checkpoint| format!("{SINCE}{}", checkpoint.id.0));
        [DEPTH.to_owned()].into_iter().chain(bitmaps).collect()
    }

    fn runs(&self, context: &str, extent: Extent) -> Result<Vec<MetadataRun>> {
        // Answers are exact to the sector, and so are questions about them.
        let extent = extent.align_out(self.disk.volume.alignment());
        if context == DEPTH {
            return self.depth(extent);
        }
        let checkpoint = context.strip_prefix(SINCE).and_then(|number| number.parse().ok()).map(CheckpointId);
        let checkpoint = checkpoint
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no context '{context}'")))?;
        let changed = self.since(checkpoint)?;
        let run = |piece| match piece {
            Piece::Data(extent, ()) => MetadataRun { extent, flags: DIRTY },
            Piece::Hole(extent) => MetadataRun { extent, flags: 0 },
        };
        Ok(changed.lookup(extent).map(run).collect())
    }
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;
