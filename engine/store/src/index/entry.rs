//! One entry of an index, and the blocks that entries and fences are kept in. docs/formats/store.md has the tables.

use crate::journal::location::{Location, LogLocation, RecordKind};
use crate::unit::branch::DeltaId;
use blocks::{ByteLen, ByteOffset, Error, Extent, Lba, Result, SECTOR_BYTES, SECTOR_SHIFT, Sliceable};

/// Everything in an index file is read and checked by this much.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// A block's own fields: its number (u64), how many entries it has (u32); its CRC32C is in the last four bytes.
const BLOCK_HEADER_BYTES: usize = 12;
const BLOCK_CRC_AT: usize = BLOCK_BYTES - 4;
/// The length of an entry.
const ENTRY_BYTES: usize = 40;
/// The kind of an entry whose payload is compressed, in an index of version 2.
const KIND_PACKED: u8 = 4;
/// How many entries a block holds.
pub(crate) const ENTRIES_PER_BLOCK: usize = (BLOCK_CRC_AT - BLOCK_HEADER_BYTES) / ENTRY_BYTES;
/// How many fence keys a block holds.
pub(crate) const FENCES_PER_BLOCK: usize = (BLOCK_CRC_AT - BLOCK_HEADER_BYTES) / 8;

/// An extent and where its bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub extent: Extent,
    /// Whose log `location` is about.
    pub delta: DeltaId,
    pub location: Location,
}

impl Entry {
    /// The part of the entry within `range`.
    pub(crate) fn intersect(&self, range: Extent) -> Option<Entry> {
        let extent = self.extent.intersect(range)?;
        let location = self.location.skip(extent.start() - self.extent.start());
        Some(Entry { extent, delta: self.delta, location })
    }

    /// Whether `next` can be held as one with this entry.
    pub(crate) fn continues(&self, next: &Entry) -> bool {
        // The delta of what holds no bytes matters too: it decides whether the image has it already.
        self.extent.end() == next.extent.start()
            && self.delta == next.delta
            && self.location.continues(self.extent.len(), &next.location)
    }

    fn encode(&self, bytes: &mut [u8]) {
        let (payload, crc, sectors, skip, packed) = match self.location {
            Location::Empty(_) => (0, 0, 0, 0, 0),
            Location::Log(log) => (log.payload.get(), log.crc, log.sectors, log.skip, log.packed),
        };
        let kind = if packed > 0 { KIND_PACKED } else { self.location.kind().to_byte() };
        bytes[..8].copy_from_slice(&self.extent.start().lba().get().to_le_bytes());
        bytes[8..16].copy_from_slice(&(self.extent.len().get() >> SECTOR_SHIFT).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.delta.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&payload.to_le_bytes());
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        bytes[36..40].copy_from_slice(&[sectors, skip, kind, packed]);
    }

    fn decode(bytes: &[u8]) -> Option<Entry> {
        let u64_at = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let start = Lba::new(u64_at(0)?).offset()?;
        let extent = Extent::new(start, ByteLen::new(u64_at(8)?.checked_mul(SECTOR_BYTES)?)).ok()?;
        let [sectors, skip, kind, packed] = *bytes.get(36..40)?.first_chunk()?;
        let (kind, packed) = match kind {
            KIND_PACKED if packed > 0 => (RecordKind::Data, packed),
            KIND_PACKED => return None,
            kind => (RecordKind::from_byte(kind)?, 0),
        };
        let location = match kind {
            RecordKind::Data => {
                let crc = u32::from_le_bytes(*bytes.get(32..36)?.first_chunk()?);
                let log = LogLocation { payload: ByteOffset::new(u64_at(24)?), crc, sectors, skip, packed };
                if log.stored_len() > log.payload_len() {
                    return None;
                }
                if log.skip_len().get().checked_add(extent.len().get())? > log.payload_len().get() {
                    return None;
                }
                Location::Log(log)
            }
            kind => Location::Empty(kind),
        };
        Some(Entry { extent, delta: DeltaId(u64_at(16)?), location })
    }
}

/// A checked block.
#[derive(Debug)]
pub(crate) struct Block {
    bytes: Box<[u8; BLOCK_BYTES]>,
    count: usize,
}

