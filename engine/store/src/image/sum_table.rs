//! The checksum sidecar of an image: a header and one CRC32C for each block of the disk.
//!
//! | at | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | magic "USTYSUMS" |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | log2 of the block size: 12, or 16 as it was made before |
//! | 16 | 8 | the disk's length in bytes |
//! | 24 | 4 | CRC32C of the 24 bytes above |
//! | 4096 | 4 each | the block's CRC32C; 0: the block is all zeroes (a checksum that happens to be 0 is stored as 1) |
//!
//! All little-endian. The table has a page of its own so that an entry never shares a sector with the header.

use blocks::{
    BlockShift, ByteLen, ByteOffset, ByteReader, ByteWriter, Error, Extent, Result, StorageFile, Synced,
    is_zero,
};
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What one checksum of a new sidecar covers: a guest's small read needs nothing beside it, and the table is a thousandth
/// of the disk.
const NEW_BLOCK: BlockShift = BlockShift::KIB_4;
/// What a sidecar's block size may be.
const BLOCKS: [BlockShift; 2] = [BlockShift::KIB_4, BlockShift::KIB_64];
const MAGIC: [u8; 8] = *b"USTYSUMS";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 28;
const TABLE_START: ByteOffset = ByteOffset::new(4096);
const ENTRY_BYTES: u64 = 4;
const PAGE_BYTES: usize = 4096;
const PAGE_ENTRIES: u64 = PAGE_BYTES as u64 / ENTRY_BYTES;
/// 4 MiB of table: the checksums of 4 GiB.
const PAGES_MAX: usize = 1024;

/// A block's checksum as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sum(u32);

impl Sum {
    /// Of a block that is all zeroes, written or not.
    pub(super) const ZERO: Sum = Sum(0);

    /// Of these bytes.
    pub(super) fn of(block: &[u8]) -> Sum {
        if is_zero(block) { Sum::ZERO } else { Sum(blocks::crc32c(block).max(1)) }
    }

    /// Whether it is what these bytes come to.
    pub(super) fn is_of(self, block: &[u8]) -> bool {
        // Bytes that are not all zeroes are told so by their checksum alone.
        if self == Sum::ZERO { is_zero(block) } else { blocks::crc32c(block).max(1) == self.0 }
    }

    fn stored(entry: &[u8]) -> Sum {
        Sum(u32::from_le_bytes(std::array::from_fn(|i| entry[i])))
    }
}

/// The sidecar, open.
#[derive(Debug)]
pub(super) struct SumTable {
    file: Arc<dyn StorageFile>,
    block: BlockShift,
    len: ByteLen,
    cache: Mutex<Cache>,
}

/// Pages of the table as they are in the file: always written through, so any of them can be dropped.
#[derive(Debug, Default)]
struct Cache {
    pages: HashMap<u64, Box<[u8; PAGE_BYTES]>>,
    order: VecDeque<u64>,
}

impl SumTable {
    /// Opens the sidecar of a disk of `len` bytes; an empty file becomes the sidecar of a disk of zeroes, on the medium
    /// when this returns. `Corrupt` where the file is not the sidecar of such a disk, or of a shorter one that was being
    /// made at most `becoming` bytes long.
    pub(super) fn open(file: Arc<dyn StorageFile>, len: ByteLen, becoming: ByteLen) -> Result<SumTable> {
        let found = file.len()?;
        if found.is_zero() {
            file.set_len(file_len(len, NEW_BLOCK))?;
            file.write_at(ByteOffset::ZERO, &header(len, NEW_BLOCK))?;
            file.sync()?;
            return Ok(SumTable { file, block: NEW_BLOCK, len, cache: Mutex::default() });
        }
        let mut bytes = [0; HEADER_BYTES];
        file.read_at(ByteOffset::ZERO, &mut bytes)?;
        let (block, stored) = read_header(&bytes).map_err(|error| error.context(file.name()))?;
        if !(len..=becoming).contains(&stored) {
            let name = file.name();
            let what = format!("{name}: it belongs to a disk of {stored} bytes, not of {len}");
            return Err(Error::corrupt(what));
        }
        let (least, most) = (file_len(stored, block), file_len(becoming, block));
        if !(least..=most).contains(&found) {
            let name = file.name();
            return Err(Error::corrupt(format!("{name} has {found} bytes instead of {least}")));
        }
        Ok(SumTable { file, block, len: stored, cache: Mutex::default() })
    }

    /// The disk's length.
    pub(super) fn len(&self) -> ByteLen {
        self.len
    }

    /// Makes it the sidecar of a longer disk, of which the rest is zeroes; `last` is what the block comes to that was short.
    /// On the medium when this returns. After a crash it is of the one length or the other, and the short block's checksum
    /// may be the new one already.
    pub(super) fn grow(&mut self, len: ByteLen, last: Option<Sum>) -> Result<()> {
        self.file.set_len(file_len(len, self.block))?;
        if let Some(last) = last {
            self.set(self.len.blocks(self.block) - 1, &[last])?;
        }
        self.file.sync()?;
        self.file.write_at(ByteOffset::ZERO, &header(len, self.block))?;
        self.file.sync()?;
        // The page that was the last is longer now.
        *self.cache() = Cache::default();
        self.len = len;
        Ok(())
    }

    /// What one checksum covers.
    pub(super) fn block(&self) -> BlockShift {
        self.block
    }

    /// The file's name.
    pub(super) fn name(&self) -> &str {
        self.file.name()
    }

