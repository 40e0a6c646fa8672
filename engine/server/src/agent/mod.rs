//! The machines' side: who may connect, what they send, and whether they live.

mod agents;
mod handle;
mod liveness;
mod machine;
mod registration;
mod requests;
mod restore_link;

pub use agents::{Agents, Charge};
pub use handle::AgentHandle;
pub use restore_link::{RESTORE_QUEUE, RestoreLink};