impl Block {
    /// Checks what was read as block `number` of the file `name`.
    pub(crate) fn check(
        bytes: Box<[u8; BLOCK_BYTES]>,
        number: u64,
        item_bytes: usize,
        name: &str,
    ) -> Result<Block> {
        let wrong = |what: &str| {
            let at = number * BLOCK_BYTES as u64;
            Err(Error::corrupt(format!("{name}: index block at offset {at}: {what}")))
        };
        let stored = bytes.last_chunk::<4>().map(|crc| u32::from_le_bytes(*crc));
        if stored != Some(blocks::crc32c(&bytes[..BLOCK_CRC_AT])) {
            return wrong("checksum mismatch");
        }
        let mut stored_number = [0; 8];
        stored_number.copy_from_slice(&bytes[..8]);
        if u64::from_le_bytes(stored_number) != number {
            return wrong("it belongs elsewhere");
        }
        let count = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
        if count > (BLOCK_CRC_AT - BLOCK_HEADER_BYTES) / item_bytes {
            return wrong("more entries than fit");
        }
        Ok(Block { bytes, count })
    }

    pub(crate) fn check_entries(bytes: Box<[u8; BLOCK_BYTES]>, number: u64, name: &str) -> Result<Block> {
        let block = Block::check(bytes, number, ENTRY_BYTES, name)?;
        let mut after = ByteOffset::ZERO;
        for index in 0..block.count {
            // Lookups and merges rely on entries being in order and disjoint.
            match block.decode_entry(index).filter(|entry| after <= entry.extent.start()) {
                Some(entry) => after = entry.extent.end(),
                None => {
                    let at = number * BLOCK_BYTES as u64;
                    let context = format!("{name}: index block at offset {at}: entry {index} makes no sense");
                    return Err(Error::corrupt(context));
                }
            }
        }
        Ok(block)
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Entry `index` of a block that [`Block::check_entries`] gave out.
    pub(crate) fn entry(&self, index: usize) -> Option<Entry> {
        if index < self.count { self.decode_entry(index) } else { None }
    }

    fn decode_entry(&self, index: usize) -> Option<Entry> {
        let at = BLOCK_HEADER_BYTES + index * ENTRY_BYTES;
        Entry::decode(self.bytes.get(at..at + ENTRY_BYTES)?)
    }

    /// The first entry that ends behind `at`.
    pub(crate) fn first_ending_after(&self, at: ByteOffset) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            let ends_before = self.entry(middle).is_some_and(|entry| entry.extent.end() <= at);
            if ends_before { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The keys of a fence block.
    pub(crate) fn fences(&self) -> impl Iterator<Item = ByteOffset> {
        let keys = &self.bytes[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + self.count * 8];
        keys.chunks_exact(8).map(|key| ByteOffset::new(u64::from_le_bytes(std::array::from_fn(|i| key[i]))))
    }
}

/// The bytes of a block of entries.
pub(crate) fn encode_entries(number: u64, entries: &[Entry]) -> Box<[u8; BLOCK_BYTES]> {
    encode_block(number, entries.len(), |body| {
        entries.iter().zip(body.chunks_exact_mut(ENTRY_BYTES)).for_each(|(entry, bytes)| entry.encode(bytes));
    })
}

/// The bytes of a block of fence keys.
pub(crate) fn encode_fences(number: u64, keys: &[ByteOffset]) -> Box<[u8; BLOCK_BYTES]> {
    encode_block(number, keys.len(), |body| {
        keys.iter().zip(body.chunks_exact_mut(8)).for_each(|(key, bytes)| {
            bytes.copy_from_slice(&key.get().to_le_bytes());
        });
    })
}

fn encode_block(number: u64, count: usize, fill: impl FnOnce(&mut [u8])) -> Box<[u8; BLOCK_BYTES]> {
    let mut bytes = Box::new([0; BLOCK_BYTES]);
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..12].copy_from_slice(&u32::try_from(count).expect("a block has few entries").to_le_bytes());
    fill(&mut bytes[BLOCK_HEADER_BYTES..BLOCK_CRC_AT]);
    let crc = blocks::crc32c(&bytes[..BLOCK_CRC_AT]);
    bytes[BLOCK_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    bytes
}
