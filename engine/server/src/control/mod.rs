//! The administrator's way in.

pub mod api;
