//! The header: what disk the file holds, and where its tables are.

use super::super::bytes::{be16, be32, be64, put};
use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile};

pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
pub(super) const TABLE_OFFSET_AT: u64 = 48;
const V2_BYTES: usize = 72;
const V3_BYTES: usize = 104;
/// What we write: version 3 with the field for the compression's kind.
const OUR_BYTES: usize = 112;
/// The longest name of a backing file that the specification allows.
const BACKING_NAME_MAX: usize = 1023;
/// QEMU's bound for an L1 table, and ours.
const L1_BYTES_MAX: u64 = 32 << 20;
/// QEMU's bound for a refcount table, and ours.
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
/// QEMU's bound for the number of internal snapshots, and ours.
const SNAPSHOTS_MAX: u32 = 65536;
/// What fits into an L1 table depends on the size of clusters; past this nothing is believed.
const LEN_MAX: ByteLen = ByteLen::new(1 << 61);
const CLUSTER_SHIFTS: std::ops::RangeInclusive<u32> = 9..=21;
const BACKING_FORMAT_EXTENSION: u32 = 0xe279_2aca;

/// Bits of the incompatible features.
mod incompatible {
    pub(super) const DIRTY: u64 = 1;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
    pub(super) const COMPRESSION: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
}

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Deflate,
    Zstd,
}

/// A checked header.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster: BlockShift,
    pub(super) len: ByteLen,
    pub(super) l1_at: ByteOffset,
    pub(super) l1_entries: u32,
    pub(super) refcount_table_at: ByteOffset,
    pub(super) refcount_table_clusters: u32,
    /// log2 of the bits of a reference count.
    pub(super) refcount_order: u32,
    pub(super) snapshots: u32,
    pub(super) snapshots_at: ByteOffset,
    pub(super) backing: Option<String>,
    pub(super) backing_format: Option<String>,
    pub(super) compression: Compression,
    /// Somebody died while reference counts were out of date.
    pub(super) dirty: bool,
    /// Somebody has found it damaged.
    pub(super) corrupt: bool,
    /// Features that whoever does not know them must switch off before writing.
    pub(super) autoclear: u64,
}

impl Header {
    /// How many clusters hold the disk.
    pub(super) fn guest_clusters(&self) -> u64 {
        self.len.blocks(self.cluster)
    }

    /// How many entries an L2 table has.
    pub(super) fn l2_entries(&self) -> u64 {
        self.cluster.bytes() / 8
    }

    /// The bytes of the L1 table.
    pub(super) fn l1_len(&self) -> ByteLen {
        ByteLen::new(u64::from(self.l1_entries) * 8)
    }

    /// The bytes of the refcount table.
    pub(super) fn refcount_table_len(&self) -> ByteLen {
        ByteLen::new(u64::from(self.refcount_table_clusters) << self.cluster.get())
    }

    /// The header of a new disk, version 3, padded to a sector.
    pub(super) fn encode_new(&self) -> [u8; 512] {
        let mut bytes = [0; 512];
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 4, &self.version.to_be_bytes());
        put(&mut bytes, 20, &u32::from(self.cluster.get()).to_be_bytes());
        put(&mut bytes, 24, &self.len.get().to_be_bytes());
        put(&mut bytes, 36, &self.l1_entries.to_be_bytes());
        put(&mut bytes, 40, &self.l1_at.get().to_be_bytes());
        put(&mut bytes, 48, &self.refcount_table_at.get().to_be_bytes());
        put(&mut bytes, 56, &self.refcount_table_clusters.to_be_bytes());
        put(&mut bytes, 96, &self.refcount_order.to_be_bytes());
        put(&mut bytes, 100, &(OUR_BYTES as u32).to_be_bytes());
        bytes
    }

    /// Reads and checks the header. `Corrupt` and `Unsupported` name the file.
    pub(super) fn read(file: &dyn StorageFile) -> Result<Header> {
        let file_len = file.len()?;
        let mut bytes = vec![0; file_len.as_usize().min(64 << 10)];
        file.read_at(ByteOffset::ZERO, &mut bytes)?;
        let header = decode(&bytes).and_then(|header| {
            header.check_tables(file_len)?;
            Ok(header)
        });
        header.map_err(|error| error.context(file.name()))
    }

    /// The header's clusters and those of the tables that it names, which must lie in the file and apart.
    pub(super) fn structures(&self) -> Result<Vec<(&'static str, Extent)>> {
        let cluster = self.cluster;
        let mut found = vec![("the header", Extent::new(ByteOffset::ZERO, cluster.len())?)];
        if self.l1_entries > 0 {
            found.push(("the L1 table", Extent::new(self.l1_at, self.l1_len())?.align_out(cluster)));
        }
        found.push(("the refcount table", Extent::new(self.refcount_table_at, self.refcount_table_len())?));
        Ok(found)
    }

    fn check_tables(&self, file_len: ByteLen) -> Result<()> {
        let offsets = [self.l1_at, self.refcount_table_at, self.snapshots_at];
        if offsets.iter().any(|at| !at.is_aligned(self.cluster) || at.get() >= 1 << 56) {
            return Err(Error::corrupt("a table does not start at a cluster"));
        }
        let l1_wanted = self.guest_clusters().div_ceil(self.l2_entries());
        if u64::from(self.l1_entries) < l1_wanted || self.l1_len().get() > L1_BYTES_MAX {
            let context = format!("an L1 table of {} entries where {l1_wanted} are needed", self.l1_entries);
            return Err(Error::corrupt(context));
        }
        if self.refcount_table_clusters == 0 || self.refcount_table_len().get() > REFCOUNT_TABLE_BYTES_MAX {
            let context = format!("a refcount table of {} clusters", self.refcount_table_clusters);
            return Err(Error::corrupt(context));
        }
        let l1_end = self.l1_at + self.l1_len();
        let table_end = self.refcount_table_at + self.refcount_table_len();
        if l1_end > file_len.end() || table_end > file_len.end().align_up(self.cluster) {
            return Err(Error::corrupt("a table ends past the file"));
        }
        let structures = self.structures()?;
        for (index, (what, one)) in structures.iter().enumerate() {
            if let Some((other, _)) = structures[..index].iter().find(|(_, other)| one.overlaps(*other)) {
                return Err(Error::corrupt(format!("{what} at {one} overlaps {other}")));
            }
        }
        Ok(())
    }
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, what)
}

