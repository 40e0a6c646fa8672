//! Writing a stream-optimized VMDK: once, from the start to the end, as it would go over a wire.
//!
//! ```text
//! header, which says that another one at the end counts; descriptor
//! for each table of the disk that has any: its grains, compressed; a marker; the table
//! a marker, the grain directory; a marker, the header that counts; an empty marker: the end
//! ```
//!
//! A file that was cut misses the end, and is refused by whoever opens it.

use super::super::bytes::put;
use super::super::opening::last_part;
use super::compressed;
use super::descriptor::Descriptor;
use super::header::{Header, TABLE_BYTES, TABLE_ENTRIES};
use super::{DESCRIPTOR_PLACE, GRAIN, descriptor_bytes, descriptor_text};
use blocks::{
    ByteLen, ByteOffset, Error, ErrorKind, Extent, RequestClass, Result, SECTOR_BYTES, StorageFile, Volume,
    is_zero,
};

/// Grains that are read and compressed at a time: 4 MiB.
const BATCH_GRAINS: u64 = 64;
const MARKER_TABLE: u32 = 1;
const MARKER_DIRECTORY: u32 = 2;
const MARKER_FOOTER: u32 = 3;

/// Makes the empty file a stream-optimized VMDK of the volume, with `threads` threads that compress, and syncs it. Holes
/// and zeroes take no room. The volume must not change meanwhile; its length was checked.
///
/// `progress` is called with the bytes done and the bytes in all; where it says `false`, this ends with `Cancelled`.
pub(crate) fn write(
    from: &dyn Volume,
    file: &dyn StorageFile,
    threads: usize,
    progress: &dyn Fn(ByteLen, ByteLen) -> bool,
) -> Result<()> {
    let len = from.len();
    let mut writer = StreamWriter::new(file, len)?;
    let mut at = ByteOffset::ZERO;
    while let Some(rest) = Extent::between(at, len.end()) {
        let runs = from.status(rest)?;
        for run in runs {
            at = run.extent.end();
            if !run.allocation.reads_as_zero() {
                // Whole grains, but none twice: a run may begin within one whose first bytes are another's.
                let first = run.extent.start().align_down(GRAIN).max(writer.next);
                let last = run.extent.end().align_up(GRAIN).min(len.end());
                let grains = Extent::between(first, last);
                let batches =
                    grains.into_iter().flat_map(|it| it.split(ByteLen::new(BATCH_GRAINS * GRAIN.bytes())));
                for batch in batches {
                    writer.write_batch(from, batch, threads)?;
                    report(progress, batch.end().min(at) - ByteOffset::ZERO, len)?;
                }
            }
            report(progress, at - ByteOffset::ZERO, len)?;
        }
    }
    writer.finish()
}

fn report(progress: &dyn Fn(ByteLen, ByteLen) -> bool, done: ByteLen, total: ByteLen) -> Result<()> {
    match progress(done, total) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Cancelled, "the copy was called off")),
    }
}

/// A stream under way.
struct StreamWriter<'a> {
    file: &'a dyn StorageFile,
    header: Header,
    /// Where in the file the next byte goes.
    at: ByteOffset,
    /// The first byte of the disk of which no grain was written.
    next: ByteOffset,
    /// The sectors of the tables that were written.
    directory: Vec<u32>,
    /// The table that grows, and its number.
    table: Vec<u32>,
    number: u64,
}

