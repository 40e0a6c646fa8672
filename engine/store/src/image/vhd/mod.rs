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
mod check;
mod disk;
mod footer;
mod header;
mod parent;
mod resize;
mod shown;
mod slots;

use super::opening::last_part;
use bat::{Bat, ENTRY_BYTES};
use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile};
use footer::{DiskType, FOOTER_BYTES, Footer};
use header::{DynamicHeader, HEADER_BYTES};

pub(super) use check::check;
pub(super) use disk::VhdDisk;
use parent::Parent;
pub(super) use resize::resize;
pub(super) use shown::{fixed_footer, show};

/// The largest disk that VHD's tools agree on.
pub(super) const LEN_MAX: ByteLen = ByteLen::new(2040 << 30);
/// What a fixed disk's file has beside the disk.
pub(super) const FIXED_OVERHEAD: ByteLen = FOOTER_BYTES;
/// The block size of every common writer, and ours.
const BLOCK_BYTES: ByteLen = ByteLen::new(2 << 20);
/// Room for the path of a parent.
const LOCATOR_ROOM: ByteLen = ByteLen::new(1024);
const HEADER_START: ByteOffset = ByteOffset::new(FOOTER_BYTES.get());
const BAT_START: ByteOffset = ByteOffset::new(FOOTER_BYTES.get() + HEADER_BYTES.get());
/// Where the table of an image of ours ends at the latest, however long its disk becomes. With room for blocks of 512 KiB.
pub(super) const TABLE_END_MAX: ByteOffset = ByteOffset::new(32 << 20);
const _: () = assert!(
    BAT_START.get() + (LEN_MAX.get() >> header::BLOCK_SHIFT_MIN) * ENTRY_BYTES <= TABLE_END_MAX.get()
);

/// What a VHD turned out to be.
pub(super) enum Opened {
    /// A raw disk of that length with a footer behind it.
    Fixed(ByteLen),
    /// A dynamic disk, or a differencing one.
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

impl Parts {
    /// The name of the parent, as it is written in the file; `None` for a disk that stands alone.
    pub(super) fn parent_name(&self) -> Option<&str> {
        (self.footer.disk_type == DiskType::Differencing).then_some(self.header.parent.name.as_str())
    }

