//! Which path an inode number stands for.
//!
//! A number is a hash of the path, so that it stays the same however often a tree is mounted; 1 is the root. The kernel
//! says how often it was told of a number and when it has forgotten it; what it knows stays in the table.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) const ROOT: u64 = 1;

/// The numbers that the kernel knows.
#[derive(Default)]
pub(crate) struct Inodes {
    known: Mutex<HashMap<u64, Known>>,
}

struct Known {
    path: Arc<str>,
    lookups: u64,
}

impl Inodes {
    /// The path of a number; `None` where the kernel was never told of it.
    pub fn path(&self, number: u64) -> Option<Arc<str>> {
        match number {
            ROOT => Some(Arc::from("")),
            _ => self.lock().get(&number).map(|known| known.path.clone()),
        }
    }

    /// The number of a path of which the kernel is told now.
    pub fn look_up(&self, path: &str) -> u64 {
        let mut known = self.lock();
        let mut number = number_of(path);
        // Two paths with the same hash: the second one gets the next number.
        while known.get(&number).is_some_and(|other| &*other.path != path) {
            number = after(number);
        }
        known.entry(number).or_insert_with(|| Known { path: Arc::from(path), lookups: 0 }).lookups += 1;
        number
    }

    /// The kernel has forgotten the number as often.
    pub fn forget(&self, number: u64, lookups: u64) {
        let mut known = self.lock();
        if let Some(entry) = known.get_mut(&number) {
            entry.lookups = entry.lookups.saturating_sub(lookups);
            if entry.lookups == 0 {
                known.remove(&number);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// FNV-1a over the path: part of what users see, so it must never change.
pub(crate) fn number_of(path: &str) -> u64 {
    if path.is_empty() {
        return ROOT;
    }
    let hash = path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    if hash <= ROOT { after(ROOT) } else { hash }
}

fn after(number: u64) -> u64 {
    number.checked_add(1).unwrap_or(ROOT + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_and_are_forgotten_when_the_kernel_has() {
        let inodes = Inodes::default();
        let number = inodes.look_up("a/b");
        assert_eq!((number, inodes.look_up("a/b")), (number_of("a/b"), number));
        assert_eq!(number_of("foobar"), 0x8594_4171_f739_67e8, "what others compute for FNV-1a");
        assert_eq!(inodes.path(number).as_deref(), Some("a/b"));
        inodes.forget(number, 1);
        assert!(inodes.path(number).is_some());
        inodes.forget(number, 1);
        assert_eq!(inodes.path(number), None);
        assert_eq!(inodes.path(ROOT).as_deref(), Some(""));
    }

    #[test]
    fn two_paths_with_one_hash_have_two_numbers() {
        let inodes = Inodes::default();
        let number = number_of("x");
        inodes.lock().insert(number, Known { path: Arc::from("y"), lookups: 1 });
        assert_eq!(inodes.look_up("x"), number + 1);
        assert_eq!(inodes.path(number).as_deref(), Some("y"));
    }
}
