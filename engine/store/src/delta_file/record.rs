//! The header of a delta file, and of each of its records.

use crate::journal::location::RecordKind;
use blocks::{
    BlockShift, ByteLen, ByteOffset, ByteReader, ByteWriter, CheckpointId, DiskIndex, Error, ErrorKind,
    Extent, Lba, MachineId, Result, SECTOR_SHIFT, StoreId, WallClock,
};

const MAGIC: [u8; 4] = *b"UDlt";
const VERSION: u16 = 1;
/// Where the first record starts.
pub(super) const HEADER_BYTES: u64 = 512;
/// A record's header.
pub(super) const RECORD_BYTES: u64 = 32;
/// The most that one checksum covers.
pub(super) const PAYLOAD_BYTES_MAX: u64 = 64 << 10;
/// The kind of the record that ends a whole file.
const KIND_END: u8 = 255;

/// What a delta file is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaHeader {
    /// The store that it comes from.
    pub store: StoreId,
    /// Whose disk.
    pub machine: MachineId,
    /// Which one.
    pub disk: DiskIndex,
    /// The disk's size.
    pub len: ByteLen,
    /// What has to be there before it is applied.
    pub from: CheckpointId,
    /// What is there then.
    pub to: CheckpointId,
    /// When `to` was sealed, on the server's clock.
    pub time: WallClock,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// These bytes are so; of data, a payload with this CRC32C follows.
    Extent(Extent, RecordKind, u32),
    /// The file is whole: so many records, which cover so many bytes.
    End { records: u64, covered: ByteLen },
}

impl DeltaHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut w = ByteWriter::new();
        w.bytes(&MAGIC).u16(VERSION).u16(self.disk.0).id(Some(self.store.0)).id(Some(self.machine.0));
        w.u64(self.len.get()).u64(self.from.0).u64(self.to.0).u64(self.time.0);
        let mut bytes = w.into_bytes();
        bytes.resize(HEADER_BYTES as usize - 4, 0);
        let mut w = ByteWriter::new();
        w.bytes(&bytes).checksum();
        w.into_bytes()
    }

    pub(super) fn decode(bytes: &[u8], name: &str) -> Result<DeltaHeader> {
        let named = |error: Error| error.context(format!("{name}: header"));
        let mut r = ByteReader::checksummed(bytes, "a delta file").map_err(named)?;
        if r.array()? != MAGIC {
            return Err(Error::corrupt(format!("{name} is no delta file")));
        }
        let version = r.u16()?;
        if version != VERSION {
            let context =
                format!("{name} is a delta file of version {version}, which is newer than this program");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let none = || Error::corrupt(format!("{name}: an identity of all zero"));
        let disk = DiskIndex(r.u16()?);
        let (store, machine) = (r.id()?.ok_or_else(none)?, r.id()?.ok_or_else(none)?);
        let len = ByteLen::new(r.u64()?);
        if len.is_zero() || !len.is_aligned(BlockShift::SECTOR) {
            return Err(Error::corrupt(format!("{name}: a disk of {len} bytes")));
        }
        Ok(DeltaHeader {
            store: StoreId(store),
            machine: MachineId(machine),
            disk,
            len,
            from: CheckpointId(r.u64()?),
            to: CheckpointId(r.u64()?),
            time: WallClock(r.u64()?),
        })
    }
}

impl Record {
    /// Its bytes at that place of the file.
    pub(super) fn encode(&self, at: ByteOffset) -> [u8; RECORD_BYTES as usize] {
        let (start, len, kind, crc) = match self {
            Record::Extent(extent, kind, crc) => {
                (extent.start().lba().get(), extent.len().get() >> SECTOR_SHIFT, kind.to_byte(), *crc)
            }
            Record::End { records, covered } => (*records, covered.get() >> SECTOR_SHIFT, KIND_END, 0),
        };
        let mut bytes = [0; RECORD_BYTES as usize];
        bytes[..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..16].copy_from_slice(&len.to_le_bytes());
        bytes[16] = kind;
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        let crc = header_crc(&bytes, at);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` where these bytes are no record of that place.
    pub(super) fn decode(bytes: &[u8; RECORD_BYTES as usize], at: ByteOffset) -> Option<Record> {
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if u32_at(28) != header_crc(bytes, at) {
            return None;
        }
        let len = ByteLen::new(u64_at(8).checked_mul(1 << SECTOR_SHIFT)?);
        if bytes[16] == KIND_END {
            return Some(Record::End { records: u64_at(0), covered: len });
        }
        let (kind, start) = (RecordKind::from_byte(bytes[16])?, Lba::new(u64_at(0)).offset()?);
        let extent = Extent::new(start, len).ok()?;
        let fits = kind != RecordKind::Data || len.get() <= PAYLOAD_BYTES_MAX;
        fits.then(|| Record::Extent(extent, kind, u32_at(20)))
    }

    /// How many bytes follow.
    pub(super) fn payload_len(&self) -> ByteLen {
        match self {
            Record::Extent(extent, RecordKind::Data, _) => extent.len(),
            _ => ByteLen::ZERO,
        }
    }
}

/// Puts the checksums of everything right that follows from record to record: for fuzzing, which would not get past them.
pub(super) fn reseal(bytes: &mut [u8]) {
    if let Some((body, crc)) =
        bytes.get_mut(..HEADER_BYTES as usize).and_then(<[u8]>::split_last_chunk_mut::<4>)
    {
        *crc = blocks::crc32c(body).to_le_bytes();
    }
    let mut at = HEADER_BYTES as usize;
    while let Some((record, rest)) =
        bytes.get_mut(at..).and_then(<[u8]>::split_first_chunk_mut::<{ RECORD_BYTES as usize }>)
    {
        let sectors: [u8; 8] = std::array::from_fn(|i| record[8 + i]);
        let payload_len = u64::from_le_bytes(sectors).saturating_mul(1 << SECTOR_SHIFT);
        let has_payload = RecordKind::from_byte(record[16]) == Some(RecordKind::Data);
        let payload = rest.get(..usize::try_from(payload_len).unwrap_or(usize::MAX)).filter(|_| has_payload);
        record[20..24].copy_from_slice(&payload.map_or(0, blocks::crc32c).to_le_bytes());
        let crc = header_crc(record, ByteOffset::new(at as u64));
        record[28..].copy_from_slice(&crc.to_le_bytes());
        at += RECORD_BYTES as usize + payload.map_or(0, <[u8]>::len);
    }
}

fn header_crc(bytes: &[u8; RECORD_BYTES as usize], at: ByteOffset) -> u32 {
    blocks::crc32c_append(blocks::crc32c(&at.get().to_le_bytes()), &bytes[..28])
}
