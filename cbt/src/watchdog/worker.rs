//! The watchdog's second thread: does what waits for a disk, one order after the other, while the first keeps the clock.

use super::ioctl::{freeze, thaw};
use super::program::System;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What the agent asked for.
pub(super) enum Order {
    /// Write these out.
    Sync(Vec<File>),
    /// Freeze the one of that number.
    Freeze(usize, Arc<System>),
    /// Thaw it.
    Thaw(usize, Arc<System>),
}

/// See the module.
pub(super) struct Worker {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    order: Option<Order>,
    busy: bool,
}

impl Worker {
    /// Starts it; its answers go to this stream. It lives as long as the process.
    pub(super) fn start(stream: UnixStream) -> io::Result<Worker> {
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().spawn(move || theirs.work(stream))?;
        Ok(Worker { shared })
    }

    /// Has it done; not where something is under way, on which the agent has given up then.
    pub(super) fn put(&self, order: Order) -> bool {
        let mut state = self.shared.lock();
        let is_free = !state.busy && state.order.is_none();
        if is_free {
            state.order = Some(order);
            self.shared.changed.notify_all();
        }
        is_free
    }

    /// Returns when nothing is under way.
    pub(super) fn wait_idle(&self) {
        let mut state = self.shared.lock();
        while state.busy || state.order.is_some() {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn work(&self, mut stream: UnixStream) {
        loop {
            let mut state = self.lock();
            let order = loop {
                match state.order.take() {
                    Some(order) => break order,
                    None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            state.busy = true;
            drop(state);
            let answer = order.carry_out();
            // Neither is seen without the other: what comes after this order is answered after it. An agent that does not read it is
            // dying, which is seen elsewhere.
            let mut state = self.lock();
            let _ = stream.write_all(answer.as_bytes());
            state.busy = false;
            drop(state);
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Order {
    fn carry_out(self) -> String {
        match self {
            Order::Sync(files) => {
                for file in &files {
                    let _ = rustix::fs::syncfs(file);
                }
                "synced\n".to_owned()
            }
            Order::Freeze(index, system) => {
                let done = freeze(&system.file);
                system.at_stake.store(done.is_ok(), Ordering::Release);
                system.settled.store(true, Ordering::Release);
                format!("frozen {index}{}\n", errno(done))
            }
            Order::Thaw(index, system) => {
                let done = thaw(&system.file);
                system.at_stake.store(false, Ordering::Release);
                format!("thawed {index}{}\n", errno(done))
            }
        }
    }
}

fn errno(done: io::Result<()>) -> String {
    match done {
        Ok(()) => String::new(),
        Err(error) => format!(" {}", error.raw_os_error().unwrap_or(libc::EIO)),
    }
}
