//! Reference counts: for each cluster of the file, how many tables lead to it.
//!
//! Counts are read and written in the file itself; they are touched only where room is made, where a cluster is given
//! back, and by `check`. Only the table that leads to the blocks of counts is kept in memory.

use super::super::bytes::be64;
use super::header::Header;
use blocks::{BlockShift, ByteLen, ByteOffset, Error, Result, StorageFile};
use std::ops::Range;

const OFFSET_MASK: u64 = !0x1ff;

/// The refcount table, and how blocks of counts look.
#[derive(Debug, Clone)]
pub(super) struct Refcounts {
    pub(super) table_at: ByteOffset,
    /// Where each block of counts is; 0 for one that is all zeroes.
    pub(super) table: Vec<u64>,
    pub(super) cluster: BlockShift,
    order: u32,
}

impl Refcounts {
    /// Reads the table and checks that every block of counts is a cluster of the file.
    pub(super) fn read(file: &dyn StorageFile, header: &Header) -> Result<Refcounts> {
        let file_len = file.len()?;
        let end = header.refcount_table_at + header.refcount_table_len();
        // A table in the last clusters of the file may be cut where only zeroes follow.
        let present = end.min(file_len.end()) - header.refcount_table_at;
        let mut bytes = vec![0; header.refcount_table_len().as_usize()];
        file.read_at(header.refcount_table_at, &mut bytes[..present.as_usize()])?;
        let table: Vec<u64> = bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect();
        let astray = table.iter().find(|entry| {
            let at = ByteOffset::new(**entry);
            **entry != 0 && (!at.is_aligned(header.cluster) || at >= file_len.end())
        });
        if let Some(entry) = astray {
            let name = file.name();
            return Err(Error::corrupt(format!("{name}: a block of reference counts at {entry}")));
        }
        let (table_at, cluster, order) = (header.refcount_table_at, header.cluster, header.refcount_order);
        Ok(Refcounts { table_at, table, cluster, order })
    }

    /// The table of an empty file that is being made.
    pub(super) fn new(header: &Header, table: Vec<u64>) -> Refcounts {
        let (table_at, cluster, order) = (header.refcount_table_at, header.cluster, header.refcount_order);
        Refcounts { table_at, table, cluster, order }
    }

    /// How many clusters one block counts.
    pub(super) fn per_block(&self) -> u64 {
        (self.cluster.bytes() * 8) >> self.order
    }

    /// The largest count.
    pub(super) fn max(&self) -> u64 {
        match self.order {
            6 => u64::MAX,
            order => (1 << (1 << order)) - 1,
        }
    }

    /// Where the block of counts number `block` is.
    pub(super) fn block_at(&self, block: u64) -> Option<ByteOffset> {
        let entry = self.table.get(usize::try_from(block).ok()?)? & OFFSET_MASK;
        (entry != 0).then(|| ByteOffset::new(entry))
    }

    /// The numbers of the blocks that count these clusters.
    pub(super) fn blocks_of(&self, clusters: &Range<u64>) -> Range<u64> {
        clusters.start / self.per_block()..clusters.end.div_ceil(self.per_block())
    }

    /// Gives every cluster of the range the same count. Ranges without a block of counts are left out.
    pub(super) fn set(&self, file: &dyn StorageFile, clusters: Range<u64>, count: u64) -> Result<()> {
        self.change(file, clusters, |_| Some(count))
    }

    /// One reference less for each cluster of the range; 0 stays 0.
    pub(super) fn release(&self, file: &dyn StorageFile, clusters: Range<u64>) -> Result<()> {
        self.change(file, clusters, |count| count.checked_sub(1))
    }

    /// The counts of a whole block.
    pub(super) fn read_block(&self, file: &dyn StorageFile, at: ByteOffset) -> Result<Vec<u64>> {
        let mut bytes = vec![0; self.cluster.len().as_usize()];
        file.read_at(at, &mut bytes)?;
        Ok((0..self.per_block()).map(|index| self.decode(&bytes, index)).collect())
    }

