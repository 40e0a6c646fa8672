//! What is mounted, swapped to and stacked on a disk, in every mount namespace.

mod mountinfo;
mod superblock;
mod swap;

pub(crate) use mountinfo::{MountEntry, own_mounts};
pub(crate) use superblock::{Superblock, members, superblocks};
pub(crate) use swap::{file_extents, swap_devices, swap_extents};
