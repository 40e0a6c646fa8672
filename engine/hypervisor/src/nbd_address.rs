//! An NBD export's address in its parts, as those who are not told a URI want it.
//!
//! The URI is that of the NBD project's doc/uri.md: `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`, and the
//! same with `nbds` where the connection is encrypted.

use blocks::{Error, ErrorKind};
use std::str::FromStr;

const PORT_DEFAULT: u16 = 10809;

/// Where an export is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NbdAddress {
    /// The server.
    pub place: NbdPlace,
    /// The export's name; empty for the default one.
    pub export: String,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
}

/// Where an NBD server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NbdPlace {
    /// At a TCP port.
    Tcp {
        /// A name or an address, IPv6 ones without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// At a unix socket.
    Unix(String),
}

impl FromStr for NbdAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<NbdAddress, Error> {
        parse(text).ok_or_else(|| {
            let context =
                format!("{text:?} is no NBD URI: nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH");
            Error::new(ErrorKind::InvalidInput, context)
        })
    }
}

fn parse(text: &str) -> Option<NbdAddress> {
    let (scheme, rest) = text.split_once("://")?;
    let (scheme, is_unix) = match scheme.strip_suffix("+unix") {
        Some(scheme) => (scheme, true),
        None => (scheme, false),
    };
    let encrypted = match scheme {
        "nbd" => false,
        "nbds" => true,
        _ => return None,
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let place = match is_unix {
        true if authority.is_empty() => {
            let socket = query.split('&').find_map(|part| part.strip_prefix("socket="))?;
            NbdPlace::Unix(decode(socket).filter(|socket| !socket.is_empty())?)
        }
        true => return None,
        false => tcp(authority)?,
    };
    Some(NbdAddress { place, export: decode(export)?, encrypted })
}

fn tcp(authority: &str) -> Option<NbdPlace> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, after.strip_prefix(':').or(after.is_empty().then_some(""))?)
        }
        None => authority.rsplit_once(':').unwrap_or((authority, "")),
    };
    let port = if port.is_empty() { PORT_DEFAULT } else { port.parse().ok()? };
    let host = decode(host).filter(|host| !host.is_empty())?;
    Some(NbdPlace::Tcp { host, port })
}

/// The text behind percent signs; `None` where it is no text, or has a zero in it.
pub(crate) fn decode(text: &str) -> Option<String> {
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
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_uri_is_taken_apart() {
        let tcp = |host: &str, port, export: &str, encrypted| NbdAddress {
            place: NbdPlace::Tcp { host: host.to_owned(), port },
            export: export.to_owned(),
            encrypted,
        };
        assert_eq!("nbd://a:7/x".parse::<NbdAddress>().unwrap(), tcp("a", 7, "x", false));
        assert_eq!("nbds://a/x%20y%2Cz".parse::<NbdAddress>().unwrap(), tcp("a", 10809, "x y,z", true));
        assert_eq!("nbd://[::1]:9/".parse::<NbdAddress>().unwrap(), tcp("::1", 9, "", false));
        let unix: NbdAddress = "nbd+unix:///d?socket=/run/a%20b.sock".parse().unwrap();
        assert_eq!(unix.place, NbdPlace::Unix("/run/a b.sock".to_owned()));
        for wrong in [
            "",
            "http://a/b",
            "nbd:///x",
            "nbd+unix:///x",
            "nbd+unix://h/x?socket=/s",
            "nbd://a:port/",
            "nbd://a/%f",
            "nbd://a/%00",
            "nbd://[::1/x",
        ] {
            assert!(wrong.parse::<NbdAddress>().is_err(), "{wrong}");
        }
    }
}
