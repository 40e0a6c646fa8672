//! Which ranges of a disk somebody is writing: of two that overlap the second waits.

use blocks::{Extent, ExtentSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The ranges under way; as many as there are threads that write, so they are looked through one by one.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    held: Mutex<Held>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Held {
    extents: Vec<Extent>,
    /// How many wait: with none, letting go costs no system call.
    waiting: usize,
}

/// A range that nobody else writes while this lives.
#[derive(Debug)]
pub(super) struct Range<'a> {
    ranges: &'a Ranges,
    extent: Extent,
}

impl Ranges {
    /// Claims the range, waiting for those that overlap it.
    pub fn lock(&self, extent: Extent) -> Range<'_> {
        let mut held = self.held();
        while held.extents.iter().any(|other| other.overlaps(extent)) {
            held.waiting += 1;
            held = self.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
            held.waiting -= 1;
        }
        held.extents.push(extent);
        Range { ranges: self, extent }
    }

    /// What is being written now.
    pub fn under_way(&self) -> ExtentSet {
        self.held().extents.iter().copied().collect()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Range<'_> {
    fn drop(&mut self) {
        let mut held = self.ranges.held();
        if let Some(at) = held.extents.iter().position(|extent| *extent == self.extent) {
            held.extents.swap_remove(at);
        }
        let waiting = held.waiting;
        drop(held);
        if waiting > 0 {
            self.ranges.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{ByteLen, ByteOffset};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn extent(start: u64, len: u64) -> Extent {
        Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
    }

    #[test]
    fn what_overlaps_waits_and_the_rest_does_not() {
        let ranges = Ranges::default();
        let (first, apart) = (ranges.lock(extent(0, 1024)), ranges.lock(extent(1024, 512)));
        assert_eq!(ranges.under_way().covered().get(), 1536);
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for at in 0..8 {
                let (ranges, inside) = (&ranges, &inside);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let _range = ranges.lock(extent(512 * (at % 2), 1024));
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            drop(first);
            drop(apart);
        });
        assert!(ranges.under_way().is_empty());
    }
}
