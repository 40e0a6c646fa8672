//! Sending no more than is allowed.

use blocks::ByteLen;
use std::time::Duration;
use tokio::time::Instant;

/// When the next data may be sent.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Option<u64>,
    next: Instant,
}

impl Pace {
    /// At most `rate` bytes a second.
    pub fn new(rate: Option<ByteLen>) -> Pace {
        Pace { rate: rate.map(|rate| rate.get().max(1)), next: Instant::now() }
    }

    /// Until then nothing more is to be sent.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// So much was sent; how long to pause for it. Time in which nothing was sent is not saved up.
    pub fn note(&mut self, sent: ByteLen) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let pause = Duration::from_secs_f64(sent.get() as f64 / rate as f64);
        self.next = self.next.max(Instant::now()) + pause;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_costs_its_time_and_idleness_saves_none() {
        let begun = Instant::now();
        let mut pace = Pace::new(Some(ByteLen::new(1000)));
        assert_eq!(pace.note(ByteLen::new(500)), Duration::from_millis(500));
        pace.note(ByteLen::new(2500));
        assert!(pace.next() >= begun + Duration::from_secs(3));
        pace.next = begun - Duration::from_secs(60);
        pace.note(ByteLen::new(1000));
        assert!(pace.next() >= begun + Duration::from_secs(1));
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut pace = Pace::new(None);
        assert_eq!(pace.note(ByteLen::new(1 << 40)), Duration::ZERO);
        assert!(pace.next() <= Instant::now());
    }
}
