//! A QCOW2 that is made while it is read.
//!
//! ```text
//! cluster 0   header
//! then        refcount table, blocks of counts, L1 table, L2 tables of the spans with data, clusters with data
//! ```
//!
//! Every cluster of the file is used once, so every count is 1.

use super::super::shown::{AllocatedBlocks, Entries, Part};
use super::{CLUSTER, SPAN, new_header};
use blocks::{ByteOffset, Result, Volume};

/// "Used by nobody else": what others may write without copying.
const COPIED: u64 = 1 << 63;
const COUNTS_A_BLOCK: u64 = CLUSTER.bytes() / 2;
const ENTRIES_A_TABLE: u64 = CLUSTER.bytes() / 8;

/// How many clusters of each kind there are, in their order.
struct Clusters {
    refcount_table: u64,
    counts: u64,
    l1: u64,
    l2: u64,
    data: u64,
}

impl Clusters {
    /// As many counts as the file has clusters, those of the counts included.
    fn of(l1: u64, l2: u64, data: u64) -> Clusters {
        let mut clusters = Clusters { refcount_table: 1, counts: 1, l1, l2, data };
        loop {
            let counts = clusters.all().div_ceil(COUNTS_A_BLOCK);
            let refcount_table = counts.div_ceil(ENTRIES_A_TABLE);
            if (counts, refcount_table) == (clusters.counts, clusters.refcount_table) {
                return clusters;
            }
            (clusters.counts, clusters.refcount_table) = (counts, refcount_table);
        }
    }

    fn all(&self) -> u64 {
        self.data_at() + self.data
    }

    fn counts_at(&self) -> u64 {
        1 + self.refcount_table
    }

    fn l1_at(&self) -> u64 {
        self.counts_at() + self.counts
    }

    fn l2_at(&self) -> u64 {
        self.l1_at() + self.l1
    }

    fn data_at(&self) -> u64 {
        self.l2_at() + self.l2
    }
}

/// Its parts; the caller has checked the length.
pub(in crate::image) fn show(disk: &dyn Volume) -> Result<(AllocatedBlocks, Vec<Part>)> {
    let allocated = AllocatedBlocks::of(disk, CLUSTER)?;
    let spans = allocated.grouped(SPAN, disk.len());
    let mut header = new_header(disk.len());
    let clusters = Clusters::of(header.l1_len().blocks(CLUSTER), spans.count(), allocated.count());
    header.refcount_table_at = CLUSTER.start_of(1);
    header.refcount_table_clusters = u32::try_from(clusters.refcount_table).expect("the length was checked");
    header.l1_at = CLUSTER.start_of(clusters.l1_at());
    let place = |first: u64, index: u64| CLUSTER.start_of(first + index).get();
    let table = |first: u64, clusters: u64, entries, entry| {
        Part::table(CLUSTER.start_of(first), clusters * CLUSTER.bytes(), entries, entry)
    };
    let (counts_at, counts, all) = (clusters.counts_at(), clusters.counts, clusters.all());
    let (l2_at, data_at) = (clusters.l2_at(), clusters.data_at());
    let spans = std::sync::Arc::new(spans);
    let in_l1 = {
        let spans = spans.clone();
        move |_: &AllocatedBlocks, span: u64| {
            spans.index_of(span).map_or(0, |index| place(l2_at, index) | COPIED)
        }
    };
    let in_l2 = move |allocated: &AllocatedBlocks, entry: u64| {
        let cluster = spans.at(entry / ENTRIES_A_TABLE) * ENTRIES_A_TABLE + entry % ENTRIES_A_TABLE;
        allocated.index_of(cluster).map_or(0, |index| place(data_at, index) | COPIED)
    };
    let blocks_of_counts =
        move |_: &AllocatedBlocks, block: u64| if block < counts { place(counts_at, block) } else { 0 };
    let parts = vec![
        Part::bytes(ByteOffset::ZERO, header.encode_new()),
        table(1, clusters.refcount_table, Entries::Be64, Box::new(blocks_of_counts)),
        table(counts_at, counts, Entries::Be16, Box::new(move |_, cluster| u64::from(cluster < all))),
        table(clusters.l1_at(), clusters.l1, Entries::Be64, Box::new(in_l1)),
        table(l2_at, clusters.l2, Entries::Be64, Box::new(in_l2)),
        Part::blocks(CLUSTER.start_of(data_at), &allocated, Vec::new()),
    ];
    Ok((allocated, parts))
}

const _: () = assert!(SPAN.bytes() == CLUSTER.bytes() * ENTRIES_A_TABLE);
