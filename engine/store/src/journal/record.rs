//! One record of a log: a header that is checked by itself, then the payload. docs/formats/store.md has the table.

use super::location::RecordKind;
use super::pack::PACK_UNIT_BYTES;
use crate::unit::branch::DeltaId;
use blocks::{BlockShift, ByteLen, ByteOffset, Extent, Lba, SECTOR_BYTES, SECTOR_SHIFT, Seq, WriteTime};

/// Headers are this long, and so every record starts at a multiple of it.
pub(crate) const HEADER_BYTES: usize = 64;
/// The most that one checksum covers, and so the most that a small read has to read.
pub(crate) const PAYLOAD_BYTES_MAX: u64 = 64 << 10;

const MAGIC: [u8; 4] = *b"URc1";
/// Of records whose payload is compressed, which version 1 did not know.
const MAGIC_PACKED: [u8; 4] = *b"URc2";
/// Of records that say when their write was completed, which version 2 did not know.
const MAGIC_TIMED: [u8; 4] = *b"URc3";
const KIND_PACKED: u8 = 4;
/// In place of how far the log was synced, where that is too far back to be said, or nothing.
const SYNCED_UNKNOWN: u32 = u32::MAX;
/// The longest extent of a record.
pub(crate) const EXTENT_BYTES_MAX: ByteLen = ByteLen::new(1 << 40);
const FLAG_LAST: u8 = 1;

const _: () = assert!(PAYLOAD_BYTES_MAX / SECTOR_BYTES <= u8::MAX as u64);
const _: () = assert!(SECTOR_BYTES.is_multiple_of(HEADER_BYTES as u64));

/// What ties a record to its log, so that bytes of another log are never taken for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogIdentity {
    /// Random, of the unit.
    pub salt: u64,
    pub delta: DeltaId,
}

/// The header of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordHeader {
    pub kind: RecordKind,
    /// Whether this record ends its write.
    pub last: bool,
    pub seq: Seq,
    pub extent: Extent,
    /// How much of the log was known to be on the medium when this was appended.
    pub synced_to: ByteOffset,
    /// CRC32C of the payload as it is stored; 0 without one.
    pub payload_crc: u32,
    /// Where the payload is compressed, how many units of 256 bytes it takes; otherwise 0.
    pub packed: u8,
    /// When the write was completed, where its source says so.
    pub time: Option<WriteTime>,
}

impl RecordHeader {
    /// How many bytes follow the header.
    pub(crate) fn payload_len(&self) -> ByteLen {
        match self.kind {
            RecordKind::Data if self.packed > 0 => {
                ByteLen::new(u64::from(self.packed) * PACK_UNIT_BYTES as u64)
            }
            RecordKind::Data => self.extent.len(),
            RecordKind::Zero | RecordKind::Discard => ByteLen::ZERO,
        }
    }

