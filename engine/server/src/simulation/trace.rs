//! What a simulation did: printed where that is wanted, and summed up, so that two runs can be compared.

use std::time::Duration;

pub(super) struct Trace {
    print: bool,
    step: u64,
    time: Duration,
    digest: u64,
}

impl Trace {
    pub fn new(print: bool) -> Trace {
        Trace { print, step: 0, time: Duration::ZERO, digest: 0 }
    }

    pub fn at(&mut self, step: u64, time: Duration) {
        (self.step, self.time) = (step, time);
        self.mix(&time.as_millis().to_le_bytes());
    }

    /// Something happened.
    pub fn say(&mut self, what: impl FnOnce() -> String) {
        let what = what();
        self.mix(what.as_bytes());
        if self.print {
            println!("{:>5} {:>9.3}s  {what}", self.step, self.time.as_secs_f64());
        }
    }

    fn mix(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(5);
        }
    }

    /// Two runs with one digest have said the same at the same times.
    pub fn digest(&self) -> u64 {
        self.digest
    }
}
