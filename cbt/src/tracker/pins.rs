//! Where the kernel's side is kept so that it outlives the agent: `/sys/fs/bpf/understudy/DISK/`.
//!
//! `new/` is filled first and renamed to `live/` when it is complete, so that what is found in `live/` is whole. The
//! folder of the disk itself carries the lock: one tracker a disk. All of it vanishes when the machine restarts.

use blocks::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What is in it is whole.
const LIVE: &str = "live";
const BPF_ROOT: &str = "/sys/fs/bpf";
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The pins of one disk, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Pins {
    folder: PathBuf,
    lock: OwnedFd,
}

impl Drop for Pins {
    fn drop(&mut self) {
        // A program that another thread is just starting has copies of all descriptors until it runs: closing would not do.
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

impl Pins {
    /// Takes the lock; `Busy` if another process tracks the disk. Mounts the BPF file system where it is not.
    pub fn lock(disk: &str) -> Result<Pins> {
        mount_if_needed()?;
        let folder = folder_of(disk)?;
        fs::create_dir_all(&folder).map_err(|error| at(&folder, error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock =
            rustix::fs::open(&folder, flags, Mode::empty()).map_err(|error| at(&folder, error.into()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Pins { folder, lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let context = format!("{disk} is being tracked by another process ({})", folder.display());
                Err(Error::new(ErrorKind::Busy, context))
            }
            Err(error) => Err(at(&folder, error.into())),
        }
    }

    /// Complete pins are here, if there are any.
    pub fn live(&self) -> PathBuf {
        self.folder.join(LIVE)
    }

    /// Whether there are complete pins.
    pub fn exist(&self) -> bool {
        self.live().exists()
    }

    /// An empty folder to pin to.
    pub fn begin(&self) -> Result<PathBuf> {
        let folder = self.folder.join("new");
        remove(&folder)?;
        fs::create_dir(&folder).map_err(|error| at(&folder, error))?;
        Ok(folder)
    }

    /// What was pinned since [`Pins::begin`] is complete.
    pub fn publish(&self) -> Result<()> {
        let live = self.live();
        fs::rename(self.folder.join("new"), &live).map_err(|error| at(&live, error))
    }

    /// Removes all pins: tracking ends here, unless a process still holds it open.
    pub fn clear(&self) -> Result<()> {
        remove(&self.live())?;
        remove(&self.folder.join("new"))
    }
}

/// Ends the tracking of the disk of that name (`sda`) and forgets what was known of it. The disk itself may be gone
/// already. `Busy` while a process tracks it.
pub fn detach(disk: &str) -> Result<()> {
    let pins = Pins::lock(disk)?;
    pins.clear()?;
    fs::remove_dir(&pins.folder).map_err(|error| at(&pins.folder, error))
}

/// Whether something is pinned for the disk of that name.
pub(crate) fn is_pinned(disk: &str) -> bool {
    folder_of(disk).is_ok_and(|folder| folder.join(LIVE).exists())
}

fn folder_of(disk: &str) -> Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "!-_".contains(c);
    if disk.is_empty() || !disk.chars().all(plain) {
        return Err(Error::new(ErrorKind::InvalidInput, format!("'{disk}' is not the name of a disk")));
    }
    Ok(Path::new(BPF_ROOT).join("understudy").join(disk))
}

fn mount_if_needed() -> Result<()> {
    let status = rustix::fs::statfs(BPF_ROOT).map_err(|error| at(Path::new(BPF_ROOT), error.into()))?;
    if u64::try_from(status.f_type).is_ok_and(|kind| kind == BPF_FS_MAGIC) {
        return Ok(());
    }
    rustix::mount::mount("bpf", BPF_ROOT, "bpf", rustix::mount::MountFlags::empty(), None)
        .map_err(|error| Error::io(format!("mount -t bpf bpf {BPF_ROOT}"), error.into()))
}

fn remove(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(folder, error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| at(folder, error))?.path();
        fs::remove_file(&path).map_err(|error| at(&path, error))?;
    }
    fs::remove_dir(folder).map_err(|error| at(folder, error))
}

fn at(path: &Path, error: io::Error) -> Error {
    Error::io(path.display().to_string(), error)
}
