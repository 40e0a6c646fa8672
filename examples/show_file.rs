//! Shows a raw image as the file `disk` in a folder until standard input ends, as a pivoted session's is shown in the
//! datastore: what scripts/bench fuse and session measure. `show_file FILE FOLDER`.

use blocks::OpenMode;
use fuse_fs::{Mount, MountOptions, SingleFile};
use std::path::Path;
use store::{HostFile, ImageFormat, open_image};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, folder] = arguments.as_slice() else { anyhow::bail!("usage: show_file FILE FOLDER") };
    let image = open_image(HostFile::open(path, OpenMode::ReadWrite)?, Some(ImageFormat::Raw), true)?;
    let mount = Mount::start(SingleFile::new("disk", image), Path::new(folder), MountOptions::default())?;
    println!("{}", mount.folder().display());
    for _ in std::io::stdin().lines() {}
    mount.unmount()?;
    Ok(())
}