    /// The header's bytes for a record at offset `at` of that log.
    pub(crate) fn encode(&self, log: LogIdentity, at: ByteOffset) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        let packed = self.packed > 0;
        let magic = match self.time {
            Some(_) => &MAGIC_TIMED,
            None if packed => &MAGIC_PACKED,
            None => &MAGIC,
        };
        put(0, magic);
        put(
            4,
            &[if packed { KIND_PACKED } else { self.kind.to_byte() }, if self.last { FLAG_LAST } else { 0 }],
        );
        put(6, &u16::from(self.packed).to_le_bytes());
        put(8, &log.salt.to_le_bytes());
        put(16, &log.delta.0.to_le_bytes());
        put(24, &self.seq.0.to_le_bytes());
        put(32, &self.extent.start().lba().get().to_le_bytes());
        let sectors = self.extent.len().get() >> SECTOR_SHIFT;
        match self.time {
            None => {
                put(40, &sectors.to_le_bytes());
                put(48, &self.synced_to.get().to_le_bytes());
            }
            Some(time) => {
                put(
                    40,
                    &u32::try_from(sectors).expect("a record's extent is a tebibyte at most").to_le_bytes(),
                );
                put(44, &unsynced(at, self.synced_to).to_le_bytes());
                put(48, &time.0.to_le_bytes());
            }
        }
        put(56, &self.payload_crc.to_le_bytes());
        let crc = header_crc(&bytes, at);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header at offset `at` of that log; `None` where the bytes are not one.
    pub(crate) fn decode(
        bytes: &[u8; HEADER_BYTES],
        log: LogIdentity,
        at: ByteOffset,
    ) -> Option<RecordHeader> {
        let is_timed = bytes[..4] == MAGIC_TIMED;
        let packed = bytes[..4] == MAGIC_PACKED || (is_timed && bytes[4] == KIND_PACKED);
        if (!packed && !is_timed && bytes[..4] != MAGIC)
            || (packed && bytes[4] != KIND_PACKED)
            || u64_at(bytes, 8) != log.salt
            || u64_at(bytes, 16) != log.delta.0
            || u32_at(bytes, 60) != header_crc(bytes, at)
        {
            return None;
        }
        let start = Lba::new(u64_at(bytes, 32)).offset()?;
        let sectors = if is_timed { u64::from(u32_at(bytes, 40)) } else { u64_at(bytes, 40) };
        let len = ByteLen::new(sectors.checked_mul(SECTOR_BYTES)?);
        let synced_to = match is_timed {
            true => synced_to(at, u32_at(bytes, 44))?,
            false => ByteOffset::new(u64_at(bytes, 48)),
        };
        let header = RecordHeader {
            kind: if packed { RecordKind::Data } else { RecordKind::from_byte(bytes[4])? },
            last: bytes[5] & FLAG_LAST != 0,
            seq: Seq(u64_at(bytes, 24)),
            extent: Extent::new(start, len).ok()?,
            synced_to,
            payload_crc: u32_at(bytes, 56),
            packed: if packed { u8::try_from(u16::from_le_bytes([bytes[6], bytes[7]])).ok()? } else { 0 },
            time: is_timed.then(|| WriteTime(u64_at(bytes, 48))),
        };
        let has_room = match header.kind {
            RecordKind::Data => header.extent.len().get() <= PAYLOAD_BYTES_MAX,
            RecordKind::Zero | RecordKind::Discard => true,
        };
        let shrinks = !packed || (header.packed > 0 && header.payload_len() < header.extent.len());
        let fits = has_room && shrinks && header.extent.is_aligned(BlockShift::SECTOR);
        fits.then_some(header)
    }
}

/// How far before `at` the log was synced, in headers' lengths: rounded so that no more is said than is so.
fn unsynced(at: ByteOffset, synced_to: ByteOffset) -> u32 {
    let behind = at.get().saturating_sub(synced_to.get()).div_ceil(HEADER_BYTES as u64);
    u32::try_from(behind).unwrap_or(SYNCED_UNKNOWN)
}

fn synced_to(at: ByteOffset, behind: u32) -> Option<ByteOffset> {
    match behind {
        SYNCED_UNKNOWN => Some(ByteOffset::ZERO),
        behind => at.get().checked_sub(u64::from(behind) * HEADER_BYTES as u64).map(ByteOffset::new),
    }
}

/// The offset is part of what is checked, not of what is stored: a header is good only in its place.
fn header_crc(bytes: &[u8; HEADER_BYTES], at: ByteOffset) -> u32 {
    blocks::crc32c_append(blocks::crc32c(&at.get().to_le_bytes()), &bytes[..60])
}

