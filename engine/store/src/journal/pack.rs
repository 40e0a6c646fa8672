//! A compressed payload: how long it is, LZ4, zeroes up to a multiple of 256. docs/formats/store.md has the table.

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

/// What stored lengths are counted in: an index entry has one byte for it.
pub(crate) const PACK_UNIT_BYTES: usize = 256;
const LEN_BYTES: usize = 2;

/// The stored form of a payload; `None` where it would not save an eighth at least.
pub(crate) fn pack(payload: &[u8]) -> Option<Vec<u8>> {
    let mut stored = vec![0; LEN_BYTES + get_maximum_output_size(payload.len())];
    let len = compress_into(payload, &mut stored[LEN_BYTES..]).ok()?;
    let whole = (LEN_BYTES + len).next_multiple_of(PACK_UNIT_BYTES);
    if whole > payload.len() / 8 * 7 {
        return None;
    }
    stored[..LEN_BYTES].copy_from_slice(&u16::try_from(len).ok()?.to_le_bytes());
    stored.truncate(LEN_BYTES + len);
    stored.resize(whole, 0);
    Some(stored)
}

/// How many units a stored form has.
pub(crate) fn units(stored: &[u8]) -> u8 {
    u8::try_from(stored.len() / PACK_UNIT_BYTES)
        .expect("what saves an eighth of 64 KiB has fewer than 256 units")
}

/// Fills `payload` from its stored form; `None` where that is not what [`pack`] has made of as many bytes.
pub(crate) fn unpack(stored: &[u8], payload: &mut [u8]) -> Option<()> {
    let (len, rest) = stored.split_first_chunk::<LEN_BYTES>()?;
    let packed = rest.get(..usize::from(u16::from_le_bytes(*len)))?;
    (decompress_into(packed, payload).ok()? == payload.len()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn reads_what_it_writes_and_leaves_alone_what_does_not_shrink() {
        let mut random = Random::new(1);
        for len in [512, 4096, 65536 - 512, 65536] {
            let mut bytes = vec![0; len];
            random.fill(&mut bytes);
            assert_eq!(pack(&bytes), None, "noise of {len} bytes");
            for chunk in bytes.chunks_mut(64) {
                chunk[8..].fill(7);
            }
            let stored = pack(&bytes).unwrap();
            assert!(
                stored.len() <= len / 8 * 7 && usize::from(units(&stored)) * PACK_UNIT_BYTES == stored.len()
            );
            let mut again = vec![0; len];
            unpack(&stored, &mut again).unwrap();
            assert!(again == bytes);
            assert_eq!(unpack(&stored, &mut vec![0; len - 512]), None, "too short a payload");
            assert_eq!(unpack(&stored, &mut vec![0; len + 512]), None, "too long a payload");
        }
    }
}
