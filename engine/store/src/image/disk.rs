//! What every image does with a request before its format has to know of it.

use super::poison::{Poison, check_writable};
use super::status::{Runs, write_out_zeroes};
use blocks::{
    Arrived, BlockShift, ByteLen, ByteOffset, Extent, ExtentStatus, FileRange, RequestClass, Result, Volume,
    check_request,
};
use std::fmt::Debug;

/// A format's part of a volume. What it is asked for lies on the disk and is aligned; changes come only where the image
/// was opened for writing, and no more of them after one has failed.
pub(super) trait Disk: Send + Sync + Debug {
    /// The file's name, for messages.
    fn name(&self) -> &str;

    /// The disk's length.
    fn len(&self) -> ByteLen;

    /// What requests must be multiples of.
    fn alignment(&self) -> BlockShift {
        BlockShift::SECTOR
    }

    /// Fills the buffer, which is as long as the extent.
    fn read(&self, extent: Extent, buffer: &mut [u8]) -> Result<()>;

    /// Writes the data, which is as long as the extent.
    fn write(&self, extent: Extent, data: &[u8]) -> Result<()>;

    /// Makes the extent read as zeroes and gives back its room where it can.
    fn punch(&self, extent: Extent) -> Result<()>;

    /// Puts on the medium what was written before, with all that leads to it.
    fn sync(&self) -> Result<()>;

    /// The same, and leaves the file as others like to find it.
    fn flush(&self) -> Result<()> {
        self.sync()
    }

    /// Adds what the extent holds; may stop early when `runs` is full.
    fn status(&self, extent: Extent, runs: &mut Runs) -> Result<()>;

    /// As [`Volume::file_range`], for an extent on the disk.
    fn file_range(&self, _extent: Extent) -> Option<FileRange> {
        None
    }

    /// As [`Volume::arrived_len_min`].
    fn arrived_len_min(&self) -> Option<ByteLen> {
        None
    }

    /// As [`Volume::write_arrived`], for an extent on the disk.
    fn write_arrived(&self, _extent: Extent, _from: &mut dyn Arrived) -> Result<bool> {
        Ok(false)
    }

    /// As [`Volume::share`], for an extent on the disk.
    fn share(&self, _extent: Extent, _from: &FileRange) -> Result<bool> {
        Ok(false)
    }

    /// What is done last, where the image was open for writing and nothing has failed.
    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A format's disk as a volume: requests are checked, and after a failed write or sync nobody knows what the file holds,
/// so nothing more is acknowledged until it is reopened.
#[derive(Debug)]
pub(super) struct DiskVolume<D: Disk> {
    disk: D,
    writable: bool,
    poison: Poison,
}

impl<D: Disk> DiskVolume<D> {
    /// The disk as a volume.
    pub(super) fn new(disk: D, writable: bool) -> DiskVolume<D> {
        DiskVolume { disk, writable, poison: Poison::default() }
    }

    fn check(&self, offset: ByteOffset, len: ByteLen) -> Result<Option<Extent>> {
        check_request(self.disk.len(), self.disk.alignment(), offset, len)
    }

    fn change(
        &self,
        offset: ByteOffset,
        len: ByteLen,
        fua: bool,
        change: impl FnOnce(Extent) -> Result<()>,
    ) -> Result<()> {
        let extent = self.check(offset, len)?;
        check_writable(self.writable, self.disk.name())?;
        let Some(extent) = extent else { return Ok(()) };
        self.poison.guard(self.disk.name(), || {
            change(extent)?;
            if fua { self.disk.sync() } else { Ok(()) }
        })
    }
}

impl<D: Disk> Volume for DiskVolume<D> {
    fn len(&self) -> ByteLen {
        self.disk.len()
    }

    fn is_read_only(&self) -> bool {
        !self.writable
    }

    fn alignment(&self) -> BlockShift {
        self.disk.alignment()
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], _: RequestClass) -> Result<()> {
        match self.check(offset, ByteLen::of(buffer))? {
            Some(extent) => self.disk.read(extent, buffer),
            None => Ok(()),
        }
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, _: RequestClass) -> Result<()> {
        self.change(offset, ByteLen::of(data), fua, |extent| self.disk.write(extent, data))
    }

    fn write_zeroes(&self, extent: Extent, keep_allocated: bool, fua: bool, _: RequestClass) -> Result<()> {
        self.change(extent.start(), extent.len(), fua, |extent| {
            if !keep_allocated {
                return self.disk.punch(extent);
            }
            write_out_zeroes(extent, |at, zeroes| {
                self.disk.write(Extent::new(at, ByteLen::of(zeroes))?, zeroes)
            })
        })
    }

    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.write_zeroes(extent, false, fua, class)
    }

    fn flush(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.poison.guard(self.disk.name(), || self.disk.flush())
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        self.check(extent.start(), extent.len())?;
        let mut runs = Runs::default();
        self.disk.status(extent, &mut runs)?;
        Ok(runs.into_vec())
    }

    fn file_range(&self, extent: Extent) -> Option<FileRange> {
        if extent.end() <= self.disk.len().end() { self.disk.file_range(extent) } else { None }
    }

    fn arrived_len_min(&self) -> Option<ByteLen> {
        if self.writable { self.disk.arrived_len_min() } else { None }
    }

    fn write_arrived(&self, extent: Extent, from: &mut dyn Arrived, _: RequestClass) -> Result<bool> {
        let mut written = false;
        self.change(extent.start(), extent.len(), false, |extent| {
            written = self.disk.write_arrived(extent, from)?;
            Ok(())
        })?;
        Ok(written)
    }

    fn share(&self, extent: Extent, from: &FileRange) -> Result<bool> {
        let mut shared = false;
        self.change(extent.start(), extent.len(), false, |extent| {
            shared = self.disk.share(extent, from)?;
            Ok(())
        })?;
        Ok(shared)
    }
}

impl<D: Disk> Drop for DiskVolume<D> {
    fn drop(&mut self) {
        if !self.writable {
            return;
        }
        let disk = &mut self.disk;
        let name = disk.name().to_owned();
        if let Err(error) = self.poison.guard(&name, || disk.close()) {
            tracing::debug!(%error, "what the image keeps for being written is not given back");
        }
    }
}
