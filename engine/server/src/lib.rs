//! The server: receives, keeps, serves and sends back.

mod agent;
mod authority;
pub mod control;

pub use agent::{AgentHandle, Agents, Charge, RESTORE_QUEUE, RestoreLink};
pub use authority::{Authority, EnrolledMachine, TOKEN_TTL_DEFAULT};
