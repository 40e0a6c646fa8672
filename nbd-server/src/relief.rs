//! Nobody waits behind a stuck request: a look, every four milliseconds while there is traffic, at what each connection's
//! leader is doing. Where it is still at what it was at before, another thread of the connection takes over the reading.

use crate::connection::Connection;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(4);
/// Looks without any traffic before the watch rests.
const QUIET_LOOKS: u32 = 25;

/// The watch over the leaders of a server's connections.
#[derive(Debug, Default)]
pub struct Relief {
    state: Mutex<State>,
    woken: Condvar,
    resting: AtomicBool,
}

#[derive(Default)]
struct State {
    ended: bool,
    /// With what each was at when it was last looked at.
    connections: Vec<(Weak<Connection>, (u64, u64))>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} connections", self.connections.len())
    }
}

impl Relief {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches this connection too.
    pub fn watch(&self, connection: &Arc<Connection>) {
        self.lock().connections.push((Arc::downgrade(connection), (0, 0)));
    }

    /// There is traffic. Called for every request: costs next to nothing while the watch is awake.
    pub fn wake(&self) {
        if self.resting.load(Ordering::SeqCst) {
            let _state = self.lock();
            self.resting.store(false, Ordering::SeqCst);
            self.woken.notify_one();
        }
    }

    /// Ends the watch.
    pub fn end(&self) {
        self.lock().ended = true;
        self.woken.notify_one();
    }

    /// Watches until the end.
    pub fn run(&self) {
        let mut quiet = 0;
        let mut state = self.lock();
        while !state.ended {
            let busy = state.look();
            quiet = if busy { 0 } else { quiet + 1 };
            if quiet < QUIET_LOOKS {
                state = self.woken.wait_timeout(state, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            self.resting.store(true, Ordering::SeqCst);
            // Whoever began before it could see that we rest is seen here.
            if state.look() {
                self.resting.store(false, Ordering::SeqCst);
            }
            while self.resting.load(Ordering::SeqCst) && !state.ended {
                state = self.woken.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            quiet = 0;
        }
    }
}

impl State {
    /// Relieves the stuck; whether anybody is at anything, or was since the last look.
    fn look(&mut self) -> bool {
        let mut busy = false;
        self.connections.retain_mut(|(connection, seen)| {
            let Some(connection) = connection.upgrade() else { return false };
            let now = connection.progress();
            let (_, at) = now;
            busy |= now != *seen || at != 0;
            if at != 0 && now == *seen {
                connection.relieve(at);
            }
            *seen = now;
            true
        });
        busy
    }
}
