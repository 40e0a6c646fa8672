//! Answers, as they are on the wire: simple ones, or chunks where the client has agreed to them.

use crate::error_code::NbdError;
use crate::metadata::MetadataRun;
use crate::outbox::{COPIED_BYTES_MAX, Outbox};
use crate::protocol::{
    EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRING_BYTES_MAX, STRUCTURED_REPLY_MAGIC, chunk,
};
use crate::request::Headers;
use crate::socket::Socket;
use blocks::{ByteOffset, Extent, FileRange};
use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

/// The descriptors of one chunk of block status at most; the client asks on from the last one's end.
const DESCRIPTORS_MAX: usize = 32 << 10;
/// The head of a chunk, and the fields before its data.
const CHUNK_HEAD_BYTES_MAX: usize = 32 + 14;

/// Sends the answer to one request. Messages of several requests may alternate but never mix.
pub struct Reply<'a> {
    pub socket: &'a Socket,
    pub outbox: &'a Outbox,
    /// Whether the reply may wait because somebody will send what waits soon.
    pub more: bool,
    pub cookie: u64,
    /// The request's.
    pub offset: ByteOffset,
    pub headers: Headers,
    /// Set once the answer is an error.
    pub failed: Cell<bool>,
    /// How long it took to send what has been sent.
    pub sending: Cell<Duration>,
}

