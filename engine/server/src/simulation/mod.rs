//! The simulator: from one seed the real store, ingest, consolidation, sessions and migrator, over a storage that lies like
//! hardware, a clock that is moved by hand and a network that loses things, against a naive model of every disk.
//!
//! ```text
//!   machine ──wire──▶ server's end ──▶ appender, committer ──▶ unit ──▶ CrashStorage      (real: everything but the ends)
//!   (model)           (serve)          sessions ── migrations ──▶ targets
//!                                         ▲
//!                        guests ──────────┘         model: what every checkpoint, branch and session must hold
//! ```
//!
//! `play` chooses each step; `faults` has what breaks, `restart` the ends of the server, `checks` what is compared. Only
//! with the feature `simulation`; docs/design/0008-simulator.md has the reasons, and how to add an operation or a fault.

mod checks;
mod content;
mod counts;
mod failure;
mod faults;
mod guest;
mod host;
mod machine;
mod model;
mod network;
mod play;
mod restart;
mod serve;
mod sessions;
mod targets;
mod trace;

pub use counts::Counts;
pub use failure::Failure;
pub use play::{Options, play};
pub(crate) use targets::targets;
