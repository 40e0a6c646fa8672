//! The in-line tap as processes and devices: cbt's volume behind a file of fuse-fs, behind a loop device.
//!
//! ```text
//!   holder ── keeps the mounts' connections, starts again what dies ──► agent ── serves the files, attaches loop devices
//! ```

mod front;
mod holder;

pub use front::Front;
pub use holder::hold;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The file of each mount.
const FILE: &str = "disk";
/// Where the agent finds what the holder keeps for it: numbers of descriptors, in the order of the disks.
const CONNECTIONS: &str = "UNDERSTUDY_TAP_CONNECTIONS";

/// Where a disk's mount is.
fn folder_of(run_dir: &Path, device: &Path) -> PathBuf {
    run_dir.join("tap").join(device.file_name().unwrap_or(OsStr::new(FILE)))
}
