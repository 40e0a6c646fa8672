//! Memory that large requests share.

use crate::protocol::PAYLOAD_BYTES_MAX;
use blocks::ByteLen;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Requests up to this size need no permit: threads bound them.
pub const SMALL_REQUEST_BYTES: usize = 256 << 10;

/// Bytes that may be held; whoever asks for more than is left waits.
#[derive(Debug)]
pub struct Budget {
    left: Mutex<u64>,
    freed: Condvar,
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    /// A budget of `bytes`, raised so that the largest request fits.
    pub fn new(bytes: ByteLen) -> Arc<Budget> {
        let bytes = bytes.get().max(u64::from(PAYLOAD_BYTES_MAX));
        Arc::new(Budget { left: Mutex::new(bytes), freed: Condvar::new() })
    }

    /// Waits until `bytes` are free and takes them; nothing for a small request. At most [`PAYLOAD_BYTES_MAX`].
    pub fn take(self: &Arc<Budget>, bytes: usize) -> Option<Permit> {
        if bytes <= SMALL_REQUEST_BYTES {
            return None;
        }
        debug_assert!(bytes as u64 <= u64::from(PAYLOAD_BYTES_MAX));
        let bytes = bytes as u64;
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left =
            self.freed.wait_while(left, |left| *left < bytes).unwrap_or_else(PoisonError::into_inner);
        *left -= bytes;
        Some(Permit { budget: self.clone(), bytes })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.budget.left.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_request_always_fits_and_waits_for_others() {
        let budget = Budget::new(ByteLen::ZERO);
        assert!(budget.take(SMALL_REQUEST_BYTES).is_none());
        let all = budget.take(32 << 20).unwrap();
        let waiting = {
            let budget = budget.clone();
            std::thread::spawn(move || budget.take(1 << 20).unwrap().bytes)
        };
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(all);
        assert_eq!(waiting.join().unwrap(), 1 << 20);
    }
}
