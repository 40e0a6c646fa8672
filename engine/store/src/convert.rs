//! Copying and comparing whole volumes with several threads.
//!
//! One cursor over the source's map hands out pieces; each thread reads its piece and writes it where it belongs. Where
//! the map says hole, nothing is read; where both lie in files that can share their bytes, nothing is read or written. Order does not matter: nobody looks at the target before all is done.

use crate::copy::{STEP, make_zero, write_sparsely};
use blocks::{
    AlignedBuffer, ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentStatus, RequestClass, Result, Volume,
    is_zero,
};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Called with the bytes done and the bytes in all; says whether to go on.
type Progress<'a> = &'a (dyn Fn(ByteLen, ByteLen) -> bool + Sync);

/// Makes the first `from.len()` bytes of `to` equal to `from` with `threads` threads, then flushes `to`. Holes are not
/// read, zeroes not written where `to` reads as zero anyway. Neither volume may change meanwhile.
///
/// Where `progress` says `false`, the copy ends with `Cancelled`. Errors: `InvalidInput` where `to` is the smaller one,
/// before anything is written; those of either volume, of which the first is returned.
pub fn convert_volume(
    from: &dyn Volume,
    to: &dyn Volume,
    threads: usize,
    progress: Progress<'_>,
) -> Result<()> {
    if to.len() < from.len() {
        let context = format!("the target's {} bytes do not hold the source's {}", to.len(), from.len());
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    let work = |piece: Piece, buffer: &mut [u8]| -> Result<()> {
        if piece.zero {
            return make_zero(to, piece.extent);
        }
        if let Some(range) = from.file_range(piece.extent)
            && to.share(piece.extent, &range)?
        {
            return Ok(());
        }
        let bytes = &mut buffer[..piece.extent.len().as_usize()];
        from.read_at(piece.extent.start(), bytes, RequestClass::Background)?;
        write_sparsely(to, piece.extent, bytes)
    };
    walk(from.len(), &|rest| from.status(rest), threads, progress, &work)?;
    to.flush()
}

/// Where two volumes differ first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// The sector that starts there.
    At(ByteOffset),
    /// What both have is equal, and the longer one goes on with zeroes.
    LengthOnly,
}

