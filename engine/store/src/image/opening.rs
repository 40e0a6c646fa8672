//! Recognising, opening and checking image files.

use super::check::CheckReport;
use super::disk::{Disk, DiskVolume};
use super::format::ImageFormat;
use super::qcow2::{self, Qcow2Disk};
use super::raw::RawDisk;
use super::vhd::{self, VhdDisk};
use super::vhdx::{self, VhdxDisk};
use super::vmdk::{self, VmdkDisk};
use crate::copy::{STEP, write_sparsely};
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, OpenMode, Result, Storage, StorageFile, Volume};
use std::sync::Arc;

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
    /// The folder of the image, where it may have data in files beside it (VMDK): of those only what a plain name
    /// names. Without it they must be among the parents.
    pub folder: Option<Arc<dyn Storage>>,
}

/// Opens an image that stands alone; see [`open_image_with`].
pub fn open_image(
    file: Arc<dyn StorageFile>,
    format: Option<ImageFormat>,
    writable: bool,
) -> Result<Arc<dyn Volume>> {
    open_image_with(file, ImageOptions { format, writable, ..ImageOptions::default() })
}

/// Opens an image. Without a format it is recognised by QCOW2's, VHDX's or VMDK's magic, how a VMDK descriptor
/// begins, or VHD's cookie at either end, else raw.
///
/// A raw disk whose owner may write anything can be made to look like another format: name the format wherever it is
/// known. Errors: `Corrupt` naming the file where it contradicts itself; `Unsupported` for kinds that we do not know, and
/// for an image that stands on a file which is not among the parents.
pub fn open_image_with(file: Arc<dyn StorageFile>, options: ImageOptions) -> Result<Arc<dyn Volume>> {
    let ImageOptions { format, writable, mut parents, folder } = options;
    let format = format.map_or_else(|| probe_image(&*file), Ok)?;
    match format {
        ImageFormat::Raw => Ok(Arc::new(DiskVolume::new(RawDisk::open(file)?, writable))),
        ImageFormat::Vhd => match vhd::open(&*file)? {
            vhd::Opened::Fixed(len) => Ok(Arc::new(DiskVolume::new(RawDisk::with_len(file, len)?, writable))),
            vhd::Opened::Dynamic(parts) => {
                let parent = match parts.parent_name() {
                    None => None,
                    Some(named) => {
                        let parent = take_parent(file.name(), named, &mut parents)?;
                        parts.check_parent(file.name(), &*parent, true)?;
                        let format = Some(ImageFormat::Vhd);
                        let options = ImageOptions { format, writable: false, parents, folder };
                        Some(open_image_with(parent, options)?)
                    }
                };
                Ok(Arc::new(DiskVolume::new(VhdDisk::new(file, *parts, parent, writable)?, writable)))
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
                    Some(open_image_with(parent, ImageOptions { format, writable: false, parents, folder })?)
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
                    Some(open_image_with(parent, ImageOptions { format, writable: false, parents, folder })?)
                }
            };
            Ok(Arc::new(DiskVolume::new(Qcow2Disk::new(file, opened, backing, writable)?, writable)))
        }
        ImageFormat::Vmdk => {
            let opened = vmdk::Opened::read(file)?;
            let name = opened.name().to_owned();
            let folder_of = folder.clone();
            let files = opened
                .files(|named| open_extent(&name, named, &mut parents, folder_of.as_deref(), writable))?;
            let parent = match opened.parent_path() {
                None => None,
                Some(path) => {
                    let parent = take_parent(&name, path, &mut parents)?;
                    opened.check_parent(&parent)?;
                    let format = Some(ImageFormat::Vmdk);
                    Some(open_image_with(parent, ImageOptions { format, writable: false, parents, folder })?)
                }
            };
            Ok(Arc::new(DiskVolume::new(VmdkDisk::new(opened, files, parent, writable)?, writable)))
        }
    }
}

/// Writes what a child stores into its parent, which then is the disk that the child was, and flushes it. VHD only. The
/// child is not changed; what was interrupted is repeated. Other children of the parent are worth nothing afterwards.
///
/// `progress` is called with the bytes done and the bytes in all; where it says `false`, this ends with `Cancelled`.
/// Errors: `Corrupt` where it is not the child's parent; `Unsupported` for other formats and for a parent that has a
/// parent itself and is not opened with it; those of reading and writing.
pub fn merge_image(
    child: Arc<dyn StorageFile>,
    parent: Arc<dyn StorageFile>,
    progress: &dyn Fn(ByteLen, ByteLen) -> bool,
) -> Result<()> {
    let unsupported = |what: &str| Error::new(ErrorKind::Unsupported, format!("{}: {what}", child.name()));
    if probe_image(&*child)? != ImageFormat::Vhd {
        return Err(unsupported("only VHDs are merged into their parents"));
    }
    let vhd::Opened::Dynamic(parts) = vhd::open(&*child)? else {
        return Err(unsupported("a fixed VHD has no parent"));
    };
    if parts.parent_name().is_none() {
        return Err(unsupported("it has no parent"));
    }
    // After an interrupted merge the parent's time is another one.
    parts.check_parent(child.name(), &*parent, false)?;
    let to = open_image(Arc::clone(&parent), Some(ImageFormat::Vhd), true)?;
    let disk = VhdDisk::new(Arc::clone(&child), *parts, None, false)?;
    if to.len() < disk.len() {
        return Err(unsupported("it is larger than its parent"));
    }
    let mut buffer = vec![0; STEP.as_usize()];
    for piece in Extent::whole(disk.len()).into_iter().flat_map(|whole| whole.split(STEP)) {
        for run in disk.stored(piece)? {
            let bytes = &mut buffer[..run.len().as_usize()];
            disk.read(run, bytes)?;
            write_sparsely(&*to, run, bytes)?;
        }
        if !progress(piece.end() - ByteOffset::ZERO, disk.len()) {
            return Err(Error::new(ErrorKind::Cancelled, "the merge was called off"));
        }
    }
    to.flush()
}

