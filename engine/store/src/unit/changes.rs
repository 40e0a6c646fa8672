//! What changed between two states, from the indexes alone; and the change of the main branch.

use crate::index::reader::IndexReader;
use crate::unit::Unit;
use crate::unit::branch::{BranchId, DeltaId, Point};
use crate::unit::unit::UnitState;
use blocks::{BlockShift, ByteLen, DiskIndex, Error, ErrorKind, Extent, ExtentSet, Result};
use std::sync::Arc;

impl Unit {
    /// What may differ between two states of a disk: all that is in deltas which only one of them has. Costs what the
    /// changes cost, not what the disk does. Exact to the sector, or in blocks of 64 KiB where that would be more than
    /// 262,144 extents.
    pub fn difference(&self, a: Point, b: Point, disk: DiskIndex) -> Result<ExtentSet> {
        let mut state = self.lock_open()?;
        state.manifest.disk_spec(disk)?;
        if a == b {
            self.resolve_point(&state, a, disk)?;
            return Ok(ExtentSet::new());
        }
        let (a_end, a_open) = self.resolve_point(&state, a, disk)?;
        let (b_end, b_open) = self.resolve_point(&state, b, disk)?;
        let deltas = state.manifest.line_difference(disk, a_end, b_end)?;
        let len = self.len_at(&state, a, disk)?.max(self.len_at(&state, b, disk)?);
        let mut changed = Changes::new(len);
        let readers = delta_readers(&mut state, disk, &deltas)?;
        drop(state);
        changed.add_all(&a_open);
        changed.add_all(&b_open);
        changed.add_entries(&readers)?;
        Ok(changed.set)
    }

    /// Makes `branch`, which starts from the main branch, the main branch. What the old one has beyond that becomes a
    /// superseded branch, whose number (the old main branch's) is returned; it pins the fork until it is dropped.
    pub fn adopt(&self, branch: BranchId) -> Result<BranchId> {
        let main = self.main_branch();
        for disk in self.branch_disks(main)?.into_iter().chain(self.branch_disks(branch)?) {
            self.seal_part(&disk, |_| true)?;
        }
        let mut state = self.lock_open()?;
        let mut next = (*state.manifest).clone();
        if next.main != main {
            let context = format!("{}: the main branch has just changed", next.name);
            return Err(Error::new(ErrorKind::Busy, context));
        }
        let superseded = next.adopt(branch)?;
        state.publish(self.storage(), &self.dir, next)?;
        Ok(superseded)
    }

    /// What a branch's own deltas behind `after` have on one disk, the open one included.
    pub(crate) fn own_changes(&self, branch: BranchId, disk: DiskIndex, after: DeltaId) -> Result<ExtentSet> {
        let mut state = self.lock_open()?;
        let mut deltas = state.manifest.own_line(branch, disk)?;
        deltas.retain(|delta| *delta > after);
        let (_, open) = self.resolve_point(&state, Point::Head(branch), disk)?;
        let mut changed = Changes::new(state.manifest.end(branch, disk)?.len);
        let readers = delta_readers(&mut state, disk, &deltas)?;
        drop(state);
        changed.add_all(&open);
        changed.add_entries(&readers)?;
        Ok(changed.set)
    }

    /// How long a disk is in that state.
    fn len_at(&self, state: &UnitState, point: Point, disk: DiskIndex) -> Result<ByteLen> {
        match point {
            Point::Checkpoint(id) => Ok(state.manifest.sealed(id)?.checkpoint.lens[usize::from(disk.0)]),
            Point::Head(branch) => Ok(state.manifest.end(branch, disk)?.len),
        }
    }

    /// The newest sealed delta of that state, and what is not sealed of it.
    fn resolve_point(
        &self,
        state: &UnitState,
        point: Point,
        disk: DiskIndex,
    ) -> Result<(DeltaId, ExtentSet)> {
        match point {
            Point::Checkpoint(id) => {
                Ok((state.manifest.sealed(id)?.ends[usize::from(disk.0)].0, ExtentSet::new()))
            }
            Point::Head(branch) => {
                let end = state.manifest.end(branch, disk)?;
                let open = state.disks.get(&(branch, disk)).map(|disk| disk.open_changes());
                Ok((end.sealed, open.unwrap_or_default()))
            }
        }
    }
}

pub(super) fn delta_readers(
    state: &mut UnitState,
    disk: DiskIndex,
    deltas: &[DeltaId],
) -> Result<Vec<Arc<IndexReader>>> {
    let manifest = Arc::clone(&state.manifest);
    let mut reader = |delta: &DeltaId| state.inventory.reader(manifest.salt, disk, &manifest.span(*delta));
    deltas.iter().map(&mut reader).collect()
}

/// How many extents a set of changes has at most before it is kept in whole blocks.
const EXTENTS_MAX: usize = 256 << 10;
/// The blocks: what is hashed, and what travels.
const GRAIN: BlockShift = BlockShift::KIB_64;

/// What changed: exact while that is few extents, else in whole blocks, so that memory goes with the blocks of the disk.
struct Changes {
    set: ExtentSet,
    in_blocks: bool,
    disk: ByteLen,
}

impl Changes {
    fn new(disk: ByteLen) -> Changes {
        Changes { set: ExtentSet::new(), in_blocks: false, disk }
    }

    fn add(&mut self, extent: Extent) {
        if !self.in_blocks && self.set.extents() >= EXTENTS_MAX {
            self.in_blocks = true;
            let exact = std::mem::take(&mut self.set);
            exact.iter().for_each(|(extent, ())| self.add(extent));
        }
        let whole = if self.in_blocks { self.blocks_of(extent) } else { extent };
        self.set.insert(whole, ());
    }

    fn blocks_of(&self, extent: Extent) -> Extent {
        let whole = extent.align_out(GRAIN);
        // The last block of a disk may be short.
        Extent::between(whole.start(), whole.end().min(self.disk.end())).unwrap_or(extent)
    }

    fn add_all(&mut self, extents: &ExtentSet) {
        extents.iter().for_each(|(extent, ())| self.add(extent));
    }

    fn add_entries(&mut self, readers: &[Arc<IndexReader>]) -> Result<()> {
        for reader in readers {
            let mut cursor = reader.cursor();
            while let Some(entry) = cursor.next()? {
                self.add(entry.extent);
            }
        }
        Ok(())
    }
}
