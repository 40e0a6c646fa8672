//! Images: the files that hold a disk's horizon, and that migrations and exports write.
//!
//! An image is a [`Volume`] over one [`StorageFile`]. [`SummedImage`] puts checksums beside any of them, [`replay`]
//! writes a merged delta into one so that each block is touched once.

mod format;
mod poison;
mod raw;
mod replay;
mod status;
mod sum_table;
mod sums;
mod vhd;

pub use format::{ImageFormat, create_image, open_image};
pub use replay::{ReplayContent, ReplayPiece, replay};
pub use sums::{SummedImage, with_sums};

#[cfg(doc)]
use blocks::{StorageFile, Volume};
