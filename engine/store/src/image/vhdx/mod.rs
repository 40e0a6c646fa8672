//! VHDX, after Microsoft's [MS-VHDX].
//!
//! ```text
//! 0        "vhdxfile" and who made it
//! 64 KiB   header, 128 KiB the other header: the newer valid one counts
//! 192 KiB  region table, 256 KiB its copy
//! 1 MiB    log, 1 MiB
//! 2 MiB    metadata, 1 MiB
//! 3 MiB    block allocation table, 8 bytes for each block
//! then     blocks, in the order of allocation
//! ```
//!
//! Everything is little-endian. docs/formats/images.md says what we write and why.

mod bat;
mod check;
mod disk;
mod header;
mod log;
mod metadata;
mod region;
mod replayed;
mod resize;
mod shown;

use bat::{Bat, State, Used};
use blocks::{BlockShift, ByteLen, ByteOffset, Error, Extent, Result, StorageFile};
use header::{Header, Headers};
use metadata::Metadata;
use region::Regions;
use replayed::ReplayedFile;
use std::sync::Arc;

pub(super) use check::check;
pub(super) use disk::VhdxDisk;
pub(super) use resize::{resize, room};
pub(super) use shown::show;

/// The largest disk: 64 TiB.
pub(super) const LEN_MAX: ByteLen = ByteLen::new(64 << 40);
const SIGNATURE: [u8; 8] = *b"vhdxfile";
const MIB: u64 = 1 << 20;
const DATA_START: u64 = 3 * MIB;
/// Up to here blocks have 8 MiB, above 32 MiB: a table has at most 16 MiB.
const SMALL_LEN_MAX: ByteLen = ByteLen::new(4 << 40);

/// How a new file is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewDisk {
    pub(super) len: ByteLen,
    /// Every block has its place from the start.
    pub(super) fixed: bool,
    pub(super) logical_sector: BlockShift,
}

/// The checked structures of a VHDX but for its headers.
pub(super) struct Parts {
    regions: Regions,
    metadata: Metadata,
    bat: Bat,
}

/// What a VHDX turned out to be.
pub(super) struct Opened {
    /// The file, or what it will be once its log is replayed.
    file: Arc<dyn StorageFile>,
    headers: Headers,
    parts: Parts,
    used: Used,
}

/// Whether the signature stands at the start.
pub(super) fn looks_like(file: &dyn StorageFile) -> Result<bool> {
    let mut signature = [0; 8];
    if file.len()? < ByteLen::of(&signature) {
        return Ok(false);
    }
    file.read_at(ByteOffset::ZERO, &mut signature)?;
    Ok(signature == SIGNATURE)
}

impl Opened {
    /// Reads and checks the structures. What waits in the log is replayed: in the file where it is opened for writing,
    /// else in memory.
    pub(super) fn read(file: Arc<dyn StorageFile>, writable: bool) -> Result<Opened> {
        if !looks_like(&*file)? {
            return Err(Error::corrupt(format!("{}: not a VHDX: the signature is missing", file.name())));
        }
        let mut headers = Headers::read(&*file)?;
        let mut shown = Arc::clone(&file);
        if headers.current.has_log() {
            let replay = log::read(&*file, headers.current.log, headers.current.log_id)?;
            if writable {
                replay.apply(&*file)?;
                headers.replace(&*file, |header| header.log_id = [0; 16])?;
            } else {
                shown = Arc::new(ReplayedFile::new(file, replay));
            }
        }
        let regions = Regions::read(&*shown)?;
        let log = headers.current.log;
        if log.overlaps(regions.bat) || log.overlaps(regions.metadata) || log.end() > shown.len()?.end() {
            let context =
                format!("{}: its log at {log} lies on a region or past the file's end", shown.name());
            return Err(Error::corrupt(context));
        }
        let metadata = Metadata::read(&*shown, regions.metadata)?;
        let bat = Bat::new(shown.name(), regions.bat, &metadata)?;
        let used = bat.check(&*shown, &metadata, &regions, log)?;
        Ok(Opened { file: shown, headers, parts: Parts { regions, metadata, bat }, used })
    }

    /// The file's name, for messages.
    pub(super) fn name(&self) -> &str {
        self.file.name()
    }

    /// The parent's path as it is written in the file.
    pub(super) fn parent_path(&self) -> Option<&str> {
        self.parts.metadata.parent.as_ref().map(|parent| parent.path.as_str())
    }

