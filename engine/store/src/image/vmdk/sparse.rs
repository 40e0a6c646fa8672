//! One sparse extent: grains, led to by grain tables, led to by the grain directory; and the same once more.
//!
//! A grain that has a place is written there. One that has none gets a zeroed place from [`Slots`]; its entries (in both
//! tables) and its data may then reach the medium in any order. What was discarded keeps its place and is a hole in the
//! file; entries never go back. The first table is the one that counts. Where a crash left the second behind, writing
//! the first after the next opening brings it up to date.

use super::super::beyond::read_cut;
use super::super::slots::{Growth, Slots};
use super::super::status::Runs;
use super::super::table_cache::{EntryCodec, TableCache};
use super::compressed;
use super::directory::Directories;
use super::header::{Header, TABLE_BYTES, TABLE_ENTRIES, UNCLEAN_AT};
use blocks::{
    Allocation, BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile, Volume,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Sectors have numbers of 32 bits.
const FILE_END_MAX: ByteOffset = ByteOffset::new(1 << 41);
/// The file grows by these bytes, in grains.
const GROWTH_BYTES: (u64, u64) = (2 << 20, 64 << 20);
/// The entry of a grain that reads as zeroes.
const ZEROED: u64 = 1;

/// A sparse extent, open. Places on the disk count from the extent's start.
pub(super) struct Sparse {
    file: Arc<dyn StorageFile>,
    header: Header,
    directories: Directories,
    tables: TableCache,
    /// One bit a table: it was written since the file was opened.
    written: Vec<AtomicU64>,
    /// Up to here the file has bytes.
    file_end: AtomicU64,
    /// From here on new grains and tables are put.
    fresh_from: ByteOffset,
    /// The compressed grain that was read last.
    unpacked: Mutex<Option<Unpacked>>,
    changes: Mutex<Changes>,
}

/// A compressed grain, in memory.
struct Unpacked {
    at: ByteOffset,
    guest: ByteOffset,
    grain: Arc<Vec<u8>>,
}

/// What only one may do at a time.
struct Changes {
    slots: Slots,
    begun: bool,
}

/// Where the bytes of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Nowhere: the parent's, or zeroes.
    Below,
    /// Nowhere, and marked as zeroes.
    Zero,
    /// From there on in the file.
    File(ByteOffset),
    /// In a compressed grain that starts there, from `skip` on.
    Packed { at: ByteOffset, skip: ByteLen },
}

impl Source {
    /// Whether `next`, which follows after `len` bytes, goes on where `self` ends.
    fn goes_on(self, len: ByteLen, next: Source) -> bool {
        match (self, next) {
            (Source::Below, Source::Below) | (Source::Zero, Source::Zero) => true,
            (Source::File(at), Source::File(next)) => at + len == next,
            _ => false,
        }
    }
}

/// The last grain of other writers' files may be cut; the rest of it is zero. `Corrupt` where that rest goes beyond what
/// the last grain would have: new grains are put there.
pub(super) fn check_cut(place: Extent, fresh_from: ByteOffset) -> Result<()> {
    if place.start() < fresh_from && place.end() > fresh_from {
        return Err(Error::corrupt(format!("its place, {place}, goes on past the file's last grain")));
    }
    Ok(())
}

impl Sparse {
    /// The extent of a checked header. `memory` bounds the cache of its tables.
    pub(super) fn open(file: Arc<dyn StorageFile>, header: Header, memory: ByteLen) -> Result<Sparse> {
        let directories = Directories::read(&*file, &header)?;
        let grain = header.grain;
        let file_end = file.len()?.end();
        let taken_end = directories.taken().last().map_or(ByteOffset::ZERO, |last| last.end());
        let used_end = file_end.max(taken_end).max(header.overhead.end()).align_up(grain);
        let allocated = (used_end - header.overhead.end().min(used_end)).blocks(grain);
        let growth_blocks = (GROWTH_BYTES.0 / grain.bytes()).max(1)..=(GROWTH_BYTES.1 / grain.bytes()).max(1);
        let growth = Growth { block: grain, blocks: growth_blocks, end_max: FILE_END_MAX };
        let slots = Slots::new(growth, used_end, allocated);
        let words = ByteLen::new(header.tables().div_ceil(64)).as_usize();
        Ok(Sparse {
            tables: TableCache::new(TABLE_ENTRIES as usize, EntryCodec::Le32, memory),
            written: (0..words).map(|_| AtomicU64::new(0)).collect(),
            file_end: AtomicU64::new(file_end.get()),
            fresh_from: used_end,
            unpacked: Mutex::default(),
            changes: Mutex::new(Changes { slots, begun: false }),
            file,
            header,
            directories,
        })
    }

