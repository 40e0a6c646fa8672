//! Delta files: what changed on one disk between two checkpoints, as a file that stands by itself. Several become one that
//! holds the newest of each byte, and one is applied to an image. docs/formats/delta.md has the bytes.

mod apply;
pub(crate) mod fuzzing;
mod merge;
mod reader;
mod record;
mod writer;

pub use apply::apply_delta;
pub use merge::{DeltaMerge, Prefer, merge_deltas};
pub use reader::DeltaFile;
pub use record::DeltaHeader;
pub(crate) use writer::DeltaWriter;
