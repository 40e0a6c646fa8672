//! Making image files.

use super::format::check_len_within;
use super::opening::{ImageOptions, open_image_with};
use super::{ImageFormat, qcow2, vhd, vhdx, vmdk};
use blocks::{BlockShift, ByteLen, Error, ErrorKind, OpenMode, Result, Storage, StorageFile, Volume};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What kind of image is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewImage {
    /// What it looks like inside.
    pub format: ImageFormat,
    /// The disk's length.
    pub len: ByteLen,
    /// Every block has its place from the start. VHD, VHDX and VMDK (where the disk then is a second file,
    /// `NAME-flat.vmdk`) have the choice; raw is always so.
    pub fixed: bool,
    /// The unit in which the disk is addressed: 512 bytes, or with VHDX 4096.
    pub logical_sector: BlockShift,
    /// It is filled once, and read only when that is done: what is written need not stay in memory.
    pub filled_once: bool,
}

impl NewImage {
    /// The format's usual kind.
    pub fn new(format: ImageFormat, len: ByteLen) -> NewImage {
        NewImage { format, len, fixed: false, logical_sector: BlockShift::SECTOR, filled_once: false }
    }

    /// As [`ImageFormat::check_len`], and `Unsupported` for what the format does not know.
    pub fn check(self) -> Result<()> {
        match (self.format, self.fixed) {
            (ImageFormat::Vmdk, true) => check_len_within("vmdk", Some(vmdk::FLAT_LEN_MAX), self.len)?,
            _ => self.format.check_len(self.len)?,
        }
        let vhdx = self.format == ImageFormat::Vhdx;
        let sector = self.logical_sector;
        let sector_fits = sector == BlockShift::SECTOR || (vhdx && sector == BlockShift::KIB_4);
        if !sector_fits || !self.len.is_aligned(sector) {
            let context = format!(
                "a disk of {} bytes with sectors of {} is not possible as {}",
                self.len,
                sector.bytes(),
                self.format
            );
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        if self.fixed && matches!(self.format, ImageFormat::Raw | ImageFormat::Qcow2) {
            let context = format!("a fixed image is not made as {}", self.format);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        Ok(())
    }

    /// The files that such an image called `name` consists of.
    pub fn files(self, name: &str) -> Vec<String> {
        let mut files = vec![name.to_owned()];
        if self.format == ImageFormat::Vmdk && self.fixed {
            files.push(vmdk::flat_name(name));
        }
        files
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
    create_image_with(storage, name, NewImage::new(format, len))
}

/// The same with every choice.
pub fn create_image_with(storage: &dyn Storage, name: &str, new: NewImage) -> Result<Arc<dyn Volume>> {
    new.check()?;
    let mut files = Vec::new();
    let made = make_files(storage, name, new, &mut files);
    let Err(error) = made else {
        let parents = files.split_off(1);
        let options = ImageOptions { format: Some(new.format), writable: true, parents, folder: None };
        return open_image_with(files.remove(0), options);
    };
    for made in new.files(name).iter().take(files.len()) {
        // The error that matters is the first; a file that cannot be removed is found by whoever tries again.
        let _ = storage.remove(made);
    }
    Err(error)
}

/// Makes and fills the files of a new image. What was made is in `files`, also after an error.
fn make_files(
    storage: &dyn Storage,
    name: &str,
    new: NewImage,
    files: &mut Vec<Arc<dyn StorageFile>>,
) -> Result<()> {
    for name in new.files(name) {
        files.push(storage.open(&name, OpenMode::CreateNew)?);
    }
    if new.filled_once {
        // Where that is not possible, it takes longer and is as good.
        files.iter().for_each(|file| _ = file.write_past_cache());
    }
    let NewImage { format, len, fixed, logical_sector, .. } = new;
    let file = &*files[0];
    match format {
        ImageFormat::Raw => file.set_len(len).and_then(|()| file.sync()).map(drop),
        ImageFormat::Vhd if fixed => vhd::create_fixed(file, len),
        ImageFormat::Vhd => vhd::create(file, len),
        ImageFormat::Vhdx => vhdx::create(file, vhdx::NewDisk { len, fixed, logical_sector }),
        ImageFormat::Qcow2 => qcow2::create(file, len),
        ImageFormat::Vmdk if fixed => vmdk::create_flat(file, &*files[1], len),
        ImageFormat::Vmdk => vmdk::create_sparse(file, len),
    }
}

/// What a new file can be made as: a format and, where it has several kinds, which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// What can be written in place.
    Image {
        /// What it looks like inside.
        format: ImageFormat,
        /// Every block has its place from the start.
        fixed: bool,
    },
    /// A compressed VMDK, written once from start to end: what goes into an OVA.
    VmdkStream,
}

impl ImageKind {
    /// Every kind.
    pub const ALL: [ImageKind; 9] = [
        ImageKind::usual(ImageFormat::Raw),
        ImageKind::usual(ImageFormat::Vhd),
        ImageKind::Image { format: ImageFormat::Vhd, fixed: true },
        ImageKind::usual(ImageFormat::Vhdx),
        ImageKind::Image { format: ImageFormat::Vhdx, fixed: true },
        ImageKind::usual(ImageFormat::Qcow2),
        ImageKind::usual(ImageFormat::Vmdk),
        ImageKind::Image { format: ImageFormat::Vmdk, fixed: true },
        ImageKind::VmdkStream,
    ];

    const fn usual(format: ImageFormat) -> ImageKind {
        ImageKind::Image { format, fixed: false }
    }

    /// The kind's name.
    pub const fn name(self) -> &'static str {
        match self {
            ImageKind::Image { format: ImageFormat::Vhd, fixed: true } => "vhd-fixed",
            ImageKind::Image { format: ImageFormat::Vhdx, fixed: true } => "vhdx-fixed",
            ImageKind::Image { format: ImageFormat::Vmdk, fixed: true } => "vmdk-flat",
            ImageKind::Image { format, .. } => format.name(),
            ImageKind::VmdkStream => "vmdk-stream",
        }
    }

    /// As [`ImageFormat::check_len`].
    pub fn check_len(self, len: ByteLen) -> Result<()> {
        match self {
            ImageKind::Image { format, fixed } => NewImage { fixed, ..NewImage::new(format, len) }.check(),
            ImageKind::VmdkStream => check_len_within(self.name(), Some(vmdk::STREAM_LEN_MAX), len),
        }
    }
}

impl FromStr for ImageKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<ImageKind> {
        ImageKind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names = ImageKind::ALL.map(ImageKind::name).join(", ");
            Error::new(ErrorKind::InvalidInput, format!("{text:?} is no kind of image; there are {names}"))
        })
    }
}