    /// Says that this block's checksum is asked for next, so that memory brings it meanwhile. Of many blocks the first is enough:
    /// the others are beside it.
    pub(super) fn hint(&self, block: u64) {
        if let Some(page) = self.cache().pages.get(&(block / PAGE_ENTRIES)) {
            prefetch(&page[entry_in_page(block)..]);
        }
    }

    /// The checksums of these blocks.
    pub(super) fn get(&self, blocks: Range<u64>) -> Result<SmallVec<[Sum; 4]>> {
        let mut cache = self.cache();
        let mut sums = SmallVec::new();
        let mut next = blocks.start;
        while next < blocks.end {
            let number = next / PAGE_ENTRIES;
            let end = blocks.end.min((number + 1) * PAGE_ENTRIES);
            let entries = &self.page(&mut cache, number)?[entry_in_page(next)..=entry_in_page(end - 1) + 3];
            sums.extend(entries.chunks_exact(4).map(Sum::stored));
            next = end;
        }
        Ok(sums)
    }

    /// The checksums of these blocks as the file has them, past what is held in memory.
    pub(super) fn stored(&self, blocks: Range<u64>) -> Result<Vec<Sum>> {
        let mut bytes = vec![0; ByteLen::new((blocks.end - blocks.start) * ENTRY_BYTES).as_usize()];
        self.file.read_at(entry_offset(blocks.start), &mut bytes)?;
        Ok(bytes.chunks_exact(4).map(Sum::stored).collect())
    }

    /// Lets the system forget what it holds of the file in memory.
    pub(super) fn drop_cached(&self) {
        self.file.drop_cached();
    }

    /// Stores the checksums of consecutive blocks from `first` on, a few pages at most.
    pub(super) fn set(&self, first: u64, sums: &[Sum]) -> Result<()> {
        let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.0.to_le_bytes()).collect();
        let mut cache = self.cache();
        for (block, entry) in (first..).zip(bytes.chunks_exact(4)) {
            if let Some(page) = cache.pages.get_mut(&(block / PAGE_ENTRIES)) {
                let at = entry_in_page(block);
                page[at..at + 4].copy_from_slice(entry);
            }
        }
        self.file.write_at(entry_offset(first), &bytes)
    }

    /// Marks these blocks as all zeroes.
    pub(super) fn clear(&self, blocks: Range<u64>) -> Result<()> {
        let Some(entries) = Extent::between(entry_offset(blocks.start), entry_offset(blocks.end)) else {
            return Ok(());
        };
        let mut cache = self.cache();
        let gone = blocks.start / PAGE_ENTRIES..blocks.end.div_ceil(PAGE_ENTRIES);
        cache.pages.retain(|page, _| !gone.contains(page));
        cache.order.retain(|page| !gone.contains(page));
        self.file.punch_hole(entries)
    }

    /// Puts the table on the medium.
    pub(super) fn sync(&self) -> Result<Synced> {
        self.file.sync()
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page<'a>(&self, cache: &'a mut Cache, page: u64) -> Result<&'a [u8; PAGE_BYTES]> {
        if !cache.pages.contains_key(&page) {
            let mut bytes = Box::new([0; PAGE_BYTES]);
            let first = page * PAGE_ENTRIES;
            let count = PAGE_ENTRIES.min(self.len.blocks(self.block).saturating_sub(first)) * ENTRY_BYTES;
            let wanted = ByteLen::new(count).as_usize();
            self.file.read_at(entry_offset(first), &mut bytes[..wanted])?;
            if cache.order.len() >= PAGES_MAX
                && let Some(oldest) = cache.order.pop_front()
            {
                cache.pages.remove(&oldest);
            }
            cache.order.push_back(page);
            cache.pages.insert(page, bytes);
        }
        Ok(&cache.pages[&page])
    }
}

/// Begins to bring the first of these bytes into the processor's cache, and does not wait for them.
fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: reads nothing, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

fn file_len(disk: ByteLen, block: BlockShift) -> ByteLen {
    ByteLen::new(TABLE_START.get() + disk.blocks(block) * ENTRY_BYTES)
}

fn entry_offset(block: u64) -> ByteOffset {
    TABLE_START + ByteLen::new(block * ENTRY_BYTES)
}

fn entry_in_page(block: u64) -> usize {
    ByteLen::new(block % PAGE_ENTRIES * ENTRY_BYTES).as_usize()
}

fn header(len: ByteLen, block: BlockShift) -> Vec<u8> {
    let mut writer = ByteWriter::new();
    writer.bytes(&MAGIC).u32(VERSION).u32(u32::from(block.get())).u64(len.get()).checksum();
    writer.into_bytes()
}

/// What a checksum covers, and the disk's length.
fn read_header(bytes: &[u8; HEADER_BYTES]) -> Result<(BlockShift, ByteLen)> {
    let mut reader = ByteReader::checksummed(bytes, "checksum sidecar")?;
    let (magic, version) = (reader.array::<8>()?, reader.u32()?);
    let (shift, stored_len) = (reader.u32()?, reader.u64()?);
    reader.finish()?;
    let block = BLOCKS.into_iter().find(|block| shift == u32::from(block.get()));
    let Some(block) = block.filter(|_| magic == MAGIC && version == VERSION) else {
        return Err(Error::corrupt(format!("not a checksum sidecar of version {VERSION}")));
    };
    Ok((block, ByteLen::new(stored_len)))
}
