//! A file of parts that are made when they are read.

use super::AllocatedBlocks;
use blocks::{
    Allocation, BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentStatus, RequestClass,
    Result, Volume, check_request,
};
use std::sync::Arc;

/// What an entry of a table is, by its number.
pub(in crate::image) type Entry = Box<dyn Fn(&AllocatedBlocks, u64) -> u64 + Send + Sync>;

/// How a table's entries stand in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::image) enum Entries {
    Be16,
    Be32,
    Be64,
    Le32,
    Le64,
}

/// A part of the file. Between parts there are zeroes.
pub(in crate::image) struct Part {
    start: u64,
    len: u64,
    content: Content,
}

enum Content {
    Bytes(Vec<u8>),
    Table(Entries, Entry),
    /// The blocks with data, each behind the same bytes.
    Blocks(Vec<u8>),
}

impl Part {
    /// These bytes, and zeroes up to a sector.
    pub(in crate::image) fn bytes(start: ByteOffset, bytes: impl Into<Vec<u8>>) -> Part {
        let mut bytes = bytes.into();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        Part { start: start.get(), len: bytes.len() as u64, content: Content::Bytes(bytes) }
    }

    /// A table of so many bytes.
    pub(in crate::image) fn table(start: ByteOffset, len: u64, entries: Entries, entry: Entry) -> Part {
        Part { start: start.get(), len, content: Content::Table(entries, entry) }
    }

    /// All blocks with data, each behind `before`.
    pub(in crate::image) fn blocks(start: ByteOffset, allocated: &AllocatedBlocks, before: Vec<u8>) -> Part {
        let stride = before.len() as u64 + allocated.block().bytes();
        Part { start: start.get(), len: allocated.count() * stride, content: Content::Blocks(before) }
    }

    /// Where it ends.
    pub(in crate::image) fn end(&self) -> ByteOffset {
        ByteOffset::new(self.start + self.len)
    }
}

impl Entries {
    fn bytes(self) -> u64 {
        match self {
            Entries::Be16 => 2,
            Entries::Be32 | Entries::Le32 => 4,
            Entries::Be64 | Entries::Le64 => 8,
        }
    }

    fn encode(self, entry: u64) -> [u8; 8] {
        match self {
            Entries::Be16 => (entry << 48).to_be_bytes(),
            Entries::Be32 => (entry << 32).to_be_bytes(),
            Entries::Be64 => entry.to_be_bytes(),
            Entries::Le32 | Entries::Le64 => entry.to_le_bytes(),
        }
    }
}

/// The file. Its parts come in order and do not overlap.
pub(super) struct ShownFile {
    disk: Arc<dyn Volume>,
    allocated: AllocatedBlocks,
    parts: Vec<Part>,
    len: ByteLen,
}

/// Bytes of the file within one block.
enum InBlock {
    /// Before its data; how many bytes up to there.
    Before(u64),
    /// On the disk at this place; how many bytes of the block are left.
    Data(u64, u64),
}

impl ShownFile {
    pub(super) fn new(disk: Arc<dyn Volume>, allocated: AllocatedBlocks, parts: Vec<Part>) -> ShownFile {
        debug_assert!(parts.windows(2).all(|pair| pair[0].end().get() <= pair[1].start), "parts overlap");
        let end = parts.iter().map(|part| part.end().get()).max().unwrap_or(0);
        ShownFile { disk, allocated, parts, len: ByteLen::new(end) }
    }

    /// The part that `at` is in, else how many bytes it is to the next one.
    fn part_at(&self, at: u64) -> std::result::Result<&Part, u64> {
        let next = self.parts.partition_point(|part| part.end().get() <= at);
        match self.parts.get(next) {
            Some(part) if part.start <= at => Ok(part),
            Some(part) => Err(part.start - at),
            None => Err(u64::MAX - at),
        }
    }

    fn in_block(&self, before: u64, inside: u64) -> InBlock {
        let block = self.allocated.block();
        let stride = before + block.bytes();
        let (index, inside) = (inside / stride, inside % stride);
        match inside.checked_sub(before) {
            None => InBlock::Before(before - inside),
            Some(inside) => {
                let at = block.start_of(self.allocated.at(index)).get() + inside;
                InBlock::Data(at, block.bytes() - inside)
            }
        }
    }

