//! The dynamic header: where the block allocation table lies and how large blocks are.

use super::LEN_MAX;
use super::footer::{DiskType, Footer, be32, be64, checksum};
use super::parent::Parent;
use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Result, StorageFile};

pub(super) const HEADER_BYTES: ByteLen = ByteLen::new(1024);
const COOKIE: [u8; 8] = *b"cxsparse";
const VERSION: u32 = 0x0001_0000;
const CHECKSUM_AT: usize = 36;
/// 512 KiB and 2 MiB are seen in the wild. Smaller ones would make tables that do not fit in memory.
const BLOCK_SHIFTS: std::ops::RangeInclusive<u32> = BLOCK_SHIFT_MIN..=26;
pub(super) const BLOCK_SHIFT_MIN: u32 = 19;

/// A checked dynamic header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DynamicHeader {
    pub(super) table_offset: ByteOffset,
    pub(super) entries: u32,
    pub(super) block: BlockShift,
    /// Whom a differencing disk stands on; zeroes in others.
    pub(super) parent: Parent,
}

impl DynamicHeader {
    /// The header of a new disk.
    pub(super) fn new(len: ByteLen, block_bytes: ByteLen, table_offset: ByteOffset) -> DynamicHeader {
        let block = u8::try_from(block_bytes.get().trailing_zeros()).ok().and_then(BlockShift::new);
        let block = block.expect("our block size is a power of two");
        let entries =
            u32::try_from(len.blocks(block)).expect("the length was checked against the format's limit");
        DynamicHeader { table_offset, entries, block, parent: Parent::default() }
    }

    /// The sector after the table.
    pub(super) fn bat_end(&self) -> ByteOffset {
        (self.table_offset + ByteLen::new(u64::from(self.entries) * 4)).align_up(BlockShift::SECTOR)
    }

    /// The bytes of the header.
    pub(super) fn encode(&self) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        let block_bytes = u32::try_from(self.block.bytes()).expect("at most 64 MiB");
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &COOKIE);
        put(8, &u64::MAX.to_be_bytes());
        put(16, &self.table_offset.get().to_be_bytes());
        put(24, &VERSION.to_be_bytes());
        put(28, &self.entries.to_be_bytes());
        put(32, &block_bytes.to_be_bytes());
        self.parent.encode(&mut bytes);
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Changes the number of entries in a header's bytes, and with it the checksum; whatever else they say stays.
    pub(super) fn put_entries(bytes: &mut [u8], entries: u32) {
        bytes[28..32].copy_from_slice(&entries.to_be_bytes());
        let sum = checksum(bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
    }

    /// Reads and checks the header of the disk that the footer describes.
    pub(super) fn read(file: &dyn StorageFile, footer: &Footer) -> Result<DynamicHeader> {
        let start = footer.data_offset;
        let mut bytes = [0; 1024];
        if start.get() < 512 || start.get() > i64::MAX as u64 {
            return Err(Error::corrupt(format!("{}: a dynamic header at {start}", file.name())));
        }
        file.read_at(start, &mut bytes)?;
        let mut header = DynamicHeader::decode(&bytes, footer.current_size)
            .map_err(|error| error.context(format!("{}: dynamic header at {start}", file.name())))?;
        if footer.disk_type != DiskType::Differencing {
            // The fields mean nothing there, whatever they hold.
            header.parent = Parent::default();
        }
        Ok(header)
    }

    fn decode(bytes: &[u8; 1024], len: ByteLen) -> Result<DynamicHeader> {
        if bytes[..8] != COOKIE {
            return Err(Error::corrupt("the cookie is missing"));
        }
        if be32(bytes, CHECKSUM_AT) != checksum(bytes, CHECKSUM_AT) {
            return Err(Error::corrupt("checksum mismatch"));
        }
        let block_bytes = be32(bytes, 32);
        let shift = block_bytes.trailing_zeros();
        if !block_bytes.is_power_of_two() || !BLOCK_SHIFTS.contains(&shift) {
            let context = format!("blocks of {block_bytes} bytes are not supported");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let block = u8::try_from(shift).ok().and_then(BlockShift::new).expect("checked just above");
        let entries = be32(bytes, 28);
        let entries_max = LEN_MAX.blocks(block);
        if u64::from(entries) < len.blocks(block) || u64::from(entries) > entries_max {
            let context = format!("a table of {entries} blocks for a disk of {len} bytes");
            return Err(Error::corrupt(context));
        }
        let table_offset = ByteOffset::new(be64(bytes, 16));
        if !table_offset.is_aligned(BlockShift::SECTOR) || table_offset.get() > i64::MAX as u64 {
            return Err(Error::corrupt(format!("a table at {table_offset}")));
        }
        Ok(DynamicHeader { table_offset, entries, block, parent: Parent::decode(bytes) })
    }
}
