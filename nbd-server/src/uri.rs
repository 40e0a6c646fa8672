//! `nbd://HOST:PORT/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`, as doc/uri.md of the protocol has them; with `nbds`
//! in the place of `nbd` the connection is encrypted.

use crate::protocol::DEFAULT_PORT;
use blocks::{Error, ErrorKind, Result};
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where an export is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdUri {
    place: Place,
    export: String,
    encryption: Option<Encryption>,
}

/// What an encrypted connection needs to be told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Encryption {
    /// `tls-certificates`: a folder with `ca-cert.pem` and, where the server asks for them, `client-cert.pem` and
    /// `client-key.pem`.
    pub certificates: Option<PathBuf>,
    /// `tls-hostname`: what the server's certificate is for, where that is not the host.
    pub host: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl NbdUri {
    /// An export at a TCP address. An address that means "all interfaces" becomes the loopback one.
    pub fn tcp(address: SocketAddr, export: &str) -> NbdUri {
        let host = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
            IpAddr::V6(ip) if ip.is_unspecified() => "::1".to_owned(),
            ip => ip.to_string(),
        };
        NbdUri {
            place: Place::Tcp { host, port: address.port() },
            export: export.to_owned(),
            encryption: None,
        }
    }

    /// An export of a host by name.
    pub fn host(host: &str, port: u16, export: &str) -> NbdUri {
        NbdUri {
            place: Place::Tcp { host: host.to_owned(), port },
            export: export.to_owned(),
            encryption: None,
        }
    }

    /// An export behind a unix socket.
    pub fn unix(socket: &Path, export: &str) -> NbdUri {
        NbdUri { place: Place::Unix(socket.to_owned()), export: export.to_owned(), encryption: None }
    }

    /// The same over an encrypted connection.
    #[must_use]
    pub fn encrypted(mut self) -> NbdUri {
        self.encryption.get_or_insert_default();
        self
    }

    pub(crate) fn encryption(&self) -> Option<&Encryption> {
        self.encryption.as_ref()
    }

    /// The name of the export.
    pub fn export(&self) -> &str {
        &self.export
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = encode(self.export.as_bytes(), b"");
        let scheme = if self.encryption.is_some() { "nbds" } else { "nbd" };
        let mut query = Vec::new();
        match &self.place {
            Place::Tcp { host, port } if host.contains(':') => {
                write!(f, "{scheme}://[{host}]:{port}/{export}")?;
            }
            Place::Tcp { host, port } => {
                write!(f, "{scheme}://{}:{port}/{export}", encode(host.as_bytes(), b""))?;
            }
            Place::Unix(path) => {
                write!(f, "{scheme}+unix:///{export}")?;
                query.push(format!("socket={}", encode(path.as_os_str().as_bytes(), b"/")));
            }
        }
        if let Some(encryption) = &self.encryption {
            let certificates = encryption.certificates.as_ref();
            query.extend(
                certificates
                    .map(|path| format!("tls-certificates={}", encode(path.as_os_str().as_bytes(), b"/"))),
            );
            let host = encryption.host.as_ref();
            query.extend(host.map(|host| format!("tls-hostname={}", encode(host.as_bytes(), b""))));
        }
        if query.is_empty() { Ok(()) } else { write!(f, "?{}", query.join("&")) }
    }
}

impl FromStr for NbdUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<NbdUri> {
        let wrong =
            |why: &str| Error::new(ErrorKind::InvalidInput, format!("'{text}' is not an NBD URI: {why}"));
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("there is no '://'"))?;
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode(path)
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .filter(|name| !name.contains('\0'))
            .ok_or_else(|| wrong("the export's name is not UTF-8 in percent-encoding"))?;
        let scheme = scheme.to_ascii_lowercase();
        let (base, encrypted) = match scheme.strip_prefix("nbds") {
            Some(rest) => (format!("nbd{rest}"), true),
            None => (scheme, false),
        };
        let place = match base.as_str() {
            "nbd" => tcp_place(authority).ok_or_else(|| wrong("HOST or HOST:PORT was expected"))?,
            "nbd+unix" => unix_place(query).ok_or_else(|| wrong("'?socket=PATH' was expected"))?,
            _ => return Err(wrong("the scheme is none of nbd, nbds, nbd+unix and nbds+unix")),
        };
        let parameter = |name: &str| {
            let value = query.split(['&', ';']).find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            value.map(|value| decode(value).ok_or_else(|| wrong("a parameter is not in percent-encoding")))
        };
        let encryption = match encrypted {
            false => None,
            true => Some(Encryption {
                certificates: parameter("tls-certificates")
                    .transpose()?
                    .map(|path| PathBuf::from(OsString::from_vec(path))),
                host: parameter("tls-hostname")
                    .transpose()?
                    .map(|host| String::from_utf8(host).map_err(|_| wrong("tls-hostname is not UTF-8")))
                    .transpose()?,
            }),
        };
        Ok(NbdUri { place, export, encryption })
    }
}

