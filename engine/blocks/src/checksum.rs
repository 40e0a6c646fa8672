//! CRC32C (Castagnoli, RFC 3720 appendix B.4): what every format of ours holds its bytes against.

use crc_fast::{CrcAlgorithm, Digest, checksum};

/// The checksum of these bytes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    low(checksum(CrcAlgorithm::Crc32Iscsi, bytes))
}

/// The checksum of the bytes that `crc` is of, with these behind them.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    // A digest goes on from what its state was before the final complement.
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    low(digest.finalize())
}

/// A CRC of 32 bits, which the library hands out in 64.
fn low(crc: u64) -> u32 {
    u32::try_from(crc).expect("a CRC of 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 3720, B.4.
    #[test]
    fn the_examples_of_the_specification() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        for (bytes, crc) in [
            (&[0; 32][..], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (&descending, 0x113f_db5c),
            (b"123456789", 0xe306_9283),
            (b"", 0),
        ] {
            assert_eq!(crc32c(bytes), crc, "{bytes:?}");
        }
    }

    /// A bit at a time, as the polynomial says; the library has a way of its own for each processor and length.
    fn by_the_bit(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
        })
    }

    proptest! {
        #[test]
        fn every_length_and_every_cut_is_what_the_polynomial_says(
            bytes in proptest::collection::vec(any::<u8>(), 0..6000),
            cut in any::<proptest::sample::Index>(),
        ) {
            let cut = cut.index(bytes.len() + 1);
            let expected = by_the_bit(&bytes);
            prop_assert_eq!(crc32c(&bytes), expected);
            prop_assert_eq!(crc32c_append(crc32c(&bytes[..cut]), &bytes[cut..]), expected);
        }
    }
}
