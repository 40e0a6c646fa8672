//! L1 and L2 entries.

use super::header::Header;
use blocks::{ByteLen, ByteOffset, Error, Extent, Result, SECTOR_BYTES};

/// Nobody else refers to the cluster, so it may be written in place.
pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Bit 0: the cluster reads as zeroes whatever it holds.
pub(super) const ZERO: u64 = 1;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits that version 3 reserves in an entry of an uncompressed cluster.
const RESERVED: u64 = !(COPIED | COMPRESSED | OFFSET_MASK | ZERO);

/// What an L2 entry says of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    /// The backing file's, or zeroes where there is none.
    Unallocated,
    /// Zeroes without a place.
    Zero,
    /// Zeroes, and a place of which the content does not count.
    ZeroAt { at: ByteOffset, copied: bool },
    /// In the file.
    Data { at: ByteOffset, copied: bool },
    /// Compressed bytes somewhere in the file.
    Compressed(Extent),
}

impl Cluster {
    /// Decodes an entry and checks what can be checked without the file.
    pub(super) fn decode(entry: u64, header: &Header) -> Result<Cluster> {
        if entry & COMPRESSED != 0 {
            return compressed(entry, header).map(Cluster::Compressed);
        }
        let at = ByteOffset::new(entry & OFFSET_MASK);
        let zero = entry & ZERO != 0;
        if entry & RESERVED != 0 || (zero && header.version < 3) {
            return Err(Error::corrupt(format!("an L2 entry {entry:#018x} with reserved bits")));
        }
        if !at.is_aligned(header.cluster) {
            return Err(Error::corrupt(format!("an L2 entry {entry:#018x} that leads between clusters")));
        }
        let copied = entry & COPIED != 0;
        Ok(match (at == ByteOffset::ZERO, zero) {
            (true, true) => Cluster::Zero,
            (true, false) if copied => {
                return Err(Error::corrupt("an L2 entry that leads to the header"));
            }
            (true, false) => Cluster::Unallocated,
            (false, true) => Cluster::ZeroAt { at, copied },
            (false, false) => Cluster::Data { at, copied },
        })
    }

    /// What the entry occupies in the file.
    pub(super) fn place(self, header: &Header) -> Option<Extent> {
        match self {
            Cluster::Unallocated | Cluster::Zero => None,
            Cluster::ZeroAt { at, .. } | Cluster::Data { at, .. } => {
                Extent::new(at, header.cluster.len()).ok()
            }
            Cluster::Compressed(extent) => Some(extent),
        }
    }
}

fn compressed(entry: u64, header: &Header) -> Result<Extent> {
    let size_bits = u64::from(header.cluster.get()) - 8;
    let offset_bits = 62 - size_bits;
    let at = entry & ((1 << offset_bits) - 1);
    let more_sectors = (entry >> offset_bits) & ((1 << size_bits) - 1);
    let len = (more_sectors + 1) * SECTOR_BYTES - at % SECTOR_BYTES;
    if entry & COPIED != 0 || at >= 1 << 56 {
        return Err(Error::corrupt(format!("an L2 entry {entry:#018x} of a compressed cluster")));
    }
    Ok(Extent::new(ByteOffset::new(at), ByteLen::new(len))?)
}

/// Where an L1 entry leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct L1Entry {
    pub(super) l2_at: ByteOffset,
    pub(super) copied: bool,
}

impl L1Entry {
    /// `None` where there is no L2 table.
    pub(super) fn decode(entry: u64, header: &Header) -> Result<Option<L1Entry>> {
        let l2_at = ByteOffset::new(entry & OFFSET_MASK);
        if entry & !(COPIED | OFFSET_MASK) != 0 || !l2_at.is_aligned(header.cluster) {
            return Err(Error::corrupt(format!("an L1 entry {entry:#018x}")));
        }
        let copied = entry & COPIED != 0;
        if l2_at == ByteOffset::ZERO {
            return if copied {
                Err(Error::corrupt("an L1 entry that leads to the header"))
            } else {
                Ok(None)
            };
        }
        Ok(Some(L1Entry { l2_at, copied }))
    }
}
