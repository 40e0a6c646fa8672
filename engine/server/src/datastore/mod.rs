//! What the server shows in a mount: its machines' disks at each checkpoint, and its sessions'.
//!
//! `catalogue` tells fuse-fs what there is, `files` what lies in the folder of a checkpoint or session and how each file
//! comes about, `mounts` keeps what is mounted. docs/design/0016-datastore.md has the reasons.

mod catalogue;
mod definitions;
mod files;
mod mounts;

pub(crate) use mounts::{Mounting, Mounts};
