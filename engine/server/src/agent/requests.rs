//! Checkpoints that the server asked an agent for, and who waits for them.

use blocks::{ByteLen, CheckpointId, DiskIndex, Extent};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::mpsc;

/// Set in the numbers of requests that the server makes; an agent's own are without it.
const SERVER_BIT: u64 = 1 << 63;
/// How many events wait for whoever asked.
const EVENTS: usize = 64;

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestEvent {
    /// It is durable.
    Sealed(CheckpointId),
    /// It came to nothing.
    Failed(String),
    /// Part of a disk was compared with it.
    Compared(Comparison),
    /// Everything of this disk was compared with it.
    DiskDone(DiskIndex),
}

/// What came of comparing a run of hashes with a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Comparison {
    pub disk: DiskIndex,
    pub equal: ByteLen,
    pub skipped: ByteLen,
    pub differing: Vec<Extent>,
}

/// The requests of one connection.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    last: u64,
    senders: HashMap<u64, mpsc::Sender<RequestEvent>>,
}

impl Requests {
    /// A number for a new request, and where its events come out.
    pub fn begin(&self) -> (u64, mpsc::Receiver<RequestEvent>) {
        let (sender, events) = mpsc::channel(EVENTS);
        let mut waiting = self.lock();
        waiting.last += 1;
        let request = waiting.last | SERVER_BIT;
        waiting.senders.retain(|_, sender| !sender.is_closed());
        if !waiting.closed {
            waiting.senders.insert(request, sender);
        }
        (request, events)
    }

    /// Nobody waits for this one.
    pub fn forget(&self, request: u64) {
        self.lock().senders.remove(&request);
    }

    /// Tells whoever asked, waiting while they are behind. Not from async code. Nothing where nobody asked.
    pub fn tell_blocking(&self, request: u64, event: RequestEvent) {
        let sender = self.lock().senders.get(&request).cloned();
        if let Some(sender) = sender {
            // Whoever asked may have gone away; then nobody wants to know.
            let _ = sender.blocking_send(event);
        }
    }

    /// Tells whoever asked that the agent could not, and forgets the request.
    pub fn fail(&self, request: u64, reason: String) {
        if let Some(sender) = self.lock().senders.remove(&request) {
            let _ = sender.try_send(RequestEvent::Failed(reason));
        }
    }

    /// The connection is over: everybody who waits is told by their channel closing.
    pub fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.senders.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
