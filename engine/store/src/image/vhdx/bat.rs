//! The block allocation table: for each block of the disk a state and the megabyte of the file where it lies.
//!
//! After every `chunk ratio` entries of blocks comes one of a bitmap, which only differencing disks use.

use super::super::bytes::le64;
use super::super::table_cache::{EntryCodec, TableCache};
use super::metadata::Metadata;
use super::region::Regions;
use blocks::{BlockShift, ByteLen, ByteOffset, Error, Extent, Result, StorageFile};

/// What is read and cached at a time; a region is a multiple of 1 MiB.
pub(super) const PAGE: ByteLen = ByteLen::new(64 << 10);
const ENTRY_BYTES: u64 = 8;
const CACHE_BYTES: ByteLen = ByteLen::new(32 << 20);
const MIB: BlockShift = BlockShift::new(20).expect("1 MiB is a block size");
/// A bitmap's block, whatever the size of the others.
pub(super) const BITMAP: ByteLen = ByteLen::new(1 << 20);

/// What an entry says of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Never written: the parent's, or zeroes.
    NotPresent,
    /// Zeroes, whatever a parent has.
    Zero,
    /// In the file.
    Present(ByteOffset),
    /// In the file where the bitmap says so, else the parent's.
    Partial(ByteOffset),
}

impl State {
    fn decode(entry: u64) -> Result<State> {
        let at = ByteOffset::new(entry & !0xf_ffff);
        let reserved = entry & 0xf_fff8 != 0;
        match entry & 7 {
            0 if !reserved => Ok(State::NotPresent),
            // Undefined and unmapped blocks may read as anything: as zeroes here.
            1..=3 if !reserved => Ok(State::Zero),
            6 if !reserved => Ok(State::Present(at)),
            7 if !reserved => Ok(State::Partial(at)),
            _ => Err(Error::corrupt(format!("an entry {entry:#018x} of the block allocation table"))),
        }
    }

    /// The entry of a block that is in the file from `at` on.
    pub(super) fn encode_present(at: ByteOffset) -> u64 {
        at.get() | 6
    }
}