    /// Fills the start of the buffer from a part; how many bytes.
    fn read_part(&self, part: &Part, at: u64, buffer: &mut [u8], class: RequestClass) -> Result<usize> {
        let inside = at - part.start;
        let count = ByteLen::new((part.len - inside).min(buffer.len() as u64)).as_usize();
        let buffer = &mut buffer[..count];
        match &part.content {
            Content::Bytes(bytes) => {
                let from = ByteLen::new(inside).as_usize();
                buffer.copy_from_slice(&bytes[from..from + count]);
                Ok(count)
            }
            Content::Table(entries, entry) => {
                let width = entries.bytes();
                let mut done = 0;
                while done < count {
                    let at = inside + done as u64;
                    let bytes = entries.encode(entry(&self.allocated, at / width));
                    let (from, to) = ((at % width) as usize, width as usize);
                    let piece = (to - from).min(count - done);
                    buffer[done..done + piece].copy_from_slice(&bytes[from..from + piece]);
                    done += piece;
                }
                Ok(count)
            }
            Content::Blocks(before) => self.read_blocks(before, inside, buffer, class),
        }
    }

    /// Fills the start of the buffer from blocks that follow each other on the disk too.
    fn read_blocks(
        &self,
        before: &[u8],
        inside: u64,
        buffer: &mut [u8],
        class: RequestClass,
    ) -> Result<usize> {
        let width = before.len() as u64;
        match self.in_block(width, inside) {
            InBlock::Before(left) => {
                let count = ByteLen::new(left.min(buffer.len() as u64)).as_usize();
                let from = before.len() - ByteLen::new(left).as_usize();
                buffer[..count].copy_from_slice(&before[from..from + count]);
                Ok(count)
            }
            InBlock::Data(disk_at, mut run) => {
                while width == 0 && run < buffer.len() as u64 {
                    match self.in_block(0, inside + run) {
                        InBlock::Data(next, more) if next == disk_at + run => run += more,
                        InBlock::Data(..) | InBlock::Before(_) => break,
                    }
                }
                let count = ByteLen::new(run.min(buffer.len() as u64)).as_usize();
                self.read_disk(disk_at, &mut buffer[..count], class)?;
                Ok(count)
            }
        }
    }

    /// Reads the disk, and zeroes behind its end: its last block may be larger than what is left of it.
    fn read_disk(&self, at: u64, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        let there = self.disk.len().get().saturating_sub(at).min(buffer.len() as u64);
        let (there, behind) = buffer.split_at_mut(ByteLen::new(there).as_usize());
        behind.fill(0);
        if there.is_empty() {
            return Ok(());
        }
        self.disk.read_at(ByteOffset::new(at), there, class)
    }

    /// What is at the start of the extent, and for how many bytes.
    fn status_at(&self, extent: Extent) -> Result<(u64, Allocation)> {
        let at = extent.start().get();
        let part = match self.part_at(at) {
            Ok(part) => part,
            Err(gap) => return Ok((gap, Allocation::Hole)),
        };
        let inside = at - part.start;
        let Content::Blocks(before) = &part.content else { return Ok((part.len - inside, Allocation::Data)) };
        let (disk_at, left) = match self.in_block(before.len() as u64, inside) {
            InBlock::Before(left) => return Ok((left, Allocation::Data)),
            InBlock::Data(disk_at, left) => (ByteOffset::new(disk_at), left.min(extent.len().get())),
        };
        let asked = (disk_at + ByteLen::new(left)).min(self.disk.len().end());
        let Some(asked) = Extent::between(disk_at, asked) else { return Ok((left, Allocation::Hole)) };
        let runs = self.disk.status(asked)?;
        let first = runs.first().ok_or_else(|| Error::new(ErrorKind::Io, format!("no status of {asked}")))?;
        Ok((first.extent.len().get(), first.allocation))
    }
}

fn read_only<T>() -> Result<T> {
    Err(Error::new(ErrorKind::ReadOnly, "an image that is made while it is read cannot be written"))
}

impl Volume for ShownFile {
    fn len(&self) -> ByteLen {
        self.len
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        check_request(self.len, BlockShift::SECTOR, offset, ByteLen::of(buffer))?;
        let mut done = 0;
        while done < buffer.len() {
            let (at, rest) = (offset.get() + done as u64, &mut buffer[done..]);
            done += match self.part_at(at) {
                Ok(part) => self.read_part(part, at, rest, class)?,
                Err(gap) => {
                    let count = ByteLen::new(gap.min(rest.len() as u64)).as_usize();
                    rest[..count].fill(0);
                    count
                }
            };
        }
        Ok(())
    }

    fn write_at(&self, _: ByteOffset, _: &[u8], _: bool, _: RequestClass) -> Result<()> {
        read_only()
    }

    fn write_zeroes(&self, _: Extent, _: bool, _: bool, _: RequestClass) -> Result<()> {
        read_only()
    }

    fn discard(&self, _: Extent, _: bool, _: RequestClass) -> Result<()> {
        read_only()
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        check_request(self.len, BlockShift::SECTOR, extent.start(), extent.len())?;
        let (len, allocation) = self.status_at(extent)?;
        let extent = Extent::new(extent.start(), ByteLen::new(len.min(extent.len().get())))?;
        Ok(vec![ExtentStatus { extent, allocation }])
    }
}
