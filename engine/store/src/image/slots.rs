//! Room for new blocks at the end of a file, of formats that keep no count of it.
//!
//! An entry that leads to a block must not be on the medium before the room that it leads to. So room is made ahead, many
//! blocks at a time: cleared, and on the medium before any entry leads there. From then on entries and data may get
//! there in any order: what is missing reads as zeroes, which is what the block held before. A crash leaves at worst room
//! that nothing uses; closing gives it back.

use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile};
use std::ops::RangeInclusive;

/// How a format's files grow.
#[derive(Debug, Clone)]
pub(super) struct Growth {
    /// What is handed out.
    pub(super) block: BlockShift,
    /// How many blocks are made ready at a time: an eighth of those there are, within these bounds.
    pub(super) blocks: RangeInclusive<u64>,
    /// Where the largest file ends.
    pub(super) end_max: ByteOffset,
}

/// Where new blocks go.
#[derive(Debug)]
pub(super) struct Slots {
    growth: Growth,
    /// The next block's place.
    next: ByteOffset,
    /// Up to here the file is zero, on the medium.
    ready_end: ByteOffset,
    allocated: u64,
}

impl Slots {
    /// Nothing is ready: new blocks begin where the last one ends.
    pub(super) fn new(growth: Growth, used_end: ByteOffset, allocated: u64) -> Slots {
        Slots { growth, next: used_end, ready_end: used_end, allocated }
    }

    /// Takes up to `wanted` blocks that follow one another, at least one. No room is made for more than `blocks` in all.
    pub(super) fn take(&mut self, file: &dyn StorageFile, blocks: u64, wanted: u64) -> Result<Extent> {
        let block_bytes = self.growth.block.bytes();
        if self.next == self.ready_end {
            let left = blocks.saturating_sub(self.allocated).max(1);
            let (least, most) = (*self.growth.blocks.start(), *self.growth.blocks.end());
            let count = (self.allocated / 8).clamp(least, most).min(left);
            self.make_ready(file, count)?;
        }
        let ready = (self.ready_end - self.next).get() / block_bytes;
        let count = wanted.clamp(1, ready);
        let taken = Extent::new(self.next, ByteLen::new(count * block_bytes))?;
        self.next = taken.end();
        self.allocated += count;
        Ok(taken)
    }

    /// How long the file is, on the medium.
    pub(super) fn ready_end(&self) -> ByteOffset {
        self.ready_end
    }

    /// Cuts off what was made ready in vain.
    pub(super) fn trim(&mut self, file: &dyn StorageFile) -> Result<()> {
        if self.next == self.ready_end {
            return Ok(());
        }
        self.ready_end = self.next;
        file.set_len(ByteLen::new(self.next.get()))
    }

    fn make_ready(&mut self, file: &dyn StorageFile, count: u64) -> Result<()> {
        let bytes = ByteLen::new(count * self.growth.block.bytes());
        let end = self.next.checked_add(bytes).filter(|end| *end <= self.growth.end_max);
        let end = end.or_else(|| self.next.checked_add(self.growth.block.len()));
        let Some(end) = end.filter(|end| *end <= self.growth.end_max) else {
            let context = format!("{}: the file cannot grow any further", file.name());
            return Err(Error::new(ErrorKind::NoSpace, context));
        };
        if let Some(remains) = Extent::between(self.ready_end, file.len()?.end()) {
            file.punch_hole(remains)?;
        }
        file.set_len(ByteLen::new(end.get()).max(file.len()?))?;
        file.sync()?;
        self.ready_end = end;
        Ok(())
    }
}
