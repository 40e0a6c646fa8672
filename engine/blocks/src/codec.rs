//! The bytes of every format of ours: little-endian, explicit, no `usize`, checked against the end.

use crate::{Error, Result};

/// Reads fields one after the other from bytes that may come from anywhere. Running past the end or a value that
/// makes no sense is `Corrupt`; memory is only ever taken for bytes that are there.
#[derive(Debug, Clone)]
pub struct ByteReader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

macro_rules! read_int {
    ($($name:ident $type:ty),*) => { $(
        #[doc = concat!("The next little-endian `", stringify!($type), "`.")]
        pub fn $name(&mut self) -> Result<$type> {
            let bytes = self.bytes(size_of::<$type>())?;
            Ok(<$type>::from_le_bytes(bytes.try_into().expect("as many bytes as were asked for")))
        }
    )* };
}

impl<'a> ByteReader<'a> {
    /// Reads `bytes`; `what` names the format in errors.
    pub fn new(bytes: &'a [u8], what: &'static str) -> ByteReader<'a> {
        ByteReader { rest: bytes, what }
    }

    /// Reads `bytes` without the CRC32C in their last four, which [`ByteWriter::checksum`] put there and which must
    /// match.
    pub fn checksummed(bytes: &'a [u8], what: &'static str) -> Result<ByteReader<'a>> {
        let Some((body, stored)) = bytes.split_last_chunk::<4>() else {
            return Err(Error::corrupt(format!("{what} is too short for its checksum")));
        };
        if crate::crc32c(body) != u32::from_le_bytes(*stored) {
            return Err(Error::corrupt(format!("{what}: checksum mismatch over {} bytes", body.len())));
        }
        Ok(ByteReader::new(body, what))
    }

    read_int!(u8 u8, u16 u16, u32 u32, u64 u64);

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        if count > self.rest.len() {
            let context =
                format!("{} ends early: {count} more bytes wanted, {} left", self.what, self.rest.len());
            return Err(Error::corrupt(context));
        }
        let (head, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.bytes(N)?.try_into().expect("as many bytes as were asked for"))
    }

    /// The next identity; `None` for all zero.
    pub fn id(&mut self) -> Result<Option<crate::Id>> {
        Ok(crate::Id::from_bytes(self.array()?))
    }

    /// A `bool`: 0 or 1, nothing else.
    pub fn bool(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Error::corrupt(format!("{}: {other} is neither true nor false", self.what))),
        }
    }

    /// Bytes behind their `u32` length.
    pub fn blob(&mut self) -> Result<&'a [u8]> {
        let len = self.u32()?;
        self.bytes(usize::try_from(len).map_err(|_| Error::corrupt(format!("{}: blob too long", self.what)))?)
    }

    /// Text behind its `u32` length in bytes.
    pub fn text(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.blob()?)
            .map_err(|error| Error::with_source(crate::ErrorKind::Corrupt, self.what, error))
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// `Corrupt` unless every byte was read.
    pub fn finish(self) -> Result<()> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(Error::corrupt(format!("{}: {left} bytes too many", self.what))),
        }
    }
}

/// Writes fields one after the other.
#[derive(Debug, Default, Clone)]
pub struct ByteWriter {
    bytes: Vec<u8>,
}

macro_rules! write_int {
    ($($name:ident $type:ty),*) => { $(
        #[doc = concat!("Appends a little-endian `", stringify!($type), "`.")]
        pub fn $name(&mut self, value: $type) -> &mut Self {
            self.bytes(&value.to_le_bytes())
        }
    )* };
}

impl ByteWriter {
    /// Nothing written yet.
    pub fn new() -> ByteWriter {
        ByteWriter::default()
    }

    write_int!(u8 u8, u16 u16, u32 u32, u64 u64);

    /// Appends the bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends an identity, all zero for none.
    pub fn id(&mut self, id: Option<crate::Id>) -> &mut Self {
        self.bytes(&id.map_or([0; 16], crate::Id::to_bytes))
    }

    /// Appends 0 or 1.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }

    /// Appends the bytes behind their `u32` length. Panics over 4 GiB, which nothing of ours comes near.
    pub fn blob(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).expect("a blob is shorter than 4 GiB")).bytes(bytes)
    }

    /// Appends text behind its `u32` length in bytes.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.blob(text.as_bytes())
    }

    /// Appends the CRC32C of everything so far.
    pub fn checksum(&mut self) -> &mut Self {
        let checksum = crate::crc32c(&self.bytes);
        self.u32(checksum)
    }

    /// What has been written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What has been written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
