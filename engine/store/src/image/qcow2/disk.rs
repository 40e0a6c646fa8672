//! A QCOW2 as a disk.
//!
//! A cluster that only we refer to is written in place. One that was never written gets a fresh, zeroed place from
//! [`Slots`]; its table entry and its data may then reach the medium in any order. Where an older content shows until
//! then (a backing file's, a compressed cluster's, one shared with an internal snapshot), the whole new cluster is on
//! the medium before the entry leads there. What was discarded stays allocated and is a hole in the file; entries never
//! go back.

use super::super::beyond::{read_cut, read_parent};
use super::super::disk::Disk;
use super::super::status::Runs;
use super::super::table_cache::{EntryCodec, Table, TableCache};
use super::entry::{COPIED, Cluster, L1Entry, ZERO};
use super::header::Header;
use super::slots::Slots;
use super::structures::Structures;
use super::{Opened, compressed};
use blocks::{
    Allocation, BlockShift, ByteLen, ByteOffset, Error, Extent, FileRange, Result, StorageFile, Volume,
};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// L2 tables in memory: at clusters of 64 KiB they lead to 256 GiB of disk.
const CACHE_BYTES: ByteLen = ByteLen::new(32 << 20);
/// The longest run of clusters that is copied from below at a time.
const COPY_BYTES: u64 = 1 << 20;

/// A QCOW2, open.
pub(in super::super) struct Qcow2Disk {
    file: Arc<dyn StorageFile>,
    header: Header,
    structures: Structures,
    l1: Vec<AtomicU64>,
    /// One bit an L1 entry: it and its L2 table were written since the file was opened.
    written: Vec<AtomicU64>,
    tables: TableCache,
    /// Up to here the file has bytes.
    file_end: AtomicU64,
    backing: Option<Arc<dyn Volume>>,
    writable: bool,
    /// The compressed cluster that was read last.
    unpacked: Mutex<Option<(Extent, Arc<Vec<u8>>)>>,
    changes: Mutex<Changes>,
}

/// What only one may do at a time.
struct Changes {
    slots: Slots,
    /// Clusters to which nothing leads any more once the file has been synced.
    released: Vec<Range<u64>>,
    begun: bool,
}

/// Where the bytes of a run of the disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Nowhere: zeroes.
    Hole,
    /// Nowhere, and marked as zeroes.
    Zero,
    /// Zeroes that have a place; only single clusters.
    ZeroAt { at: ByteOffset, copied: bool },
    /// In the backing file.
    Backing,
    /// From there on in the file.
    File { at: ByteOffset, copied: bool },
    /// In a compressed cluster, from `skip` on.
    Packed { place: Extent, skip: ByteLen },
}

impl Source {
    /// Whether `next`, which follows after `len` bytes, goes on where `self` ends.
    fn goes_on(self, len: ByteLen, next: Source) -> bool {
        match (self, next) {
            (Source::Hole, Source::Hole) | (Source::Zero, Source::Zero) => true,
            (Source::Backing, Source::Backing) => true,
            (Source::File { at, copied }, Source::File { at: next, copied: same }) => {
                copied == same && at + len == next
            }
            _ => false,
        }
    }
}

