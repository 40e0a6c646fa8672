//! One request of the transmission phase, as it is on the wire.

use crate::fields::Fields;
use crate::protocol::{EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, command, command_flag};
use blocks::{ByteLen, ByteOffset};

/// How messages of the transmission phase look, as agreed on in the handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Headers {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, replies in chunks.
    Structured,
    /// 64-bit lengths in requests, replies in chunks that name the request's offset.
    Extended,
}

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Bytes back.
    Read,
    /// A payload onto the disk.
    Write,
    /// The end, without a reply.
    Disconnect,
    /// Completed writes onto the medium.
    Flush,
    /// A range that is no longer needed.
    Trim,
    /// A range that will be read soon.
    Cache,
    /// A range that shall read as zeroes.
    WriteZeroes,
    /// What is allocated.
    BlockStatus,
    /// Nothing that we know.
    Unknown(u16),
}

/// A decoded request: nothing in it has been checked but its magic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Bits of `command_flag`, and perhaps others.
    pub flags: u16,
    /// What to do.
    pub command: Command,
    /// What the reply repeats.
    pub cookie: u64,
    /// Where.
    pub offset: ByteOffset,
    /// How many bytes.
    pub len: ByteLen,
}

impl Command {
    fn decode(code: u16) -> Command {
        match code {
            command::READ => Command::Read,
            command::WRITE => Command::Write,
            command::DISC => Command::Disconnect,
            command::FLUSH => Command::Flush,
            command::TRIM => Command::Trim,
            command::CACHE => Command::Cache,
            command::WRITE_ZEROES => Command::WriteZeroes,
            command::BLOCK_STATUS => Command::BlockStatus,
            other => Command::Unknown(other),
        }
    }

    /// The number on the wire.
    pub const fn code(self) -> u16 {
        match self {
            Command::Read => command::READ,
            Command::Write => command::WRITE,
            Command::Disconnect => command::DISC,
            Command::Flush => command::FLUSH,
            Command::Trim => command::TRIM,
            Command::Cache => command::CACHE,
            Command::WriteZeroes => command::WRITE_ZEROES,
            Command::BlockStatus => command::BLOCK_STATUS,
            Command::Unknown(code) => code,
        }
    }
}

impl Headers {
    /// Whether replies come in chunks.
    pub const fn has_chunks(self) -> bool {
        !matches!(self, Headers::Simple)
    }

    /// The length of a request without its payload.
    pub const fn request_bytes(self) -> usize {
        match self {
            Headers::Simple | Headers::Structured => Request::COMPACT_BYTES,
            Headers::Extended => Request::EXTENDED_BYTES,
        }
    }
}

impl Request {
    /// The length of a compact request without its payload.
    pub const COMPACT_BYTES: usize = 28;
    /// The length of an extended request without its payload.
    pub const EXTENDED_BYTES: usize = 32;

    /// The request in these [`Headers::request_bytes`] bytes; `None` for a wrong magic, after which the stream is out
    /// of step for good, and for too few bytes.
    pub fn decode(headers: Headers, bytes: &[u8]) -> Option<Request> {
        let mut fields = Fields::new(bytes);
        let extended = headers == Headers::Extended;
        if fields.u32()? != (if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC }) {
            return None;
        }
        Some(Request {
            flags: fields.u16()?,
            command: Command::decode(fields.u16()?),
            cookie: fields.u64()?,
            offset: ByteOffset::new(fields.u64()?),
            len: ByteLen::new(if extended { fields.u64()? } else { u64::from(fields.u32()?) }),
        })
    }

    /// The bytes of this request as a compact one. Panics over 4 GiB, which our client never asks for.
    pub fn encode(&self) -> [u8; Request::COMPACT_BYTES] {
        let len = u32::try_from(self.len.get()).expect("a compact request is shorter than 4 GiB");
        let mut bytes = [0; Request::COMPACT_BYTES];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.code().to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.get().to_be_bytes());
        bytes[24..28].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    /// How many bytes of payload follow the request. A write always has one: QEMU 10 does not announce it with
    /// extended headers, though it should.
    pub fn payload_len(&self, headers: Headers) -> ByteLen {
        let has_payload = match headers {
            Headers::Simple | Headers::Structured => self.command == Command::Write,
            Headers::Extended => {
                self.command == Command::Write || self.flags & command_flag::PAYLOAD_LEN != 0
            }
        };
        if has_payload { self.len } else { ByteLen::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_decode_to_what_encodes_to_them(mut bytes: [u8; Request::COMPACT_BYTES], right: bool) {
            if right {
                bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            }
            match Request::decode(Headers::Structured, &bytes) {
                Some(request) => prop_assert_eq!(request.encode(), bytes),
                None => prop_assert_ne!(&bytes[..4], REQUEST_MAGIC.to_be_bytes()),
            }
        }

        #[test]
        fn an_extended_request_is_a_compact_one_with_a_longer_length(mut bytes: [u8; Request::COMPACT_BYTES]) {
            bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            let mut extended = [0; Request::EXTENDED_BYTES];
            extended[..4].copy_from_slice(&EXTENDED_REQUEST_MAGIC.to_be_bytes());
            extended[4..24].copy_from_slice(&bytes[4..24]);
            extended[28..].copy_from_slice(&bytes[24..]);
            let request = Request::decode(Headers::Extended, &extended).unwrap();
            prop_assert_eq!(Some(request), Request::decode(Headers::Simple, &bytes));
            prop_assert_eq!(Request::decode(Headers::Extended, &bytes), None);
            extended[24] = 0x80;
            let long = Request::decode(Headers::Extended, &extended).unwrap();
            prop_assert_eq!(long.len.get() - request.len.get(), 1 << 63);
        }
    }
}