    /// `Corrupt` unless `parent` is the file that this disk, in the file `name`, was made a child of. `same_time`: it must
    /// not have been written since.
    pub(super) fn check_parent(&self, name: &str, parent: &dyn StorageFile, same_time: bool) -> Result<()> {
        let (footer, _) = read_footers(parent)?;
        self.header.parent.check((name, self.footer.current_size), parent, &footer, same_time)
    }
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
    // Most raw disks end with zeroes too, and few with a footer before them.
    Ok(len > FOOTER_BYTES && len.is_aligned(BlockShift::SECTOR) && find_before_hole(file)?.is_some())
}

/// Writes an empty fixed VHD into an empty file and syncs it. The caller has checked the length.
pub(super) fn create_fixed(file: &dyn StorageFile, len: ByteLen) -> Result<()> {
    let footer = Footer::new(len, DiskType::Fixed)?;
    file.set_len(len + FOOTER_BYTES)?;
    file.write_at(len.end(), &footer.encode())?;
    file.sync().map(drop)
}

/// Writes an empty dynamic VHD into an empty file and syncs it. The caller has checked the length.
pub(super) fn create(file: &dyn StorageFile, len: ByteLen) -> Result<()> {
    let footer = Footer::new(len, DiskType::Dynamic)?;
    let header = DynamicHeader::new(len, BLOCK_BYTES, BAT_START);
    let end = header.bat_end();
    write_empty(file, &footer, &header, end)
}

/// Writes a differencing VHD without a block into an empty file and syncs it: a child of `parent`, in the same folder.
/// `InvalidInput` where the parent's name is one that the format cannot hold.
pub(super) fn create_child(file: &dyn StorageFile, parent: &dyn StorageFile) -> Result<()> {
    let (below, _) = read_footers(parent)?;
    let name = last_part(parent.name());
    if !Parent::holds_name(name) {
        let context = format!("{}: not a name that a VHD can hold as its parent's", parent.name());
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    let len = below.current_size;
    let footer = Footer::new(len, DiskType::Differencing)?;
    let mut header = DynamicHeader::new(len, BLOCK_BYTES, BAT_START);
    let place = Extent::new(header.bat_end(), LOCATOR_ROOM)?;
    header.parent = Parent::of(parent, &below, name, place)?;
    write_empty(file, &footer, &header, place.end())?;
    file.write_at(place.start(), &header.parent.relative_path())?;
    file.sync().map(drop)
}

fn write_empty(
    file: &dyn StorageFile,
    footer: &Footer,
    header: &DynamicHeader,
    end: ByteOffset,
) -> Result<()> {
    let footer = footer.encode();
    let bat_end = header.bat_end();
    file.set_len(ByteLen::new(end.get()) + FOOTER_BYTES)?;
    file.write_at(ByteOffset::ZERO, &footer)?;
    file.write_at(HEADER_START, &header.encode())?;
    let unused = vec![0xff; 64 << 10];
    for piece in
        Extent::between(BAT_START, bat_end).into_iter().flat_map(|bat| bat.split(ByteLen::of(&unused)))
    {
        file.write_at(piece.start(), &unused[..piece.len().as_usize()])?;
    }
    file.write_at(end, &footer)?;
    file.sync().map(drop)
}

/// The footer that counts, and whether both copies are there and equal; a fixed disk has one only.
fn read_footers(file: &dyn StorageFile) -> Result<(Footer, bool)> {
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
    Ok(match (head, tail) {
        (Ok(head), Ok(tail)) if head.same_disk(&tail) => (head, true),
        (Ok(head), Ok(tail)) if tail.disk_type != DiskType::Fixed && head.disk_type != DiskType::Fixed => {
            return Err(corrupt("its two footers describe different disks"));
        }
        // A fixed disk has one footer, at the end; what its first sector looks like is the guest's affair.
        (_, Ok(tail)) => (tail, false),
        // A crash while the file grew leaves only the copy at the start.
        (Ok(head), Err(_)) if head.disk_type != DiskType::Fixed => (head, false),
        (_, Err(error)) => (find_before_hole(file)?.ok_or(error)?, false),
    })
}

/// The footer of a fixed disk whose file a crash has left longer, with nothing behind it: what the file holds last, where
/// the disk ends. `None` where there is no such thing, or where the file system cannot tell what is a hole.
fn find_before_hole(file: &dyn StorageFile) -> Result<Option<Footer>> {
    /// Written and zero all the same: there are few of these behind the footer.
    const EMPTY_MAX: usize = 16;
    let mut limit = file.len()?.end();
    for _ in 0..EMPTY_MAX {
        let Some(page) = last_data(file, limit)? else { return Ok(None) };
        let mut bytes = vec![0; page.len().as_usize()];
        file.read_at(page.start(), &mut bytes)?;
        let Some(last) = bytes.chunks(512).rposition(|sector| !blocks::is_zero(sector)) else {
            limit = page.start();
            continue;
        };
        let at = page.start() + ByteLen::new(last as u64 * 512);
        if at + FOOTER_BYTES > file.len()?.end() {
            return Ok(None);
        }
        let footer = unless_unreadable(Footer::read(file, at))?.ok();
        return Ok(
            footer.filter(|footer| footer.disk_type == DiskType::Fixed && footer.current_size.end() == at)
        );
    }
    Ok(None)
}

/// The last 64 KiB before `limit` in which the file has data.
fn last_data(file: &dyn StorageFile, limit: ByteOffset) -> Result<Option<Extent>> {
    const PAGE: BlockShift = BlockShift::KIB_64;
    let (mut data, mut hole) = (0, PAGE.block_of(limit.align_up(PAGE)));
    while data < hole {
        let middle = data + (hole - data) / 2;
        match file.next_data(PAGE.start_of(middle))? {
            Some(found) if found.start() < limit => data = middle + 1,
            _ => hole = middle,
        }
    }
    let Some(start) = data.checked_sub(1).map(|page| PAGE.start_of(page)) else { return Ok(None) };
    Ok(Extent::between(start, (start + PAGE.len()).min(limit)))
}

/// Reads and checks the structures of a VHD.
pub(super) fn open(file: &dyn StorageFile) -> Result<Opened> {
    let corrupt = |what: &str| Error::corrupt(format!("{}: {what}", file.name()));
    let file_len = file.len()?;
    let (footer, footers_agree) = read_footers(file)?;
    let len = footer.current_size;
    match footer.disk_type {
        DiskType::Fixed if len + FOOTER_BYTES > file_len => {
            Err(corrupt("shorter than the disk that its footer describes"))
        }
        DiskType::Fixed => Ok(Opened::Fixed(len)),
        DiskType::Dynamic | DiskType::Differencing => {
            let header = DynamicHeader::read(file, &footer)?;
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
