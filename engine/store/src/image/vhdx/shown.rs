//! A VHDX that is made while it is read.

use super::super::shown::{AllocatedBlocks, Entries, Part, ShownImage};
use super::bat::State;
use super::header::{HEADER_STARTS, Header};
use super::{NewDisk, Plan, identifier, region};
use blocks::{BlockShift, ByteLen, ByteOffset, Result, Volume};

/// Its parts; the caller has checked the length. Its log is empty.
pub(in crate::image) fn show(disk: &dyn Volume, image: &ShownImage) -> Result<(AllocatedBlocks, Vec<Part>)> {
    let new = NewDisk { len: disk.len(), fixed: false, logical_sector: BlockShift::SECTOR };
    let plan = Plan::of(new);
    let allocated = AllocatedBlocks::of(disk, plan.metadata.block)?;
    let (block, chunk_ratio) = (plan.metadata.block, plan.chunk_ratio);
    let (bat, data_start) = (plan.regions.bat, plan.regions.bat.end());
    let entry = move |allocated: &AllocatedBlocks, entry: u64| {
        let (chunk, inside) = (entry / (chunk_ratio + 1), entry % (chunk_ratio + 1));
        // The last of each chunk is a bitmap's, which only differencing disks have.
        let index =
            if inside == chunk_ratio { None } else { allocated.index_of(chunk * chunk_ratio + inside) };
        index.map_or(0, |index| State::encode_present(data_start + ByteLen::new(index * block.bytes())))
    };
    let header = |sequence| Header {
        sequence,
        file_write: image.id("vhdx file"),
        data_write: image.id("vhdx data"),
        log_id: [0; 16],
        log: plan.log,
    };
    let mut parts = vec![Part::bytes(ByteOffset::ZERO, identifier())];
    for (start, sequence) in HEADER_STARTS.into_iter().zip(1..) {
        parts.push(Part::bytes(start, header(sequence).encode()));
    }
    parts.extend(region::TABLE_STARTS.into_iter().map(|start| Part::bytes(start, plan.regions.encode())));
    parts.push(Part::bytes(plan.regions.metadata.start(), plan.metadata.encode(image.id("vhdx disk"))));
    parts.push(Part::table(bat.start(), bat.len().get(), Entries::Le64, Box::new(entry)));
    parts.push(Part::blocks(data_start, &allocated, Vec::new()));
    Ok((allocated, parts))
}
