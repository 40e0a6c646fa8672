//! A raw image: byte n of the disk is byte n of the file. Also the data of a fixed VHD, which has a footer behind it.

use super::disk::Disk;
use super::status::Runs;
use blocks::{Arrived, BlockShift, ByteLen, Error, Extent, FileRange, Result, StorageFile, Turns};
use std::sync::Arc;

/// A disk that lies in a file from its start on.
#[derive(Debug)]
pub(super) struct RawDisk {
    file: Arc<dyn StorageFile>,
    len: ByteLen,
    /// The kernel orders writes of one file, but not what it puts into a file's pages through a mapping: two of those, or one
    /// of those and a write or a hole, could leave a sector that is partly from each.
    turns: Turns,
}

impl RawDisk {
    /// The whole file as a disk. `Corrupt` where its length is not a multiple of 512.
    pub(super) fn open(file: Arc<dyn StorageFile>) -> Result<RawDisk> {
        let len = file.len()?;
        RawDisk::with_len(file, len)
    }

    /// The first `len` bytes of the file as a disk.
    pub(super) fn with_len(file: Arc<dyn StorageFile>, len: ByteLen) -> Result<RawDisk> {
        if !len.is_aligned(BlockShift::SECTOR) {
            let context = format!("{}: a disk of {len} bytes is not a multiple of 512", file.name());
            return Err(Error::corrupt(context));
        }
        Ok(RawDisk { file, len, turns: Turns::default() })
    }
}

impl Disk for RawDisk {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn len(&self) -> ByteLen {
        self.len
    }

    fn read(&self, extent: Extent, buffer: &mut [u8]) -> Result<()> {
        self.file.read_at(extent.start(), buffer)
    }

    fn write(&self, extent: Extent, data: &[u8]) -> Result<()> {
        let _turn = self.turns.take(extent);
        self.file.write_at(extent.start(), data)
    }

    fn punch(&self, extent: Extent) -> Result<()> {
        let _turn = self.turns.take(extent);
        self.file.punch_hole(extent)
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map(drop)
    }

    fn status(&self, extent: Extent, runs: &mut Runs) -> Result<()> {
        runs.push_stored(&*self.file, extent, extent.start())
    }

    fn file_range(&self, extent: Extent) -> Option<FileRange> {
        let file = Arc::clone(self.file.host_file()?);
        Some(FileRange { file, offset: extent.start() })
    }

    fn arrived_len_min(&self) -> Option<ByteLen> {
        self.file.arrived_len_min()
    }

    fn write_arrived(&self, extent: Extent, from: &mut dyn Arrived) -> Result<bool> {
        let _turn = self.turns.take(extent);
        self.file.write_arrived(extent, from)
    }

    fn share(&self, extent: Extent, from: &FileRange) -> Result<bool> {
        let _turn = self.turns.take(extent);
        self.file.share(extent.start(), from, extent.len())
    }
}

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
