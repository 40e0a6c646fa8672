//! Puts right the checksums that keep mutated bytes from what lies behind them, as if somebody had written the file so.

use blocks::{ByteLen, ByteOffset, StorageFile};
use std::ops::Range;

const VHD_FOOTER_BYTES: u64 = 512;
/// Where VHDX has its two headers and its two region tables, how long each is, and how it begins.
const VHDX_STRUCTURES: [(u64, usize, &[u8; 4]); 4] = [
    (64 << 10, 4096, b"head"),
    (128 << 10, 4096, b"head"),
    (192 << 10, 64 << 10, b"regi"),
    (256 << 10, 64 << 10, b"regi"),
];
const VHDX_LOG_SECTOR: usize = 4096;
const VHDX_LOG_ENTRY_MAX: usize = 1 << 20;

/// The sums of a VHD: both footers, and the dynamic header that the first of them leads to.
pub fn vhd(file: &dyn StorageFile) {
    let Ok(len) = file.len().map(ByteLen::get) else { return };
    for at in [Some(0), len.checked_sub(VHD_FOOTER_BYTES)].into_iter().flatten() {
        let Some(footer) = read(file, at, 512).filter(|footer| footer.starts_with(b"conectix")) else {
            continue;
        };
        seal_sum(file, at, &footer, 64);
        let header_at = be64(&footer, 16);
        if let Some(header) = read(file, header_at, 1024).filter(|header| header.starts_with(b"cxsparse")) {
            seal_sum(file, header_at, &header, 36);
        }
    }
}

/// The sums of a VHDX: headers, region tables and the entries of the log.
pub fn vhdx(file: &dyn StorageFile) {
    for (at, len, signature) in VHDX_STRUCTURES {
        if let Some(bytes) = read(file, at, len).filter(|bytes| bytes.starts_with(signature)) {
            seal_crc(file, at, &bytes);
        }
    }
    let mut at = ByteOffset::ZERO;
    while let Ok(Some(data)) = file.next_data(at) {
        let first = data.start().get().next_multiple_of(VHDX_LOG_SECTOR as u64);
        for at in (first..data.end().get()).step_by(VHDX_LOG_SECTOR) {
            let Some(head) = read(file, at, 64).filter(|head| head.starts_with(b"loge")) else { continue };
            let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
            if let Some(entry) = read(file, at, len.min(VHDX_LOG_ENTRY_MAX)).filter(|entry| entry.len() >= 64)
            {
                seal_crc(file, at, &entry);
            }
        }
        at = data.end();
    }
}

/// Formats without sums of their structures.
pub fn nothing(_file: &dyn StorageFile) {}

fn read(file: &dyn StorageFile, at: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_at(ByteOffset::new(at), &mut bytes).ok().map(|()| bytes)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The complement of the sum of all bytes but its own.
fn seal_sum(file: &dyn StorageFile, at: u64, bytes: &[u8], sum_at: usize) {
    let own: Range<usize> = sum_at..sum_at + 4;
    let counted = bytes.iter().enumerate().filter(|(at, _)| !own.contains(at));
    let sum = !counted.fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    put(file, at + sum_at as u64, &sum.to_be_bytes());
}

/// CRC32C over all, with the four bytes from the fourth on taken as zero.
fn seal_crc(file: &dyn StorageFile, at: u64, bytes: &[u8]) {
    let sum = blocks::crc32c_append(blocks::crc32c_append(blocks::crc32c(&bytes[..4]), &[0; 4]), &bytes[8..]);
    put(file, at + 4, &sum.to_le_bytes());
}

fn put(file: &dyn StorageFile, at: u64, bytes: &[u8]) {
    file.write_at(ByteOffset::new(at), bytes).expect("bytes that were just read");
}
