//! Writing an index, entry by entry in order, in bounded memory but for the fence.

use super::entry::{BLOCK_BYTES, ENTRIES_PER_BLOCK, Entry, FENCES_PER_BLOCK, encode_entries, encode_fences};
use crate::journal::location::Location;
use crate::unit::branch::DeltaId;
use blocks::{ByteLen, ByteOffset, ByteReader, ByteWriter, Error, Result, StorageFile, Synced};
use std::sync::Arc;

const MAGIC: [u8; 4] = *b"UIdx";
const VERSION: u16 = 1;
/// Of an index with entries whose payload is compressed, which version 1 did not know.
const VERSION_PACKED: u16 = 2;
/// How many blocks are written at a time.
const BLOCKS_BATCH: usize = 64;

/// What the first block of an index says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct IndexHeader {
    /// Random, of the unit.
    pub salt: u64,
    pub first: DeltaId,
    pub last: DeltaId,
    pub entries: u64,
    pub entry_blocks: u64,
    /// How many bytes of the disk the entries cover.
    pub covered: ByteLen,
    /// The end of the last entry.
    pub end: ByteOffset,
    /// Whether an entry's payload is compressed.
    pub packs: bool,
}

/// An index that is being written.
#[derive(Debug)]
pub(crate) struct IndexWriter {
    file: Arc<dyn StorageFile>,
    header: IndexHeader,
    waiting: Option<Entry>,
    block: Vec<Entry>,
    batch: Vec<u8>,
    batch_at: ByteOffset,
    fences: Vec<ByteOffset>,
}

impl IndexHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = ByteWriter::new();
        let version = if self.packs { VERSION_PACKED } else { VERSION };
        writer.bytes(&MAGIC).u16(version).u16(0).u64(self.salt).u64(self.first.0).u64(self.last.0);
        writer.u64(self.entries).u64(self.entry_blocks).u64(self.covered.get()).u64(self.end.get());
        let mut bytes = writer.into_bytes();
        bytes.resize(BLOCK_BYTES - 4, 0);
        let mut writer = ByteWriter::new();
        writer.bytes(&bytes).checksum();
        writer.into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8], name: &str) -> Result<IndexHeader> {
        let named = |error: Error| error.context(format!("{name}: first block"));
        let mut reader = ByteReader::checksummed(bytes, "an index").map_err(named)?;
        if reader.array()? != MAGIC {
            return Err(Error::corrupt(format!("{name} is not an index")));
        }
        let version = reader.u16()?;
        if version != VERSION && version != VERSION_PACKED {
            let context =
                format!("{name} is an index of version {version}, which is newer than this program");
            return Err(Error::new(blocks::ErrorKind::Unsupported, context));
        }
        reader.u16()?;
        Ok(IndexHeader {
            salt: reader.u64()?,
            first: DeltaId(reader.u64()?),
            last: DeltaId(reader.u64()?),
            entries: reader.u64()?,
            entry_blocks: reader.u64()?,
            covered: ByteLen::new(reader.u64()?),
            end: ByteOffset::new(reader.u64()?),
            packs: version == VERSION_PACKED,
        })
    }
}

impl IndexWriter {
    /// Writes to `file`, which is empty, about the deltas from `first` to `last`.
    pub(crate) fn new(file: Arc<dyn StorageFile>, salt: u64, first: DeltaId, last: DeltaId) -> IndexWriter {
        let (covered, end) = (ByteLen::ZERO, ByteOffset::ZERO);
        IndexWriter {
            file,
            header: IndexHeader {
                salt,
                first,
                last,
                entries: 0,
                entry_blocks: 0,
                covered,
                end,
                packs: false,
            },
            waiting: None,
            block: Vec::with_capacity(ENTRIES_PER_BLOCK),
            batch: Vec::new(),
            batch_at: ByteOffset::new(BLOCK_BYTES as u64),
            fences: Vec::new(),
        }
    }

    /// The next entry; it starts at or behind the end of the one before.
    pub(crate) fn push(&mut self, entry: Entry) -> Result<()> {
        debug_assert!(self.header.end <= entry.extent.start(), "entries come in order");
        self.header.covered += entry.extent.len();
        self.header.end = entry.extent.end();
        self.header.packs |= matches!(entry.location, Location::Log(log) if log.packed > 0);
        match &mut self.waiting {
            Some(waiting) if waiting.continues(&entry) => {
                let len = waiting.extent.len() + entry.extent.len();
                waiting.extent = blocks::Extent::new(waiting.extent.start(), len)?;
                Ok(())
            }
            waiting => match waiting.replace(entry) {
                Some(done) => self.add(done),
                None => Ok(()),
            },
        }
    }

    /// Writes the rest, syncs the file, returns what it says of itself. The folder is not synced.
    pub(crate) fn finish(mut self) -> Result<(IndexHeader, Synced)> {
        if let Some(last) = self.waiting.take() {
            self.add(last)?;
        }
        if !self.block.is_empty() {
            self.end_block()?;
        }
        self.header.entry_blocks = self.fences.len() as u64;
        let fences = std::mem::take(&mut self.fences);
        for (number, keys) in (self.header.entry_blocks + 1..).zip(fences.chunks(FENCES_PER_BLOCK)) {
            self.put(&encode_fences(number, keys)[..])?;
        }
        self.flush()?;
        self.file.write_at(ByteOffset::ZERO, &self.header.encode())?;
        let synced = self.file.sync()?;
        Ok((self.header, synced))
    }

    fn add(&mut self, entry: Entry) -> Result<()> {
        self.header.entries += 1;
        self.block.push(entry);
        if self.block.len() == ENTRIES_PER_BLOCK { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> Result<()> {
        self.fences.extend(self.block.first().map(|entry| entry.extent.start()));
        let bytes = encode_entries(self.fences.len() as u64, &self.block);
        self.block.clear();
        self.put(&bytes[..])
    }

    fn put(&mut self, block: &[u8]) -> Result<()> {
        self.batch.extend_from_slice(block);
        if self.batch.len() >= BLOCKS_BATCH * BLOCK_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_at(self.batch_at, &self.batch)?;
        self.batch_at += ByteLen::of(&self.batch);
        self.batch.clear();
        Ok(())
    }
}
