//! What the server keeps: units with their journals, images and views. No network.
//!
//! A disk is an image under a stack of deltas ([`Unit`], [`BranchDisk`], [`View`]); docs/formats/store.md has the files
//! and docs/design/0001-journal.md the reasons.

mod branch_disk;
mod convert;
mod copy;
mod delta_file;
mod export;
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod image;
mod index;
mod journal;
mod pace;
mod plan;
mod scrub;
mod storage;
mod store;
mod stored_file;
pub mod testing;
mod unit;
mod view;

pub use blocks::Compression;
pub use branch_disk::{BranchDisk, Payload};
pub use convert::{Difference, compare_volumes, convert_volume};
pub use copy::copy_volume;
pub use delta_file::{DeltaFile, DeltaHeader, DeltaMerge, Prefer, apply_delta, merge_deltas};
pub use export::{export_stream, export_volume};
pub use identity::{BlockHash, BlockHashes};
pub use image::{
    CheckReport, Fault, FaultKind, ImageFormat, ImageKind, ImageOptions, NewImage, ReplayContent,
    ReplayPiece, ShownImage, ShownKind, SummedImage, check_image, check_image_with, create_child,
    create_image, create_image_with, flat_descriptor, merge_image, open_image, open_image_with, probe_image,
    replay, resize_image, resize_image_with, show_image, with_sums,
};
pub use pace::{GuestActivity, Pace};
pub use scrub::{Finding, Remedy, RepairStep, ScrubReport, check, repair};
pub use storage::{HostFile, HostStorage};
pub use store::{Store, StoreOptions};
pub use unit::branch::{BranchId, BranchInfo, BranchKind, DeltaId, Point};
pub use unit::checkpoint::{Checkpoint, CheckpointSpec, Consistency, Gap};
pub use unit::files::SETTLING_SUFFIX;
pub use unit::manifest::{DiskSpec, UnitSpec};
pub use unit::pins::{Pin, PinHolder};
pub use unit::{ConsolidateReport, Moment, ThinGoal, ThinReport, Unit, Usage};
pub use view::View;
