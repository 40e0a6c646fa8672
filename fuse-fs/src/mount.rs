//! Attaching a tree to a folder, and detaching it again, also where whoever served it is dead.
//!
//! ```text
//!   start -> serving --- unmount ----> unmounted
//!               |   \--- in use ----> detached: what is open is served until it is closed
//!               |--- umount by others -> ended
//!               \--- abort or death of the process: every use fails with ENOTCONN until the folder is detached
//! ```

use crate::bridge::Bridge;
use crate::tree::Tree;
use blocks::{Error, ErrorKind, Result};
use fuser::{BackgroundSession, Config, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const DEVICE: &str = "/dev/fuse";
const KIND: &str = "fuse.understudy";
const THREADS: std::ops::RangeInclusive<usize> = 4..=16;

/// How a tree is mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MountOptions {
    /// Other users than ours may look, too; only root and we may write.
    pub allow_other: bool,
    /// Nothing can be written.
    pub read_only: bool,
}

/// A mounted tree. Dropping it aborts what is still served.
pub struct Mount {
    folder: PathBuf,
    /// The device number by which the kernel knows it.
    device: String,
    session: Option<BackgroundSession>,
}

/// How a mount ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Nothing of it is left.
    Unmounted,
    /// The folder is free again; what somebody had open is served until it is closed.
    Detached,
}

impl Mount {
    /// Shows the tree in the folder; threads of this process serve it. What a dead server has left there is detached
    /// first, with a word in the log. Errors: `NotFound`; `Busy` where something is mounted there; `Unsupported` without
    /// `/dev/fuse`; those of mounting, for which root is needed.
    pub fn start(tree: impl Tree, folder: &Path, options: MountOptions) -> Result<Mount> {
        let (folder, device) = mount_at(folder, options)?;
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let session = serve(Bridge::new(tree, owner), device, options);
        let session = session.map_err(|error| {
            if let Err(left) = rustix::mount::unmount(&folder, UnmountFlags::DETACH) {
                tracing::error!("{} stays mounted: {left}", folder.display());
            }
            Error::io(format!("serving {}", folder.display()), error)
        })?;
        let mut mount = Mount { folder, device: String::new(), session: Some(session) };
        mount.device = device_at(&mount.folder)?.ok_or_else(|| {
            Error::new(ErrorKind::Io, format!("{} is not among the mounts", mount.folder.display()))
        })?;
        Ok(mount)
    }

    /// Where it is mounted, without links.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it has come to an end by itself: somebody unmounted it, and nothing of it is open.
    pub fn is_over(&self) -> bool {
        self.session.as_ref().is_none_or(|session| session.guard.is_finished())
    }

    /// Takes it from its folder. What is in use stays reachable for who uses it.
    pub fn unmount(&self) -> Result<Ended> {
        if !self.is_attached()? {
            return Ok(if self.is_over() { Ended::Unmounted } else { Ended::Detached });
        }
        match rustix::mount::unmount(&self.folder, UnmountFlags::empty()) {
            Ok(()) => Ok(Ended::Unmounted),
            Err(Errno::BUSY) => {
                rustix::mount::unmount(&self.folder, UnmountFlags::DETACH)
                    .map_err(|error| self.stays(error))?;
                Ok(Ended::Detached)
            }
            Err(error) => Err(self.stays(error)),
        }
    }

    /// Ends it whoever uses it: every request from now on fails.
    pub fn abort(&self) -> Result<()> {
        if self.is_attached()? {
            let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
            return rustix::mount::unmount(&self.folder, flags).map_err(|error| self.stays(error));
        }
        // Detached and still in use: the kernel's control file is left, where somebody has mounted it.
        let number = self.device.rsplit_once(':').map_or("", |(_, minor)| minor);
        match std::fs::write(format!("/sys/fs/fuse/connections/{number}/abort"), "1") {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(format!("aborting what was at {}", self.folder.display()), error)),
        }
    }

    fn is_attached(&self) -> Result<bool> {
        Ok(device_at(&self.folder)?.is_some_and(|device| device == self.device))
    }

    fn stays(&self, error: Errno) -> Error {
        Error::io(format!("unmounting {}", self.folder.display()), error.into())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.abort() {
            tracing::error!("{error}");
        }
        // What was detached before and is still open keeps its threads; they end with the process.
        let Some(session) = self.session.take().filter(|session| session.guard.is_finished()) else { return };
        if let Err(error) = session.join() {
            tracing::error!("{}: {error}", self.folder.display());
        }
    }
}

