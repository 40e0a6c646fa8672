//! A raw image: byte n of the disk is byte n of the file. Also the data of a fixed VHD, which has a footer behind it.

use super::poison::{Poison, check_writable};
use super::status::{Runs, write_out_zeroes};
use blocks::{
    BlockShift, ByteLen, ByteOffset, Error, Extent, ExtentStatus, FileRange, RequestClass, Result,
    StorageFile, Volume, check_request,
};
use std::sync::Arc;

/// A disk that lies in a file from its start on.
#[derive(Debug)]
pub(super) struct RawVolume {
    file: Arc<dyn StorageFile>,
    len: ByteLen,
    writable: bool,
    poison: Poison,
}

impl RawVolume {
    /// The whole file as a disk. `Corrupt` where its length is not a multiple of 512.
    pub(super) fn open(file: Arc<dyn StorageFile>, writable: bool) -> Result<RawVolume> {
        let len = file.len()?;
        RawVolume::with_len(file, len, writable)
    }

    /// The first `len` bytes of the file as a disk.
    pub(super) fn with_len(file: Arc<dyn StorageFile>, len: ByteLen, writable: bool) -> Result<RawVolume> {
        if !len.is_aligned(BlockShift::SECTOR) {
            let context = format!("{}: a disk of {len} bytes is not a multiple of 512", file.name());
            return Err(Error::corrupt(context));
        }
        Ok(RawVolume { file, len, writable, poison: Poison::default() })
    }

    fn change(
        &self,
        offset: ByteOffset,
        len: ByteLen,
        fua: bool,
        change: impl FnOnce(Extent) -> Result<()>,
    ) -> Result<()> {
        let extent = check_request(self.len, BlockShift::SECTOR, offset, len)?;
        check_writable(self.writable, self.file.name())?;
        let Some(extent) = extent else { return Ok(()) };
        self.poison.guard(self.file.name(), || {
            change(extent)?;
            if fua { self.file.sync().map(drop) } else { Ok(()) }
        })
    }
}

impl Volume for RawVolume {
    fn len(&self) -> ByteLen {
        self.len
    }

    fn is_read_only(&self) -> bool {
        !self.writable
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], _: RequestClass) -> Result<()> {
        match check_request(self.len, BlockShift::SECTOR, offset, ByteLen::of(buffer))? {
            Some(extent) => self.file.read_at(extent.start(), buffer),
            None => Ok(()),
        }
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, _: RequestClass) -> Result<()> {
        self.change(offset, ByteLen::of(data), fua, |extent| self.file.write_at(extent.start(), data))
    }

    fn write_zeroes(&self, extent: Extent, keep_allocated: bool, fua: bool, _: RequestClass) -> Result<()> {
        self.change(extent.start(), extent.len(), fua, |extent| {
            if keep_allocated {
                return write_out_zeroes(extent, |at, zeroes| self.file.write_at(at, zeroes));
            }
            self.file.punch_hole(extent)
        })
    }

    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.write_zeroes(extent, false, fua, class)
    }

    fn flush(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.poison.guard(self.file.name(), || self.file.sync().map(drop))
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        check_request(self.len, BlockShift::SECTOR, extent.start(), extent.len())?;
        let mut runs = Runs::default();
        runs.push_stored(&*self.file, extent, extent.start())?;
        Ok(runs.into_vec())
    }

    fn file_range(&self, extent: Extent) -> Option<FileRange> {
        let file = Arc::clone(self.file.host_file()?);
        (extent.end() <= self.len.end()).then_some(FileRange { file, offset: extent.start() })
    }
}

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
