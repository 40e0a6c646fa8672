//! The agent's side of a protected machine: knowing what changed on its disks and copying it.

mod tracker;

pub use tracker::{Agreement, Base, Census, Scan, Taking, Tracker, TrackerKind, Trust};
