//! The server: receives, keeps, serves and sends back.

mod agent;
pub mod control;

pub use agent::{RESTORE_QUEUE, RestoreLink};