fn decode(bytes: &[u8]) -> Result<Header> {
    if bytes.len() < V2_BYTES || bytes[..4] != MAGIC {
        return Err(Error::corrupt("not a QCOW2: the magic is missing"));
    }
    let version = be32(bytes, 4);
    if !(2..=3).contains(&version) {
        return Err(unsupported(format!("QCOW version {version}; 2 and 3 are known")));
    }
    if be32(bytes, 32) != 0 {
        return Err(unsupported("an encrypted QCOW2"));
    }
    let shift = be32(bytes, 20);
    let cluster = u8::try_from(shift).ok().and_then(BlockShift::new);
    let Some(cluster) = cluster.filter(|_| CLUSTER_SHIFTS.contains(&shift)) else {
        return Err(Error::corrupt(format!("clusters of 2^{shift} bytes")));
    };
    let len = ByteLen::new(be64(bytes, 24));
    if len.is_zero() || !len.is_aligned(BlockShift::SECTOR) || len > LEN_MAX {
        return Err(Error::corrupt(format!("a disk of {len} bytes: not whole sectors up to {LEN_MAX}")));
    }
    let mut header = Header {
        version,
        cluster,
        len,
        l1_at: ByteOffset::new(be64(bytes, 40)),
        l1_entries: be32(bytes, 36),
        refcount_table_at: ByteOffset::new(be64(bytes, TABLE_OFFSET_AT as usize)),
        refcount_table_clusters: be32(bytes, 56),
        refcount_order: 4,
        snapshots: be32(bytes, 60),
        snapshots_at: ByteOffset::new(be64(bytes, 64)),
        backing: None,
        backing_format: None,
        compression: Compression::Deflate,
        dirty: false,
        corrupt: false,
        autoclear: 0,
    };
    if header.snapshots > SNAPSHOTS_MAX {
        return Err(Error::corrupt(format!("{} internal snapshots", header.snapshots)));
    }
    let header_bytes = if version == 2 { V2_BYTES } else { decode_version_3(bytes, &mut header)? };
    header.backing = backing_name(bytes, cluster)?;
    header.backing_format = extension(bytes, header_bytes, cluster, BACKING_FORMAT_EXTENSION)?;
    Ok(header)
}

/// The fields that version 3 adds; the header's length.
fn decode_version_3(bytes: &[u8], header: &mut Header) -> Result<usize> {
    if bytes.len() < V3_BYTES {
        return Err(Error::corrupt("a header cut short"));
    }
    let features = be64(bytes, 72);
    header.dirty = features & incompatible::DIRTY != 0;
    header.corrupt = features & incompatible::CORRUPT != 0;
    if features & incompatible::EXTERNAL_DATA != 0 {
        return Err(unsupported("a QCOW2 whose data is in another file"));
    }
    if features & incompatible::EXTENDED_L2 != 0 {
        return Err(unsupported("a QCOW2 with extended L2 entries (subclusters)"));
    }
    let known = incompatible::DIRTY | incompatible::CORRUPT | incompatible::COMPRESSION;
    if features & !known != 0 {
        return Err(unsupported(format!("a QCOW2 with unknown features {:#x}", features & !known)));
    }
    header.autoclear = be64(bytes, 88);
    header.refcount_order = be32(bytes, 96);
    if header.refcount_order > 6 {
        return Err(Error::corrupt(format!("reference counts of 2^{} bits", header.refcount_order)));
    }
    let header_bytes = ByteLen::new(u64::from(be32(bytes, 100))).as_usize();
    if header_bytes < V3_BYTES || header_bytes > bytes.len() || header_bytes as u64 > header.cluster.bytes() {
        return Err(Error::corrupt(format!("a header of {header_bytes} bytes")));
    }
    if features & incompatible::COMPRESSION != 0 {
        header.compression = match (header_bytes > V3_BYTES, bytes.get(V3_BYTES)) {
            (true, Some(1)) => Compression::Zstd,
            (true, Some(0)) => Compression::Deflate,
            _ => return Err(unsupported("a QCOW2 with an unknown kind of compression")),
        };
    }
    Ok(header_bytes)
}

