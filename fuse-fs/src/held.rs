//! A mount that outlives whoever serves it.
//!
//! ```text
//!   holder:  hold ─────────── keeps the connection ────────────────────────► release
//!   server:        serve ── dies ── (requests wait) ── serve again, resend ──►
//! ```
//!
//! The kernel ends a mount when the last descriptor of its connection is closed. A process that does nothing but keep one
//! lets the server be replaced: what the dead one had read and not answered is asked again (FUSE_NOTIFY_RESEND, Linux
//! 6.9). The kernel introduces itself on a connection once only, so the holder answers that, and a server, whose library
//! insists on it, is told the same by us.

use crate::bridge::Bridge;
use crate::mount::{MountOptions, mount_at};
use crate::requests::negotiate;
use crate::tree::Tree;
use blocks::{Error, ErrorKind, Result};
use fuser::{BackgroundSession, Config, Filesystem, KernelConfig, Request, Session, SessionACL};
use rustix::fs::OFlags;
use rustix::mount::UnmountFlags;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// `FUSE_NOTIFY_RESEND`, from the kernel's interface.
const NOTIFY_RESEND: i32 = 7;
/// How many requests are served at once. Each waits for the disk meanwhile, so this is what a disk takes at once, however
/// many processors there are.
const SERVING: usize = 16;
/// `FUSE_INIT`, likewise.
const INIT: u32 = 26;
/// The version of the interface that servers here speak.
const VERSION: (u32, u32) = (7, 40);

/// A mount whose connection is kept. Dropping it ends the mount, whoever uses it.
#[derive(Debug)]
pub struct HeldMount {
    folder: PathBuf,
    connection: OwnedFd,
    resends: bool,
}

/// Introduces itself and nothing else.
struct Introduction;

impl Filesystem for Introduction {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        negotiate(config)
    }
}

impl HeldMount {
    /// Mounts a folder that waits to be served. Errors as for [`crate::Mount::start`].
    pub fn hold(folder: &Path) -> Result<HeldMount> {
        let (folder, connection) = mount_at(folder, MountOptions::default())?;
        let mut held = HeldMount { folder, connection, resends: false };
        let greeted = held
            .connection
            .try_clone()
            .and_then(|copy| Session::from_fd(Introduction, copy, SessionACL::Owner, Config::default()));
        greeted.map_err(|error| Error::io(format!("mounting {}", held.folder.display()), error))?;
        held.resends = resend(held.connection.as_fd()).is_ok();
        Ok(held)
    }

    /// What a server needs: its copy goes to [`serve_held`].
    pub fn connection(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// Where it is mounted, without links.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether another server may take the place of one that died: the kernel asks again what that one took with it.
    pub fn outlives_its_server(&self) -> bool {
        self.resends
    }
}

impl Drop for HeldMount {
    fn drop(&mut self) {
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
        if let Err(error) = rustix::mount::unmount(&self.folder, flags) {
            tracing::error!("{} stays mounted: {error}", self.folder.display());
        }
    }
}

/// A tree that this process serves on a held mount; until the process ends.
pub struct Served {
    _session: BackgroundSession,
}

/// Serves the tree on a held mount's connection, in the place of a server that died, if there was one. `file` is the path
/// that may be open since then.
pub fn serve_held(tree: impl Tree, file: &str, connection: OwnedFd) -> Result<Served> {
    let failed = |error: std::io::Error| Error::io("serving a held mount", error);
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let bridge = Bridge::new(tree, owner);
    bridge.adopt(file)?;
    let mut config = Config::default();
    config.n_threads = Some(SERVING);
    // One descriptor for all: those of its own would take their unanswered requests with them.
    config.clone_fd = false;
    let (kernel, ours) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|error| failed(error.into()))?;
    send(&kernel, &introduction(), SendFlags::empty()).map_err(|error| failed(error.into()))?;
    let place = ours.as_raw_fd();
    let session = Session::from_fd(bridge, ours, SessionACL::Owner, config).map_err(failed)?;
    // SAFETY: the number is that of the session's socket, which nobody uses until the session is spawned; it is replaced at
    // once and stays the session's to close.
    if unsafe { libc::dup3(connection.as_raw_fd(), place, libc::O_CLOEXEC) } < 0 {
        return Err(failed(std::io::Error::last_os_error()));
    }
    let session = session.spawn().map_err(failed)?;
    resend(connection.as_fd()).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidInput => Error::new(ErrorKind::Unsupported, "the kernel does not resend"),
        _ => failed(error),
    })?;
    Ok(Served { _session: session })
}

/// The kernel asks again what was read from the connection and not answered.
fn resend(connection: BorrowedFd<'_>) -> std::io::Result<()> {
    let mut notice = Vec::with_capacity(16);
    notice.extend(16u32.to_ne_bytes());
    notice.extend(NOTIFY_RESEND.to_ne_bytes());
    notice.extend(0u64.to_ne_bytes());
    rustix::io::write(connection, &notice)?;
    Ok(())
}

/// What the kernel would say first on a new connection.
fn introduction() -> Vec<u8> {
    const LEN: usize = 40 + 64;
    let mut message = Vec::with_capacity(LEN);
    for field in [LEN as u32, INIT] {
        message.extend(field.to_ne_bytes());
    }
    // The request's number; the node, user, group and process are nobody's.
    message.extend(1u64.to_ne_bytes());
    message.resize(40, 0);
    // All that a kernel can offer: what holds was agreed on by the holder.
    for field in [VERSION.0, VERSION.1, u32::MAX, u32::MAX, u32::MAX] {
        message.extend(field.to_ne_bytes());
    }
    message.resize(LEN, 0);
    message
}

/// The descriptor with that number, which this process was given at its start, for [`serve_held`]. `InvalidInput` where
/// it is none.
pub fn given_connection(number: i32) -> Result<OwnedFd> {
    let wrong = |error: std::io::Error| {
        Error::with_source(ErrorKind::InvalidInput, format!("descriptor {number} was not given"), error)
    };
    // SAFETY: the number is only asked about, and duplicated where it is open.
    let given = unsafe { BorrowedFd::borrow_raw(number) };
    let copy = given.try_clone_to_owned().map_err(wrong)?;
    // What this process starts must not keep the connection when both who hold it are gone.
    rustix::io::fcntl_setfd(given, rustix::io::FdFlags::CLOEXEC).map_err(|error| wrong(error.into()))?;
    let flags = rustix::fs::fcntl_getfl(&copy).map_err(|error| wrong(error.into()))?;
    match flags.contains(OFlags::RDWR) {
        true => Ok(copy),
        false => Err(Error::new(ErrorKind::InvalidInput, format!("descriptor {number} is no connection"))),
    }
}
