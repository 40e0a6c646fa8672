//! Telling data from zeroes.

use blocks::{ByteLen, Extent, is_zero};
use std::ops::Range;

/// The unit in which zeroes are looked for.
const GRAIN: usize = 4096;
/// Zeroes between data that are shorter than this travel as data: a write of their own would cost more.
const ZERO_RUN_MIN: usize = 16 << 10;

/// A part of what was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Piece<'a> {
    /// Bytes that are not all zero.
    Data(Extent, &'a [u8]),
    /// Zeroes.
    Zero(Extent),
}

/// Cuts what was read at `extent` into runs of data and of zeroes; they tile it in order.
pub(crate) fn pieces<'a>(extent: Extent, bytes: &'a [u8]) -> Vec<Piece<'a>> {
    let runs = runs(bytes);
    let mut at = extent.start();
    let mut out = Vec::with_capacity(runs.len());
    for (zero, range) in runs {
        let end = at + ByteLen::new((range.end - range.start) as u64);
        if let Some(extent) = Extent::between(at, end) {
            out.push(if zero { Piece::Zero(extent) } else { Piece::Data(extent, &bytes[range]) });
        }
        at = end;
    }
    out
}

fn runs(bytes: &[u8]) -> Vec<(bool, Range<usize>)> {
    let mut runs: Vec<(bool, Range<usize>)> = Vec::new();
    for (index, grain) in bytes.chunks(GRAIN).enumerate() {
        let start = index * GRAIN;
        let zero = is_zero(grain);
        match runs.last_mut() {
            Some((kind, range)) if *kind == zero => range.end = start + grain.len(),
            _ => runs.push((zero, start..start + grain.len())),
        }
    }
    let mut joined: Vec<(bool, Range<usize>)> = Vec::new();
    let last = runs.len().saturating_sub(1);
    for (index, (zero, range)) in runs.into_iter().enumerate() {
        let inside = index > 0 && index < last;
        let zero = zero && !(inside && range.len() < ZERO_RUN_MIN);
        match joined.last_mut() {
            Some((kind, before)) if *kind == zero => before.end = range.end,
            _ => joined.push((zero, range)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::ByteOffset;
    use proptest::prelude::*;

    fn extent(start: u64, len: usize) -> Extent {
        Extent::new(ByteOffset::new(start), ByteLen::new(len as u64)).unwrap()
    }

    #[test]
    fn short_zeroes_between_data_stay_data_and_long_ones_do_not() {
        let mut bytes = vec![1; 64 << 10];
        bytes[4096..8192].fill(0);
        assert_eq!(pieces(extent(0, bytes.len()), &bytes), vec![Piece::Data(extent(0, 64 << 10), &bytes)]);
        bytes[16384..32768].fill(0);
        let cut = pieces(extent(512, bytes.len()), &bytes);
        assert_eq!(cut.len(), 3);
        assert_eq!(cut[1], Piece::Zero(extent(512 + 16384, 16384)));
    }

    proptest! {
        #[test]
        fn pieces_put_together_are_what_was_read(
            grains in proptest::collection::vec((any::<bool>(), 1usize..9), 1..40),
            tail in 0usize..8,
        ) {
            let mut bytes = Vec::new();
            for (zero, count) in grains {
                bytes.resize(bytes.len() + count * GRAIN, u8::from(!zero));
            }
            bytes.resize(bytes.len() + tail * 512, 7);
            let whole = extent(1 << 20, bytes.len());
            let (mut at, mut rebuilt) = (whole.start(), Vec::new());
            for piece in pieces(whole, &bytes) {
                let (extent, data) = match piece {
                    Piece::Data(extent, data) => (extent, data.to_vec()),
                    Piece::Zero(extent) => (extent, vec![0; extent.len().as_usize()]),
                };
                prop_assert_eq!(extent.start(), at);
                prop_assert_eq!(extent.len().as_usize(), data.len());
                at = extent.end();
                rebuilt.extend(data);
            }
            prop_assert!(rebuilt == bytes);
        }
    }
}
