//! How much one server, and one client of it, may take.

use blocks::ByteLen;
use std::time::Duration;

/// Bounds of a server; the defaults suit a machine that serves a few dozen disks.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once, handshakes included; further ones are closed at once.
    pub connections_max: usize,
    /// Requests of one connection that are worked on at once, and one more where it waits for something in its turn of a crowd;
    /// threads start as they are needed.
    pub threads_per_connection_max: usize,
    /// What requests of more than 256 KiB may hold in memory at once, over all connections; at least 32 MiB.
    pub large_request_bytes_max: ByteLen,
    /// The same for requests of more than 16 KiB; at least 256 KiB. One of each connection is always admitted, so that others
    /// can never hold it up. Smaller requests are bounded by the number of threads.
    pub small_request_bytes_max: ByteLen,
    /// How long a client may take from connecting to the end of the handshake.
    pub handshake_timeout: Duration,
    /// How long a client may leave a message half sent, or a reply unread, before it is disconnected.
    pub stall_timeout: Duration,
    /// How slowly a message may go on top of that: a client that drips is disconnected.
    pub bytes_per_second_min: ByteLen,
    /// How long a shutdown waits for requests in flight.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 512,
            threads_per_connection_max: 16,
            large_request_bytes_max: ByteLen::new(256 << 20),
            small_request_bytes_max: ByteLen::new(64 << 20),
            handshake_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            bytes_per_second_min: ByteLen::new(16 << 10),
            drain_timeout: Duration::from_secs(30),
        }
    }
}
