//! A byte range of a disk.

use crate::{BlockShift, ByteLen, ByteOffset};
use std::fmt;

/// A byte range: never empty, and its end never leaves `u64`. Code that holds one relies on both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    start: ByteOffset,
    len: ByteLen,
}

/// Why two numbers are not an extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExtentError {
    /// The length is zero.
    #[error("an extent cannot be empty")]
    Empty,
    /// Start plus length leaves `u64`.
    #[error("an extent of {len} bytes at {start} ends past the largest offset")]
    Overflow {
        /// Where it would start.
        start: u64,
        /// How long it would be.
        len: u64,
    },
}

impl Extent {
    /// The range of `len` bytes from `start`. Errors: empty, or an end past `u64::MAX`.
    pub fn new(start: ByteOffset, len: ByteLen) -> Result<Extent, ExtentError> {
        if len.is_zero() {
            return Err(ExtentError::Empty);
        }
        match start.checked_add(len) {
            Some(_) => Ok(Extent { start, len }),
            None => Err(ExtentError::Overflow { start: start.get(), len: len.get() }),
        }
    }

    /// The range from `start` up to, not including, `end`; `None` where that is empty.
    pub fn between(start: ByteOffset, end: ByteOffset) -> Option<Extent> {
        if start < end { Some(Extent { start, len: end - start }) } else { None }
    }

    /// The whole of a disk of this length; `None` for a disk of no bytes.
    pub fn whole(len: ByteLen) -> Option<Extent> {
        Extent::between(ByteOffset::ZERO, len.end())
    }

    /// The first byte.
    pub const fn start(self) -> ByteOffset {
        self.start
    }

    /// How many bytes, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "an extent is never empty")]
    pub const fn len(self) -> ByteLen {
        self.len
    }

    /// The byte after the last one.
    pub fn end(self) -> ByteOffset {
        self.start + self.len
    }

    /// Whether every byte of `other` is one of ours.
    pub fn contains(self, other: Extent) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// Whether the two share a byte.
    pub fn overlaps(self, other: Extent) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The bytes that both have.
    pub fn intersect(self, other: Extent) -> Option<Extent> {
        Extent::between(self.start.max(other.start), self.end().min(other.end()))
    }

    /// The smallest run of whole blocks that covers this extent. Panics within one block of `u64::MAX`.
    pub fn align_out(self, shift: BlockShift) -> Extent {
        let start = self.start.align_down(shift);
        Extent { start, len: self.end().align_up(shift) - start }
    }

    /// Whether both ends are multiples of the block size.
    pub fn is_aligned(self, shift: BlockShift) -> bool {
        self.start.is_aligned(shift) && self.len.is_aligned(shift)
    }

    /// The numbers of the blocks that this extent touches.
    pub fn blocks(self, shift: BlockShift) -> std::ops::Range<u64> {
        shift.block_of(self.start)..shift.block_of(self.end().align_up(shift))
    }

    /// The extent cut into pieces that end at multiples of `len` from the disk's start. `len` is not zero.
    pub fn split(self, len: ByteLen) -> impl Iterator<Item = Extent> {
        let end = self.end();
        let mut at = self.start;
        std::iter::from_fn(move || {
            let boundary = (at.get() / len.get() + 1).saturating_mul(len.get());
            let piece = Extent::between(at, end.min(ByteOffset::new(boundary)))?;
            at = piece.end();
            Some(piece)
        })
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}+{:#x}]", self.start.get(), self.len.get())
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}..{}", self.start.get(), self.end().get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, len: u64) -> Extent {
        Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
    }

    #[test]
    fn refuses_empty_and_overflowing() {
        assert_eq!(Extent::new(ByteOffset::new(5), ByteLen::ZERO), Err(ExtentError::Empty));
        assert!(Extent::new(ByteOffset::new(u64::MAX), ByteLen::new(1)).is_err());
        assert!(Extent::new(ByteOffset::new(u64::MAX - 1), ByteLen::new(1)).is_ok());
    }

    #[test]
    fn splits_at_multiples_of_the_length() {
        let pieces: Vec<_> = extent(3, 10).split(ByteLen::new(4)).collect();
        assert_eq!(pieces, vec![extent(3, 1), extent(4, 4), extent(8, 4), extent(12, 1)]);
        assert_eq!(extent(4, 4).split(ByteLen::new(4)).collect::<Vec<_>>(), vec![extent(4, 4)]);
    }

    #[test]
    fn touching_extents_do_not_overlap() {
        assert!(!extent(0, 4).overlaps(extent(4, 4)));
        assert!(extent(0, 5).overlaps(extent(4, 4)));
        assert_eq!(extent(0, 5).intersect(extent(4, 4)), Some(extent(4, 1)));
        assert_eq!(extent(1000, 1).align_out(BlockShift::SECTOR), extent(512, 512));
        assert_eq!(extent(1000, 100).blocks(BlockShift::SECTOR), 1..3);
    }
}
