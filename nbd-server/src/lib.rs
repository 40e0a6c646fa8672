//! Serves any [`blocks::Volume`] over the network block device protocol, and reaches volumes that others serve.
//!
//! A request's way: `listener` accepts, `handshake` agrees on an export, `connection` reads a `request`, `dispatch`
//! checks it and asks the `export`'s volume through a `ByteAccess`, `reply` sends the answer. Threads, not async: a
//! volume is synchronous, and a dropped future must never leave a write half-known. What the specification asks for
//! and where it is tested: docs/nbd.md. Why threads, and who does what: docs/design/0003-nbd-threads.md and
//! 0012-nbd-data-path.md.

mod budget;
mod client;
mod connection;
mod crowd;
mod dispatch;
mod error_code;
mod export;
mod fields;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod handshake;
mod landing;
mod limits;
mod listener;
mod look;
#[cfg(any(test, feature = "fuzzing"))]
mod memory_stream;
mod metadata;
mod outbox;
mod pace;
mod patience;
mod protocol;
mod receiver;
mod relief;
mod reply;
mod request;
mod security;
mod server;
mod socket;
mod tls;
mod traffic;
mod uri;

pub use client::NbdVolume;
pub use error_code::NbdError;
pub use export::{ClientHook, Export, ExportInfo, Exports, Gate, Pass};
pub use limits::Limits;
pub use listener::{ListenAddress, Listener};
pub use metadata::{Metadata, MetadataRun};
pub use security::{Access, AccessRule, Permission, ServerTls, TlsFiles};
pub use server::{NbdServer, ServerOptions};
pub use traffic::{
    Arrivals, ArrivalsSeen, ClientTraffic, ExportTraffic, Latency, Operation, OperationTraffic, Traffic,
};
pub use uri::NbdUri;