impl Qcow2Disk {
    /// The disk of a checked header. Errors: `Corrupt` where its tables lead astray.
    pub(in super::super) fn new(
        file: Arc<dyn StorageFile>,
        opened: Opened,
        backing: Option<Arc<dyn Volume>>,
        writable: bool,
    ) -> Result<Qcow2Disk> {
        let header = opened.header;
        if header.corrupt && writable {
            let context = format!("{}: somebody marked it as damaged; check it first", file.name());
            return Err(Error::corrupt(context));
        }
        let structures = Structures::read(&*file, &header)?;
        let l1: Vec<AtomicU64> = structures.l1.iter().map(|entry| AtomicU64::new(*entry)).collect();
        let written = (0..l1.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let file_len = file.len()?;
        let entries = ByteLen::new(header.l2_entries()).as_usize();
        let slots = Slots::new(structures.counts.clone(), file_len);
        Ok(Qcow2Disk {
            tables: TableCache::new(entries, EntryCodec::Be64, CACHE_BYTES),
            file_end: AtomicU64::new(file_len.get()),
            changes: Mutex::new(Changes { slots, released: Vec::new(), begun: false }),
            unpacked: Mutex::default(),
            file,
            header,
            structures,
            l1,
            written,
            backing,
            writable,
        })
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cluster(&self) -> BlockShift {
        self.header.cluster
    }

    /// How much of the disk one L2 table covers, from where on, for the byte at `at`.
    fn l2_span(&self, at: ByteOffset) -> (usize, Extent) {
        let span = self.cluster().bytes() * self.header.l2_entries();
        let index = at.get() / span;
        let covered = Extent::new(ByteOffset::new(index * span), ByteLen::new(span));
        (ByteLen::new(index).as_usize(), covered.expect("a disk's length leaves room for a span"))
    }

    fn l1_entry(&self, index: usize) -> Result<Option<L1Entry>> {
        let entry = self.l1.get(index).map_or(0, |entry| entry.load(Ordering::Acquire));
        L1Entry::decode(entry, &self.header)
    }

    /// What the first bytes of `rest` are, as far as they are one run.
    fn run_at(&self, rest: Extent) -> Result<(Extent, Source)> {
        let (l1_index, covered) = self.l2_span(rest.start());
        let rest = rest.intersect(covered).expect("the span covers its first byte");
        let Some(entry) = self.l1_entry(l1_index)? else { return Ok((rest, self.below())) };
        let table = self.tables.get(&*self.file, entry.l2_at)?;
        let mut run: Option<(Extent, Source)> = None;
        for part in rest.split(self.cluster().len()) {
            let source = self.source(&table, covered, part)?;
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

    fn below(&self) -> Source {
        if self.backing.is_some() { Source::Backing } else { Source::Hole }
    }

    /// Where a part of one cluster is.
    fn source(&self, table: &Table, covered: Extent, part: Extent) -> Result<Source> {
        let index = self.index_in(covered, part.start());
        let skip = ByteLen::new(part.start().get() % self.cluster().bytes());
        let decoded = Cluster::decode(table.get(index), &self.header).and_then(|cluster| {
            if let Some(place) = cluster.place(&self.header) {
                self.structures.check_place(place, self.file_end())?;
            }
            Ok(cluster)
        });
        let cluster =
            decoded.map_err(|error| error.context(format!("{}: the disk's {part}", self.file.name())))?;
        Ok(match cluster {
            Cluster::Unallocated => self.below(),
            Cluster::Zero => Source::Zero,
            Cluster::ZeroAt { at, copied } => Source::ZeroAt { at, copied },
            Cluster::Data { at, copied } => Source::File { at: at + skip, copied },
            Cluster::Compressed(place) => Source::Packed { place, skip },
        })
    }

    fn index_in(&self, covered: Extent, at: ByteOffset) -> usize {
        ByteLen::new(self.cluster().block_of(at) - self.cluster().block_of(covered.start())).as_usize()
    }

    fn file_end(&self) -> ByteOffset {
        ByteOffset::new(self.file_end.load(Ordering::Acquire))
    }

    fn read_source(&self, run: Extent, source: Source, buffer: &mut [u8]) -> Result<()> {
        match source {
            Source::Hole | Source::Zero | Source::ZeroAt { .. } => buffer.fill(0),
            Source::File { at, .. } => read_cut(&*self.file, self.file_end(), at, buffer)?,
            Source::Backing => read_parent(self.backing.as_ref(), run, buffer)?,
            Source::Packed { place, skip } => {
                let cluster = self.unpack(place)?;
                let skip = skip.as_usize();
                let bytes = cluster.get(skip..skip + buffer.len());
                buffer.copy_from_slice(bytes.expect("a run of a compressed cluster lies within it"));
            }
        }
        Ok(())
    }

    fn unpack(&self, place: Extent) -> Result<Arc<Vec<u8>>> {
        let last = || self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, cluster)) = &*last()
            && *known == place
        {
            return Ok(Arc::clone(cluster));
        }
        let cluster = Arc::new(compressed::read(&*self.file, &self.header, place)?);
        *last() = Some((place, Arc::clone(&cluster)));
        Ok(cluster)
    }

    /// Writes the first bytes of `rest` where they cannot simply be written in place; where that ends.
    fn write_new(&self, rest: Extent, bytes: &[u8]) -> Result<ByteOffset> {
        let mut changes = self.changes();
        // Somebody else may have been quicker.
        let (run, source) = self.run_at(rest)?;
        if matches!(source, Source::File { copied: true, .. }) {
            return Ok(run.start());
        }
        let l2_at = self.own_table(&mut changes, self.l2_span(rest.start()).0)?;
        match source {
            Source::Hole | Source::Zero => self.write_into_room(&mut changes, l2_at, run, bytes),
            Source::ZeroAt { at, copied: true } => self.write_into_zeroed(l2_at, run, at, bytes),
            _ => self.write_copied(&mut changes, l2_at, run, bytes),
        }
    }

    /// Takes clusters for a run that reads as zeroes.
    fn write_into_room(
        &self,
        changes: &mut Changes,
        l2_at: ByteOffset,
        run: Extent,
        bytes: &[u8],
    ) -> Result<ByteOffset> {
        let cluster = self.cluster();
        let guest = run.blocks(cluster);
        let taken = self.take(changes, guest.end - guest.start)?;
        let end = cluster.start_of(guest.start + (taken.end - taken.start)).min(run.end());
        let skip = run.start() - cluster.start_of(guest.start);
        let written = (end - run.start()).as_usize();
        self.file.write_at(cluster.start_of(taken.start) + skip, &bytes[..written])?;
        self.set_entries(l2_at, run.start(), taken)?;
        Ok(end)
    }

    /// Writes into a cluster whose content did not count so far.
    fn write_into_zeroed(
        &self,
        l2_at: ByteOffset,
        run: Extent,
        place: ByteOffset,
        bytes: &[u8],
    ) -> Result<ByteOffset> {
        let cluster = self.cluster();
        self.file.punch_hole(Extent::new(place, cluster.len())?)?;
        self.file.sync()?;
        let skip = ByteLen::new(run.start().get() % cluster.bytes());
        self.file.write_at(place + skip, &bytes[..run.len().as_usize()])?;
        let number = cluster.block_of(place);
        self.set_entries(l2_at, run.start(), number..number + 1)?;
        Ok(run.end())
    }

    /// Moves clusters whose old content shows until the new one is there.
    fn write_copied(
        &self,
        changes: &mut Changes,
        l2_at: ByteOffset,
        run: Extent,
        bytes: &[u8],
    ) -> Result<ByteOffset> {
        let cluster = self.cluster();
        let longest = cluster.start_of(cluster.block_of(run.start()) + (COPY_BYTES / cluster.bytes()).max(1));
        let run = Extent::between(run.start(), run.end().min(longest)).expect("a cluster at least");
        let guest = run.blocks(cluster);
        let taken = self.take(changes, guest.end - guest.start)?;
        let count = taken.end - taken.start;
        let whole = Extent::new(cluster.start_of(guest.start), ByteLen::new(count * cluster.bytes()))?;
        let end = whole.end().min(run.end());
        // The disk's end may lie within the last cluster.
        let on_disk = Extent::between(whole.start(), whole.end().min(self.header.len.end()))
            .expect("a run lies on the disk");
        let mut content = vec![0; whole.len().as_usize()];
        let mut places = Vec::new();
        let mut at = on_disk.start();
        while let Some(rest) = Extent::between(at, on_disk.end()) {
            let (old, source) = self.run_at(rest)?;
            let skip = (at - whole.start()).as_usize();
            self.read_source(old, source, &mut content[skip..skip + old.len().as_usize()])?;
            places.extend(self.clusters_of(old, source));
            at = old.end();
        }
        let skip = (run.start() - whole.start()).as_usize();
        let written = (end - run.start()).as_usize();
        content[skip..skip + written].copy_from_slice(&bytes[..written]);
        self.file.write_at(cluster.start_of(taken.start), &content)?;
        self.file.sync()?;
        self.set_entries(l2_at, run.start(), taken)?;
        changes.released.extend(places);
        Ok(end)
    }

    /// The file's clusters that lose a reference when the run moves elsewhere.
    fn clusters_of(&self, run: Extent, source: Source) -> Option<Range<u64>> {
        let place = match source {
            Source::Hole | Source::Zero | Source::Backing => return None,
            Source::ZeroAt { at, .. } => Extent::new(at, ByteLen::new(1)).ok()?,
            Source::File { at, .. } => Extent::new(at, run.len()).ok()?,
            Source::Packed { place, .. } => place,
        };
        Some(place.blocks(self.cluster()))
    }

    fn take(&self, changes: &mut Changes, wanted: u64) -> Result<Range<u64>> {
        let taken = changes.slots.take(&*self.file, wanted)?;
        let end = self.cluster().start_of(taken.end).get();
        self.file_end.fetch_max(end, Ordering::AcqRel);
        Ok(taken)
    }

    /// Makes the clusters of the disk from the one at `first` on be those of the file.
    fn set_entries(&self, l2_at: ByteOffset, first: ByteOffset, taken: Range<u64>) -> Result<()> {
        let (_, covered) = self.l2_span(first);
        let entries: Vec<u64> =
            taken.map(|cluster| self.cluster().start_of(cluster).get() | COPIED).collect();
        self.tables.set(&*self.file, l2_at, self.index_in(covered, first), &entries)
    }

    /// The L2 table of that number, made or copied where it is not ours alone yet.
    fn own_table(&self, changes: &mut Changes, l1_index: usize) -> Result<ByteOffset> {
        self.begin(changes)?;
        let found = self.l1_entry(l1_index)?;
        if let Some(L1Entry { l2_at, copied: true }) = found {
            self.make_written_locked(l1_index, l2_at)?;
            return Ok(l2_at);
        }
        let taken = self.take(changes, 1)?;
        let l2_at = self.cluster().start_of(taken.start);
        match found {
            None => self.tables.insert_empty(l2_at),
            Some(shared) => {
                let table = self.tables.get(&*self.file, shared.l2_at)?;
                self.file.write_at(l2_at, &table.encode(EntryCodec::Be64))?;
                self.file.sync()?;
                let old = self.cluster().block_of(shared.l2_at);
                changes.released.push(old..old + 1);
            }
        }
        let entry = l2_at.get() | COPIED;
        self.file.write_at(self.l1_entry_at(l1_index), &entry.to_be_bytes())?;
        self.l1[l1_index].store(entry, Ordering::Release);
        self.set_written(l1_index);
        Ok(l2_at)
    }

    fn l1_entry_at(&self, index: usize) -> ByteOffset {
        self.header.l1_at + ByteLen::new(index as u64 * 8)
    }

    fn is_written(&self, l1_index: usize) -> bool {
        self.written[l1_index / 64].load(Ordering::Acquire) & (1 << (l1_index % 64)) != 0
    }

    fn set_written(&self, l1_index: usize) {
        self.written[l1_index / 64].fetch_or(1 << (l1_index % 64), Ordering::Release);
    }

    /// Before anything is written where an L2 table leads: the table, its L1 entry and the counts are written again,
    /// once after each opening. They may be in the kernel's cache only, and marked as clean there since a sync of them
    /// has failed: then the next sync would put the data on the medium, but not what leads to it.
    fn make_written(&self, l1_index: usize) -> Result<()> {
        if self.is_written(l1_index) {
            return Ok(());
        }
        let mut changes = self.changes();
        self.begin(&mut changes)?;
        match self.l1_entry(l1_index)? {
            Some(entry) => self.make_written_locked(l1_index, entry.l2_at),
            None => Ok(()),
        }
    }

    fn make_written_locked(&self, l1_index: usize, l2_at: ByteOffset) -> Result<()> {
        if self.is_written(l1_index) {
            return Ok(());
        }
        self.tables.rewrite(&*self.file, l2_at)?;
        let entry = self.l1[l1_index].load(Ordering::Acquire);
        self.file.write_at(self.l1_entry_at(l1_index), &entry.to_be_bytes())?;
        self.set_written(l1_index);
        Ok(())
    }

    /// What comes before the first change after opening.
    fn begin(&self, changes: &mut Changes) -> Result<()> {
        if changes.begun {
            return Ok(());
        }
        if self.header.autoclear != 0 {
            self.file.write_at(super::AUTOCLEAR_AT, &0_u64.to_be_bytes())?;
            self.file.sync()?;
        }
        let end = self.file_end().align_up(self.cluster());
        self.file.set_len(end - ByteOffset::ZERO)?;
        self.file_end.fetch_max(end.get(), Ordering::AcqRel);
        changes.slots.rewrite(&*self.file)?;
        changes.begun = true;
        Ok(())
    }

    /// Makes a run read as zeroes that shows what others keep too; where what was done ends.
    fn hide(&self, run: Extent) -> Result<ByteOffset> {
        let cluster = self.cluster();
        let first = run.start().align_up(cluster);
        // The last cluster is whole where the disk ends in it.
        let last = if run.end() == self.header.len.end() { run.end() } else { run.end().align_down(cluster) };
        if self.header.version < 3 || first != run.start() || first >= last {
            let end = run.end().min(cluster.start_of(cluster.block_of(run.start()) + 1));
            let part = Extent::between(run.start(), end).expect("a part of a cluster");
            self.write(part, &vec![0; part.len().as_usize()])?;
            return Ok(end);
        }
        let whole = Extent::between(first, last).expect("checked above");
        let mut changes = self.changes();
        let l2_at = self.own_table(&mut changes, self.l2_span(first).0)?;
        let mut at = first;
        while let Some(rest) = Extent::between(at, whole.end()) {
            // What others have written meanwhile is newer.
            let (part, source) = self.run_at(rest)?;
            at = part.end();
            if matches!(source, Source::Backing | Source::Packed { .. } | Source::File { copied: false, .. })
            {
                let count = part.blocks(cluster).count();
                let (_, covered) = self.l2_span(part.start());
                let index = self.index_in(covered, part.start());
                self.tables.set(&*self.file, l2_at, index, &vec![ZERO; count])?;
                changes.released.extend(self.clusters_of(part, source));
            }
        }
        Ok(whole.end())
    }
}

impl Disk for Qcow2Disk {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn len(&self) -> ByteLen {
        self.header.len
    }

    /// What lies in one piece in a file that is only read: a cluster that a writer gives up may be another one's next.
    fn file_range(&self, extent: Extent) -> Option<FileRange> {
        let file = Arc::clone(self.file.host_file().filter(|_| !self.writable)?);
        match self.run_at(extent).ok()? {
            (run, Source::File { at, .. }) if run == extent && at + run.len() <= self.file_end() => {
                Some(FileRange { file, offset: at })
            }
            _ => None,
        }
    }

    fn read(&self, extent: Extent, buffer: &mut [u8]) -> Result<()> {
        let mut at = extent.start();
        while let Some(rest) = Extent::between(at, extent.end()) {
            let (run, source) = self.run_at(rest)?;
            let skip = (at - extent.start()).as_usize();
            self.read_source(run, source, &mut buffer[skip..skip + run.len().as_usize()])?;
            at = run.end();
        }
        Ok(())
    }

    fn write(&self, extent: Extent, data: &[u8]) -> Result<()> {
        let mut at = extent.start();
        while let Some(rest) = Extent::between(at, extent.end()) {
            let bytes = &data[(at - extent.start()).as_usize()..];
            at = match self.run_at(rest)? {
                (run, Source::File { at: place, copied: true }) => {
                    self.make_written(self.l2_span(at).0)?;
                    self.file.write_at(place, &bytes[..run.len().as_usize()])?;
                    run.end()
                }
                _ => self.write_new(rest, bytes)?,
            };
        }
        Ok(())
    }

    fn punch(&self, extent: Extent) -> Result<()> {
        let mut at = extent.start();
        while let Some(rest) = Extent::between(at, extent.end()) {
            let (run, source) = self.run_at(rest)?;
            at = run.end();
            match source {
                Source::Hole | Source::Zero | Source::ZeroAt { .. } => {}
                Source::File { at: place, copied: true } => {
                    self.make_written(self.l2_span(run.start()).0)?;
                    self.file.punch_hole(Extent::new(place, run.len())?)?;
                }
                Source::File { .. } | Source::Backing | Source::Packed { .. } => at = self.hide(run)?,
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map(drop)
    }

    /// Syncs, then gives back what nothing leads to any more.
    fn flush(&self) -> Result<()> {
        let released = std::mem::take(&mut self.changes().released);
        self.file.sync()?;
        let changes = self.changes();
        released.into_iter().try_for_each(|clusters| changes.slots.counts.release(&*self.file, clusters))
    }

    fn status(&self, extent: Extent, runs: &mut Runs) -> Result<()> {
        let mut at = extent.start();
        while let Some(rest) = Extent::between(at, extent.end()).filter(|_| !runs.is_full()) {
            let (run, source) = self.run_at(rest)?;
            at = run.end();
            match source {
                Source::Hole | Source::Zero => runs.push(run, Allocation::Hole),
                Source::ZeroAt { .. } => runs.push(run, Allocation::Zero),
                Source::Packed { .. } => runs.push(run, Allocation::Data),
                Source::File { at: place, .. } => runs.push_stored(&*self.file, run, place)?,
                Source::Backing => runs.push_volume(self.backing.as_deref(), run)?,
            }
        }
        Ok(())
    }

    /// Gives room back that was made ready in vain. What cannot be given back is found by `check`.
    fn close(&mut self) -> Result<()> {
        if !self.changes().begun {
            return Ok(());
        }
        if !self.changes().released.is_empty() {
            self.flush()?;
        }
        self.changes().slots.trim(&*self.file)
    }
}

impl std::fmt::Debug for Qcow2Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Disk").field("file", &self.file.name()).finish_non_exhaustive()
    }
}
