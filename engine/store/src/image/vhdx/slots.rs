//! Room for new blocks at the end of the file, made ahead as [`super::super::qcow2`]'s is: zero and on the medium before
//! any entry of the table leads there.

use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile};

/// Room is made for an eighth of the blocks there are.
const GROWTH: std::ops::RangeInclusive<u64> = 1..=8;

/// Where new blocks go.
#[derive(Debug)]
pub(super) struct Slots {
    block: BlockShift,
    /// The next block's place.
    next: ByteOffset,
    /// Up to here the file is zero, on the medium.
    ready_end: ByteOffset,
    allocated: u64,
}

impl Slots {
    /// Nothing is ready: new blocks begin where the last one ends.
    pub(super) fn new(block: BlockShift, used_end: ByteOffset, allocated: u64) -> Slots {
        Slots { block, next: used_end, ready_end: used_end, allocated }
    }

    /// Takes the place of a block.
    pub(super) fn take(&mut self, file: &dyn StorageFile, blocks: u64) -> Result<ByteOffset> {
        let end = self.next + self.block.len();
        if end > self.ready_end {
            let left = blocks.saturating_sub(self.allocated).max(1);
            let count = (self.allocated / 8).clamp(*GROWTH.start(), *GROWTH.end()).min(left);
            self.make_ready(file, self.next + ByteLen::new(count * self.block.bytes()))?;
        }
        let taken = self.next;
        self.next = end;
        self.allocated += 1;
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

    fn make_ready(&mut self, file: &dyn StorageFile, end: ByteOffset) -> Result<()> {
        if end.get() > i64::MAX as u64 {
            let context = format!("{}: the file cannot grow any further", file.name());
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        if let Some(remains) = Extent::between(self.ready_end, file.len()?.end()) {
            file.punch_hole(remains)?;
        }
        file.set_len(ByteLen::new(end.get()).max(file.len()?))?;
        file.sync()?;
        self.ready_end = end;
        Ok(())
    }
}