    /// The bytes of a block in which the clusters of `ones`, counted from the block's first, have count 1.
    pub(super) fn encode_block(&self, ones: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; self.cluster.len().as_usize()];
        ones.for_each(|index| self.encode(&mut bytes, index, 1));
        bytes
    }

    /// Asks `change` for the new count of each cluster and writes what has changed, block by block.
    fn change(
        &self,
        file: &dyn StorageFile,
        clusters: Range<u64>,
        mut change: impl FnMut(u64) -> Option<u64>,
    ) -> Result<()> {
        for block in self.blocks_of(&clusters) {
            let Some(block_at) = self.block_at(block) else { continue };
            let base = block * self.per_block();
            let first = clusters.start.max(base) - base;
            let after = (clusters.end - base).min(self.per_block());
            // Whole bytes, where counts are smaller than one.
            let start_byte = (first << self.order) / 8;
            let end_byte = (after << self.order).div_ceil(8);
            let skipped = (start_byte * 8) >> self.order;
            let mut bytes = vec![0; ByteLen::new(end_byte - start_byte).as_usize()];
            let at = block_at + ByteLen::new(start_byte);
            file.read_at(at, &mut bytes)?;
            let mut changed = false;
            for index in first..after {
                if let Some(count) = change(self.decode(&bytes, index - skipped)) {
                    self.encode(&mut bytes, index - skipped, count);
                    changed = true;
                }
            }
            if changed {
                file.write_at(at, &bytes)?;
            }
        }
        Ok(())
    }

    fn decode(&self, bytes: &[u8], index: u64) -> u64 {
        let index = ByteLen::new(index).as_usize();
        if self.order < 3 {
            let bits = 1 << self.order;
            let per_byte = 8 / bits;
            let shift = index % per_byte * bits;
            return u64::from(bytes[index / per_byte] >> shift) & self.max();
        }
        let width = 1 << (self.order - 3);
        bytes[index * width..(index + 1) * width]
            .iter()
            .fold(0, |number, byte| (number << 8) | u64::from(*byte))
    }

    fn encode(&self, bytes: &mut [u8], index: u64, count: u64) {
        let index = ByteLen::new(index).as_usize();
        if self.order < 3 {
            let bits = 1 << self.order;
            let per_byte = 8 / bits;
            let shift = index % per_byte * bits;
            let mask = ((1_u16 << bits) - 1) as u8;
            let byte = &mut bytes[index / per_byte];
            *byte = (*byte & !(mask << shift)) | (((count & u64::from(mask)) as u8) << shift);
            return;
        }
        let width = 1 << (self.order - 3);
        bytes[index * width..(index + 1) * width].copy_from_slice(&count.to_be_bytes()[8 - width..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::CrashStorage;
    use blocks::{OpenMode, Storage};

    #[test]
    fn counts_of_every_width_are_set_and_released_without_touching_their_neighbours() {
        for order in 0..=6 {
            let storage = CrashStorage::new();
            let file = storage.open("counts", OpenMode::CreateNew).unwrap();
            file.set_len(ByteLen::new(4096)).unwrap();
            let cluster = BlockShift::SECTOR;
            let counts =
                Refcounts { table_at: ByteOffset::ZERO, table: vec![512, 1024, 0, 2048], cluster, order };
            let per_block = counts.per_block();
            counts.set(&*file, 3..per_block + 5, 1).unwrap();
            counts.set(&*file, 7..8, counts.max()).unwrap();
            counts.release(&*file, 6..9).unwrap();
            let first = counts.read_block(&*file, ByteOffset::new(512)).unwrap();
            assert_eq!(first.len() as u64, per_block);
            assert_eq!(first[..10], [0, 0, 0, 1, 1, 1, 0, counts.max() - 1, 0, 1], "order {order}");
            assert!(first[10..].iter().all(|count| *count == 1));
            let second = counts.read_block(&*file, ByteOffset::new(1024)).unwrap();
            assert_eq!(second.iter().sum::<u64>(), 5);
            assert_eq!(second[..5], [1; 5]);
        }
    }
}
