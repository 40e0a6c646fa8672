//! Whether bytes are compressed on their way: where the medium is slower than the compressor and the data shrinks.
//!
//! ```text
//!            a sample in 64 (up to 4096 while samples do not shrink)
//!        ┌──────────────────────────────────────────────┐
//!        ▼         gain > 1.25 cost, shrinks to < 0.85  │
//!       off ────────────────────────────────────────────► on
//!        ▲         gain < 0.8 cost, or shrinks to > 0.95 │
//!        └───────────────────────────────────────────────┘
//! ```
//! The gain of a byte is the share that it shrinks by, times what the medium takes for a byte; the cost is what the compressor
//! takes. All three are moving averages of what was measured here, on this disk or link, lately.

use crate::{Error, ErrorKind, Result};
use std::time::Duration;

/// Whether what is stored or sent is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all; what is compressed already is still read.
    #[default]
    Never,
    /// Where it was measured to pay.
    Auto,
    /// Whatever shrinks by an eighth: for space, not for speed.
    Always,
}

impl std::str::FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Compression> {
        match text {
            "never" => Ok(Compression::Never),
            "auto" => Ok(Compression::Auto),
            "always" => Ok(Compression::Always),
            other => {
                let context = format!("'{other}' is not one of auto, always, never");
                Err(Error::new(ErrorKind::InvalidInput, context))
            }
        }
    }
}

/// While it is off, one payload in so many is a sample.
const SAMPLE_EVERY: u32 = 64;
/// The same once samples have not shrunk again and again.
const SAMPLE_EVERY_MAX: u32 = 4096;
/// A sync of fewer bytes says more about its own cost than about the medium's speed.
const MEDIUM_BYTES_MIN: u64 = 256 << 10;
/// The weight of a new measurement.
const WEIGHT: f64 = 0.125;

/// What was measured of one medium, and what follows from it. Pure.
#[derive(Debug)]
pub struct CompressionGauge {
    on: bool,
    /// What is left of a byte.
    shrink: Option<f64>,
    /// Nanoseconds a byte.
    pack_cost: Option<f64>,
    medium_cost: Option<f64>,
    since_sample: u32,
    sample_every: u32,
}

impl Default for CompressionGauge {
    fn default() -> CompressionGauge {
        CompressionGauge {
            on: false,
            shrink: None,
            pack_cost: None,
            medium_cost: None,
            since_sample: 0,
            sample_every: SAMPLE_EVERY,
        }
    }
}

impl CompressionGauge {
    /// Whether this piece of data is to be compressed, if only to see what comes of it.
    pub fn is_due(&mut self) -> bool {
        self.since_sample += 1;
        if !self.on && self.since_sample < self.sample_every {
            return false;
        }
        self.since_sample = 0;
        true
    }

    /// A piece of `len` bytes became `stored` ones in that time; whether it is to be used so.
    pub fn sample(&mut self, len: usize, stored: usize, took: Duration) -> bool {
        let shrink = stored as f64 / len.max(1) as f64;
        average(&mut self.shrink, shrink);
        average(&mut self.pack_cost, took.as_nanos() as f64 / len.max(1) as f64);
        self.sample_every =
            if shrink < 1.0 { SAMPLE_EVERY } else { (self.sample_every * 2).min(SAMPLE_EVERY_MAX) };
        self.on = self.decide();
        self.on
    }

    /// So many bytes took the medium so long. A few bytes say more about what each access costs: ignored.
    pub fn note_medium(&mut self, bytes: u64, took: Duration) {
        if bytes >= MEDIUM_BYTES_MIN {
            average(&mut self.medium_cost, took.as_nanos() as f64 / bytes as f64);
        }
    }

    fn decide(&self) -> bool {
        let (Some(shrink), Some(cost), Some(medium)) = (self.shrink, self.pack_cost, self.medium_cost) else {
            return false;
        };
        let gain = (1.0 - shrink) * medium;
        match self.on {
            true => gain > 0.8 * cost && shrink < 0.95,
            false => gain > 1.25 * cost && shrink < 0.85,
        }
    }
}

fn average(value: &mut Option<f64>, new: f64) {
    *value = Some(value.map_or(new, |old| old + WEIGHT * (new - old)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 64 << 10;

    fn state(medium_cost: f64) -> CompressionGauge {
        CompressionGauge { medium_cost: Some(medium_cost), ..CompressionGauge::default() }
    }

    /// A sample of 64 KiB that shrinks to `stored` of 100 at `cost` nanoseconds a byte.
    fn sample(state: &mut CompressionGauge, stored: usize, cost: f64) -> bool {
        state.sample(LEN, LEN * stored / 100, Duration::from_nanos((LEN as f64 * cost) as u64))
    }

    #[test]
    fn it_is_on_only_where_the_medium_is_slower_and_the_data_shrinks() {
        // A disk of 100 MB/s is 10 ns a byte, one of 5 GB/s 0.2; the compressor takes 1.5.
        assert!(sample(&mut state(10.0), 50, 1.5));
        assert!(!sample(&mut state(0.2), 50, 1.5), "the disk is faster than the compressor");
        assert!(!sample(&mut state(10.0), 100, 1.5), "it does not shrink");
        let mut unknown = CompressionGauge::default();
        assert!(!sample(&mut unknown, 10, 1.5), "nobody knows the disk yet");
    }

    #[test]
    fn it_does_not_flap_between() {
        // The gain is 0.5 of the medium's 3 ns: as much as the cost.
        for on in [false, true] {
            let mut state = CompressionGauge { on, ..state(3.0) };
            let seen: Vec<bool> = (0..50).map(|_| sample(&mut state, 50, 1.5)).collect();
            assert!(seen.iter().all(|seen| *seen == on), "{seen:?}");
        }
        let mut state = CompressionGauge { on: true, ..state(3.0) };
        assert!((0..50).any(|_| !sample(&mut state, 80, 1.5)), "but it ends when it no longer pays");
    }

    #[test]
    fn data_that_does_not_shrink_is_looked_at_seldom() {
        let mut state = state(10.0);
        let mut looked = 0;
        for _ in 0..100_000 {
            if state.is_due() {
                looked += 1;
                sample(&mut state, 100, 1.5);
            }
        }
        assert!((20..60).contains(&looked), "{looked} of 100,000");
        let until_on = (0..200_000).find(|_| state.is_due() && sample(&mut state, 30, 1.5));
        assert!(
            until_on.is_some_and(|tried| tried < 20_000),
            "and compressible data is noticed: {until_on:?}"
        );
    }
}
