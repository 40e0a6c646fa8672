//! The server: accepts clients, bounds them, and ends them in order.

use crate::budget::Budget;
use crate::connection::Connection;
use crate::crowd::Crowd;
use crate::export::Exports;
use crate::handshake::{self, Host};
use crate::limits::Limits;
use crate::listener::{ListenAddress, Listener};
use crate::relief::Relief;
use crate::security::{Access, ServerTls};
use crate::socket::Socket;
use crate::traffic::Arrivals;
use blocks::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags};
use std::collections::HashMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A running server. Dropping it shuts it down.
#[derive(Debug)]
pub struct NbdServer {
    shared: Arc<Shared>,
    addresses: Vec<ListenAddress>,
    wake: UnixStream,
    /// The acceptor and the watch over stuck requests.
    threads: Mutex<Option<(JoinHandle<()>, JoinHandle<()>)>>,
}

/// How a server serves.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions {
    /// How much it and its clients may take.
    pub limits: Limits,
    /// How clients can encrypt; not at all where it is missing.
    pub tls: Option<ServerTls>,
    /// Who may open what.
    pub access: Access,
    /// Where it counts its connections.
    pub arrivals: Arc<Arrivals>,
}

impl ServerOptions {
    /// Whether a client has to encrypt.
    pub fn is_encryption_required(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.required)
    }
}

/// What the acceptor and the connections share.
#[derive(Debug)]
struct Shared {
    exports: Exports,
    limits: Limits,
    tls: Option<ServerTls>,
    access: Access,
    arrivals: Arc<Arrivals>,
    budget: Arc<Budget>,
    relief: Arc<Relief>,
    crowd: Arc<Crowd>,
    open: Mutex<Open>,
    closed_one: Condvar,
}

#[derive(Debug, Default)]
struct Open {
    stopping: bool,
    next: u64,
    sockets: HashMap<u64, Arc<Socket>>,
}

/// A connection's place among the open ones; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    shared: Arc<Shared>,
    number: u64,
    socket: Arc<Socket>,
}

impl NbdServer {
    /// Serves `exports`, which may change meanwhile, on all `listeners` to everybody who can reach them.
    pub fn start(listeners: Vec<Listener>, exports: Exports, limits: Limits) -> Result<NbdServer> {
        NbdServer::start_with(listeners, exports, ServerOptions { limits, ..ServerOptions::default() })
    }

    /// The same to those who may.
    pub fn start_with(
        listeners: Vec<Listener>,
        exports: Exports,
        options: ServerOptions,
    ) -> Result<NbdServer> {
        let ServerOptions { limits, tls, access, arrivals } = options;
        let failed = |error| Error::io("cannot start the NBD server", error);
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        let addresses = listeners.iter().map(|listener| listener.address().clone()).collect();
        let budget = Budget::new(limits.small_request_bytes_max, limits.large_request_bytes_max);
        let (open, closed_one) = (Mutex::default(), Condvar::new());
        let relief = Arc::new(Relief::default());
        let crowd = Arc::new(Crowd::new().map_err(failed)?);
        let watch = {
            let relief = relief.clone();
            std::thread::Builder::new()
                .name("nbd-relief".into())
                .spawn(move || relief.run())
                .map_err(failed)?
        };
        let shared = Arc::new(Shared {
            exports,
            limits,
            tls,
            access,
            arrivals,
            budget,
            relief,
            crowd,
            open,
            closed_one,
        });
        let acceptor = {
            let shared = shared.clone();
            let accept = move || shared.accept(&listeners, &woken);
            std::thread::Builder::new().name("nbd-accept".into()).spawn(accept).map_err(failed)?
        };
        Ok(NbdServer { shared, addresses, wake, threads: Mutex::new(Some((acceptor, watch))) })
    }

    /// Where it listens, in the order of the listeners.
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// How many clients are connected, handshakes included.
    pub fn connections(&self) -> usize {
        self.shared.lock().sockets.len()
    }

