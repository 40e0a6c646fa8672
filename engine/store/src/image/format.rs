//! Which formats there are, and how a file of each is made, recognised and opened.

use super::check::CheckReport;
use super::disk::DiskVolume;
use super::qcow2::{self, Qcow2Disk};
use super::raw::RawDisk;
use super::vhd::{self, VhdDisk};
use super::vhdx::{self, VhdxDisk};
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
    /// Microsoft's second Virtual Hard Disk; at most 64 TiB.
    Vhdx,
    /// QEMU's format, version 3 when we make it.
    Qcow2,
}

impl ImageFormat {
    /// Every format.
    pub const ALL: [ImageFormat; 4] =
        [ImageFormat::Raw, ImageFormat::Vhd, ImageFormat::Vhdx, ImageFormat::Qcow2];

    /// The format's name, which is also the usual ending of its files.
    pub const fn name(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Vhd => "vhd",
            ImageFormat::Vhdx => "vhdx",
            ImageFormat::Qcow2 => "qcow2",
        }
    }

    /// What new machines' images are made of where nobody chose: VHD, which the most programs take, as long as every
    /// disk fits, else VHDX.
    pub fn for_disks(lens: impl IntoIterator<Item = ByteLen>) -> ImageFormat {
        let fits = lens.into_iter().all(|len| len <= vhd::LEN_MAX);
        if fits { ImageFormat::Vhd } else { ImageFormat::Vhdx }
    }

    /// The largest disk that the format holds; `None` where the file system sets the bound.
    pub const fn len_max(self) -> Option<ByteLen> {
        match self {
            ImageFormat::Raw => None,
            ImageFormat::Vhd => Some(vhd::LEN_MAX),
            ImageFormat::Vhdx => Some(vhdx::LEN_MAX),
            ImageFormat::Qcow2 => Some(qcow2::LEN_MAX),
        }
    }

    /// `Unsupported` where a disk of this length does not fit the format, `InvalidInput` where no format of ours holds
    /// it. Nothing is touched: to be asked before anything is created.
    pub fn check_len(self, len: ByteLen) -> Result<()> {
        if len.is_zero() || !len.is_aligned(BlockShift::SECTOR) {
            let context = format!("a disk of {len} bytes: not a positive multiple of {SECTOR_BYTES}");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        match self.len_max() {
            Some(max) if len > max => {
                let (name, gib) = (self.name().to_uppercase(), max.get() >> 30);
                let context = format!(
                    "a disk of {len} bytes does not fit a {name}, which holds at most {max} ({gib} GiB)"
                );
                Err(Error::new(ErrorKind::Unsupported, context))
            }
            _ => Ok(()),
        }
    }

    /// The format that QEMU calls so.
    fn of_qemu(name: &str) -> Option<ImageFormat> {
        match name {
            "raw" | "file" | "host_device" => Some(ImageFormat::Raw),
            "vpc" => Some(ImageFormat::Vhd),
            "vhdx" => Some(ImageFormat::Vhdx),
            "qcow2" => Some(ImageFormat::Qcow2),
            _ => None,
        }
    }
}

impl FromStr for ImageFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<ImageFormat> {
        ImageFormat::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
            let names = ImageFormat::ALL.map(ImageFormat::name).join(", ");
            let context = format!("{text:?} is not an image format; there are {names}");
            Error::new(ErrorKind::InvalidInput, context)
        })
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How an image is opened.
#[derive(Debug, Clone, Default)]
pub struct ImageOptions {
    /// What it is; recognised where it is not said.
    pub format: Option<ImageFormat>,
    /// Writes are taken.
    pub writable: bool,
    /// The files that it, or one of these, may stand on, opened by whoever allows it. A path that an image names is
    /// never followed: of these, the one whose file name is the one that the image names is used, each once.
    pub parents: Vec<Arc<dyn StorageFile>>,
}

/// What kind of image is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewImage {
    /// What it looks like inside.
    pub format: ImageFormat,
    /// The disk's length.
    pub len: ByteLen,
    /// Every block has its place from the start. Only VHDX has the choice; raw is always so.
    pub fixed: bool,
    /// The unit in which the disk is addressed: 512 bytes, or with VHDX 4096.
    pub logical_sector: BlockShift,
}

impl NewImage {
    /// The format's usual kind.
    pub fn new(format: ImageFormat, len: ByteLen) -> NewImage {
        NewImage { format, len, fixed: false, logical_sector: BlockShift::SECTOR }
    }

