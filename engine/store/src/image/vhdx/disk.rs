//! A VHDX as a disk.
//!
//! A block that is present is written in place. One that is not gets a zeroed place from [`Slots`]; its data is
//! written there, the change of its entry into the log, both synced, then the entry itself. What was discarded stays
//! present and is a hole in the file; entries never go back.

use super::super::beyond::read_parent;
use super::super::disk::Disk;
use super::super::slots::{Growth, Slots};
use super::super::status::Runs;
use super::bat::State;
use super::header::Headers;
use super::log::{self, Page, SECTOR};
use super::{Opened, Parts};
use blocks::{
    Allocation, BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, FileRange, Result, StorageFile,
    Volume,
};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many blocks, of 8 or 32 MiB, the file grows at a time.
const GROWTH: RangeInclusive<u64> = 1..=8;

/// A VHDX, open.
pub(in super::super) struct VhdxDisk {
    file: Arc<dyn StorageFile>,
    parts: Parts,
    /// One bit a page of the table: it was written since the file was opened.
    written: Vec<AtomicU64>,
    parent: Option<Arc<dyn Volume>>,
    changes: Mutex<Changes>,
}

/// What only one may do at a time.
struct Changes {
    slots: Slots,
    headers: Headers,
    /// Where in the log the next entry goes.
    log_at: u64,
    sequence: u64,
    begun: bool,
}

/// Where the bytes of a run of the disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Hole,
    Parent,
    File(ByteOffset),
}

/// A part of a request that lies in one block.
struct BlockPart {
    block: u64,
    extent: Extent,
    inside: ByteLen,
}

