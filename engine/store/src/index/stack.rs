//! What lies under a delta: sealed indexes, the newest first, then the image.

use super::entry::Entry;
use super::merge::Merge;
use super::reader::IndexReader;
use crate::plan::{Plan, PlanPiece, PlanPieces, PlanSource};
use crate::stored_file::StoredFile;
use crate::unit::branch::DeltaId;
use blocks::{Error, Extent, Result, Volume};
use smallvec::{SmallVec, smallvec};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Where nothing has been found yet.
pub(crate) type Holes = SmallVec<[Extent; 2]>;

/// One line of descent down to the image, as it was when this was made. Whoever holds it keeps its files.
pub(crate) struct Stack {
    /// The newest first.
    indexes: Vec<Arc<IndexReader>>,
    logs: BTreeMap<DeltaId, Arc<StoredFile>>,
    /// What deltas up to this one wrote is in the image.
    floor: DeltaId,
    image: Arc<dyn Volume>,
}

impl Stack {
    /// `indexes` cover the deltas behind `floor`, the newest first; `logs` has the log of each.
    pub(crate) fn new(
        indexes: Vec<Arc<IndexReader>>,
        logs: BTreeMap<DeltaId, Arc<StoredFile>>,
        floor: DeltaId,
        image: Arc<dyn Volume>,
    ) -> Stack {
        Stack { indexes, logs, floor, image }
    }

    pub(crate) fn image(&self) -> &dyn Volume {
        &*self.image
    }

    /// How many indexes a lookup asks at most.
    pub(crate) fn depth(&self) -> usize {
        self.indexes.len()
    }

    /// The plan for a range of the disk.
    pub(crate) fn plan(&self, range: Extent) -> Result<Plan> {
        let mut pieces = PlanPieces::new();
        self.resolve(smallvec![range], &mut pieces)?;
        Ok(Plan::new(pieces))
    }

    /// Adds to `pieces` where the bytes of `holes`, which are in order and disjoint, live.
    pub(crate) fn resolve(&self, mut holes: Holes, pieces: &mut PlanPieces) -> Result<()> {
        for index in &self.indexes {
            if holes.is_empty() {
                return Ok(());
            }
            let mut left = Holes::new();
            for hole in holes {
                let mut at = hole.start();
                let mut missing = None;
                index.lookup(hole, |entry| {
                    left.extend(Extent::between(at, entry.extent.start()));
                    at = entry.extent.end();
                    match self.piece(&entry) {
                        Some(piece) => pieces.push(piece),
                        None => missing = Some(entry.delta),
                    }
                })?;
                if let Some(delta) = missing {
                    let context = format!("an index names delta {delta}, which is not below it");
                    return Err(Error::corrupt(context));
                }
                left.extend(Extent::between(at, hole.end()));
            }
            holes = left;
        }
        let from_image = |extent| PlanPiece { extent, source: PlanSource::Image };
        pieces.extend(holes.into_iter().map(from_image));
        Ok(())
    }

    /// Every entry of the stack, the newest for each byte, in order.
    pub(crate) fn merge(&self) -> Result<Merge> {
        Merge::new(&self.indexes, self.floor)
    }

    pub(crate) fn log(&self, delta: DeltaId) -> Option<&Arc<StoredFile>> {
        self.logs.get(&delta)
    }

    /// `None`: the entry names a delta that is not in this line.
    fn piece(&self, entry: &Entry) -> Option<PlanPiece> {
        if entry.delta <= self.floor {
            return Some(PlanPiece { extent: entry.extent, source: PlanSource::Image });
        }
        Some(PlanPiece::at(entry.extent, entry.location, self.logs.get(&entry.delta)?))
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stack of {} indexes over {} deltas, behind {}", self.depth(), self.logs.len(), self.floor)
    }
}
