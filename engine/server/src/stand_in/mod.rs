//! Stand-ins that run on sessions.
//!
//! `manager` starts and ends them, `record` is what is durably known of one, `watch` sees what becomes of them.
//! docs/design/0017-stand-in.md has the states and the crash points.

mod manager;
mod record;
mod watch;

pub(crate) use manager::{PATIENCE, StandIns};
pub(crate) use record::{StandInRecord, forget};
pub(crate) use watch::run;
