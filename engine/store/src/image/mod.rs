//! Images: the files that hold a disk's horizon, and that migrations and exports write.
//!
//! An image is a [`Volume`] over one [`StorageFile`]. [`SummedImage`] puts checksums beside any of them, [`replay`]
//! writes a merged delta into one so that each block is touched once.

#[cfg(test)]
mod battery;
mod beyond;
mod bytes;
mod check;
mod disk;
mod format;
mod growing;
mod new_image;
mod opening;
mod poison;
mod qcow2;
mod raw;
mod replay;
mod resize;
mod shown;
mod slots;
mod status;
mod sum_table;
mod sums;
mod table_cache;
mod vhd;
mod vhdx;
mod vmdk;

pub use check::{CheckReport, Fault, FaultKind};
pub use format::ImageFormat;
pub(crate) use growing::open_summed;
pub(crate) use new_image::create_stream;
pub use new_image::{ImageKind, NewImage, create_child, create_image, create_image_with};
pub use opening::{
    ImageOptions, check_image, check_image_with, merge_image, open_image, open_image_with, probe_image,
};
pub use replay::{ReplayContent, ReplayPiece, replay};
pub use resize::{resize_image, resize_image_with};
pub use shown::{ShownImage, ShownKind, flat_descriptor, show_image};
pub use sums::{SummedImage, with_sums};
pub(crate) use vmdk::write_stream;

#[cfg(doc)]
use blocks::{StorageFile, Volume};
