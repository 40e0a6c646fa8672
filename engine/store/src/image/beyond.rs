//! Reads past the end of something that is shorter than what stands on it: zeroes.

use blocks::{ByteLen, ByteOffset, Extent, RequestClass, Result, StorageFile, Volume};
use std::sync::Arc;

/// What shows of a parent; without one, zeroes. A parent that is shorter than the disk goes on with zeroes.
pub(super) fn read_parent(parent: Option<&Arc<dyn Volume>>, run: Extent, buffer: &mut [u8]) -> Result<()> {
    let Some(parent) = parent else {
        buffer.fill(0);
        return Ok(());
    };
    match zero_beyond(parent.len().end(), run.start(), buffer) {
        [] => Ok(()),
        stored => parent.read_at(run.start(), stored, RequestClass::Guest),
    }
}

/// What a file holds that ends at `end`. The last block of other writers' files may be cut; the rest of it is zero.
pub(super) fn read_cut(
    file: &dyn StorageFile,
    end: ByteOffset,
    at: ByteOffset,
    buffer: &mut [u8],
) -> Result<()> {
    match zero_beyond(end, at, buffer) {
        [] => Ok(()),
        stored => file.read_at(at, stored),
    }
}

/// Zeroes what lies past `end`, and gives the rest.
fn zero_beyond(end: ByteOffset, at: ByteOffset, buffer: &mut [u8]) -> &mut [u8] {
    let present = ByteLen::new(end.get().saturating_sub(at.get())).as_usize();
    let (stored, beyond) = buffer.split_at_mut(present.min(buffer.len()));
    beyond.fill(0);
    stored
}
