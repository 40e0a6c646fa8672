//! Copying one volume onto another without storing zeroes.

use blocks::{
    Allocation, BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, RequestClass, Result, Volume,
    is_zero,
};

/// How much is read and written at a time.
pub(crate) const STEP: ByteLen = ByteLen::new(1 << 20);
/// In what is read, zeroes are looked for at this grain: finer would cut writes up, coarser would store zeroes.
const ZERO_GRAIN: BlockShift = BlockShift::KIB_64;

/// Makes the first `from.len()` bytes of `to` equal to `from`, then flushes `to`. Holes are not read, zeroes not written
/// where `to` reads as zero anyway. Neither volume may change meanwhile.
///
/// `progress` is called with the bytes done and the bytes in all; where it says `false`, the copy ends with `Cancelled`.
/// Errors: `InvalidInput` where `to` is the smaller one, before anything is written; those of either volume.
pub fn copy_volume(
    from: &dyn Volume,
    to: &dyn Volume,
    progress: &dyn Fn(ByteLen, ByteLen) -> bool,
) -> Result<()> {
    let total = from.len();
    if to.len() < total {
        let context = format!("the target's {} bytes do not hold the source's {total}", to.len());
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    let mut buffer = vec![0; STEP.as_usize()];
    let mut at = ByteOffset::ZERO;
    while let Some(rest) = Extent::between(at, total.end()) {
        for run in from.status(rest)? {
            at = run.extent.end();
            let step = |done: Extent| report(progress, done.end() - ByteOffset::ZERO, total);
            if run.allocation.reads_as_zero() {
                make_zero(to, run.extent)?;
                step(run.extent)?;
                continue;
            }
            for piece in run.extent.split(STEP) {
                let bytes = &mut buffer[..piece.len().as_usize()];
                from.read_at(piece.start(), bytes, RequestClass::Background)?;
                write_sparsely(to, piece, bytes)?;
                step(piece)?;
            }
        }
    }
    to.flush()
}

fn report(progress: &dyn Fn(ByteLen, ByteLen) -> bool, done: ByteLen, total: ByteLen) -> Result<()> {
    if progress(done, total) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Cancelled, "the copy was called off"))
}

/// Writes runs of data as they are and runs of zeroes only where they change something.
pub(crate) fn write_sparsely(to: &dyn Volume, extent: Extent, bytes: &[u8]) -> Result<()> {
    let slice = |part: Extent| {
        let skip = (part.start() - extent.start()).as_usize();
        &bytes[skip..skip + part.len().as_usize()]
    };
    let write = |run: Extent, zero: bool| match zero {
        true => make_zero(to, run),
        false => to.write_at(run.start(), slice(run), false, RequestClass::Background),
    };
    let mut run: Option<(Extent, bool)> = None;
    for grain in extent.split(ZERO_GRAIN.len()) {
        let zero = is_zero(slice(grain));
        run = match run {
            Some((before, same)) if same == zero => {
                Extent::between(before.start(), grain.end()).map(|joined| (joined, zero))
            }
            other => {
                if let Some((before, kind)) = other {
                    write(before, kind)?;
                }
                Some((grain, zero))
            }
        };
    }
    run.map_or(Ok(()), |(last, zero)| write(last, zero))
}

pub(crate) fn make_zero(to: &dyn Volume, extent: Extent) -> Result<()> {
    let mut at = extent.start();
    while let Some(rest) = Extent::between(at, extent.end()) {
        for run in to.status(rest)? {
            at = run.extent.end();
            if run.allocation == Allocation::Data {
                to.write_zeroes(run.extent, false, false, RequestClass::Background)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
