//! Which formats there are, and what each can hold.

use super::{qcow2, vhd, vhdx, vmdk};
use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Result, SECTOR_BYTES};
use std::fmt;
use std::str::FromStr;

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
    /// VMware's, sparse when we make it, at most 2047 GiB then.
    Vmdk,
}

impl ImageFormat {
    /// Every format.
    pub const ALL: [ImageFormat; 5] =
        [ImageFormat::Raw, ImageFormat::Vhd, ImageFormat::Vhdx, ImageFormat::Qcow2, ImageFormat::Vmdk];

    /// The format's name, which is also the usual ending of its files.
    pub const fn name(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Vhd => "vhd",
            ImageFormat::Vhdx => "vhdx",
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Vmdk => "vmdk",
        }
    }

    /// What new machines' images are made of where nobody chose: VHD, which the most programs take, as long as every
    /// disk fits, else VHDX.
    pub fn for_disks(lens: impl IntoIterator<Item = ByteLen>) -> ImageFormat {
        let fits = lens.into_iter().all(|len| len <= vhd::LEN_MAX);
        if fits { ImageFormat::Vhd } else { ImageFormat::Vhdx }
    }

    /// The largest disk that the format's usual kind holds; `None` where the file system sets the bound.
    pub const fn len_max(self) -> Option<ByteLen> {
        match self {
            ImageFormat::Raw => None,
            ImageFormat::Vhd => Some(vhd::LEN_MAX),
            ImageFormat::Vhdx => Some(vhdx::LEN_MAX),
            ImageFormat::Qcow2 => Some(qcow2::LEN_MAX),
            ImageFormat::Vmdk => Some(vmdk::LEN_MAX),
        }
    }

    /// Where in a file data may lie that has to be moved when the disk becomes longer: only before this offset. `None` where
    /// that can be anywhere.
    pub(super) const fn moves_before(self) -> Option<ByteOffset> {
        match self {
            ImageFormat::Vhd => Some(vhd::TABLE_END_MAX),
            // What does not fit their tables is refused, or there are none.
            ImageFormat::Raw | ImageFormat::Vhdx => Some(ByteOffset::ZERO),
            // Clusters change hands; tables are made anew anywhere.
            ImageFormat::Qcow2 | ImageFormat::Vmdk => None,
        }
    }

    /// `Unsupported` where a disk of this length does not fit the format, `InvalidInput` where no format of ours holds
    /// it. Nothing is touched: to be asked before anything is created.
    pub fn check_len(self, len: ByteLen) -> Result<()> {
        check_len_within(self.name(), self.len_max(), len)
    }

    /// The format that QEMU calls so.
    pub(super) fn of_qemu(name: &str) -> Option<ImageFormat> {
        match name {
            "raw" | "file" | "host_device" => Some(ImageFormat::Raw),
            "vpc" => Some(ImageFormat::Vhd),
            "vhdx" => Some(ImageFormat::Vhdx),
            "qcow2" => Some(ImageFormat::Qcow2),
            "vmdk" => Some(ImageFormat::Vmdk),
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

/// As [`ImageFormat::check_len`], for what is called `name` and holds at most `max`.
pub(super) fn check_len_within(name: &str, max: Option<ByteLen>, len: ByteLen) -> Result<()> {
    if len.is_zero() || !len.is_aligned(BlockShift::SECTOR) {
        let context = format!("a disk of {len} bytes: not a positive multiple of {SECTOR_BYTES}");
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    match max {
        Some(max) if len > max => {
            let (name, gib) = (name.to_uppercase(), max.get() >> 30);
            let context =
                format!("a disk of {len} bytes does not fit a {name}, which holds at most {max} ({gib} GiB)");
            Err(Error::new(ErrorKind::Unsupported, context))
        }
        _ => Ok(()),
    }
}
