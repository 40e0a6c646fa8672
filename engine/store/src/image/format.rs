//! Which formats there are, and how a file of each is made, recognised and opened.

use super::raw::RawVolume;
use super::vhd::{self, VhdVolume};
use blocks::{
    BlockShift, ByteLen, Error, ErrorKind, OpenMode, Result, SECTOR_BYTES, Storage, StorageFile, Volume,
};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What an image file looks like inside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ImageFormat {
    /// The disk's bytes and nothing else; what was never written takes no space.
    Raw,
    /// Microsoft's Virtual Hard Disk, dynamic when we make it; at most 2040 GiB.
    Vhd,
}

impl ImageFormat {
    /// The format's name, which is also the usual ending of its files.
    pub const fn name(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Vhd => "vhd",
        }
    }

    /// `Unsupported` where a disk of this length does not fit the format, `InvalidInput` where no format of ours holds
    /// it. Nothing is touched: to be asked before anything is created.
    pub fn check_len(self, len: ByteLen) -> Result<()> {
        if len.is_zero() || !len.is_aligned(BlockShift::SECTOR) {
            let context = format!("a disk of {len} bytes: not a positive multiple of {SECTOR_BYTES}");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        if self == ImageFormat::Vhd && len > vhd::LEN_MAX {
            let context = format!(
                "a disk of {len} bytes does not fit a VHD, which holds at most {} (2040 GiB); choose raw",
                vhd::LEN_MAX
            );
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        Ok(())
    }
}

impl FromStr for ImageFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<ImageFormat> {
        match text {
            "raw" => Ok(ImageFormat::Raw),
            "vhd" => Ok(ImageFormat::Vhd),
            _ => {
                let context = format!("{text:?} is not an image format; there are raw and vhd");
                Err(Error::new(ErrorKind::InvalidInput, context))
            }
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Makes the file `name` an empty (all zero) image of `len` bytes and opens it for writing. The file's content is on
/// the medium when this returns; its entry in the folder is only after the caller's [`Storage::sync_dir`].
///
/// Errors: `Unsupported` and `InvalidInput` as [`ImageFormat::check_len`] before anything is created,
/// `AlreadyExists`, `NoSpace`, `Io`; after those of writing no file is left behind.
pub fn create_image(
    storage: &dyn Storage,
    name: &str,
    format: ImageFormat,
    len: ByteLen,
) -> Result<Arc<dyn Volume>> {
    format.check_len(len)?;
    let file = storage.open(name, OpenMode::CreateNew)?;
    let made = match format {
        ImageFormat::Raw => file.set_len(len).and_then(|()| file.sync()).map(drop),
        ImageFormat::Vhd => vhd::create(&*file, len),
    };
    if let Err(error) = made {
        // The error that matters is the first; a file that cannot be removed is found by whoever tries again.
        let _ = storage.remove(name);
        return Err(error);
    }
    open_image(file, Some(format), true)
}

/// Opens an image. Without a format it is recognised by VHD's cookie at either end of the file, else raw.
///
/// A raw disk whose owner may write anything can be made to look like a VHD: name the format wherever it is known.
/// Errors: `Corrupt` naming the file where a VHD contradicts itself, `Unsupported` for kinds of VHD that hold only
/// differences.
pub fn open_image(
    file: Arc<dyn StorageFile>,
    format: Option<ImageFormat>,
    writable: bool,
) -> Result<Arc<dyn Volume>> {
    let format = match format {
        Some(format) => format,
        None if vhd::looks_like(&*file)? => ImageFormat::Vhd,
        None => ImageFormat::Raw,
    };
    match format {
        ImageFormat::Raw => Ok(Arc::new(RawVolume::open(file, writable)?)),
        ImageFormat::Vhd => match vhd::open(&*file)? {
            vhd::Opened::Fixed(len) => Ok(Arc::new(RawVolume::with_len(file, len, writable)?)),
            vhd::Opened::Dynamic(parts) => Ok(Arc::new(VhdVolume::new(file, *parts, writable)?)),
        },
    }
}
