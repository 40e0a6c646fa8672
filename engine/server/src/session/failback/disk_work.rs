//! One disk on its way home: what is read of the session, sent, and remembered for the comparison at the end.

use crate::control::api::FailbackDisk;
use crate::session::block_set::{BLOCK, BlockSet, block_range, whole_blocks};
use crate::session::failback::line::Line;
use crate::session::live::LiveDisk;
use crate::session::volume::WriteWatch;
use blocks::{ByteLen, Error, ErrorKind, Extent, ExtentSet, RequestClass, Result, Volume, is_zero};
use std::collections::BTreeMap;
use std::sync::Arc;
use wire::{BlockHash, Payload, ServerMessage};

/// How much is read and sent at once; a whole number of blocks.
pub(crate) const CHUNK: ByteLen = ByteLen::new(1 << 20);
/// How much is sent between two syncs.
const WINDOW: u64 = 16 << 20;
/// Hashes of more blocks than this are not kept but made again from the session: 64 GiB sent in 50 MiB of memory.
const HASHES_KEPT_MAX: usize = 1 << 20;

/// A disk and its counters.
pub(crate) struct DiskWork {
    pub disk: Arc<LiveDisk>,
    pub info: FailbackDisk,
    /// What the guest writes since the failback began.
    pub watch: Arc<WriteWatch>,
    /// What the next round sends: exact extents.
    pub next: ExtentSet,
    /// Blocks that were sent and not yet found equal at the target.
    pub sent: BlockSet,
    /// Every block that this failback had to look at.
    considered: BlockSet,
    /// The hash of each block as it was sent last.
    hashes: BTreeMap<u64, BlockHash>,
    unsynced: u64,
}

/// Some whole blocks of the session.
pub(crate) struct Chunk {
    pub extent: Extent,
    /// `None` where all is zero.
    bytes: Option<Vec<u8>>,
}

impl Chunk {
    /// The bytes of a part; `None` where they are zero. `part` lies in the chunk.
    fn part(&self, part: Extent) -> Option<&[u8]> {
        let start = (part.start() - self.extent.start()).as_usize();
        let bytes = &self.bytes.as_ref()?[start..start + part.len().as_usize()];
        (!is_zero(bytes)).then_some(bytes)
    }

    /// The blocks with their hashes.
    pub fn hashes(&self) -> impl Iterator<Item = (u64, BlockHash)> {
        self.extent.split(BLOCK.len()).map(|block| {
            let hash = match self.part(block) {
                Some(bytes) => blake3::hash(bytes),
                None => hash_of_zeroes(block.len()),
            };
            (BLOCK.block_of(block.start()), *hash.as_bytes())
        })
    }
}

fn hash_of_zeroes(len: ByteLen) -> blake3::Hash {
    static ZEROES: [u8; BLOCK.bytes() as usize] = [0; BLOCK.bytes() as usize];
    static WHOLE: std::sync::OnceLock<blake3::Hash> = std::sync::OnceLock::new();
    match len == BLOCK.len() {
        true => *WHOLE.get_or_init(|| blake3::hash(&ZEROES)),
        false => blake3::hash(&ZEROES[..len.as_usize()]),
    }
}

impl DiskWork {
    /// A disk of which nothing was read or sent. From now on it sees what the guest writes.
    pub fn new(disk: &Arc<LiveDisk>) -> DiskWork {
        let info = FailbackDisk {
            index: disk.index.0,
            known: false,
            reason: String::new(),
            changed_bytes: 0,
            hashed_bytes: 0,
            read_bytes: 0,
            sent_bytes: 0,
            zeroed_bytes: 0,
            verified_bytes: 0,
        };
        DiskWork {
            disk: Arc::clone(disk),
            info,
            watch: disk.volume.watch(),
            next: ExtentSet::new(),
            sent: BlockSet::new(),
            considered: BlockSet::new(),
            hashes: BTreeMap::new(),
            unsynced: 0,
        }
    }

    /// Reads whole blocks, at most [`CHUNK`]. What a pivoted disk holds in blocks that differ from the base goes into
    /// the session's branch on the way.
    pub fn read(&mut self, extent: Extent) -> Result<Chunk> {
        let source = self.disk.volume.inner();
        let mut zero = true;
        let mut rest = Some(extent);
        while let (true, Some(asked)) = (zero, rest) {
            let runs = source.status(asked)?;
            zero = runs.iter().all(|run| run.allocation.reads_as_zero());
            let end = runs.last().map_or(asked.start(), |run| run.extent.end());
            if end <= asked.start() {
                return Err(Error::new(ErrorKind::Io, format!("the session says nothing about {asked}")));
            }
            rest = Extent::between(end, extent.end());
        }
        let bytes = match zero {
            true => None,
            false => {
                let mut bytes = vec![0; extent.len().as_usize()];
                source.read_at(extent.start(), &mut bytes, RequestClass::Background)?;
                self.info.read_bytes += extent.len().get();
                Some(bytes)
            }
        };
        let chunk = Chunk { extent, bytes };
        self.pull(&chunk)?;
        Ok(chunk)
    }

