//! A dynamic VHD that is made while it is read.
//!
//! Each block stands behind 4 KiB whose last sector is its bitmap, so that data lies on 4 KiB; the bitmaps have all bits
//! set, since what is not data reads as zeroes anyway.

use super::super::shown::{AllocatedBlocks, Entries, Part, ShownImage};
use super::footer::{DiskType, Footer};
use super::header::DynamicHeader;
use super::{BAT_START, BLOCK_BYTES, HEADER_START};
use blocks::{BlockShift, ByteLen, ByteOffset, Result, SECTOR_BYTES, Volume};

const BEFORE_DATA: usize = 4096;
const UNUSED: u64 = u32::MAX as u64;

/// The footer of a fixed disk.
pub(in crate::image) fn fixed_footer(len: ByteLen, image: &ShownImage) -> [u8; 512] {
    Footer::identified(len, DiskType::Fixed, image.id("vhd"), image.made).encode()
}

/// The parts of a dynamic one; the caller has checked the length.
pub(in crate::image) fn show(disk: &dyn Volume, image: &ShownImage) -> Result<(AllocatedBlocks, Vec<Part>)> {
    let footer = Footer::identified(disk.len(), DiskType::Dynamic, image.id("vhd"), image.made).encode();
    let header = DynamicHeader::new(disk.len(), BLOCK_BYTES, BAT_START);
    let allocated = AllocatedBlocks::of(disk, header.block)?;
    let table_len = header.bat_end() - BAT_START;
    // Without a block the footer follows the table.
    let start = match allocated.count() {
        0 => header.bat_end(),
        _ => header.bat_end().align_up(BlockShift::KIB_4),
    };
    let stride = BEFORE_DATA as u64 + header.block.bytes();
    let first_bitmap = start.get() + BEFORE_DATA as u64 - SECTOR_BYTES;
    let entry = move |allocated: &AllocatedBlocks, block: u64| match allocated.index_of(block) {
        Some(index) => (first_bitmap + index * stride) / SECTOR_BYTES,
        None => UNUSED,
    };
    let mut before = vec![0; BEFORE_DATA];
    before[BEFORE_DATA - 512..].fill(0xff);
    let blocks = Part::blocks(start, &allocated, before);
    let parts = vec![
        Part::bytes(ByteOffset::ZERO, footer),
        Part::bytes(HEADER_START, header.encode()),
        Part::table(BAT_START, table_len.get(), Entries::Be32, Box::new(entry)),
    ];
    let end = blocks.end();
    Ok((allocated, parts.into_iter().chain([blocks, Part::bytes(end, footer)]).collect()))
}