impl VhdxDisk {
    /// The disk of checked structures. Errors: `Unsupported` for writing to a differencing disk.
    pub(in super::super) fn new(
        opened: Opened,
        parent: Option<Arc<dyn Volume>>,
        writable: bool,
    ) -> Result<VhdxDisk> {
        let Opened { file, headers, parts, used } = opened;
        if writable && parts.metadata.parent.is_some() {
            let context = format!("{}: a differencing VHDX is read, not written", file.name());
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let growth =
            Growth { block: parts.metadata.block, blocks: GROWTH, end_max: ByteOffset::new(i64::MAX as u64) };
        let slots = Slots::new(growth, used.end, used.places.len() as u64);
        let written = (0..parts.bat.pages().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let changes = Mutex::new(Changes { slots, headers, log_at: 0, sequence: 0, begun: false });
        Ok(VhdxDisk { file, parts, written, parent, changes })
    }

    fn block(&self) -> BlockShift {
        self.parts.metadata.block
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn split(&self, extent: Extent) -> impl Iterator<Item = BlockPart> {
        let shift = self.block();
        extent.split(shift.len()).map(move |extent| {
            let block = shift.block_of(extent.start());
            BlockPart { block, extent, inside: extent.start() - shift.start_of(block) }
        })
    }

    /// The runs of a part of a block, in order.
    fn runs(&self, part: &BlockPart) -> Result<Vec<(Extent, Source)>> {
        let whole = |source| Ok(vec![(part.extent, source)]);
        match self.parts.bat.get(&*self.file, part.block)? {
            State::NotPresent if self.parent.is_some() => whole(Source::Parent),
            State::NotPresent | State::Zero => whole(Source::Hole),
            State::Present(at) => whole(Source::File(at + part.inside)),
            State::Partial(at) => self.partial_runs(part, at),
        }
    }

    /// A bit that is set says that the sector is in the file; the least significant bit of each byte comes first.
    fn partial_runs(&self, part: &BlockPart, at: ByteOffset) -> Result<Vec<(Extent, Source)>> {
        let Some((bitmap, first_bit)) = self.parts.bat.bitmap_of(&*self.file, part.block)? else {
            let context = format!("{}: block {} has no bitmap", self.file.name(), part.block);
            return Err(Error::corrupt(context));
        };
        let sector = self.parts.metadata.logical_sector;
        let first = first_bit + part.inside.get() / sector.bytes();
        let count = part.extent.len().get() / sector.bytes();
        let mut bytes = vec![0; ByteLen::new((first % 8 + count).div_ceil(8)).as_usize()];
        self.file.read_at(bitmap + ByteLen::new(first / 8), &mut bytes)?;
        let mut runs: Vec<(Extent, Source)> = Vec::new();
        for (index, run) in (first % 8..).zip(part.extent.split(sector.len())) {
            let present = bytes[ByteLen::new(index / 8).as_usize()] & (1 << (index % 8)) != 0;
            let inside = part.inside + (run.start() - part.extent.start());
            match runs.last_mut() {
                Some((last, Source::File(_))) if present => {
                    *last = Extent::between(last.start(), run.end()).unwrap_or(*last);
                }
                Some((last, Source::Parent)) if !present => {
                    *last = Extent::between(last.start(), run.end()).unwrap_or(*last);
                }
                _ if present => runs.push((run, Source::File(at + inside))),
                _ => runs.push((run, Source::Parent)),
            }
        }
        Ok(runs)
    }

    fn write_part(&self, part: &BlockPart, data: &[u8]) -> Result<()> {
        let place = match self.parts.bat.get(&*self.file, part.block)? {
            State::Present(at) => at,
            _ => match self.allocate(part, data)? {
                Some(other) => other,
                None => return Ok(()),
            },
        };
        self.make_written(part.block)?;
        self.file.write_at(place + part.inside, data)
    }

    /// Gives the block a place and writes its first data; where the block is, if another thread was quicker.
    fn allocate(&self, part: &BlockPart, data: &[u8]) -> Result<Option<ByteOffset>> {
        let mut changes = self.changes();
        if let State::Present(at) = self.parts.bat.get(&*self.file, part.block)? {
            return Ok(Some(at));
        }
        self.begin(&mut changes)?;
        self.make_written_locked(part.block)?;
        let place = changes.slots.take(&*self.file, self.parts.bat.blocks(), 1)?.start();
        self.file.write_at(place + part.inside, data)?;
        let entry = State::encode_present(place);
        self.write_log(&mut changes, part.block, entry)?;
        self.parts.bat.set(&*self.file, part.block, entry)?;
        Ok(None)
    }

    /// Puts the change of a block's entry into the log and on the medium, with all that was written before.
    fn write_log(&self, changes: &mut Changes, block: u64, entry: u64) -> Result<()> {
        let entry_at = self.parts.bat.entry_at(block);
        let page_at = ByteOffset::new(entry_at.get() / SECTOR as u64 * SECTOR as u64);
        let mut page: Page = [0; SECTOR];
        self.file.read_at(page_at, &mut page)?;
        super::super::bytes::put(&mut page, (entry_at - page_at).as_usize(), &entry.to_le_bytes());
        let headers = &mut changes.headers;
        let begins = !headers.current.has_log();
        let log_id = if begins { super::new_id() } else { headers.current.log_id };
        let log = headers.current.log;
        // An entry of one page has two sectors.
        let entry_bytes = 2 * SECTOR as u64;
        let at = if changes.log_at + entry_bytes > log.len().get() { 0 } else { changes.log_at };
        changes.sequence += 1;
        let tail = u32::try_from(at).expect("a log has at most 16 MiB");
        let file_len = ByteLen::new(changes.slots.ready_end().get());
        let bytes = log::encode_entry(log_id, changes.sequence, tail, file_len, &[(page_at, page)]);
        self.file.write_at(log.start() + ByteLen::new(at), &bytes)?;
        changes.log_at = at + entry_bytes;
        self.file.sync()?;
        if begins {
            // Only now: a header must not lead to a log that holds nothing.
            headers.replace(&*self.file, |header| header.log_id = log_id)?;
        }
        Ok(())
    }

    /// What comes before the first change after opening: whoever remembers this file sees that it is another one now.
    fn begin(&self, changes: &mut Changes) -> Result<()> {
        if changes.begun {
            return Ok(());
        }
        changes.headers.replace(&*self.file, |header| {
            header.file_write = super::new_id();
            header.data_write = super::new_id();
        })?;
        changes.begun = true;
        Ok(())
    }

    /// Before anything is written into a block: its page of the table is written again, once after each opening. It may
    /// be in the kernel's cache only, and marked as clean there since a sync of it has failed.
    fn make_written(&self, block: u64) -> Result<()> {
        let number = self.parts.bat.page_number(self.parts.bat.page_of(block).0);
        if self.written[number / 64].load(Ordering::Acquire) & (1 << (number % 64)) != 0 {
            return Ok(());
        }
        let mut changes = self.changes();
        self.begin(&mut changes)?;
        self.make_written_locked(block)
    }

    fn make_written_locked(&self, block: u64) -> Result<()> {
        let (page, _) = self.parts.bat.page_of(block);
        let number = self.parts.bat.page_number(page);
        let (word, bit) = (&self.written[number / 64], 1 << (number % 64));
        if word.load(Ordering::Acquire) & bit == 0 {
            self.parts.bat.rewrite(&*self.file, page)?;
            word.fetch_or(bit, Ordering::Release);
        }
        Ok(())
    }

    /// Syncs; then the log has done its work, and others open the file without replaying it.
    fn end_log(&self, changes: &mut Changes) -> Result<()> {
        self.file.sync()?;
        if changes.headers.current.has_log() {
            changes.headers.replace(&*self.file, |header| header.log_id = [0; 16])?;
            (changes.log_at, changes.sequence) = (0, 0);
        }
        Ok(())
    }
}

impl Disk for VhdxDisk {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn len(&self) -> ByteLen {
        self.parts.metadata.len
    }

    fn alignment(&self) -> BlockShift {
        self.parts.metadata.logical_sector
    }

    fn read(&self, extent: Extent, buffer: &mut [u8]) -> Result<()> {
        let mut rest = buffer;
        for part in self.split(extent) {
            for (run, source) in self.runs(&part)? {
                let (bytes, after) = rest.split_at_mut(run.len().as_usize());
                rest = after;
                match source {
                    Source::Hole => bytes.fill(0),
                    Source::File(at) => self.file.read_at(at, bytes)?,
                    Source::Parent => read_parent(self.parent.as_ref(), run, bytes)?,
                }
            }
        }
        Ok(())
    }

    fn write(&self, extent: Extent, data: &[u8]) -> Result<()> {
        self.split(extent).try_for_each(|part| {
            let skip = (part.extent.start() - extent.start()).as_usize();
            self.write_part(&part, &data[skip..skip + part.extent.len().as_usize()])
        })
    }

    fn punch(&self, extent: Extent) -> Result<()> {
        for part in self.split(extent) {
            if let State::Present(at) = self.parts.bat.get(&*self.file, part.block)? {
                self.make_written(part.block)?;
                self.file.punch_hole(Extent::new(at + part.inside, part.extent.len())?)?;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map(drop)
    }

    fn flush(&self) -> Result<()> {
        self.end_log(&mut self.changes())
    }

    fn status(&self, extent: Extent, runs: &mut Runs) -> Result<()> {
        for part in self.split(extent) {
            for (run, source) in self.runs(&part)? {
                match source {
                    Source::Hole => runs.push(run, Allocation::Hole),
                    Source::File(at) => runs.push_stored(&*self.file, run, at)?,
                    Source::Parent => runs.push_volume(self.parent.as_deref(), run)?,
                }
                if runs.is_full() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// What lies in one block and is stored wholly.
    fn file_range(&self, extent: Extent) -> Option<FileRange> {
        let file = Arc::clone(self.file.host_file()?);
        let part = self.split(extent).next().filter(|part| part.extent == extent)?;
        match self.runs(&part).ok()?.as_slice() {
            [(_, Source::File(offset))] => Some(FileRange { file, offset: *offset }),
            _ => None,
        }
    }

    /// Leaves a file without a log, and without room that was made ready in vain.
    fn close(&mut self) -> Result<()> {
        let mut changes = self.changes();
        if !changes.begun {
            return Ok(());
        }
        if changes.headers.current.has_log() {
            self.end_log(&mut changes)?;
        }
        changes.slots.trim(&*self.file)
    }
}

impl std::fmt::Debug for VhdxDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhdxDisk").field("file", &self.file.name()).finish_non_exhaustive()
    }
}
