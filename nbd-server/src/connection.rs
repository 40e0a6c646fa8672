//! One client in the transmission phase.
//!
//! Its threads are equal: one at a time takes the receiver, reads one request with its payload, lets the receiver go,
//! does the work and sends the reply. Another thread is started only when a request arrives and nobody is free to
//! wait for the next one, so a client with one request in flight has two threads. Every buffer belongs to a thread
//! and is used again. Everything that a slow or hostile client can hold is its own.

use crate::budget::{Budget, Permit};
use crate::dispatch::{self, Action, Agreed, Refusal};
use crate::export::Client;
use crate::limits::Limits;
use crate::protocol::PAYLOAD_BYTES_MAX;
use crate::receiver::{Receiver, TICK};
use crate::reply::Reply;
use crate::request::{Command, Request};
use crate::server::Slot;
use blocks::ByteLen;
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A payload up to this length is read and thrown away when it is too long; a longer one is taken for an attack.
const SKIPPED_BYTES_MAX: u64 = 2 * PAYLOAD_BYTES_MAX as u64;
/// What a thread keeps of its buffer between requests.
const KEPT_BUFFER_BYTES: usize = 1 << 20;
/// How long the client of a removed export may go on asking (and being told so) before it is cut off.
const REMOVED_GRACE: Duration = Duration::from_secs(5);

/// What the threads of a connection share.
pub(crate) struct Connection {
    slot: Slot,
    client: Client,
    agreed: Agreed,
    receiver: Mutex<Receiver>,
    send: Mutex<()>,
    removed_since: Mutex<Option<Instant>>,
    threads: AtomicUsize,
    waiting: AtomicUsize,
    threads_max: usize,
    budget: Arc<Budget>,
}

/// A request that was read, and its answer if there is nothing to do.
struct Received {
    request: Request,
    verdict: Result<Action, Refusal>,
    _permit: Option<Permit>,
}

impl Connection {
    /// Serves the client until it leaves, or the export or the server ends.
    pub fn serve(slot: Slot, client: Client, agreed: Agreed, limits: &Limits, budget: Arc<Budget>) {
        let timeouts = slot
            .socket()
            .set_read_timeout(TICK)
            .and_then(|()| slot.socket().set_write_timeout(limits.stall_timeout));
        if let Err(error) = timeouts {
            tracing::warn!("a connection cannot be given timeouts: {error}");
            return;
        }
        let connection = Arc::new(Connection {
            slot,
            client,
            agreed,
            receiver: Mutex::new(Receiver::new(limits.stall_timeout)),
            send: Mutex::new(()),
            removed_since: Mutex::new(None),
            threads: AtomicUsize::new(1),
            waiting: AtomicUsize::new(0),
            threads_max: limits.threads_per_connection_max.max(1),
            budget,
        });
        connection.work();
    }

    fn work(self: &Arc<Connection>) {
        let mut buffer = Vec::new();
        let _ended = Ended(self);
        while let Some(received) = self.receive(&mut buffer) {
            if let Err(error) = self.answer(received, &mut buffer) {
                tracing::debug!("a reply could not be sent: {error}");
                self.slot.socket().shutdown(Shutdown::Both);
                break;
            }
            if buffer.len() > KEPT_BUFFER_BYTES {
                buffer = Vec::new();
            }
        }
    }

    /// The next request; `None` when there will be none.
    fn receive(self: &Arc<Connection>, buffer: &mut Vec<u8>) -> Option<Received> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        if receiver.ended {
            return None;
        }
        let received = self.receive_one(&mut receiver, buffer);
        match received {
            Ok(Some(_)) => self.start_thread_if_nobody_waits(),
            Ok(None) => receiver.ended = true,
            Err(ref error) => {
                receiver.ended = true;
                tracing::debug!("a connection ends in the middle of a request: {error}");
            }
        }
        received.ok().flatten()
    }

    fn receive_one(&self, receiver: &mut Receiver, buffer: &mut Vec<u8>) -> io::Result<Option<Received>> {
        let socket = self.slot.socket();
        if !self.may_go_on() {
            return Ok(None);
        }
        let headers = self.agreed.headers;
        let Some(header) = receiver.header(socket, headers, || !self.client.export().is_removed())? else {
            return Ok(None);
        };
        let Some(request) = Request::decode(headers, &header) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "wrong magic"));
        };
        if request.command == Command::Disconnect {
            return Ok(None);
        }
        let export = self.client.export();
        let verdict = dispatch::check(&request, &self.agreed, export.len(), export.is_read_only());
        let payload_len = request.payload_len(headers);
        let mut permit = None;
        match &verdict {
            Ok(action) => {
                let wanted = payload_len.as_usize().max(dispatch::reply_bytes(action, &self.agreed));
                permit = self.budget.take(wanted);
                if buffer.len() < wanted {
                    buffer.resize(wanted, 0);
                }
                receiver.exact(socket, &mut buffer[..payload_len.as_usize()])?;
            }
            Err(_) if payload_len <= ByteLen::new(SKIPPED_BYTES_MAX) => {
                receiver.skip(socket, payload_len.get())?;
            }
            Err(refusal) => return Err(io::Error::new(io::ErrorKind::InvalidData, refusal.reason)),
        }
        Ok(Some(Received { request, verdict, _permit: permit }))
    }

    /// Whether another request may be read: always, but for a few seconds only once the export is removed.
    fn may_go_on(&self) -> bool {
        if !self.client.export().is_removed() {
            return true;
        }
        let mut since = self.removed_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.get_or_insert_with(Instant::now).elapsed() < REMOVED_GRACE
    }

    fn answer(&self, received: Received, buffer: &mut [u8]) -> io::Result<()> {
        let Received { request, verdict, _permit } = received;
        let reply = Reply {
            socket: self.slot.socket(),
            send: &self.send,
            cookie: request.cookie,
            offset: request.offset,
            headers: self.agreed.headers,
        };
        match verdict {
            Ok(Action::Write { .. }) if request.len.is_zero() => reply.done(),
            Ok(action) => {
                let payload_len = request.payload_len(self.agreed.headers).as_usize();
                let used = payload_len.max(dispatch::reply_bytes(&action, &self.agreed));
                dispatch::serve(action, &self.agreed, self.client.export(), &mut buffer[..used], &reply)
            }
            Err(refusal) => reply.error(refusal.error, refusal.reason),
        }
    }

    /// Called with the receiver held, so that at most one thread decides at a time.
    fn start_thread_if_nobody_waits(self: &Arc<Connection>) {
        let threads = self.threads.load(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 || threads >= self.threads_max {
            return;
        }
        self.threads.fetch_add(1, Ordering::SeqCst);
        let connection = self.clone();
        let spawned = std::thread::Builder::new().name("nbd".into()).spawn(move || connection.work());
        if let Err(error) = spawned {
            self.threads.fetch_sub(1, Ordering::SeqCst);
            tracing::debug!("a connection goes on with {threads} threads: {error}");
        }
    }
}

/// Leaves the connection: the last one out closes it, and so does a thread whose volume has panicked, because nobody may
/// go on as if nothing had happened.
struct Ended<'a>(&'a Connection);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let last = self.0.threads.fetch_sub(1, Ordering::SeqCst) == 1;
        if last || std::thread::panicking() {
            self.0.slot.socket().shutdown(Shutdown::Both);
        }
    }
}
