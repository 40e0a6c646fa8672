//! Memory that requests share.
//!
//! The smallest need none of it: threads bound them. For small ones each connection has a place that is always its own, so
//! that nobody can hold it up, and more only while what all share lasts. Large ones share what there is.

use crate::protocol::PAYLOAD_BYTES_MAX;
use blocks::ByteLen;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Requests up to this size need no permit.
pub const TINY_REQUEST_BYTES: usize = 16 << 10;
/// Requests up to this size are small.
pub const SMALL_REQUEST_BYTES: usize = 256 << 10;

/// What all connections share.
#[derive(Debug)]
pub struct Budget {
    left: Mutex<Left>,
    freed: Condvar,
}

/// Bytes that may still be held.
#[derive(Debug)]
struct Left {
    small: u64,
    large: u64,
}

/// A connection's way to it.
#[derive(Debug)]
pub struct Allowance {
    budget: Arc<Budget>,
    own: Arc<Place>,
}

/// A connection's own place for a small request.
#[derive(Debug, Default)]
struct Place {
    taken: AtomicBool,
    /// Somebody waits for it, or for what all share.
    wanted: AtomicBool,
}

/// Leave to hold so many bytes, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    of: Kind,
}

#[derive(Debug)]
enum Kind {
    Own(Arc<Place>),
    Small(u64),
    Large(u64),
}

impl Budget {
    /// A budget of so much for small and for large requests, raised so that the largest of each fits.
    pub fn new(small: ByteLen, large: ByteLen) -> Arc<Budget> {
        let small = small.get().max(SMALL_REQUEST_BYTES as u64);
        let large = large.get().max(u64::from(PAYLOAD_BYTES_MAX));
        Arc::new(Budget { left: Mutex::new(Left { small, large }), freed: Condvar::new() })
    }

    /// Another connection's way to it.
    pub fn allowance(self: &Arc<Budget>) -> Allowance {
        Allowance { budget: self.clone(), own: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Allowance {
    /// Waits until `bytes` may be held; no permit for a tiny request. At most [`PAYLOAD_BYTES_MAX`]. One thread of a
    /// connection at a time.
    pub fn take(&self, bytes: usize) -> Option<Permit> {
        if bytes <= TINY_REQUEST_BYTES {
            return None;
        }
        let is_small = bytes <= SMALL_REQUEST_BYTES;
        let of = if is_small { self.small(bytes as u64) } else { self.large(bytes as u64) };
        Some(Permit { budget: self.budget.clone(), of })
    }

    fn small(&self, bytes: u64) -> Kind {
        if self.own.take() {
            return Kind::Own(self.own.clone());
        }
        let mut left = self.budget.lock();
        // Before the look at the place: whoever frees it after that sees that it is wanted.
        self.own.wanted.store(true, Ordering::SeqCst);
        let found = loop {
            if self.own.take() {
                break Kind::Own(self.own.clone());
            }
            if left.small >= bytes {
                left.small -= bytes;
                break Kind::Small(bytes);
            }
            left = self.budget.freed.wait(left).unwrap_or_else(PoisonError::into_inner);
        };
        self.own.wanted.store(false, Ordering::SeqCst);
        found
    }

    fn large(&self, bytes: u64) -> Kind {
        debug_assert!(bytes <= u64::from(PAYLOAD_BYTES_MAX));
        let left = self.budget.lock();
        let waited = self.budget.freed.wait_while(left, |left| left.large < bytes);
        waited.unwrap_or_else(PoisonError::into_inner).large -= bytes;
        Kind::Large(bytes)
    }
}

impl Place {
    fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::SeqCst)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match &self.of {
            Kind::Own(place) => {
                place.taken.store(false, Ordering::SeqCst);
                if !place.wanted.load(Ordering::SeqCst) {
                    return;
                }
                // Whoever wants it looks, or waits already.
                drop(self.budget.lock());
            }
            Kind::Small(bytes) => self.budget.lock().small += bytes,
            Kind::Large(bytes) => self.budget.lock().large += bytes,
        }
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn the_largest_request_always_fits_and_waits_for_others() {
        let allowance = Budget::new(ByteLen::ZERO, ByteLen::ZERO).allowance();
        assert!(allowance.take(TINY_REQUEST_BYTES).is_none());
        let all = allowance.take(32 << 20).unwrap();
        let (took, taken) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| took.send(allowance.take(1 << 20)).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(taken.try_recv().is_err());
            drop(all);
            assert!(taken.recv().unwrap().is_some());
        });
    }

    #[test]
    fn a_connection_has_a_place_for_a_small_request_whatever_others_hold() {
        let budget = Budget::new(ByteLen::ZERO, ByteLen::ZERO);
        let (greedy, modest) = (budget.allowance(), budget.allowance());
        let mut held =
            vec![greedy.take(SMALL_REQUEST_BYTES).unwrap(), greedy.take(SMALL_REQUEST_BYTES).unwrap()];
        for _ in 0..3 {
            assert!(matches!(modest.take(SMALL_REQUEST_BYTES).unwrap().of, Kind::Own(_)));
        }
        let (took, taken) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2 {
                    took.send(greedy.take(TINY_REQUEST_BYTES + 1)).unwrap();
                }
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(taken.try_recv().is_err(), "its place and all that is shared are taken");
            held.remove(0);
            let own = taken.recv().unwrap();
            assert!(matches!(own.unwrap().of, Kind::Own(_)), "its place is free again");
            taken.recv().unwrap();
        });
    }
}
