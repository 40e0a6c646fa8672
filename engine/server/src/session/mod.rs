//! Recoveries in progress: served at once, copied while in use, brought home by their differences.
//!
//! `manager` has the commands. A session's durable truth is its `record`; while it runs it is a `live` session with a
//! switchable `volume` under each export, and `changes` tells clients what differs. `migrate` copies a disk elsewhere and pivots, `failback` brings a machine's disks
//! to the session's state. docs/design/0007-sessions.md says what a crash at each step comes to.

mod beginning;
mod block_set;
mod changes;
mod context;
mod dirty_map;
mod door;
mod failback;
pub(crate) mod fuzzing;
mod info;
mod live;
mod manager;
mod migrate;
mod pivoted_volume;
mod pull;
mod record;
#[cfg(test)]
mod testing;
mod volume;

pub use beginning::Beginning;
#[cfg(feature = "simulation")]
pub(crate) use context::Context;
pub use context::{SessionsOptions, host_boot};
pub(crate) use door::VisitedDisk;
pub use failback::FailbackOptions;
pub(crate) use info::checkpoint_info;
pub(crate) use live::LiveSession;
pub use manager::{MigrateOptions, Sessions};
#[cfg(feature = "simulation")]
pub(crate) use record::{MigrationState, SessionState};
