//! Shows a plain file as `disk` in a folder until standard input ends: what scripts/bench fuse measures. `show_file FILE FOLDER`.

#[path = "../../nbd-server/examples/support/file_volume.rs"]
mod file_volume;

use blocks::Result;
use file_volume::FileVolume;
use fuse_fs::{Mount, MountOptions, SingleFile};
use std::path::Path;
use std::sync::Arc;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(folder)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: show_file FILE FOLDER");
        std::process::exit(2);
    };
    let tree = SingleFile::new("disk", Arc::new(FileVolume::open(&path)?));
    let mount = Mount::start(tree, Path::new(&folder), MountOptions::default())?;
    println!("{}", mount.folder().display());
    for _ in std::io::stdin().lines() {}
    mount.unmount().map(drop)
}
