//! Where a server listens.

use blocks::{Error, ErrorKind};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// `HOST:PORT` (an IPv6 address in brackets) or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP port of a host.
    Tcp {
        /// A name or an address, an IPv6 address without its brackets.
        host: String,
        /// The port; 0 lets a listener choose one.
        port: u16,
    },
    /// A socket in the file system.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Address, Error> {
        let wrong = || {
            let context = format!("'{}' is neither HOST:PORT nor unix:PATH", text.escape_debug());
            Error::new(ErrorKind::InvalidInput, context)
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Address::Unix(PathBuf::from(path))) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(wrong)?,
            None if host.contains(':') => return Err(wrong()),
            None => host,
        };
        let strange = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '[' | ']' | '/' | '@');
        if host.is_empty() || host.contains(strange) {
            return Err(wrong());
        }
        Ok(Address::Tcp { host: host.to_owned(), port })
    }
}

impl From<std::net::SocketAddr> for Address {
    fn from(socket: std::net::SocketAddr) -> Address {
        Address::Tcp { host: socket.ip().to_string(), port: socket.port() }
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn addresses_read_what_they_write() {
        for text in
            ["localhost:7070", "10.0.0.1:0", "[::1]:65535", "unix:/run/understudy.sock", "unix:relative"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for wrong in
            ["", "host", "host:", ":1", "host:65536", "::1:80", "[::1:80", "[]:1", "unix:", "a b:1", "a/b:1"]
        {
            let error = wrong.parse::<Address>().unwrap_err();
            assert!(error.to_string().contains("neither HOST:PORT nor unix:PATH"), "{wrong}: {error}");
        }
    }
}
