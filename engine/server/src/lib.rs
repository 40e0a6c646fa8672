//! The server: receives, keeps, serves and sends back.

mod agent;
pub mod control;

pub use agent::{AgentHandle, Agents, Charge, RESTORE_QUEUE, RestoreLink};
