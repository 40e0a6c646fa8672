//! The log: what was to be changed in the file's structures is written here first.
//!
//! An entry is a header, descriptors and whole sectors of 4 KiB, with a checksum over all. We write entries that stand
//! alone: each begins its own sequence. An entry is on the medium before the file is changed where it says; since every
//! change of ours is of 8 bytes and its room is zero, losing an older entry's change (that nobody has flushed) does no
//! harm, so entries need not be kept until their changes are synced.

use super::super::bytes::{le32, le64, put};
use super::header::checksum;
use super::region::TABLE_STARTS;
use blocks::{ByteLen, ByteOffset, Error, Extent, Result, StorageFile};
use std::collections::{BTreeMap, HashMap};

pub(super) const SECTOR: usize = 4096;
const HEADER_BYTES: usize = 64;
const DESCRIPTOR_BYTES: usize = 32;
const CHECKSUM_AT: usize = 4;
const ENTRY: [u8; 4] = *b"loge";
const DATA_DESCRIPTOR: [u8; 4] = *b"desc";
const ZERO_DESCRIPTOR: [u8; 4] = *b"zero";
const DATA_SECTOR: [u8; 4] = *b"data";

/// A sector of the file as it is to become.
pub(super) type Page = [u8; SECTOR];

/// What a log says the file is to become.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// Sectors by where they start, after the zeroes.
    pub(super) pages: BTreeMap<u64, Box<Page>>,
    /// Ranges that become zero, before the pages are written.
    pub(super) zeroes: Vec<Extent>,
    /// How long the file is to be.
    pub(super) file_len: ByteLen,
}

/// The bytes of an entry that puts these pages into the file.
pub(super) fn encode_entry(
    log_id: [u8; 16],
    sequence: u64,
    tail: u32,
    file_len: ByteLen,
    pages: &[(ByteOffset, Page)],
) -> Vec<u8> {
    let descriptors = HEADER_BYTES + pages.len() * DESCRIPTOR_BYTES;
    let data_at = descriptors.next_multiple_of(SECTOR);
    let mut bytes = vec![0; data_at + pages.len() * SECTOR];
    let len = bytes.len() as u32;
    put(&mut bytes, 0, &ENTRY);
    put(&mut bytes, 8, &len.to_le_bytes());
    put(&mut bytes, 12, &tail.to_le_bytes());
    put(&mut bytes, 16, &sequence.to_le_bytes());
    put(&mut bytes, 24, &(pages.len() as u32).to_le_bytes());
    put(&mut bytes, 32, &log_id);
    put(&mut bytes, 48, &file_len.get().to_le_bytes());
    put(&mut bytes, 56, &file_len.get().to_le_bytes());
    for (index, (at, page)) in pages.iter().enumerate() {
        let descriptor = HEADER_BYTES + index * DESCRIPTOR_BYTES;
        put(&mut bytes, descriptor, &DATA_DESCRIPTOR);
        put(&mut bytes, descriptor + 4, &page[SECTOR - 4..]);
        put(&mut bytes, descriptor + 8, &page[..8]);
        put(&mut bytes, descriptor + 16, &at.get().to_le_bytes());
        put(&mut bytes, descriptor + 24, &sequence.to_le_bytes());
        let data = data_at + index * SECTOR;
        put(&mut bytes, data, &DATA_SECTOR);
        put(&mut bytes, data + 4, &((sequence >> 32) as u32).to_le_bytes());
        put(&mut bytes, data + 8, &page[8..SECTOR - 4]);
        put(&mut bytes, data + SECTOR - 4, &(sequence as u32).to_le_bytes());
    }
    let sum = checksum(&bytes, CHECKSUM_AT);
    put(&mut bytes, CHECKSUM_AT, &sum.to_le_bytes());
    bytes
}

/// A valid entry, as it lies in the log.
struct Entry {
    bytes: Vec<u8>,
    at: usize,
    tail: usize,
    sequence: u64,
}

/// Reads the log and finds out what it says. `Corrupt` where it holds no whole sequence of entries, or one that leads
/// astray; nothing is changed.
pub(super) fn read(file: &dyn StorageFile, log: Extent, log_id: [u8; 16]) -> Result<Replay> {
    let mut ring = vec![0; log.len().as_usize()];
    file.read_at(log.start(), &mut ring)?;
    let entries = entries(&ring, log_id);
    let mut heads: Vec<&Entry> = entries.values().collect();
    heads.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.sequence));
    let active = heads.into_iter().find_map(|head| sequence(&entries, head, ring.len()));
    let corrupt = |what: &str| Error::corrupt(format!("{}: its log {what}", file.name()));
    let active = active.ok_or_else(|| corrupt("is in use and holds nothing valid"))?;
    let mut replay = Replay { file_len: file.len()?, ..Replay::default() };
    for entry in active {
        let flushed = ByteLen::new(le64(&entry.bytes, 48));
        if flushed > file.len()? {
            return Err(corrupt("is of a longer file: this one was cut"));
        }
        let last = ByteLen::new(le64(&entry.bytes, 56));
        if last.get() > i64::MAX as u64 {
            return Err(corrupt("is of a file that cannot be"));
        }
        replay.file_len = replay.file_len.max(last);
        replay.add(entry).ok_or_else(|| corrupt("holds an entry that makes no sense"))?;
    }
    Ok(replay)
}

