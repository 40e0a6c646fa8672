//! A disk, as everything that serves, copies or stacks disks sees it.

use crate::{Arrived, BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result};
use std::fs::File;
use std::sync::Arc;

/// On whose behalf a request is made, so that background work can be budgeted, counted and moved aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum RequestClass {
    /// A guest waits for it.
    Guest,
    /// Migration, failback, scrub, verification, export.
    Background,
}

/// What a range holds, as far as it is known without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Allocation {
    /// Bytes are stored for it.
    Data,
    /// Zeroes that take up space.
    Zero,
    /// Nothing is stored; it reads as zeroes.
    Hole,
}

impl Allocation {
    /// Whether the range is known to read as zeroes.
    pub const fn reads_as_zero(self) -> bool {
        matches!(self, Allocation::Zero | Allocation::Hole)
    }
}

/// A run of one allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtentStatus {
    /// Where.
    pub extent: Extent,
    /// What.
    pub allocation: Allocation,
}

/// Where bytes of a disk lie in an open file of the host, exactly as they are and with no checksum over them, so that
/// they may be handed on without being looked at.
#[derive(Clone, Debug)]
pub struct FileRange {
    /// The open file. Holding it keeps the bytes reachable, not unchanged: a later write shows through.
    pub file: Arc<File>,
    /// Where in the file the extent that was asked for starts.
    pub offset: ByteOffset,
}

/// A disk: a run of bytes of fixed length that is read and written at offsets.
///
/// Synchronous, called from many threads at once. Requests that overlap in time and range may take effect in any
/// order, but each sector (512 bytes) is always wholly from one of them. A write is with the operating system when
/// the call returns (it survives the death of this process) and on the medium after the next [`Volume::flush`] that
/// began after it. After a failed write or flush a volume is poisoned: every later write and flush fails with
/// [`ErrorKind::Poisoned`] until it is reopened.
///
/// Offsets and lengths must be multiples of [`Volume::alignment`] and lie within [`Volume::len`]; otherwise
/// [`ErrorKind::InvalidInput`] or [`ErrorKind::OutOfRange`], and nothing has changed. Empty requests succeed.
pub trait Volume: Send + Sync {
    /// The size of the disk in bytes: constant, a multiple of [`Volume::alignment`].
    fn len(&self) -> ByteLen;

    /// Whether the disk has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len().is_zero()
    }

    /// Whether every write is refused with [`ErrorKind::ReadOnly`].
    fn is_read_only(&self) -> bool;

    /// What offsets and lengths must be multiples of; 512 bytes unless the volume says otherwise.
    fn alignment(&self) -> BlockShift {
        BlockShift::SECTOR
    }

    /// Fills the whole buffer from `offset` on.
    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()>;

    /// Writes the whole buffer at `offset`. With `fua`, it is on the medium when the call returns.
    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, class: RequestClass) -> Result<()>;

    /// Makes the range read as zeroes. Space may be given back unless `keep_allocated`.
    fn write_zeroes(
        &self,
        extent: Extent,
        keep_allocated: bool,
        fua: bool,
        class: RequestClass,
    ) -> Result<()>;

    /// Says that the range's content is no longer needed. A volume of ours makes it read as zeroes.
    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()>;

    /// Puts every write that completed before this call on the medium.
    fn flush(&self) -> Result<()>;

    /// What the range holds: runs that tile `extent` exactly, in order, neighbours differing. Never reads data, may
    /// say [`Allocation::Data`] of what happens to be zero. May stop early after at least one run, so the last run
    /// returned can end before the extent does; a caller asks on from there.
    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>>;

    /// Whether [`Volume::write_zeroes`] takes less time than a write of as many bytes would. `false` where that cannot
    /// be told in advance.
    fn zeroes_fast(&self, _keep_allocated: bool) -> bool {
        false
    }

    /// The file range that holds the whole extent, where there is one; `None` says nothing but "ask `read_at`".
    fn file_range(&self, _extent: Extent) -> Option<FileRange> {
        None
    }

    /// Fills the buffer as [`Volume::read_at`] does and says, where that is so, that the same bytes lie in a file of the host
    /// and stay there, unchanged but by writes to them here, until the disk is let go of: whatever had to be held against a
    /// checksum was, and they may be handed on from there.
    fn read_located(
        &self,
        offset: ByteOffset,
        buffer: &mut [u8],
        class: RequestClass,
    ) -> Result<Option<FileRange>> {
        self.read_at(offset, buffer, class).map(|()| None)
    }

    /// The shortest write for which [`Volume::write_arrived`] is worth a try; `None` where it never is.
    fn arrived_len_min(&self) -> Option<ByteLen> {
        None
    }

    /// Writes as many arrived bytes as the extent is long, as [`Volume::write_at`] does without FUA, but has the kernel put
    /// them where they belong. Never waits for whoever sends them. `false` where that is not possible, here and now: then
    /// nothing was consumed, and nothing has changed.
    fn write_arrived(&self, _extent: Extent, _from: &mut dyn Arrived, _class: RequestClass) -> Result<bool> {
        Ok(false)
    }

    /// Writes the bytes of `from` to the extent as [`Volume::write_at`] does without FUA, but has them share the room
    /// that they have on the medium. `false` where that is not possible: then nothing is known of the extent until it is
    /// written.
    fn share(&self, _extent: Extent, _from: &FileRange) -> Result<bool> {
        Ok(false)
    }
}

