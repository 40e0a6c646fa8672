//! Whether payloads of a disk's logs are compressed, and that.

use super::pack::pack;
use blocks::{Compression, CompressionGauge};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Decides for one disk.
#[derive(Debug)]
pub(crate) struct Packer {
    mode: Compression,
    gauge: Mutex<CompressionGauge>,
}

impl Packer {
    pub(crate) fn new(mode: Compression) -> Packer {
        Packer { mode, gauge: Mutex::default() }
    }

    /// The stored form of a payload, where it is to be compressed and shrinks.
    pub(crate) fn pack(&self, payload: &[u8]) -> Option<Vec<u8>> {
        match self.mode {
            Compression::Never => None,
            Compression::Always => pack(payload),
            Compression::Auto if self.lock().is_due() => {
                let begun = Instant::now();
                let packed = pack(payload);
                let stored = packed.as_ref().map_or(payload.len(), Vec::len);
                let on = self.lock().sample(payload.len(), stored, begun.elapsed());
                packed.filter(|_| on)
            }
            Compression::Auto => None,
        }
    }

    /// So many bytes took the medium so long.
    pub(crate) fn note_medium(&self, bytes: u64, took: Duration) {
        if self.mode == Compression::Auto {
            self.lock().note_medium(bytes, took);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, CompressionGauge> {
        self.gauge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_medium_leaves_it_off_whatever_is_written() {
        let packer = Packer::new(Compression::Auto);
        for _ in 0..1000 {
            packer.note_medium(1 << 20, Duration::from_micros(10));
            assert_eq!(packer.pack(&[7; 4096]), None);
        }
        for _ in 0..1000 {
            packer.note_medium(1 << 20, Duration::from_secs(1));
        }
        assert!((0..200).any(|_| packer.pack(&[7; 4096]).is_some()), "a slow one turns it on");
    }
}
