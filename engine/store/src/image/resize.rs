//! Making the disk of an image longer or shorter, in place.

use super::opening::{ImageOptions, open_image_with, probe_image};
use super::{ImageFormat, qcow2, vhdx};
use crate::copy::STEP;
use blocks::{
    Allocation, ByteLen, ByteOffset, Error, ErrorKind, Extent, RequestClass, Result, StorageFile, Volume,
};
use std::sync::Arc;

/// Beyond the old end, what other writers left within the last block is cleared: no block is larger than this.
const BLOCK_MAX: ByteLen = ByteLen::new(256 << 20);

/// Makes the image's disk `len` bytes long and flushes it. What is new reads as zeroes. Nobody else may have it open.
///
/// Raw and QCOW2 grow and shrink, dynamic VHDX grows; QCOW2 and VHDX as far as their tables have room, which
/// for ours is 4 TiB and a multiple of 1 TiB. A power cut leaves the one length or the other.
///
/// Errors: `InvalidInput` for a length that is not whole sectors, and for one that would cut off anything but zeroes;
/// `Unsupported` for other formats, for what stands on another file, has internal snapshots, or has no room in its
/// tables; those of reading and writing.
pub fn resize_image(file: &Arc<dyn StorageFile>, format: Option<ImageFormat>, len: ByteLen) -> Result<()> {
    let format = format.map_or_else(|| probe_image(&**file), Ok)?;
    format.check_len(len)?;
    let open = |writable| {
        let options = ImageOptions { format: Some(format), writable, ..ImageOptions::default() };
        open_image_with(Arc::clone(file), options)
    };
    // Opened for writing once, so that what waits to be put right by that is, before the length changes.
    let old = open(true)?;
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
        ImageFormat::Vhdx => vhdx::resize(file, len)?,
        ImageFormat::Qcow2 => qcow2::resize(&**file, len)?,
        // A fixed VHD has one footer, which cannot move in one step; the others would need tables elsewhere.
        ImageFormat::Vhd => return Err(only_by_converting(file.name(), "a VHD")),
        ImageFormat::Vmdk => return Err(only_by_converting(file.name(), "a VMDK")),
    }
    let new = open(true)?;
    let fresh_end = (old_len.end() + BLOCK_MAX).min(len.end());
    if let Some(fresh) = Extent::between(old_len.end(), fresh_end) {
        new.discard(fresh, true, RequestClass::Background)?;
    }
    new.flush()
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