impl<V: Volume + ?Sized> Volume for std::sync::Arc<V> {
    fn len(&self) -> ByteLen {
        (**self).len()
    }
    fn is_read_only(&self) -> bool {
        (**self).is_read_only()
    }
    fn alignment(&self) -> BlockShift {
        (**self).alignment()
    }
    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        (**self).read_at(offset, buffer, class)
    }
    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, class: RequestClass) -> Result<()> {
        (**self).write_at(offset, data, fua, class)
    }
    fn write_zeroes(
        &self,
        extent: Extent,
        keep_allocated: bool,
        fua: bool,
        class: RequestClass,
    ) -> Result<()> {
        (**self).write_zeroes(extent, keep_allocated, fua, class)
    }
    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        (**self).discard(extent, fua, class)
    }
    fn flush(&self) -> Result<()> {
        (**self).flush()
    }
    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        (**self).status(extent)
    }
    fn zeroes_fast(&self, keep_allocated: bool) -> bool {
        (**self).zeroes_fast(keep_allocated)
    }
    fn file_range(&self, extent: Extent) -> Option<FileRange> {
        (**self).file_range(extent)
    }
    fn read_located(
        &self,
        offset: ByteOffset,
        buffer: &mut [u8],
        class: RequestClass,
    ) -> Result<Option<FileRange>> {
        (**self).read_located(offset, buffer, class)
    }
    fn arrived_len_min(&self) -> Option<ByteLen> {
        (**self).arrived_len_min()
    }
    fn write_arrived(&self, extent: Extent, from: &mut dyn Arrived, class: RequestClass) -> Result<bool> {
        (**self).write_arrived(extent, from, class)
    }
    fn share(&self, extent: Extent, from: &FileRange) -> Result<bool> {
        (**self).share(extent, from)
    }
}

/// Checks a request against a volume's length and alignment; the extent it covers, `None` where it is empty.
pub fn check_request(
    volume_len: ByteLen,
    alignment: BlockShift,
    offset: ByteOffset,
    len: ByteLen,
) -> Result<Option<Extent>> {
    if !offset.is_aligned(alignment) || !len.is_aligned(alignment) {
        let context =
            format!("a request of {len} bytes at {offset} is not a multiple of {}", alignment.bytes());
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    match offset.checked_add(len) {
        Some(end) if end <= volume_len.end() => Ok(Extent::between(offset, end)),
        _ => {
            let context =
                format!("a request of {len} bytes at {offset} ends past the disk's {volume_len} bytes");
            Err(Error::new(ErrorKind::OutOfRange, context))
        }
    }
}

/// Whether every byte is zero; quick on non-zero data and at memory speed on zeroes.
pub fn is_zero(data: &[u8]) -> bool {
    // SAFETY: every bit pattern is a valid u64, and align_to only reinterprets what is aligned.
    let (head, words, tail) = unsafe { data.align_to::<u64>() };
    head.iter().chain(tail).all(|byte| *byte == 0)
        && words.chunks(64).all(|chunk| chunk.iter().fold(0, |or, word| or | word) == 0)
}
