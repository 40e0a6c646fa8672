//! A certificate's name for programs.

use rustls::pki_types::CertificateDer;
use std::fmt;
use std::str::FromStr;

/// BLAKE3 of a certificate's DER bytes; 64 hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Fingerprint {
        Fingerprint(bytes)
    }

    /// The bytes.
    pub const fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// The fingerprint of a certificate in PEM form. `InvalidInput` where there is none in `pem`.
    pub fn of_pem(pem: &str) -> blocks::Result<Fingerprint> {
        crate::tls::certificate(pem).map(|certificate| Fingerprint::of(&certificate))
    }

    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Fingerprint {
        Fingerprint(*blake3::hash(certificate).as_bytes())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = blocks::Error;

    fn from_str(text: &str) -> blocks::Result<Fingerprint> {
        let hash = blake3::Hash::from_hex(text).map_err(|error| {
            let context = format!("'{}' is not a fingerprint of 64 hexadecimal digits", text.escape_debug());
            blocks::Error::with_source(blocks::ErrorKind::InvalidInput, context, error)
        })?;
        Ok(Fingerprint(*hash.as_bytes()))
    }
}
