//! The copy cycle: take what changed, read it, send it, acknowledge it.
//!
//! ```text
//!  tracker ──take──► extents ──read (O_DIRECT)──► pieces (data, zero) ──► outbox ──seq──► link ──► server
//!     ▲                                                                     │                       │
//!     └──────────────── acknowledge the taking ◄── its last seq is acked ◄──┴───────── Ack ◄────────┘
//! ```
//!
//! Memory is bounded: a few read buffers a disk, a bounded link, and while a disk is frozen the bytes held for it. When
//! the link is slow the copy stops; the disk never does, its marks just fill.

mod courtesy;
mod digests;
mod held;
mod outbox;
mod pieces;
mod reader;
mod replica;
mod scan;

pub(crate) use digests::{Digests, HASH_BLOCK, covering, hash_blocks};
pub(crate) use held::{Bounds, Found, Held};
pub(crate) use outbox::Receiver;
pub(crate) use pieces::pieces;
pub(crate) use reader::{Reader, Stretch, stretches};
pub(crate) use replica::{Phase, Replica};
pub(crate) use scan::Manner;

/// One read of a disk, and the most that one write carries.
pub(crate) const READ_BYTES: u64 = 1 << 20;
const _: () = assert!(READ_BYTES <= wire::PAYLOAD_BYTES_MAX as u64);
