//! Numbers with a meaning: an offset is not a length, a sector is not a byte.
//!
//! Only the arithmetic that makes sense compiles: `offset + length = offset`, `offset - offset = length`,
//! `length + length = length`. Sums that leave `u64` are a bug of the caller, who checks at the edge with the
//! `checked_` forms; inside they panic rather than wrap.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// log2 of [`SECTOR_BYTES`].
pub const SECTOR_SHIFT: u32 = 9;
/// The unit in which every format and every volume of ours addresses disks: 512 bytes.
pub const SECTOR_BYTES: u64 = 1 << SECTOR_SHIFT;

/// A position on a disk or in a file, in bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteOffset(u64);

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteLen(u64);

/// A position on a disk, in 512-byte sectors from its start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Lba(u64);

/// A power-of-two block size, 512 bytes (9) to 1 GiB (30).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockShift(u8);

/// The position of a write in the order in which one stream received its writes; the first is 1, 0 means none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Seq(pub u64);

/// Rises with each promotion of a unit; who holds the lower one is refused. The first is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Generation(pub u64);

/// An instant on the wall clock, in milliseconds since 1970-01-01 UTC. May step backwards; never used for order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct WallClock(pub u64);

/// When a write was completed, in microseconds since 1970-01-01 UTC on the server's clock. Rises with every write of a machine
/// whose writes come in order, so it names a state of all its disks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct WriteTime(pub u64);

impl ByteOffset {
    /// The start of the disk.
    pub const ZERO: ByteOffset = ByteOffset(0);

    /// The position `bytes` from the start.
    pub const fn new(bytes: u64) -> ByteOffset {
        ByteOffset(bytes)
    }

    /// Bytes from the start.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// `self + length`, or `None` past `u64::MAX`.
    pub fn checked_add(self, length: ByteLen) -> Option<ByteOffset> {
        self.0.checked_add(length.0).map(ByteOffset)
    }

    /// The nearest multiple of the block size at or below `self`.
    pub const fn align_down(self, shift: BlockShift) -> ByteOffset {
        ByteOffset(self.0 & !(shift.bytes() - 1))
    }

    /// The nearest multiple of the block size at or above `self`. Panics within one block of `u64::MAX`.
    pub const fn align_up(self, shift: BlockShift) -> ByteOffset {
        ByteOffset((self.0 + (shift.bytes() - 1)) & !(shift.bytes() - 1))
    }

    /// Whether `self` is a multiple of the block size.
    pub const fn is_aligned(self, shift: BlockShift) -> bool {
        self.0 & (shift.bytes() - 1) == 0
    }

    /// The sector that holds this byte.
    pub const fn lba(self) -> Lba {
        Lba(self.0 >> SECTOR_SHIFT)
    }
}

impl ByteLen {
    /// No bytes.
    pub const ZERO: ByteLen = ByteLen(0);

    /// A length of `bytes` bytes.
    pub const fn new(bytes: u64) -> ByteLen {
        ByteLen(bytes)
    }

    /// The length of a buffer.
    pub const fn of(buffer: &[u8]) -> ByteLen {
        ByteLen(buffer.len() as u64)
    }

    /// The length in bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The length for indexing memory. Panics where it does not fit the address space, which no buffer does.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).expect("a buffer length fits the address space")
    }

    /// Whether there are no bytes.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Whether the length is a multiple of the block size.
    pub const fn is_aligned(self, shift: BlockShift) -> bool {
        self.0 & (shift.bytes() - 1) == 0
    }

    /// How many blocks cover this length, the last one perhaps partly.
    pub const fn blocks(self, shift: BlockShift) -> u64 {
        self.0.div_ceil(shift.bytes())
    }

    /// `self - other`, or zero where `other` is larger.
    pub const fn saturating_sub(self, other: ByteLen) -> ByteLen {
        ByteLen(self.0.saturating_sub(other.0))
    }

    /// The end of a disk of this length.
    pub const fn end(self) -> ByteOffset {
        ByteOffset(self.0)
    }
}

impl Lba {
    /// The sector of that number.
    pub const fn new(sector: u64) -> Lba {
        Lba(sector)
    }

    /// The sector's number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Where the sector starts. `None` for sectors past `u64::MAX` bytes.
    pub fn offset(self) -> Option<ByteOffset> {
        self.0.checked_mul(SECTOR_BYTES).map(ByteOffset)
    }
}

impl BlockShift {
    /// 512-byte sectors.
    pub const SECTOR: BlockShift = BlockShift(9);
    /// 4 KiB, the page and the usual file-system block.
    pub const KIB_4: BlockShift = BlockShift(12);
    /// 64 KiB, the unit of hashing, checksums and trackers' coarsest useful grain.
    pub const KIB_64: BlockShift = BlockShift(16);

    /// A block of `1 << shift` bytes; `None` outside 9..=30.
    pub const fn new(shift: u8) -> Option<BlockShift> {
        if shift >= 9 && shift <= 30 { Some(BlockShift(shift)) } else { None }
    }

    /// log2 of the block size.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The block size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }

    /// The block size as a length.
    pub const fn len(self) -> ByteLen {
        ByteLen(1 << self.0)
    }

    /// The number of the block that holds this byte.
    pub const fn block_of(self, offset: ByteOffset) -> u64 {
        offset.0 >> self.0
    }

    /// Where block `block` starts. Panics past `u64::MAX`.
    pub const fn start_of(self, block: u64) -> ByteOffset {
        assert!(block.leading_zeros() >= self.0 as u32);
        ByteOffset(block << self.0)
    }
}

impl Seq {
    /// The number after this one.
    pub const fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl Generation {
    /// A unit's first.
    pub const FIRST: Generation = Generation(1);

    /// The generation after this one.
    pub const fn next(self) -> Generation {
        Generation(self.0 + 1)
    }
}

impl Add<ByteLen> for ByteOffset {
    type Output = ByteOffset;
    fn add(self, length: ByteLen) -> ByteOffset {
        ByteOffset(self.0.checked_add(length.0).expect("offset + length stays within u64"))
    }
}

impl AddAssign<ByteLen> for ByteOffset {
    fn add_assign(&mut self, length: ByteLen) {
        *self = *self + length;
    }
}

impl Sub<ByteOffset> for ByteOffset {
    type Output = ByteLen;
    fn sub(self, other: ByteOffset) -> ByteLen {
        ByteLen(self.0.checked_sub(other.0).expect("the later offset comes first"))
    }
}

impl Add for ByteLen {
    type Output = ByteLen;
    fn add(self, other: ByteLen) -> ByteLen {
        ByteLen(self.0.checked_add(other.0).expect("length + length stays within u64"))
    }
}

impl AddAssign for ByteLen {
    fn add_assign(&mut self, other: ByteLen) {
        *self = *self + other;
    }
}

impl Sub for ByteLen {
    type Output = ByteLen;
    fn sub(self, other: ByteLen) -> ByteLen {
        ByteLen(self.0.checked_sub(other.0).expect("the longer length comes first"))
    }
}

impl std::iter::Sum for ByteLen {
    fn sum<I: Iterator<Item = ByteLen>>(lengths: I) -> ByteLen {
        lengths.fold(ByteLen::ZERO, Add::add)
    }
}

impl fmt::Debug for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{:#x}", self.0)
    }
}

impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for ByteLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}B", self.0)
    }
}

impl fmt::Display for ByteLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
