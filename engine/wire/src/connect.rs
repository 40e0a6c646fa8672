//! The agent's way to a server.

use crate::{Address, AgentConnection, AgentIdentity, Connection, tls};
use blocks::{Error, ErrorKind, Result};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};

/// How long finding the host, connecting and the handshake may each take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long what was sent may go without an answer from the other end's TCP.
const DEAD_AFTER: Duration = Duration::from_secs(30);
/// An idle link is probed after this long, this often, and given up after so many probes.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 4;
const _: () = assert!(PROBE_AFTER.as_secs() + PROBE_EVERY.as_secs() * PROBES as u64 == DEAD_AFTER.as_secs());

/// Connects to a server: with an identity by mutual TLS 1.3; without one, or over a unix socket, plainly.
///
/// Errors: `InvalidInput` where a plain connection would leave the machine, or where the server is not the one that
/// enrolled this agent ([`crate::refused_identity`] tells); `Cancelled` where a step takes longer than 10 s; else what
/// the operating system says. That the *server* refuses the certificate shows only at the first
/// [`crate::Receiver::recv`]: in TLS 1.3 a client is done before it is judged.
pub async fn connect(address: &Address, identity: Option<&AgentIdentity>) -> Result<AgentConnection> {
    match (address, identity) {
        (Address::Unix(path), _) => Ok(Connection::new(unix(address, path).await?, address)),
        (Address::Tcp { host, port }, None) => {
            let sockets = resolve(address, host, *port).await?;
            for socket in &sockets {
                plain_allowed(*socket)?;
            }
            Ok(Connection::new(tcp(address, &sockets).await?, address))
        }
        (Address::Tcp { host, port }, Some(identity)) => {
            let stream = tcp(address, &resolve(address, host, *port).await?).await?;
            secure(address, stream, tls::agent_config(identity)?).await
        }
    }
}

/// Whether a connection to this socket may go without TLS: only where it cannot leave the machine. `InvalidInput`
/// says what to do instead.
pub fn plain_allowed(socket: SocketAddr) -> Result<()> {
    if is_loopback(socket.ip()) {
        return Ok(());
    }
    let context = format!(
        "a connection to {socket} leaves this machine and must be mutual TLS: run 'understudy enroll' on the server and \
         give the token to this agent (plain connections are for loopback and unix sockets only)"
    );
    Err(Error::new(ErrorKind::InvalidInput, context))
}

pub(crate) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// A connection for enrolment: no certificate of ours, and a server with exactly that authority.
pub(crate) async fn connect_to_enroll(
    address: &Address,
    authority: crate::Fingerprint,
) -> Result<AgentConnection> {
    let Address::Tcp { host, port } = address else {
        let context =
            format!("{address} needs no enrolment: connections over unix sockets have no certificates");
        return Err(Error::new(ErrorKind::InvalidInput, context));
    };
    let stream = tcp(address, &resolve(address, host, *port).await?).await?;
    secure(address, stream, tls::enrolment_config(authority)?).await
}

async fn secure(
    address: &Address,
    stream: TcpStream,
    config: std::sync::Arc<rustls::ClientConfig>,
) -> Result<AgentConnection> {
    let handshake = tokio_rustls::TlsConnector::from(config).connect(tls::server_name(), stream);
    let stream =
        within(address, "the TLS handshake", handshake).await.map_err(
            |error| match crate::refused_identity(&error) {
                true => Error::with_source(
                    ErrorKind::InvalidInput,
                    format!("{address} is not the server that this agent was enrolled with"),
                    error,
                ),
                false => error,
            },
        )?;
    Ok(Connection::new(stream, address))
}

async fn resolve(address: &Address, host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let sockets: Vec<_> =
        within(address, "looking up the host", tokio::net::lookup_host((host, port))).await?.collect();
    match sockets.is_empty() {
        true => Err(Error::new(ErrorKind::NotFound, format!("{address}: the host has no address"))),
        false => Ok(sockets),
    }
}

async fn tcp(address: &Address, sockets: &[SocketAddr]) -> Result<TcpStream> {
    let stream = within(address, "connecting", TcpStream::connect(sockets)).await?;
    set_up(&stream).map_err(|error| Error::io(format!("setting up {address}"), error))?;
    Ok(stream)
}

/// What both ends ask of TCP: no waiting for more to send, and a link that died without a word ends within about 30 s,
/// whether something is on its way or nothing is.
pub(crate) fn set_up(stream: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    let silence_ms = u32::try_from(DEAD_AFTER.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, silence_ms)?;
    Ok(())
}

async fn unix(address: &Address, path: &Path) -> Result<UnixStream> {
    within(address, "connecting", UnixStream::connect(path)).await
}

async fn within<T>(
    address: &Address,
    step: &str,
    work: impl Future<Output = std::io::Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(STEP_TIMEOUT, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::io(format!("{address}: {step}"), error)),
        Err(_) => {
            let context = format!("{address}: {step} took longer than {} s", STEP_TIMEOUT.as_secs());
            Err(Error::new(ErrorKind::Cancelled, context))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ends_notice_a_link_that_died_without_a_word() {
        use rustix::net::sockopt;
        use std::os::fd::AsFd;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: Address = listener.local_addr().unwrap().into();
        let sockets = [listener.local_addr().unwrap()];
        let agent = tcp(&address, &sockets).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        // The accepted socket's own descriptor, since accepting hands the stream on.
        let seen = server.into_std().unwrap();
        let server = TcpStream::from_std(seen.try_clone().unwrap()).unwrap();
        agent.writable().await.unwrap();
        assert_eq!(agent.try_write(b"U").unwrap(), 1);
        crate::accept(server, None).await.unwrap();
        let check = |end: std::os::fd::BorrowedFd<'_>| {
            assert!(sockopt::socket_keepalive(end).unwrap());
            assert_eq!(sockopt::tcp_keepidle(end).unwrap(), PROBE_AFTER);
            assert_eq!(sockopt::tcp_user_timeout(end).unwrap(), 30_000);
        };
        check(agent.as_fd());
        check(seen.as_fd());
    }

    #[test]
    fn plain_connections_stay_on_the_machine() {
        for inside in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            plain_allowed(inside.parse().unwrap()).unwrap();
        }
        for outside in ["10.0.0.1:1", "0.0.0.0:1", "192.0.2.1:7070", "[2001:db8::1]:1", "[::ffff:10.0.0.1]:1"]
        {
            let error = plain_allowed(outside.parse().unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("must be mutual TLS"), "{error}");
        }
    }
}
