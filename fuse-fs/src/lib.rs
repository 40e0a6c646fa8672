//! Shows disks as files: any [`blocks::Volume`] behind a file of a FUSE mount.
//!
//! A request's way: `requests` takes it from the kernel, `bridge` finds what is meant, `inodes` knows which path is meant, the [`Tree`] says what is
//! there and opens it, and a [`OpenFile`] reads and writes. [`SingleFile`] is the smallest tree: one volume as one file.
//! [`Datastore`] is the tree of machines, checkpoints and sessions, which it learns of from a [`Catalogue`]; nothing
//! here knows what a journal or an image format is. `mount` attaches a tree to a folder, and detaches what a dead server
//! has left there; `held` keeps a mount while its server is replaced, and `loop_device` makes a block device of a file.
//! Reasons and figures: docs/design/0016-datastore.md.

mod bridge;
mod datastore;
mod errno;
mod held;
mod inodes;
mod landing;
mod loop_device;
mod mount;
mod name;
mod open_file;
mod requests;
mod single_file;
mod tree;

pub use datastore::{Catalogue, Datastore, Member, Moment, Place, Run};
pub use held::{HeldMount, Served, given_connection, serve_held};
pub use loop_device::LoopDevice;
pub use mount::{Ended, Mount, MountOptions, detach_dead, is_dead};
pub use name::file_name;
pub use open_file::{OpenFile, Source};
pub use single_file::SingleFile;
pub use tree::{Entry, EntryKind, Node, NodeKind, Space, Tree};