/// Mounts a connection that nobody serves yet at the folder: where that is without links, and the connection.
pub(crate) fn mount_at(folder: &Path, options: MountOptions) -> Result<(PathBuf, OwnedFd)> {
    if detach_dead(folder)? {
        tracing::warn!("{} was a mount whose server is dead: it is taken over", folder.display());
    }
    let failed = |what: &str, error| Error::io(format!("{what} {}", folder.display()), error);
    let folder = folder.canonicalize().map_err(|error| failed("looking at", error))?;
    if !folder.is_dir() {
        return Err(Error::new(ErrorKind::InvalidInput, format!("{} is no folder", folder.display())));
    }
    if device_at(&folder)?.is_some() {
        return Err(Error::new(ErrorKind::Busy, format!("{} is a mount already", folder.display())));
    }
    let device =
        rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
            let context = format!("{DEVICE}: {error} (is the kernel's fuse module there?)");
            Error::new(ErrorKind::Unsupported, context)
        })?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let other = if options.allow_other { ",allow_other" } else { "" };
    let fd = device.as_raw_fd();
    let data = format!("fd={fd},rootmode=40000,user_id={uid},group_id={gid}{other}");
    let data = std::ffi::CString::new(data).expect("numbers and letters");
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if options.read_only {
        flags |= MountFlags::RDONLY;
    }
    rustix::mount::mount("understudy", &folder, KIND, flags, data.as_c_str()).map_err(|error| {
        let hint = if error == Errno::PERM { " (only root may)" } else { "" };
        Error::io(format!("mounting {}{hint}", folder.display()), error.into())
    })?;
    Ok((folder, device))
}

fn serve<T: Tree>(
    bridge: Bridge<T>,
    device: OwnedFd,
    options: MountOptions,
) -> std::io::Result<BackgroundSession> {
    let mut config = Config::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    config.n_threads = Some((2 * threads).clamp(*THREADS.start(), *THREADS.end()));
    config.clone_fd = true;
    let who = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    Session::from_fd(bridge, device, who, config)?.spawn()
}

/// Takes mounts from the folder that nobody serves any more; whether there was one. A mount that is served is left alone.
pub fn detach_dead(folder: &Path) -> Result<bool> {
    let mut found = false;
    while is_dead(folder) {
        rustix::mount::unmount(folder, UnmountFlags::DETACH).map_err(|error| {
            Error::io(format!("detaching the dead mount at {}", folder.display()), error.into())
        })?;
        found = true;
    }
    Ok(found)
}

/// Whether what is mounted at the folder is a mount that nobody serves any more.
pub fn is_dead(folder: &Path) -> bool {
    let dead = |error: Option<Errno>| matches!(error, Some(Errno::NOTCONN | Errno::CONNABORTED));
    // Attributes may be remembered a while after the death of whoever told them; the state of the file system never is.
    dead(rustix::fs::stat(folder).err()) || dead(rustix::fs::statfs(folder).err())
}

/// The device number of what is mounted at the folder, which is a path without links.
fn device_at(folder: &Path) -> Result<Option<String>> {
    const MOUNTS: &str = "/proc/self/mountinfo";
    let mounts = std::fs::read(MOUNTS).map_err(|error| Error::io(MOUNTS, error))?;
    let fields = |line: &[u8]| -> Option<(String, Vec<u8>)> {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        let device = String::from_utf8(fields.next()?.to_vec()).ok()?;
        Some((device, unescaped(fields.nth(1)?)))
    };
    let mut lines = mounts.split(|byte| *byte == b'\n').filter_map(fields);
    // Of several the last one lies on top.
    Ok(lines.rfind(|(_, at)| at == folder.as_os_str().as_bytes()).map(|(device, _)| device))
}

/// A path as /proc has it: what would end a field stands as a backslash and three octal digits.
fn unescaped(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(byte) = path.get(at) {
        let digits = path.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *byte == b'\\') {
            Some(escaped) => {
                bytes.push(escaped);
                at += 4;
            }
            None => {
                bytes.push(*byte);
                at += 1;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::unescaped;

    #[test]
    fn paths_of_the_mount_table_are_read() {
        assert_eq!(unescaped(br"/a\040b\134c\x"), br"/a b\c\x");
        assert_eq!(unescaped(br"/end\04"), br"/end\04");
    }
}
