//! Copying ranges of one disk to another, at a bounded rate.

use blocks::{ByteLen, Error, ErrorKind, Extent, RequestClass, Result, Volume, is_zero, monotonic_now};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The largest request.
const REQUEST: ByteLen = ByteLen::new(1 << 20);

/// Keeps copying to so many bytes a second.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Option<u64>,
    /// When everything so far would be done at the rate.
    due: Instant,
}

impl Pace {
    /// At most `rate` bytes a second; without bound where it is missing.
    pub fn new(rate: Option<u64>) -> Pace {
        Pace { rate: rate.filter(|rate| *rate > 0), due: monotonic_now() }
    }

    /// Changes the rate from now on.
    pub fn set_rate(&mut self, rate: Option<u64>) {
        if self.rate != rate {
            *self = Pace::new(rate);
        }
    }

    /// Counts `bytes` and waits until they are due, or `stop`.
    fn spend(&mut self, bytes: ByteLen, stop: &AtomicBool) {
        let Some(rate) = self.rate else { return };
        // What was not used earlier is not saved up: a burst would be the opposite of what was asked for.
        self.due = self.due.max(monotonic_now());
        self.due += Duration::from_secs_f64(bytes.get() as f64 / rate as f64);
        while !stop.load(Ordering::Relaxed) {
            let left = self.due.saturating_duration_since(monotonic_now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}

/// Copies from one volume to another.
pub(crate) struct Copier<'a> {
    pub source: &'a dyn Volume,
    pub target: Arc<dyn Volume>,
    pub pace: &'a mut Pace,
    pub stop: &'a AtomicBool,
}

impl Copier<'_> {
    /// Makes the target hold what the source holds in `extent`. With `skip_holes` the target is known to read as zeroes
    /// where the source does, and is left alone there. `done` is told of each piece. `Cancelled` after a stop.
    pub fn copy(&mut self, extent: Extent, skip_holes: bool, done: &mut dyn FnMut(Extent)) -> Result<()> {
        let mut rest = Some(extent);
        while let Some(extent) = rest {
            let runs = self.source.status(extent)?;
            let mut end = extent.start();
            for run in runs {
                end = run.extent.end();
                match run.allocation.reads_as_zero() {
                    true if skip_holes => done(run.extent),
                    true => self.zero(run.extent, done)?,
                    false => self.copy_data(run.extent, skip_holes, done)?,
                }
            }
            if end <= extent.start() {
                return Err(Error::new(ErrorKind::Io, format!("the source says nothing about {extent}")));
            }
            rest = Extent::between(end, extent.end());
        }
        Ok(())
    }

    fn zero(&mut self, extent: Extent, done: &mut dyn FnMut(Extent)) -> Result<()> {
        // In pieces, so that a stop is heard on a target that writes zeroes out.
        for piece in extent.split(ByteLen::new(64 << 20)) {
            self.check_stop()?;
            self.target.write_zeroes(piece, false, false, RequestClass::Background)?;
            done(piece);
        }
        Ok(())
    }

    fn copy_data(&mut self, extent: Extent, skip_zeroes: bool, done: &mut dyn FnMut(Extent)) -> Result<()> {
        let mut buffer = vec![0; REQUEST.get().min(extent.len().get()) as usize];
        for piece in extent.split(REQUEST) {
            self.check_stop()?;
            let bytes = &mut buffer[..piece.len().as_usize()];
            self.source.read_at(piece.start(), bytes, RequestClass::Background)?;
            match is_zero(bytes) {
                true if skip_zeroes => {}
                true => self.target.write_zeroes(piece, false, false, RequestClass::Background)?,
                false => self.target.write_at(piece.start(), bytes, false, RequestClass::Background)?,
            }
            done(piece);
            self.pace.spend(piece.len(), self.stop);
        }
        Ok(())
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Cancelled, "copying was called off"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{ByteOffset, MemoryVolume};

    fn disk(len: u64, data: &[(u64, u8)]) -> MemoryVolume {
        let disk = MemoryVolume::new(ByteLen::new(len));
        for (at, byte) in data {
            disk.write_at(ByteOffset::new(*at), &[*byte; 4096], false, RequestClass::Guest).unwrap();
        }
        disk
    }

    #[test]
    fn old_data_of_a_target_does_not_shine_through_holes() {
        let source = disk(4 << 20, &[(0, 1), (3 << 20, 2)]);
        let target = Arc::new(disk(4 << 20, &[(1 << 20, 9), (3 << 20, 9)]));
        let stop = AtomicBool::new(false);
        let mut copier = Copier {
            source: &source,
            target: Arc::clone(&target) as Arc<dyn Volume>,
            pace: &mut Pace::new(None),
            stop: &stop,
        };
        let mut told = ByteLen::ZERO;
        copier.copy(Extent::whole(source.len()).unwrap(), false, &mut |piece| told += piece.len()).unwrap();
        assert_eq!(source.snapshot(), target.snapshot());
        assert_eq!(told, source.len());
    }

    #[test]
    fn the_rate_is_kept_and_a_stop_is_heard() {
        let source = disk(4 << 20, &[(0, 1), (1 << 20, 1), (2 << 20, 1), (3 << 20, 2)]);
        let target = Arc::new(disk(4 << 20, &[]));
        let stop = AtomicBool::new(false);
        let begun = Instant::now();
        let pace = &mut Pace::new(Some(64 << 10));
        let mut copier =
            Copier { source: &source, target: Arc::clone(&target) as Arc<dyn Volume>, pace, stop: &stop };
        copier.copy(Extent::whole(source.len()).unwrap(), true, &mut |_| {}).unwrap();
        // 16 KiB of data at 64 KiB a second.
        assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
        stop.store(true, Ordering::Relaxed);
        let error = copier.copy(Extent::whole(source.len()).unwrap(), true, &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}
