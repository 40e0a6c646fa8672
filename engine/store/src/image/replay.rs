//! Replaying a merged delta into an image, so that each block is read, changed, summed and written once.

use super::sums::{Patch, REGION, SummedImage};
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, RequestClass, Result, Volume};

/// One piece of what is replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayPiece {
    /// Where on the disk.
    pub extent: Extent,
    /// What it becomes.
    pub content: ReplayContent,
}

/// What an extent becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayContent {
    /// These bytes, as many as the extent has.
    Data(Vec<u8>),
    /// Zeroes.
    Zero,
    /// No longer needed; reads as zeroes.
    Discard,
}

/// Writes the pieces, which come in ascending order and do not overlap, into the image. Holds one region of 1 MiB in
/// memory.
///
/// `progress` is called with how many bytes of pieces are done; where it says `false`, the replay ends with `Cancelled`.
/// Does not flush: the caller does, before it relies on anything. After an error or a crash the image holds a part of
/// the pieces; replaying all of them again mends it (see [`SummedImage::redo`]).
///
/// Errors: those of the pieces; `InvalidInput` for pieces out of order, past the end, or with more or fewer bytes than
/// their extent; `Corrupt` where a block that is changed in part does not match its checksum; those of writing.
pub fn replay(
    pieces: impl Iterator<Item = Result<ReplayPiece>>,
    image: &SummedImage,
    progress: &dyn Fn(ByteLen) -> bool,
) -> Result<()> {
    let mut batch = Batch { image, patches: Vec::new(), region: 0 };
    let mut done = ByteLen::ZERO;
    let mut after = ByteOffset::ZERO;
    for piece in pieces {
        let piece = piece?;
        let (extent, content) = (piece.extent, piece.content);
        if extent.start() < after || !is_whole(extent, &content) {
            let context =
                format!("replay of {extent}: out of order after {after}, or not as long as its data");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        after = extent.end();
        batch.add(extent, content)?;
        done += extent.len();
        if !progress(done) {
            return Err(Error::new(ErrorKind::Cancelled, "the replay was called off"));
        }
    }
    batch.write()
}

fn is_whole(extent: Extent, content: &ReplayContent) -> bool {
    match content {
        ReplayContent::Data(bytes) => ByteLen::of(bytes) == extent.len(),
        ReplayContent::Zero | ReplayContent::Discard => true,
    }
}

/// The pieces of one region, not yet written.
struct Batch<'a> {
    image: &'a SummedImage,
    patches: Vec<(Extent, ReplayContent)>,
    region: u64,
}

impl Batch<'_> {
    fn add(&mut self, extent: Extent, content: ReplayContent) -> Result<()> {
        if let ReplayContent::Data(bytes) = &content
            && extent.split(REGION).nth(1).is_some()
        {
            for part in extent.split(REGION) {
                let skip = (part.start() - extent.start()).as_usize();
                let part_bytes = bytes[skip..skip + part.len().as_usize()].to_vec();
                self.add_within_region(part, ReplayContent::Data(part_bytes))?;
            }
            return Ok(());
        }
        if matches!(content, ReplayContent::Data(_)) {
            return self.add_within_region(extent, content);
        }
        self.add_zeroes(extent, &content)
    }

    /// Whole regions of zeroes go to the image as one; what is left at both ends shares its regions with neighbours.
    fn add_zeroes(&mut self, extent: Extent, content: &ReplayContent) -> Result<()> {
        let region_bytes = REGION.get();
        let first =
            ByteOffset::new(extent.start().get().next_multiple_of(region_bytes).min(extent.end().get()));
        let last = ByteOffset::new(extent.end().get() / region_bytes * region_bytes).max(first);
        if let Some(head) = Extent::between(extent.start(), first) {
            self.add_within_region(head, content.clone())?;
        }
        if let Some(middle) = Extent::between(first, last) {
            self.write()?;
            match content {
                ReplayContent::Discard => self.image.discard(middle, false, RequestClass::Background)?,
                _ => self.image.write_zeroes(middle, false, false, RequestClass::Background)?,
            }
        }
        match Extent::between(last, extent.end()) {
            Some(tail) => self.add_within_region(tail, content.clone()),
            None => Ok(()),
        }
    }

    fn add_within_region(&mut self, extent: Extent, content: ReplayContent) -> Result<()> {
        let region = extent.start().get() / REGION.get();
        if region != self.region {
            self.write()?;
            self.region = region;
        }
        self.patches.push((extent, content));
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        if self.patches.is_empty() {
            return Ok(());
        }
        let patches = std::mem::take(&mut self.patches);
        let patches: Vec<Patch<'_>> = patches
            .iter()
            .map(|(extent, content)| match content {
                ReplayContent::Data(bytes) => Patch::Data(*extent, bytes),
                ReplayContent::Zero => Patch::Zero(*extent),
                ReplayContent::Discard => Patch::Discard(*extent),
            })
            .collect();
        self.image.patch_region(&patches, RequestClass::Background)
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
