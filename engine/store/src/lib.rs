//! What the server keeps: units with their journals, images and views. No network, no threads that decide.

mod outline;
mod unit;

pub use outline::*;
pub use unit::branch::{BranchId, BranchInfo, BranchKind, DeltaId, Point};
pub use unit::checkpoint::{Checkpoint, CheckpointSpec, Consistency, Gap};
pub use unit::pins::{Pin, PinHolder};
