//! What clients did: counts, bytes, errors and latencies by operation, of each connection and each export.
//!
//! A connection counts for itself, with a handful of relaxed additions a request and no lock; an export adds up its
//! connections when somebody asks, and keeps what those that have left had counted. Numbers begin with the export's
//! life in this process and never fall while it lasts. A look taken during traffic may be one request ahead in one
//! number and not yet in another.

mod arrivals;
mod counters;
mod latency;
mod operation;
mod visitors;

pub use arrivals::{Arrivals, ArrivalsSeen};
pub(crate) use counters::Counters;
pub use latency::Latency;
pub use operation::Operation;
pub(crate) use visitors::{Peer, Visitors};

use std::time::Duration;

/// What one connection, or all of an export's, did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests that have arrived and are not answered yet.
    pub in_flight: u64,
    operations: [OperationTraffic; Operation::COUNT],
}

/// The requests of one kind that were answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OperationTraffic {
    /// Those of them that were answered with an error, or whose reply could not be sent.
    pub errors: u64,
    /// The lengths of the ranges of those that were not. What travels may be less (holes) or nothing (trim).
    pub bytes: u64,
    /// From having the request, payload included, to having handed its last reply to the system or to the replies that
    /// leave with it.
    pub latency: Latency,
}

/// A connected client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTraffic {
    /// The connection's number; never used again in this process.
    pub connection: u64,
    /// `ADDRESS:PORT`, or `unix:pid=PID,uid=UID`.
    pub address: String,
    /// The names in its verified certificate.
    pub names: Vec<String>,
    /// Whether what is said is encrypted.
    pub encrypted: bool,
    /// Since the end of its handshake.
    pub connected: Duration,
    /// What it did.
    pub traffic: Traffic,
}

/// An export and those that are connected to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportTraffic {
    /// What clients ask for.
    pub name: String,
    /// By the number of the connection.
    pub clients: Vec<ClientTraffic>,
    /// What they and all before them did.
    pub traffic: Traffic,
}

impl Traffic {
    /// The requests of one kind.
    pub fn of(&self, operation: Operation) -> &OperationTraffic {
        &self.operations[operation as usize]
    }

    /// Every kind of which there was a request.
    pub fn seen(&self) -> impl Iterator<Item = (Operation, &OperationTraffic)> {
        Operation::ALL
            .into_iter()
            .map(|operation| (operation, self.of(operation)))
            .filter(|(_, of)| of.requests() > 0)
    }

    /// Requests of all kinds that were answered.
    pub fn requests(&self) -> u64 {
        self.operations.iter().map(OperationTraffic::requests).sum()
    }

    /// Adds what another did.
    pub fn add(&mut self, other: &Traffic) {
        self.in_flight += other.in_flight;
        for (sum, other) in self.operations.iter_mut().zip(&other.operations) {
            sum.errors += other.errors;
            sum.bytes += other.bytes;
            sum.latency.add(&other.latency);
        }
    }
}

impl OperationTraffic {
    /// How many there were.
    pub fn requests(&self) -> u64 {
        self.latency.count()
    }
}
