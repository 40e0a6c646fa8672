//! Whether the requests of a connection are quick enough to be done one after the other by the thread that reads them.
//!
//! Handing the reading on to another thread costs more than a read from the page cache takes, but saves the others
//! from waiting where a request takes long: because it waits for a device, or because there is much to compute. What counts
//! is what requests have taken lately. A thread that merely lost its core to another is no slow request: side by side
//! there would be more threads for the same cores. Nor is one whose client does not take its answer.
//!
//! Requests that are done side by side say little: where they share a lock, each waits for the others. So the decision holds
//! for some requests, and then the next ones are done alone again and looked at.
//!
//! ```text
//!   alone ── two slow ones ──► side by side, for `hold` requests ──► alone, unseen while others end ──► alone
//!                                hold doubles each time, until requests that are alone are quick
//! ```

use nix::sys::resource::{UsageWho, getrusage};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What a quick request takes at most, and per KiB.
const QUICK_US: u64 = 60;
const QUICK_US_PER_KIB: u64 = 2;
/// A slow request weighs as much as so many quick ones.
const SLOW_WEIGHT: u32 = 8;
/// From here on requests are done side by side. One slow request is chance, or a busy machine.
const SIDE_BY_SIDE: u32 = 16;
/// For how many requests, at first and at most.
const HOLD_MIN: u32 = 256;
const HOLD_MAX: u32 = 8192;
/// So many after them do not count, because of those that are not done yet.
const UNSEEN: u32 = 4;

/// What requests have taken lately.
///
/// Threads may overwrite each other's numbers: they are estimates.
#[derive(Debug)]
pub struct Pace {
    weight: AtomicU32,
    /// How many more are done side by side, and how many would be the next time.
    held: AtomicU32,
    hold: AtomicU32,
    unseen: AtomicU32,
}

/// A request that is being done.
#[derive(Debug)]
pub struct Begun {
    at: Instant,
    /// Of the thread that does it; looked up only after a slow request, as that costs a system call.
    before: Option<Usage>,
}

/// What a thread has used up.
#[derive(Debug, Clone, Copy)]
struct Usage {
    /// How often it has waited for something.
    waits: i64,
    computed_us: i64,
}

impl Usage {
    fn of_this_thread() -> Option<Usage> {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).ok()?;
        let micros = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
        let computed_us = micros(usage.user_time()) + micros(usage.system_time());
        Some(Usage { waits: usage.voluntary_context_switches(), computed_us })
    }
}

impl Default for Pace {
    fn default() -> Pace {
        let zero = || AtomicU32::new(0);
        Pace { weight: zero(), held: zero(), hold: AtomicU32::new(HOLD_MIN), unseen: zero() }
    }
}

impl Pace {
    /// A request begins on this thread.
    pub fn begin(&self) -> Begun {
        let is_suspect = self.weight.load(Ordering::Relaxed) > 0;
        Begun { at: Instant::now(), before: is_suspect.then(Usage::of_this_thread).flatten() }
    }

    /// It is done, on the same thread, and of that time was `sending` its answer; how long it took.
    pub fn end(&self, begun: Begun, sending: Duration, bytes: u64) -> Duration {
        let quick_us = QUICK_US + (bytes >> 10) * QUICK_US_PER_KIB;
        let took = begun.at.elapsed();
        let is_slow = took.saturating_sub(sending).as_micros() > u128::from(quick_us)
            && match (begun.before, Usage::of_this_thread()) {
                (Some(before), Some(after)) => {
                    let computed_us = after.computed_us - before.computed_us;
                    after.waits > before.waits || computed_us > quick_us.cast_signed()
                }
                _ => true,
            };
        self.note(is_slow);
        took
    }

    fn note(&self, is_slow: bool) {
        let (held, unseen) = (self.held.load(Ordering::Relaxed), self.unseen.load(Ordering::Relaxed));
        if held > 0 {
            if held == 1 {
                self.unseen.store(UNSEEN, Ordering::Relaxed);
            }
            self.held.store(held - 1, Ordering::Relaxed);
            return;
        }
        if unseen > 0 {
            self.unseen.store(unseen - 1, Ordering::Relaxed);
            return;
        }
        let weight = self.weight.load(Ordering::Relaxed);
        let next = if is_slow { weight + SLOW_WEIGHT } else { weight.saturating_sub(1) };
        if next >= SIDE_BY_SIDE {
            let hold = self.hold.load(Ordering::Relaxed);
            self.held.store(hold, Ordering::Relaxed);
            self.hold.store((hold * 2).min(HOLD_MAX), Ordering::Relaxed);
            self.weight.store(0, Ordering::Relaxed);
        } else if next != weight {
            self.weight.store(next, Ordering::Relaxed);
            if next == 0 {
                self.hold.store(HOLD_MIN, Ordering::Relaxed);
            }
        }
    }

    /// Whether another thread should read on while this one works.
    pub fn is_slow(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pace: &Pace, bytes: u64, work: impl FnOnce()) {
        let begun = pace.begin();
        work();
        pace.end(begun, Duration::ZERO, bytes);
    }

    #[test]
    fn two_that_wait_make_a_slow_connection_and_quick_ones_a_quick_one_again() {
        let pace = Pace::default();
        let wait = || std::thread::sleep(Duration::from_millis(3));
        request(&pace, 4096, wait);
        assert!(!pace.is_slow());
        request(&pace, 4096, wait);
        assert!(pace.is_slow());
        (0..HOLD_MIN).for_each(|_| pace.note(true));
        assert!(!pace.is_slow(), "what is done side by side does not prolong it");
        (0..UNSEEN).for_each(|_| pace.note(true));
        assert!(!pace.is_slow(), "what is left of it neither");
        (0..2).for_each(|_| request(&pace, 0, wait));
        (0..HOLD_MIN + 1).for_each(|_| pace.note(false));
        assert!(pace.is_slow(), "slow when alone, for twice as long");
        (0..HOLD_MIN + UNSEEN + 64).for_each(|_| pace.note(false));
        assert!(!pace.is_slow());
    }

    #[test]
    fn a_client_that_does_not_take_its_answer_is_no_slow_request() {
        let pace = Pace::default();
        for _ in 0..8 {
            let (begun, waiting) = (pace.begin(), Instant::now());
            std::thread::sleep(Duration::from_millis(3));
            pace.end(begun, waiting.elapsed(), 4096);
        }
        assert!(!pace.is_slow());
    }

    #[test]
    fn much_to_compute_is_slow_as_well() {
        let pace = Pace::default();
        let compute = || {
            let before = Usage::of_this_thread().unwrap().computed_us;
            while Usage::of_this_thread().unwrap().computed_us < before + 2000 {}
        };
        (0..3).for_each(|_| request(&pace, 4096, compute));
        assert!(pace.is_slow());
    }

    #[test]
    fn much_data_may_take_longer() {
        let pace = Pace::default();
        // Twenty seconds are allowed.
        (0..9).for_each(|_| request(&pace, 10 << 30, || std::thread::sleep(Duration::from_millis(1))));
        assert!(!pace.is_slow());
    }

    #[test]
    fn a_lost_core_is_no_slow_request() {
        let pace = Pace::default();
        pace.note(true);
        let lost = Begun { at: Instant::now() - Duration::from_secs(1), before: Usage::of_this_thread() };
        pace.end(lost, Duration::ZERO, 4096);
        assert!(!pace.is_slow());
    }
}
