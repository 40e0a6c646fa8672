//! The agent: one connection, one worker thread that owns the disks.
//!
//! ```text
//!   run (async): connect, hello, welcome ──► worker thread: copy, barriers, verify, restores
//!        ▲   ▲                                   │ link: bounded queues
//!        │   └── heartbeats, sends, receives ◄───┘
//!        └── back-off, again, until it is stopped or refused for good
//! ```

mod advice;
mod config;
mod growth;
mod heap;
mod orders;
mod pace;
mod protect;
mod run;
mod state;
mod stop;
mod tapped;
mod trouble;
mod verify;
mod vitals;
mod worker;

pub use config::{AgentConfig, DEFAULT_STATE_DIR, DiskConfig, SendMode};
pub use heap::share_one_heap;
pub use run::Agent;
pub use stop::{Stop, StopHandle, stop_pair};
