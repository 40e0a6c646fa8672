//! The region table: where the block allocation table and the metadata are.

use super::super::bytes::{le32, le64, put};
use super::header::checksum;
use blocks::{BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, Result, StorageFile};

pub(super) const TABLE_STARTS: [ByteOffset; 2] = [ByteOffset::new(192 << 10), ByteOffset::new(256 << 10)];
pub(super) const TABLE_BYTES: usize = 64 << 10;
const ENTRIES_MAX: u32 = 2047;
const CHECKSUM_AT: usize = 4;
const SIGNATURE: [u8; 4] = *b"regi";
const MIB: BlockShift = BlockShift::new(20).expect("1 MiB is a block size");
const BAT_ID: [u8; 16] = uuid::uuid!("2dc27766-f623-4200-9d64-115e9bfd4a08").to_bytes_le();
const METADATA_ID: [u8; 16] = uuid::uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e").to_bytes_le();

/// The regions that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Regions {
    pub(super) bat: Extent,
    pub(super) metadata: Extent,
}

impl Regions {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; TABLE_BYTES];
        put(&mut bytes, 0, &SIGNATURE);
        put(&mut bytes, 8, &2_u32.to_le_bytes());
        for (index, (id, region)) in
            [(BAT_ID, self.bat), (METADATA_ID, self.metadata)].into_iter().enumerate()
        {
            let at = 16 + index * 32;
            put(&mut bytes, at, &id);
            put(&mut bytes, at + 16, &region.start().get().to_le_bytes());
            let len = u32::try_from(region.len().get()).expect("a region of ours has less than 4 GiB");
            put(&mut bytes, at + 24, &len.to_le_bytes());
            put(&mut bytes, at + 28, &1_u32.to_le_bytes());
        }
        let sum = checksum(&bytes, CHECKSUM_AT);
        put(&mut bytes, CHECKSUM_AT, &sum.to_le_bytes());
        bytes
    }

    /// Reads the first valid one of the two tables, and checks that the regions lie in the file.
    pub(super) fn read(file: &dyn StorageFile) -> Result<Regions> {
        let mut first_error = None;
        for start in TABLE_STARTS {
            match Regions::read_at(file, start) {
                Ok(regions) => return Ok(regions),
                Err(error) if !matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
                    return Err(error);
                }
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.expect("two tables were read"))
    }

    /// Reads one of the tables.
    pub(super) fn read_at(file: &dyn StorageFile, start: ByteOffset) -> Result<Regions> {
        let mut bytes = vec![0; TABLE_BYTES];
        file.read_at(start, &mut bytes)?;
        let regions = Regions::decode(&bytes, file.len()?);
        regions.map_err(|error| error.context(format!("{}: region table at {start}", file.name())))
    }

    fn decode(bytes: &[u8], file_len: ByteLen) -> Result<Regions> {
        if bytes[..4] != SIGNATURE {
            return Err(Error::corrupt("its signature is missing"));
        }
        if le32(bytes, CHECKSUM_AT) != checksum(bytes, CHECKSUM_AT) {
            return Err(Error::corrupt("checksum mismatch"));
        }
        let count = le32(bytes, 8);
        if count > ENTRIES_MAX {
            return Err(Error::corrupt(format!("{count} regions")));
        }
        let (mut bat, mut metadata) = (None, None);
        let entries = bytes[16..].chunks_exact(32);
        for entry in entries.take(ByteLen::new(u64::from(count)).as_usize()) {
            let region = region(entry, file_len)?;
            let known = match &entry[..16] {
                id if *id == BAT_ID => &mut bat,
                id if *id == METADATA_ID => &mut metadata,
                _ if le32(entry, 28) & 1 == 0 => continue,
                id => {
                    let context = format!("a region that must be known and is not: {id:02x?}");
                    return Err(Error::new(ErrorKind::Unsupported, context));
                }
            };
            if known.replace(region).is_some() {
                return Err(Error::corrupt("it names a region twice"));
            }
        }
        match (bat, metadata) {
            (Some(bat), Some(metadata)) if !bat.overlaps(metadata) => Ok(Regions { bat, metadata }),
            (Some(_), Some(_)) => Err(Error::corrupt("its regions overlap")),
            _ => Err(Error::corrupt("a region is missing")),
        }
    }
}

fn region(entry: &[u8], file_len: ByteLen) -> Result<Extent> {
    let (at, len) = (le64(entry, 16), le32(entry, 24));
    let region = Extent::new(ByteOffset::new(at), ByteLen::new(u64::from(len)));
    let region = region.ok().filter(|region| region.is_aligned(MIB) && region.start().get() >= MIB.bytes());
    region
        .filter(|region| region.end() <= file_len.end())
        .ok_or_else(|| Error::corrupt(format!("a region of {len} bytes at {at} is askew or not in the file")))
}
