//! How long requests took, in buckets of equal ratio.
//!
//! Each power of two of nanoseconds from 1024 up to 2^36 (69 s) is cut in four, so that a bound is never more than a
//! quarter above what was measured; what is quicker, and what is slower, has one bucket each.

use std::time::Duration;

/// Powers of two: the first that is cut, and the first that is no longer.
const FIRST_POWER: u32 = 10;
const END_POWER: u32 = 36;
/// Parts of a power of two, as a power of two.
const PARTS_POWER: u32 = 2;
const PARTS: usize = 1 << PARTS_POWER;
/// Buckets, those at both ends included.
pub(super) const BUCKETS: usize = 2 + (END_POWER - FIRST_POWER) as usize * PARTS;

/// The bucket of so many nanoseconds.
pub(super) fn bucket(nanoseconds: u64) -> usize {
    let Some(power) = nanoseconds.checked_ilog2().filter(|power| *power >= FIRST_POWER) else { return 0 };
    if power >= END_POWER {
        return BUCKETS - 1;
    }
    let part = (nanoseconds >> (power - PARTS_POWER)) as usize % PARTS;
    1 + (power - FIRST_POWER) as usize * PARTS + part
}

/// What a bucket's latencies are below; `None` for the last one.
fn bound(bucket: usize) -> Option<u64> {
    let Some(cut) = bucket.checked_sub(1) else { return Some(1 << FIRST_POWER) };
    let power = FIRST_POWER as usize + cut / PARTS;
    (bucket < BUCKETS - 1).then(|| ((PARTS + cut % PARTS + 1) as u64) << (power - PARTS_POWER as usize))
}

/// A histogram of latencies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latency {
    pub(super) buckets: [u64; BUCKETS],
    pub(super) sum: Duration,
    pub(super) longest: Duration,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency { buckets: [0; BUCKETS], sum: Duration::ZERO, longest: Duration::ZERO }
    }
}

impl Latency {
    /// How many were measured.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The longest one.
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// What so many of a thousand took at most, up to a quarter too high; `None` where nothing was measured.
    pub fn permille(&self, permille: u64) -> Option<Duration> {
        let count = self.count();
        let wanted = (count * permille.min(1000)).div_ceil(1000).max(1);
        let mut below = 0;
        let bucket = self.buckets.iter().position(|in_bucket| {
            below += in_bucket;
            below >= wanted
        })?;
        Some(bound(bucket).map_or(self.longest, Duration::from_nanos).min(self.longest))
    }

    /// The buckets that are not empty, quickest first: what their latencies are below, which for the last one is nothing,
    /// and how many there are.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        let filled = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| (bound(bucket).map(Duration::from_nanos), *count))
    }

    pub(super) fn add(&mut self, other: &Latency) {
        for (sum, other) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += other;
        }
        self.sum += other.sum;
        self.longest = self.longest.max(other.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_latency_is_below_its_bound_and_not_below_the_one_before(nanoseconds: u64, shift in 0u32..64) {
            let nanoseconds = nanoseconds >> shift;
            let bucket = bucket(nanoseconds);
            prop_assert!(bound(bucket).is_none_or(|bound| nanoseconds < bound));
            if let Some(before) = bucket.checked_sub(1) {
                let before = bound(before).unwrap();
                prop_assert!(nanoseconds >= before);
                prop_assert!(bound(bucket).is_none_or(|bound| bound - before <= before / 4));
            }
        }
    }

    #[test]
    fn bounds_are_the_powers_of_two_and_three_between() {
        let bounds: Vec<_> = (0..6).map(|bucket| bound(bucket).unwrap()).collect();
        assert_eq!(bounds, [1024, 1280, 1536, 1792, 2048, 2560]);
        assert_eq!(bound(BUCKETS - 2), Some(1 << END_POWER));
        assert_eq!(bound(BUCKETS - 1), None);
        let mut latency = Latency::default();
        latency.buckets[bucket(1 << END_POWER)] = 1;
        latency.buckets[bucket(1300)] = 2;
        let filled: Vec<_> = latency.buckets().collect();
        assert_eq!(filled, [(Some(Duration::from_nanos(1536)), 2), (None, 1)]);
    }

    #[test]
    fn quantiles_are_bounds_and_never_above_the_longest() {
        let mut latency = Latency::default();
        assert_eq!(latency.permille(500), None);
        latency.buckets[bucket(10_000)] = 98;
        latency.buckets[bucket(1_000_000)] = 2;
        latency.longest = Duration::from_nanos(1_000_001);
        assert_eq!(latency.permille(500), Some(Duration::from_nanos(10_240)));
        assert_eq!(latency.permille(980), Some(Duration::from_nanos(10_240)));
        assert_eq!(latency.permille(990), Some(Duration::from_nanos(1_000_001)));
        assert_eq!(
            (latency.permille(0), latency.permille(5000)),
            (latency.permille(1), latency.permille(1000))
        );
    }
}
