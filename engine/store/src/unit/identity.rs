//! The hashes of a checkpoint's blocks, kept so that what is known equal need not be read.

use crate::identity::{BlockHashes, HashTable, lock};
use crate::index::reader::IndexReader;
use crate::scrub::own_span;
use crate::unit::Unit;
use crate::unit::branch::{BranchId, DeltaId};
use crate::unit::files;
use crate::unit::manifest::Manifest;
use blocks::{BlockShift, ByteLen, CheckpointId, DiskIndex, ExtentSet, Result};
use std::sync::Arc;

impl Unit {
    /// What is known of the hashes of a disk's 64 KiB blocks at a checkpoint, and a place for what is found out. Takes the
    /// kept hashes to that state where they are of an earlier one of its line, which costs the indexes of the deltas
    /// between; where they are of no such state it begins anew. Hashes of a later state stay as they are, and none are known
    /// then.
    pub fn block_hashes(&self, at: CheckpointId, disk: DiskIndex) -> Result<BlockHashes> {
        let manifest = Arc::clone(&self.lock_open()?.manifest);
        manifest.disk_spec(disk)?;
        let (sealed, place) = (manifest.sealed(at)?, usize::from(disk.0));
        let state = (sealed.ends[place].0, sealed.checkpoint.lens[place]);
        self.take_hashes_to(disk, state, true)?;
        Ok(BlockHashes::new(&self.hashes[place], state))
    }

    /// The same for what is sealed of a branch, with the newest delta of that: right for the branch's newest state wherever
    /// [`crate::BranchDisk::changed_since`] that delta has nothing.
    pub fn head_hashes(&self, branch: BranchId, disk: DiskIndex) -> Result<(BlockHashes, DeltaId)> {
        let manifest = Arc::clone(&self.lock_open()?.manifest);
        let end = manifest.end(branch, disk)?;
        let state = (end.sealed, end.len);
        self.take_hashes_to(disk, state, true)?;
        Ok((BlockHashes::new(&self.hashes[usize::from(disk.0)], state), end.sealed))
    }

    /// Before the deltas up to `floor` go: what they changed could not be told any more.
    pub(super) fn save_hashes(&self, disk: DiskIndex, floor: DeltaId, len: ByteLen) {
        if let Err(error) = self.take_hashes_to(disk, (floor, len), false) {
            tracing::warn!("{}: hashes of blocks of disk {disk} are given up: {error}", self.dir());
            *lock(&self.hashes[usize::from(disk.0)]) = None;
            // Where it stays, it is of a state that no line has.
            let _ = self.storage().remove(&files::hashes_name(self.dir(), disk));
        }
    }

    /// The table is locked before the unit, and the unit only to find the indexes, not while they are read.
    fn take_hashes_to(&self, disk: DiskIndex, (end, len): (DeltaId, ByteLen), make: bool) -> Result<()> {
        let name = files::hashes_name(self.dir(), disk);
        let mut kept = lock(&self.hashes[usize::from(disk.0)]);
        let manifest = Arc::clone(&self.lock_open()?.manifest);
        let owner = (manifest.salt, len);
        if kept.is_none() {
            *kept = HashTable::open(self.storage(), &name, owner.0)?;
        }
        let of = kept.as_ref().map(HashTable::of);
        let known_len = kept.as_ref().map(HashTable::len);
        // Of a disk that has grown, the longer state is the later one.
        let is_there = of == Some(end) && known_len >= Some(len);
        if is_there || of.is_none() && !make || of.is_some_and(|of| is_later(&manifest, disk, of, end)) {
            return Ok(());
        }
        let line = manifest.line(disk, end)?;
        let is_below = |of: DeltaId| of == manifest.floor(disk) || line.contains(&of);
        let changed = of.filter(|of| is_below(*of)).and_then(|of| {
            let between: Vec<DeltaId> = line.iter().copied().filter(|delta| *delta > of).collect();
            // Deltas that were thinned meanwhile cannot tell any more: then it begins anew.
            self.changed_blocks(&manifest, disk, &between).ok()
        });
        match (kept.as_mut(), changed) {
            (Some(table), Some(changed)) if table.len() <= len => {
                table.advance(end, &changed)?;
                if table.len() < len { table.grow(len) } else { Ok(()) }
            }
            _ => {
                *kept = Some(HashTable::create(self.storage(), &name, owner, end)?);
                self.storage().sync_dir(&files::disk_dir(self.dir(), disk)).map(drop)
            }
        }
    }

    /// The blocks of those deltas, whole.
    fn changed_blocks(&self, manifest: &Manifest, disk: DiskIndex, deltas: &[DeltaId]) -> Result<ExtentSet> {
        let mut changed = ExtentSet::new();
        for delta in deltas {
            let span = own_span(manifest.edition(*delta));
            let reader: Arc<IndexReader> = self.lock_open()?.inventory.reader(manifest.salt, disk, &span)?;
            let mut cursor = reader.cursor();
            while let Some(entry) = cursor.next()? {
                changed.insert(entry.extent.align_out(BlockShift::KIB_64), ());
            }
        }
        Ok(changed)
    }
}

/// Whether `of` lies behind `end` on a line.
fn is_later(manifest: &Manifest, disk: DiskIndex, of: DeltaId, end: DeltaId) -> bool {
    let is_known = manifest.deltas.get(&of).is_some_and(|delta| delta.disk == disk);
    is_known
        && of > end
        && manifest.line(disk, of).is_ok_and(|line| end == manifest.floor(disk) || line.contains(&end))
}
