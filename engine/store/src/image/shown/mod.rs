//! Image files that are made of a disk while they are read and are never stored.
//!
//! A sparse image is parts at known places: headers, tables whose entries are computed when they are read, and the blocks
//! that hold data, in the order of the disk. What must be known beforehand is which blocks those are (`allocated`); the
//! file's length follows from their number. The same disk gives the same bytes at each reading, whoever reads: what would
//! be random or a time in a new file comes from the disk's identity and its checkpoint's time.
//!
//! Each format's headers are those of its new files; its folder has a `shown` that lays out the parts.

mod allocated;
mod file;
mod fixed_vhd;

pub(super) use allocated::AllocatedBlocks;
pub(super) use file::{Entries, Part};

use super::format::check_len_within;
use super::{ImageFormat, qcow2, vhd, vhdx, vmdk};
use blocks::{ByteLen, Result, Volume, WallClock};
use file::ShownFile;
use fixed_vhd::FixedVhd;
use std::sync::Arc;

/// What a disk is shown as.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ShownKind {
    /// Its bytes.
    Raw,
    /// Its bytes and a footer; what is written goes to the disk.
    FixedVhd,
    /// Its bytes, to which a descriptor belongs ([`flat_descriptor`]).
    FlatVmdk,
    /// An image in which only blocks with data have a place; only read.
    Sparse(ImageFormat),
}

impl ShownKind {
    /// As [`ImageFormat::check_len`].
    pub fn check_len(self, len: ByteLen) -> Result<()> {
        match self {
            ShownKind::Raw => ImageFormat::Raw.check_len(len),
            ShownKind::FixedVhd => ImageFormat::Vhd.check_len(len),
            ShownKind::FlatVmdk => check_len_within("vmdk", Some(vmdk::FLAT_LEN_MAX), len),
            ShownKind::Sparse(format) => format.check_len(len),
        }
    }

    /// How long the file of a disk of this length is, where that follows from the length alone; of a flat VMDK, its
    /// descriptor.
    pub fn len_over(self, disk: ByteLen) -> Option<ByteLen> {
        match self {
            ShownKind::Raw | ShownKind::Sparse(ImageFormat::Raw) => Some(disk),
            ShownKind::FixedVhd => Some(disk + vhd::FIXED_OVERHEAD),
            ShownKind::FlatVmdk => Some(vmdk::DESCRIPTOR_BYTES),
            ShownKind::Sparse(_) => None,
        }
    }
}

/// Which image is shown.
#[derive(Clone, Debug)]
pub struct ShownImage {
    /// What it looks like.
    pub kind: ShownKind,
    /// What it is called, for formats that say so inside.
    pub file_name: String,
    /// What its identities are made from: never the same for two states of disks.
    pub identity: String,
    /// When it was made, for formats that say so.
    pub made: WallClock,
}

impl ShownImage {
    /// An identity for one purpose, marked as a version 4 UUID.
    pub(super) fn id(&self, purpose: &str) -> [u8; 16] {
        id(&self.identity, purpose)
    }
}

fn id(identity: &str, purpose: &str) -> [u8; 16] {
    let hash = blake3::hash(format!("{purpose}\0{identity}").as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_bytes()[..16]);
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    id
}

/// The file as a volume; read-only but for a fixed VHD and raw of a disk that can be written. `disk` must not change while
/// a sparse image of it is shown. Looks at the status of the whole disk for those, and takes memory for one bit a block
/// where blocks with and without data mix. Errors: as [`ShownKind::check_len`]; those of the disk.
pub fn show_image(disk: Arc<dyn Volume>, image: &ShownImage) -> Result<Arc<dyn Volume>> {
    image.kind.check_len(disk.len())?;
    let shown = match image.kind {
        ShownKind::Raw | ShownKind::FlatVmdk | ShownKind::Sparse(ImageFormat::Raw) => return Ok(disk),
        ShownKind::FixedVhd => {
            let footer = vhd::fixed_footer(disk.len(), image);
            return Ok(Arc::new(FixedVhd::new(disk, footer)));
        }
        ShownKind::Sparse(ImageFormat::Vhd) => vhd::show(&*disk, image)?,
        ShownKind::Sparse(ImageFormat::Vhdx) => vhdx::show(&*disk, image)?,
        ShownKind::Sparse(ImageFormat::Qcow2) => qcow2::show(&*disk)?,
        ShownKind::Sparse(ImageFormat::Vmdk) => vmdk::show(&*disk, image)?,
    };
    let (allocated, parts) = shown;
    Ok(Arc::new(ShownFile::new(disk, allocated, parts)))
}

/// The descriptor `file_name` of a flat VMDK of this length, whose extent lies beside it under the usual name, filled up
/// with zeroes to as many bytes as others read and write of it.
pub fn flat_descriptor(file_name: &str, len: ByteLen, identity: &str) -> Result<Vec<u8>> {
    vmdk::shown_flat_descriptor(file_name, len, &id(identity, "vmdk content"))
}

#[cfg(test)]
#[path = "shown_tests.rs"]
mod tests;
