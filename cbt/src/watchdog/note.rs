//! What a watchdog owns, noted where a later one finds it.
//!
//! A note is there exactly while something may be frozen. One whose watchdog is gone (both processes were killed at
//! once) is honoured by the next: what it names is thawed.

use super::ioctl::thaw;
use blocks::{Error, Result};
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const PREFIX: &str = "frozen-";

/// The note of this process.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
    /// Locked: the kernel lets go of it with the process, which is how a note is known to be left behind.
    _file: File,
}

impl Note {
    /// Writes down the mount points.
    pub fn write(run_dir: &Path, mount_points: &[PathBuf]) -> Result<Note> {
        let path = run_dir.join(format!("{PREFIX}{}", std::process::id()));
        let lines: String = mount_points.iter().map(|path| format!("{}\n", path.display())).collect();
        let failed = |error| Error::io(path.display().to_string(), error);
        let mut file = File::create(&path).map_err(failed)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| failed(error.into()))?;
        file.write_all(lines.as_bytes()).map_err(failed)?;
        Ok(Note { path, _file: file })
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Thaws what dead watchdogs left noted, and forgets the notes.
pub(super) fn thaw_left_behind(run_dir: &Path) {
    for entry in fs::read_dir(run_dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(note) = File::open(entry.path()) else { continue };
        let left_behind = rustix::fs::flock(&note, FlockOperation::NonBlockingLockExclusive).is_ok();
        if !name.starts_with(PREFIX) || !left_behind {
            continue;
        }
        for mount_point in fs::read_to_string(entry.path()).unwrap_or_default().lines() {
            if let Ok(file) = File::open(mount_point) {
                let _ = thaw(&file);
            }
        }
        let _ = fs::remove_file(entry.path());
    }
}
