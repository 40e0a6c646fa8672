//! The block allocation table: for each block of the disk, the sector where its bitmap starts.

use super::block::BlockLayout;
use super::footer::FOOTER_BYTES;
use super::header::{DynamicHeader, HEADER_BYTES};
use blocks::{ByteLen, ByteOffset, Error, Extent, Result, SECTOR_BYTES, StorageFile};
use std::sync::atomic::{AtomicU32, Ordering};

const UNUSED: u32 = u32::MAX;
pub(super) const ENTRY_BYTES: u64 = 4;
const READ_BYTES: ByteLen = ByteLen::new(64 << 10);

/// The table in memory, 4 bytes for each block. Entries are only ever set, once.
#[derive(Debug)]
pub(super) struct Bat {
    start: ByteOffset,
    entries: Vec<AtomicU32>,
    /// The end of the last byte that a block or a structure uses.
    used_end: ByteOffset,
}

impl Bat {
    /// Reads the table of a disk of `len` bytes and checks that every block lies within the file and overlaps neither
    /// another one nor a structure.
    pub(super) fn read(
        file: &dyn StorageFile,
        header: &DynamicHeader,
        len: ByteLen,
        header_at: ByteOffset,
    ) -> Result<Bat> {
        let corrupt = |what: String| Error::corrupt(format!("{}: {what}", file.name()));
        let layout = BlockLayout { block: header.block };
        let file_len = file.len()?;
        let table = Extent::between(header.table_offset, header.bat_end())
            .filter(|table| table.end() <= file_len.end())
            .ok_or_else(|| corrupt(format!("its table at {} ends past the file", header.table_offset)))?;
        let structures =
            [Extent::new(ByteOffset::ZERO, FOOTER_BYTES)?, Extent::new(header_at, HEADER_BYTES)?, table];
        if structures
            .iter()
            .enumerate()
            .any(|(at, one)| structures[..at].iter().any(|other| one.overlaps(*other)))
        {
            return Err(corrupt(format!("its table at {} overlaps its headers", table.start())));
        }
        let needed = ByteLen::new(len.blocks(header.block)).as_usize();
        let mut entries = Vec::with_capacity(needed);
        let mut starts = Vec::new();
        walk(file, header, |_, entry| {
            if entry != UNUSED {
                let block = Extent::new(offset_of(entry), layout.len())?;
                if block.end() > file_len.end() || structures.iter().any(|other| other.overlaps(block)) {
                    let context = format!("a block at {block} lies past the file's end or on its structures");
                    return Err(corrupt(context));
                }
                starts.push(entry);
            }
            if entries.len() < needed {
                entries.push(AtomicU32::new(entry));
            }
            Ok(())
        })?;
        starts.sort_unstable();
        let stride = layout.len().get() / SECTOR_BYTES;
        if let Some(pair) = starts.windows(2).find(|pair| u64::from(pair[1] - pair[0]) < stride) {
            let (one, other) = (offset_of(pair[0]), offset_of(pair[1]));
            return Err(corrupt(format!("its blocks at {one} and {other} overlap")));
        }
        let locators = header.parent.locators.iter().map(|locator| locator.place);
        let locators = locators.filter(|place| place.end() <= file_len.end());
        let structures_end = structures.into_iter().chain(locators).map(Extent::end).max();
        let blocks_end = starts.last().map(|last| offset_of(*last) + layout.len());
        let used_end = structures_end.max(blocks_end).unwrap_or(table.end());
        Ok(Bat { start: table.start(), entries, used_end })
    }

    /// How many blocks the disk has.
    pub(super) fn blocks(&self) -> usize {
        self.entries.len()
    }

    /// How many of them are allocated.
    pub(super) fn allocated(&self) -> usize {
        self.entries.iter().filter(|entry| entry.load(Ordering::Relaxed) != UNUSED).count()
    }

    /// The end of what the file uses, as it was when the table was read.
    pub(super) fn used_end(&self) -> ByteOffset {
        self.used_end
    }

    /// Where the bitmap of `block` starts; `None` where the block is not allocated.
    pub(super) fn get(&self, block: u64) -> Option<ByteOffset> {
        let entry = self.entries.get(usize::try_from(block).ok()?)?.load(Ordering::Acquire);
        (entry != UNUSED).then(|| offset_of(entry))
    }

    /// Records that `block` is at `at`: first in the file, then for readers. The caller holds the allocator.
    pub(super) fn set(&self, file: &dyn StorageFile, block: u64, at: ByteOffset) -> Result<()> {
        let entry = u32::try_from(at.lba().get()).expect("the allocator stays below 2 TiB");
        file.write_at(self.start + ByteLen::new(block * ENTRY_BYTES), &entry.to_be_bytes())?;
        self.entries[ByteLen::new(block).as_usize()].store(entry, Ordering::Release);
        Ok(())
    }
}

/// Calls `take` with the number and the place of every entry that leads to a block, in a file that is as long as the
/// table says.
pub(super) fn walk_blocks(
    file: &dyn StorageFile,
    header: &DynamicHeader,
    mut take: impl FnMut(u64, ByteOffset) -> Result<()>,
) -> Result<()> {
    walk(file, header, |number, entry| if entry == UNUSED { Ok(()) } else { take(number, offset_of(entry)) })
}

fn walk(
    file: &dyn StorageFile,
    header: &DynamicHeader,
    mut take: impl FnMut(u64, u32) -> Result<()>,
) -> Result<()> {
    let listed = Extent::new(header.table_offset, ByteLen::new(u64::from(header.entries) * ENTRY_BYTES))?;
    let mut buffer = vec![0; READ_BYTES.as_usize()];
    let mut number = 0;
    for piece in listed.split(READ_BYTES) {
        let bytes = &mut buffer[..piece.len().as_usize()];
        file.read_at(piece.start(), bytes)?;
        for entry in bytes.chunks_exact(4).map(|entry| super::footer::be32(entry, 0)) {
            take(number, entry)?;
            number += 1;
        }
    }
    Ok(())
}

fn offset_of(entry: u32) -> ByteOffset {
    ByteOffset::new(u64::from(entry) * SECTOR_BYTES)
}
