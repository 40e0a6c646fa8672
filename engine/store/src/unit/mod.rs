//! A unit: everything of one machine in one place.

pub(crate) mod branch;
pub(crate) mod checkpoint;
pub(crate) mod pins;
