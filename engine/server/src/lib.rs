//! The server: receives, keeps, serves and sends back.
//!
//! [`Server::start`] opens a data folder and serves it; everything else is asked for over the control socket, in the
//! words of [`control::api`]. docs/design/0006-server.md has the states and the crash points.

mod agent;
mod alarms;
mod authority;
mod background;
mod config;
pub mod control;
mod datastore;
mod definition;
mod drill;
#[doc(hidden)]
pub mod fuzzing;
mod ladder;
mod retention;
mod scrub;
mod server;
mod services;
mod session;
#[cfg(feature = "simulation")]
pub mod simulation;
mod stand_in;
mod stop;
mod takeover;

pub use agent::{AgentHandle, Agents, Charge, RESTORE_QUEUE, RestoreLink};
pub use authority::{Authority, EnrolledMachine, TOKEN_TTL_DEFAULT};
pub use config::ServerConfig;
pub use ladder::{Ladder, LadderError};
pub use server::{RunningServer, Server};
pub use session::{FailbackOptions, MigrateOptions, Sessions, SessionsOptions, host_boot};
