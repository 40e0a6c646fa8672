//! Making the disk of an image longer or shorter, in place.

use super::format::check_len_within;
use super::opening::{ImageOptions, extents, open_image_with, probe_image};
use super::{ImageFormat, qcow2, vhd, vhdx, vmdk};
use crate::copy::STEP;
use blocks::{
    Allocation, ByteLen, ByteOffset, Error, ErrorKind, Extent, RequestClass, Result, StorageFile, Volume,
};
use std::sync::Arc;

/// Beyond the old end, what other writers left within the last block is cleared: no block is larger than this.
const BLOCK_MAX: ByteLen = ByteLen::new(256 << 20);

/// As [`resize_image_with`], of an image that has all its data in one file.
pub fn resize_image(file: &Arc<dyn StorageFile>, format: Option<ImageFormat>, len: ByteLen) -> Result<()> {
    resize_image_with(file, ImageOptions { format, ..ImageOptions::default() }, len)
}

/// Makes the image's disk `len` bytes long and flushes it. What is new reads as zeroes. Nobody else may have it open.
///
/// Raw, VHD, QCOW2 and flat VMDK grow and shrink, dynamic VHDX and sparse VMDK grow; QCOW2 and VHDX as far as their
/// tables have room, which for ours is 4 TiB and a multiple of 1 TiB. A power cut leaves the one length or the other.
///
/// Errors: `InvalidInput` for a length that is not whole sectors, and for one that would cut off anything but zeroes;
/// `Unsupported` for what the format cannot hold, for what stands on another file, has internal snapshots, is compressed
/// or in several extents, or has no room in its tables; those of reading and writing.
pub fn resize_image_with(file: &Arc<dyn StorageFile>, options: ImageOptions, len: ByteLen) -> Result<()> {
    let format = options.format.map_or_else(|| probe_image(&**file), Ok)?;
    match format {
        ImageFormat::Vmdk => check_len_within("vmdk", Some(vmdk::FLAT_LEN_MAX), len)?,
        _ => format.check_len(len)?,
    }
    let options = ImageOptions { format: Some(format), writable: true, ..options };
    let open = || open_image_with(Arc::clone(file), options.clone());
    // Opened for writing once, so that what waits to be put right by that is, before the length changes.
    let old = open()?;
    let (old_len, alignment) = (old.len(), old.alignment());
    if !len.is_aligned(alignment) {
        let context = format!("{}: {len} bytes are not whole sectors of {}", file.name(), alignment.bytes());
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    if let Some(lost) = Extent::between(len.end(), old_len.end()) {
        check_zero(&*old, lost).map_err(|error| error.context(file.name()))?;
    }
    drop(old);
    if len == old_len {
        return Ok(());
    }
    match format {
        ImageFormat::Raw => file.set_len(len).and_then(|()| file.sync()).map(drop)?,
        ImageFormat::Vhd => vhd::resize(&**file, len)?,
        ImageFormat::Vhdx => vhdx::resize(file, len)?,
        ImageFormat::Qcow2 => qcow2::resize(&**file, len)?,
        ImageFormat::Vmdk => vmdk::resize(file, extents(file, &options)?, len)?,
    }
    let new = open()?;
    let fresh_end = (old_len.end() + BLOCK_MAX).min(len.end());
    if let Some(fresh) = Extent::between(old_len.end(), fresh_end) {
        new.discard(fresh, true, RequestClass::Background)?;
    }
    new.flush()
}

/// How long [`resize_image`] can make the disk of an image of ours, in bytes.
pub(super) fn room(file: &Arc<dyn StorageFile>, format: ImageFormat) -> Result<ByteLen> {
    match format {
        ImageFormat::Vhdx => vhdx::room(file),
        ImageFormat::Qcow2 => qcow2::room(&**file),
        // Their tables are made anew, or they have none.
        ImageFormat::Raw | ImageFormat::Vhd | ImageFormat::Vmdk => {
            Ok(format.len_max().unwrap_or(ByteLen::new(i64::MAX.unsigned_abs())))
        }
    }
}

/// The refusal of what this format cannot do.
pub(super) fn only_by_converting(name: &str, what: &str) -> Error {
    let context = format!("{name}: {what} cannot be given this length in place; convert it into a new image");
    Error::new(ErrorKind::Unsupported, context)
}

/// `InvalidInput` where the extent holds anything but zeroes.
fn check_zero(volume: &dyn Volume, extent: Extent) -> Result<()> {
    let mut buffer = vec![0; STEP.as_usize()];
    let mut at = extent.start();
    while let Some(rest) = Extent::between(at, extent.end()) {
        for run in volume.status(rest)? {
            at = run.extent.end();
            let stored = if run.allocation == Allocation::Data { Some(run.extent) } else { None };
            for piece in stored.into_iter().flat_map(|run| run.split(STEP)) {
                let bytes = &mut buffer[..piece.len().as_usize()];
                volume.read_at(piece.start(), bytes, RequestClass::Background)?;
                if let Some(found) = bytes.iter().position(|byte| *byte != 0) {
                    let at: ByteOffset = piece.start() + ByteLen::new(found as u64);
                    let context = format!("byte {at} of the disk is not zero and would be cut off");
                    return Err(Error::new(ErrorKind::InvalidInput, context));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
