//! Coming close enough that the rest can be read within the budget, and seeing when it gets no closer.

use super::BarrierSettings;
use super::freeze::sync_all;
use crate::copy::Replica;
use crate::link::Link;
use crate::mounts::superblocks;
use blocks::{ByteLen, Result};
use std::time::{Duration, Instant};

/// How many passes there are before it is said that the machine writes faster than it can be copied.
const ROUNDS_MAX: u32 = 12;
/// A pass that found at least this share of what the one before found: the rate is steady, waiting brings nothing.
const STEADY: f64 = 0.75;
/// How much of the budget may be expected to be used where waiting brings nothing. Reading ends at 0.8 of it.
const STEADY_SHARE: f64 = 0.7;

/// One pass over all disks.
#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    copied: ByteLen,
    /// How long reading took, without waiting for the network.
    read: Duration,
    /// How long all of it took.
    whole: Duration,
    /// How long writing out took before it.
    synced: Duration,
}

impl Pass {
    /// How long the machine would stand still for as much again: what fits in memory is only read, the rest waits for
    /// the network.
    fn standstill(&self, held_bytes_max: u64) -> Duration {
        let copied = self.copied.get();
        let excess = copied.saturating_sub(held_bytes_max);
        let waiting = self.whole.saturating_sub(self.read);
        let share = if copied == 0 { 0.0 } else { excess as f64 / copied as f64 };
        self.read + waiting.mul_f64(share)
    }

    /// Whether to freeze now.
    fn is_the_moment(&self, before: Option<&Pass>, settings: &BarrierSettings) -> bool {
        let half = settings.budget / 2;
        let standstill = self.standstill(settings.held_bytes_max);
        let steady =
            before.is_some_and(|before| self.copied.get() as f64 >= before.copied.get() as f64 * STEADY);
        (standstill <= half && self.synced <= half)
            || (steady && standstill + self.synced <= settings.budget.mul_f64(STEADY_SHARE))
    }
}

/// Copies and writes out until the moment to freeze has come. The reason where it never does.
pub(super) fn warm(
    replicas: &mut [Replica],
    link: &Link,
    settings: &BarrierSettings,
) -> Result<Option<String>> {
    let numbers: Vec<_> = replicas.iter().map(|replica| replica.disk.number()).collect();
    let all_scanned = replicas.iter().all(Replica::is_scanned);
    let mut before: Option<Pass> = None;
    for _ in 0..ROUNDS_MAX {
        link.check()?;
        let synced = sync_all(&superblocks(&numbers));
        let began = Instant::now();
        let mut now = Pass { synced, ..Pass::default() };
        for replica in replicas.iter_mut() {
            replica.reader.read_time = Duration::ZERO;
            now.copied += pass(replica, link)?;
            now.read += replica.reader.read_time;
            if let Some(reason) = too_slow_to_scan(replica, settings) {
                return Ok(Some(reason));
            }
        }
        now.whole = began.elapsed();
        // What a scan needs was judged above.
        if all_scanned {
            now.read = Duration::ZERO;
        }
        if now.is_the_moment(before.as_ref(), settings) {
            return Ok(None);
        }
        before = Some(now);
    }
    let Pass { copied, read, whole, synced } = before.unwrap_or_default();
    Ok(Some(format!(
        "the machine writes faster than it can be copied: the last of {ROUNDS_MAX} passes found {copied} bytes, took \
         {whole:?} to copy ({read:?} to read) and {synced:?} to write out, against a budget of {:?}",
        settings.budget
    )))
}

fn too_slow_to_scan(replica: &Replica, settings: &BarrierSettings) -> Option<String> {
    let read = replica.reader.read_time;
    let too_slow = replica.is_scanned() && read > settings.budget.mul_f64(0.7);
    too_slow.then(|| {
        format!(
            "{}: without a tracker the whole disk is read while frozen, which takes {read:?} of {:?}",
            replica.disk.path().display(),
            settings.budget
        )
    })
}

/// What is marked now is copied; what is marked meanwhile is for the next pass.
fn pass(replica: &mut Replica, link: &Link) -> Result<ByteLen> {
    if replica.is_scanned() {
        return replica.sweep(link);
    }
    replica.take_acks(link)?;
    let marked = replica.tracker.backlog()?;
    let mut copied = ByteLen::ZERO;
    while copied < marked {
        link.check()?;
        match replica.copy_marked(link)? {
            ByteLen::ZERO => break,
            bytes => copied += bytes,
        }
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(mib: u64, read_ms: u64, whole_ms: u64) -> Pass {
        let [read, whole] = [read_ms, whole_ms].map(Duration::from_millis);
        Pass { copied: ByteLen::new(mib << 20), read, whole, synced: Duration::ZERO }
    }

    #[test]
    fn only_time_decides() {
        let settings = BarrierSettings::default();
        // More than may be held, but quickly copied.
        assert!(pass(34, 536, 700).is_the_moment(None, &settings));
        // What fits in memory does not wait for a slow network; what exceeds it does.
        assert!(pass(30, 100, 60_000).is_the_moment(None, &settings));
        assert!(!pass(64, 100, 60_000).is_the_moment(None, &settings));
        assert!(!pass(30, 1_900, 1_900).is_the_moment(None, &settings));
    }

    #[test]
    fn a_steady_rate_is_frozen_at_once_and_a_falling_one_is_waited_for() {
        let settings = BarrierSettings::default();
        let now = pass(30, 1_300, 1_300);
        assert!(!now.is_the_moment(None, &settings));
        assert!(!now.is_the_moment(Some(&pass(90, 3_000, 3_000)), &settings));
        assert!(now.is_the_moment(Some(&pass(31, 1_350, 1_350)), &settings));
        assert!(!pass(30, 1_500, 1_500).is_the_moment(Some(&pass(30, 1_500, 1_500)), &settings));
    }
}