impl<'a> StreamWriter<'a> {
    fn new(file: &'a dyn StorageFile, len: ByteLen) -> Result<StreamWriter<'a>> {
        let extent = format!("RW {} SPARSE \"{}\"", len.get() / SECTOR_BYTES, last_part(file.name()));
        let text = descriptor_text(file.name(), "streamOptimized", super::identity::new_id(), len, &extent)?;
        debug_assert!(Descriptor::parse(text.as_bytes()).is_ok());
        let header = Header {
            capacity: len,
            grain: GRAIN,
            descriptor: Extent::new(ByteOffset::new(DESCRIPTOR_PLACE.0), ByteLen::new(DESCRIPTOR_PLACE.1))
                .ok(),
            directory_at: ByteOffset::ZERO,
            redundant_at: None,
            overhead: GRAIN.len(),
            unclean: false,
            zeroed_entries: false,
            compressed: true,
        };
        file.write_at(ByteOffset::ZERO, &header.encode(true))?;
        file.write_at(ByteOffset::new(DESCRIPTOR_PLACE.0), &descriptor_bytes(&text))?;
        file.set_len(GRAIN.len())?;
        let directory = vec![0; ByteLen::new(header.tables()).as_usize()];
        let (at, next) = (GRAIN.len().end(), ByteOffset::ZERO);
        Ok(StreamWriter { file, header, at, next, directory, table: empty_table(), number: 0 })
    }

    /// Reads, compresses and writes the grains of a part of the disk, which starts with one.
    fn write_batch(&mut self, from: &dyn Volume, batch: Extent, threads: usize) -> Result<()> {
        let mut bytes = vec![0; batch.len().as_usize()];
        from.read_at(batch.start(), &mut bytes, RequestClass::Background)?;
        // The last grain is whole in the file, whatever the disk has of it.
        bytes.resize(bytes.len().next_multiple_of(GRAIN.len().as_usize()), 0);
        let grains: Vec<(ByteOffset, &[u8])> = batch
            .split(GRAIN.len())
            .map(|grain| grain.start())
            .zip(bytes.chunks_exact(GRAIN.len().as_usize()))
            .filter(|(_, grain)| !is_zero(grain))
            .collect();
        let share = grains.len().div_ceil(threads.max(1)).max(1);
        let packed: Vec<Vec<Vec<u8>>> = std::thread::scope(|scope| {
            let pack = |part: &[(ByteOffset, &[u8])]| -> Vec<Vec<u8>> {
                part.iter().map(|(at, grain)| compressed::encode(*at, grain)).collect()
            };
            let workers: Vec<_> = grains.chunks(share).map(|part| scope.spawn(move || pack(part))).collect();
            workers.into_iter().map(|worker| worker.join().expect("compressing does not panic")).collect()
        });
        for ((at, _), packed) in grains.iter().zip(packed.iter().flatten()) {
            self.write_grain(*at, packed)?;
        }
        self.next = batch.end().align_up(GRAIN);
        Ok(())
    }

    fn write_grain(&mut self, guest: ByteOffset, packed: &[u8]) -> Result<()> {
        let grain = GRAIN.block_of(guest);
        if grain / TABLE_ENTRIES != self.number {
            self.write_table()?;
            self.number = grain / TABLE_ENTRIES;
        }
        self.table[ByteLen::new(grain % TABLE_ENTRIES).as_usize()] = self.sector()?;
        self.append(packed)
    }

    /// The sector that comes next. Tables have 32 bits for it.
    fn sector(&self) -> Result<u32> {
        u32::try_from(self.at.lba().get()).map_err(|_| {
            Error::new(ErrorKind::NoSpace, format!("{}: a VMDK cannot grow past 2 TiB", self.file.name()))
        })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_at(self.at, bytes)?;
        self.at += ByteLen::of(bytes);
        Ok(())
    }

    /// What is not a grain has a marker before it: how many sectors, and what it is.
    fn append_marked(&mut self, kind: u32, entries: &[u32]) -> Result<u32> {
        let mut bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(SECTOR_BYTES as usize), 0);
        self.append(&marker(kind, bytes.len() as u64 / SECTOR_BYTES))?;
        let at = self.sector()?;
        self.append(&bytes)?;
        Ok(at)
    }

    fn write_table(&mut self) -> Result<()> {
        if self.table.iter().all(|entry| *entry == 0) {
            return Ok(());
        }
        let table = std::mem::replace(&mut self.table, empty_table());
        let at = self.append_marked(MARKER_TABLE, &table)?;
        self.directory[ByteLen::new(self.number).as_usize()] = at;
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.write_table()?;
        let directory = std::mem::take(&mut self.directory);
        let at = self.append_marked(MARKER_DIRECTORY, &directory)?;
        self.header.directory_at = ByteOffset::new(u64::from(at) * SECTOR_BYTES);
        let footer = self.header.encode(false);
        self.append(&marker(MARKER_FOOTER, 1))?;
        self.append(&footer)?;
        self.append(&[0; SECTOR_BYTES as usize])?;
        self.file.sync().map(drop)
    }
}

fn empty_table() -> Vec<u32> {
    vec![0; (TABLE_BYTES / 4) as usize]
}

fn marker(kind: u32, sectors: u64) -> [u8; SECTOR_BYTES as usize] {
    let mut bytes = [0; SECTOR_BYTES as usize];
    put(&mut bytes, 0, &sectors.to_le_bytes());
    put(&mut bytes, 12, &kind.to_le_bytes());
    bytes
}
