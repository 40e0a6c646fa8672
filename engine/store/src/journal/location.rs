//! Where the bytes of an extent are.

use super::pack::PACK_UNIT_BYTES;
use blocks::{Allocation, ByteLen, ByteOffset, SECTOR_BYTES, Sliceable};

/// What was said about an extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum RecordKind {
    Data,
    Zero,
    Discard,
}

/// Where to read the bytes of an extent in a delta's log, and how to check them, without the record's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Location {
    /// Nothing to read.
    Empty(RecordKind),
    /// From sector `skip` on of a payload.
    Log(LogLocation),
}

/// A payload in a log, and the sector in it that is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogLocation {
    /// Where the whole payload starts.
    pub payload: ByteOffset,
    /// CRC32C of the whole payload as it is stored.
    pub crc: u32,
    /// Its length in sectors: 1 to 128.
    pub sectors: u8,
    /// How many of them come before the one meant.
    pub skip: u8,
    /// Where it is compressed, how many units of 256 bytes are stored of it; 0 where it is stored as it is.
    pub packed: u8,
}

impl RecordKind {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            RecordKind::Data => 1,
            RecordKind::Zero => 2,
            RecordKind::Discard => 3,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<RecordKind> {
        match byte {
            1 => Some(RecordKind::Data),
            2 => Some(RecordKind::Zero),
            3 => Some(RecordKind::Discard),
            _ => None,
        }
    }
}

impl LogLocation {
    pub(crate) fn payload_len(&self) -> ByteLen {
        ByteLen::new(u64::from(self.sectors) * SECTOR_BYTES)
    }

    /// How many bytes lie in the log; what `crc` is over.
    pub(crate) fn stored_len(&self) -> ByteLen {
        match self.packed {
            0 => self.payload_len(),
            units => ByteLen::new(u64::from(units) * PACK_UNIT_BYTES as u64),
        }
    }

    pub(crate) fn skip_len(&self) -> ByteLen {
        ByteLen::new(u64::from(self.skip) * SECTOR_BYTES)
    }
}

impl Location {
    pub(crate) fn kind(&self) -> RecordKind {
        match self {
            Location::Empty(kind) => *kind,
            Location::Log(_) => RecordKind::Data,
        }
    }

    pub(crate) fn allocation(&self) -> Allocation {
        match self.kind() {
            RecordKind::Data => Allocation::Data,
            RecordKind::Zero => Allocation::Zero,
            RecordKind::Discard => Allocation::Hole,
        }
    }
}

impl Sliceable for Location {
    fn skip(&self, skip: ByteLen) -> Location {
        match *self {
            Location::Empty(kind) => Location::Empty(kind),
            Location::Log(log) => {
                let sectors =
                    u8::try_from(skip.get() / SECTOR_BYTES).expect("an extent stays within its payload");
                Location::Log(LogLocation { skip: log.skip + sectors, ..log })
            }
        }
    }

    fn continues(&self, len: ByteLen, next: &Location) -> bool {
        match (self, next) {
            (Location::Empty(a), Location::Empty(b)) => a == b,
            (Location::Log(a), Location::Log(b)) => {
                a.payload == b.payload
                    && (a.crc, a.sectors, a.packed) == (b.crc, b.sectors, b.packed)
                    && a.skip_len() + len == b.skip_len()
            }
            _ => false,
        }
    }
}
