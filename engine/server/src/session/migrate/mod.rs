//! Copying a session's disk elsewhere while it is in use, and putting the copy in its place.

mod copy;
mod target;
mod worker;

pub(crate) use copy::{Copier, Pace};
pub(crate) use target::Target;
pub(crate) use worker::{Migration, MigrationProgress};
