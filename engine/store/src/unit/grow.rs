//! A disk that has become longer.
//!
//! Only the manifest changes: the main branch's disk is longer, and what lies behind the old end reads as zeroes until it is
//! written. Checkpoints and other branches keep the length that they have. The image follows when it is consolidated up to
//! a checkpoint that is longer, so here it is only asked whether it can.

use crate::unit::Unit;
use blocks::{BlockShift, ByteLen, Durable, Error, ErrorKind, Result, crash_point};

impl Unit {
    /// Whether [`Unit::grow`] can give the disks these lengths. `Unsupported` where an image cannot hold one of them: then
    /// the error names its bound; `InvalidInput` for another number of disks, one that would be shorter, and a length that
    /// is not whole sectors.
    pub fn check_growth(&self, lens: &[ByteLen]) -> Result<()> {
        let state = self.lock_open()?;
        let wrong = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
        let disks = &state.manifest.disks;
        if lens.len() != disks.len() {
            return wrong(format!("{} has {} disks, not {}", state.manifest.name, disks.len(), lens.len()));
        }
        for (index, (disk, len)) in state.manifest.disk_indexes().zip(disks.iter().zip(lens)) {
            if *len < disk.len || !len.is_aligned(BlockShift::SECTOR) {
                return wrong(format!("disk {index} of {} bytes cannot become {len} bytes long", disk.len));
            }
            if *len > disk.len {
                let image = state.inventory.image(index);
                image.check_growth(*len).map_err(|error| error.context(format!("disk {index}")))?;
            }
        }
        Ok(())
    }

    /// The disks of the main branch have these lengths from now on, one for each, none shorter than before; what is new
    /// reads as zeroes. All of them or, after an error, none. Only while nobody appends, since a checkpoint that is sealed
    /// afterwards has the new length. Errors as [`Unit::check_growth`]; those of publishing.
    pub fn grow(&self, lens: &[ByteLen]) -> Result<Durable<()>> {
        self.check_growth(lens)?;
        let mut state = self.lock_open()?;
        let mut next = (*state.manifest).clone();
        next.grow(lens)?;
        let main = next.main;
        let synced = state.publish(self.storage(), &self.dir, next)?;
        crash_point("grow.published");
        for ((branch, disk), branch_disk) in &state.disks {
            if *branch == main {
                branch_disk.grow(state.manifest.end(main, *disk)?.len);
            }
        }
        Ok(Durable::new((), synced))
    }
}
