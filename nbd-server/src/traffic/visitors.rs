//! The connections of one export, and what those that have left had counted.

use super::{ClientTraffic, Counters, ExportTraffic, Traffic};
use crate::socket::Socket;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Who a client is.
#[derive(Debug)]
pub struct Peer {
    address: String,
    names: Vec<String>,
    encrypted: bool,
}

impl Peer {
    /// Whoever is at the other end, with the names in its certificate.
    pub fn of(socket: &Socket, names: Vec<String>) -> Peer {
        Peer { address: socket.peer(), names, encrypted: socket.is_encrypted() }
    }
}

/// Whoever uses an export, and used it.
#[derive(Debug, Default)]
pub struct Visitors {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connected: BTreeMap<u64, Visitor>,
    left: Traffic,
}

#[derive(Debug)]
struct Visitor {
    peer: Peer,
    since: Instant,
    counters: Arc<Counters>,
}

impl Visitors {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client has come; what it does is counted there.
    pub fn enter(&self, connection: u64, peer: Peer) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        let visitor = Visitor { peer, since: Instant::now(), counters: Arc::clone(&counters) };
        self.lock().connected.insert(connection, visitor);
        counters
    }

    /// It has left, with nothing in flight any more.
    pub fn leave(&self, connection: u64) {
        let mut state = self.lock();
        if let Some(visitor) = state.connected.remove(&connection) {
            let last = Traffic { in_flight: 0, ..visitor.counters.look() };
            state.left.add(&last);
        }
    }

    /// What they did, under the export's name.
    pub fn look(&self, name: String) -> ExportTraffic {
        let state = self.lock();
        let client = |(connection, visitor): (&u64, &Visitor)| ClientTraffic {
            connection: *connection,
            address: visitor.peer.address.clone(),
            names: visitor.peer.names.clone(),
            encrypted: visitor.peer.encrypted,
            connected: visitor.since.elapsed(),
            traffic: visitor.counters.look(),
        };
        let clients: Vec<ClientTraffic> = state.connected.iter().map(client).collect();
        let mut traffic = state.left.clone();
        clients.iter().for_each(|client| traffic.add(&client.traffic));
        ExportTraffic { name, clients, traffic }
    }
}
