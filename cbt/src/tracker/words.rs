//! Bits in memory that others change at the same time: the kernel through a mapped BPF array, or nobody.

use blocks::{Error, Result};
use std::fmt;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// A run of atomic words, all zero at first.
pub(crate) enum Words {
    /// Memory of this process.
    Owned(Box<[AtomicU64]>),
    /// A mapped BPF array: the kernel writes it too, and it outlives the process where it is pinned.
    Mapped(MappedWords),
}

/// Unmaps on drop.
pub(crate) struct MappedWords {
    start: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the memory stays mapped for as long as the value lives, and is only reached through atomics.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

impl Words {
    /// `count` words of this process.
    pub fn owned(count: usize) -> Words {
        Words::Owned((0..count).map(|_| AtomicU64::new(0)).collect())
    }

    /// The first `count` words of the BPF array behind `map`, which must be mappable and at least as long.
    pub fn mapped(map: BorrowedFd<'_>, count: usize) -> Result<Words> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let bytes = count * size_of::<AtomicU64>();
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, map, 0)
        };
        let start = start.map_err(|error| Error::io("map a BPF array", error.into()))?;
        let start = NonNull::new(start.cast()).ok_or_else(|| Error::corrupt("a mapping at address 0"))?;
        Ok(Words::Mapped(MappedWords { start, count }))
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        match self {
            Words::Owned(words) => words,
            // SAFETY: `mapped` mapped at least `count` aligned words, which live until drop.
            Words::Mapped(mapped) => unsafe {
                std::slice::from_raw_parts(mapped.start.as_ptr(), mapped.count)
            },
        }
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        let bytes = self.count * size_of::<AtomicU64>();
        // SAFETY: unmaps exactly what `mapped` mapped; no reference outlives the owner. Nothing is left to do if
        // it fails.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), bytes) };
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Words({})", self.len())
    }
}
