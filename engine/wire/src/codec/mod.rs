//! Messages to bytes and back: one file per direction, and one for the parts that both use.
//!
//! Every kind has a number, a list of fields, and rules that hold on both sides: [`Message::check`] is asked before
//! a message is encoded and after one was decoded, so what arrives can be relied on as much as what was sent.

mod agent;
mod parts;
mod server;

use blocks::{ByteReader, ByteWriter, Error, ErrorKind, Result};

pub(crate) use agent::KIND_ENROLL;
pub use parts::{DISK_BYTES_MAX, DISKS_MAX, EXTENTS_MAX, HASHES_MAX};

/// What travels in a frame.
pub trait Message: Sized + Send + Sync {
    /// The number of its kind.
    fn kind(&self) -> u16;

    /// `Unsupported` unless this direction has such a kind.
    fn check_kind(kind: u16) -> Result<()>;

    /// `InvalidInput` where the message breaks a rule of its kind.
    fn check(&self) -> Result<()>;

    /// Appends everything but the payload.
    fn encode_fields(&self, writer: &mut ByteWriter);

    /// The data that follows the fields; empty for most kinds.
    fn payload(&self) -> &[u8];

    /// Reads the fields; the reader is checked to be at its end afterwards. `payload` is what followed them and is
    /// taken by the kinds that have one.
    fn decode_fields(kind: u16, reader: &mut ByteReader<'_>, payload: &mut Vec<u8>) -> Result<Self>;
}

/// The message of that kind with those bytes. `Corrupt` where they are not what such a message consists of.
pub(crate) fn decode<M: Message>(kind: u16, fields: &[u8], mut payload: Vec<u8>) -> Result<M> {
    let mut reader = ByteReader::new(fields, "a message");
    let message = M::decode_fields(kind, &mut reader, &mut payload).map_err(|error| of_kind(kind, &error))?;
    reader.finish().map_err(|error| of_kind(kind, &error))?;
    if !payload.is_empty() {
        let context = format!("kind {kind:#06x}: {} bytes of payload that it has no use for", payload.len());
        return Err(Error::corrupt(context));
    }
    message.check().map_err(|error| of_kind(kind, &error))?;
    Ok(message)
}

fn of_kind(kind: u16, error: &Error) -> Error {
    Error::corrupt(format!("kind {kind:#06x}: {error}"))
}

fn unknown_kind(kind: u16, direction: &str) -> Error {
    let context = format!("kind {kind:#06x} is no message that {direction} sends in this version");
    Error::new(ErrorKind::Unsupported, context)
}