/// How many entries a table has (section 2.5): a bitmap's stands behind a whole chunk of them, even if the disk has fewer blocks.
fn entries_of(blocks: u64, chunk_ratio: u64, has_parent: bool) -> u64 {
    if has_parent {
        blocks.div_ceil(chunk_ratio) * (chunk_ratio + 1)
    } else {
        blocks + (blocks - 1) / chunk_ratio
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Bat {
    region: Extent,
    tables: TableCache,
    chunk_ratio: u64,
    block: BlockShift,
    blocks: u64,
}

/// What a walk over all entries has found.
pub(super) struct Used {
    /// Megabytes of the file at which blocks start, sorted, and how many each has.
    pub(super) places: Vec<(u32, u32)>,
    /// The end of the last of them, or of a region.
    pub(super) end: ByteOffset,
}

impl Bat {
    /// The table of a disk; `Corrupt` where its region is too small.
    pub(super) fn new(name: &str, region: Extent, metadata: &Metadata) -> Result<Bat> {
        let blocks = metadata.len.blocks(metadata.block);
        let chunk_ratio = (metadata.logical_sector.bytes() << 23) >> metadata.block.get();
        let entries = entries_of(blocks, chunk_ratio, metadata.parent.is_some());
        if entries * ENTRY_BYTES > region.len().get() {
            let context = format!("{name}: a table of {} bytes for {entries} entries", region.len());
            return Err(Error::corrupt(context));
        }
        let per_page = ByteLen::new(PAGE.get() / ENTRY_BYTES).as_usize();
        let tables = TableCache::new(per_page, EntryCodec::Le64, CACHE_BYTES);
        Ok(Bat { region, tables, chunk_ratio, block: metadata.block, blocks })
    }

    /// How many blocks the disk has.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// How many bytes the table of a disk of so many blocks takes.
    pub(super) fn len_for(blocks: u64, chunk_ratio: u64) -> ByteLen {
        ByteLen::new(entries_of(blocks, chunk_ratio, false) * ENTRY_BYTES)
    }

    /// How many blocks a table of so many bytes is enough for.
    pub(super) fn blocks_in(len: ByteLen, chunk_ratio: u64) -> u64 {
        let entries = len.get() / ENTRY_BYTES;
        entries - entries / (chunk_ratio + 1)
    }

    fn index_of(&self, block: u64) -> u64 {
        block + block / self.chunk_ratio
    }

    /// Where a block's entry is in the file.
    pub(super) fn entry_at(&self, block: u64) -> ByteOffset {
        self.region.start() + ByteLen::new(self.index_of(block) * ENTRY_BYTES)
    }

    /// The page that holds a block's entry, and which entry of it that is.
    pub(super) fn page_of(&self, block: u64) -> (ByteOffset, usize) {
        let inside = self.index_of(block) * ENTRY_BYTES;
        let page = self.region.start() + ByteLen::new(inside / PAGE.get() * PAGE.get());
        (page, ByteLen::new(inside % PAGE.get() / ENTRY_BYTES).as_usize())
    }

    /// The number of a page, from 0.
    pub(super) fn page_number(&self, page: ByteOffset) -> usize {
        ByteLen::new((page - self.region.start()).get() / PAGE.get()).as_usize()
    }

    /// How many pages the table has.
    pub(super) fn pages(&self) -> usize {
        ByteLen::new(self.region.len().get() / PAGE.get()).as_usize()
    }

    /// What the table says of a block. The walk at opening has checked it.
    pub(super) fn get(&self, file: &dyn StorageFile, block: u64) -> Result<State> {
        let (page, index) = self.page_of(block);
        State::decode(self.tables.get(file, page)?.get(index)).map_err(|error| error.context(file.name()))
    }

    /// Where the bitmap of a block is, and where in it the block's bits start.
    pub(super) fn bitmap_of(&self, file: &dyn StorageFile, block: u64) -> Result<Option<(ByteOffset, u64)>> {
        let chunk = block / self.chunk_ratio;
        let inside = (chunk * (self.chunk_ratio + 1) + self.chunk_ratio) * ENTRY_BYTES;
        let page = self.region.start() + ByteLen::new(inside / PAGE.get() * PAGE.get());
        let index = ByteLen::new(inside % PAGE.get() / ENTRY_BYTES).as_usize();
        let entry = self.tables.get(file, page)?.get(index);
        let bits_per_block = (BITMAP.get() * 8) / self.chunk_ratio;
        let first_bit = block % self.chunk_ratio * bits_per_block;
        Ok((entry & 7 == 6).then(|| (ByteOffset::new(entry & !0xf_ffff), first_bit)))
    }

    /// Changes a block's entry: in the file, then for readers.
    pub(super) fn set(&self, file: &dyn StorageFile, block: u64, entry: u64) -> Result<()> {
        let (page, index) = self.page_of(block);
        self.tables.set(file, page, index, &[entry])
    }

    /// Writes a page again, as it is.
    pub(super) fn rewrite(&self, file: &dyn StorageFile, page: ByteOffset) -> Result<()> {
        self.tables.rewrite(file, page)
    }

    /// Walks over all entries: each must lead into the file, onto no region and no other block.
    pub(super) fn check(
        &self,
        file: &dyn StorageFile,
        metadata: &Metadata,
        regions: &Regions,
        log: Extent,
    ) -> Result<Used> {
        let corrupt = |what: String| Error::corrupt(format!("{}: {what}", file.name()));
        let file_end = file.len()?.end();
        let structures = [regions.bat, regions.metadata, log];
        let mut places = Vec::new();
        let period = self.chunk_ratio + 1;
        let entries = entries_of(self.blocks, self.chunk_ratio, metadata.parent.is_some());
        let listed = Extent::new(self.region.start(), ByteLen::new(entries * ENTRY_BYTES))?;
        let mut buffer = vec![0; PAGE.as_usize()];
        let mut index = 0_u64;
        for piece in listed.split(PAGE) {
            let bytes = &mut buffer[..piece.len().as_usize()];
            file.read_at(piece.start(), bytes)?;
            if blocks::is_zero(bytes) {
                index += piece.len().get() / ENTRY_BYTES;
                continue;
            }
            for entry in bytes.chunks_exact(8).map(|entry| le64(entry, 0)) {
                let is_bitmap = index % period == self.chunk_ratio;
                let number = index - index / period;
                index += 1;
                if number >= self.blocks && !is_bitmap {
                    continue;
                }
                let Some(place) = self
                    .place(entry, is_bitmap, metadata.parent.is_some())
                    .map_err(|error| error.context(file.name()))?
                else {
                    continue;
                };
                // The last block of a disk may be cut where the disk ends.
                let needed = if number == self.blocks - 1 && !is_bitmap {
                    let last = metadata.len.get() - (self.blocks - 1) * self.block.bytes();
                    Extent::new(place.start(), ByteLen::new(last))?
                } else {
                    place
                };
                let astray = place.start().get() < MIB.bytes() || needed.end() > file_end;
                if astray || structures.iter().any(|structure| structure.overlaps(place)) {
                    return Err(corrupt(format!(
                        "a block at {place} lies past the file's end or on its structures"
                    )));
                }
                let megabyte = |bytes: u64| {
                    u32::try_from(bytes >> 20).map_err(|_| corrupt(format!("a block at {place}")))
                };
                places.push((megabyte(place.start().get())?, megabyte(place.len().get())?));
            }
        }
        places.sort_unstable();
        if let Some(pair) = places.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            return Err(corrupt(format!("its blocks at {} and {} MiB overlap", pair[0].0, pair[1].0)));
        }
        let blocks_end =
            places.last().map(|(at, len)| ByteOffset::new((u64::from(*at) + u64::from(*len)) << 20));
        let end = structures.iter().map(|structure| structure.end()).max().max(blocks_end);
        Ok(Used { places, end: end.unwrap_or(self.region.end()) })
    }

    fn place(&self, entry: u64, is_bitmap: bool, has_parent: bool) -> Result<Option<Extent>> {
        if is_bitmap {
            let present = has_parent && entry & 7 == 6;
            let at = ByteOffset::new(entry & !0xf_ffff);
            return Ok(if present { Some(Extent::new(at, BITMAP)?) } else { None });
        }
        match State::decode(entry)? {
            State::Partial(_) if !has_parent => {
                Err(Error::corrupt("a block that is partly present on a disk without a parent"))
            }
            State::Present(at) | State::Partial(at) => Ok(Some(Extent::new(at, self.block.len())?)),
            State::NotPresent | State::Zero => Ok(None),
        }
    }
}