    /// Takes no more clients and no more requests, waits until those in flight are answered, and closes. `Cancelled`
    /// where that has taken longer than the drain timeout and connections were cut. Flushes nothing: clients do, and
    /// what they have not flushed is with the volume. A second call does nothing.
    pub fn shutdown(&self) -> Result<()> {
        let Some((acceptor, watch)) = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take()
        else {
            return Ok(());
        };
        let mut open = self.shared.lock();
        open.stopping = true;
        // Nobody reads a further request, but what has arrived is answered.
        open.sockets.values().for_each(|socket| socket.shutdown(Shutdown::Read));
        drop(open);
        // A full pipe means that the acceptor has been woken.
        let _ = (&self.wake).write(&[1]);
        if acceptor.join().is_err() {
            tracing::error!("the thread that accepts NBD clients has panicked");
        }
        let drained = self.shared.wait_until_closed(self.shared.limits.drain_timeout);
        self.shared.relief.end();
        self.shared.crowd.end();
        if watch.join().is_err() {
            tracing::error!("the thread that watches over stuck NBD requests has panicked");
        }
        if drained {
            return Ok(());
        }
        let open = self.shared.lock();
        let cut = open.sockets.len();
        open.sockets.values().for_each(|socket| socket.shutdown(Shutdown::Both));
        drop(open);
        self.shared.wait_until_closed(Duration::from_secs(1));
        let context = format!("{cut} NBD connections were cut: their requests did not end in time");
        Err(Error::new(ErrorKind::Cancelled, context))
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown() {
            tracing::warn!("{error}");
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Shared>, listeners: &[Listener], woken: &UnixStream) {
        let mut poll_fds: Vec<PollFd<'_>> = listeners
            .iter()
            .map(|listener| PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN))
            .collect();
        poll_fds.push(PollFd::new(woken, PollFlags::IN));
        while !self.lock().stopping {
            if let Err(error) = rustix::event::poll(&mut poll_fds, None)
                && error != rustix::io::Errno::INTR
            {
                tracing::error!("NBD clients can no longer be accepted: {error}");
                return;
            }
            for (listener, polled) in listeners.iter().zip(&poll_fds) {
                if !polled.revents().is_empty() {
                    self.accept_one(listener);
                }
            }
        }
    }

    fn accept_one(self: &Arc<Shared>, listener: &Listener) {
        let socket = match listener.accept() {
            Ok(socket) => socket,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) =>
            {
                return;
            }
            Err(error) => {
                // Too many open files, most likely: it passes, and must not become a busy loop.
                tracing::warn!("an NBD client on {} cannot be accepted: {error}", listener.address());
                std::thread::sleep(Duration::from_millis(50));
                return;
            }
        };
        let Some(slot) = self.admit(socket) else { return };
        let shared = self.clone();
        let serve = move || shared.serve(slot);
        if let Err(error) = std::thread::Builder::new().name("nbd".into()).spawn(serve) {
            tracing::warn!("an NBD client gets no thread: {error}");
        }
    }

    /// A place for the connection; `None` where there is none left, and the client is disconnected.
    fn admit(self: &Arc<Shared>, socket: Socket) -> Option<Slot> {
        let socket = Arc::new(socket);
        let mut open = self.lock();
        if open.stopping || open.sockets.len() >= self.limits.connections_max {
            self.arrivals.turn_away();
            tracing::warn!("an NBD client is turned away: {} are connected", open.sockets.len());
            return None;
        }
        let number = open.next;
        open.next += 1;
        open.sockets.insert(number, socket.clone());
        drop(open);
        self.arrivals.accept();
        Some(Slot { shared: self.clone(), number, socket })
    }

    fn serve(self: &Arc<Shared>, slot: Slot) {
        let stopping = || self.lock().stopping;
        let host = Host {
            exports: &self.exports,
            tls: self.tls.as_ref(),
            access: &self.access,
            timeout: self.limits.handshake_timeout,
        };
        match handshake::negotiate(&slot.socket, &host, stopping) {
            Ok(Some(chosen)) => {
                let helpers = (&self.relief, &self.crowd);
                Connection::serve(slot, chosen, &self.limits, self.budget.allowance(), helpers)
            }
            Ok(None) => slot.socket.say_goodbye(),
            Err(error) => {
                self.arrivals.handshake_failed();
                tracing::debug!("an NBD handshake came to nothing: {error}");
            }
        }
    }

    fn wait_until_closed(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut open = self.lock();
        while !open.sockets.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            open = self.closed_one.wait_timeout(open, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Slot {
    /// The connection's stream.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The connection's number.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.lock().sockets.remove(&self.number);
        self.shared.arrivals.close();
        self.shared.closed_one.notify_all();
    }
}