fn tcp_place(authority: &str) -> Option<Place> {
    let host_port = authority.rsplit_once('@').map_or(authority, |(_, host_port)| host_port);
    let (host, port) = match host_port.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']')?;
            if after.is_empty() { (host, None) } else { (host, Some(after.strip_prefix(':')?)) }
        }
        None => match host_port.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host_port, None),
        },
    };
    let host = String::from_utf8(decode(host)?).ok()?;
    let port = match port {
        None | Some("") => DEFAULT_PORT,
        Some(port) => port.parse().ok()?,
    };
    (!host.is_empty()).then_some(Place::Tcp { host, port })
}

fn unix_place(query: &str) -> Option<Place> {
    let socket = query.split(['&', ';']).find_map(|pair| pair.strip_prefix("socket="))?;
    let path = PathBuf::from(OsString::from_vec(decode(socket)?));
    (!path.as_os_str().is_empty()).then_some(Place::Unix(path))
}

/// Percent-encoding of everything but unreserved characters and those in `kept`.
fn encode(bytes: &[u8], kept: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>()?;
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
        bytes.push(digit(digits[0])? << 4 | digit(digits[1])?);
        rest = after;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_specifications_examples() {
        for (text, export) in [
            ("nbd://example.com/disk", "disk"),
            ("nbd+unix:///disk?socket=sock", "disk"),
            ("nbd://example.com/", ""),
            ("nbd://example.com", ""),
            ("nbd://example.com//disk", "/disk"),
            ("nbd://example.com/hello%20world", "hello world"),
        ] {
            assert_eq!(text.parse::<NbdUri>().unwrap().export(), export, "{text}");
        }
        assert_eq!("nbd://example.com".parse::<NbdUri>().unwrap(), NbdUri::host("example.com", 10809, ""));
        assert_eq!("nbd://[::1]:7/x".parse::<NbdUri>().unwrap(), NbdUri::host("::1", 7, "x"));
    }

    #[test]
    fn refuses_what_it_cannot_reach() {
        for text in [
            "",
            "disk",
            "http://a/b",
            "nbd:///x",
            "nbd+unix:///x",
            "nbd://a:port/",
            "nbd://a/%f",
            "nbd://a/%00",
        ] {
            let error = text.parse::<NbdUri>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
            assert!(error.to_string().contains(text));
        }
        assert!("nbds://a/b?tls-certificates=%2".parse::<NbdUri>().is_err());
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(export in "[^\0]*", path in "/[^\0]+", port: u16, address: u128) {
            let unix = NbdUri::unix(Path::new(&path), &export);
            prop_assert_eq!(unix.to_string().parse::<NbdUri>().unwrap(), unix.clone());
            let mut encrypted = unix.encrypted();
            prop_assert_eq!(encrypted.to_string().parse::<NbdUri>().unwrap(), encrypted.clone());
            encrypted.encryption = Some(Encryption { certificates: Some(path.into()), host: Some(export.clone()) });
            prop_assert_eq!(encrypted.to_string().parse::<NbdUri>().unwrap(), encrypted);
            let ip = IpAddr::V6(address.into());
            let tcp = NbdUri::tcp(SocketAddr::new(ip, port), &export);
            prop_assert_eq!(tcp.to_string().parse::<NbdUri>().unwrap(), tcp);
        }

        #[test]
        fn random_text_never_panics(text in "(nbd|nbd\\+unix)://\\PC*") {
            let _ = text.parse::<NbdUri>();
        }
    }
}
