//! The agent-server protocol.

mod message;

pub use message::*;
