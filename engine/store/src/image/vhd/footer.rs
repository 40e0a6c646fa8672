//! The footer: what disk the file holds.

use super::LEN_MAX;
use blocks::{
    BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Result, SECTOR_BYTES, StorageFile, WallClock,
};
use std::io::Read;

pub(super) const FOOTER_BYTES: ByteLen = ByteLen::new(512);
pub(super) const COOKIE: [u8; 8] = *b"conectix";
/// "Reserved, must be set."
const FEATURES: u32 = 2;
const VERSION: u32 = 0x0001_0000;
/// Tools size a VHD by its geometry, which rounds, or by its exact size, depending on who made it. They all take the
/// exact size of what Hyper-V made, so we write its creator code.
const CREATOR: [u8; 4] = *b"win ";
const CREATOR_VERSION: u32 = 0x000a_0000;
const CREATOR_OS: [u8; 4] = *b"Wi2k";
/// 2000-01-01 UTC, where VHD's clock starts, in seconds since 1970.
const EPOCH: u64 = 946_684_800;
const CHECKSUM_AT: usize = 64;

/// How the disk's bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskType {
    Fixed = 2,
    Dynamic = 3,
    Differencing = 4,
}

/// A checked footer, with the bytes that it came from: what we do not understand in it is kept.
#[derive(Debug, Clone)]
pub(super) struct Footer {
    pub(super) data_offset: ByteOffset,
    pub(super) current_size: ByteLen,
    pub(super) disk_type: DiskType,
    bytes: [u8; 512],
}

impl Footer {
    /// The footer of a new disk.
    pub(super) fn new(len: ByteLen, disk_type: DiskType) -> Result<Footer> {
        Ok(Footer::identified(len, disk_type, random_id()?, WallClock::now()))
    }

