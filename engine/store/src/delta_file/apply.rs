//! Applying a delta file to an image.

use super::reader::DeltaFile;
use crate::image::ReplayContent;
use blocks::{ByteLen, Error, ErrorKind, RequestClass, Result, Volume};

/// Writes what the file holds into `image`, which holds the checkpoint that the file starts from, and flushes it. Doing it
/// again comes to the same, so that what was interrupted is repeated. `progress` is told how many bytes of how many are
/// done and ends it by `false`: that is `Cancelled`, with a part written. `InvalidInput` where the image is of another
/// size, before anything is written.
pub fn apply_delta(
    delta: &DeltaFile,
    image: &dyn Volume,
    progress: &dyn Fn(ByteLen, ByteLen) -> bool,
) -> Result<()> {
    let len = delta.header().len;
    if image.len() != len {
        let (name, found) = (delta.name(), image.len());
        let context = format!("{name} is of a disk of {len} bytes, the image has {found}");
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    let mut done = ByteLen::ZERO;
    for stored in delta.records() {
        let stored = stored?;
        match delta.content(&stored)? {
            ReplayContent::Data(bytes) => {
                image.write_at(stored.extent.start(), &bytes, false, RequestClass::Background)?;
            }
            ReplayContent::Zero => {
                image.write_zeroes(stored.extent, false, false, RequestClass::Background)?;
            }
            ReplayContent::Discard => image.discard(stored.extent, false, RequestClass::Background)?,
        }
        done += stored.extent.len();
        if !progress(done, delta.covered()) {
            return Err(Error::new(ErrorKind::Cancelled, "applying was called off"));
        }
    }
    image.flush()
}
