//! How fast background work may go: a rate, and less of it while guests are being served.
//!
//! Whoever reads or writes in the background asks [`Pace::take`] before each piece. It waits so long that the rate is
//! kept; while a guest's request was seen in the last moment, so long that the background has a small, bounded share.

use blocks::{ByteLen, Error, ErrorKind, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A guest counts as being served for so long after a request of its.
const GUEST_MOMENT: Duration = Duration::from_millis(100);
/// What background work moves in a second while guests are served, unless its own rate is lower.
const RATE_BESIDE_GUESTS: u64 = 8 << 20;
/// The longest sleep before it is looked again whether to go on and whether guests are still there.
const NAP: Duration = Duration::from_millis(20);
/// How much may be moved at once after a pause.
const BURST: Duration = Duration::from_millis(50);

/// When guests were last served; whoever serves them says so.
#[derive(Debug)]
pub struct GuestActivity {
    born: Instant,
    /// Milliseconds after `born`, plus 1; 0: never.
    last_ms: AtomicU64,
}

/// The speed of one piece of background work.
pub struct Pace<'a> {
    rate: Option<u64>,
    guests: Option<&'a GuestActivity>,
    go_on: &'a (dyn Fn() -> bool + Sync),
    bucket: Mutex<Bucket>,
    begun: Instant,
}

/// How much was moved and until when that lasts, as time since the beginning. Pure: time is told to it.
#[derive(Debug, Default)]
struct Bucket {
    paid_until: Duration,
}

impl Default for GuestActivity {
    fn default() -> GuestActivity {
        GuestActivity { born: Instant::now(), last_ms: AtomicU64::new(0) }
    }
}

impl GuestActivity {
    /// A guest's request is being served.
    pub fn note(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        // Many requests in a millisecond are one note: the shared line is written a thousand times a second at most.
        if self.last_ms.load(Ordering::Relaxed) != now {
            self.last_ms.store(now, Ordering::Relaxed);
        }
    }

    /// Whether a guest was served in the last moment.
    pub fn is_busy(&self) -> bool {
        let last = self.last_ms.load(Ordering::Relaxed);
        let then = Duration::from_millis(last.saturating_sub(1));
        last != 0 && self.born.elapsed() < then + GUEST_MOMENT
    }
}

impl std::fmt::Debug for Pace<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pace of {:?} bytes a second", self.rate)
    }
}

impl<'a> Pace<'a> {
    /// At most `rate` bytes a second, none for as fast as it goes; less while `guests` are served; until `go_on` says
    /// `false`.
    pub fn new(
        rate: Option<u64>,
        guests: Option<&'a GuestActivity>,
        go_on: &'a (dyn Fn() -> bool + Sync),
    ) -> Pace<'a> {
        Pace { rate, guests, go_on, bucket: Mutex::default(), begun: Instant::now() }
    }

    /// As fast as it goes, to the end.
    pub fn unlimited() -> Pace<'static> {
        Pace::new(None, None, &|| true)
    }

    /// Waits until so many bytes may be moved. `Cancelled` where the work is to end.
    pub fn take(&self, len: ByteLen) -> Result<()> {
        loop {
            if !(self.go_on)() {
                return Err(Error::new(ErrorKind::Cancelled, "it was called off"));
            }
            let wait = {
                let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
                bucket.take(len, self.rate_now(), self.begun.elapsed())
            };
            match wait {
                None => return Ok(()),
                Some(wait) => std::thread::sleep(wait.min(NAP)),
            }
        }
    }

    fn rate_now(&self) -> Option<u64> {
        match (self.guests.is_some_and(GuestActivity::is_busy), self.rate) {
            (true, rate) => Some(rate.map_or(RATE_BESIDE_GUESTS, |rate| rate.min(RATE_BESIDE_GUESTS))),
            (false, rate) => rate,
        }
    }
}

impl Bucket {
    /// `None`: taken. Otherwise how long until it is worth asking again; nothing was taken.
    fn take(&mut self, len: ByteLen, rate: Option<u64>, now: Duration) -> Option<Duration> {
        let Some(rate) = rate else {
            self.paid_until = now;
            return None;
        };
        if self.paid_until > now + BURST {
            return Some(self.paid_until - now - BURST);
        }
        let nanoseconds = u128::from(len.get()) * 1_000_000_000 / u128::from(rate.max(1));
        let lasts = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        // A pause saves nothing up.
        self.paid_until = self.paid_until.max(now).saturating_add(lasts);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// How much a bucket lets through in ten seconds of told time.
    fn moved(rate: impl Fn(Duration) -> Option<u64>, piece: u64) -> u64 {
        let (mut bucket, mut now, mut moved) = (Bucket::default(), Duration::ZERO, 0);
        while now < Duration::from_secs(10) {
            match bucket.take(ByteLen::new(piece), rate(now), now) {
                None => moved += piece,
                Some(wait) => now += wait.clamp(Duration::from_micros(1), NAP),
            }
        }
        moved
    }

    #[test]
    fn a_rate_is_kept_whatever_the_pieces_and_a_pause_saves_nothing_up() {
        for piece in [512, 64 << 10, 1 << 20, 50 << 20] {
            let moved = moved(|_| Some(10 << 20), piece);
            let most = (100 << 20) + (1 << 20) + 2 * piece;
            assert!((95 << 20..=most).contains(&moved), "pieces of {piece}: {moved}");
        }
        let mut bucket = Bucket::default();
        let later = Duration::from_secs(1000);
        assert_eq!(bucket.take(ByteLen::new(10 << 20), Some(10 << 20), later), None);
        assert!(
            bucket.take(ByteLen::new(1), Some(10 << 20), later).is_some(),
            "the second before was not saved"
        );
    }

    #[test]
    fn guests_take_most_of_it_while_they_are_there() {
        let with =
            |now: Duration| Some(if now < Duration::from_secs(5) { RATE_BESIDE_GUESTS } else { 100 << 20 });
        let moved = moved(with, 64 << 10);
        assert!((530 << 20..=560 << 20).contains(&moved), "5 s of 8 MiB and 5 s of 100: {moved}");
        let guests = GuestActivity::default();
        let pace = Pace::new(Some(1 << 30), Some(&guests), &|| true);
        assert_eq!(pace.rate_now(), Some(1 << 30));
        guests.note();
        assert!(guests.is_busy());
        assert_eq!(pace.rate_now(), Some(RATE_BESIDE_GUESTS));
        assert_eq!(
            Pace::new(Some(1 << 20), Some(&guests), &|| true).rate_now(),
            Some(1 << 20),
            "lower stays lower"
        );
    }

    #[test]
    fn it_ends_while_it_waits() {
        let go_on = AtomicBool::new(true);
        let ask = || go_on.swap(false, Ordering::Relaxed);
        let pace = Pace::new(Some(1), None, &ask);
        pace.take(ByteLen::new(1 << 30)).unwrap();
        assert_eq!(pace.take(ByteLen::new(1)).unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