    /// The footer of a disk with this identity that was made then.
    pub(super) fn identified(len: ByteLen, disk_type: DiskType, id: [u8; 16], made: WallClock) -> Footer {
        let mut bytes = [0; 512];
        let data_offset = match disk_type {
            DiskType::Fixed => ByteOffset::new(u64::MAX),
            DiskType::Dynamic | DiskType::Differencing => super::HEADER_START,
        };
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &COOKIE);
        put(8, &FEATURES.to_be_bytes());
        put(12, &VERSION.to_be_bytes());
        put(16, &data_offset.get().to_be_bytes());
        put(24, &time_stamp(made).to_be_bytes());
        put(40, &len.get().to_be_bytes());
        put(60, &(disk_type as u32).to_be_bytes());
        put(68, &id);
        Footer { data_offset, current_size: len, disk_type, bytes }.resized(len)
    }

    /// The footer of the same disk with another length. Its creator is ours then, whoever made it: others take its size for
    /// what it is only from a creator that they know to mean it.
    pub(super) fn resized(&self, len: ByteLen) -> Footer {
        let mut bytes = self.bytes;
        let (cylinders, heads, sectors) = geometry(len);
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(28, &CREATOR);
        put(32, &CREATOR_VERSION.to_be_bytes());
        put(36, &CREATOR_OS);
        put(48, &len.get().to_be_bytes());
        put(56, &cylinders.to_be_bytes());
        put(58, &[heads, sectors]);
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        Footer { current_size: len, bytes, ..*self }
    }

    /// Reads and checks the footer at `start`.
    pub(super) fn read(file: &dyn StorageFile, start: ByteOffset) -> Result<Footer> {
        let mut bytes = [0; 512];
        file.read_at(start, &mut bytes)?;
        Footer::decode(&bytes).map_err(|error| error.context(format!("{}: footer at {start}", file.name())))
    }

    fn decode(bytes: &[u8; 512]) -> Result<Footer> {
        if bytes[..8] != COOKIE {
            return Err(Error::corrupt("not a VHD: the cookie is missing"));
        }
        if be32(bytes, CHECKSUM_AT) != checksum(bytes, CHECKSUM_AT) {
            return Err(Error::corrupt("checksum mismatch"));
        }
        if be32(bytes, 12) >> 16 != VERSION >> 16 {
            let context = format!("VHD version {:#x} is not known", be32(bytes, 12));
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let disk_type = match be32(bytes, 60) {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => {
                let context = format!("disks of type {other} are not supported");
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
        };
        let current_size = ByteLen::new(be64(bytes, 48));
        if current_size.is_zero() || !current_size.is_aligned(BlockShift::SECTOR) || current_size > LEN_MAX {
            let context =
                format!("a disk of {current_size} bytes: not a multiple of {SECTOR_BYTES} up to {LEN_MAX}");
            return Err(Error::corrupt(context));
        }
        let data_offset = ByteOffset::new(be64(bytes, 16));
        Ok(Footer { data_offset, current_size, disk_type, bytes: *bytes })
    }

    /// The bytes of the footer.
    pub(super) fn encode(&self) -> [u8; 512] {
        self.bytes
    }

    /// Which disk this is; a child remembers that of its parent.
    pub(super) fn id(&self) -> [u8; 16] {
        self.bytes[68..84].try_into().expect("sixteen bytes")
    }

    /// Whether two footers say the same about what matters.
    pub(super) fn same_disk(&self, other: &Footer) -> bool {
        let key = |footer: &Footer| (footer.data_offset, footer.current_size, footer.disk_type);
        key(self) == key(other)
    }
}

/// An instant in VHD's seconds.
pub(super) fn time_stamp(at: WallClock) -> u32 {
    u32::try_from((at.0 / 1000).saturating_sub(EPOCH)).unwrap_or(u32::MAX)
}

/// Cylinders, heads and sectors per track, by the specification's recipe. Rounds down; what is beyond the largest
/// geometry gets the largest.
fn geometry(len: ByteLen) -> (u16, u8, u8) {
    let total = (len.get() / SECTOR_BYTES).min(65535 * 16 * 255);
    let (sectors, heads, tracks);
    if total >= 65535 * 16 * 63 {
        (sectors, heads, tracks) = (255, 16, total / 255);
    } else {
        let tracks_17 = total / 17;
        let heads_17 = tracks_17.div_ceil(1024).max(4);
        if tracks_17 < heads_17 * 1024 && heads_17 <= 16 {
            (sectors, heads, tracks) = (17, heads_17, tracks_17);
        } else if total / 31 < 16 * 1024 {
            (sectors, heads, tracks) = (31, 16, total / 31);
        } else {
            (sectors, heads, tracks) = (63, 16, total / 63);
        }
    }
    let fits = "the recipe keeps each part in its range";
    (
        u16::try_from(tracks / heads).expect(fits),
        u8::try_from(heads).expect(fits),
        u8::try_from(sectors).expect(fits),
    )
}

/// The complement of the sum of all bytes but those of the checksum itself.
pub(super) fn checksum(bytes: &[u8], checksum_at: usize) -> u32 {
    let counted = bytes.iter().enumerate().filter(|(at, _)| !(checksum_at..checksum_at + 4).contains(at));
    !counted.fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

/// The big-endian number at `at`, which the caller knows to lie within a fixed-size structure.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The same with eight bytes.
pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A random identity, marked as a version 4 UUID.
fn random_id() -> Result<[u8; 16]> {
    const SOURCE: &str = "/dev/urandom";
    let mut id = [0; 16];
    let read = std::fs::File::open(SOURCE).and_then(|mut source| source.read_exact(&mut id));
    read.map_err(|error| Error::io(SOURCE, error))?;
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_follows_the_specification() {
        // One for each branch of the recipe; tests/vhd_interop.rs compares with what QEMU computes.
        let mib = |count: u64| ByteLen::new(count << 20);
        assert_eq!(geometry(ByteLen::new(512)), (0, 4, 17));
        assert_eq!(geometry(mib(10)), (301, 4, 17));
        assert_eq!(geometry(mib(100)), (1003, 12, 17));
        assert_eq!(geometry(mib(512)), (1040, 16, 63));
        assert_eq!(geometry(mib(127 << 10)), (65278, 16, 255));
        assert_eq!(geometry(LEN_MAX), (65535, 16, 255));
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_found() {
        let footer = Footer::new(ByteLen::new(1_000_000_512), DiskType::Dynamic).unwrap();
        let bytes = footer.encode();
        assert!(Footer::decode(&bytes).unwrap().same_disk(&footer));
        for at in 0..85 {
            let mut damaged = bytes;
            damaged[at] ^= 0x10;
            assert!(Footer::decode(&damaged).is_err(), "byte {at}");
        }
    }
}
