//! What an administrator carries from the server to a new machine.
//!
//! `understudy1.BASE32[@ADDRESS]`: BASE32 (RFC 4648, lower case, no padding) is 96 characters for 60 bytes: the
//! fingerprint of the server's authority (32), the token's public number (8), its secret (16), and a CRC32C of these
//! (4) that tells a slip of the pen from an attack.

use crate::{Address, Fingerprint};
use blocks::{ByteReader, ByteWriter, Error, ErrorKind, Result};
use std::fmt;
use std::str::FromStr;

/// The public number of a token, in bytes.
pub const TOKEN_ID_BYTES: usize = 8;
/// The secret of a token, in bytes: 128 bits are beyond guessing, so failed tries need not be counted.
pub const SECRET_BYTES: usize = 16;

const PREFIX: &str = "understudy1.";
const BODY_BYTES: usize = 32 + TOKEN_ID_BYTES + SECRET_BYTES + 4;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A one-time permission to get a certificate, and how to recognise the server that gave it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    authority: Fingerprint,
    secret: TokenSecret,
    address: Option<Address>,
}

/// The part of a token that only the server it came from is shown: a public number to find it by, and the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSecret {
    id: [u8; TOKEN_ID_BYTES],
    secret: [u8; SECRET_BYTES],
}

impl Token {
    /// A token for the server with that authority; `address` is where to find it, for convenience.
    pub fn new(authority: Fingerprint, secret: TokenSecret, address: Option<Address>) -> Token {
        Token { authority, secret, address }
    }

    /// Which authority the server must prove to have before it is shown the secret.
    pub fn authority(&self) -> Fingerprint {
        self.authority
    }

    /// What to show that server.
    pub fn secret(&self) -> &TokenSecret {
        &self.secret
    }

    /// Where the server was when the token was made.
    pub fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }
}

impl TokenSecret {
    /// A secret with these parts. Both must come from a cryptographic random source.
    pub fn new(id: [u8; TOKEN_ID_BYTES], secret: [u8; SECRET_BYTES]) -> TokenSecret {
        TokenSecret { id, secret }
    }

    /// The token's public number in hexadecimal, for file names and messages.
    pub fn id(&self) -> String {
        self.id.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What a server keeps of it: BLAKE3 of the number and the secret. Comparing two takes constant time.
    pub fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_derive_key("understudy enrolment token 1");
        hasher.update(&self.id).update(&self.secret);
        hasher.finalize()
    }

    /// The form in which it travels in [`crate::EnrollRequest::secret`].
    pub fn to_text(&self) -> String {
        base32(&[&self.id[..], &self.secret].concat())
    }

    /// Reads [`TokenSecret::to_text`]; the error does not repeat the text.
    pub fn from_text(text: &str) -> Result<TokenSecret> {
        let wrong = || Error::new(ErrorKind::InvalidInput, "the secret of the token is malformed");
        let bytes = from_base32(text).ok_or_else(wrong)?;
        if bytes.len() != TOKEN_ID_BYTES + SECRET_BYTES {
            return Err(wrong());
        }
        let mut reader = ByteReader::new(&bytes, "a token's secret");
        Ok(TokenSecret { id: reader.array()?, secret: reader.array()? })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = ByteWriter::new();
        body.bytes(&self.authority.to_bytes()).bytes(&self.secret.id).bytes(&self.secret.secret).checksum();
        write!(f, "{PREFIX}{}", base32(body.as_bytes()))?;
        match &self.address {
            Some(address) => write!(f, "@{address}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Token> {
        let wrong =
            |why: &str| Error::new(ErrorKind::InvalidInput, format!("this is no enrolment token: {why}"));
        let text = text.trim();
        let rest = text.strip_prefix(PREFIX).ok_or_else(|| wrong("it does not begin with 'understudy1.'"))?;
        let (body, address) = match rest.split_once('@') {
            Some((body, address)) => (body, Some(address.parse()?)),
            None => (rest, None),
        };
        let bytes =
            from_base32(body).ok_or_else(|| wrong("it has characters or a length that no token has"))?;
        if bytes.len() != BODY_BYTES {
            return Err(wrong("it is not complete"));
        }
        let mut reader = ByteReader::checksummed(&bytes, "a token")
            .map_err(|_| wrong("a character was changed on the way"))?;
        let authority = Fingerprint::from_bytes(reader.array()?);
        let secret = TokenSecret { id: reader.array()?, secret: reader.array()? };
        Ok(Token { authority, secret, address })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:?} of authority {})", self.secret, self.authority)
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, secret withheld", self.id())
    }
}

fn base32(bytes: &[u8]) -> String {
    let digits = (bytes.len() * 8).div_ceil(5);
    let bit = |at: usize| bytes.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1);
    let digit = |d: usize| (0..5).fold(0, |value, b| value << 1 | usize::from(bit(d * 5 + b)));
    (0..digits).map(|d| char::from(ALPHABET[digit(d)])).collect()
}

/// `None` for other characters, for lengths that no whole number of bytes has, and for bits left over that are set.
fn from_base32(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len().min(2 * BODY_BYTES) * 5 / 8);
    let (mut pending, mut pending_bits) = (0u32, 0u32);
    for character in text.bytes() {
        let digit = ALPHABET.iter().position(|known| *known == character.to_ascii_lowercase())?;
        pending = pending << 5 | u32::try_from(digit).ok()?;
        pending_bits += 5;
        if pending_bits >= 8 {
            pending_bits -= 8;
            bytes.push(u8::try_from(pending >> pending_bits & 0xff).ok()?);
            pending &= (1 << pending_bits) - 1;
        }
    }
    (pending_bits < 5 && pending == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(address: Option<&str>) -> Token {
        let secret = TokenSecret::new([7; 8], [9; 16]);
        Token::new(Fingerprint::from_bytes([0xa5; 32]), secret, address.map(|text| text.parse().unwrap()))
    }

    #[test]
    fn tokens_read_what_they_write() {
        for address in [None, Some("backup.example.org:7070"), Some("[::1]:7070"), Some("unix:/run/u.sock")] {
            let token = token(address);
            let text = token.to_string();
            assert_eq!(text.parse::<Token>().unwrap(), token);
            assert_eq!(format!("  {text}\n").parse::<Token>().unwrap(), token, "pasted with white space");
        }
        assert_eq!(token(None).to_string().len(), "understudy1.".len() + 96);
        let secret = token(None).secret().clone();
        assert_eq!(TokenSecret::from_text(&secret.to_text()).unwrap(), secret);
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let text = token(None).to_string();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'b' { b'c' } else { b'b' };
            let changed = String::from_utf8(bytes).unwrap();
            let error = changed.parse::<Token>().unwrap_err();
            assert!(error.to_string().contains("no enrolment token"), "{error}");
        }
        assert!(text[..text.len() - 8].parse::<Token>().is_err());
    }

    #[test]
    fn debug_output_keeps_the_secret() {
        let token = token(None);
        assert!(!format!("{token:?}").contains(&token.secret().to_text()[13..]));
        assert!(!format!("{token:?}").contains("0909"));
    }

    proptest! {
        #[test]
        fn base32_reads_what_it_writes(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(from_base32(&base32(&bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_refused_or_read(text in "\\PC{0,120}") {
            let _ = text.parse::<Token>();
            let _ = format!("understudy1.{text}").parse::<Token>();
            let _ = TokenSecret::from_text(&text);
        }
    }
}
