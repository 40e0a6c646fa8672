//! Virtual Hard Disks (VHD), after Microsoft's "Virtual Hard Disk Image Format Specification" 1.0.
//!
//! ```text
//! 0      footer copy        512
//! 512    dynamic header     1024
//! 1536   block allocation table, 4 bytes for each block of 2 MiB, filled up to a sector
//!        for each block, in the order of allocation:
//!          gap, so that data lies on 4 KiB; the old footer ends up here
//!          bitmap           512, one bit a sector
//!          data             2 MiB
//! end    footer             512
//! ```
//!
//! Everything is big-endian. docs/formats/images.md says what we write and why.

mod bat;
mod block;
mod disk;
mod footer;
mod header;
mod slots;

use bat::Bat;
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile};
use footer::{DiskType, FOOTER_BYTES, Footer};
use header::{DynamicHeader, HEADER_BYTES};

pub(super) use disk::VhdDisk;

/// The largest disk that VHD's tools agree on.
pub(super) const LEN_MAX: ByteLen = ByteLen::new(2040 << 30);
/// The block size of every common writer, and ours.
const BLOCK_BYTES: ByteLen = ByteLen::new(2 << 20);
const HEADER_START: ByteOffset = ByteOffset::new(FOOTER_BYTES.get());
const BAT_START: ByteOffset = ByteOffset::new(FOOTER_BYTES.get() + HEADER_BYTES.get());

/// What a VHD turned out to be.
pub(super) enum Opened {
    /// A raw disk of that length with a footer behind it.
    Fixed(ByteLen),
    /// A dynamic disk.
    Dynamic(Box<Parts>),
}

/// The checked structures of a dynamic VHD.
pub(super) struct Parts {
    footer: Footer,
    /// Both copies of the footer are there and equal.
    footers_agree: bool,
    header: DynamicHeader,
    bat: Bat,
}

/// Whether a footer's cookie stands at either end.
pub(super) fn looks_like(file: &dyn StorageFile) -> Result<bool> {
    let len = file.len()?;
    let mut starts = vec![ByteOffset::ZERO];
    starts.extend(end_footer(len));
    for start in starts.into_iter().filter(|_| len >= FOOTER_BYTES) {
        let mut cookie = footer::COOKIE;
        file.read_at(start, &mut cookie)?;
        if cookie == footer::COOKIE {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes an empty dynamic VHD into an empty file and syncs it. The caller has checked the length.
pub(super) fn create(file: &dyn StorageFile, len: ByteLen) -> Result<()> {
    let footer = Footer::new(len)?.encode();
    let header = DynamicHeader::new(len, BLOCK_BYTES, BAT_START);
    let bat_end = header.bat_end();
    file.set_len(ByteLen::new(bat_end.get()) + FOOTER_BYTES)?;
    file.write_at(ByteOffset::ZERO, &footer)?;
    file.write_at(HEADER_START, &header.encode())?;
    let unused = vec![0xff; 64 << 10];
    for piece in
        Extent::between(BAT_START, bat_end).into_iter().flat_map(|bat| bat.split(ByteLen::of(&unused)))
    {
        file.write_at(piece.start(), &unused[..piece.len().as_usize()])?;
    }
    file.write_at(bat_end, &footer)?;
    file.sync().map(drop)
}

/// Reads and checks the structures of a VHD.
pub(super) fn open(file: &dyn StorageFile) -> Result<Opened> {
    let corrupt = |what: &str| Error::corrupt(format!("{}: {what}", file.name()));
    let file_len = file.len()?;
    if file_len < FOOTER_BYTES {
        return Err(corrupt("too short for a VHD"));
    }
    let head = unless_unreadable(Footer::read(file, ByteOffset::ZERO))?;
    let tail = match end_footer(file_len) {
        Some(start) => unless_unreadable(Footer::read(file, start))?,
        None => Err(corrupt("no second footer")),
    };
    let (footer, footers_agree) = match (head, tail) {
        (Ok(head), Ok(tail)) if head.same_disk(&tail) => (head, true),
        (Ok(head), Ok(tail)) if tail.disk_type != DiskType::Fixed && head.disk_type != DiskType::Fixed => {
            return Err(corrupt("its two footers describe different disks"));
        }
        // A fixed disk has one footer, at the end; what its first sector looks like is the guest's affair.
        (_, Ok(tail)) => (tail, false),
        // A crash while the file grew leaves only the copy at the start.
        (Ok(head), Err(_)) => (head, false),
        (Err(error), Err(_)) => return Err(error),
    };
    let len = footer.current_size;
    match footer.disk_type {
        DiskType::Fixed if len + FOOTER_BYTES > file_len => {
            Err(corrupt("shorter than the disk that its footer describes"))
        }
        DiskType::Fixed => Ok(Opened::Fixed(len)),
        DiskType::Differencing => {
            let context =
                format!("{}: a differencing VHD needs its parent, which is not supported", file.name());
            Err(Error::new(ErrorKind::Unsupported, context))
        }
        DiskType::Dynamic => {
            let header = DynamicHeader::read(file, footer.data_offset, len)?;
            let bat = Bat::read(file, &header, len, footer.data_offset)?;
            Ok(Opened::Dynamic(Box::new(Parts { footer, footers_agree, header, bat })))
        }
    }
}

/// A footer that is damaged can be replaced by the other one; one that the medium does not give must not be.
fn unless_unreadable(footer: Result<Footer>) -> Result<Result<Footer>> {
    match footer {
        Err(error) if !matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => Err(error),
        other => Ok(other),
    }
}

/// Where the footer at the end of a file starts, if the file can have two.
fn end_footer(file_len: ByteLen) -> Option<ByteOffset> {
    let start = file_len.saturating_sub(FOOTER_BYTES);
    (!start.is_zero()).then_some(start.end())
}

#[cfg(test)]
#[path = "vhd_tests.rs"]
mod tests;
