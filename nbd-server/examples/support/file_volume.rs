//! A plain file as a volume, for programs that are measured.

use blocks::{
    Allocation, ByteLen, ByteOffset, Error, Extent, ExtentStatus, FileRange, RequestClass, Result, Volume,
    check_request,
};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A file as it is, in the page cache.
pub struct FileVolume {
    file: Arc<File>,
    len: ByteLen,
}

fn failed(error: std::io::Error) -> Error {
    Error::io("the file", error)
}

impl FileVolume {
    /// Opens the file for reading and writing.
    pub fn open(path: &str) -> Result<FileVolume> {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        let len = ByteLen::new(file.metadata().map_err(failed)?.len());
        Ok(FileVolume { file: Arc::new(file), len })
    }

    fn check(&self, offset: ByteOffset, len: ByteLen) -> Result<()> {
        check_request(self.len, self.alignment(), offset, len).map(|_| ())
    }
}

impl Volume for FileVolume {
    fn len(&self) -> ByteLen {
        self.len
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], _: RequestClass) -> Result<()> {
        self.check(offset, ByteLen::of(buffer))?;
        self.file.read_exact_at(buffer, offset.get()).map_err(failed)
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, _: RequestClass) -> Result<()> {
        self.check(offset, ByteLen::of(data))?;
        self.file.write_all_at(data, offset.get()).map_err(failed)?;
        if fua { self.flush() } else { Ok(()) }
    }

    fn write_zeroes(&self, extent: Extent, _: bool, fua: bool, class: RequestClass) -> Result<()> {
        let zeroes = vec![0; 1 << 20];
        for piece in extent.split(ByteLen::of(&zeroes)) {
            self.write_at(piece.start(), &zeroes[..piece.len().as_usize()], false, class)?;
        }
        if fua { self.flush() } else { Ok(()) }
    }

    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.write_zeroes(extent, false, fua, class)
    }

    fn flush(&self) -> Result<()> {
        self.file.sync_data().map_err(failed)
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        self.check(extent.start(), extent.len())?;
        Ok(vec![ExtentStatus { extent, allocation: Allocation::Data }])
    }

    fn file_range(&self, extent: Extent) -> Option<FileRange> {
        Some(FileRange { file: Arc::clone(&self.file), offset: extent.start() })
    }
}
