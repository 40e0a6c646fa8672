//! Which blocks of a pivoted disk differ from the session's base: durable before each first write to a block.
//!
//! A header and an append-only list of records, 32 bytes each, so that none crosses a sector; the byte table is in
//! docs/formats/dirty-map.md. Marks that come together share one sync (a *batch*), and a batch is written only after the
//! one before it is on the medium. Opening may find the last batch torn: no write that it was for has begun, so its torn
//! records are dropped. A damaged record of an earlier batch is damage in the middle and an error. A mark is never taken
//! back: the map can only say too much.

use crate::session::block_set::{BLOCK, BlockSet};
use crate::session::volume::lock;
use blocks::{
    ByteLen, ByteOffset, ByteReader, ByteWriter, DiskIndex, Error, ErrorKind, Extent, OpenMode, Result,
    SessionId, Storage, StorageFile,
};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

const MAGIC: &[u8; 8] = b"UNDRDMAP";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 512;
const RECORD_BYTES: u64 = 32;
const RECORD_MAGIC: u32 = 0x4b52_414d;
/// How many records are read or written at once.
const RECORDS_AT_ONCE: u64 = 4096;
/// How much is written again at a time.
const REWRITE_STEP: ByteLen = ByteLen::new(1 << 20);

/// Whose map it is; checked when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapOwner {
    pub session: SessionId,
    pub disk: DiskIndex,
    pub len: ByteLen,
}

