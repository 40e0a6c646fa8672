//! One agent per disk.

use super::Disk;
use blocks::{Error, ErrorKind, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

/// Held as long as an agent has a disk; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct DiskLock {
    file: File,
}

impl Drop for DiskLock {
    fn drop(&mut self) {
        // A program that another thread is just starting has copies of all descriptors until it runs: closing would not do.
        let _ = rustix::fs::flock(&self.file, rustix::fs::FlockOperation::Unlock);
    }
}

impl DiskLock {
    /// Claims the disk. `Busy`, naming the disk and the other process, where another agent has it.
    pub fn acquire(run_dir: &Path, disk: &Disk) -> Result<DiskLock> {
        fs::create_dir_all(run_dir).map_err(|error| Error::io(run_dir.display().to_string(), error))?;
        let number = disk.number();
        let path = run_dir.join(format!("disk-{}-{}.lock", number.major, number.minor));
        let context = || path.display().to_string();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| Error::io(context(), error))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let disk = disk.path().display();
                let context =
                    format!("{disk} is already protected by another agent (process {})", holder.trim());
                return Err(Error::new(ErrorKind::Busy, context));
            }
            Err(error) => return Err(Error::io(context(), error.into())),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|error| Error::io(context(), error))?;
        Ok(DiskLock { file })
    }
}
