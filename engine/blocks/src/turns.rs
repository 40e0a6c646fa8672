//! Changes of ranges that overlap, one after the other; others at once.

use crate::{Extent, ExtentSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Who changes what of a disk or file. Ranges are looked through one by one: there are as many as threads at work.
#[derive(Debug, Default)]
pub struct Turns {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// As many as there are threads at most.
    taken: Vec<Extent>,
    waiting: usize,
}

/// Leave to change a range, until it is dropped. Whoever holds it must not wait for anybody else.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
    extent: Extent,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody changes anything of the extent.
    pub fn take(&self, extent: Extent) -> Turn<'_> {
        let mut state = self.lock();
        while state.taken.iter().any(|taken| taken.intersect(extent).is_some()) {
            state.waiting += 1;
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        state.taken.push(extent);
        Turn { turns: self, extent }
    }

    /// What is being changed now.
    pub fn under_way(&self) -> ExtentSet {
        self.lock().taken.iter().copied().collect()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        let at = state.taken.iter().position(|taken| *taken == self.extent);
        state.taken.swap_remove(at.expect("a turn is in the list until it ends"));
        let waiting = state.waiting;
        drop(state);
        // With nobody waiting, letting go costs no system call.
        if waiting > 0 {
            self.turns.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ByteLen, ByteOffset};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::channel;

    fn extent(start: u64, len: u64) -> Extent {
        Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
    }

    #[test]
    fn neighbours_change_at_once_and_who_overlaps_waits() {
        let turns = Turns::default();
        let first = turns.take(extent(0, 1024));
        let apart = turns.take(extent(1024, 512));
        assert_eq!(turns.under_way().covered(), ByteLen::new(1536));
        drop(apart);
        let (took, taken) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _turn = turns.take(extent(512, 1024));
                took.send(()).unwrap();
            });
            while turns.lock().waiting == 0 {
                std::thread::yield_now();
            }
            assert!(taken.try_recv().is_err());
            drop(first);
            taken.recv().unwrap();
        });
    }

    #[test]
    fn never_are_two_at_one_range() {
        let (turns, at_work) = (Turns::default(), [const { AtomicU32::new(0) }; 8]);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (turns, at_work) = (&turns, &at_work);
                scope.spawn(move || {
                    for round in 0..2000 {
                        let (start, len) = ((thread * 3 + round) % 7, 1 + round % 2);
                        let range = start..start + len;
                        let _turn = turns.take(extent(start as u64 * 512, len as u64 * 512));
                        let alone =
                            at_work[range.clone()].iter().all(|n| n.fetch_add(1, Ordering::SeqCst) == 0);
                        assert!(alone);
                        at_work[range].iter().for_each(|n| n.store(0, Ordering::SeqCst));
                    }
                });
            }
        });
    }
}
