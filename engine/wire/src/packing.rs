//! Packed payloads: how long they are, then LZ4. docs/formats/wire.md has the table.

use crate::frame::PAYLOAD_BYTES_MAX;
use blocks::{Compression, CompressionGauge, Error, Result};
use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};
use std::time::{Duration, Instant};

const LEN_BYTES: usize = 4;
/// Less is not worth the call.
const PACKED_FROM_BYTES: usize = 1 << 10;
/// The longest packed form: what does not save an eighth is sent as it is.
pub(crate) const PAYLOAD_PACKED_BYTES_MAX: u32 = PAYLOAD_BYTES_MAX / 8 * 7;

/// The packed form of a payload; `None` where it would not save an eighth.
pub(crate) fn pack(payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() < PACKED_FROM_BYTES {
        return None;
    }
    let mut packed = vec![0; LEN_BYTES + get_maximum_output_size(payload.len())];
    packed[..LEN_BYTES].copy_from_slice(&u32::try_from(payload.len()).ok()?.to_le_bytes());
    let len = LEN_BYTES + compress_into(payload, &mut packed[LEN_BYTES..]).ok()?;
    packed.truncate(len);
    (len <= payload.len() / 8 * 7).then_some(packed)
}

/// The payload of a packed form. `Corrupt` where it is none, or too long; memory is taken only for what is allowed.
pub(crate) fn unpack(packed: &[u8]) -> Result<Vec<u8>> {
    let wrong = |what: &str| Error::corrupt(format!("a packed payload of {} bytes {what}", packed.len()));
    let (len, rest) = packed.split_first_chunk::<LEN_BYTES>().ok_or_else(|| wrong("has no length"))?;
    let len = u32::from_le_bytes(*len);
    if len > PAYLOAD_BYTES_MAX {
        return Err(wrong(&format!("announces {len}; {PAYLOAD_BYTES_MAX} are allowed")));
    }
    let mut payload = vec![0; len as usize];
    match decompress_into(rest, &mut payload) {
        Ok(count) if count == payload.len() => Ok(payload),
        Ok(count) => Err(wrong(&format!("holds {count} and announces {len}"))),
        Err(error) => Err(wrong(&format!("is no LZ4: {error}"))),
    }
}

/// Decides for one connection.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    pub mode: Compression,
    gauge: CompressionGauge,
    /// What was sent since the link was measured last.
    sent: u64,
    took: Duration,
}

impl Packer {
    /// The packed form of a payload, where it is to be sent so.
    pub fn pack(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        match self.mode {
            Compression::Always => pack(payload),
            Compression::Auto if payload.len() >= PACKED_FROM_BYTES && self.gauge.is_due() => {
                let begun = Instant::now();
                let packed = pack(payload);
                let left = packed.as_ref().map_or(payload.len(), Vec::len);
                let is_on = self.gauge.sample(payload.len(), left, begun.elapsed());
                packed.filter(|_| is_on)
            }
            Compression::Auto | Compression::Never => None,
        }
    }

    /// So many bytes took so long to leave. Small messages count together.
    pub fn note_sent(&mut self, bytes: usize, took: Duration) {
        self.sent += bytes as u64;
        self.took += took;
        if self.sent >= u64::from(PAYLOAD_BYTES_MAX) {
            self.gauge.note_medium(self.sent, self.took);
            (self.sent, self.took) = (0, Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::ErrorKind;

    #[test]
    fn reads_what_it_writes_and_leaves_alone_what_does_not_shrink() {
        let noise: Vec<u8> = (0..1u64 << 17)
            .flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n << 21).to_le_bytes())
            .collect();
        assert_eq!(pack(&noise), None);
        assert_eq!(pack(&[7; 512]), None, "too little");
        for len in [1024, 4096, 1 << 20] {
            let text: Vec<u8> = noise[..len].iter().map(|byte| byte & 3).collect();
            let packed = pack(&text).unwrap();
            assert!(packed.len() <= len / 8 * 7);
            assert!(unpack(&packed).unwrap() == text);
        }
    }

    #[test]
    fn what_is_no_packed_payload_is_refused() {
        let packed = pack(&[7; 4096]).unwrap();
        let with_len = |len: u32| [&len.to_le_bytes()[..], &packed[4..]].concat();
        let cases = [vec![1, 2], with_len(4095), with_len(4097), with_len(u32::MAX), packed[..8].to_vec()];
        for (number, case) in cases.iter().enumerate() {
            assert_eq!(unpack(case).unwrap_err().kind(), ErrorKind::Corrupt, "{number}");
        }
    }

    #[test]
    fn a_slow_link_packs_and_a_fast_one_does_not() {
        let mut packer = Packer { mode: Compression::Auto, ..Packer::default() };
        for _ in 0..1000 {
            packer.note_sent(1 << 20, Duration::from_micros(10));
            assert_eq!(packer.pack(&[7; 4096]), None);
        }
        for _ in 0..1000 {
            packer.note_sent(64 << 10, Duration::from_millis(60));
        }
        assert!((0..200).any(|_| packer.pack(&[7; 4096]).is_some()), "a slow one turns it on");
    }
}