    fn pull(&self, chunk: &Chunk) -> Result<()> {
        let Some(map) = self.disk.map() else { return Ok(()) };
        for block in chunk.extent.split(BLOCK.len()) {
            if map.contains(BLOCK.block_of(block.start())) {
                match chunk.part(block) {
                    Some(bytes) => {
                        self.disk.branch.write_at(block.start(), bytes, false, RequestClass::Background)?;
                    }
                    None => self.disk.branch.write_zeroes(block, false, false, RequestClass::Background)?,
                }
            }
        }
        Ok(())
    }

    /// How many bytes the next round reads, in whole blocks.
    pub fn next_bytes(&self) -> u64 {
        whole_blocks(&self.next, self.disk.len()).covered().get()
    }

    /// Sends the next round, `self.next`. `told` hears of each chunk's bytes and says whether to go on.
    pub fn send_round(&mut self, line: &mut Line, told: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        let round = std::mem::take(&mut self.next);
        self.consider(&round);
        for (run, ()) in whole_blocks(&round, self.disk.len()).iter() {
            for extent in run.split(CHUNK) {
                let chunk = self.read(extent)?;
                self.remember(&chunk);
                for piece in round.lookup(extent) {
                    if let blocks::Piece::Data(wanted, ()) = piece {
                        self.send_piece(line, &chunk, wanted)?;
                    }
                }
                told(extent.len().get())?;
            }
        }
        Ok(())
    }

    /// Counts these extents' blocks, each once, among those that may differ. Of an unknown disk that is every block.
    pub fn consider(&mut self, extents: &ExtentSet) {
        if !self.info.known {
            self.info.changed_bytes = self.disk.len().get();
            return;
        }
        self.considered.union(&BlockSet::touched(extents));
        self.info.changed_bytes = self.considered.extents(self.disk.len()).covered().get();
    }

    fn remember(&mut self, chunk: &Chunk) {
        for (block, hash) in chunk.hashes() {
            self.sent.insert_block(block);
            // An old hash must go even where there is no room for more.
            if self.hashes.remove(&block).is_some() || self.hashes.len() < HASHES_KEPT_MAX {
                self.hashes.insert(block, hash);
            }
        }
    }

    /// Sends what is wanted of a chunk: neighbouring blocks in one message, zeroes as such.
    fn send_piece(&mut self, line: &mut Line, chunk: &Chunk, wanted: Extent) -> Result<()> {
        let mut run: Option<(Extent, bool)> = None;
        for part in wanted.split(BLOCK.len()) {
            let data = chunk.part(part).is_some();
            run = match run {
                Some((before, kind)) if kind == data => {
                    Extent::between(before.start(), part.end()).map(|joined| (joined, kind))
                }
                Some((before, kind)) => {
                    self.send_run(line, chunk, before, kind)?;
                    Some((part, data))
                }
                None => Some((part, data)),
            };
        }
        match run {
            Some((extent, data)) => self.send_run(line, chunk, extent, data),
            None => Ok(()),
        }
    }

    fn send_run(&mut self, line: &mut Line, chunk: &Chunk, extent: Extent, data: bool) -> Result<()> {
        let payload = match chunk.part(extent) {
            Some(bytes) if data => Payload::Data(bytes.to_vec()),
            _ => Payload::Zero,
        };
        match data {
            true => self.info.sent_bytes += extent.len().get(),
            false => self.info.zeroed_bytes += extent.len().get(),
        }
        let (restore, disk) = (line.restore(), self.disk.index);
        line.send(ServerMessage::RestoreWrite { restore, disk, extent, payload })?;
        self.unsynced += extent.len().get();
        if self.unsynced >= WINDOW {
            self.unsynced = 0;
            line.window()?;
        }
        Ok(())
    }

    /// The session's hash of a block that was sent.
    pub fn hash_of(&mut self, block: u64) -> Result<BlockHash> {
        if let Some(hash) = self.hashes.get(&block) {
            return Ok(*hash);
        }
        let outside = || Error::new(ErrorKind::OutOfRange, format!("block {block} lies outside the disk"));
        let extent = block_range(block, 1, self.disk.len()).ok_or_else(outside)?;
        let chunk = self.read(extent)?;
        let (_, hash) = chunk.hashes().next().ok_or_else(outside)?;
        Ok(hash)
    }

    /// Moves what the guest wrote meanwhile into the next round.
    pub fn take_watched(&mut self) {
        self.next.union(&self.watch.take().extents(self.disk.len()));
    }
}
