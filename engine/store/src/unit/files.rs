//! The names of a unit's files, and publishing its manifest.

use crate::image::{ImageFormat, SummedImage, open_summed, with_sums};
use crate::unit::branch::{DeltaId, Edition};
use crate::unit::lineage::Span;
use crate::unit::manifest::Manifest;
use crate::unit::manifest_codec;
use blocks::{
    ByteLen, ByteOffset, DiskIndex, Error, ErrorKind, OpenMode, Result, Storage, StorageFile, Synced,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What the name of a half-settled image ends with.
pub const SETTLING_SUFFIX: &str = ".settling";

/// No unit needs more; a larger file is not one of ours.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;

pub(crate) fn disk_dir(unit_dir: &str, disk: DiskIndex) -> String {
    format!("{unit_dir}/disk{disk}")
}

/// A name is never given to other bytes: whoever still reads what was there before merging is not disturbed.
pub(crate) fn log_name(unit_dir: &str, disk: DiskIndex, edition: Edition) -> String {
    format!("{}/{}{}.log", disk_dir(unit_dir, disk), edition.delta, revision_mark(edition.revision))
}

pub(crate) fn index_name(unit_dir: &str, disk: DiskIndex, span: Span) -> String {
    let (dir, Span { first, last, revision, .. }) = (disk_dir(unit_dir, disk), span);
    let mark = revision_mark(revision);
    if first == last {
        format!("{dir}/{last}{mark}.index")
    } else {
        format!("{dir}/{first}-{last}{mark}.index")
    }
}

fn revision_mark(revision: u32) -> String {
    if revision == 0 { String::new() } else { format!(".r{revision}") }
}

pub(crate) fn image_name(unit_dir: &str, disk: DiskIndex, format: ImageFormat) -> String {
    format!("{}/image.{format}", disk_dir(unit_dir, disk))
}

/// The image's name while it is being changed: it holds neither the one checkpoint nor the other, and whoever finds it can
/// see that.
pub(crate) fn settling_name(unit_dir: &str, disk: DiskIndex, format: ImageFormat) -> String {
    format!("{}{SETTLING_SUFFIX}", image_name(unit_dir, disk, format))
}

/// Whichever of both names the image has.
pub(crate) fn present_image_name(
    storage: &dyn Storage,
    unit_dir: &str,
    disk: DiskIndex,
    format: ImageFormat,
) -> Result<String> {
    let (whole, settling) = (image_name(unit_dir, disk, format), settling_name(unit_dir, disk, format));
    let present = storage.list(&disk_dir(unit_dir, disk))?;
    let is_present = |name: &str| present.iter().any(|file| name.ends_with(&format!("/{file}")));
    Ok(if !is_present(&whole) && is_present(&settling) { settling } else { whole })
}

/// Gives the image the name that says whether it is being changed, durably. Nothing where it has it.
pub(crate) fn mark_image(
    storage: &dyn Storage,
    unit_dir: &str,
    disk: DiskIndex,
    format: ImageFormat,
    settling: bool,
) -> Result<()> {
    let names = [image_name(unit_dir, disk, format), settling_name(unit_dir, disk, format)];
    let (from, to) = if settling { (&names[0], &names[1]) } else { (&names[1], &names[0]) };
    if present_image_name(storage, unit_dir, disk, format)? != *to {
        storage.rename(from, to)?;
    }
    // Also where it has the name already: an earlier attempt may have failed in between.
    storage.sync_dir(&disk_dir(unit_dir, disk)).map(drop)
}

pub(crate) fn sums_name(unit_dir: &str, disk: DiskIndex) -> String {
    format!("{}/image.sums", disk_dir(unit_dir, disk))
}

/// The hashes of the disk's blocks: a cache that may be missing.
pub(crate) fn hashes_name(unit_dir: &str, disk: DiskIndex) -> String {
    format!("{}/blocks.hashes", disk_dir(unit_dir, disk))
}

pub(crate) fn manifest_name(unit_dir: &str) -> String {
    format!("{unit_dir}/manifest")
}

/// Says that a unit is being removed: what is left of it is rubbish.
pub(crate) fn removed_name(unit_dir: &str) -> String {
    format!("{unit_dir}/removed")
}

/// A new empty file, in the place of one that an earlier attempt may have left.
pub(crate) fn create_anew(storage: &dyn Storage, name: &str) -> Result<Arc<dyn StorageFile>> {
    match storage.remove(name) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    storage.open(name, OpenMode::CreateNew)
}

/// How far a publication came.
#[derive(Debug)]
pub(crate) enum PublishError {
    /// The version before is still the published one.
    Unchanged(Error),
    /// Either may be.
    Unknown(Error),
}

impl PublishError {
    /// What went wrong.
    pub(crate) fn into_error(self) -> Error {
        match self {
            PublishError::Unchanged(error) | PublishError::Unknown(error) => error,
        }
    }
}

/// Replaces the published version.
pub(crate) fn publish(
    storage: &dyn Storage,
    unit_dir: &str,
    manifest: &Manifest,
) -> std::result::Result<Synced, PublishError> {
    let name = manifest_name(unit_dir);
    let new_name = format!("{name}.new");
    let write = || {
        let file = create_anew(storage, &new_name)?;
        file.write_at(ByteOffset::ZERO, &manifest_codec::encode(manifest))?;
        file.sync()
    };
    write().map_err(PublishError::Unchanged)?;
    storage.rename(&new_name, &name).map_err(PublishError::Unknown)?;
    storage.sync_dir(unit_dir).map_err(PublishError::Unknown)
}

/// The whole of a small file.
pub(crate) fn read_small(storage: &dyn Storage, name: &str) -> Result<Vec<u8>> {
    let file = storage.open(name, OpenMode::Read)?;
    let len = file.len()?;
    if len.get() > MANIFEST_BYTES_MAX {
        return Err(Error::corrupt(format!("{name}: {len} bytes are too many")));
    }
    let mut bytes = vec![0; len.as_usize()];
    file.read_at(ByteOffset::ZERO, &mut bytes)?;
    Ok(bytes)
}

/// The published version.
pub(crate) fn read_manifest(storage: &dyn Storage, unit_dir: &str) -> Result<Manifest> {
    let name = manifest_name(unit_dir);
    manifest_codec::decode(&read_small(storage, &name)?).map_err(|error| error.context(name))
}

/// A disk's image with its checksums, as [`create_unit_image`] and consolidations made it.
pub(crate) fn open_unit_image(
    storage: &dyn Storage,
    unit_dir: &str,
    manifest: &Manifest,
    disk: DiskIndex,
    writable: bool,
) -> Result<Arc<SummedImage>> {
    let format = manifest.image_format;
    let mode = if writable { OpenMode::ReadWrite } else { OpenMode::Read };
    let file = storage.open(&present_image_name(storage, unit_dir, disk, format)?, mode)?;
    let sums = storage.open(&sums_name(unit_dir, disk), mode)?;
    if !writable && sums.is_empty()? {
        // Opening it for writing would make it the sidecar of an empty image.
        return Err(Error::corrupt(format!("{} is empty", sums.name())));
    }
    open_summed((file, format), sums, manifest.image_len(disk)?, writable)
}

/// Makes a disk's folder with an empty image; durable but for the folder's own name.
pub(crate) fn create_unit_image(
    storage: &dyn Storage,
    unit_dir: &str,
    disk: DiskIndex,
    (format, len): (ImageFormat, ByteLen),
) -> Result<()> {
    let dir = disk_dir(unit_dir, disk);
    storage.make_dir(&dir)?;
    let image = crate::image::create_image(storage, &image_name(unit_dir, disk, format), format, len)?;
    let sums = storage.open(&sums_name(unit_dir, disk), OpenMode::CreateNew)?;
    with_sums(image, Arc::clone(&sums))?;
    sums.sync()?;
    storage.sync_dir(&dir).map(drop)
}

/// Removes what the manifest does not know of; says what it was. `Corrupt` where something that it knows is missing:
/// then nothing has been changed.
pub(crate) fn tidy(storage: &dyn Storage, unit_dir: &str, manifest: &Manifest) -> Result<Vec<String>> {
    let superfluous = superfluous_names(storage, unit_dir, manifest)?;
    // The manifest that was read may be in the kernel's cache only, or under its new name there only: its publisher may
    // have died, or have failed, in between. What follows relies on it.
    match publish(storage, unit_dir, manifest) {
        // A full store must be recoverable from; then what a sync alone can do has to be enough.
        Err(PublishError::Unchanged(error)) if error.kind() == ErrorKind::NoSpace => {
            storage.open(&manifest_name(unit_dir), OpenMode::ReadWrite)?.sync()?;
            storage.sync_dir(unit_dir)?;
        }
        published => drop(published.map_err(PublishError::into_error)?),
    }
    for name in &superfluous {
        storage.remove(name)?;
    }
    Ok(superfluous)
}

fn superfluous_names(storage: &dyn Storage, unit_dir: &str, manifest: &Manifest) -> Result<Vec<String>> {
    for disk in manifest.disk_indexes() {
        let present = storage.list(&disk_dir(unit_dir, disk))?;
        let is_present = |name: &String| {
            name.rsplit_once('/').is_some_and(|(_, last)| present.iter().any(|name| name == last))
        };
        let needed = needed_now(storage, unit_dir, manifest, disk)?;
        if let Some(missing) = needed.iter().find(|name| !is_present(name)) {
            return Err(Error::corrupt(format!("{missing} is missing")));
        }
    }
    superfluous(storage, unit_dir, manifest)
}

/// What lies in the unit's folders and is not part of the unit.
pub(crate) fn superfluous(storage: &dyn Storage, unit_dir: &str, manifest: &Manifest) -> Result<Vec<String>> {
    let mut superfluous = Vec::new();
    for disk in manifest.disk_indexes() {
        let dir = disk_dir(unit_dir, disk);
        let needed = needed_now(storage, unit_dir, manifest, disk)?;
        let optional: BTreeSet<String> = manifest
            .branches
            .values()
            .map(|b| log_name(unit_dir, disk, Edition::first(b.ends[usize::from(disk.0)].open)))
            .chain([hashes_name(unit_dir, disk)])
            .collect();
        let present: BTreeSet<String> =
            storage.list(&dir)?.into_iter().map(|name| format!("{dir}/{name}")).collect();
        superfluous
            .extend(present.into_iter().filter(|name| !needed.contains(name) && !optional.contains(name)));
    }
    Ok(superfluous)
}

/// What the unit needs of a disk, the image by the name that it has now.
fn needed_now(
    storage: &dyn Storage,
    unit_dir: &str,
    manifest: &Manifest,
    disk: DiskIndex,
) -> Result<BTreeSet<String>> {
    let mut needed = needed_names(unit_dir, manifest, disk);
    let image = present_image_name(storage, unit_dir, disk, manifest.image_format)?;
    let is_settling = image == settling_name(unit_dir, disk, manifest.image_format);
    if is_settling && manifest.replay.is_some() {
        needed.remove(&image_name(unit_dir, disk, manifest.image_format));
        needed.insert(image);
    }
    Ok(needed)
}

fn needed_names(unit_dir: &str, manifest: &Manifest, disk: DiskIndex) -> BTreeSet<String> {
    let deltas = manifest.deltas.iter().filter(|(_, delta)| delta.disk == disk);
    let own = |id: DeltaId| {
        [log_name(unit_dir, disk, manifest.edition(id)), index_name(unit_dir, disk, manifest.span(id))]
    };
    let mut names: BTreeSet<String> = deltas.flat_map(|(id, _)| own(*id)).collect();
    let merged = manifest.merged.iter().filter(|merged| merged.disk == disk);
    names.extend(merged.map(|merged| index_name(unit_dir, disk, merged.span())));
    names.insert(image_name(unit_dir, disk, manifest.image_format));
    names.insert(sums_name(unit_dir, disk));
    names
}
