//! What the house asks of its surroundings: the time, and numbers that nobody can guess. One place, so that a simulation
//! (feature `simulation`, never part of a program that users run) can answer instead.

use crate::{WallClock, WriteTime};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// This moment on a clock that never goes back. In a simulation it stands still until it is moved.
#[inline]
pub fn monotonic_now() -> Instant {
    #[cfg(feature = "simulation")]
    if let Some(now) = crate::simulation::monotonic() {
        return now;
    }
    Instant::now()
}

/// 16 random bytes: what `from_the_system` gives, or the next ones of the simulation that this thread is in.
#[inline]
pub fn random_bytes(from_the_system: impl FnOnce() -> [u8; 16]) -> [u8; 16] {
    #[cfg(feature = "simulation")]
    if let Some(bytes) = crate::simulation::random() {
        return bytes;
    }
    from_the_system()
}

impl WallClock {
    /// What the wall clock shows now; 0 where it is set before 1970.
    pub fn now() -> WallClock {
        #[cfg(feature = "simulation")]
        if let Some(now) = crate::simulation::wall() {
            return now;
        }
        WallClock(u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX))
    }
}

impl WriteTime {
    /// The moment so long ago by the wall clock; 0 where that is before 1970.
    pub fn ago(passed: Duration) -> WriteTime {
        #[cfg(feature = "simulation")]
        if let Some(now) = crate::simulation::wall() {
            return WriteTime((now.0 * 1000).saturating_sub(micros(passed)));
        }
        WriteTime(micros(since_1970().saturating_sub(passed)))
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