    /// As [`ImageFormat::check_len`], and `Unsupported` for what the format does not know.
    pub fn check(self) -> Result<()> {
        self.format.check_len(self.len)?;
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
        if self.fixed && !vhdx {
            let context = format!("a fixed image is not made as {}", self.format);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        Ok(())
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
    let NewImage { format, len, fixed, logical_sector } = new;
    let file = storage.open(name, OpenMode::CreateNew)?;
    let made = match format {
        ImageFormat::Raw => file.set_len(len).and_then(|()| file.sync()).map(drop),
        ImageFormat::Vhd => vhd::create(&*file, len),
        ImageFormat::Vhdx => vhdx::create(&*file, vhdx::NewDisk { len, fixed, logical_sector }),
        ImageFormat::Qcow2 => qcow2::create(&*file, len),
    };
    if let Err(error) = made {
        // The error that matters is the first; a file that cannot be removed is found by whoever tries again.
        let _ = storage.remove(name);
        return Err(error);
    }
    open_image(file, Some(format), true)
}

/// Opens an image that stands alone; see [`open_image_with`].
pub fn open_image(
    file: Arc<dyn StorageFile>,
    format: Option<ImageFormat>,
    writable: bool,
) -> Result<Arc<dyn Volume>> {
    open_image_with(file, ImageOptions { format, writable, parents: Vec::new() })
}

/// Opens an image. Without a format it is recognised by QCOW2's or VHDX's magic, or VHD's cookie at either
/// end, else raw.
///
/// A raw disk whose owner may write anything can be made to look like another format: name the format wherever it is
/// known. Errors: `Corrupt` naming the file where it contradicts itself; `Unsupported` for kinds that we do not know, and
/// for an image that stands on a file which is not among the parents.
pub fn open_image_with(file: Arc<dyn StorageFile>, options: ImageOptions) -> Result<Arc<dyn Volume>> {
    let ImageOptions { format, writable, mut parents } = options;
    let format = format.map_or_else(|| probe_image(&*file), Ok)?;
    match format {
        ImageFormat::Raw => Ok(Arc::new(DiskVolume::new(RawDisk::open(file)?, writable))),
        ImageFormat::Vhd => match vhd::open(&*file)? {
            vhd::Opened::Fixed(len) => Ok(Arc::new(DiskVolume::new(RawDisk::with_len(file, len)?, writable))),
            vhd::Opened::Dynamic(parts) => {
                Ok(Arc::new(DiskVolume::new(VhdDisk::new(file, *parts, writable)?, writable)))
            }
        },
        ImageFormat::Vhdx => {
            let opened = vhdx::Opened::read(file, writable)?;
            let parent = match opened.parent_path() {
                None => None,
                Some(path) => {
                    let parent = take_parent(opened.name(), path, &mut parents)?;
                    opened.check_parent(&*parent)?;
                    let format = Some(ImageFormat::Vhdx);
                    Some(open_image_with(parent, ImageOptions { format, writable: false, parents })?)
                }
            };
            Ok(Arc::new(DiskVolume::new(VhdxDisk::new(opened, parent, writable)?, writable)))
        }
        ImageFormat::Qcow2 => {
            let opened = qcow2::open(&*file)?;
            let backing = match opened.backing() {
                None => None,
                Some((named, format)) => {
                    let parent = take_parent(file.name(), named, &mut parents)?;
                    let format = backing_format(&*file, format)?;
                    Some(open_image_with(parent, ImageOptions { format, writable: false, parents })?)
                }
            };
            Ok(Arc::new(DiskVolume::new(Qcow2Disk::new(file, opened, backing, writable)?, writable)))
        }
    }
}

/// What the file looks like: a format with a magic of its own, else raw.
pub fn probe_image(file: &dyn StorageFile) -> Result<ImageFormat> {
    if qcow2::looks_like(file)? {
        return Ok(ImageFormat::Qcow2);
    }
    if vhdx::looks_like(file)? {
        return Ok(ImageFormat::Vhdx);
    }
    Ok(if vhd::looks_like(file)? { ImageFormat::Vhd } else { ImageFormat::Raw })
}

/// Looks at every structure of an image and says what is wrong; with `repair`, for which the file must be open for
/// writing, puts right what needs no guess.
///
/// Errors: those of reading and writing; `Corrupt` where so much is wrong that nothing can be looked at; `Unsupported`
/// for formats that have nothing to check.
pub fn check_image(
    file: &Arc<dyn StorageFile>,
    format: Option<ImageFormat>,
    repair: bool,
) -> Result<CheckReport> {
    match format.map_or_else(|| probe_image(&**file), Ok)? {
        ImageFormat::Qcow2 => qcow2::check(&**file, repair),
        ImageFormat::Vhdx => vhdx::check(file, repair),
        ImageFormat::Vhd => vhd::open(&**file).map(|_| CheckReport::default()),
        ImageFormat::Raw => {
            let context = format!("{}: a raw image has no structures to check", file.name());
            Err(Error::new(ErrorKind::Unsupported, context))
        }
    }
}

/// The file that an image stands on, from among those that are allowed.
fn take_parent(
    name: &str,
    named: &str,
    parents: &mut Vec<Arc<dyn StorageFile>>,
) -> Result<Arc<dyn StorageFile>> {
    let last = |path: &str| path.rsplit(['/', '\\']).next().unwrap_or(path).to_owned();
    let wanted = last(named);
    match parents.iter().position(|parent| last(parent.name()) == wanted) {
        Some(at) => Ok(parents.remove(at)),
        None => {
            let context = format!("{name} stands on another file, {named:?}, which was not allowed");
            Err(Error::new(ErrorKind::Unsupported, context))
        }
    }
}

fn backing_format(file: &dyn StorageFile, named: Option<&str>) -> Result<Option<ImageFormat>> {
    let Some(named) = named else { return Ok(None) };
    ImageFormat::of_qemu(named).map(Some).ok_or_else(|| {
        let context = format!("{}: a backing file of format {named:?} is not known", file.name());
        Error::new(ErrorKind::Unsupported, context)
    })
}
