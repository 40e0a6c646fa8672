//! How many connections had something to do lately, in the whole process: they share its cores.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// For how long they are counted together.
const TOGETHER: Duration = Duration::from_millis(10);

static HEADCOUNT: Headcount = Headcount::new();

/// Counts who waits within a window of time, each once. Roughly: whoever counts while the window changes may be counted in either.
#[derive(Debug)]
struct Headcount {
    window: AtomicU64,
    now: AtomicUsize,
    before: AtomicUsize,
}

impl Headcount {
    const fn new() -> Headcount {
        Headcount { window: AtomicU64::new(0), now: AtomicUsize::new(0), before: AtomicUsize::new(0) }
    }

    /// Counts one who was counted in the window `last` most recently; how many there are.
    fn join(&self, last: &mut u64, window: u64) -> usize {
        let current = self.window.load(Ordering::Relaxed);
        let is_first = current != window
            && self.window.compare_exchange(current, window, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_first {
            let counted = self.now.swap(0, Ordering::Relaxed);
            self.before.store(if window == current + 1 { counted } else { 0 }, Ordering::Relaxed);
        }
        if *last != window {
            *last = window;
            self.now.fetch_add(1, Ordering::Relaxed);
        }
        self.now.load(Ordering::Relaxed).max(self.before.load(Ordering::Relaxed))
    }
}

/// One of those that are counted.
#[derive(Debug, Default)]
pub struct Head {
    /// The window in which it was counted last.
    counted: u64,
}

impl Head {
    /// It has something to do, now. Whether there are more like it than cores.
    pub fn is_in_a_crowd(&mut self, now: Instant) -> bool {
        static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);
        let since = now.saturating_duration_since(*BEGINNING).as_millis() / TOGETHER.as_millis();
        // The first window is nobody's last one.
        let window = u64::try_from(since).unwrap_or(u64::MAX).saturating_add(1);
        HEADCOUNT.join(&mut self.counted, window) > cores()
    }
}

/// How many threads can run at once.
pub fn cores() -> usize {
    static CORES: LazyLock<usize> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));
    *CORES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_counted_once_in_a_window_and_remembered_for_one_more() {
        let headcount = Headcount::new();
        let mut lasts = [0; 5];
        let counts: Vec<usize> = lasts.iter_mut().map(|last| headcount.join(last, 7)).collect();
        assert_eq!(counts, [1, 2, 3, 4, 5]);
        assert_eq!(headcount.join(&mut lasts[0], 7), 5, "it is counted already");
        assert_eq!(headcount.join(&mut lasts[0], 8), 5, "as many as there were a moment ago");
        assert_eq!(headcount.join(&mut lasts[0], 9), 1, "it was alone meanwhile");
        assert_eq!(headcount.join(&mut lasts[1], 12), 1, "nobody was there for a while");
    }
}
