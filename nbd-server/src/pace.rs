//! Whether the requests of a connection are quick enough to be done one after the other by the thread that reads them.
//!
//! Handing the reading on to another thread costs more than a read from the page cache takes, but saves the others
//! from waiting where a request takes long. What counts is what requests have taken lately.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What a quick request takes at most, and per KiB.
const QUICK_US: u64 = 60;
const QUICK_US_PER_KIB: u64 = 2;
/// A slow request weighs as much as so many quick ones.
const SLOW_WEIGHT: u32 = 8;
/// From here on requests are done side by side. One slow request is chance, or a busy machine.
const SIDE_BY_SIDE: u32 = 16;
const WEIGHT_MAX: u32 = 64;

/// What requests have taken lately.
#[derive(Debug, Default)]
pub struct Pace {
    weight: AtomicU32,
}

impl Pace {
    /// Takes note of a request.
    pub fn note(&self, took: Duration, bytes: u64) {
        let quick_us = QUICK_US + (bytes >> 10) * QUICK_US_PER_KIB;
        let weight = self.weight.load(Ordering::Relaxed);
        let next = match took.as_micros() > u128::from(quick_us) {
            true => (weight + SLOW_WEIGHT).min(WEIGHT_MAX),
            false => weight.saturating_sub(1),
        };
        // Threads may overwrite each other's: it is an estimate.
        if next != weight {
            self.weight.store(next, Ordering::Relaxed);
        }
    }

    /// Whether another thread should read on while this one works.
    pub fn is_slow(&self) -> bool {
        self.weight.load(Ordering::Relaxed) >= SIDE_BY_SIDE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_slow_requests_make_a_slow_connection_and_quick_ones_a_quick_one_again() {
        let pace = Pace::default();
        let (slow, quick) = (Duration::from_millis(3), Duration::from_micros(9));
        pace.note(slow, 4096);
        assert!(!pace.is_slow());
        pace.note(slow, 4096);
        assert!(pace.is_slow());
        (0..20).for_each(|_| pace.note(slow, 0));
        (0..49).for_each(|_| pace.note(quick, 4096));
        assert!(!pace.is_slow());
        (0..9).for_each(|_| pace.note(Duration::from_millis(1), 1 << 20));
        assert!(!pace.is_slow(), "much takes longer");
    }
}
