//! How slow a client may be before it is taken for one that only holds on to what it was given.

use crate::limits::Limits;
use std::io;
use std::time::{Duration, Instant};

/// Bounds of the time that a message may take in either direction.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long it may stand still.
    pub stall: Duration,
    bytes_per_second_min: u64,
}

/// A message on its way.
#[derive(Debug)]
pub struct Underway {
    allowed: Duration,
    since: Option<Instant>,
}

impl Patience {
    /// What the limits say.
    pub fn of(limits: &Limits) -> Patience {
        let bytes_per_second_min = limits.bytes_per_second_min.get().max(1);
        Patience { stall: limits.stall_timeout, bytes_per_second_min }
    }

    /// A message of that length begins.
    pub fn message(self, bytes: u64) -> Underway {
        let at_slowest = Duration::from_millis(bytes.saturating_mul(1000) / self.bytes_per_second_min);
        Underway { allowed: self.stall.saturating_add(at_slowest), since: None }
    }
}

impl Underway {
    /// Some of it has gone and some has not; an error where that goes on for too long. What goes at once costs nothing.
    pub fn goes_on(&mut self) -> io::Result<()> {
        match self.since.get_or_insert_with(Instant::now).elapsed() < self.allowed {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
