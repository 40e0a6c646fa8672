//! Answers, as they are on the wire: simple ones, or chunks where the client has agreed to structured replies.

use crate::error_code::NbdError;
use crate::protocol::{
    BASE_ALLOCATION_ID, SIMPLE_REPLY_MAGIC, STRING_BYTES_MAX, STRUCTURED_REPLY_MAGIC, allocation_state, chunk,
};
use crate::socket::Socket;
use blocks::{Allocation, ByteOffset, Extent, ExtentStatus};
use std::io;
use std::sync::{Mutex, PoisonError};

/// The descriptors of one block-status reply at most; the client asks on from the last one's end.
const DESCRIPTORS_MAX: usize = 32 << 10;

/// Sends the answer to one request. Messages of several requests may alternate but never mix.
pub struct Reply<'a> {
    pub socket: &'a Socket,
    pub send: &'a Mutex<()>,
    pub cookie: u64,
    pub structured: bool,
}

impl Reply<'_> {
    fn message(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let _whole = self.send.lock().unwrap_or_else(PoisonError::into_inner);
        self.socket.write_all(head, body)
    }

    fn simple(&self, error: u32, body: &[u8]) -> io::Result<()> {
        let mut head = [0; 16];
        head[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        head[4..8].copy_from_slice(&error.to_be_bytes());
        head[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        self.message(&head, body)
    }

    /// The head of a chunk with up to 12 bytes of fields, and how much of the array it takes.
    fn chunk(&self, kind: u16, last: bool, fields: &[u8], body: &[u8]) -> io::Result<()> {
        let len = u32::try_from(fields.len() + body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut head = [0; 20 + 12];
        head[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        head[4..6].copy_from_slice(&(if last { chunk::FLAG_DONE } else { 0 }).to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        head[16..20].copy_from_slice(&len.to_be_bytes());
        head[20..20 + fields.len()].copy_from_slice(fields);
        self.message(&head[..20 + fields.len()], body)
    }

    /// It is done, and there is nothing to send back.
    pub fn done(&self) -> io::Result<()> {
        self.simple(0, &[])
    }

    /// An empty read is done: the one success without data that must not be a simple reply.
    pub fn nothing_read(&self) -> io::Result<()> {
        if self.structured { self.chunk(chunk::NONE, true, &[], &[]) } else { self.done() }
    }

    /// It failed; `message` is for a person and travels where the protocol has room for it.
    pub fn error(&self, error: NbdError, message: &str) -> io::Result<()> {
        if !self.structured {
            return self.simple(error.code(), &[]);
        }
        let mut end = message.len().min(STRING_BYTES_MAX);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let message = &message.as_bytes()[..end];
        let mut fields = [0; 6];
        fields[0..4].copy_from_slice(&error.code().to_be_bytes());
        let message_len = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        fields[4..6].copy_from_slice(&message_len.to_be_bytes());
        self.chunk(chunk::ERROR, true, &fields, message)
    }

    /// Bytes of the disk. Without structured replies, all that were asked for.
    pub fn data(&self, offset: ByteOffset, data: &[u8], last: bool) -> io::Result<()> {
        if self.structured {
            self.chunk(chunk::OFFSET_DATA, last, &offset.get().to_be_bytes(), data)
        } else {
            self.simple(0, data)
        }
    }

    /// Zeroes that need not be sent; only for structured replies, shorter than 4 GiB.
    pub fn hole(&self, extent: Extent, last: bool) -> io::Result<()> {
        let len = u32::try_from(extent.len().get()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fields = [0; 12];
        fields[0..8].copy_from_slice(&extent.start().get().to_be_bytes());
        fields[8..12].copy_from_slice(&len.to_be_bytes());
        self.chunk(chunk::OFFSET_HOLE, last, &fields, &[])
    }

    /// What is allocated, at least one run; the first one only where `one`.
    pub fn block_status(&self, runs: &[ExtentStatus], one: bool) -> io::Result<()> {
        let descriptors_max = if one { 1 } else { DESCRIPTORS_MAX };
        let mut body = Vec::with_capacity(8 * runs.len().min(descriptors_max));
        for run in runs.iter().take(descriptors_max) {
            let len = u32::try_from(run.extent.len().get()).map_err(|_| io::ErrorKind::InvalidInput)?;
            body.extend_from_slice(&len.to_be_bytes());
            body.extend_from_slice(&state(run.allocation).to_be_bytes());
        }
        self.chunk(chunk::BLOCK_STATUS, true, &BASE_ALLOCATION_ID.to_be_bytes(), &body)
    }
}

/// The flags of `base:allocation`.
fn state(allocation: Allocation) -> u32 {
    match allocation {
        Allocation::Data => 0,
        Allocation::Zero => allocation_state::ZERO,
        Allocation::Hole => allocation_state::HOLE | allocation_state::ZERO,
    }
}
