//! Grains of a stream-optimized extent: a marker of 12 bytes (which sector of the disk, how many bytes), then the bytes,
//! deflated, with zlib's head and sum.

use super::super::bytes::{le32, le64, put};
use blocks::{BlockShift, ByteLen, ByteOffset, Error, Result, SECTOR_BYTES, StorageFile};
use std::io::{Read, Write};

/// The bytes before a grain's.
pub(super) const MARKER_BYTES: usize = 12;

/// The grain at `at`, whose first byte is that of the disk at `guest`. What is missing at its end is zero: the last
/// grain of a disk may be short.
pub(super) fn read(
    file: &dyn StorageFile,
    grain: BlockShift,
    at: ByteOffset,
    guest: ByteOffset,
) -> Result<Vec<u8>> {
    let packed_len = packed_len(file, grain, at, guest)?;
    let mut packed = vec![0; packed_len.as_usize()];
    file.read_at(at + ByteLen::new(MARKER_BYTES as u64), &mut packed)?;
    let mut bytes = Vec::new();
    let unpacked = flate2::read::ZlibDecoder::new(&*packed).take(grain.bytes() + 1).read_to_end(&mut bytes);
    unpacked.map_err(|error| damaged(file, at, &error.to_string()))?;
    if ByteLen::of(&bytes) > grain.len() || !ByteLen::of(&bytes).is_aligned(BlockShift::SECTOR) {
        return Err(damaged(file, at, &format!("it unpacks to {} bytes", bytes.len())));
    }
    bytes.resize(grain.len().as_usize(), 0);
    Ok(bytes)
}

/// How many bytes of the file a grain that can be unpacked takes, its marker and whole sectors counted.
pub(super) fn stored_len(
    file: &dyn StorageFile,
    grain: BlockShift,
    at: ByteOffset,
    guest: ByteOffset,
) -> Result<ByteLen> {
    read(file, grain, at, guest)?;
    let len = packed_len(file, grain, at, guest)?.get() + MARKER_BYTES as u64;
    Ok(ByteLen::new(len.next_multiple_of(SECTOR_BYTES)))
}

fn damaged(file: &dyn StorageFile, at: ByteOffset, what: &str) -> Error {
    Error::corrupt(format!("{}: the compressed grain at {at}: {what}", file.name()))
}

fn packed_len(
    file: &dyn StorageFile,
    grain: BlockShift,
    at: ByteOffset,
    guest: ByteOffset,
) -> Result<ByteLen> {
    let mut marker = [0; MARKER_BYTES];
    file.read_at(at, &mut marker)?;
    let (sector, size) = (le64(&marker, 0), u64::from(le32(&marker, 8)));
    if sector != guest.lba().get() {
        let what = format!("it is that of sector {sector}, not of {}", guest.lba().get());
        return Err(damaged(file, at, &what));
    }
    if size == 0 || size > packed_max(grain) {
        return Err(damaged(file, at, &format!("{size} bytes for a grain of {}", grain.bytes())));
    }
    Ok(ByteLen::new(size))
}

/// What a grain takes at most that cannot be packed, with room for writers that do it worse than zlib.
fn packed_max(grain: BlockShift) -> u64 {
    grain.bytes() + grain.bytes() / 8 + SECTOR_BYTES
}

/// A grain with its marker, filled up to whole sectors.
pub(super) fn encode(guest: ByteOffset, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(vec![0; MARKER_BYTES], flate2::Compression::default());
    let packed = encoder.write_all(bytes).and_then(|()| encoder.finish());
    let mut packed = packed.expect("a Vec takes everything");
    let size = u32::try_from(packed.len() - MARKER_BYTES).expect("a grain has at most 16 MiB");
    put(&mut packed, 0, &guest.lba().get().to_le_bytes());
    put(&mut packed, 8, &size.to_le_bytes());
    packed.resize(packed.len().next_multiple_of(SECTOR_BYTES as usize), 0);
    packed
}
