//! One request of the transmission phase, as it is on the wire.

use crate::fields::Fields;
use crate::protocol::{REQUEST_MAGIC, command};
use blocks::{ByteLen, ByteOffset};

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Bytes back.
    Read,
    /// A payload onto the disk; the only command with one.
    Write,
    /// The end, without a reply.
    Disconnect,
    /// Completed writes onto the medium.
    Flush,
    /// A range that is no longer needed.
    Trim,
    /// A range that will be read soon; not served.
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

impl Request {
    /// The length of a request without its payload.
    pub const BYTES: usize = 28;

    /// The request in these bytes; `None` for a wrong magic, after which the stream is out of step for good.
    pub fn decode(bytes: &[u8; Request::BYTES]) -> Option<Request> {
        let mut fields = Fields::new(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Request {
            flags: fields.u16()?,
            command: Command::decode(fields.u16()?),
            cookie: fields.u64()?,
            offset: ByteOffset::new(fields.u64()?),
            len: ByteLen::new(u64::from(fields.u32()?)),
        })
    }

    /// The bytes of this request. Panics over 4 GiB, which our client never asks for.
    pub fn encode(&self) -> [u8; Request::BYTES] {
        let len = u32::try_from(self.len.get()).expect("a request is shorter than 4 GiB");
        let mut bytes = [0; Request::BYTES];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.code().to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.get().to_be_bytes());
        bytes[24..28].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    /// How many bytes of payload follow the request.
    pub fn payload_len(&self) -> ByteLen {
        if self.command == Command::Write { self.len } else { ByteLen::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_decode_to_what_encodes_to_them(mut bytes: [u8; Request::BYTES], right: bool) {
            if right {
                bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            }
            match Request::decode(&bytes) {
                Some(request) => prop_assert_eq!(request.encode(), bytes),
                None => prop_assert_ne!(&bytes[..4], REQUEST_MAGIC.to_be_bytes()),
            }
        }
    }
}
