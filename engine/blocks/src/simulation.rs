//! The surroundings of a thread that plays a simulation: a clock that it moves itself, random numbers from a seed, and
//! perhaps a planted bug. Only with the feature `simulation`.

use crate::{PlantedBug, WallClock};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Where the simulated wall clock begins: some day in 2025.
const WALL_BEGIN_MS: u64 = 1_750_000_000_000;

thread_local! {
    static CLOCK: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    static PLANTED: Cell<Option<PlantedBug>> = const { Cell::new(None) };
}

/// While this lives, this thread is in a simulation. One at a time.
#[derive(Debug)]
pub struct Simulated(());

impl Simulated {
    /// Surroundings that follow from the seed.
    pub fn enter(seed: u64, planted: Option<PlantedBug>) -> Simulated {
        CLOCK.set(Some((Instant::now(), Duration::ZERO)));
        RANDOM.set(seed);
        PLANTED.set(planted);
        Simulated(())
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        CLOCK.set(CLOCK.get().map(|(begin, passed)| (begin, passed + time)));
    }

    /// How much time has passed.
    pub fn elapsed(&self) -> Duration {
        CLOCK.get().map_or(Duration::ZERO, |(_, passed)| passed)
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        CLOCK.set(None);
        PLANTED.set(None);
    }
}

pub(crate) fn monotonic() -> Option<Instant> {
    CLOCK.get().map(|(begin, passed)| begin + passed)
}

pub(crate) fn wall() -> Option<WallClock> {
    let passed = CLOCK.get()?.1;
    Some(WallClock(WALL_BEGIN_MS + u64::try_from(passed.as_millis()).unwrap_or(0)))
}

pub(crate) fn planted() -> Option<PlantedBug> {
    PLANTED.get()
}

/// SplitMix64, the same as in the store's tests.
pub(crate) fn random() -> Option<[u8; 16]> {
    CLOCK.get()?;
    let mut bytes = [0; 16];
    for half in bytes.chunks_exact_mut(8) {
        let state = RANDOM.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        RANDOM.set(state);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        half.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    Some(bytes)
}