/// Compares two volumes with `threads` threads. What only the longer one has counts as different where it is not zero.
pub fn compare_volumes(
    one: &dyn Volume,
    other: &dyn Volume,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Option<Difference>> {
    let (short, long) = if one.len() <= other.len() { (one, other) } else { (other, one) };
    let first: Mutex<Option<ByteOffset>> = Mutex::new(None);
    let work = |piece: Piece, buffer: &mut [u8]| -> Result<()> {
        if locked(&first).is_some_and(|found| found < piece.extent.start()) {
            return Ok(());
        }
        if let Some(found) = difference(short, long, piece, buffer)? {
            let mut first = locked(&first);
            *first = Some(first.map_or(found, |known| known.min(found)));
        }
        Ok(())
    };
    walk(long.len(), &|rest| common_map(short, long, rest), threads, progress, &work)?;
    let found = *locked(&first);
    Ok(match found {
        Some(at) => Some(Difference::At(at)),
        None if short.len() < long.len() => Some(Difference::LengthOnly),
        None => None,
    })
}

/// A hole of both, or what has to be read of either.
fn common_map(short: &dyn Volume, long: &dyn Volume, rest: Extent) -> Result<Vec<ExtentStatus>> {
    let run = |volume: &dyn Volume, rest: Extent| -> Result<Option<ExtentStatus>> {
        Ok(volume.status(rest)?.first().copied())
    };
    let Some(long_run) = run(long, rest)? else { return Ok(Vec::new()) };
    let Some(inside) = Extent::whole(short.len()).and_then(|whole| whole.intersect(long_run.extent)) else {
        return Ok(vec![long_run]);
    };
    let Some(short_run) = run(short, inside)? else { return Ok(Vec::new()) };
    let allocation = match short_run.allocation.reads_as_zero() {
        true => long_run.allocation,
        false => short_run.allocation,
    };
    Ok(vec![ExtentStatus { extent: short_run.extent, allocation }])
}

fn difference(
    short: &dyn Volume,
    long: &dyn Volume,
    piece: Piece,
    buffer: &mut [u8],
) -> Result<Option<ByteOffset>> {
    if piece.zero {
        return Ok(None);
    }
    let len = piece.extent.len().as_usize();
    let (one, other) = buffer.split_at_mut(STEP.as_usize());
    let (one, other) = (&mut one[..len], &mut other[..len]);
    long.read_at(piece.extent.start(), one, RequestClass::Background)?;
    let present = ByteLen::new(short.len().get().saturating_sub(piece.extent.start().get())).as_usize();
    let (stored, beyond) = other.split_at_mut(present.min(len));
    beyond.fill(0);
    if !stored.is_empty() {
        short.read_at(piece.extent.start(), stored, RequestClass::Background)?;
    }
    if one == other {
        return Ok(None);
    }
    let sectors = one.chunks(512).zip(other.chunks(512));
    let index = sectors.take_while(|(one, other)| one == other).count();
    debug_assert!(!is_zero(one) || !is_zero(other));
    Ok(Some(piece.extent.start() + ByteLen::new(index as u64 * 512)))
}

/// A part of the work.
#[derive(Debug, Clone, Copy)]
struct Piece {
    extent: Extent,
    zero: bool,
}

/// Hands out the pieces of a map, in order.
struct Cursor {
    at: ByteOffset,
    end: ByteOffset,
    runs: VecDeque<ExtentStatus>,
}

impl Cursor {
    fn next(&mut self, map: &dyn Fn(Extent) -> Result<Vec<ExtentStatus>>) -> Result<Option<Piece>> {
        if self.runs.is_empty() {
            let Some(rest) = Extent::between(self.at, self.end) else { return Ok(None) };
            self.runs.extend(map(rest)?);
        }
        let Some(run) = self.runs.pop_front() else {
            return Err(Error::new(ErrorKind::Io, format!("nothing is known of what follows {}", self.at)));
        };
        let zero = run.allocation.reads_as_zero();
        let mut extent = run.extent;
        // Where every format's blocks begin, a piece begins, so that none straddles two of them.
        let step_end = ByteOffset::new((extent.start().get() / STEP.get() + 1) * STEP.get());
        if !zero && let Some(rest) = Extent::between(step_end, extent.end()) {
            extent = Extent::between(extent.start(), step_end).unwrap_or(extent);
            self.runs.push_front(ExtentStatus { extent: rest, ..run });
        }
        self.at = extent.end();
        Ok(Some(Piece { extent, zero }))
    }
}

/// Does the work on every piece of a map of `len` bytes, with a buffer of two steps for each thread.
fn walk(
    len: ByteLen,
    map: &(dyn Fn(Extent) -> Result<Vec<ExtentStatus>> + Sync),
    threads: usize,
    progress: Progress<'_>,
    work: &(dyn Fn(Piece, &mut [u8]) -> Result<()> + Sync),
) -> Result<()> {
    let cursor = Mutex::new(Cursor { at: ByteOffset::ZERO, end: len.end(), runs: VecDeque::new() });
    let done = Mutex::new(ByteLen::ZERO);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let stopped = AtomicBool::new(false);
    let one = |buffer: &mut [u8]| -> Result<bool> {
        let piece = locked(&cursor).next(map)?;
        let Some(piece) = piece else { return Ok(false) };
        work(piece, buffer)?;
        let mut done = locked(&done);
        *done += piece.extent.len();
        match progress(*done, len) {
            true => Ok(true),
            false => Err(Error::new(ErrorKind::Cancelled, "the copy was called off")),
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut buffer = AlignedBuffer::new(2 * STEP.as_usize());
                while !stopped.load(Ordering::Acquire) {
                    match one(&mut buffer) {
                        Ok(true) => {}
                        Ok(false) => return,
                        Err(error) => {
                            stopped.store(true, Ordering::Release);
                            locked(&failed).get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