impl fmt::Display for ImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Makes the file `name` a child of `parent`: an image of the same disk, of which only what is written from now on is
/// stored. VHD only, and both in one folder. Whoever opens the child names the parent, which must not be written any
/// more. Durable but for its entry in the folder; after an error no file is left behind.
///
/// Errors: `Unsupported` for other formats; `AlreadyExists`; those of reading and writing.
pub fn create_child(storage: &dyn Storage, name: &str, parent: &dyn StorageFile) -> Result<()> {
    if super::probe_image(parent)? != ImageFormat::Vhd {
        let context = format!("{}: children are made of VHDs only", parent.name());
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let file = storage.open(name, OpenMode::CreateNew)?;
    let made = vhd::create_child(&*file, parent);
    if made.is_err() {
        // As above.
        let _ = storage.remove(name);
    }
    made
}

/// Makes the file `name` a stream-optimized VMDK of `from`, durable but for its entry in the folder; after an error no
/// file is left behind.
pub(crate) fn create_stream(
    storage: &dyn Storage,
    name: &str,
    from: &dyn Volume,
    threads: usize,
    progress: &dyn Fn(ByteLen, ByteLen) -> bool,
) -> Result<()> {
    ImageKind::VmdkStream.check_len(from.len())?;
    let file = storage.open(name, OpenMode::CreateNew)?;
    let written = vmdk::write_stream(from, &*file, threads, progress);
    if written.is_err() {
        // The error that matters is the first; a file that cannot be removed is found by whoever tries again.
        let _ = storage.remove(name);
    }
    written
}
