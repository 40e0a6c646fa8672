//! The data log of one delta on one disk: what was written, in order, each record checked by itself.

pub(crate) mod check;
pub(crate) mod location;
pub(crate) mod log;
pub(crate) mod pack;
pub(crate) mod packer;
pub(crate) mod record;
pub(crate) mod recovery;
pub(crate) mod straight;
pub(crate) mod writes;
