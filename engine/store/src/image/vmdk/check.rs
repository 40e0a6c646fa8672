//! Looking at every table of a VMDK, and putting right what needs no guess: a redundant directory that is not equal to
//! the first, a first one that leads astray while the redundant one is whole, room at the end that nothing uses, the mark
//! of a writer that never closed the file.

use super::super::bytes::{le32, put};
use super::super::check::CheckReport;
use super::Opened;
use super::compressed;
use super::descriptor::ExtentType;
use super::directory::{Directories, Directory};
use super::header::{Header, TABLE_BYTES, TABLE_ENTRIES, UNCLEAN_AT};
use super::sparse::check_cut;
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, SECTOR_BYTES, StorageFile};
use std::sync::Arc;

/// Checks the disk's files; with `repair`, which wants them writable, mends what can be mended without guessing and
/// syncs. `files` gives the extents' files.
///
/// Errors: those of reading and writing; `Corrupt` and `Unsupported` where nothing can be looked at at all.
pub(in super::super) fn check(
    file: &Arc<dyn StorageFile>,
    files: impl FnMut(&str) -> Result<Arc<dyn StorageFile>>,
    repair: bool,
) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let opened = Opened::read(Arc::clone(file))?;
    let mut files = opened.files(files)?.into_iter();
    for line in &opened.descriptor.extents {
        let file = match line.kind {
            ExtentType::Zero => continue,
            ExtentType::Flat { .. } | ExtentType::Sparse => files.next().expect("one for each"),
        };
        match line.kind {
            ExtentType::Flat { at } => {
                let len = file.len()?;
                if at.end().checked_add(line.len).is_none_or(|end| end > len.end()) {
                    let what = format!("{}: shorter than its extent of {} bytes", file.name(), line.len);
                    report.damage(None, false, what);
                }
            }
            _ => check_sparse(&*file, line.len, repair, &mut report)?,
        }
    }
    if repair && report.repaired() > 0 {
        file.sync()?;
    }
    Ok(report)
}

fn check_sparse(file: &dyn StorageFile, len: ByteLen, repair: bool, report: &mut CheckReport) -> Result<()> {
    let header = Header::read(file)?;
    if !header.holds(len) {
        let what = format!("{}: it has {} bytes where {len} are said", file.name(), header.capacity);
        report.damage(None, false, what);
        return Ok(());
    }
    if header.exceeds(len) {
        let what = format!(
            "{}: room for {} bytes where {len} are said, as while it grows: give it its length again",
            file.name(),
            header.capacity
        );
        report.pending(None, false, what);
    }
    let directories = match read_directories(file, &header, repair, report)? {
        Some(directories) => directories,
        None => return Ok(()),
    };
    let mut walk =
        Walk { file, header: &header, directories: &directories, report, repair, used: Vec::new() };
    walk.walk_tables()?;
    let whole = walk.compare_used()?;
    walk.compare_redundant()?;
    walk.check_room(whole)?;
    if header.unclean {
        let mend = repair && report.damaged() == 0;
        if mend {
            file.sync()?;
            file.write_at(UNCLEAN_AT, &[0])?;
        }
        let place = Extent::new(UNCLEAN_AT, ByteLen::new(1)).ok();
        report.pending(place, mend, "not closed by its last writer");
    }
    if repair { file.sync().map(drop) } else { Ok(()) }
}

/// The directories. Where the first leads astray and the redundant one does not, the report says so, and the first is
/// written anew from it; `None` where that was not asked for, or does not help.
fn read_directories(
    file: &dyn StorageFile,
    header: &Header,
    repair: bool,
    report: &mut CheckReport,
) -> Result<Option<Directories>> {
    let error = match Directories::read(file, header) {
        Ok(directories) => return Ok(Some(directories)),
        Err(error) if error.kind() == ErrorKind::Corrupt => error,
        Err(error) => return Err(error),
    };
    let main = header.directory()?;
    let redundant = header.redundant()?.map(|place| Directory::read(file, place));
    // Everybody puts the tables of a directory right behind it, so where they were follows from the header: unless the
    // disk has grown since, which shows in the other directory.
    let rebuilt = rebuilt_entries(header, main);
    let (Some(Ok(redundant)), Some(entries)) = (redundant, rebuilt) else { return Err(error) };
    if !follow(&redundant) {
        return Err(error);
    }
    let room = Extent::new(main.start(), header.overhead.end() - main.start());
    let apart = |extent: Extent| room.is_ok_and(|room| !room.overlaps(extent));
    if !apart(redundant.place) || !redundant.tables().all(apart) {
        return Err(error);
    }
    if repair {
        for (number, at) in (0..header.tables()).zip(&entries) {
            let mut table = vec![0; ByteLen::new(TABLE_BYTES).as_usize()];
            if let Some(copy_at) = redundant.get(number) {
                file.read_at(copy_at, &mut table)?;
            }
            file.write_at(ByteOffset::new(u64::from(*at) * SECTOR_BYTES), &table)?;
        }
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        file.write_at(main.start(), &bytes)?;
        file.sync()?;
    }
    let what = format!("the grain directory leads astray ({error}); the redundant one does not");
    report.damage(Some(main), repair, what);
    if repair { Directories::read(file, header).map(Some) } else { Ok(None) }
}

