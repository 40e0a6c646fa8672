//! VMDKs that are made while they are read: a sparse one, and the descriptor of a flat one.

use super::super::shown::{AllocatedBlocks, Entries, Part, ShownImage};
use super::header::TABLE_BYTES;
use super::{DESCRIPTOR_PLACE, GRAIN, SparsePlan, descriptor_bytes, flat_name, flat_text, sparse_text};
use blocks::{ByteLen, ByteOffset, Result, SECTOR_BYTES, Volume};

/// Its parts; the caller has checked the length.
pub(in crate::image) fn show(disk: &dyn Volume, image: &ShownImage) -> Result<(AllocatedBlocks, Vec<Part>)> {
    let plan = SparsePlan::of(disk.len());
    let text = sparse_text(&image.file_name, content_id(&image.id("vmdk content")), disk.len())?;
    let allocated = AllocatedBlocks::of(disk, GRAIN)?;
    let start = plan.header.overhead.end();
    let entry = move |allocated: &AllocatedBlocks, grain: u64| {
        allocated.index_of(grain).map_or(0, |index| (start.get() + index * GRAIN.bytes()) / SECTOR_BYTES)
    };
    let mut parts = vec![
        Part::bytes(ByteOffset::ZERO, plan.header.encode(false)),
        Part::bytes(ByteOffset::new(DESCRIPTOR_PLACE.0), text),
    ];
    for at in plan.directories() {
        let (first, tables) = (plan.first_table(at), plan.tables);
        let table = move |_: &AllocatedBlocks, number: u64| match number < tables {
            true => (first + number * TABLE_BYTES) / SECTOR_BYTES,
            false => 0,
        };
        parts.push(Part::table(ByteOffset::new(at), plan.directory_bytes, Entries::Le32, Box::new(table)));
        let grains = Box::new(entry);
        parts.push(Part::table(ByteOffset::new(first), tables * TABLE_BYTES, Entries::Le32, grains));
    }
    parts.push(Part::blocks(start, &allocated, Vec::new()));
    Ok((allocated, parts))
}

/// The descriptor of a flat one, with zeroes behind.
pub(in crate::image) fn shown_flat_descriptor(name: &str, len: ByteLen, id: &[u8; 16]) -> Result<Vec<u8>> {
    Ok(descriptor_bytes(&flat_text(name, &flat_name(name), content_id(id), len)?))
}

/// As `identity::new_id`, from an identity.
fn content_id(id: &[u8; 16]) -> u32 {
    u32::from_be_bytes([id[0], id[1], id[2], id[3]]) & (u32::MAX >> 1)
}