    /// `Corrupt` unless `parent` is the file that this disk was made a child of, as it was then.
    pub(super) fn check_parent(&self, parent: &dyn StorageFile) -> Result<()> {
        let Some(wanted) = &self.parts.metadata.parent else { return Ok(()) };
        let found = uuid::Uuid::from_bytes_le(Headers::read(parent)?.current.data_write);
        if wanted.linkages.contains(&found.braced().to_string()) {
            return Ok(());
        }
        let (name, parent) = (self.file.name(), parent.name());
        let context = format!("{name}: {parent} is not its parent, or was changed since");
        Err(Error::corrupt(context))
    }
}

/// Where everything of a new file is.
struct Plan {
    metadata: Metadata,
    regions: Regions,
    log: Extent,
    chunk_ratio: u64,
}

impl Plan {
    /// The caller has checked the length.
    fn of(disk: NewDisk) -> Plan {
        let shift = if disk.len <= SMALL_LEN_MAX { 23 } else { 25 };
        let block = BlockShift::new(shift).expect("8 and 32 MiB are block sizes");
        let NewDisk { len, fixed, logical_sector } = disk;
        let metadata = Metadata { len, block, logical_sector, fixed, parent: None };
        let chunk_ratio = (logical_sector.bytes() << 23) >> block.get();
        let bat_len = Bat::len_for(len.blocks(block), chunk_ratio).get().next_multiple_of(MIB);
        let extent =
            |at: u64, len: u64| Extent::new(ByteOffset::new(at), ByteLen::new(len)).expect("not empty");
        let regions = Regions { metadata: extent(2 * MIB, MIB), bat: extent(DATA_START, bat_len) };
        Plan { metadata, regions, log: extent(MIB, MIB), chunk_ratio }
    }
}

/// The file's first bytes: what it is and who made it.
fn identifier() -> Vec<u8> {
    let mut identifier = vec![0; 520];
    super::bytes::put(&mut identifier, 0, &SIGNATURE);
    let creator: Vec<u8> = "understudy".encode_utf16().flat_map(u16::to_le_bytes).collect();
    super::bytes::put(&mut identifier, 8, &creator);
    identifier
}

/// Writes an empty VHDX into an empty file and syncs it. The caller has checked the length.
pub(super) fn create(file: &dyn StorageFile, disk: NewDisk) -> Result<()> {
    let Plan { metadata, regions, log, .. } = Plan::of(disk);
    let (block, data_start) = (metadata.block, regions.bat.end());
    let file_len = match disk.fixed {
        true => data_start.get() + disk.len.blocks(block) * block.bytes(),
        false => data_start.get(),
    };
    file.set_len(ByteLen::new(file_len))?;
    file.write_at(ByteOffset::ZERO, &identifier())?;
    region::TABLE_STARTS.iter().try_for_each(|start| file.write_at(*start, &regions.encode()))?;
    file.write_at(regions.metadata.start(), &metadata.encode(new_id()))?;
    if disk.fixed {
        let bat = Bat::new(file.name(), regions.bat, &metadata)?;
        write_all_present(file, &bat, data_start, block)?;
    }
    let header = Header { sequence: 1, file_write: new_id(), data_write: new_id(), log_id: [0; 16], log };
    file.write_at(header::HEADER_STARTS[0], &header.encode())?;
    file.sync()?;
    Headers::new(header).replace(file, |_| {})
}

/// Writes the table of a fixed disk, page by page.
fn write_all_present(file: &dyn StorageFile, bat: &Bat, start: ByteOffset, block: BlockShift) -> Result<()> {
    let mut page_bytes = vec![0; bat::PAGE.as_usize()];
    let mut page = bat.page_of(0).0;
    for number in 0..bat.blocks() {
        let (next, index) = bat.page_of(number);
        if next != page {
            file.write_at(page, &page_bytes)?;
            page_bytes.fill(0);
            page = next;
        }
        let entry = State::encode_present(start + ByteLen::new(number * block.bytes()));
        super::bytes::put(&mut page_bytes, index * 8, &entry.to_le_bytes());
    }
    file.write_at(page, &page_bytes)
}

/// A random identity, in the order in which VHDX keeps them.
fn new_id() -> [u8; 16] {
    uuid::Uuid::new_v4().to_bytes_le()
}

#[cfg(test)]
#[path = "vhdx_tests.rs"]
mod tests;