    /// Refuses what cannot be written in place.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.header.compressed {
            let context = format!("{}: a stream-optimized VMDK is written once, and read", self.file.name());
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        if let Some(Err(error)) = &self.directories.redundant {
            let context = format!("{}: its redundant grain directory is damaged: {error}", self.file.name());
            return Err(Error::corrupt(context));
        }
        Ok(())
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grain(&self) -> BlockShift {
        self.header.grain
    }

    fn file_end(&self) -> ByteOffset {
        ByteOffset::new(self.file_end.load(Ordering::Acquire))
    }

    /// The number of the table that leads to the byte, and what else it leads to.
    fn table_of(&self, at: ByteOffset) -> (u64, Extent) {
        let span = self.grain().bytes() * TABLE_ENTRIES;
        let number = at.get() / span;
        let covered = Extent::new(ByteOffset::new(number * span), ByteLen::new(span));
        (number, covered.expect("an extent's length leaves room for a table's"))
    }

    fn index_in(&self, covered: Extent, at: ByteOffset) -> usize {
        ByteLen::new(self.grain().block_of(at) - self.grain().block_of(covered.start())).as_usize()
    }

    /// What the first bytes of `rest` are, as far as they are one run.
    pub(super) fn run_at(&self, rest: Extent) -> Result<(Extent, Source)> {
        let (number, covered) = self.table_of(rest.start());
        let rest = rest.intersect(covered).expect("the table covers its first byte");
        let Some(table_at) = self.directories.main.get(number) else { return Ok((rest, Source::Below)) };
        let table = self.tables.get(&*self.file, table_at)?;
        let mut run: Option<(Extent, Source)> = None;
        for part in rest.split(self.grain().len()) {
            let source = self.source(table.get(self.index_in(covered, part.start())), part)?;
            run = match run {
                None => Some((part, source)),
                Some((before, first)) if first.goes_on(before.len(), source) => {
                    Extent::between(before.start(), part.end()).map(|joined| (joined, first))
                }
                whole => return Ok(whole.expect("matched above")),
            };
        }
        Ok(run.expect("an extent has a first part"))
    }

    /// Where a part of one grain is.
    fn source(&self, entry: u64, part: Extent) -> Result<Source> {
        let skip = ByteLen::new(part.start().get() % self.grain().bytes());
        let at = ByteOffset::new(entry * 512);
        match entry {
            0 => return Ok(Source::Below),
            ZEROED if self.header.zeroed_entries => return Ok(Source::Zero),
            _ => {}
        }
        // A compressed grain takes a sector at least; how many more, its marker says.
        let len = if self.header.compressed { BlockShift::SECTOR.len() } else { self.grain().len() };
        let place = Extent::new(at, len)?;
        let checked = self.directories.check_place(place, self.file_end());
        let checked = checked.and_then(|()| check_cut(place, self.fresh_from));
        checked.map_err(|error| error.context(format!("{}: the extent's {part}", self.file.name())))?;
        Ok(if self.header.compressed { Source::Packed { at, skip } } else { Source::File(at + skip) })
    }

