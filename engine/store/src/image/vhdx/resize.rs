//! Another length for a VHDX: the size is eight bytes of the metadata, in one sector.

use super::super::resize::only_by_converting;
use super::bat::{Bat, State};
use super::metadata::size_at;
use super::{Opened, Parts, new_id};
use blocks::{ByteLen, Error, Extent, Result, SECTOR_BYTES, StorageFile};
use std::sync::Arc;

/// How long the disk can be made in the table's region.
pub(in super::super) fn room(file: &Arc<dyn StorageFile>) -> Result<ByteLen> {
    let Opened { parts, .. } = Opened::read(Arc::clone(file), false)?;
    let metadata = &parts.metadata;
    let chunk_ratio = (metadata.logical_sector.bytes() << 23) >> metadata.block.get();
    let blocks = Bat::blocks_in(parts.regions.bat.len(), chunk_ratio);
    let bytes = u128::from(blocks) << metadata.block.get();
    let len_max = super::LEN_MAX.get();
    Ok(ByteLen::new(u64::try_from(bytes).map_or(len_max, |bytes| bytes.min(len_max))))
}

/// Makes the disk longer; see [`super::super::resize_image`].
pub(in super::super) fn resize(file: &Arc<dyn StorageFile>, len: ByteLen) -> Result<()> {
    let Opened { file, mut headers, parts, .. } = Opened::read(Arc::clone(file), true)?;
    let metadata = &parts.metadata;
    let name = file.name();
    if metadata.fixed || metadata.parent.is_some() {
        return Err(only_by_converting(name, "a fixed or differencing VHDX"));
    }
    if len < metadata.len {
        return Err(only_by_converting(name, "a VHDX that is longer"));
    }
    let chunk_ratio = (metadata.logical_sector.bytes() << 23) >> metadata.block.get();
    let table_len = |len: ByteLen| Bat::len_for(len.blocks(metadata.block), chunk_ratio);
    let (old, new) = (table_len(metadata.len), table_len(len));
    if new > parts.regions.bat.len() {
        return Err(only_by_converting(name, "a VHDX whose table has no room left"));
    }
    let start = parts.regions.bat.start();
    if let Some(fresh) = Extent::between(start + old, start + new) {
        for piece in fresh.split(super::bat::PAGE) {
            let mut bytes = vec![0; piece.len().as_usize()];
            file.read_at(piece.start(), &mut bytes)?;
            if !blocks::is_zero(&bytes) {
                return Err(Error::corrupt(format!("{name}: what follows its table is not empty")));
            }
        }
    }
    let at = size_at(&*file, parts.regions.metadata)?;
    if at.get() / SECTOR_BYTES != (at.get() + 7) / SECTOR_BYTES {
        // A power cut could leave half of a number that lies in two sectors.
        return Err(only_by_converting(name, "a VHDX whose size lies across two sectors"));
    }
    complete_last_block(&*file, &parts)?;
    headers.replace(&*file, |header| {
        header.file_write = new_id();
        header.data_write = new_id();
    })?;
    file.write_at(at, &len.get().to_le_bytes())?;
    file.sync().map(drop)
}

/// The file may end where the disk does, within its last block; in a longer disk that block is a whole one.
fn complete_last_block(file: &dyn StorageFile, parts: &Parts) -> Result<()> {
    let last = parts.bat.blocks() - 1;
    let State::Present(at) = parts.bat.get(file, last)? else { return Ok(()) };
    let end = ByteLen::new((at + parts.metadata.block.len()).get());
    if file.len()? >= end {
        return Ok(());
    }
    file.set_len(end)?;
    file.sync().map(drop)
}
