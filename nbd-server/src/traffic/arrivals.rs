//! Who came and went.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts a server's connections.
#[derive(Debug, Default)]
pub struct Arrivals {
    accepted: AtomicU64,
    turned_away: AtomicU64,
    failed_handshakes: AtomicU64,
    closed: AtomicU64,
}

/// What they were at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArrivalsSeen {
    /// Connections that were given a place.
    pub accepted: u64,
    /// Connections that were not, because all places were taken or the server was ending.
    pub turned_away: u64,
    /// Handshakes that came to nothing: malformed, too slow, refused certificates, hung up.
    pub failed_handshakes: u64,
    /// Connections that are open, those in their handshake included.
    pub open: u64,
}

impl Arrivals {
    /// What they are now.
    pub fn look(&self) -> ArrivalsSeen {
        // Closed ones first: none is closed that was not accepted.
        let closed = self.closed.load(Ordering::SeqCst);
        let accepted = self.accepted.load(Ordering::SeqCst);
        ArrivalsSeen {
            accepted,
            turned_away: self.turned_away.load(Ordering::SeqCst),
            failed_handshakes: self.failed_handshakes.load(Ordering::SeqCst),
            open: accepted - closed,
        }
    }

    pub(crate) fn accept(&self) {
        self.accepted.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn turn_away(&self) {
        self.turned_away.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn handshake_failed(&self) {
        self.failed_handshakes.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn close(&self) {
        self.closed.fetch_add(1, Ordering::SeqCst);
    }
}
