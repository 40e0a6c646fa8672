//! Disks, mounts, a scripted server and agents for the tests. Everything is taken down on drop, after a panic too.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod host;
mod server;

pub use host::*;
pub use server::*;
