//! Drills: stand-ins that are started apart from everything, looked at until they do their work, and taken away again.
//!
//! `run` plays one, `report` keeps what came of it, `schedule` says when the next is due.

mod report;
mod run;
mod schedule;

pub(crate) use report::{forget, reports};
pub(crate) use run::{Drill, drill};
pub(crate) use schedule::{Interrupted, Schedule, alarm, run, status};
