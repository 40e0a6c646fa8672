//! The administrator's way in.

#[allow(missing_docs, reason = "fields say what they are; those that do not are documented")]
pub mod api;
mod at;