/// Whether the directory's tables follow it without a gap.
fn follow(directory: &Directory) -> bool {
    let mut at = ByteOffset::new(directory.place.end().get().next_multiple_of(SECTOR_BYTES));
    directory.tables().all(|table| {
        let follows = table.start() == at;
        at = table.end();
        follows
    })
}

/// The entries of a directory whose tables follow it without a gap; `None` where they would not fit there.
fn rebuilt_entries(header: &Header, place: Extent) -> Option<Vec<u32>> {
    let first = place.end().get().next_multiple_of(SECTOR_BYTES);
    let end = header.tables().checked_mul(TABLE_BYTES)?.checked_add(first)?;
    if header.compressed || end > header.overhead.get() {
        return None;
    }
    (0..header.tables())
        .map(|table| u32::try_from((first + table * TABLE_BYTES) / SECTOR_BYTES).ok())
        .collect()
}

struct Walk<'a> {
    file: &'a dyn StorageFile,
    header: &'a Header,
    directories: &'a Directories,
    report: &'a mut CheckReport,
    repair: bool,
    /// What entries lead to: first sector and number of sectors.
    used: Vec<(u32, u32)>,
}

impl Walk<'_> {
    fn read_table(&self, at: ByteOffset) -> Result<Vec<u32>> {
        let mut bytes = vec![0; ByteLen::new(TABLE_BYTES).as_usize()];
        self.file.read_at(at, &mut bytes)?;
        Ok(bytes.chunks_exact(4).map(|entry| le32(entry, 0)).collect())
    }

    fn walk_tables(&mut self) -> Result<()> {
        let end = self.file.len()?.end();
        let mut holes = Holes::default();
        for number in 0..self.header.tables() {
            let Some(table_at) = self.directories.main.get(number) else { continue };
            if holes.hold(self.file, table_at)? {
                continue;
            }
            for (index, entry) in self.read_table(table_at)?.into_iter().enumerate() {
                if entry == 0 || (entry == 1 && self.header.zeroed_entries) {
                    continue;
                }
                let grain = number * TABLE_ENTRIES + index as u64;
                match self.place(entry, grain, end) {
                    Ok(place) => {
                        let sectors = u32::try_from(place.len().get() / SECTOR_BYTES);
                        self.used.push((entry, sectors.expect("a grain has at most 16 MiB")));
                    }
                    Err(error) if error.kind() == ErrorKind::Corrupt => {
                        let at = table_at + ByteLen::new(index as u64 * 4);
                        self.report.damage(Extent::new(at, ByteLen::new(4)).ok(), false, error.to_string());
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Where a grain is; a compressed one is unpacked, so that its sum is looked at too.
    fn place(&self, entry: u32, grain: u64, end: ByteOffset) -> Result<Extent> {
        if grain >= self.header.capacity.blocks(self.header.grain) {
            return Err(Error::corrupt(format!("an entry for grain {grain}, which is past the disk's end")));
        }
        let at = ByteOffset::new(u64::from(entry) * SECTOR_BYTES);
        let mut len = self.header.grain.len();
        if self.header.compressed {
            len = ByteLen::new(SECTOR_BYTES);
            self.directories.check_place(Extent::new(at, len)?, end)?;
            let guest = self.header.grain.start_of(grain);
            len = compressed::stored_len(self.file, self.header.grain, at, guest)?;
        }
        let place = Extent::new(at, len)?;
        self.directories.check_place(place, end)?;
        check_cut(place, end.align_up(self.header.grain))?;
        Ok(place)
    }

    /// Names what two entries lead to, and room that none does; whether no entry is in doubt.
    fn compare_used(&mut self) -> Result<bool> {
        self.used.sort_unstable();
        let sectors = |(at, len): (u32, u32)| {
            let start = ByteOffset::new(u64::from(at) * SECTOR_BYTES);
            Extent::new(start, ByteLen::new(u64::from(len) * SECTOR_BYTES)).ok()
        };
        for pair in self.used.windows(2) {
            if u64::from(pair[0].0) + u64::from(pair[0].1) > u64::from(pair[1].0) {
                self.report.damage(sectors(pair[1]), false, "two entries lead there");
            }
        }
        Ok(self.report.damaged() == 0)
    }

    /// The redundant directory and its tables must say what the first ones do.
    fn compare_redundant(&mut self) -> Result<()> {
        let Some(place) = self.header.redundant()? else { return Ok(()) };
        let redundant = match &self.directories.redundant {
            Some(Ok(redundant)) => redundant,
            Some(Err(error)) => {
                let what = format!("the redundant grain directory leads astray: {error}");
                let fits = self.fits_before_main(place) && follow(&self.directories.main);
                let rebuilt = rebuilt_entries(self.header, place).filter(|_| fits);
                let mend = self.repair && rebuilt.is_some();
                if let (true, Some(entries)) = (mend, rebuilt) {
                    self.write_redundant(place, &entries)?;
                }
                self.report.damage(Some(place), mend, what);
                return Ok(());
            }
            None => return Ok(()),
        };
        let mut holes = [Holes::default(), Holes::default()];
        for number in 0..self.header.tables() {
            let (main, copy) = (self.directories.main.get(number), redundant.get(number));
            let (Some(main_at), Some(copy_at)) = (main, copy) else {
                if main.is_some() != copy.is_some() {
                    self.report.damage(
                        Some(place),
                        false,
                        format!("table {number} is in one directory only"),
                    );
                }
                continue;
            };
            if holes[0].hold(self.file, main_at)? && holes[1].hold(self.file, copy_at)? {
                continue;
            }
            let (main, copy) = (self.read_table(main_at)?, self.read_table(copy_at)?);
            if main != copy {
                if self.repair {
                    self.file.write_at(copy_at, &encode(&main))?;
                }
                let what = format!("redundant grain table {number} is not equal to the first one");
                self.report.pending(Extent::new(copy_at, ByteLen::new(TABLE_BYTES)).ok(), self.repair, what);
            }
        }
        Ok(())
    }

    /// Whether a redundant directory at `place`, with its tables behind it, would touch nothing else.
    fn fits_before_main(&self, place: Extent) -> bool {
        let first = place.end().get().next_multiple_of(SECTOR_BYTES);
        let end = ByteOffset::new(first + self.header.tables() * TABLE_BYTES);
        let Some(room) = Extent::between(place.start(), end) else { return false };
        self.directories.taken().iter().all(|taken| !taken.overlaps(room))
    }

    fn write_redundant(&self, place: Extent, entries: &[u32]) -> Result<()> {
        for (number, at) in (0..self.header.tables()).zip(entries) {
            let table = match self.directories.main.get(number) {
                Some(main_at) => self.read_table(main_at)?,
                None => continue,
            };
            self.file.write_at(ByteOffset::new(u64::from(*at) * SECTOR_BYTES), &encode(&table))?;
        }
        let mut kept = vec![0; entries.len() * 4];
        for (number, at) in (0..self.header.tables()).zip(entries) {
            if self.directories.main.get(number).is_some() {
                put(&mut kept, ByteLen::new(number * 4).as_usize(), &at.to_le_bytes());
            }
        }
        self.file.write_at(place.start(), &kept)
    }

    /// Room between grains is named; room at the end is cut off where no entry is in doubt.
    fn check_room(&mut self, whole: bool) -> Result<()> {
        if self.header.compressed {
            // Between grains lie markers, and the file ends with a header.
            return Ok(());
        }
        let mut at = self.header.overhead.end();
        let sectors = |sector: u32| ByteOffset::new(u64::from(sector) * SECTOR_BYTES);
        let mut taken: Vec<Extent> = self.directories.taken().to_vec();
        for (start, len) in &self.used {
            taken.extend(Extent::new(sectors(*start), ByteLen::new(u64::from(*len) * SECTOR_BYTES)));
        }
        taken.sort_unstable();
        for extent in taken {
            // Less than a grain is what aligning one has left.
            if let Some(gap) =
                Extent::between(at, extent.start()).filter(|gap| gap.len() >= self.header.grain.len())
            {
                self.report.leak(gap, false, "nothing leads there");
            }
            at = at.max(extent.end());
        }
        let behind = Extent::between(at, self.file.len()?.end());
        if let Some(behind) = behind.filter(|behind| behind.len() >= self.header.grain.len()) {
            let mend = self.repair && whole && self.report.damaged() == 0;
            if mend {
                self.file.sync()?;
                self.file.set_len(ByteLen::new(at.get()))?;
            }
            self.report.leak(behind, mend, "nothing leads there, at the file's end");
        }
        Ok(())
    }
}

fn encode(table: &[u32]) -> Vec<u8> {
    table.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

/// Tables that were never written, of which a large disk has many, are not read: the file system knows them.
#[derive(Default)]
struct Holes {
    /// From here up to there the file is a hole.
    hole: Option<Extent>,
}

impl Holes {
    /// Whether the table at `at` lies in a hole.
    fn hold(&mut self, file: &dyn StorageFile, at: ByteOffset) -> Result<bool> {
        let table = Extent::new(at, ByteLen::new(TABLE_BYTES))?;
        if !self.hole.is_some_and(|hole| hole.contains(table)) {
            let data_start = file.next_data(at)?.map_or(file.len()?.end(), Extent::start);
            self.hole = Extent::between(at, data_start);
        }
        Ok(self.hole.is_some_and(|hole| hole.contains(table)))
    }
}
