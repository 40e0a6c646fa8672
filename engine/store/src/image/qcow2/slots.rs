//! Room for new clusters at the end of the file.
//!
//! As with VHD, room is made ahead, many clusters at a time: cleared, counted (each cluster has one reference), and all
//! that synced *before* any table leads there. From then on tables and data may reach the medium in any order: whatever
//! is missing reads as zeroes, which is what an unallocated cluster holds. A crash leaves at worst clusters that are
//! counted and not used, which `check` reports; closing gives them back.

use super::super::bytes::put;
use super::header::TABLE_OFFSET_AT;
use super::refcounts::Refcounts;
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile};
use std::ops::Range;

/// Room is made for an eighth of what the file has, within these bounds in bytes.
const GROWTH_BYTES: Range<u64> = 2 << 20..64 << 20;
/// Host offsets have 56 bits.
const FILE_BYTES_MAX: u64 = 1 << 56;
/// QEMU's bound for a refcount table.
const TABLE_BYTES_MAX: u64 = 8 << 20;

/// Where new clusters go.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) counts: Refcounts,
    /// The next cluster to hand out.
    next: u64,
    /// Up to here clusters are zero and counted, both on the medium.
    ready_end: u64,
}

impl Slots {
    /// Nothing is ready: new clusters begin where the file ends.
    pub(super) fn new(counts: Refcounts, file_len: ByteLen) -> Slots {
        let next = file_len.blocks(counts.cluster);
        Slots { counts, next, ready_end: next }
    }

    /// Takes up to `wanted` clusters that follow one another; at least one.
    pub(super) fn take(&mut self, file: &dyn StorageFile, wanted: u64) -> Result<Range<u64>> {
        if self.next == self.ready_end {
            let bytes =
                (self.next * self.counts.cluster.bytes() / 8).clamp(GROWTH_BYTES.start, GROWTH_BYTES.end);
            self.make_ready(file, bytes / self.counts.cluster.bytes())?;
        }
        let taken = self.next..(self.next + wanted.max(1)).min(self.ready_end);
        self.next = taken.end;
        Ok(taken)
    }

    /// Puts every block of counts, and the table that leads to them, into the file again as they are: what an earlier
    /// opening could not sync may be in the cache only, and marked as clean there.
    pub(super) fn rewrite(&self, file: &dyn StorageFile) -> Result<()> {
        let mut bytes = vec![0; self.counts.cluster.len().as_usize()];
        for at in self.counts.table.iter().filter(|at| **at != 0).map(|at| ByteOffset::new(*at)) {
            file.read_at(at, &mut bytes)?;
            file.write_at(at, &bytes)?;
        }
        file.write_at(self.counts.table_at, &encode_table(&self.counts.table))
    }

    /// Gives back what was made ready and not taken. Nothing leads there, so the order does not matter.
    pub(super) fn trim(&mut self, file: &dyn StorageFile) -> Result<()> {
        if self.next == self.ready_end {
            return Ok(());
        }
        self.counts.set(file, self.next..self.ready_end, 0)?;
        self.ready_end = self.next;
        file.set_len(ByteLen::new(self.next * self.counts.cluster.bytes()))
    }

    /// Makes `wanted` clusters ready, with what is needed to count them before them.
    fn make_ready(&mut self, file: &dyn StorageFile, wanted: u64) -> Result<()> {
        let first = self.next;
        let (table_clusters, blocks) = self.plan(first, wanted);
        let end = first + table_clusters + blocks.len() as u64 + wanted;
        let cluster_bytes = self.counts.cluster.bytes();
        let end_bytes = end.checked_mul(cluster_bytes).filter(|bytes| *bytes <= FILE_BYTES_MAX);
        let (Some(end_bytes), true) = (end_bytes, table_clusters * cluster_bytes <= TABLE_BYTES_MAX) else {
            let context = format!("{}: the file cannot grow any further", file.name());
            return Err(Error::new(ErrorKind::NoSpace, context));
        };
        let start = self.counts.cluster.start_of(first);
        if let Some(remains) = Extent::between(start, file.len()?.end()) {
            file.punch_hole(remains)?;
        }
        file.set_len(ByteLen::new(end_bytes))?;
        let block_places = first + table_clusters..first + table_clusters + blocks.len() as u64;
        let mut counts = self.counts.clone();
        if table_clusters > 0 {
            let entries = ByteLen::new(table_clusters * cluster_bytes / 8).as_usize();
            counts.table.resize(entries.max(counts.table.len()), 0);
            counts.table_at = start;
        }
        self.counts.set(file, first..end, 1)?;
        for (block, place) in blocks.iter().zip(block_places) {
            let base = block * counts.per_block();
            let ones = first.max(base) - base..end.min(base + counts.per_block()) - base;
            file.write_at(counts.cluster.start_of(place), &counts.encode_block(ones))?;
            let index = ByteLen::new(*block).as_usize();
            counts.table[index] = counts.cluster.start_of(place).get();
        }
        if table_clusters > 0 {
            file.write_at(counts.table_at, &encode_table(&counts.table))?;
        }
        file.sync()?;
        self.link(file, &counts, &blocks, table_clusters)?;
        self.counts = counts;
        self.next = end - wanted;
        self.ready_end = end;
        Ok(())
    }

    /// How many clusters a larger table takes (0 where the one there is large enough), and the numbers of the blocks of
    /// counts that are missing, for `wanted` clusters behind them.
    fn plan(&self, first: u64, wanted: u64) -> (u64, Vec<u64>) {
        let cluster_bytes = self.counts.cluster.bytes();
        let (mut table_clusters, mut missing) = (0, Vec::new());
        loop {
            let end = first + table_clusters + missing.len() as u64 + wanted;
            let blocks = self.counts.blocks_of(&(first..end));
            let needed = match blocks.end > self.counts.table.len() as u64 {
                true => (blocks.end * 2 * 8).div_ceil(cluster_bytes),
                false => 0,
            };
            let now: Vec<u64> = blocks.filter(|block| self.counts.block_at(*block).is_none()).collect();
            if needed <= table_clusters && now.len() <= missing.len() {
                return (table_clusters, now);
            }
            (table_clusters, missing) = (needed.max(table_clusters), now);
        }
    }

    /// Makes new blocks of counts, or a whole new table, be found. What they lead to is on the medium.
    fn link(
        &self,
        file: &dyn StorageFile,
        counts: &Refcounts,
        blocks: &[u64],
        table_clusters: u64,
    ) -> Result<()> {
        if table_clusters > 0 {
            let mut field = [0; 12];
            put(&mut field, 0, &counts.table_at.get().to_be_bytes());
            let clusters = u32::try_from(table_clusters).expect("a table has at most 8 MiB");
            put(&mut field, 8, &clusters.to_be_bytes());
            file.write_at(ByteOffset::new(TABLE_OFFSET_AT), &field)?;
            file.sync()?;
            let old = counts.cluster.block_of(self.counts.table_at);
            let old_clusters = (self.counts.table.len() as u64 * 8).div_ceil(counts.cluster.bytes());
            return counts.release(file, old..old + old_clusters);
        }
        if blocks.is_empty() {
            return Ok(());
        }
        for block in blocks {
            let entry = counts.block_at(*block).map_or(0, ByteOffset::get);
            file.write_at(counts.table_at + ByteLen::new(block * 8), &entry.to_be_bytes())?;
        }
        file.sync().map(drop)
    }
}

/// The bytes of a refcount table.
pub(super) fn encode_table(table: &[u64]) -> Vec<u8> {
    table.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}