/// The name of the backing file, as it is written; nothing is done with it here.
fn backing_name(bytes: &[u8], cluster: BlockShift) -> Result<Option<String>> {
    let (at, len) = (be64(bytes, 8), ByteLen::new(u64::from(be32(bytes, 16))).as_usize());
    if at == 0 {
        return Ok(None);
    }
    let end = at.checked_add(len as u64).filter(|end| *end <= cluster.bytes().min(bytes.len() as u64));
    if len == 0 || len > BACKING_NAME_MAX || end.is_none() {
        return Err(Error::corrupt(format!("a backing file's name of {len} bytes at {at}")));
    }
    let start = ByteLen::new(at).as_usize();
    let name = String::from_utf8(bytes[start..start + len].to_vec());
    name.map(Some).map_err(|_| Error::corrupt("a backing file's name that is not UTF-8"))
}

/// The text of a header extension.
fn extension(bytes: &[u8], from: usize, cluster: BlockShift, wanted: u32) -> Result<Option<String>> {
    let end = bytes.len().min(ByteLen::new(cluster.bytes()).as_usize());
    let mut at = from;
    while at + 8 <= end {
        let (kind, len) = (be32(bytes, at), ByteLen::new(u64::from(be32(bytes, at + 4))).as_usize());
        if kind == 0 {
            break;
        }
        let data = at + 8;
        if len > end - data {
            return Err(Error::corrupt(format!("a header extension of {len} bytes at {at}")));
        }
        if kind == wanted {
            return Ok(Some(String::from_utf8_lossy(&bytes[data..data + len]).into_owned()));
        }
        at = data + len.next_multiple_of(8);
    }
    Ok(None)
}

/// The L1 tables of the internal snapshots: where, and how many entries.
pub(super) fn read_snapshots(file: &dyn StorageFile, header: &Header) -> Result<Vec<(ByteOffset, u32)>> {
    walk_snapshots(file, header).map(|(found, _)| found)
}

/// The table that names the internal snapshots.
pub(super) fn snapshot_table(file: &dyn StorageFile, header: &Header) -> Result<Option<Extent>> {
    let (_, end) = walk_snapshots(file, header)?;
    Ok(Extent::between(header.snapshots_at, end))
}

fn walk_snapshots(file: &dyn StorageFile, header: &Header) -> Result<(Vec<(ByteOffset, u32)>, ByteOffset)> {
    const FIXED: u64 = 40;
    let file_len = file.len()?;
    let mut found = Vec::new();
    let mut at = header.snapshots_at;
    for number in 0..header.snapshots {
        let mut bytes = [0; FIXED as usize];
        file.read_at(at, &mut bytes)?;
        let (l1_at, l1_entries) = (ByteOffset::new(be64(&bytes, 0)), be32(&bytes, 8));
        let l1_len = ByteLen::new(u64::from(l1_entries) * 8);
        let inside = l1_at.checked_add(l1_len).is_some_and(|end| end <= file_len.end());
        if !inside || !l1_at.is_aligned(header.cluster) || l1_len.get() > L1_BYTES_MAX {
            let name = file.name();
            let context = format!("{name}: snapshot {number} has a table of {l1_entries} entries at {l1_at}");
            return Err(Error::corrupt(context));
        }
        found.push((l1_at, l1_entries));
        let names = u64::from(be16(&bytes, 12)) + u64::from(be16(&bytes, 14));
        let variable = u64::from(be32(&bytes, 36)) + names;
        at += ByteLen::new((FIXED + variable).next_multiple_of(8));
    }
    Ok((found, at))
}

/// Takes the marks "dirty" and "damaged" off.
pub(super) fn clear_marks(file: &dyn StorageFile) -> Result<()> {
    const FEATURES_AT: ByteOffset = ByteOffset::new(72);
    let mut bytes = [0; 8];
    file.read_at(FEATURES_AT, &mut bytes)?;
    let features = be64(&bytes, 0) & !(incompatible::DIRTY | incompatible::CORRUPT);
    file.write_at(FEATURES_AT, &features.to_be_bytes())
}
