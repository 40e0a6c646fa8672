//! A look at what has arrived, for a moment, before a thread sleeps until something does.
//!
//! Waking a core that sleeps takes longer than most requests, in a virtual machine many times as long. So whoever was woken soon
//! after it had begun to wait looks for a while the next time, and gives way to anybody else who wants the core; after a long wait
//! nobody looks, so that a quiet connection costs nothing. And nobody looks while more connections have something to do than there
//! are cores: who looks and his client would keep theirs from the others.

use crate::crowd::Head;
use std::io;
use std::time::{Duration, Instant};

/// For how long a thread looks.
const LOOK: Duration = Duration::from_micros(50);
/// A wait that ended within this time might have been a look; what it takes to wake up is in it.
const SHORT_WAIT: Duration = Duration::from_micros(200);

/// How a call waits for what has not arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// It does not: `WouldBlock`.
    Never,
    /// It sleeps, until the socket's timeout at most.
    Sleeps,
}

/// Whether it is worth looking.
#[derive(Debug)]
pub struct Look {
    last_wait_was_short: bool,
    head: Head,
    /// For how long to look, and what a short wait is; tests have their own.
    look: Duration,
    short_wait: Duration,
}

impl Default for Look {
    fn default() -> Look {
        Look { last_wait_was_short: false, head: Head::default(), look: LOOK, short_wait: SHORT_WAIT }
    }
}

impl Look {
    /// Has something received, which may wait.
    pub fn receive<T>(&mut self, mut receive: impl FnMut(Waiting) -> io::Result<T>) -> io::Result<T> {
        let at_once = receive(Waiting::Never);
        if !would_wait(&at_once) {
            return at_once;
        }
        let begun = Instant::now();
        let is_crowded = self.head.is_in_a_crowd(begun);
        self.wait(begun, is_crowded, receive)
    }

    /// The same, but `None` where it would have to wait, in a crowd.
    pub fn receive_unless_crowded<T>(
        &mut self,
        mut receive: impl FnMut(Waiting) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        let at_once = receive(Waiting::Never);
        if !would_wait(&at_once) {
            return at_once.map(Some);
        }
        let begun = Instant::now();
        match self.head.is_in_a_crowd(begun) {
            true => Ok(None),
            false => self.wait(begun, false, receive).map(Some),
        }
    }

    fn wait<T>(
        &mut self,
        begun: Instant,
        is_crowded: bool,
        mut receive: impl FnMut(Waiting) -> io::Result<T>,
    ) -> io::Result<T> {
        let looks = !is_crowded && self.last_wait_was_short;
        while looks && begun.elapsed() < self.look {
            rustix::thread::sched_yield();
            let received = receive(Waiting::Never);
            if !would_wait(&received) {
                return received;
            }
        }
        let received = receive(Waiting::Sleeps);
        self.last_wait_was_short = begun.elapsed() < self.short_wait;
        received
    }

    /// Whether there are more connections with something to do, this one among them, than cores.
    pub fn is_crowded(&mut self) -> bool {
        self.head.is_in_a_crowd(Instant::now())
    }
}

fn would_wait<T>(outcome: &io::Result<T>) -> bool {
    matches!(outcome, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Tries again for a moment what does not wait, as long as it is refused with `WouldBlock`; `None` where it still is.
pub fn for_a_moment<T>(mut attempt: impl FnMut() -> io::Result<T>) -> Option<io::Result<T>> {
    let begun = Instant::now();
    loop {
        let outcome = attempt();
        if !would_wait(&outcome) {
            return Some(outcome);
        }
        if begun.elapsed() >= LOOK {
            return None;
        }
        rustix::thread::sched_yield();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Receives what is found at the look of that number, or in a sleep of that length; how it was waited for.
    fn arrives(look: &mut Look, at: usize, sleep: Duration) -> Vec<Waiting> {
        let mut waited = Vec::new();
        let received = look.receive(|waiting| {
            waited.push(waiting);
            match waiting {
                Waiting::Never if waited.len() < at => Err(io::ErrorKind::WouldBlock.into()),
                Waiting::Never => Ok(()),
                Waiting::Sleeps => {
                    std::thread::sleep(sleep);
                    Ok(())
                }
            }
        });
        received.unwrap();
        waited
    }

    #[test]
    fn what_is_there_is_taken_without_a_wait() {
        assert_eq!(arrives(&mut Look::default(), 1, Duration::ZERO), [Waiting::Never]);
    }

    #[test]
    fn nobody_looks_after_a_long_wait() {
        let mut look = Look::default();
        for _ in 0..3 {
            let waited = arrives(&mut look, usize::MAX, Duration::from_millis(2));
            assert_eq!(waited, [Waiting::Never, Waiting::Sleeps]);
        }
    }

    #[test]
    fn after_a_short_wait_one_looks() {
        // So long that a thread which loses its core meanwhile is back in time.
        let long = Duration::from_secs(60);
        let mut look = Look { look: long, short_wait: long, ..Look::default() };
        arrives(&mut look, usize::MAX, Duration::ZERO);
        assert_eq!(arrives(&mut look, 4, Duration::ZERO), [Waiting::Never; 4]);
    }

    #[test]
    fn a_look_ends_in_sleep_and_a_long_one_in_no_further_look() {
        let mut look = Look { last_wait_was_short: true, ..Look::default() };
        let waited = arrives(&mut look, usize::MAX, Duration::from_millis(20));
        assert_eq!(waited.last(), Some(&Waiting::Sleeps));
        assert!(!look.last_wait_was_short);
    }

    #[test]
    fn a_moment_ends_with_an_answer_or_without() {
        let refused = || Err::<u32, _>(io::ErrorKind::WouldBlock.into());
        assert!(for_a_moment(refused).is_none());
        assert_eq!(for_a_moment(|| Ok(7)).unwrap().unwrap(), 7);
        let failed = for_a_moment(|| Err::<u32, _>(io::ErrorKind::BrokenPipe.into())).unwrap();
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        // A thread that loses its core may have no moment left for the second attempt: not each time.
        let second = |_| {
            let mut attempts = 0;
            let outcome = for_a_moment(|| {
                attempts += 1;
                if attempts == 2 { Ok(attempts) } else { refused() }
            });
            matches!(outcome, Some(Ok(2)))
        };
        assert!((0..1000).any(second));
    }

    #[test]
    fn errors_end_it() {
        let failed = Look::default().receive(|_| Err::<(), _>(io::ErrorKind::ConnectionReset.into()));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
