//! A file's pages, mapped, for system calls to write into: one copy from a socket to the page cache instead of two.
//!
//! Nothing here or above ever looks at the mapping: a system call that meets a hole that cannot be filled, the end of a file
//! that was cut, or a failing medium gets `EFAULT`, where a thread of ours would get a signal. The mapping is made with the
//! first write that asks for it and goes with the file.
//!
//! Not every page is worth it. One that is not in memory would be read first, and one that is clean costs more to make
//! writable (the file system is asked, and when it is written back the processors are told) than a write of the usual way,
//! which leaves it dirty. So only pages that are dirty already are written in place; on tmpfs, which has no medium, those that
//! are there. Asking costs one short system call.

use blocks::{Arrived, ByteLen, Extent, Place};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

const PAGE_BYTES: u64 = 4096;
/// What one table of pages covers, and how long a mapping is at most.
const REGION_BYTES: u64 = 2 << 20;
const LEN_MAX: u64 = 16 << 40;
/// How many regions may have tables before the mapping is made anew: 64 MiB of tables, over 32 GiB of the file.
const REGIONS_MAX: usize = if cfg!(test) { 3 } else { 16 << 10 };

/// From here on a piece's pages are made ready together.
const AT_ONCE_LEN_MIN: ByteLen = ByteLen::new(64 << 10);

/// File systems whose pages this was measured with.
pub(super) const TMPFS: u64 = 0x0102_1994;
const EXT4: u64 = 0xef53;
const XFS: u64 = 0x5846_5342;
const BTRFS: u64 = 0x9123_683e;

/// A file's mapping, once somebody has asked for it.
#[derive(Debug, Default)]
pub(super) struct Landing {
    kind: OnceLock<Option<Kind>>,
    mapping: RwLock<State>,
}

#[derive(Debug, Default)]
enum State {
    /// Nobody has asked, or it is to be made anew.
    #[default]
    Unmapped,
    Mapped(Mapping),
    Impossible,
}

/// What a file's pages have to be for a write in place to be the quicker way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// In memory, where they always are.
    Present,
    /// Not written back yet.
    Dirty,
}

#[derive(Debug)]
struct Mapping {
    address: NonNull<c_void>,
    len: usize,
    /// A bit for each region that was written to since the mapping was made.
    regions: Box<[AtomicU64]>,
    regions_used: AtomicUsize,
}

// SAFETY: the address is used for system calls alone, and the kernel takes them from all threads at once.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Landing {
    /// The shortest write that gains anything; `None` where none does, or the file system is not known to bear it.
    pub(super) fn len_min(&self, file: &File) -> Option<ByteLen> {
        match self.kind(file)? {
            // Looking up a page costs tmpfs as much as a call more.
            Kind::Present => Some(ByteLen::new(64 << 10)),
            Kind::Dirty => Some(ByteLen::new(PAGE_BYTES)),
        }
    }

    fn kind(&self, file: &File) -> Option<Kind> {
        *self.kind.get_or_init(|| match rustix::fs::fstatfs(file).ok()?.f_type.cast_unsigned() {
            TMPFS => Some(Kind::Present),
            EXT4 | XFS | BTRFS => Some(Kind::Dirty),
            _ => None,
        })
    }

    /// Has the bytes put into the file's pages: how many were, or `None` where that is not the way for this extent now and
    /// nothing was consumed. Fewer than the extent has where its pages could not be written.
    pub(super) fn write(
        &self,
        file: &File,
        extent: Extent,
        from: &mut dyn Arrived,
    ) -> Option<io::Result<usize>> {
        self.write_if(file, extent, from, are_ready)
    }

    /// The same with somebody else's look at the pages.
    fn write_if(
        &self,
        file: &File,
        extent: Extent,
        from: &mut dyn Arrived,
        are_ready: impl FnOnce(&File, Extent, Kind) -> bool,
    ) -> Option<io::Result<usize>> {
        let kind = self.kind(file)?;
        if !are_ready(file, extent, kind) {
            return None;
        }
        self.map(file);
        let state = self.mapping.read().unwrap_or_else(PoisonError::into_inner);
        let State::Mapped(mapping) = &*state else { return None };
        let place = mapping.place(extent)?;
        let has_too_many_tables = mapping.note(extent);
        if extent.len() >= AT_ONCE_LEN_MIN {
            mapping.make_ready(extent);
        }
        let put = match from.put(place) {
            Err(error) if error.raw_os_error() == Some(Errno::FAULT.raw_os_error()) => Ok(0),
            put => put,
        };
        drop(state);
        if has_too_many_tables {
            // What was written stays with the kernel; tables are filled again as they are needed.
            *self.mapping.write().unwrap_or_else(PoisonError::into_inner) = State::Unmapped;
        }
        Some(put)
    }

    #[cfg(test)]
    fn is_mapped(&self) -> bool {
        matches!(*self.mapping.read().unwrap(), State::Mapped(_))
    }

    /// Makes the mapping where there is none.
    fn map(&self, file: &File) {
        if !matches!(*self.mapping.read().unwrap_or_else(PoisonError::into_inner), State::Unmapped) {
            return;
        }
        let mut state = self.mapping.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Unmapped) {
            *state = Mapping::of(file).map_or(State::Impossible, State::Mapped);
        }
    }
}

