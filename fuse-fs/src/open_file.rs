//! One file over any volume: the core that every tree serves.

use crate::landing::{PAYLOAD_BYTES_MAX, Payload};
use blocks::{BlockShift, ByteAccess, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, Volume};
use std::sync::Arc;

/// Where a file's bytes come from. Dropping it, at the last close, lets go of what was claimed for it.
pub enum Source {
    /// A text, as it was when it was opened.
    Bytes(Vec<u8>),
    /// A disk, or an image made of one.
    Volume(Arc<dyn Volume>),
}

/// A file that somebody has open. Its length never changes.
pub struct OpenFile {
    content: Content,
    len: u64,
    read_only: bool,
}

enum Content {
    Bytes(Vec<u8>),
    Volume(ByteAccess),
}

/// What is looked for from an offset on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seek {
    Data,
    Hole,
}

impl OpenFile {
    /// A file with these bytes.
    pub fn new(source: Source) -> OpenFile {
        match source {
            Source::Bytes(bytes) => {
                OpenFile { len: bytes.len() as u64, read_only: true, content: Content::Bytes(bytes) }
            }
            Source::Volume(volume) => OpenFile {
                len: volume.len().get(),
                read_only: volume.is_read_only(),
                content: Content::Volume(ByteAccess::new(volume)),
            },
        }
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether nothing of it can be changed.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Fills the start of the buffer with what is at `offset`; how many bytes there were before the file's end.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let Some(range) = self.range(offset, buffer.len() as u64) else { return Ok(0) };
        let part = &mut buffer[..range.len().as_usize()];
        match &self.content {
            Content::Volume(disk) => disk.read(range.start(), part)?,
            Content::Bytes(bytes) => {
                let start = ByteLen::new(offset).as_usize();
                part.copy_from_slice(&bytes[start..start + part.len()]);
            }
        }
        Ok(part.len())
    }

    /// Writes at `offset`; how many bytes, fewer where the file ends. `NoSpace` at and past its end, as on a device.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<usize> {
        let disk = self.disk()?;
        if data.is_empty() {
            return Ok(0);
        }
        let range = self.range(offset, data.len() as u64).ok_or_else(|| {
            Error::new(ErrorKind::NoSpace, format!("a write at {offset} past the end, at {}", self.len))
        })?;
        let data = &data[..range.len().as_usize()];
        if !land(disk, range, data)? {
            disk.write(range.start(), data, false)?;
        }
        Ok(data.len())
    }

    /// Makes the part of the range that lies in the file read as zeroes.
    pub fn zero(&self, offset: u64, len: u64, keep_allocated: bool) -> Result<()> {
        let disk = self.disk()?;
        match self.range(offset, len) {
            Some(range) => disk.write_zeroes(range, keep_allocated, false),
            None => Ok(()),
        }
    }

    /// Puts what was written before on the medium.
    pub fn sync(&self) -> Result<()> {
        match &self.content {
            Content::Volume(disk) if !self.read_only => disk.flush(),
            Content::Volume(_) | Content::Bytes(_) => Ok(()),
        }
    }

    /// The first offset from `offset` on at which there is data, or a hole, the file's end being one; `None` where there
    /// is none, or `offset` is not in the file.
    pub(crate) fn seek(&self, offset: u64, wanted: Seek) -> Result<Option<u64>> {
        let mut at = offset;
        while let Some(range) = self.range(at, self.len) {
            let Content::Volume(disk) = &self.content else {
                return Ok(Some(if wanted == Seek::Data { at } else { self.len }));
            };
            for run in disk.status(range)? {
                if run.allocation.reads_as_zero() == (wanted == Seek::Hole) {
                    return Ok(Some(run.extent.start().get()));
                }
                at = run.extent.end().get();
            }
        }
        Ok((wanted == Seek::Hole && offset < self.len).then_some(self.len))
    }

    fn disk(&self) -> Result<&ByteAccess> {
        match &self.content {
            Content::Volume(disk) if !self.read_only => Ok(disk),
            Content::Volume(_) | Content::Bytes(_) => {
                Err(Error::new(ErrorKind::ReadOnly, "this file is only read"))
            }
        }
    }

    /// The part of the range that lies in the file.
    fn range(&self, offset: u64, len: u64) -> Option<Extent> {
        let end = offset.saturating_add(len).min(self.len);
        if offset >= end {
            return None;
        }
        Extent::between(ByteOffset::new(offset), ByteOffset::new(end))
    }
}