/// The durable map.
#[derive(Debug)]
pub(crate) struct DirtyMap {
    file: Arc<dyn StorageFile>,
    state: Mutex<MapState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct MapState {
    durable: BlockSet,
    waiting: BlockSet,
    /// Where the next record goes.
    records: u64,
    syncing: bool,
    failed: bool,
}

impl DirtyMap {
    /// A new map that says `blocks`, in place of one of that name. Durable when this returns.
    pub fn create(storage: &dyn Storage, name: &str, owner: MapOwner, blocks: &BlockSet) -> Result<DirtyMap> {
        let (dir, fresh) = (name.rsplit_once('/').map_or("", |(dir, _)| dir), format!("{name}.new"));
        match storage.remove(&fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = storage.open(&fresh, OpenMode::CreateNew)?;
        file.write_at(ByteOffset::ZERO, &header(owner))?;
        let records = append(&*file, 0, blocks)?;
        file.sync()?;
        storage.rename(&fresh, name)?;
        storage.sync_dir(dir)?;
        // A handle opened by the old name would name the wrong file in messages.
        let file = storage.open(name, OpenMode::ReadWrite)?;
        let state = MapState { durable: blocks.clone(), records, ..MapState::default() };
        Ok(DirtyMap { file, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Opens a map. `Corrupt` where it is not that owner's, or damaged other than by a torn end.
    pub fn open(storage: &dyn Storage, name: &str, owner: MapOwner) -> Result<DirtyMap> {
        let file = storage.open(name, OpenMode::ReadWrite)?;
        let mut bytes = [0; HEADER_BYTES as usize];
        file.read_at(ByteOffset::ZERO, &mut bytes)?;
        let found = read_header(&bytes).map_err(|error| error.context(name))?;
        if found != owner {
            return Err(Error::corrupt(format!("{name} is the map of {found:?}, not of {owner:?}")));
        }
        let (durable, records) = load(&*file, owner).map_err(|error| error.context(name))?;
        file.set_len(ByteLen::new(HEADER_BYTES + records * RECORD_BYTES))?;
        rewrite(&*file)?;
        file.sync()?;
        let state = MapState { durable, records, ..MapState::default() };
        Ok(DirtyMap { file, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Whose map a file with these bytes is, as far as its header tells.
    pub fn owner_of(bytes: &[u8]) -> Option<MapOwner> {
        read_header(bytes.get(..HEADER_BYTES as usize)?).ok()
    }

    /// Returns once every block that `extent` touches is marked on the medium. After an error nothing more can be
    /// marked until the map is opened again.
    pub fn mark(&self, extent: Extent) -> Result<()> {
        let mut wanted = BlockSet::new();
        wanted.insert(extent);
        self.mark_all(&wanted)
    }

    /// The same for a set of blocks.
    pub fn mark_all(&self, wanted: &BlockSet) -> Result<()> {
        let mut state = lock(&self.state);
        loop {
            if state.failed {
                let context = format!("{}: an earlier mark failed", self.file.name());
                return Err(Error::new(ErrorKind::Poisoned, context));
            }
            let missing: Vec<u64> =
                wanted.blocks().filter(|block| !state.durable.contains_block(*block)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            missing.into_iter().for_each(|block| state.waiting.insert_block(block));
            if state.syncing {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.syncing = true;
            let (batch, at) = (std::mem::take(&mut state.waiting), state.records);
            drop(state);
            let written =
                append(&*self.file, at, &batch).and_then(|records| self.file.sync().map(|_| records));
            state = lock(&self.state);
            state.syncing = false;
            self.changed.notify_all();
            match written {
                Ok(records) => {
                    state.records = records;
                    state.durable.union(&batch);
                }
                Err(error) => {
                    state.failed = true;
                    return Err(error);
                }
            }
        }
    }

    /// Whether a block is marked on the medium.
    pub fn contains(&self, block: u64) -> bool {
        lock(&self.state).durable.contains_block(block)
    }

    /// What is marked on the medium.
    pub fn blocks(&self) -> BlockSet {
        lock(&self.state).durable.clone()
    }

    /// How many bytes are marked, in whole blocks.
    pub fn bytes(&self) -> ByteLen {
        lock(&self.state).durable.bytes()
    }
}

/// Puts every checksum of a map right: for fuzzing, which would not get past them otherwise.
pub(crate) fn reseal(bytes: &mut [u8]) {
    let (header, records) = bytes.split_at_mut(bytes.len().min(HEADER_BYTES as usize));
    for part in std::iter::once(header).chain(records.chunks_exact_mut(RECORD_BYTES as usize)) {
        if let Some((body, checksum)) = part.split_last_chunk_mut::<4>() {
            let mut writer = ByteWriter::new();
            writer.bytes(body).checksum();
            checksum.copy_from_slice(&writer.as_bytes()[body.len()..]);
        }
    }
}

fn header(owner: MapOwner) -> Vec<u8> {
    let mut bytes = ByteWriter::new();
    bytes.bytes(MAGIC).u32(VERSION).id(Some(owner.session.0)).u16(owner.disk.0).u64(owner.len.get());
    let padding = HEADER_BYTES as usize - 4 - bytes.as_bytes().len();
    bytes.bytes(&vec![0; padding]).checksum();
    bytes.into_bytes()
}

fn read_header(bytes: &[u8]) -> Result<MapOwner> {
    let mut reader = ByteReader::checksummed(bytes, "dirty map header")?;
    if reader.bytes(MAGIC.len())? != MAGIC {
        return Err(Error::corrupt("not a dirty map"));
    }
    let version = reader.u32()?;
    if version != VERSION {
        return Err(Error::new(ErrorKind::Unsupported, format!("dirty map of version {version}")));
    }
    let session = reader.id()?.ok_or_else(|| Error::corrupt("dirty map of no session"))?;
    Ok(MapOwner {
        session: SessionId(session),
        disk: DiskIndex(reader.u16()?),
        len: ByteLen::new(reader.u64()?),
    })
}

/// Writes a batch of records from record `at` on; where the next one goes.
fn append(file: &dyn StorageFile, at: u64, batch: &BlockSet) -> Result<u64> {
    let (mut next, mut bytes) = (at, Vec::new());
    let mut runs = batch.runs().peekable();
    while let Some((first, count)) = runs.next() {
        let mut record = ByteWriter::new();
        record.u32(RECORD_MAGIC).u64(first).u64(count).u64(at).checksum();
        bytes.extend_from_slice(record.as_bytes());
        if runs.peek().is_none() || bytes.len() as u64 == RECORDS_AT_ONCE * RECORD_BYTES {
            file.write_at(ByteOffset::new(HEADER_BYTES + next * RECORD_BYTES), &bytes)?;
            next += bytes.len() as u64 / RECORD_BYTES;
            bytes.clear();
        }
    }
    Ok(next)
}

/// Writes the file once more. What is read may be in the kernel's cache alone, and marked as clean there since a sync of it
/// has failed: then syncing would not write it, and later marks would stand on nothing.
fn rewrite(file: &dyn StorageFile) -> Result<()> {
    for piece in Extent::whole(file.len()?).into_iter().flat_map(|whole| whole.split(REWRITE_STEP)) {
        let mut bytes = vec![0; piece.len().as_usize()];
        file.read_at(piece.start(), &mut bytes)?;
        file.write_at(piece.start(), &bytes)?;
    }
    Ok(())
}

/// All blocks that the records name, and how many records are to be kept.
fn load(file: &dyn StorageFile, owner: MapOwner) -> Result<(BlockSet, u64)> {
    let total = file.len()?.get().saturating_sub(HEADER_BYTES) / RECORD_BYTES;
    let (mut blocks, mut last_batch, mut first_bad) = (BlockSet::new(), 0, None);
    let mut at = 0;
    while at < total {
        let records = RECORDS_AT_ONCE.min(total - at);
        let mut bytes = vec![0; ByteLen::new(records * RECORD_BYTES).as_usize()];
        file.read_at(ByteOffset::new(HEADER_BYTES + at * RECORD_BYTES), &mut bytes)?;
        for (index, record) in (at..).zip(bytes.chunks_exact(RECORD_BYTES as usize)) {
            match read_record(record, owner.len.blocks(BLOCK)) {
                Ok((first, count, batch)) => {
                    last_batch = last_batch.max(batch);
                    if first_bad.is_none() {
                        (first..first + count).for_each(|block| blocks.insert_block(block));
                    }
                }
                Err(_) => first_bad = first_bad.or(Some(index)),
            }
        }
        at += records;
    }
    match first_bad {
        Some(bad) if bad < last_batch => {
            let offset = HEADER_BYTES + bad * RECORD_BYTES;
            Err(Error::corrupt(format!("damaged record at byte {offset}, which was on the medium")))
        }
        // Everything from the first torn record on is cut, so that memory never says more than the file.
        torn => Ok((blocks, torn.unwrap_or(total))),
    }
}

fn read_record(bytes: &[u8], disk_blocks: u64) -> Result<(u64, u64, u64)> {
    let mut reader = ByteReader::checksummed(bytes, "dirty map record")?;
    if reader.u32()? != RECORD_MAGIC {
        return Err(Error::corrupt("not a dirty map record"));
    }
    let (first, count, batch) = (reader.u64()?, reader.u64()?, reader.u64()?);
    if count == 0 || first.checked_add(count).is_none_or(|end| end > disk_blocks) {
        return Err(Error::corrupt("dirty map record out of range"));
    }
    Ok((first, count, batch))
}

#[cfg(test)]
#[path = "dirty_map_tests.rs"]
mod tests;
