//! A bounded cache of tables that lead to data: QCOW2's L2 tables, VHDX's block allocation table, VMDK's grain tables.
//!
//! A table is read when it is first asked for and kept while there is room. Reading one and changing one exclude each
//! other, so what is cached is always what the file holds. Whoever looks an entry up takes no lock but for the moment
//! in which it finds the table.

use blocks::{ByteLen, ByteOffset, Result, StorageFile};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Tables of different places seldom meet on one lock.
const STRIPES: usize = 16;

/// How an entry is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryCodec {
    /// Eight bytes, big-endian.
    Be64,
    /// Eight bytes, little-endian.
    Le64,
    /// Four bytes, little-endian.
    Le32,
}

impl EntryCodec {
    /// The bytes of one entry.
    pub(super) const fn bytes(self) -> u64 {
        match self {
            EntryCodec::Be64 | EntryCodec::Le64 => 8,
            EntryCodec::Le32 => 4,
        }
    }

    fn decode(self, bytes: &[u8]) -> u64 {
        match self {
            EntryCodec::Be64 => super::bytes::be64(bytes, 0),
            EntryCodec::Le64 => super::bytes::le64(bytes, 0),
            EntryCodec::Le32 => u64::from(super::bytes::le32(bytes, 0)),
        }
    }

    /// Appends the entry's bytes.
    pub(super) fn encode(self, entry: u64, to: &mut Vec<u8>) {
        match self {
            EntryCodec::Be64 => to.extend_from_slice(&entry.to_be_bytes()),
            EntryCodec::Le64 => to.extend_from_slice(&entry.to_le_bytes()),
            EntryCodec::Le32 => to.extend_from_slice(&entry.to_le_bytes()[..4]),
        }
    }
}

/// One table in memory.
#[derive(Debug)]
pub(super) struct Table {
    entries: Vec<AtomicU64>,
    used: AtomicBool,
}

impl Table {
    fn new(entries: impl Iterator<Item = u64>) -> Table {
        Table { entries: entries.map(AtomicU64::new).collect(), used: AtomicBool::new(true) }
    }

    /// The entry of that number; 0 past the table's end.
    pub(super) fn get(&self, index: usize) -> u64 {
        self.entries.get(index).map_or(0, |entry| entry.load(Ordering::Acquire))
    }

    /// All entries as the file has them.
    pub(super) fn encode(&self, codec: EntryCodec) -> Vec<u8> {
        let mut bytes = Vec::new();
        for entry in &self.entries {
            codec.encode(entry.load(Ordering::Acquire), &mut bytes);
        }
        bytes
    }
}

type Stripe = HashMap<ByteOffset, Arc<Table>>;

/// The cache.
#[derive(Debug)]
pub(super) struct TableCache {
    stripes: Vec<RwLock<Stripe>>,
    tables_max: usize,
    entries: usize,
    codec: EntryCodec,
}

impl TableCache {
    /// A cache of tables of so many entries that takes about `memory` at most.
    pub(super) fn new(entries: usize, codec: EntryCodec, memory: ByteLen) -> TableCache {
        let table_bytes = entries.max(1) * std::mem::size_of::<u64>();
        let tables_max = (memory.as_usize() / table_bytes / STRIPES).max(2);
        let stripes = (0..STRIPES).map(|_| RwLock::default()).collect();
        TableCache { stripes, tables_max, entries, codec }
    }

    /// The table that starts at `at`.
    pub(super) fn get(&self, file: &dyn StorageFile, at: ByteOffset) -> Result<Arc<Table>> {
        let stripe = self.stripe(at);
        if let Some(table) = reading(stripe).get(&at) {
            table.used.store(true, Ordering::Relaxed);
            return Ok(Arc::clone(table));
        }
        self.load(file, at, &mut writing(stripe))
    }

    /// Notes a table that is all zeroes in the file.
    pub(super) fn insert_empty(&self, at: ByteOffset) {
        let table = Table::new(std::iter::repeat_n(0, self.entries));
        self.insert(&mut writing(self.stripe(at)), at, Arc::new(table));
    }

    /// Changes the entries from `first` on: first in the file, then for readers.
    pub(super) fn set(
        &self,
        file: &dyn StorageFile,
        at: ByteOffset,
        first: usize,
        entries: &[u64],
    ) -> Result<()> {
        let mut stripe = writing(self.stripe(at));
        let table = self.load(file, at, &mut stripe)?;
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| self.codec.encode(*entry, &mut bytes));
        file.write_at(at + ByteLen::new(first as u64 * self.codec.bytes()), &bytes)?;
        for (slot, entry) in table.entries.iter().skip(first).zip(entries) {
            slot.store(*entry, Ordering::Release);
        }
        Ok(())
    }

    /// Writes the whole table again, as it is.
    pub(super) fn rewrite(&self, file: &dyn StorageFile, at: ByteOffset) -> Result<()> {
        let mut stripe = writing(self.stripe(at));
        let table = self.load(file, at, &mut stripe)?;
        file.write_at(at, &table.encode(self.codec))
    }

    fn load(&self, file: &dyn StorageFile, at: ByteOffset, stripe: &mut Stripe) -> Result<Arc<Table>> {
        if let Some(table) = stripe.get(&at) {
            return Ok(Arc::clone(table));
        }
        let width = ByteLen::new(self.codec.bytes()).as_usize();
        let mut bytes = vec![0; self.entries * width];
        file.read_at(at, &mut bytes)?;
        let table = Arc::new(Table::new(bytes.chunks_exact(width).map(|entry| self.codec.decode(entry))));
        self.insert(stripe, at, Arc::clone(&table));
        Ok(table)
    }

    /// Makes room by the clock's rule: what was used since the last look stays once more.
    fn insert(&self, stripe: &mut Stripe, at: ByteOffset, table: Arc<Table>) {
        while stripe.len() >= self.tables_max {
            let idle = stripe.iter().find(|(_, table)| !table.used.swap(false, Ordering::Relaxed));
            let Some(idle) = idle.map(|(at, _)| *at).or_else(|| stripe.keys().next().copied()) else { break };
            stripe.remove(&idle);
        }
        stripe.insert(at, table);
    }

    fn stripe(&self, at: ByteOffset) -> &RwLock<Stripe> {
        let mixed = at.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
        &self.stripes[ByteLen::new(mixed).as_usize() % STRIPES]
    }
}

fn reading(stripe: &RwLock<Stripe>) -> RwLockReadGuard<'_, Stripe> {
    stripe.read().unwrap_or_else(PoisonError::into_inner)
}

fn writing(stripe: &RwLock<Stripe>) -> RwLockWriteGuard<'_, Stripe> {
    stripe.write().unwrap_or_else(PoisonError::into_inner)
}
