//! What the parts of a server share.

use crate::agent::{AgentContext, Agents};
use crate::authority::Authority;
use crate::datastore::Mounts;
use crate::ladder::Ladder;
use crate::session::Sessions;
use crate::stand_in::StandIns;
use nbd_server::{Arrivals, Exports};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use store::{GuestActivity, Store};

/// A running server, as its front ends see it.
#[derive(Debug)]
pub(crate) struct Services {
    pub data: PathBuf,
    pub store: Arc<Store>,
    pub agents: Arc<Agents>,
    pub agent_context: Arc<AgentContext>,
    pub authority: Arc<Authority>,
    pub sessions: Arc<Sessions>,
    pub stand_ins: Arc<StandIns>,
    /// What is served over NBD, with what its clients did.
    pub exports: Exports,
    /// The NBD clients that came and went.
    pub arrivals: Arc<Arrivals>,
    /// Where the datastore is shown.
    pub mounts: Mounts,
    pub consolidating: Turns,
    /// How long history is kept, where a machine has no ladder of its own.
    pub keep: Ladder,
    /// Whether guests are being served, for background work to make way.
    pub guests: Arc<GuestActivity>,
    /// How fast background consolidation goes, in bytes read and written a second.
    pub consolidate_rate: Option<u64>,
    /// How fast a scheduled scrub reads, in bytes a second.
    pub scrub_rate: Option<u64>,
}

/// Whose turn it is to consolidate: one unit at a time, and whoever is waited for by a person goes first.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    turn: Mutex<()>,
    people: AtomicUsize,
}

impl Turns {
    /// For somebody who waits for the result. Blocks until background work has made room.
    pub fn for_a_person(&self) -> MutexGuard<'_, ()> {
        self.people.fetch_add(1, Ordering::SeqCst);
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.people.fetch_sub(1, Ordering::SeqCst);
        turn
    }

    /// For background work, which then asks [`Turns::must_make_room`] again and again. `None` while others have it.
    pub fn for_the_background(&self) -> Option<MutexGuard<'_, ()>> {
        if self.must_make_room() { None } else { self.turn.try_lock().ok() }
    }

    /// Whether somebody waits.
    pub fn must_make_room(&self) -> bool {
        self.people.load(Ordering::SeqCst) > 0
    }
}
