//! Which clusters of the file hold tables: no data may lie there, and no two of them in one place.

use super::super::bytes::be64;
use super::entry::L1Entry;
use super::header::{self, Header};
use super::refcounts::Refcounts;
use blocks::{BlockShift, ByteOffset, Error, Extent, Result, StorageFile};
use std::collections::BTreeSet;

/// The tables as they were found when the file was opened. What is added later lies behind all that was there.
pub(super) struct Structures {
    pub(super) l1: Vec<u64>,
    pub(super) counts: Refcounts,
    /// Numbers of the clusters, sorted.
    clusters: Vec<u64>,
    /// Those of the disk's L2 tables among them, sorted.
    l2_clusters: Vec<u64>,
    cluster: BlockShift,
}

impl Structures {
    /// Reads the L1 table and the refcount table, and checks where they lead.
    pub(super) fn read(file: &dyn StorageFile, header: &Header) -> Result<Structures> {
        let corrupt = |what: String| Error::corrupt(format!("{}: {what}", file.name()));
        let counts = Refcounts::read(file, header)?;
        let l1 = read_l1(file, header.l1_at, header.l1_entries)?;
        let file_end = file.len()?.end().align_up(header.cluster);
        let (mut clusters, mut l2_clusters) = (Vec::new(), Vec::new());
        for (_, extent) in header.structures()? {
            clusters.extend(extent.blocks(header.cluster));
        }
        for entry in &l1 {
            let decoded = L1Entry::decode(*entry, header).map_err(|error| error.context(file.name()))?;
            let Some(decoded) = decoded else { continue };
            if decoded.l2_at >= file_end {
                return Err(corrupt(format!("an L2 table at {} past the file's end", decoded.l2_at)));
            }
            l2_clusters.push(header.cluster.block_of(decoded.l2_at));
        }
        l2_clusters.sort_unstable();
        clusters.extend(&l2_clusters);
        clusters.extend(counts.table.iter().filter(|at| **at != 0).map(|at| at >> header.cluster.get()));
        clusters.sort_unstable();
        if let Some(pair) = clusters.windows(2).find(|pair| pair[0] == pair[1]) {
            let at = header.cluster.start_of(pair[0]);
            return Err(corrupt(format!("two of its tables lie at {at}")));
        }
        // Snapshots share L2 tables with the disk and with each other.
        let mut of_snapshots = BTreeSet::new();
        for (l1_at, entries) in header::read_snapshots(file, header)? {
            if let Ok(extent) = Extent::new(l1_at, blocks::ByteLen::new(u64::from(entries) * 8)) {
                of_snapshots.extend(extent.blocks(header.cluster));
            }
        }
        if let Some(table) = header::snapshot_table(file, header)? {
            of_snapshots.extend(table.blocks(header.cluster));
        }
        if let Some(both) = of_snapshots.iter().find(|cluster| clusters.binary_search(cluster).is_ok()) {
            let at = header.cluster.start_of(*both);
            return Err(corrupt(format!("a table of its snapshots lies on another one at {at}")));
        }
        clusters.extend(of_snapshots);
        clusters.sort_unstable();
        Ok(Structures { l1, counts, clusters, l2_clusters, cluster: header.cluster })
    }

    /// Refuses a snapshot's L2 table that lies on another table than one of the disk's L2 tables, which it may share.
    pub(super) fn check_l2(&self, l2_at: ByteOffset) -> Result<()> {
        let cluster = self.cluster.block_of(l2_at);
        let is_table = self.clusters.binary_search(&cluster).is_ok();
        if is_table && self.l2_clusters.binary_search(&cluster).is_err() {
            return Err(Error::corrupt(format!("an L2 table lies on another table at {l2_at}")));
        }
        Ok(())
    }

    /// Refuses a place of data that begins past the file's end or lies on a table.
    pub(super) fn check_place(&self, place: Extent, file_end: ByteOffset) -> Result<()> {
        if place.start() >= file_end {
            return Err(Error::corrupt(format!("its place, {place}, is past the file's end")));
        }
        let touched = place.blocks(self.cluster);
        let from = self.clusters.partition_point(|cluster| *cluster < touched.start);
        if self.clusters.get(from).is_some_and(|cluster| *cluster < touched.end) {
            return Err(Error::corrupt(format!("its place, {place}, lies on a table")));
        }
        Ok(())
    }
}

/// The entries of an L1 table, whose place was checked.
pub(super) fn read_l1(file: &dyn StorageFile, at: ByteOffset, entries: u32) -> Result<Vec<u64>> {
    let mut bytes = vec![0; blocks::ByteLen::new(u64::from(entries) * 8).as_usize()];
    file.read_at(at, &mut bytes)?;
    Ok(bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect())
}
