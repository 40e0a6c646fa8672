//! Where clients connect.

use crate::socket::Socket;
use crate::uri::NbdUri;
use blocks::{Error, ErrorKind, Result};
use rustix::net::AddressFamily;
use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor that a service manager passes.
const FIRST_INHERITED: i32 = 3;
/// Whether [`Listener::inherited`] was called.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Where to listen: `HOST:PORT`, or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// A TCP port; 0 lets the system choose.
    Tcp(SocketAddr),
    /// A unix socket at this path.
    Unix(PathBuf),
}

/// A socket that listens. Dropping it closes it, and removes a unix socket's file.
#[derive(Debug)]
pub struct Listener {
    socket: ListeningSocket,
    address: ListenAddress,
}

#[derive(Debug)]
enum ListeningSocket {
    Tcp(TcpListener),
    /// With the inode of its file, so that a successor's is not removed; none where the file is not ours.
    Unix(UnixListener, Option<u64>),
}

impl FromStr for ListenAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<ListenAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(ListenAddress::Unix(PathBuf::from(path)));
        }
        let wrong = |error| {
            let context = format!("'{text}' is neither HOST:PORT nor unix:PATH");
            Error::with_source(ErrorKind::InvalidInput, context, error)
        };
        let address = text.to_socket_addrs().map_err(wrong)?.next();
        address.map(ListenAddress::Tcp).ok_or_else(|| wrong(io::ErrorKind::NotFound.into()))
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Listener {
    /// Listens there. The file of a unix socket on which nobody listens any more is replaced; one that is in use, and
    /// a file that is not a socket, are errors (`Busy`, `AlreadyExists`).
    pub fn bind(address: &ListenAddress) -> Result<Listener> {
        Listener::bind_with_mode(address, None)
    }

    /// The same with the mode of a unix socket's file; whoever may write it may connect.
    pub fn bind_with_mode(address: &ListenAddress, mode: Option<u32>) -> Result<Listener> {
        let failed = |error| Error::io(format!("cannot listen on {address}"), error);
        let (socket, address) = match address {
            ListenAddress::Tcp(wanted) => {
                let listener = TcpListener::bind(wanted).map_err(failed)?;
                let bound = listener.local_addr().map_err(failed)?;
                (ListeningSocket::Tcp(listener), ListenAddress::Tcp(bound))
            }
            ListenAddress::Unix(path) => {
                remove_stale(path)?;
                let listener = UnixListener::bind(path).map_err(failed)?;
                if let Some(mode) = mode {
                    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
                }
                let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
                let path = std::path::absolute(path).map_err(failed)?;
                (ListeningSocket::Unix(listener, Some(inode)), ListenAddress::Unix(path))
            }
        };
        let nonblocking = match &socket {
            ListeningSocket::Tcp(listener) => listener.set_nonblocking(true),
            ListeningSocket::Unix(listener, _) => listener.set_nonblocking(true),
        };
        nonblocking.map_err(|error| Error::io(format!("cannot listen on {address}"), error))?;
        Ok(Listener { socket, address })
    }

    /// Whether [`Listener::inherited`] has something to give, or had.
    pub fn are_inherited() -> bool {
        inherited_count() > 0
    }

    /// The sockets that a service manager has opened for this process (systemd's `LISTEN_FDS`): they go on listening
    /// while the process is restarted, so that clients wait instead of being refused. Empty where there are none, and
    /// at every call but the first. Errors: one of them is not a socket that listens on TCP or a unix path.
    pub fn inherited() -> Result<Vec<Listener>> {
        let count = inherited_count();
        if count == 0 || TAKEN.swap(true, Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        (FIRST_INHERITED..FIRST_INHERITED + count).map(Listener::from_inherited).collect()
    }

    fn from_inherited(number: i32) -> Result<Listener> {
        let failed = |error: io::Error| Error::io(format!("inherited socket {number}"), error);
        // SAFETY: whoever set LISTEN_PID to this process has opened these descriptors for it alone, and `TAKEN` lets each
        // be taken once.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
            .map_err(|errno| failed(errno.into()))?;
        let listens =
            rustix::net::sockopt::socket_acceptconn(&socket).map_err(|errno| failed(errno.into()))?;
        let domain = rustix::net::sockopt::socket_domain(&socket).map_err(|errno| failed(errno.into()))?;
        let (socket, address) = match domain {
            AddressFamily::UNIX if listens => {
                let listener = UnixListener::from(socket);
                listener.set_nonblocking(true).map_err(failed)?;
                let path = listener.local_addr().map_err(failed)?.as_pathname().map(Path::to_owned);
                (ListeningSocket::Unix(listener, None), ListenAddress::Unix(path.unwrap_or_default()))
            }
            AddressFamily::INET | AddressFamily::INET6 if listens => {
                let listener = TcpListener::from(socket);
                listener.set_nonblocking(true).map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                (ListeningSocket::Tcp(listener), ListenAddress::Tcp(address))
            }
            _ => {
                let context = format!("inherited socket {number} does not listen on TCP or a unix path");
                return Err(Error::new(ErrorKind::InvalidInput, context));
            }
        };
        Ok(Listener { socket, address })
    }

    /// Where it listens, with the port that the system has chosen.
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// How a client on this machine reaches `export` here.
    pub fn uri(&self, export: &str) -> NbdUri {
        match &self.address {
            ListenAddress::Tcp(address) => NbdUri::tcp(*address, export),
            ListenAddress::Unix(path) => NbdUri::unix(path, export),
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            ListeningSocket::Tcp(listener) => listener.as_fd(),
            ListeningSocket::Unix(listener, _) => listener.as_fd(),
        }
    }

    /// A connection that has come in; `WouldBlock` where there is none.
    pub(crate) fn accept(&self) -> io::Result<Socket> {
        match &self.socket {
            ListeningSocket::Tcp(listener) => Socket::tcp(listener.accept()?.0),
            ListeningSocket::Unix(listener, _) => Ok(Socket::unix(listener.accept()?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let (ListeningSocket::Unix(_, Some(inode)), ListenAddress::Unix(path)) =
            (&self.socket, &self.address)
            && fs::symlink_metadata(path).is_ok_and(|found| found.ino() == *inode)
        {
            // What cannot be removed is found to be stale by the next one who listens.
            let _ = fs::remove_file(path);
        }
    }
}

/// How many sockets a service manager has opened for this very process.
fn inherited_count() -> i32 {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    match number("LISTEN_PID") {
        Some(pid) if u32::try_from(pid) == Ok(std::process::id()) => {
            number("LISTEN_FDS").unwrap_or(0).clamp(0, 1024)
        }
        _ => 0,
    }
}

fn remove_stale(path: &Path) -> Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(format!("cannot look at {}", path.display()), error)),
    };
    if !found.file_type().is_socket() {
        let context = format!("{} exists and is not a socket", path.display());
        return Err(Error::new(ErrorKind::AlreadyExists, context));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| Error::io(format!("cannot replace {}", path.display()), error)),
        _ => Err(Error::new(ErrorKind::Busy, format!("somebody else listens on {}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let address = ListenAddress::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&address).unwrap();
        assert_eq!(Listener::bind(&address).unwrap_err().kind(), ErrorKind::Busy);
        drop(listener);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert_eq!(Listener::bind(&address).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_has_the_mode_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        for mode in [0o600, 0o660, 0o666] {
            let listener = Listener::bind_with_mode(&ListenAddress::Unix(path.clone()), Some(mode)).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            drop(listener);
        }
    }

    #[test]
    fn addresses_read_what_they_write() {
        for text in ["127.0.0.1:10809", "unix:/run/a b.sock", "[::1]:0"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        assert!("nowhere".parse::<ListenAddress>().is_err());
    }
}
