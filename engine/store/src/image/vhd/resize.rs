//! Another length for a VHD. In each step there is one footer that counts: it lies in one sector, so changing it is what
//! changes the length, and everything else comes before or after, with a sync in between.

use super::super::resize::only_by_converting;
use super::bat::{ENTRY_BYTES, walk_blocks};
use super::block::BlockLayout;
use super::footer::{DiskType, FOOTER_BYTES, Footer};
use super::header::{DynamicHeader, HEADER_BYTES};
use super::slots::Slots;
use super::{Opened, Parts, end_footer, read_footers};
use blocks::{BlockShift, ByteLen, ByteOffset, Error, Extent, Result, StorageFile};

/// How much of a block is copied at a time.
const COPIED: ByteLen = ByteLen::new(64 << 10);

/// Gives the disk another length; see [`super::super::resize_image`]. What is cut off was found to be zero.
pub(in super::super) fn resize(file: &dyn StorageFile, len: ByteLen) -> Result<()> {
    if !file.len()?.is_aligned(BlockShift::SECTOR) {
        return Err(only_by_converting(file.name(), "a VHD whose file is not whole sectors"));
    }
    match super::open(file)? {
        Opened::Fixed(_) => resize_fixed(file, len),
        Opened::Dynamic(parts) => resize_dynamic(file, *parts, len),
    }
}

/// ```text
///                 disk          footer
/// begin           ......        old
/// longer file     ......        old     hole   old      the last counts; without it, the one before the hole
/// the first gone  ......        hole           old
/// committed       .............................new
/// ```
///
/// A shorter disk is committed first, in a file that is too long; then the footer is written where the disk ends, and the
/// file is cut behind it.
fn resize_fixed(file: &dyn StorageFile, len: ByteLen) -> Result<()> {
    let (footer, _) = read_footers(file)?;
    let new = footer.resized(len);
    let last = end_footer(file.len()?).unwrap_or(ByteOffset::ZERO);
    let at = last.max(len.end());
    if at != last || Footer::read(file, last).is_err() {
        file.set_len(ByteLen::new((at + FOOTER_BYTES).get()))?;
        file.write_at(at, &footer.encode())?;
        file.sync()?;
    }
    if let Some(fresh) = Extent::between(footer.current_size.end(), at.min(len.end())) {
        file.punch_hole(fresh)?;
        file.sync()?;
    }
    file.write_at(at, &new.encode())?;
    file.sync()?;
    if at != len.end() {
        file.write_at(len.end(), &new.encode())?;
        file.sync()?;
        file.set_len(len + FOOTER_BYTES)?;
        file.sync()?;
    }
    Ok(())
}

fn resize_dynamic(file: &dyn StorageFile, parts: Parts, len: ByteLen) -> Result<()> {
    let Parts { footer, mut header, bat, .. } = parts;
    if footer.disk_type == DiskType::Differencing {
        return Err(only_by_converting(file.name(), "a differencing VHD"));
    }
    if !footer.data_offset.is_aligned(BlockShift::SECTOR) {
        return Err(only_by_converting(file.name(), "a VHD whose header lies across its sectors"));
    }
    let blocks = len.blocks(header.block);
    clear_beyond(file, &header, footer.current_size)?;
    if blocks > u64::from(header.entries) {
        let entries = u32::try_from(blocks).expect("the length was checked against the format's limit");
        let slots = Slots::new(BlockLayout { block: header.block }, bat.used_end(), bat.allocated());
        let mut growth = Growth { file, footer: &footer, header: &header, slots, blocks: bat.blocks() };
        growth.make_room(entries)?;
        header.entries = entries;
        write_entries(file, footer.data_offset, entries)?;
    }
    // The two footers must not contradict each other: while there is one only, it counts.
    let new = footer.resized(len).encode();
    let last = end_footer(file.len()?).ok_or_else(|| Error::corrupt(file.name()))?;
    file.write_at(last, &[0; 512])?;
    file.sync()?;
    file.write_at(ByteOffset::ZERO, &new)?;
    file.sync()?;
    file.write_at(last, &new)?;
    file.sync().map(drop)
}

