//! QCOW2, after QEMU's docs/interop/qcow2.rst: versions 2 and 3.
//!
//! ```text
//! cluster 0   header
//! 1           refcount table: where the blocks of counts are
//! 2           the first block of counts, 2 bytes for each cluster of the file
//! 3           L1 table: where the L2 tables are; 8 bytes for each 512 MiB of the disk
//! then        in the order of allocation: L2 tables (8 bytes for each cluster of the disk), data, more counts
//! ```
//!
//! Everything is big-endian. docs/formats/images.md says what we write and why.

mod check;
mod compressed;
mod disk;
mod entry;
mod header;
mod refcounts;
mod resize;
mod shown;
mod slots;
mod structures;

use super::bytes::put;
use blocks::{BlockShift, ByteLen, ByteOffset, Result, StorageFile};
use header::{Compression, Header};
use refcounts::Refcounts;

pub(super) use check::check;
pub(super) use disk::Qcow2Disk;
pub(super) use resize::{resize, room};
pub(super) use shown::show;

/// The largest disk that we make: 2 PiB, whose L1 table has the 32 MiB that QEMU allows.
pub(super) const LEN_MAX: ByteLen = ByteLen::new(1 << 51);
/// The cluster size of every common writer, and ours.
const CLUSTER: BlockShift = BlockShift::KIB_64;
/// What one L2 table leads to.
const SPAN: BlockShift = BlockShift::new(29).expect("512 MiB is a block size");
const AUTOCLEAR_AT: ByteOffset = ByteOffset::new(88);

/// What a file says of itself before anything else of it is read.
pub(super) struct Opened {
    header: Header,
}

impl Opened {
    /// The backing file's name and format, as they are written in the file.
    pub(super) fn backing(&self) -> Option<(&str, Option<&str>)> {
        self.header.backing.as_deref().map(|name| (name, self.header.backing_format.as_deref()))
    }
}

/// Whether the magic stands at the start.
pub(super) fn looks_like(file: &dyn StorageFile) -> Result<bool> {
    let mut magic = [0; 4];
    if file.len()? < ByteLen::of(&magic) {
        return Ok(false);
    }
    file.read_at(ByteOffset::ZERO, &mut magic)?;
    Ok(magic == header::MAGIC)
}

/// Reads and checks the header.
pub(super) fn open(file: &dyn StorageFile) -> Result<Opened> {
    Ok(Opened { header: Header::read(file)? })
}

/// The header of a new disk of version 3. The caller has checked the length.
fn new_header(len: ByteLen) -> Header {
    Header {
        version: 3,
        cluster: CLUSTER,
        len,
        l1_at: CLUSTER.start_of(3),
        l1_entries: u32::try_from(len.blocks(SPAN)).expect("the length was checked"),
        refcount_table_at: CLUSTER.start_of(1),
        refcount_table_clusters: 1,
        refcount_order: 4,
        snapshots: 0,
        snapshots_at: ByteOffset::ZERO,
        backing: None,
        backing_format: None,
        compression: Compression::Deflate,
        dirty: false,
        corrupt: false,
        autoclear: 0,
    }
}

/// Writes an empty QCOW2 of version 3 into an empty file and syncs it. The caller has checked the length.
pub(super) fn create(file: &dyn StorageFile, len: ByteLen) -> Result<()> {
    let header = new_header(len);
    let l1_clusters = header.l1_len().blocks(CLUSTER);
    let used = 3 + l1_clusters;
    let counts_at = CLUSTER.start_of(2);
    let counts = Refcounts::new(&header, vec![counts_at.get()]);
    file.set_len(CLUSTER.start_of(used) - ByteOffset::ZERO)?;
    file.write_at(counts_at, &counts.encode_block(0..used))?;
    file.write_at(header.refcount_table_at, &counts_at.get().to_be_bytes())?;
    let mut bytes = [0; 512];
    put(&mut bytes, 0, &header.encode_new());
    file.write_at(ByteOffset::ZERO, &bytes)?;
    file.sync().map(drop)
}

#[cfg(test)]
#[path = "qcow2_tests.rs"]
mod tests;
