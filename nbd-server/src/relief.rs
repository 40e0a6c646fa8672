//! Nobody waits behind a stuck request: a look, every four milliseconds while there is traffic, at what each connection's
//! leader is doing. Where it is still at what it was at before and waits, another thread of the connection takes over the
//! reading; where it computes, or has lost its core to somebody else, only after a while: then there would be one more for
//! the same cores.

use crate::connection::Connection;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(4);
/// Looks at a leader that computes before it is relieved.
const COMPUTING_LOOKS: u32 = 8;
/// Looks without any traffic before the watch rests, and before a connection that has none leaves a crowd: when the watch
/// rests, nobody waits in one.
const QUIET_LOOKS: u32 = 25;

/// The watch over the leaders of a server's connections.
#[derive(Debug, Default)]
pub struct Relief {
    state: Mutex<State>,
    woken: Condvar,
    resting: AtomicBool,
}

struct Watched {
    connection: Weak<Connection>,
    /// The newest request and the one that the leader was at.
    seen: (u64, u64),
    /// How often it has been at that one.
    stuck: u32,
    /// How often it has been at none and nothing was new.
    quiet: u32,
}

#[derive(Default)]
struct State {
    ended: bool,
    connections: Vec<Watched>,
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
        let watched = Watched { connection: Arc::downgrade(connection), seen: (0, 0), stuck: 0, quiet: 0 };
        let mut state = self.lock();
        // Those that left while the watch rests.
        state.connections.retain(|watched| watched.connection.strong_count() > 0);
        state.connections.push(watched);
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
        self.connections.retain_mut(|watched| {
            let Some(connection) = watched.connection.upgrade() else { return false };
            let now = connection.progress();
            let (_, at) = now;
            busy |= now != watched.seen || at != 0;
            watched.stuck = if at != 0 && now == watched.seen { watched.stuck + 1 } else { 0 };
            if watched.stuck >= COMPUTING_LOOKS || (watched.stuck > 0 && connection.leader_waits()) {
                connection.relieve(at);
            }
            watched.quiet = if at == 0 && now == watched.seen { watched.quiet + 1 } else { 0 };
            if watched.quiet >= QUIET_LOOKS {
                connection.leave_crowd();
            }
            watched.seen = now;
            true
        });
        busy
    }
}
