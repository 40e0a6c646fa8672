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

use super::marks::Marks;
use blocks::{Arrived, ByteLen, Extent, Place};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

const PAGE_BYTES: u64 = 4096;
/// What one table of pages covers, and how long a mapping is at most.
const REGION_BYTES: u64 = 2 << 20;
const LEN_MAX: u64 = 16 << 40;
/// How many regions may have tables before the mapping is made anew: 32 MiB of tables, over 16 GiB of the file, and as much for
/// marks where every region has another 128 MiB of the file to itself.
const REGIONS_MAX: u32 = if cfg!(test) { 3 } else { 8 << 10 };

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
    /// Regions that were written to since the mapping was made, and how many.
    regions: Marks,
    regions_used: AtomicU32,
    /// Pages that were made ready, and were not found to be otherwise since.
    ready: Marks,
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
            self.forget(extent);
            return None;
        }
        self.map(file);
        let state = self.mapping.read().unwrap_or_else(PoisonError::into_inner);
        let State::Mapped(mapping) = &*state else { return None };
        let place = mapping.place(extent)?;
        let has_too_many_tables = mapping.note(extent);
        if extent.len() >= AT_ONCE_LEN_MIN {
            mapping.make_ready(extent, kind);
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

    /// The pages of the extent were found not to be ready.
    fn forget(&self, extent: Extent) {
        // Who has it to himself makes it, or drops it, and no hint is worth waiting for that.
        let Ok(state) = self.mapping.try_read() else { return };
        if let State::Mapped(mapping) = &*state
            && mapping.place(extent).is_some()
        {
            mapping.ready.clear(pages_of(extent));
        }
    }

    /// All that was written is on the medium, so that no page is dirty, and each would have to be made ready again.
    pub(super) fn has_been_synced(&self, file: &File) {
        if self.kind(file) == Some(Kind::Dirty)
            && let Ok(state) = self.mapping.try_read()
            && let State::Mapped(mapping) = &*state
        {
            mapping.ready.clear_all();
        }
    }

    /// Whether none of the extent's pages would be made ready again.
    #[cfg(test)]
    fn has_made_ready(&self, extent: Extent) -> bool {
        match &*self.mapping.read().unwrap() {
            State::Mapped(mapping) => mapping.ready.has_all(pages_of(extent)),
            _ => false,
        }
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
    let pages = pages_of(extent);
    let pages = pages.end - pages.start;
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
    /// The whole file, as long as it is now; `None` where it is too long or cannot be mapped for writing, or there is no memory.
    fn of(file: &File) -> Option<Mapping> {
        let bytes = file.metadata().ok()?.len();
        if bytes == 0 || bytes > LEN_MAX {
            return None;
        }
        let len = usize::try_from(bytes).ok()?;
        let regions = Marks::new(bytes.div_ceil(REGION_BYTES)).ok()?;
        let ready = Marks::new(bytes.div_ceil(PAGE_BYTES)).ok()?;
        // SAFETY: a new mapping where nothing is mapped.
        let address = unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file.as_fd(), 0)
        };
        let address = NonNull::new(address.ok()?)?;
        Some(Mapping { address, len, regions, regions_used: AtomicU32::new(0), ready })
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

    /// Has the tables of the extent filled at once, which is quicker than page by page as they are met; not again where that
    /// was done, since looking at each page costs a sixth of what a write of it does. A hint: where it cannot be done, they
    /// are filled that way, or the call that writes there says why not.
    fn make_ready(&self, extent: Extent, kind: Kind) {
        let advice = match kind {
            // Nobody has to be asked before such a page is written to, so it comes writable, and so do its neighbours.
            Kind::Present => Advice::LinuxPopulateRead,
            Kind::Dirty => Advice::LinuxPopulateWrite,
        };
        let pages = pages_of(extent);
        if self.ready.has_all(pages.clone()) {
            return;
        }
        let (start, end) = (pages.start * PAGE_BYTES, pages.end * PAGE_BYTES);
        // SAFETY: within the pages of the mapping; they only become accessible, nothing that is in them changes.
        let populated = unsafe {
            let address = self.address.as_ptr().cast::<u8>().add(start as usize).cast();
            rustix::mm::madvise(address, (end - start) as usize, advice)
        };
        if populated.is_ok() {
            self.ready.set(pages);
        }
    }

    /// The extent will have tables; whether there are too many now.
    fn note(&self, extent: Extent) -> bool {
        let regions = extent.start().get() / REGION_BYTES..extent.end().get().div_ceil(REGION_BYTES);
        let new = self.regions.set(regions);
        let before = match new {
            0 => self.regions_used.load(Ordering::Relaxed),
            _ => self.regions_used.fetch_add(new, Ordering::Relaxed),
        };
        before + new > REGIONS_MAX
    }
}

/// The pages that it touches.
fn pages_of(extent: Extent) -> Range<u64> {
    extent.start().get() / PAGE_BYTES..extent.end().get().div_ceil(PAGE_BYTES)
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
