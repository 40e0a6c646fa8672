//! An image with checksums that is made longer while others read it.
//!
//! ```text
//!   image  sidecar       the disk is as long as the sidecar says
//!   old    old           before
//!   new    old           the image's own resize is done, on the medium
//!   new    new           after
//! ```
//! A crash leaves one of these rows. Where the disk's last block was short, its checksum may be the new one in the second
//! row: that block is not held against it until this has been repeated.

use super::ImageFormat;
use super::opening::open_image;
use super::resize::{resize_image, room};
use super::sum_table::{Sum, SumTable};
use super::sums::{Layers, SummedImage};
use crate::storage::{CountedFile, FileCounts};
use blocks::{
    ByteLen, ByteOffset, Error, ErrorKind, Extent, RequestClass, Result, StorageFile, Volume, crash_point,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

/// The file of an image.
pub(super) struct Medium {
    file: Arc<dyn StorageFile>,
    format: ImageFormat,
    counts: Arc<FileCounts>,
    /// How long the disk can be made where the file is, in bytes.
    room: AtomicU64,
}

impl Medium {
    /// Whether data that lies at this offset of the file stays there, whatever becomes of the disk's length.
    pub(super) fn stays_at(&self, offset: ByteOffset) -> bool {
        self.format.moves_before().is_some_and(|end| offset >= end)
    }

    /// Bytes written to it since it was opened.
    pub(super) fn written(&self) -> ByteLen {
        self.counts.written()
    }
}

/// Opens an image of `len` bytes and its sidecar. While they are being made longer, both may be up to `becoming` bytes
/// long, the sidecar not longer than the image. `Corrupt` where they are neither.
pub(crate) fn open_summed(
    (file, format): (Arc<dyn StorageFile>, ImageFormat),
    sums: Arc<dyn StorageFile>,
    (len, becoming): (ByteLen, ByteLen),
    writable: bool,
) -> Result<Arc<SummedImage>> {
    let name = file.name().to_owned();
    let room = AtomicU64::new(room(&file, format)?.get());
    let (file, counts) = CountedFile::around(file);
    let image = open_image(Arc::clone(&file), Some(format), writable)?;
    if !(len..=becoming).contains(&image.len()) {
        return Err(Error::corrupt(format!("{name} is an image of {} bytes, not of {len}", image.len())));
    }
    let sums = SumTable::open(sums, len, image.len())?;
    let summed = SummedImage::new(image, sums, Some(Medium { file, format, counts, room }));
    let len = summed.len();
    if len < becoming
        && let Some(short) = short_block(&summed, len)
    {
        summed.redo(&[short].into_iter().collect());
    }
    Ok(Arc::new(summed))
}

/// The last block of a disk that does not end with a block.
fn short_block(image: &SummedImage, len: ByteLen) -> Option<Extent> {
    Extent::between(len.end().align_down(image.block()), len.end())
}

impl SummedImage {
    /// `Unsupported` where the disk cannot be made so long, with what it could be at most.
    pub(crate) fn check_growth(&self, len: ByteLen) -> Result<()> {
        let Some(medium) = self.medium.as_ref() else { return Err(no_medium()) };
        medium.format.check_len(len)?;
        let room = ByteLen::new(medium.room.load(Ordering::Acquire));
        if len > room {
            let context = format!(
                "a disk of {len} bytes does not fit {}, whose tables were made for at most {room} ({} GiB)",
                medium.file.name(),
                room.get() >> 30
            );
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        Ok(())
    }

    /// Makes the disk `len` bytes long, on the medium when this returns; what is new is zeroes. Readers wait meanwhile.
    /// After an error it is as it was, or has to be reopened; repeating it goes on where it was interrupted. A disk that is
    /// not shorter stays as it is.
    pub(crate) fn grow(&self, len: ByteLen) -> Result<()> {
        let Some(medium) = self.medium.as_ref() else { return Err(no_medium()) };
        let _locks = self.lock_all();
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        let old_len = self.len();
        if len <= old_len {
            return Ok(());
        }
        let last = short_block(self, old_len);
        self.poison.guard(medium.file.name(), || {
            let sum = last.map(|short| self.lengthened(&layers, short, len)).transpose()?;
            match medium.resize(&mut layers, len) {
                // It is as it was, and may be tried again.
                Err(error) if error.kind() == ErrorKind::NoSpace => return Ok(Err(error)),
                resized => resized?,
            }
            crash_point("consolidate.resized");
            layers.sums.grow(len, sum).map(Ok)
        })??;
        if let Some(short) = last {
            self.redo_blocks().remove(short.align_out(self.block()));
        }
        self.len.store(len.get(), Ordering::Release);
        Ok(())
    }

    /// What the checksum of a short block comes to in a disk of `len` bytes: its bytes, which are held against what is
    /// stored, and zeroes behind them.
    fn lengthened(&self, layers: &Layers, short: Extent, len: ByteLen) -> Result<Sum> {
        let image = layers.image.as_ref().ok_or_else(no_medium)?;
        let end = short.align_out(self.block()).end().min(len.end());
        let mut bytes = vec![0; (end - short.start()).as_usize()];
        let (present, _) = bytes.split_at_mut(short.len().as_usize());
        image.read_at(short.start(), present, RequestClass::Background)?;
        let (before, stored) = (Sum::of(present), layers.sums.get(short.blocks(self.block()))?);
        if *stored == [before] || self.redo_blocks().overlaps(short) {
            return Ok(Sum::of(&bytes));
        }
        Err(Error::corrupt(format!("{short} of {} do not match their checksum", layers.sums.name())))
    }
}

impl Medium {
    /// The image's own part.
    fn resize(&self, layers: &mut Layers, len: ByteLen) -> Result<()> {
        if layers.image.as_ref().is_some_and(|image| image.len() >= len) {
            return Ok(());
        }
        let before = layers.image.take();
        if let Some(image) = &before {
            image.flush()?;
        }
        // Nobody else may have it open.
        drop(before);
        let resized = resize_image(&self.file, Some(self.format), len);
        layers.image = Some(open_image(Arc::clone(&self.file), Some(self.format), true)?);
        self.room.store(room(&self.file, self.format)?.get(), Ordering::Release);
        resized
    }
}

fn no_medium() -> Error {
    Error::new(ErrorKind::Unsupported, "an image whose file is not known cannot be made longer")
}

#[cfg(test)]
#[path = "growing_tests.rs"]
mod tests;