/// Writes the data as [`Volume::write_arrived`] has it, where that is quicker and possible; whether it did.
fn land(disk: &ByteAccess, range: Extent, data: &[u8]) -> Result<bool> {
    let is_candidate = data.len() <= PAYLOAD_BYTES_MAX
        && disk.arrived_len_min().is_some_and(|min| range.len() >= min)
        && range.is_aligned(BlockShift::SECTOR);
    if is_candidate { disk.write_arrived(range, &mut Payload::new(data)) } else { Ok(false) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{MemoryVolume, RequestClass};

    fn disk() -> (Arc<MemoryVolume>, OpenFile) {
        let disk = Arc::new(MemoryVolume::new(ByteLen::new(8192)));
        disk.write_at(ByteOffset::new(1024), &[7; 512], false, RequestClass::Guest).unwrap();
        let file = OpenFile::new(Source::Volume(disk.clone()));
        (disk, file)
    }

    #[test]
    fn reads_and_writes_end_where_the_file_does() {
        let (disk, file) = disk();
        let mut buffer = [9; 100];
        assert_eq!(file.read(8150, &mut buffer).unwrap(), 42);
        assert_eq!((buffer[41], buffer[42]), (0, 9));
        assert_eq!(file.read(8192, &mut buffer).unwrap(), 0);
        assert_eq!(file.read(u64::MAX, &mut buffer).unwrap(), 0);
        assert_eq!(file.write(8190, &[5; 10]).unwrap(), 2);
        assert_eq!(disk.snapshot()[8189..], [0, 5, 5]);
        assert_eq!(file.write(8192, &[5]).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(file.write(9999, &[]).unwrap(), 0);
        file.zero(8191, u64::MAX, false).unwrap();
        assert_eq!(disk.snapshot()[8189..], [0, 5, 0]);
    }

    #[test]
    fn data_and_holes_are_found() {
        let (_, file) = disk();
        let seek = |at, wanted| file.seek(at, wanted).unwrap();
        assert_eq!((seek(0, Seek::Data), seek(0, Seek::Hole)), (Some(1024), Some(0)));
        assert_eq!((seek(1100, Seek::Data), seek(1100, Seek::Hole)), (Some(1100), Some(1536)));
        assert_eq!((seek(1536, Seek::Data), seek(8192, Seek::Hole)), (None, None));
        let text = OpenFile::new(Source::Bytes(b"text".to_vec()));
        assert_eq!(text.seek(1, Seek::Data).unwrap(), Some(1));
        assert_eq!(text.seek(1, Seek::Hole).unwrap(), Some(4), "the end is a hole");
        assert_eq!(text.seek(4, Seek::Hole).unwrap(), None);
    }

    #[test]
    fn what_is_only_read_is_not_written() {
        let read_only = OpenFile::new(Source::Volume(Arc::new(MemoryVolume::read_only(vec![1; 512]))));
        for file in [read_only, OpenFile::new(Source::Bytes(vec![1; 512]))] {
            assert!(file.is_read_only());
            assert_eq!(file.write(0, &[2]).unwrap_err().kind(), ErrorKind::ReadOnly);
            assert_eq!(file.zero(0, 10, false).unwrap_err().kind(), ErrorKind::ReadOnly);
            file.sync().unwrap();
        }
    }
}
