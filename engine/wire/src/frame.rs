//! The envelope of every message. docs/formats/wire.md has the byte table and the reasons.

use crate::packing::{self, PAYLOAD_PACKED_BYTES_MAX};
use crate::{Message, codec};
use blocks::{ByteReader, ByteWriter, Error, ErrorKind, Result};

/// The version of the frame and of every message in it.
pub const VERSION: u16 = 3;
/// The oldest version that is understood. Whoever speaks it is answered in it.
pub const VERSION_MIN: u16 = 1;
/// The version from which on payloads may be packed.
pub(crate) const VERSION_PACKED: u16 = 2;
/// The length of a frame's header.
pub const HEADER_BYTES: usize = 24;
/// The most data that one message carries.
pub const PAYLOAD_BYTES_MAX: u32 = 1 << 20;
/// The most that the other fields of one message take.
pub const FIELDS_BYTES_MAX: u32 = 8 << 20;
/// The longest frame.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + FIELDS_BYTES_MAX as usize + PAYLOAD_BYTES_MAX as usize;

const MAGIC: [u8; 4] = *b"UNDY";
/// In the field of the kind: the payload is packed.
const KIND_PACKED: u16 = 0x4000;

/// A frame's header, as far as it says something: lengths are within their limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub version: u16,
    pub kind: u16,
    is_packed: bool,
    fields_len: u32,
    payload_len: u32,
    body_crc: u32,
}

impl Header {
    /// Reads a header. `Corrupt` where it is none, `Unsupported` for another version; nothing that depends on its
    /// lengths has been done then.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header> {
        let mut reader = ByteReader::new(bytes, "a frame header");
        if reader.array()? != MAGIC {
            return Err(Error::corrupt("this is no frame of understudy's: wrong magic"));
        }
        let version = reader.u16()?;
        if !(VERSION_MIN..=VERSION).contains(&version) {
            let context = format!(
                "the other side speaks version {version} of the protocol, this one {VERSION_MIN} to {VERSION}"
            );
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        ByteReader::checksummed(bytes, "a frame header")?;
        let kind = reader.u16()?;
        // Version 1 does not know the bit: there it is part of a kind that does not exist.
        let is_packed = version >= VERSION_PACKED && kind & KIND_PACKED != 0;
        let header = Header {
            version,
            kind: if is_packed { kind & !KIND_PACKED } else { kind },
            is_packed,
            fields_len: reader.u32()?,
            payload_len: reader.u32()?,
            body_crc: reader.u32()?,
        };
        limit("fields", header.fields_len, FIELDS_BYTES_MAX)?;
        limit("payload", header.payload_len, PAYLOAD_BYTES_MAX)?;
        if header.is_packed {
            limit("packed payload", header.payload_len, PAYLOAD_PACKED_BYTES_MAX)?;
        }
        Ok(header)
    }

    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut writer = ByteWriter::new();
        let kind = if self.is_packed { self.kind | KIND_PACKED } else { self.kind };
        writer.bytes(&MAGIC).u16(self.version).u16(kind);
        writer.u32(self.fields_len).u32(self.payload_len).u32(self.body_crc).checksum();
        writer.as_bytes().try_into().expect("the fields of a header are 24 bytes")
    }

    pub fn fields_len(&self) -> usize {
        self.fields_len as usize
    }

    pub fn payload_len(&self) -> usize {
        self.payload_len as usize
    }

    /// The message's payload, out of the bytes that the header announced. `Corrupt` where these are others.
    pub fn open_body(&self, fields: &[u8], payload: Vec<u8>) -> Result<Vec<u8>> {
        match body_crc(fields, &payload) == self.body_crc {
            true if self.is_packed => packing::unpack(&payload),
            true => Ok(payload),
            false => {
                let context = format!(
                    "a frame of kind {:#06x}: checksum mismatch over {} + {} bytes",
                    self.kind, self.fields_len, self.payload_len
                );
                Err(Error::corrupt(context))
            }
        }
    }
}

/// Header and fields of a message, to be followed by its payload or, where that is given, its packed form. `InvalidInput`
/// where the message breaks its rules or is too long.
pub(crate) fn encode_head<M: Message>(version: u16, message: &M, packed: Option<&[u8]>) -> Result<Vec<u8>> {
    message.check()?;
    let mut writer = ByteWriter::new();
    writer.bytes(&[0; HEADER_BYTES]);
    message.encode_fields(&mut writer);
    let mut head = writer.into_bytes();
    let (space, fields) = head.split_at_mut(HEADER_BYTES);
    let payload = packed.unwrap_or(message.payload());
    let header = Header {
        version,
        is_packed: packed.is_some(),
        kind: message.kind(),
        fields_len: length("fields", fields, FIELDS_BYTES_MAX)?,
        payload_len: length("payload", payload, PAYLOAD_BYTES_MAX)?,
        body_crc: body_crc(fields, payload),
    };
    space.copy_from_slice(&header.encode());
    Ok(head)
}

/// The whole frame of a message in a version that is understood. For tests and tools; a connection does not copy payloads.
pub fn encode_frame<M: Message>(version: u16, message: &M) -> Result<Vec<u8>> {
    let mut frame = encode_head(version, message, None)?;
    frame.extend_from_slice(message.payload());
    Ok(frame)
}

/// The same with the payload packed, where it shrinks.
pub fn encode_packed_frame<M: Message>(message: &M) -> Result<Vec<u8>> {
    let Some(packed) = packing::pack(message.payload()) else { return encode_frame(VERSION, message) };
    let mut frame = encode_head(VERSION, message, Some(&packed))?;
    frame.extend_from_slice(&packed);
    Ok(frame)
}

/// The message in a frame, which must be there whole and alone. Errors as [`crate::Receiver::recv`].
pub fn decode_frame<M: Message>(frame: &[u8]) -> Result<M> {
    let Some((header, body)) = frame.split_first_chunk::<HEADER_BYTES>() else {
        return Err(Error::corrupt(format!("a frame of {} bytes is shorter than its header", frame.len())));
    };
    let header = Header::decode(header)?;
    M::check_kind(header.kind)?;
    if body.len() != header.fields_len() + header.payload_len() {
        let context = format!(
            "a frame announces {} + {} bytes and has {}",
            header.fields_len,
            header.payload_len,
            body.len()
        );
        return Err(Error::corrupt(context));
    }
    let (fields, payload) = body.split_at(header.fields_len());
    let payload = header.open_body(fields, payload.to_vec())?;
    codec::decode(header.kind, fields, payload)
}

fn body_crc(fields: &[u8], payload: &[u8]) -> u32 {
    blocks::crc32c_append(blocks::crc32c(fields), payload)
}

fn limit(what: &str, len: u32, max: u32) -> Result<()> {
    match len <= max {
        true => Ok(()),
        false => Err(Error::corrupt(format!("a frame announces {len} bytes of {what}; {max} are allowed"))),
    }
}

fn length(what: &str, bytes: &[u8], max: u32) -> Result<u32> {
    match u32::try_from(bytes.len()) {
        Ok(len) if len <= max => Ok(len),
        _ => {
            let context = format!("a message with {} bytes of {what}; {max} are allowed", bytes.len());
            Err(Error::new(ErrorKind::InvalidInput, context))
        }
    }
}