/// What cachestat(2) tells of a range, in pages.
#[repr(C)]
#[derive(Debug, Default)]
struct CacheStat {
    cached: u64,
    dirty: u64,
    in_writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

#[repr(C)]
struct CacheStatRange {
    offset: u64,
    len: u64,
}

/// Its number, the same on all processors since Linux 6.5; the C library has no name for it yet.
const CACHESTAT: libc::c_long = 451;

/// Whether all pages of the extent are as they have to be. They may change at any time: then it only takes longer.
fn are_ready(file: &File, extent: Extent, kind: Kind) -> bool {
    let pages = (extent.end().get() - 1) / PAGE_BYTES - extent.start().get() / PAGE_BYTES + 1;
    let range = CacheStatRange { offset: extent.start().get(), len: extent.len().get() };
    let mut found = CacheStat::default();
    // SAFETY: both pointers are to structures of the layout that the call has, and they outlive it.
    let status = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut found, 0) };
    // An older kernel, or one that forbids the call, does not tell.
    status == 0
        && match kind {
            Kind::Present => found.cached == pages,
            Kind::Dirty => found.dirty == pages && found.in_writeback == 0,
        }
}

impl Mapping {
    /// The whole file, as long as it is now; `None` where it is too long or cannot be mapped for writing.
    fn of(file: &File) -> Option<Mapping> {
        let bytes = file.metadata().ok()?.len();
        if bytes == 0 || bytes > LEN_MAX {
            return None;
        }
        let len = usize::try_from(bytes).ok()?;
        // SAFETY: a new mapping where nothing is mapped.
        let address = unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file.as_fd(), 0)
        };
        let address = NonNull::new(address.ok()?)?;
        let words = bytes.div_ceil(REGION_BYTES).div_ceil(64);
        let regions = (0..words).map(|_| AtomicU64::new(0)).collect();
        Some(Mapping { address, len, regions, regions_used: AtomicUsize::new(0) })
    }

    /// Where the extent is; `None` past the end.
    fn place(&self, extent: Extent) -> Option<Place<'_>> {
        let start = usize::try_from(extent.start().get()).ok()?;
        let len = usize::try_from(extent.len().get()).ok()?;
        if start.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: it lies within the mapping, which lives as long as this does and which nobody uses otherwise.
        Some(unsafe { Place::mapped(self.address.as_ptr().cast::<u8>().add(start), len) })
    }

    /// Has the tables of the extent filled at once, which is quicker than page by page as they are met. A hint: where it
    /// cannot be done, they are filled that way, or the call that writes there says why not.
    fn make_ready(&self, extent: Extent) {
        let start = extent.start().get() / PAGE_BYTES * PAGE_BYTES;
        let end = extent.end().get().next_multiple_of(PAGE_BYTES);
        // SAFETY: within the pages of the mapping; they only become accessible, nothing that is in them changes.
        let _ = unsafe {
            let address = self.address.as_ptr().cast::<u8>().add(start as usize).cast();
            rustix::mm::madvise(address, (end - start) as usize, Advice::LinuxPopulateWrite)
        };
    }

    /// The extent will have tables; whether there are too many now.
    fn note(&self, extent: Extent) -> bool {
        let last = (extent.end().get() - 1) / REGION_BYTES;
        for region in extent.start().get() / REGION_BYTES..=last {
            let (word, bit) = (&self.regions[(region / 64) as usize], 1 << (region % 64));
            if word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
                self.regions_used.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.regions_used.load(Ordering::Relaxed) > REGIONS_MAX
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and every place in it has ended. What was written stays with the kernel.
        let unmapped = unsafe { rustix::mm::munmap(self.address.as_ptr(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
#[path = "landing_tests.rs"]
mod tests;
