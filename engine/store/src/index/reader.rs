//! Looking things up in an index file: the fence in memory says which block, the cache or the file has it.

use super::block_cache::BlockCache;
use super::entry::{BLOCK_BYTES, Block, Entry, FENCES_PER_BLOCK};
use super::writer::IndexHeader;
use crate::stored_file::StoredFile;
use crate::unit::branch::DeltaId;
use blocks::{ByteLen, ByteOffset, Error, Extent, Result, StorageFile};
use std::sync::Arc;

/// A sealed index of one delta or of several neighbours.
#[derive(Debug)]
pub(crate) struct IndexReader {
    file: Arc<StoredFile>,
    header: IndexHeader,
    /// Where each block's first entry starts.
    fences: Vec<ByteOffset>,
    cache: Arc<BlockCache>,
}

/// Entries in order, from one place on.
#[derive(Debug)]
pub(crate) struct IndexCursor {
    reader: Arc<IndexReader>,
    block: Option<(usize, Arc<Block>)>,
    next: usize,
}

impl IndexReader {
    /// Opens an index of that unit over exactly those deltas.
    pub(crate) fn open(
        file: Arc<StoredFile>,
        salt: u64,
        (first, last): (DeltaId, DeltaId),
        cache: Arc<BlockCache>,
    ) -> Result<IndexReader> {
        let handle = file.open()?;
        let name = handle.name();
        let mut bytes = vec![0; BLOCK_BYTES];
        handle.read_at(ByteOffset::ZERO, &mut bytes)?;
        let header = IndexHeader::decode(&bytes, name)?;
        if (header.salt, header.first, header.last) != (salt, first, last) {
            return Err(Error::corrupt(format!("{name} is the index of something else")));
        }
        let fences = read_fences(&*handle, &header)?;
        Ok(IndexReader { file, header, fences, cache })
    }

    /// How many blocks of entries it has.
    pub(crate) fn blocks(&self) -> usize {
        self.fences.len()
    }

    /// The entries of block `number`, counted from 0, read from the file and checked.
    pub(crate) fn entries_of(&self, number: usize) -> Result<Vec<Entry>> {
        let block = self.load(number as u64 + 1)?;
        Ok((0..block.len()).filter_map(|index| block.entry(index)).collect())
    }

    /// The part of the disk that only block `number` tells about.
    pub(crate) fn range_of(&self, number: usize) -> Option<Extent> {
        let start = *self.fences.get(number)?;
        Extent::between(start, *self.fences.get(number + 1).unwrap_or(&self.header.end))
    }

    pub(crate) fn header(&self) -> &IndexHeader {
        &self.header
    }

    /// Whether some entry may have a byte of `range`, judged from memory alone.
    fn may_have(&self, range: Extent) -> bool {
        self.fences.first().is_some_and(|first| *first < range.end() && range.start() < self.header.end)
    }

    /// Calls `found` with each entry that has bytes of `range`, cut to it, in order.
    pub(crate) fn lookup(&self, range: Extent, mut found: impl FnMut(Entry)) -> Result<()> {
        if !self.may_have(range) {
            return Ok(());
        }
        for number in self.block_of(range.start())..self.fences.len() {
            if self.fences[number] >= range.end() {
                break;
            }
            let block = self.block(number)?;
            for index in block.first_ending_after(range.start())..block.len() {
                match block.entry(index).and_then(|entry| entry.intersect(range)) {
                    Some(entry) => found(entry),
                    None => return Ok(()),
                }
            }
        }
        Ok(())
    }

    /// All entries from the start on.
    pub(crate) fn cursor(self: &Arc<Self>) -> IndexCursor {
        IndexCursor { reader: Arc::clone(self), block: None, next: 0 }
    }

    /// The last block whose first entry starts at or before `at`, else the first block.
    fn block_of(&self, at: ByteOffset) -> usize {
        self.fences.partition_point(|fence| *fence <= at).saturating_sub(1)
    }

    fn block(&self, number: usize) -> Result<Arc<Block>> {
        let number_in_file = number as u64 + 1;
        self.cache.get((self.file.id(), number_in_file), || self.load(number_in_file))
    }

    fn load(&self, number: u64) -> Result<Block> {
        let handle = self.file.open()?;
        let block = Block::check_entries(read_block(&*handle, number)?, number, handle.name())?;
        self.check_place(&block, number, handle.name())?;
        Ok(block)
    }

    /// `Corrupt` unless the block's entries lie between its own fence and the next one's.
    fn check_place(&self, block: &Block, number: u64, name: &str) -> Result<()> {
        let place = usize::try_from(number).unwrap_or(usize::MAX).saturating_sub(1);
        let (first, next) = (self.fences.get(place), self.fences.get(place.saturating_add(1)));
        let end = *next.unwrap_or(&self.header.end);
        let last = block.len().checked_sub(1).and_then(|last| block.entry(last));
        let fits = block.entry(0).map(|entry| entry.extent.start()).as_ref() == first
            && last.is_some_and(|entry| entry.extent.end() <= end);
        if fits {
            return Ok(());
        }
        let at = number * BLOCK_BYTES as u64;
        Err(Error::corrupt(format!(
            "{name}: index block at offset {at}: its entries are not what the fence says"
        )))
    }
}

impl IndexCursor {
    /// The next entry. Reads past the cache, which a scan would only empty.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        loop {
            if let Some((_, block)) = &self.block
                && let Some(entry) = block.entry(self.next)
            {
                self.next += 1;
                return Ok(Some(entry));
            }
            let number = self.block.as_ref().map_or(0, |(number, _)| number + 1);
            if number >= self.reader.fences.len() {
                return Ok(None);
            }
            self.block = Some((number, Arc::new(self.reader.load(number as u64 + 1)?)));
            self.next = 0;
        }
    }
}

fn read_block(file: &dyn StorageFile, number: u64) -> Result<Box<[u8; BLOCK_BYTES]>> {
    let mut bytes = Box::new([0; BLOCK_BYTES]);
    file.read_at(ByteOffset::new(number * BLOCK_BYTES as u64), &mut bytes[..])?;
    Ok(bytes)
}

fn read_fences(file: &dyn StorageFile, header: &IndexHeader) -> Result<Vec<ByteOffset>> {
    let name = file.name();
    let blocks = header.entry_blocks.div_ceil(FENCES_PER_BLOCK as u64);
    let block_len = ByteLen::new(BLOCK_BYTES as u64);
    let expected = header.entry_blocks.checked_add(blocks + 1).and_then(|n| n.checked_mul(block_len.get()));
    if expected != Some(file.len()?.get()) {
        return Err(Error::corrupt(format!("{name}: its length is not that of {} entries", header.entries)));
    }
    let mut fences = Vec::new();
    for number in header.entry_blocks + 1..header.entry_blocks + 1 + blocks {
        fences.extend(Block::check(read_block(file, number)?, number, 8, name)?.fences());
    }
    if fences.len() as u64 != header.entry_blocks || !fences.is_sorted() {
        return Err(Error::corrupt(format!("{name}: its fence makes no sense")));
    }
    Ok(fences)
}
