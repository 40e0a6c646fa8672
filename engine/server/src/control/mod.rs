//! The administrator's way in: `listener` takes requests, `dispatch` hands each to the file of its family.

#[allow(missing_docs, reason = "fields say what they are; those that do not are documented")]
pub mod api;
pub(crate) mod at;
mod branches;
mod checkpoints;
mod definition;
mod dispatch;
mod drills;
mod export;
mod export_package;
mod guests;
mod job;
pub(crate) mod listener;
mod machines;
mod mount;
mod nbd;
mod scrub;
mod sessions;
mod settle;
mod status;
mod verify;
