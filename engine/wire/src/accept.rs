//! The server's way to its agents.

use crate::connect::{is_loopback, set_up};
use crate::connection::Restriction;
use crate::{Acceptor, Address, Connection, PeerIdentity, ServerConnection};
use blocks::{Error, ErrorKind, Result};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// How long a peer may take for its first byte and its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The first byte of every TLS connection: a record of type handshake. No frame begins with it.
const TLS_FIRST_BYTE: u8 = 0x16;

/// A connection before its handshake.
#[derive(Debug)]
pub enum Incoming {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl From<TcpStream> for Incoming {
    fn from(stream: TcpStream) -> Incoming {
        Incoming::Tcp(stream)
    }
}

impl From<UnixStream> for Incoming {
    fn from(stream: UnixStream) -> Incoming {
        Incoming::Unix(stream)
    }
}

/// Who is on the other side, as far as the connection proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Somebody on this machine, without TLS.
    Local,
    /// The holder of a certificate that is in force.
    Machine(PeerIdentity),
    /// Somebody without a certificate. The connection receives nothing but [`crate::AgentMessage::Enroll`].
    Stranger,
}

/// Does the handshake. TCP from another machine must be TLS; TCP from this machine may be; unix sockets are plain.
///
/// Takes up to 10 s of a silent peer, so it belongs into the connection's own task. Errors: a peer that must use TLS
/// and does not, an `acceptor` that is missing where one is needed, a certificate that is not in force.
pub async fn accept(
    stream: impl Into<Incoming>,
    acceptor: Option<&Acceptor>,
) -> Result<(ServerConnection, Peer)> {
    match stream.into() {
        Incoming::Unix(stream) => Ok((Connection::new(stream, "an agent on a unix socket"), Peer::Local)),
        Incoming::Tcp(stream) => {
            let from = stream.peer_addr().map_err(|error| Error::io("an agent's address", error))?;
            let work = accept_tcp(stream, from, acceptor);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, work).await {
                Ok(result) => result,
                Err(_) => {
                    let context =
                        format!("{from} did not finish its handshake in {} s", HANDSHAKE_TIMEOUT.as_secs());
                    Err(Error::new(ErrorKind::Cancelled, context))
                }
            }
        }
    }
}

async fn accept_tcp(
    stream: TcpStream,
    from: std::net::SocketAddr,
    acceptor: Option<&Acceptor>,
) -> Result<(ServerConnection, Peer)> {
    let failed = |error| Error::io(format!("the handshake with {from}"), error);
    set_up(&stream).map_err(failed)?;
    let mut first = [0];
    if stream.peek(&mut first).await.map_err(failed)? == 0 {
        return Err(Error::new(ErrorKind::Cancelled, format!("{from} closed its connection without a word")));
    }
    if first[0] != TLS_FIRST_BYTE {
        return match is_loopback(from.ip()) {
            true => Ok((Connection::new(stream, from), Peer::Local)),
            false => {
                let context = format!("{from} speaks without TLS, which only loopback and unix sockets may");
                Err(Error::new(ErrorKind::InvalidInput, context))
            }
        };
    }
    let Some(acceptor) = acceptor else {
        let context = format!("{from} speaks TLS, for which this listener has no certificate");
        return Err(Error::new(ErrorKind::InvalidInput, context));
    };
    let stream = tokio_rustls::TlsAcceptor::from(acceptor.config()).accept(stream).await.map_err(failed)?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = match certificate.map(|certificate| acceptor.machine_of(certificate)) {
        None => Peer::Stranger,
        Some(Some(identity)) => Peer::Machine(identity),
        // Revoked between the handshake and here.
        Some(None) => {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{from}: its certificate was revoked")));
        }
    };
    let label = match &peer {
        Peer::Machine(identity) => format!("{} at {from}", identity.name),
        _ => format!("a stranger at {from}"),
    };
    let mut connection = Connection::new(stream, label);
    if peer == Peer::Stranger {
        connection.restrict(Restriction::Enrolment);
    }
    Ok((connection, peer))
}

/// Where a server listens. A unix socket is for its owner only (mode 0600) and goes away with the listener.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Starts to listen. A socket file that nobody listens on any more is replaced; `Busy` where somebody does.
    pub async fn bind(address: &Address) -> Result<Listener> {
        let failed = |error| Error::io(format!("listening on {address}"), error);
        match address {
            Address::Tcp { host, port } => {
                let listener = TcpListener::bind((host.as_str(), *port)).await.map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?.into();
                Ok(Listener { socket: Socket::Tcp(listener), address })
            }
            Address::Unix(path) => {
                remove_stale(path).await?;
                let listener = UnixListener::bind(path).map_err(failed)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
                Ok(Listener { socket: Socket::Unix(listener, path.clone()), address: address.clone() })
            }
        }
    }

    /// Where it listens, the port as chosen.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next connection, before its handshake. May be dropped and called again without losing one.
    pub async fn accept(&self) -> Result<Incoming> {
        let failed = |error| Error::io(format!("accepting on {}", self.address), error);
        match &self.socket {
            Socket::Tcp(listener) => Ok(Incoming::Tcp(listener.accept().await.map_err(failed)?.0)),
            Socket::Unix(listener, _) => Ok(Incoming::Unix(listener.accept().await.map_err(failed)?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            // Nothing to be done where it fails: the next start finds the file stale and replaces it.
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn remove_stale(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(format!("looking at {}", path.display()), error)),
        Ok(found) if !found.file_type().is_socket() => {
            let context = format!("{} exists and is no socket", path.display());
            Err(Error::new(ErrorKind::AlreadyExists, context))
        }
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
                .map_err(|error| Error::io(format!("removing the stale socket {}", path.display()), error)),
            Err(error) => Err(Error::io(format!("trying the socket {}", path.display()), error)),
            Ok(_) => {
                let context = format!("somebody else listens on {}", path.display());
                Err(Error::new(ErrorKind::Busy, context))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn another_machine_must_speak_tls() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut agent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        agent.write_all(b"UNDY").await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let elsewhere = "192.0.2.7:40000".parse().unwrap();
        let error = accept_tcp(stream, elsewhere, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("speaks without TLS"), "{error}");
    }
}
