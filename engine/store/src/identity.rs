//! The BLAKE3 hash of each 64 KiB block of a disk in one state, as far as somebody has computed it.
//!
//! A cache beside the disk's files: whoever compares asks it before reading, and tells it what it read and hashed. It belongs
//! to one state, the end of a sealed delta. To take it to a later state of the same line, the blocks that the deltas between have are
//! forgotten, which costs their indexes and no data. docs/formats/store.md has the byte table.
//!
//! ```text
//!   of state D ── forget the blocks of the deltas between, sync ── say that it is of state E, sync ── of state E
//! ```
//! A delta's number stands for one state for ever: whoever makes one delta of several must give it the number of the last, or
//! a new one, never that of an earlier one. A crash in between leaves fewer hashes of D. So a hash that is there is always right for the state that the header names;
//! pages that were never synced or are damaged fail their checksum and know nothing.

use crate::unit::branch::DeltaId;
use crate::unit::files;
use blocks::{
    BlockShift, ByteLen, ByteOffset, ByteReader, ByteWriter, Error, ErrorKind, ExtentSet, OpenMode, Result,
    Storage, StorageFile,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What one hash is of.
const BLOCK: BlockShift = BlockShift::KIB_64;
/// A BLAKE3 hash; all zero stands for none.
pub type BlockHash = [u8; 32];

const MAGIC: [u8; 4] = *b"UHsh";
const VERSION: u16 = 1;
const PAGE_BYTES: usize = 4096;
const HASH_BYTES: usize = 32;
const HASHES_PER_PAGE: u64 = 127;
/// A page's number, behind its hashes; its CRC32C is in the last four bytes.
const NUMBER_AT: usize = HASH_BYTES * HASHES_PER_PAGE as usize;

/// The hashes of one state of one disk. Cheap to clone; forgets nothing when it is dropped.
#[derive(Clone, Debug)]
pub struct BlockHashes {
    table: Arc<Mutex<Option<HashTable>>>,
    of: DeltaId,
    /// How long the disk is in that state: the last block may be short.
    len: ByteLen,
}

/// The file, open.
#[derive(Debug)]
pub(crate) struct HashTable {
    file: Arc<dyn StorageFile>,
    salt: u64,
    len: ByteLen,
    of: DeltaId,
    /// The page that was used last, as it is in the file.
    page: Option<(u64, Box<[u8; PAGE_BYTES]>)>,
}

impl BlockHashes {
    pub(crate) fn new(table: &Arc<Mutex<Option<HashTable>>>, (of, len): (DeltaId, ByteLen)) -> BlockHashes {
        BlockHashes { table: Arc::clone(table), of, len }
    }

    fn is_of(&self, table: &HashTable) -> bool {
        (table.of, table.len) == (self.of, self.len)
    }

    /// The hash of a block, counted in 64 KiB, in this state; `None` where nobody has computed it.
    pub fn get(&self, block: u64) -> Option<BlockHash> {
        let mut table = lock(&self.table);
        let table = table.as_mut().filter(|table| self.is_of(table))?;
        table.get(block)
    }

    /// Keeps the hash of a block, which was read in this state and was not damaged. Trouble with the file costs only the
    /// cache.
    pub fn put(&self, block: u64, hash: &BlockHash) {
        let mut table = lock(&self.table);
        let Some(open) = table.as_mut().filter(|table| self.is_of(table)) else { return };
        if let Err(error) = open.put(block, hash) {
            tracing::warn!("hashes of blocks are no longer kept: {error}");
            *table = None;
        }
    }
}

impl HashTable {
    /// Opens the file of that name; `None` where there is none that is of this unit.
    pub(crate) fn open(storage: &dyn Storage, name: &str, salt: u64) -> Result<Option<HashTable>> {
        let file = match storage.open(name, OpenMode::ReadWrite) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = [0; PAGE_BYTES];
        if file.len()? < ByteLen::of(&bytes) {
            return Ok(None);
        }
        file.read_at(ByteOffset::ZERO, &mut bytes)?;
        Ok(match read_header(&bytes) {
            Ok((found_salt, len, of)) if found_salt == salt => {
                Some(HashTable { file, salt, len, of, page: None })
            }
            // Of another disk, or damaged: it is only a cache.
            _ => None,
        })
    }

    /// A new file of that name that knows nothing yet about that state.
    pub(crate) fn create(
        storage: &dyn Storage,
        name: &str,
        (salt, len): (u64, ByteLen),
        of: DeltaId,
    ) -> Result<HashTable> {
        let file = files::create_anew(storage, name)?;
        file.set_len(file_len(len))?;
        let mut table = HashTable { file, salt, len, of, page: None };
        table.write_header(of)?;
        Ok(table)
    }

    /// Which state it is of.
    pub(crate) fn of(&self) -> DeltaId {
        self.of
    }

    /// How long the disk is in that state.
    pub(crate) fn len(&self) -> ByteLen {
        self.len
    }

    /// The disk is longer in the same state; nothing was written since it is.
    pub(crate) fn grow(&mut self, len: ByteLen) -> Result<()> {
        if !self.len.is_aligned(BLOCK) {
            self.put(self.len.blocks(BLOCK) - 1, &[0; HASH_BYTES])?;
        }
        self.file.set_len(file_len(len))?;
        self.file.sync()?;
        self.len = len;
        self.write_header(self.of)
    }

    /// Takes it to the state `to`, which differs from the present one in `changed` at most.
    pub(crate) fn advance(&mut self, to: DeltaId, changed: &ExtentSet) -> Result<()> {
        for (extent, ()) in changed.iter() {
            for block in extent.align_out(BLOCK).blocks(BLOCK) {
                if self.get(block).is_some() {
                    self.put(block, &[0; HASH_BYTES])?;
                }
            }
        }
        self.file.sync()?;
        self.write_header(to)
    }

    fn write_header(&mut self, of: DeltaId) -> Result<()> {
        let mut writer = ByteWriter::new();
        writer.bytes(&MAGIC).u16(VERSION).u16(0).u64(self.salt).u64(self.len.get()).u64(of.0);
        let mut bytes = writer.into_bytes();
        bytes.resize(PAGE_BYTES - 4, 0);
        let mut writer = ByteWriter::new();
        writer.bytes(&bytes).checksum();
        self.file.write_at(ByteOffset::ZERO, writer.as_bytes())?;
        self.file.sync()?;
        self.of = of;
        Ok(())
    }

    fn get(&mut self, block: u64) -> Option<BlockHash> {
        if block >= self.len.blocks(BLOCK) {
            return None;
        }
        let at = place(block);
        // A page that cannot be read knows nothing.
        let page = self.page(block / HASHES_PER_PAGE).ok()?;
        let hash: BlockHash = page[at..at + HASH_BYTES].try_into().ok()?;
        (hash != [0; HASH_BYTES]).then_some(hash)
    }

    fn put(&mut self, block: u64, hash: &BlockHash) -> Result<()> {
        if block >= self.len.blocks(BLOCK) {
            return Err(Error::new(ErrorKind::OutOfRange, format!("block {block} of {} bytes", self.len)));
        }
        let (number, at) = (block / HASHES_PER_PAGE, place(block));
        let mut page = Box::new(*self.page(number)?);
        page[at..at + HASH_BYTES].copy_from_slice(hash);
        page[NUMBER_AT..NUMBER_AT + 8].copy_from_slice(&number.to_le_bytes());
        let crc = blocks::crc32c(&page[..PAGE_BYTES - 4]);
        page[PAGE_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        self.page = None;
        self.file.write_at(page_offset(number), &page[..])?;
        self.page = Some((number, page));
        Ok(())
    }

    fn page(&mut self, number: u64) -> Result<&[u8; PAGE_BYTES]> {
        if self.page.as_ref().is_none_or(|(held, _)| *held != number) {
            let mut bytes = Box::new([0; PAGE_BYTES]);
            self.file.read_at(page_offset(number), &mut bytes[..])?;
            if !is_whole(&bytes, number) {
                bytes.fill(0);
            }
            self.page = Some((number, bytes));
        }
        match &self.page {
            Some((_, page)) => Ok(page),
            None => Err(Error::new(ErrorKind::Io, "a page that was just read")),
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place(block: u64) -> usize {
    ByteLen::new(block % HASHES_PER_PAGE).as_usize() * HASH_BYTES
}

fn file_len(disk: ByteLen) -> ByteLen {
    ByteLen::new((disk.blocks(BLOCK).div_ceil(HASHES_PER_PAGE) + 1) * PAGE_BYTES as u64)
}

fn page_offset(number: u64) -> ByteOffset {
    ByteOffset::new((number + 1) * PAGE_BYTES as u64)
}

fn is_whole(page: &[u8; PAGE_BYTES], number: u64) -> bool {
    let stored = page.last_chunk::<4>().map(|crc| u32::from_le_bytes(*crc));
    stored == Some(blocks::crc32c(&page[..PAGE_BYTES - 4]))
        && page[NUMBER_AT..NUMBER_AT + 8] == number.to_le_bytes()
}

/// Salt, length of the disk, state.
fn read_header(bytes: &[u8]) -> Result<(u64, ByteLen, DeltaId)> {
    let mut reader = ByteReader::checksummed(bytes, "hashes of blocks")?;
    let (magic, version) = (reader.array::<4>()?, reader.u16()?);
    if magic != MAGIC || version != VERSION {
        return Err(Error::corrupt("no hashes of blocks of this version"));
    }
    reader.u16()?;
    Ok((reader.u64()?, ByteLen::new(reader.u64()?), DeltaId(reader.u64()?)))
}

/// For fuzzing: a file of hashes with these bytes, as it is and with its checksums put right.
pub(crate) fn fuzz(storage: &dyn Storage, name: &str, bytes: &[u8]) -> Result<()> {
    let Ok((salt, ..)) = bytes.get(..PAGE_BYTES).map_or_else(|| Err(Error::corrupt("short")), read_header)
    else {
        return Ok(());
    };
    let Some(mut table) = HashTable::open(storage, name, salt)? else { return Ok(()) };
    for block in [0, 1, 126, 127, 1000, u64::MAX] {
        let _ = table.get(block);
    }
    Ok(())
}
