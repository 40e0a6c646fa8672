//! Making way for the machine during a pass over its whole disk.
//!
//! A pass reads as fast as the disk gives, and a disk that is busy with that lets the machine wait. So after each step the
//! kernel is asked how long the machine's writes took meanwhile (the agent itself writes nothing there). Where that is many
//! times what they have taken on average since the disk was attached, the pass rests, longer each time, up to
//! sixteen times as long as it works; once they are as quick as ever it is as quick as ever, too.

use std::time::{Duration, Instant};

/// So much slower than usual is too slow.
const TOO_SLOW: f64 = 4.0;
/// What nobody notices is never too slow.
const UNNOTICED: Duration = Duration::from_millis(10);
/// So few writes say nothing of a step, and of what is usual.
const WRITES_MIN: u64 = 8;
const USUAL_WRITES_MIN: u64 = 256;
/// How much longer than it works a pass rests at most.
const REST_MAX: u32 = 16;

/// What the kernel has counted of a disk's writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WriteTimes {
    /// How many were completed.
    pub writes: u64,
    /// How long they took, together.
    pub took: Duration,
}

impl WriteTimes {
    /// How long one took between the two, where there were enough.
    fn each_since(self, before: WriteTimes, enough: u64) -> Option<Duration> {
        let writes = self.writes.saturating_sub(before.writes);
        let took = self.took.saturating_sub(before.took);
        (writes >= enough).then(|| took.div_f64(writes as f64))
    }
}

/// One pass's.
#[derive(Debug)]
pub(crate) struct Courtesy {
    /// What a write took before the pass.
    usual: Option<Duration>,
    seen: WriteTimes,
    /// How many times as long as a step took is rested after it.
    rest: u32,
    until: Option<Instant>,
}

impl Courtesy {
    /// A pass begins on a disk that has counted so much.
    pub fn begin(now: WriteTimes) -> Courtesy {
        let usual = now.each_since(WriteTimes::default(), USUAL_WRITES_MIN);
        Courtesy { usual, seen: now, rest: 0, until: None }
    }

    /// A step has ended that took so long. How long writes take now, where that made it begin to rest.
    pub fn stepped(&mut self, now: WriteTimes, took: Duration, at: Instant) -> Option<Duration> {
        let each = now.each_since(self.seen, WRITES_MIN);
        self.seen = now;
        let began_at_rest = self.rest > 0;
        let too_slow = each
            .zip(self.usual)
            .filter(|(each, usual)| *each > UNNOTICED && each.as_secs_f64() > usual.as_secs_f64() * TOO_SLOW);
        self.rest = match too_slow {
            Some(_) => (self.rest * 2).clamp(1, REST_MAX),
            None => self.rest / 2,
        };
        self.until = (self.rest > 0).then(|| at + took * self.rest);
        too_slow.filter(|_| !began_at_rest).map(|(each, _)| each)
    }

    /// Whether the pass rests.
    pub fn rests(&self, at: Instant) -> bool {
        self.until.is_some_and(|until| at < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(20);

    fn times(writes: u64, each_us: u64) -> WriteTimes {
        WriteTimes { writes, took: Duration::from_micros(writes * each_us) }
    }

    fn later(before: WriteTimes, writes: u64, each_us: u64) -> WriteTimes {
        let more = times(writes, each_us);
        WriteTimes { writes: before.writes + more.writes, took: before.took + more.took }
    }

    #[test]
    fn a_pass_rests_longer_and_longer_while_writes_are_slow_and_hurries_when_they_are_not() {
        let at = Instant::now();
        let mut counted = times(10_000, 1_000);
        let mut courtesy = Courtesy::begin(counted);
        assert!(!courtesy.rests(at));
        let mut rested = Vec::new();
        for each_us in
            [1_500, 60_000, 60_000, 60_000, 60_000, 60_000, 60_000, 1_000, 1_000, 1_000, 1_000, 1_000]
        {
            counted = later(counted, 100, each_us);
            courtesy.stepped(counted, STEP, at);
            rested
                .push(courtesy.until.map_or(0, |until| ((until - at).as_millis() / STEP.as_millis()) as u32));
        }
        assert_eq!(rested, [0, 1, 2, 4, 8, 16, 16, 8, 4, 2, 1, 0]);
    }

    #[test]
    fn it_is_said_once_each_time_that_it_begins() {
        let at = Instant::now();
        let mut counted = times(10_000, 1_000);
        let mut courtesy = Courtesy::begin(counted);
        let mut said = Vec::new();
        for each_us in [60_000, 60_000, 1_000, 1_000, 80_000] {
            counted = later(counted, 100, each_us);
            said.extend(courtesy.stepped(counted, STEP, at));
        }
        assert_eq!(said, [Duration::from_millis(60), Duration::from_millis(80)]);
    }

    #[test]
    fn nothing_is_concluded_from_few_writes_or_from_what_nobody_notices() {
        let at = Instant::now();
        let slow = |before: WriteTimes, writes, each_us| {
            let mut courtesy = Courtesy::begin(before);
            courtesy.stepped(later(before, writes, each_us), STEP, at);
            courtesy.rests(at)
        };
        assert!(slow(times(10_000, 1_000), 100, 60_000));
        assert!(!slow(times(10_000, 1_000), 7, 60_000), "few");
        assert!(!slow(times(255, 1_000), 100, 60_000), "nothing is known of what is usual");
        assert!(!slow(times(10_000, 100), 100, 9_000), "ninety times as slow, and nobody notices");
        assert!(!slow(times(10_000, 20_000), 100, 60_000), "a slow disk is slow");
    }
}
