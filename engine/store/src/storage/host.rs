//! A folder of the host as a [`Storage`].
//!
//! Every name is resolved from a descriptor of the folder (`openat` and its kin), so the storage stays the same one
//! when somebody renames the folder or changes the working directory.

use super::host_file::{HostFile, Syncs};
use blocks::{ByteLen, Error, ErrorKind, OpenMode, Result, Storage, StorageFile, Synced};
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is stored is the content of somebody's disks: nobody but the owner may read it.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIR_MODE: Mode = Mode::RWXU;

/// A folder of the host.
#[derive(Debug)]
pub struct HostStorage {
    root: OwnedFd,
    path: PathBuf,
    /// A link by the name of a file is not opened.
    refuses_links: bool,
    syncs: Syncs,
}

impl HostStorage {
    /// Opens the folder `path`; makes it, and those above it, where they do not exist.
    pub fn new(path: impl AsRef<Path>) -> Result<HostStorage> {
        let path = path.as_ref();
        make_durable_dir(path, &sync_host_dir)?;
        let root = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::io(path.display().to_string(), errno.into()))?;
        Ok(HostStorage { root, path: path.to_path_buf(), refuses_links: false, syncs: Syncs::Kept })
    }

    /// The folder of a file that is there, for names that a stranger has written into it: no link is followed.
    pub fn beside(file: impl AsRef<Path>) -> Result<HostStorage> {
        let path = match file.as_ref().parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let root = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::io(path.display().to_string(), errno.into()))?;
        Ok(HostStorage { root, path: path.to_path_buf(), refuses_links: true, syncs: Syncs::Kept })
    }

    /// The same folder, but no sync of it or of a file opened through it waits for the medium: for what can be made again
    /// and is given up after a power cut. Nothing that is acknowledged to anybody may lie in it.
    pub fn without_syncs(mut self) -> HostStorage {
        self.syncs = Syncs::Skipped;
        self
    }

    /// Where the folder was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where `name` lies, for messages.
    fn shown(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    fn failed(&self, name: &str, errno: Errno) -> Error {
        Error::io(self.shown(name), errno.into())
    }

    fn open_dir(&self, dir: &str) -> Result<OwnedFd> {
        let relative = checked_dir(dir)?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.root, relative, flags, Mode::empty())
            .map_err(|errno| self.failed(dir, errno))
    }
}

impl Drop for HostStorage {
    fn drop(&mut self) {
        // A program that another thread is just starting has copies of all descriptors until it runs: closing would not do.
        let _ = rustix::fs::flock(&self.root, FlockOperation::Unlock);
    }
}

impl Storage for HostStorage {
    fn open(&self, name: &str, mode: OpenMode) -> Result<Arc<dyn StorageFile>> {
        let flags = OFlags::CLOEXEC
            | match mode {
                OpenMode::Read => OFlags::RDONLY,
                OpenMode::ReadWrite => OFlags::RDWR,
                OpenMode::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            };
        let flags = if self.refuses_links { flags | OFlags::NOFOLLOW | OFlags::NONBLOCK } else { flags };
        let opened = rustix::fs::openat(&self.root, checked(name)?, flags, FILE_MODE);
        if let (Err(Errno::LOOP), true) = (&opened, self.refuses_links) {
            let context = format!("{} is a link, which is not followed here", self.shown(name));
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let file = opened.map_err(|errno| self.failed(name, errno))?;
        Ok(Arc::new(HostFile::from_file(File::from(file), self.shown(name), self.syncs)?))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        rustix::fs::renameat(&self.root, checked(from)?, &self.root, checked(to)?)
            .map_err(|errno| self.failed(from, errno).context(format!("renaming to {to}")))
    }

    fn remove(&self, name: &str) -> Result<()> {
        rustix::fs::unlinkat(&self.root, checked(name)?, AtFlags::empty())
            .map_err(|errno| self.failed(name, errno))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        let mut names = entries(self.open_dir(dir)?.as_fd()).map_err(|errno| self.failed(dir, errno))?;
        names.sort();
        Ok(names)
    }

    fn make_dir(&self, dir: &str) -> Result<()> {
        checked(dir)?;
        let ends = dir.match_indices('/').map(|(at, _)| at).chain([dir.len()]);
        for end in ends {
            match rustix::fs::mkdirat(&self.root, &dir[..end], DIR_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.failed(dir, errno)),
            }
        }
        self.open_dir(dir).map(drop)
    }

    fn remove_dir(&self, dir: &str) -> Result<()> {
        let name = checked(dir)?;
        match remove_tree(self.root.as_fd(), name) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.failed(dir, errno)),
        }
    }

    fn sync_dir(&self, dir: &str) -> Result<Synced> {
        let folder = self.open_dir(dir)?;
        if self.syncs == Syncs::Skipped {
            return Ok(Synced::after_completed_sync());
        }
        rustix::fs::fsync(&folder).map_err(|errno| self.failed(dir, errno))?;
        Ok(Synced::after_completed_sync())
    }

    fn free_space(&self) -> Result<Option<ByteLen>> {
        let stat = rustix::fs::fstatvfs(&self.root).map_err(|errno| self.failed("", errno))?;
        Ok(Some(ByteLen::new(stat.f_bavail.saturating_mul(stat.f_frsize))))
    }

    fn lock(&self) -> Result<()> {
        match rustix::fs::flock(&self.root, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::WOULDBLOCK) => {
                let context = format!("{} is in use by another process", self.path.display());
                Err(Error::new(ErrorKind::Busy, context))
            }
            Err(errno) => Err(self.failed("", errno)),
        }
    }
}

/// Makes a folder and those above it that are missing. A new folder is as durable as its name in the one above it, which
/// `sync` is called for.
fn make_durable_dir(path: &Path, sync: &dyn Fn(&Path) -> std::io::Result<()>) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    // A relative path of one part lies in the working directory.
    let parent =
        path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    if let Some(parent) = parent {
        make_durable_dir(parent, sync)?;
    }
    let failed = |error| Error::io(path.display().to_string(), error);
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(failed(error)),
        _ => parent.map_or(Ok(()), |parent| sync(parent).map_err(failed)),
    }
}

fn sync_host_dir(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// The name of a file, if it cannot lead out of the root.
fn checked(name: &str) -> Result<&str> {
    let good = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if name.split('/').all(good) {
        return Ok(name);
    }
    Err(Error::new(ErrorKind::InvalidInput, format!("{name:?} is not a name within a storage")))
}

/// The same for a folder, which may be the root.
fn checked_dir(dir: &str) -> Result<&str> {
    if dir.is_empty() { Ok(".") } else { checked(dir) }
}

fn entries(dir: std::os::fd::BorrowedFd<'_>) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if name != "." && name != ".." {
            names.push(name.into_owned());
        }
    }
    Ok(names)
}

/// Removes a folder and all below it. Symbolic links are removed, never followed.
fn remove_tree(parent: std::os::fd::BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for entry in entries(dir.as_fd())? {
        let stat = rustix::fs::statat(&dir, entry.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            remove_tree(dir.as_fd(), &entry)?;
        } else {
            rustix::fs::unlinkat(&dir, entry.as_str(), AtFlags::empty())?;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
