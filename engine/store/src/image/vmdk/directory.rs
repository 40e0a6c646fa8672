//! The grain directory: where the grain tables are, and what else of the file is not data.

use super::super::bytes::le32;
use super::header::{HEADER_BYTES, Header, TABLE_BYTES, byte_offset};
use blocks::{ByteLen, ByteOffset, Error, Extent, Result, StorageFile};
use std::sync::atomic::{AtomicU32, Ordering};

/// One directory: for each table its sector, 0 where there is none.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) place: Extent,
    entries: Vec<AtomicU32>,
}

impl Directory {
    /// Reads a directory, and checks that its tables lie in the file.
    pub(super) fn read(file: &dyn StorageFile, place: Extent) -> Result<Directory> {
        let corrupt = |what: String| Error::corrupt(format!("{}: {what}", file.name()));
        let end = file.len()?.end();
        if place.end() > end || place.start() < HEADER_BYTES.end() {
            return Err(corrupt(format!("a grain directory at {place} past its end or on its header")));
        }
        let mut bytes = vec![0; place.len().as_usize()];
        file.read_at(place.start(), &mut bytes)?;
        let entries: Vec<u32> = bytes.chunks_exact(4).map(|entry| le32(entry, 0)).collect();
        for entry in entries.iter().filter(|entry| **entry != 0) {
            let table = table_at(*entry)?;
            if table.end() > end {
                return Err(corrupt(format!("a grain table at {table} past its end")));
            }
        }
        Ok(Directory { place, entries: entries.into_iter().map(AtomicU32::new).collect() })
    }

    /// Where the table of that number is.
    pub(super) fn get(&self, table: u64) -> Option<ByteOffset> {
        let entry = self.entries.get(ByteLen::new(table).as_usize())?.load(Ordering::Acquire);
        (entry != 0).then(|| ByteOffset::new(u64::from(entry) * 512))
    }

    /// Leads to a table, in the file, then for readers.
    pub(super) fn set(&self, file: &dyn StorageFile, table: u64, at: ByteOffset) -> Result<()> {
        let entry = u32::try_from(at.lba().get()).expect("room is made below 2 TiB only");
        self.entries[ByteLen::new(table).as_usize()].store(entry, Ordering::Release);
        self.rewrite(file, table)
    }

    /// Writes an entry again, as it is.
    pub(super) fn rewrite(&self, file: &dyn StorageFile, table: u64) -> Result<()> {
        let entry = self.entries[ByteLen::new(table).as_usize()].load(Ordering::Acquire);
        file.write_at(self.place.start() + ByteLen::new(table * 4), &entry.to_le_bytes())
    }

    /// The tables that there are.
    pub(super) fn tables(&self) -> impl Iterator<Item = Extent> {
        let entries = self.entries.iter().map(|entry| entry.load(Ordering::Acquire));
        entries.filter(|entry| *entry != 0).map(|entry| table_at(entry).expect("it was checked"))
    }
}

fn table_at(sector: u32) -> Result<Extent> {
    Ok(Extent::new(byte_offset(u64::from(sector))?, ByteLen::new(TABLE_BYTES))?)
}

/// Both directories, and which parts of the file they, their tables and the header take.
#[derive(Debug)]
pub(super) struct Directories {
    pub(super) main: Directory,
    /// The second directory, where the header says that there is one; the error where it leads astray.
    pub(super) redundant: Option<Result<Directory>>,
    /// Sorted; touching ones joined.
    taken: Vec<Extent>,
}

impl Directories {
    /// Reads both. `Corrupt` where the first leads astray, or where two structures share a byte.
    pub(super) fn read(file: &dyn StorageFile, header: &Header) -> Result<Directories> {
        let redundant = match header.redundant() {
            Ok(None) => None,
            Ok(Some(place)) => match Directory::read(file, place) {
                Err(error) if error.kind() != blocks::ErrorKind::Corrupt => return Err(error),
                read => Some(read),
            },
            Err(error) => Some(Err(error)),
        };
        let main = Directory::read(file, header.directory()?).map_err(|error| match redundant {
            Some(Ok(_)) => error.context("the redundant directory can be read, `check` can put it in place"),
            _ => error,
        })?;
        let mut taken = vec![Extent::new(ByteOffset::ZERO, HEADER_BYTES)?];
        taken.extend(header.descriptor);
        let both = [Some(&main), redundant.as_ref().and_then(|read| read.as_ref().ok())];
        for directory in both.into_iter().flatten() {
            taken.push(directory.place);
            taken.extend(directory.tables());
        }
        taken.sort_unstable();
        if let Some(pair) = taken.windows(2).find(|pair| pair[0].overlaps(pair[1])) {
            let context = format!("{}: its structures at {} and {} overlap", file.name(), pair[0], pair[1]);
            return Err(Error::corrupt(context));
        }
        taken.dedup_by(|next, before| {
            let touches = before.end() == next.start();
            if touches {
                *before = Extent::between(before.start(), next.end()).unwrap_or(*before);
            }
            touches
        });
        Ok(Directories { main, redundant, taken })
    }

    /// What is not data, in order.
    pub(super) fn taken(&self) -> &[Extent] {
        &self.taken
    }

    /// Refuses a place of data that begins past the file's end or lies on a structure.
    pub(super) fn check_place(&self, place: Extent, file_end: ByteOffset) -> Result<()> {
        if place.start() >= file_end {
            return Err(Error::corrupt(format!("its place, {place}, is past the file's end")));
        }
        let from = self.taken.partition_point(|taken| taken.end() <= place.start());
        if self.taken.get(from).is_some_and(|taken| taken.overlaps(place)) {
            return Err(Error::corrupt(format!("its place, {place}, lies on a structure")));
        }
        Ok(())
    }
}