/// What the file looks like: a format with a magic of its own, else raw.
pub fn probe_image(file: &dyn StorageFile) -> Result<ImageFormat> {
    if qcow2::looks_like(file)? {
        return Ok(ImageFormat::Qcow2);
    }
    if vhdx::looks_like(file)? {
        return Ok(ImageFormat::Vhdx);
    }
    if vmdk::looks_like(file)? {
        return Ok(ImageFormat::Vmdk);
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
    check_image_with(file, ImageOptions { format, writable: repair, ..ImageOptions::default() })
}

/// The same of an image that has data in other files; repairs where it is writable.
pub fn check_image_with(file: &Arc<dyn StorageFile>, options: ImageOptions) -> Result<CheckReport> {
    let ImageOptions { format, writable: repair, mut parents, folder } = options;
    match format.map_or_else(|| probe_image(&**file), Ok)? {
        ImageFormat::Vmdk => {
            let open = |named: &str| open_extent(file.name(), named, &mut parents, folder.as_deref(), repair);
            vmdk::check(file, open, repair)
        }
        ImageFormat::Qcow2 => qcow2::check(&**file, repair),
        ImageFormat::Vhdx => vhdx::check(file, repair),
        ImageFormat::Vhd => vhd::check(&**file, repair),
        ImageFormat::Raw => {
            let context = format!("{}: a raw image has no structures to check", file.name());
            Err(Error::new(ErrorKind::Unsupported, context))
        }
    }
}

/// The files in which a VMDK has its data, opened for writing.
pub(super) fn extents(
    file: &Arc<dyn StorageFile>,
    options: &ImageOptions,
) -> Result<Vec<Arc<dyn StorageFile>>> {
    let mut allowed = options.parents.clone();
    let opened = vmdk::Opened::read(Arc::clone(file))?;
    opened.files(|named| open_extent(file.name(), named, &mut allowed, options.folder.as_deref(), true))
}

/// The file that an image stands on, from among those that are allowed.
fn take_parent(
    name: &str,
    named: &str,
    parents: &mut Vec<Arc<dyn StorageFile>>,
) -> Result<Arc<dyn StorageFile>> {
    match take_allowed(named, parents) {
        Some(parent) => Ok(parent),
        None => {
            let context = format!("{name} stands on another file, {named:?}, which was not allowed");
            Err(Error::new(ErrorKind::Unsupported, context))
        }
    }
}

/// The file in which an image has data, from among those that are allowed, or by a plain name from its folder.
fn open_extent(
    name: &str,
    named: &str,
    allowed: &mut Vec<Arc<dyn StorageFile>>,
    folder: Option<&dyn Storage>,
    writable: bool,
) -> Result<Arc<dyn StorageFile>> {
    if let Some(file) = take_allowed(named, allowed) {
        return Ok(file);
    }
    let refuse = |why: &str| {
        let context = format!("{name} has data in another file, {named:?}, which {why}");
        Err(Error::new(ErrorKind::Unsupported, context))
    };
    if last_part(named) != named || matches!(named, "" | "." | "..") {
        return refuse("lies outside of its folder");
    }
    if named == last_part(name) {
        return refuse("is the image itself");
    }
    let Some(folder) = folder else { return refuse("was not allowed") };
    let mode = if writable { OpenMode::ReadWrite } else { OpenMode::Read };
    folder.open(named, mode).map_err(|error| error.context(format!("the data of {name}")))
}

/// Takes the file of which the path has the same last part.
fn take_allowed(named: &str, allowed: &mut Vec<Arc<dyn StorageFile>>) -> Option<Arc<dyn StorageFile>> {
    let at = allowed.iter().position(|file| last_part(file.name()) == last_part(named))?;
    Some(allowed.remove(at))
}

/// The last part of a path, whoever's it is.
pub(super) fn last_part(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

fn backing_format(file: &dyn StorageFile, named: Option<&str>) -> Result<Option<ImageFormat>> {
    let Some(named) = named else { return Ok(None) };
    ImageFormat::of_qemu(named).map(Some).ok_or_else(|| {
        let context = format!("{}: a backing file of format {named:?} is not known", file.name());
        Error::new(ErrorKind::Unsupported, context)
    })
}