impl Reply<'_> {
    fn message(&self, head: &[u8], body: &[u8], last: bool) -> io::Result<()> {
        let more = self.more || !last;
        if more && body.len() <= COPIED_BYTES_MAX {
            return self.outbox.message(self.socket, head, body, more);
        }
        self.timed(|| self.outbox.message(self.socket, head, body, more))
    }

    fn timed(&self, send: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let begun = Instant::now();
        let sent = send();
        self.sending.set(self.sending.get() + begun.elapsed());
        sent
    }

    fn simple(&self, error: u32, body: &[u8]) -> io::Result<()> {
        self.message(&self.simple_head(error), body, true)
    }

    fn simple_head(&self, error: u32) -> [u8; 16] {
        let mut head = [0; 16];
        head[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        head[4..8].copy_from_slice(&error.to_be_bytes());
        head[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        head
    }

    /// A chunk with up to 14 bytes of fields.
    fn chunk(&self, kind: u16, last: bool, fields: &[u8], body: &[u8]) -> io::Result<()> {
        let (head, head_len) = self.chunk_head(kind, last, fields, body.len())?;
        self.message(&head[..head_len], body, last)
    }

    /// The head of a chunk, fields included, and how much of the array it takes.
    fn chunk_head(
        &self,
        kind: u16,
        last: bool,
        fields: &[u8],
        body_len: usize,
    ) -> io::Result<([u8; CHUNK_HEAD_BYTES_MAX], usize)> {
        let len = u32::try_from(fields.len() + body_len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut head = [0; CHUNK_HEAD_BYTES_MAX];
        let extended = self.headers == Headers::Extended;
        let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
        head[0..4].copy_from_slice(&magic.to_be_bytes());
        head[4..6].copy_from_slice(&(if last { chunk::FLAG_DONE } else { 0 }).to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        let head_len = if extended {
            head[16..24].copy_from_slice(&self.offset.get().to_be_bytes());
            head[24..32].copy_from_slice(&u64::from(len).to_be_bytes());
            32
        } else {
            head[16..20].copy_from_slice(&len.to_be_bytes());
            20
        };
        head[head_len..head_len + fields.len()].copy_from_slice(fields);
        Ok((head, head_len + fields.len()))
    }

    /// It is done, and there is nothing to send back.
    pub fn done(&self) -> io::Result<()> {
        match self.headers {
            Headers::Simple | Headers::Structured => self.simple(0, &[]),
            Headers::Extended => self.chunk(chunk::NONE, true, &[], &[]),
        }
    }

    /// An empty read is done: the one success without data that must not be a simple reply.
    pub fn nothing_read(&self) -> io::Result<()> {
        if self.headers.has_chunks() { self.chunk(chunk::NONE, true, &[], &[]) } else { self.done() }
    }

    /// It failed; `message` is for a person and travels where the protocol has room for it.
    pub fn error(&self, error: NbdError, message: &str) -> io::Result<()> {
        self.failed.set(true);
        if !self.headers.has_chunks() {
            return self.simple(error.code(), &[]);
        }
        let (fields, message) = error_fields(error, message);
        self.chunk(chunk::ERROR, true, &fields, message)
    }

    /// A read failed at this offset, behind what was sent of it.
    pub fn error_at(&self, error: NbdError, message: &str, at: ByteOffset) -> io::Result<()> {
        self.failed.set(true);
        if !self.headers.has_chunks() {
            return self.simple(error.code(), &[]);
        }
        let (fields, message) = error_fields(error, message);
        let body = [message, &at.get().to_be_bytes()].concat();
        self.chunk(chunk::ERROR_OFFSET, true, &fields, &body)
    }

    /// Bytes of the disk. Without chunks, all that were asked for.
    pub fn data(&self, offset: ByteOffset, data: &[u8], last: bool) -> io::Result<()> {
        if self.headers.has_chunks() {
            self.chunk(chunk::OFFSET_DATA, last, &offset.get().to_be_bytes(), data)
        } else {
            self.simple(0, data)
        }
    }

    /// Bytes of the disk that lie in a file as they are. Only where the socket takes files. `scratch` is written over.
    pub fn file(&self, extent: Extent, from: &FileRange, last: bool, scratch: &mut [u8]) -> io::Result<()> {
        let body = (from, extent.len().get());
        if !self.headers.has_chunks() {
            let head = self.simple_head(0);
            return self.timed(|| self.outbox.file_message(self.socket, &head, body, scratch));
        }
        let offset = extent.start().get().to_be_bytes();
        let (head, head_len) = self.chunk_head(chunk::OFFSET_DATA, last, &offset, extent.len().as_usize())?;
        self.timed(|| self.outbox.file_message(self.socket, &head[..head_len], body, scratch))
    }

    /// Zeroes that need not be sent; only in chunks, shorter than 4 GiB.
    pub fn hole(&self, extent: Extent, last: bool) -> io::Result<()> {
        let len = u32::try_from(extent.len().get()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fields = [0; 12];
        fields[0..8].copy_from_slice(&extent.start().get().to_be_bytes());
        fields[8..12].copy_from_slice(&len.to_be_bytes());
        self.chunk(chunk::OFFSET_HOLE, last, &fields, &[])
    }

    /// What one context says, at least one run; the first one only where `one`.
    pub fn block_status(&self, context: u32, runs: &[MetadataRun], one: bool, last: bool) -> io::Result<()> {
        let runs = &runs[..runs.len().min(if one { 1 } else { DESCRIPTORS_MAX })];
        let mut body = Vec::with_capacity(16 * runs.len());
        if self.headers == Headers::Extended {
            for run in runs {
                body.extend_from_slice(&run.extent.len().get().to_be_bytes());
                body.extend_from_slice(&u64::from(run.flags).to_be_bytes());
            }
            let count = u32::try_from(runs.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            let mut fields = [0; 8];
            fields[..4].copy_from_slice(&context.to_be_bytes());
            fields[4..].copy_from_slice(&count.to_be_bytes());
            return self.chunk(chunk::BLOCK_STATUS_EXT, last, &fields, &body);
        }
        for run in runs {
            let len = u32::try_from(run.extent.len().get()).map_err(|_| io::ErrorKind::InvalidInput)?;
            body.extend_from_slice(&len.to_be_bytes());
            body.extend_from_slice(&run.flags.to_be_bytes());
        }
        self.chunk(chunk::BLOCK_STATUS, last, &context.to_be_bytes(), &body)
    }
}

/// The fields that open an error chunk, and as much of the message as the protocol has room for.
fn error_fields(error: NbdError, message: &str) -> ([u8; 6], &[u8]) {
    let mut end = message.len().min(STRING_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let mut fields = [0; 6];
    fields[0..4].copy_from_slice(&error.code().to_be_bytes());
    fields[4..6].copy_from_slice(&u16::try_from(end).unwrap_or(0).to_be_bytes());
    (fields, &message.as_bytes()[..end])
}
