//! Where connections wait together when there are more of them than cores.
//!
//! With a thread for each, the system's scheduler would decide who is served, and it keeps those company that are awake already:
//! within seconds one of 64 got six times what was its share. So in a crowd nobody sleeps on a socket of its own. A connection
//! that has nothing to do is parked; what arrives puts it at the end of a line (the kernel's, of an epoll), and a few threads
//! take from its head, a turn each. A turn is what has arrived whole, up to a bound. What cannot be received without waiting for
//! the client goes back to a thread of the connection's own; whoever has to wait in a turn all the same, to send or for a disk, is
//! relieved and replaced. So clients cannot hold the crowd's threads.
//!
//! ```text
//!   own thread ── nothing has arrived, and it is crowded ──► parked ── something arrives ──► in line ──► turn
//!       ▲                                                      ▲ ▲                                        │
//!       │                                                      │ └───────── nothing is left ──────────────┤
//!       │                                                      └── the bound: to the end of the line ─────┤
//!       └── half a message, a long request, slow ones, no crowd any more, quiet for a while, stuck ◄──────┘
//! ```

mod headcount;

pub use headcount::Head;

use crate::connection::Connection;
use headcount::cores;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The crowd's threads for each core: some wait for a disk or for memory.
const THREADS_PER_CORE: usize = 4;
/// Nobody's number.
const END: u64 = u64::MAX;

/// What brings a parked connection into the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Something arrives.
    Arrival,
    /// Its client takes what it was sent: now, most likely, and behind all others that are in line.
    Room,
}

/// A server's connections that wait together, and the threads that serve them.
#[derive(Debug)]
pub struct Crowd {
    line: OwnedFd,
    /// Readable once the crowd ends.
    ending: OwnedFd,
    ended: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Those that have been parked once, by number.
    connections: HashMap<u64, Weak<Connection>>,
    threads: usize,
    /// Those of them that are stuck.
    stuck: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} connections, {} threads", self.connections.len(), self.threads)
    }
}

impl Crowd {
    /// Nobody waits yet, and no thread is started before somebody does.
    pub fn new() -> io::Result<Crowd> {
        let line = epoll::create(CreateFlags::CLOEXEC)?;
        let ending = eventfd(0, EventfdFlags::CLOEXEC)?;
        epoll::add(&line, &ending, EventData::new_u64(END), EventFlags::IN)?;
        Ok(Crowd { line, ending, ended: AtomicBool::new(false), state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection comes into the line once there is something to do for it. After an error it does not.
    pub fn wait_for(
        self: &Arc<Crowd>,
        connection: &Arc<Connection>,
        socket: BorrowedFd<'_>,
        until: Until,
    ) -> io::Result<()> {
        if self.ended.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let number = connection.number();
        let flags = EventFlags::ONESHOT | EventFlags::IN | EventFlags::RDHUP;
        let flags = if until == Until::Room { flags | EventFlags::OUT } else { flags };
        let data = EventData::new_u64(number);
        match epoll::modify(&self.line, socket, data, flags) {
            Err(Errno::NOENT) => {}
            known => return Ok(known?),
        }
        {
            let mut state = self.lock();
            state.connections.insert(number, Arc::downgrade(connection));
            self.start_threads(&mut state)?;
        }
        Ok(epoll::add(&self.line, socket, data, flags)?)
    }

    /// The connection is no more.
    pub fn forget(&self, number: u64) {
        self.lock().connections.remove(&number);
    }

    /// One of the threads is stuck, until [`Crowd::take_back`]: another one takes its place.
    pub fn lend(self: &Arc<Crowd>) {
        let mut state = self.lock();
        state.stuck += 1;
        if let Err(error) = self.start_threads(&mut state) {
            tracing::debug!("a crowd of NBD clients goes on with {state:?}: {error}");
        }
    }

    /// It is done with what it was stuck in.
    pub fn take_back(&self) {
        self.lock().stuck -= 1;
    }

    /// Nobody is served any more: whoever is parked goes back to a thread of its own.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        let connections: Vec<_> = self.lock().connections.values().filter_map(Weak::upgrade).collect();
        connections.iter().for_each(|connection| connection.leave_crowd());
        // Fails only where it has been written to very often.
        let _ = rustix::io::write(&self.ending, &1u64.to_ne_bytes());
    }

    /// An error where there is not one thread.
    fn start_threads(self: &Arc<Crowd>, state: &mut State) -> io::Result<()> {
        while !self.ended.load(Ordering::SeqCst) && state.threads - state.stuck < threads_wanted() {
            let crowd = self.clone();
            match std::thread::Builder::new().name("nbd-crowd".into()).spawn(move || crowd.work()) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == state.stuck => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn work(self: &Arc<Crowd>) {
        let _gone = Gone(self);
        let mut buffer = Vec::new();
        while let Some(number) = self.first_in_line() {
            let connection = self.lock().connections.get(&number).and_then(Weak::upgrade);
            if let Some(connection) = connection {
                connection.take_turn(&mut buffer);
            }
            if self.lock().is_overstaffed() {
                return;
            }
        }
    }

    /// Waits for whose turn it is; `None` at the end.
    fn first_in_line(&self) -> Option<u64> {
        loop {
            // One only: the next is for the next thread.
            let mut event = [MaybeUninit::<Event>::uninit()];
            match epoll::wait(&self.line, &mut event, None) {
                Ok(([event], _)) if event.data.u64() != END => return Some(event.data.u64()),
                Ok(_) if self.ended.load(Ordering::SeqCst) => return None,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!("a crowd of NBD clients is not served any more: {error}");
                    return None;
                }
            }
        }
    }
}

fn threads_wanted() -> usize {
    cores() * THREADS_PER_CORE
}

impl State {
    /// There are more threads than are wanted: some that were stuck are back.
    fn is_overstaffed(&self) -> bool {
        self.threads - self.stuck > threads_wanted()
    }
}

/// A thread of the crowd ends; where a volume has panicked, another one takes its place.
struct Gone<'a>(&'a Arc<Crowd>);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.threads -= 1;
        if std::thread::panicking()
            && let Err(error) = self.0.start_threads(&mut state)
        {
            tracing::error!("a crowd of NBD clients is not served any more: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn threads_become(crowd: &Crowd, threads: usize) {
        let begun = Instant::now();
        while crowd.lock().threads != threads {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", crowd.lock());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_stuck_thread_is_replaced_and_the_one_too_many_leaves() {
        let crowd = Arc::new(Crowd::new().unwrap());
        assert_eq!(crowd.lock().threads, 0);
        crowd.start_threads(&mut crowd.lock()).unwrap();
        assert_eq!(crowd.lock().threads, threads_wanted());
        crowd.lend();
        crowd.lend();
        assert_eq!(crowd.lock().threads, threads_wanted() + 2);
        crowd.take_back();
        assert!(crowd.lock().is_overstaffed());
        // An event for a connection that is gone: whoever takes it looks whether it is one too many.
        let (one, mut other) = std::os::unix::net::UnixStream::pair().unwrap();
        epoll::add(&crowd.line, &one, EventData::new_u64(7), EventFlags::ONESHOT | EventFlags::IN).unwrap();
        io::Write::write_all(&mut other, b"x").unwrap();
        threads_become(&crowd, threads_wanted() + 1);
        assert!(!crowd.lock().is_overstaffed());
        crowd.end();
        threads_become(&crowd, 0);
    }
}