/// Every valid entry, by where it starts. Entries that overlap take time and memory without end: what they say they
/// have is bounded.
fn entries(ring: &[u8], log_id: [u8; 16]) -> HashMap<usize, Entry> {
    let mut budget = ring.len() * 8;
    let mut found = HashMap::new();
    for at in (0..ring.len()).step_by(SECTOR) {
        let Some(len) = entry_len(ring, at, log_id) else { continue };
        match budget.checked_sub(len) {
            Some(left) => budget = left,
            None => break,
        }
        if let Some(entry) = decode_entry(ring, at, len) {
            found.insert(at, entry);
        }
    }
    found
}

/// The entries from the head's tail up to the head, where they follow one another.
fn sequence<'a>(entries: &'a HashMap<usize, Entry>, head: &Entry, ring: usize) -> Option<Vec<&'a Entry>> {
    let mut found: Vec<&Entry> = Vec::new();
    let mut at = head.tail;
    loop {
        let entry = entries.get(&at)?;
        let follows = |last: &&Entry| last.sequence.checked_add(1) == Some(entry.sequence);
        if !found.last().is_none_or(follows) || found.len() > entries.len() {
            return None;
        }
        found.push(entry);
        if entry.at == head.at {
            return Some(found);
        }
        at = (at + entry.bytes.len()) % ring;
    }
}

/// How long the entry at `at` says that it is, if there may be one of ours.
fn entry_len(ring: &[u8], at: usize, log_id: [u8; 16]) -> Option<usize> {
    let header = ring.get(at..at + HEADER_BYTES)?;
    let len = ByteLen::new(u64::from(le32(header, 8))).as_usize();
    let fits = len >= SECTOR && len.is_multiple_of(SECTOR) && len <= ring.len();
    (header[..4] == ENTRY && header[32..48] == log_id && fits).then_some(len)
}

fn decode_entry(ring: &[u8], at: usize, len: usize) -> Option<Entry> {
    // An entry may go on at the ring's start.
    let first = &ring[at..(at + len).min(ring.len())];
    let bytes = [first, &ring[..len - first.len()]].concat();
    let tail = ByteLen::new(u64::from(le32(&bytes, 12))).as_usize();
    let descriptors = ByteLen::new(u64::from(le32(&bytes, 24))).as_usize();
    let right = le32(&bytes, CHECKSUM_AT) == checksum(&bytes, CHECKSUM_AT)
        && descriptors <= (len - HEADER_BYTES) / DESCRIPTOR_BYTES
        && tail.is_multiple_of(SECTOR)
        && tail < ring.len();
    right.then(|| Entry { at, tail, sequence: le64(&bytes, 16), bytes })
}

impl Replay {
    fn add(&mut self, entry: &Entry) -> Option<()> {
        let bytes = &entry.bytes;
        let descriptors = ByteLen::new(u64::from(le32(bytes, 24))).as_usize();
        let mut data_at = (HEADER_BYTES + descriptors * DESCRIPTOR_BYTES).next_multiple_of(SECTOR);
        for index in 0..descriptors {
            let descriptor = bytes.get(HEADER_BYTES + index * DESCRIPTOR_BYTES..)?.get(..DESCRIPTOR_BYTES)?;
            let at = le64(descriptor, 16);
            let aligned = at.is_multiple_of(SECTOR as u64) && at <= i64::MAX as u64;
            // The identifier never changes, and headers are what leads to the log.
            let allowed = at >= TABLE_STARTS[0].get();
            if !aligned || !allowed || le64(descriptor, 24) != entry.sequence {
                return None;
            }
            match &descriptor[..4] {
                kind if *kind == ZERO_DESCRIPTOR => self.add_zeroes(at, le64(descriptor, 8))?,
                kind if *kind == DATA_DESCRIPTOR => {
                    let page =
                        decode_page(descriptor, bytes.get(data_at..data_at + SECTOR)?, entry.sequence)?;
                    self.pages.insert(at, page);
                    data_at += SECTOR;
                }
                _ => return None,
            }
        }
        Some(())
    }

    fn add_zeroes(&mut self, at: u64, len: u64) -> Option<()> {
        if len == 0 {
            return Some(());
        }
        let extent = Extent::new(ByteOffset::new(at), ByteLen::new(len)).ok()?;
        if !len.is_multiple_of(SECTOR as u64) || extent.end().get() > i64::MAX as u64 {
            return None;
        }
        let covered: Vec<u64> = self.pages.range(at..extent.end().get()).map(|(at, _)| *at).collect();
        covered.iter().for_each(|at| drop(self.pages.remove(at)));
        self.zeroes.push(extent);
        Some(())
    }

    /// Makes the file what the log says, durably.
    pub(super) fn apply(&self, file: &dyn StorageFile) -> Result<()> {
        if self.file_len > file.len()? {
            file.set_len(self.file_len)?;
        }
        self.zeroes.iter().try_for_each(|extent| file.punch_hole(*extent))?;
        for (at, page) in &self.pages {
            file.write_at(ByteOffset::new(*at), &**page)?;
        }
        file.sync().map(drop)
    }
}

fn decode_page(descriptor: &[u8], sector: &[u8], sequence: u64) -> Option<Box<Page>> {
    let high = le32(sector, 4) == (sequence >> 32) as u32;
    let low = le32(sector, SECTOR - 4) == sequence as u32;
    if sector[..4] != DATA_SECTOR || !high || !low {
        return None;
    }
    let mut page = Box::new([0; SECTOR]);
    put(&mut *page, 0, &descriptor[8..16]);
    put(&mut *page, 8, &sector[8..SECTOR - 4]);
    put(&mut *page, SECTOR - 4, &descriptor[4..8]);
    Some(page)
}
