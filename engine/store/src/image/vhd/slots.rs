//! Room for new blocks at the end of the file.
//!
//! A table entry must never reach the medium before the room that it points to: after a power cut other tools would
//! find a block past the end of the file, or an older block's remains in it. So room is made ahead, some blocks at a
//! time: cleared, the file lengthened, the footer written at the new end, and all that synced *before* any entry
//! points there. From then on a block's bitmap, data and entry may reach the medium in any order: whatever is missing
//! reads as zeroes, which is what the block held before.

use super::block::BlockLayout;
use super::footer::{FOOTER_BYTES, Footer};
use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile};

/// Data starts on pages, so that holes can be punched exactly and direct access works.
const DATA_ALIGNMENT: BlockShift = BlockShift::KIB_4;
/// Room is made for an eighth of what is there, so that there are few syncs and little room in vain.
const GROWTH: std::ops::RangeInclusive<usize> = 2..=32;

/// Where new blocks go.
#[derive(Debug)]
pub(super) struct Slots {
    layout: BlockLayout,
    /// The end of what is used.
    used_end: ByteOffset,
    /// Up to here the file is zero, on the medium, and followed by a footer.
    ready_end: ByteOffset,
    allocated: usize,
}

impl Slots {
    /// Nothing is ready: what lies behind the used part may be an earlier writer's remains.
    pub(super) fn new(layout: BlockLayout, used_end: ByteOffset, allocated: usize) -> Slots {
        Slots { layout, used_end, ready_end: used_end, allocated }
    }

    /// The bitmap's place in the next slot after `used_end`. The gap before it leaves room for the footer that an
    /// earlier, shorter file had there.
    pub(super) fn next_bitmap(&self, used_end: ByteOffset) -> ByteOffset {
        let data = (used_end + FOOTER_BYTES + self.layout.bitmap_len()).align_up(DATA_ALIGNMENT);
        ByteOffset::new(data.get() - self.layout.bitmap_len().get())
    }

    /// Takes a slot of zeroes for a block; where its bitmap goes. No room is made for more than
    /// `blocks` in all.
    pub(super) fn take(
        &mut self,
        file: &dyn StorageFile,
        footer: &Footer,
        blocks: usize,
    ) -> Result<ByteOffset> {
        let bitmap = self.next_bitmap(self.used_end);
        let end = bitmap + self.layout.len();
        if bitmap.lba().get() >= u64::from(u32::MAX) {
            let context = format!("{}: a VHD file cannot grow past 2 TiB", file.name());
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        if end > self.ready_end {
            let left = blocks.saturating_sub(self.allocated);
            let count = (self.allocated / 8).clamp(*GROWTH.start(), *GROWTH.end()).min(left).max(1);
            let wanted = (0..count).fold(self.used_end, |end, _| self.next_bitmap(end) + self.layout.len());
            self.make_ready(file, footer, wanted)?;
        }
        self.used_end = end;
        self.allocated += 1;
        Ok(bitmap)
    }

    /// Cuts off what was made ready in vain: the footer is on the medium where the file will end before it ends there.
    pub(super) fn trim(&mut self, file: &dyn StorageFile, footer: &Footer) -> Result<()> {
        if self.used_end == self.ready_end {
            return Ok(());
        }
        file.write_at(self.used_end, &footer.encode())?;
        file.sync()?;
        self.ready_end = self.used_end;
        file.set_len(ByteLen::new((self.used_end + FOOTER_BYTES).get()))
    }

    /// Makes everything from `used_end` up to `end` zeroes on the medium, with a footer behind it.
    pub(super) fn make_ready(
        &mut self,
        file: &dyn StorageFile,
        footer: &Footer,
        end: ByteOffset,
    ) -> Result<()> {
        let file_len = file.len()?;
        let footer_end = (end + FOOTER_BYTES).max(file_len.end().align_up(BlockShift::SECTOR));
        if let Some(old) = Extent::between(self.ready_end, file_len.end()) {
            // The old footer, and what an earlier writer left. Until the sync below the footer at the start stands in.
            file.punch_hole(old)?;
        }
        let footer_at = ByteOffset::new(footer_end.get() - FOOTER_BYTES.get());
        file.set_len(ByteLen::new(footer_end.get()))?;
        file.write_at(footer_at, &footer.encode())?;
        file.sync()?;
        self.ready_end = footer_at;
        Ok(())
    }
}