    /// Fills the buffer with a run; what lies below is read by `below`.
    pub(super) fn read(
        &self,
        extent: Extent,
        buffer: &mut [u8],
        below: &dyn Fn(Extent, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut at = extent.start();
        while let Some(rest) = Extent::between(at, extent.end()) {
            let (run, source) = self.run_at(rest)?;
            let skip = (at - extent.start()).as_usize();
            let bytes = &mut buffer[skip..skip + run.len().as_usize()];
            match source {
                Source::Below => below(run, bytes)?,
                Source::Zero => bytes.fill(0),
                Source::File(place) => read_cut(&*self.file, self.file_end(), place, bytes)?,
                Source::Packed { at: place, skip } => {
                    let grain = self.unpack(place, run.start())?;
                    let skip = skip.as_usize();
                    let part = grain.get(skip..skip + bytes.len());
                    bytes.copy_from_slice(part.expect("a run of a compressed grain lies within it"));
                }
            }
            at = run.end();
        }
        Ok(())
    }

    fn unpack(&self, at: ByteOffset, guest: ByteOffset) -> Result<Arc<Vec<u8>>> {
        let guest = guest.align_down(self.grain());
        let last = || self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*last()
            && (known.at, known.guest) == (at, guest)
        {
            return Ok(Arc::clone(&known.grain));
        }
        let grain = Arc::new(compressed::read(&*self.file, self.grain(), at, guest)?);
        *last() = Some(Unpacked { at, guest, grain: Arc::clone(&grain) });
        Ok(grain)
    }

    /// Writes the data where the extent is, or gives it room. There is no parent.
    pub(super) fn write(&self, extent: Extent, data: &[u8]) -> Result<()> {
        let mut at = extent.start();
        while let Some(rest) = Extent::between(at, extent.end()) {
            let bytes = &data[(at - extent.start()).as_usize()..];
            at = match self.run_at(rest)? {
                (run, Source::File(place)) => {
                    self.make_written(self.table_of(at).0)?;
                    self.file.write_at(place, &bytes[..run.len().as_usize()])?;
                    run.end()
                }
                _ => self.write_new(rest, bytes)?,
            };
        }
        Ok(())
    }

    /// Takes grains for the first bytes of `rest`, which read as zeroes; where that ends.
    fn write_new(&self, rest: Extent, bytes: &[u8]) -> Result<ByteOffset> {
        let mut changes = self.changes();
        // Somebody else may have been quicker.
        let (run, source) = self.run_at(rest)?;
        if matches!(source, Source::File(_)) {
            return Ok(run.start());
        }
        self.begin(&mut changes)?;
        let (number, covered) = self.table_of(run.start());
        let table_at = self.own_table(&mut changes, number)?;
        let grain = self.grain();
        let guest = run.blocks(grain);
        let taken = self.take(&mut changes, guest.end - guest.start)?;
        let end = (grain.start_of(guest.start) + taken.len()).min(run.end());
        let skip = run.start() - grain.start_of(guest.start);
        self.file.write_at(taken.start() + skip, &bytes[..(end - run.start()).as_usize()])?;
        let entries: Vec<u64> = taken.split(grain.len()).map(|place| place.start().lba().get()).collect();
        let first = self.index_in(covered, run.start());
        self.tables.set(&*self.file, table_at, first, &entries)?;
        if let Some(copy_at) = self.redundant_table(number) {
            let mut bytes = Vec::new();
            entries.iter().for_each(|entry| EntryCodec::Le32.encode(*entry, &mut bytes));
            self.file.write_at(copy_at + ByteLen::new(first as u64 * 4), &bytes)?;
        }
        Ok(end)
    }

    fn take(&self, changes: &mut Changes, wanted: u64) -> Result<Extent> {
        let grains = self.header.capacity.blocks(self.grain()) + self.header.tables();
        let taken = changes.slots.take(&*self.file, grains, wanted)?;
        self.file_end.fetch_max(taken.end().get(), Ordering::AcqRel);
        Ok(taken)
    }

    fn redundant_table(&self, number: u64) -> Option<ByteOffset> {
        self.directories.redundant.as_ref()?.as_ref().ok()?.get(number)
    }

    /// The table of that number, made where there is none: it and its copy share a grain.
    fn own_table(&self, changes: &mut Changes, number: u64) -> Result<ByteOffset> {
        if let Some(at) = self.directories.main.get(number) {
            self.make_written_locked(number, at)?;
            return Ok(at);
        }
        let place = self.take(changes, 1)?.start();
        self.tables.insert_empty(place);
        if let Some(Ok(redundant)) = &self.directories.redundant {
            redundant.set(&*self.file, number, place + ByteLen::new(TABLE_BYTES))?;
        }
        self.directories.main.set(&*self.file, number, place)?;
        self.set_written(number);
        Ok(place)
    }

    fn is_written(&self, table: u64) -> bool {
        let word = ByteLen::new(table / 64).as_usize();
        self.written[word].load(Ordering::Acquire) & (1 << (table % 64)) != 0
    }

    fn set_written(&self, table: u64) {
        self.written[ByteLen::new(table / 64).as_usize()].fetch_or(1 << (table % 64), Ordering::Release);
    }

    /// Before anything is written where a table leads: the table, its copy and the entries that lead to them are written
    /// again, once after each opening. They may be in the kernel's cache only, and marked as clean there since a sync of
    /// them has failed.
    fn make_written(&self, number: u64) -> Result<()> {
        if self.is_written(number) {
            return Ok(());
        }
        let mut changes = self.changes();
        self.begin(&mut changes)?;
        match self.directories.main.get(number) {
            Some(at) => self.make_written_locked(number, at),
            None => Ok(()),
        }
    }

    fn make_written_locked(&self, number: u64, at: ByteOffset) -> Result<()> {
        if self.is_written(number) {
            return Ok(());
        }
        self.tables.rewrite(&*self.file, at)?;
        self.directories.main.rewrite(&*self.file, number)?;
        if let (Some(Ok(redundant)), Some(copy_at)) =
            (&self.directories.redundant, self.redundant_table(number))
        {
            let table = self.tables.get(&*self.file, at)?;
            self.file.write_at(copy_at, &table.encode(EntryCodec::Le32))?;
            redundant.rewrite(&*self.file, number)?;
        }
        self.set_written(number);
        Ok(())
    }

    /// What comes before the first change after opening: the mark that says so is on the medium.
    fn begin(&self, changes: &mut Changes) -> Result<()> {
        if changes.begun {
            return Ok(());
        }
        let end = self.file_end().align_up(self.grain());
        self.file.set_len(end - ByteOffset::ZERO)?;
        self.file_end.fetch_max(end.get(), Ordering::AcqRel);
        self.file.write_at(UNCLEAN_AT, &[1])?;
        self.file.sync()?;
        changes.begun = true;
        Ok(())
    }

    /// Makes the extent read as zeroes. There is no parent.
    pub(super) fn punch(&self, extent: Extent) -> Result<()> {
        let mut at = extent.start();
        while let Some(rest) = Extent::between(at, extent.end()) {
            let (run, source) = self.run_at(rest)?;
            if let Source::File(place) = source {
                self.make_written(self.table_of(run.start()).0)?;
                self.file.punch_hole(Extent::new(place, run.len())?)?;
            }
            at = run.end();
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync().map(drop)
    }

    /// Takes the mark of an open file away and gives room back, where anything was changed.
    pub(super) fn close(&self) -> Result<()> {
        let mut changes = self.changes();
        if !changes.begun {
            return Ok(());
        }
        changes.slots.trim(&*self.file)?;
        self.file.sync()?;
        self.file.write_at(UNCLEAN_AT, &[0])
    }

    /// Adds what the extent holds, which lies on the disk `from_start` bytes further.
    pub(super) fn status(
        &self,
        extent: Extent,
        from_start: ByteLen,
        parent: Option<&dyn Volume>,
        runs: &mut Runs,
    ) -> Result<()> {
        let mut at = extent.start();
        while let Some(rest) = Extent::between(at, extent.end()).filter(|_| !runs.is_full()) {
            let (run, source) = self.run_at(rest)?;
            at = run.end();
            let on_disk = Extent::new(run.start() + from_start, run.len())?;
            match source {
                Source::Below => runs.push_volume(parent, on_disk)?,
                Source::Zero => runs.push(on_disk, Allocation::Hole),
                Source::File(place) => runs.push_stored(&*self.file, on_disk, place)?,
                Source::Packed { .. } => runs.push(on_disk, Allocation::Data),
            }
        }
        Ok(())
    }
}