/// Blocks beyond the disk's end, of one that was longer once, hold nothing that may show.
fn clear_beyond(file: &dyn StorageFile, header: &DynamicHeader, len: ByteLen) -> Result<()> {
    let layout = BlockLayout { block: header.block };
    let blocks = len.blocks(header.block);
    let mut cleared = false;
    walk_blocks(file, header, |number, at| {
        if number >= blocks {
            file.punch_hole(Extent::new(layout.data_at(at, ByteLen::ZERO), header.block.len())?)?;
            cleared = true;
        }
        Ok(())
    })?;
    if cleared { file.sync().map(drop) } else { Ok(()) }
}

/// Writes the number of entries into the header: it lies in one sector with the checksum.
fn write_entries(file: &dyn StorageFile, at: ByteOffset, entries: u32) -> Result<()> {
    let mut bytes = vec![0; HEADER_BYTES.as_usize()];
    file.read_at(at, &mut bytes)?;
    DynamicHeader::put_entries(&mut bytes, entries);
    file.write_at(at, &bytes[..512])?;
    file.sync().map(drop)
}

/// A table that needs more room than there is before the first block.
struct Growth<'a> {
    file: &'a dyn StorageFile,
    footer: &'a Footer,
    header: &'a DynamicHeader,
    slots: Slots,
    blocks: usize,
}

impl Growth<'_> {
    /// Makes a table of so many entries: blocks that lie in its way are moved to the file's end, and what is added is
    /// marked as unused. Until the header has the new number, nothing of that counts.
    fn make_room(&mut self, entries: u32) -> Result<()> {
        let old_end = self.header.bat_end();
        let new_end = DynamicHeader { entries, ..self.header.clone() }.bat_end();
        if let Some(room) = Extent::between(old_end, new_end) {
            if Extent::new(self.footer.data_offset, HEADER_BYTES)?.overlaps(room) {
                return Err(only_by_converting(self.file.name(), "a VHD whose header lies behind its table"));
            }
            self.move_blocks(room)?;
        }
        if end_footer(self.file.len()?).is_none_or(|footer| footer < new_end) {
            let mut behind = Slots::new(BlockLayout { block: self.header.block }, new_end, 0);
            behind.make_ready(self.file, self.footer, new_end)?;
        }
        let listed = ByteLen::new(u64::from(self.header.entries) * ENTRY_BYTES);
        let added = Extent::between(self.header.table_offset + listed, new_end);
        let unused = vec![0xff; COPIED.as_usize()];
        for piece in added.into_iter().flat_map(|added| added.split(COPIED)) {
            self.file.write_at(piece.start(), &unused[..piece.len().as_usize()])?;
        }
        self.file.sync().map(drop)
    }

    fn move_blocks(&mut self, room: Extent) -> Result<()> {
        let layout = BlockLayout { block: self.header.block };
        let mut moved = Vec::new();
        walk_blocks(self.file, self.header, |number, at| {
            if Extent::new(at, layout.len())?.overlaps(room) {
                moved.push((number, at));
            }
            Ok(())
        })?;
        for (number, from) in moved {
            let to = self.slots.take(self.file, self.footer, self.blocks)?;
            self.copy(Extent::new(from, layout.len())?, to)?;
            self.file.sync()?;
            let entry = u32::try_from(to.lba().get()).expect("slots lie below 2 TiB");
            let entry_at = self.header.table_offset + ByteLen::new(number * ENTRY_BYTES);
            self.file.write_at(entry_at, &entry.to_be_bytes())?;
            self.file.sync()?;
        }
        self.slots.trim(self.file, self.footer)
    }

    /// Copies bitmap and data to a place of zeroes.
    fn copy(&self, from: Extent, to: ByteOffset) -> Result<()> {
        let mut buffer = vec![0; COPIED.as_usize()];
        for piece in from.split(COPIED) {
            let bytes = &mut buffer[..piece.len().as_usize()];
            self.file.read_at(piece.start(), bytes)?;
            if !blocks::is_zero(bytes) {
                self.file.write_at(to + (piece.start() - from.start()), bytes)?;
            }
        }
        Ok(())
    }
}