/// Makes what stands at `at` a header of that log wherever its magic is that of one, whatever its fields say: for fuzzing,
/// which would not get past the checksums otherwise.
pub(crate) fn reseal_header(bytes: &mut [u8], at: usize, log: LogIdentity, payload_too: bool) {
    let Some((header, rest)) =
        bytes.get_mut(at..).and_then(|bytes| bytes.split_first_chunk_mut::<HEADER_BYTES>())
    else {
        return;
    };
    let is_timed = header[..4] == MAGIC_TIMED;
    if !is_timed && header[..4] != MAGIC && header[..4] != MAGIC_PACKED {
        return;
    }
    header[8..16].copy_from_slice(&log.salt.to_le_bytes());
    header[16..24].copy_from_slice(&log.delta.0.to_le_bytes());
    let sectors = if is_timed { u64::from(u32_at(header, 40)) } else { u64_at(header, 40) };
    let payload_len = match header[..4] == MAGIC_PACKED || (is_timed && header[4] == KIND_PACKED) {
        true => usize::from(header[6]) * PACK_UNIT_BYTES,
        false => usize::try_from(sectors.saturating_mul(SECTOR_BYTES)).unwrap_or(usize::MAX),
    };
    if payload_too && let Some(payload) = rest.get(..payload_len) {
        header[56..60].copy_from_slice(&blocks::crc32c(payload).to_le_bytes());
    }
    let crc = header_crc(header, ByteOffset::new(at as u64));
    header[60..].copy_from_slice(&crc.to_le_bytes());
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Data,
            last: true,
            seq: Seq(7),
            extent: Extent::new(ByteOffset::new(1 << 50), ByteLen::new(4096)).unwrap(),
            synced_to: ByteOffset::new(640),
            payload_crc: 0xdead_beef,
            packed: 0,
            time: None,
        }
    }

    #[test]
    fn reads_what_it_writes_only_in_its_place() {
        let log = LogIdentity { salt: 11, delta: DeltaId(3) };
        let at = ByteOffset::new(1280);
        let bytes = header().encode(log, at);
        assert_eq!(RecordHeader::decode(&bytes, log, at), Some(header()));
        assert_eq!(RecordHeader::decode(&bytes, log, ByteOffset::new(1344)), None);
        assert_eq!(RecordHeader::decode(&bytes, LogIdentity { salt: 12, ..log }, at), None);
        assert_eq!(RecordHeader::decode(&bytes, LogIdentity { delta: DeltaId(4), ..log }, at), None);
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&flipped, log, at), None, "bit {bit}");
        }
    }

    #[test]
    fn a_compressed_record_is_read_as_it_was_written_and_must_have_shrunk() {
        let log = LogIdentity { salt: 11, delta: DeltaId(3) };
        let at = ByteOffset::new(1280);
        let packed = RecordHeader { packed: 5, ..header() };
        assert_eq!(packed.payload_len(), ByteLen::new(1280));
        assert_eq!(RecordHeader::decode(&packed.encode(log, at), log, at), Some(packed));
        let grown = RecordHeader { packed: 16, ..header() };
        assert_eq!(RecordHeader::decode(&grown.encode(log, at), log, at), None);
    }

    #[test]
    fn a_record_with_a_time_says_no_more_of_what_was_synced_than_is_so() {
        let log = LogIdentity { salt: 11, delta: DeltaId(3) };
        let at = ByteOffset::new(1280);
        let timed = RecordHeader { time: Some(WriteTime(u64::MAX)), ..header() };
        let bytes = timed.encode(log, at);
        assert_eq!(RecordHeader::decode(&bytes, log, at), Some(timed));
        assert_eq!(RecordHeader::decode(&bytes, log, ByteOffset::new(1344)), None);
        let packed = RecordHeader { packed: 5, ..timed };
        assert_eq!(RecordHeader::decode(&packed.encode(log, at), log, at), Some(packed));
        let long = Extent::new(ByteOffset::ZERO, EXTENT_BYTES_MAX).unwrap();
        let empty =
            RecordHeader { kind: RecordKind::Zero, extent: long, time: Some(WriteTime(1)), ..header() };
        assert_eq!(RecordHeader::decode(&empty.encode(log, at), log, at), Some(empty));
        let far = ByteOffset::new(1 << 50);
        let read = RecordHeader::decode(&timed.encode(log, far), log, far).unwrap();
        assert_eq!(read.synced_to, ByteOffset::ZERO, "too far back to be said");
        let odd = RecordHeader { synced_to: ByteOffset::new(641), ..timed };
        let read = RecordHeader::decode(&odd.encode(log, at), log, at).unwrap();
        assert_eq!(read.synced_to, ByteOffset::new(640));
    }

    /// The bytes of version 1, kept so that they stay readable.
    #[test]
    fn the_format_stays() {
        let log = LogIdentity { salt: 0x0102_0304_0506_0708, delta: DeltaId(9) };
        let bytes = header().encode(log, ByteOffset::new(64));
        let hex: String = bytes[..60].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "555263310101000008070605040302010900000000000000070000000000000000000000000200000800000000000000\
             8002000000000000efbeadde"
        );
    }
}
