//! One connection of the client in the transmission phase: one request at a time.

use super::connect::Offer;
use crate::error_code::NbdError;
use crate::fields::Fields;
use crate::protocol::{SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, allocation_state, chunk};
use crate::request::{Command, Request};
use crate::socket::Socket;
use crate::tls::Tls;
use blocks::{Allocation, BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentStatus, Result};
use std::time::Duration;

/// The longest chunk that is not data: a message, or descriptors (2^20 of them at most, says the specification).
const SMALL_CHUNK_BYTES_MAX: u32 = 8 << 20 | 4;

/// A connection. Once a message has been cut short or made no sense it is out of step and must not be used again.
pub struct Link {
    socket: Socket,
    structured_replies: bool,
    base_allocation_id: u32,
    cookie: u64,
    in_step: bool,
}

/// The head of a chunk that belongs to the request at hand.
struct Chunk {
    kind: u16,
    last: bool,
    len: u32,
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Io, format!("the server's reply makes no sense: {what}"))
}

fn refused(error: u32, message: &[u8]) -> Error {
    let error = NbdError::from_code(error);
    Error::new(error.kind(), format!("the server says {} {}", error.name(), String::from_utf8_lossy(message)))
}

impl Link {
    /// A connection before its handshake.
    pub fn new(socket: Socket) -> Link {
        Link { socket, structured_replies: false, base_allocation_id: 0, cookie: 0, in_step: true }
    }

    /// Goes by what was agreed on; a server that is silent for `silence` has failed.
    pub fn agree(&mut self, offer: &Offer, silence: Duration) -> Result<()> {
        self.structured_replies = offer.structured_replies;
        self.base_allocation_id = offer.base_allocation_id;
        let timeouts =
            self.socket.set_read_timeout(silence).and_then(|()| self.socket.set_write_timeout(silence));
        timeouts.map_err(|error| Error::io("cannot set timeouts", error))
    }

    /// Encrypts everything from here on. The other side has agreed to it.
    pub fn start_tls(&mut self, mut tls: Tls) -> Result<()> {
        loop {
            match self.socket.shake_hands(tls) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(unfinished)) => tls = unfinished,
                Err(error) => return Err(self.lost(error).context("the encryption cannot be agreed on")),
            }
        }
    }

    /// Whether another request may be sent.
    pub fn is_in_step(&self) -> bool {
        self.in_step
    }

    /// Fills the buffer from the stream.
    pub fn exact(&mut self, mut wanted: &mut [u8]) -> Result<()> {
        while !wanted.is_empty() {
            let outcome = match self.socket.read(wanted) {
                Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    wanted = &mut wanted[count..];
                    continue;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            return outcome.map_err(|error| self.lost(error));
        }
        Ok(())
    }

    /// Sends both parts whole.
    pub fn send(&mut self, head: &[u8], body: &[u8]) -> Result<()> {
        self.socket.write_all(head, body).map_err(|error| self.lost(error))
    }

    fn lost(&mut self, error: std::io::Error) -> Error {
        self.in_step = false;
        if crate::receiver::is_timeout(&error) {
            return Error::new(ErrorKind::Cancelled, "the server has not answered in time");
        }
        Error::io("the connection is lost", error)
    }

    fn request(
        &mut self,
        command: Command,
        flags: u16,
        offset: ByteOffset,
        len: ByteLen,
        payload: &[u8],
    ) -> Result<()> {
        self.cookie += 1;
        let request = Request { flags, command, cookie: self.cookie, offset, len };
        self.send(&request.encode(), payload)
    }

    /// Anything without data in either direction.
    pub fn simple(&mut self, command: Command, flags: u16, offset: ByteOffset, len: ByteLen) -> Result<()> {
        self.request(command, flags, offset, len, &[])?;
        self.acknowledged()
    }

    /// Writes the buffer.
    pub fn write(&mut self, flags: u16, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.request(Command::Write, flags, offset, ByteLen::of(data), data)?;
        self.acknowledged()
    }

    /// Fills the buffer from the disk.
    pub fn read(&mut self, offset: ByteOffset, buffer: &mut [u8]) -> Result<()> {
        let Ok(extent) = Extent::new(offset, ByteLen::of(buffer)) else { return Ok(()) };
        self.request(Command::Read, 0, offset, extent.len(), &[])?;
        if self.structured_replies {
            let outcome = self.read_chunks(extent, buffer);
            return self.judge(outcome)?;
        }
        let mut head = [0; 16];
        self.exact(&mut head)?;
        let parsed = self.simple_head(&head);
        self.judge(parsed)??;
        self.exact(buffer)
    }

    /// What the range holds, from its start on; may stop early.
    pub fn block_status(&mut self, extent: Extent, shift: BlockShift) -> Result<Vec<ExtentStatus>> {
        self.request(Command::BlockStatus, 0, extent.start(), extent.len(), &[])?;
        let outcome = self.status_chunks();
        let descriptors = self.judge(outcome)??;
        runs(&descriptors, extent, shift).ok_or_else(|| {
            self.in_step = false;
            malformed("a block status that describes nothing")
        })
    }

    /// Notes that the stream is out of step where a reply made no sense (the outer error).
    fn judge<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() {
            self.in_step = false;
        }
        outcome
    }

    /// The inner result is the server's word, the outer one whether there was any.
    fn simple_head(&self, head: &[u8; 16]) -> Result<Result<()>> {
        let mut fields = Fields::new(head);
        let (magic, error, cookie) = (fields.u32(), fields.u32(), fields.u64());
        if magic != Some(SIMPLE_REPLY_MAGIC) || cookie != Some(self.cookie) {
            return Err(malformed("neither magic nor cookie fit"));
        }
        Ok(match error {
            Some(0) => Ok(()),
            error => Err(refused(error.unwrap_or(0), b"")),
        })
    }

    /// Reads the reply to a request without data, simple or structured.
    fn acknowledged(&mut self) -> Result<()> {
        let mut magic = [0; 4];
        self.exact(&mut magic)?;
        if u32::from_be_bytes(magic) == SIMPLE_REPLY_MAGIC {
            let mut head = [0; 16];
            head[..4].copy_from_slice(&magic);
            self.exact(&mut head[4..])?;
            let parsed = self.simple_head(&head);
            return self.judge(parsed)?;
        }
        let outcome =
            self.chunks_from(magic, |_, chunk| Err(malformed(&format!("a chunk of type {}", chunk.kind))));
        self.judge(outcome)?
    }

    fn read_chunks(&mut self, extent: Extent, buffer: &mut [u8]) -> Result<Result<()>> {
        let mut filled = 0;
        let mut magic = [0; 4];
        self.exact(&mut magic)?;
        let outcome = self.chunks_from(magic, |link, chunk| {
            let mut head = [0; 12];
            let fields_len = if chunk.kind == chunk::OFFSET_HOLE { 12 } else { 8 };
            let data_len = chunk.len.checked_sub(fields_len).ok_or_else(|| malformed("a chunk too short"))?;
            link.exact(&mut head[..fields_len as usize])?;
            let mut fields = Fields::new(&head);
            let offset = ByteOffset::new(fields.u64().unwrap_or(u64::MAX));
            let len = match chunk.kind {
                chunk::OFFSET_DATA => data_len,
                chunk::OFFSET_HOLE if data_len == 0 => fields.u32().unwrap_or(0),
                _ => return Err(malformed("a chunk of an unknown type")),
            };
            let part = Extent::new(offset, ByteLen::new(u64::from(len)))
                .ok()
                .filter(|part| extent.contains(*part))
                .ok_or_else(|| malformed("a chunk outside of the request"))?;
            let start = (part.start() - extent.start()).as_usize();
            let target = &mut buffer[start..start + part.len().as_usize()];
            filled += part.len().get();
            if chunk.kind == chunk::OFFSET_HOLE {
                target.fill(0);
                Ok(())
            } else {
                link.exact(target)
            }
        })?;
        if outcome.is_ok() && filled != extent.len().get() {
            return Err(malformed("chunks that do not cover the request"));
        }
        Ok(outcome)
    }

    /// The descriptors of `base:allocation`, as they came.
    fn status_chunks(&mut self) -> Result<Result<Vec<u8>>> {
        let mut descriptors = Vec::new();
        let mut magic = [0; 4];
        self.exact(&mut magic)?;
        let wanted = self.base_allocation_id;
        let outcome = self.chunks_from(magic, |link, chunk| {
            let whole = chunk.len >= 12 && chunk.len % 8 == 4 && chunk.len <= SMALL_CHUNK_BYTES_MAX;
            if chunk.kind != chunk::BLOCK_STATUS || !whole {
                return Err(malformed("not a block status"));
            }
            let mut id = [0; 4];
            link.exact(&mut id)?;
            let mut found = vec![0; chunk.len as usize - 4];
            link.exact(&mut found)?;
            if u32::from_be_bytes(id) == wanted {
                descriptors = found;
            }
            Ok(())
        })?;
        Ok(outcome.map(|()| descriptors))
    }

    /// Reads a structured reply whose magic has been read, up to its last chunk; `content` reads the chunks that are
    /// neither empty nor errors. The inner error is what the server reported.
    fn chunks_from(
        &mut self,
        mut magic: [u8; 4],
        mut content: impl FnMut(&mut Link, &Chunk) -> Result<()>,
    ) -> Result<Result<()>> {
        let mut outcome = Ok(());
        loop {
            let chunk = self.chunk_head(magic)?;
            match chunk.kind {
                chunk::NONE if chunk.len == 0 => {}
                kind if kind & chunk::ERROR_BIT != 0 => {
                    let error = self.chunk_error(&chunk)?;
                    outcome = outcome.and(Err(error));
                }
                _ => content(self, &chunk)?,
            }
            if chunk.last {
                return Ok(outcome);
            }
            self.exact(&mut magic)?;
        }
    }

    fn chunk_head(&mut self, magic: [u8; 4]) -> Result<Chunk> {
        let mut head = [0; 16];
        self.exact(&mut head)?;
        let mut fields = Fields::new(&head);
        let (flags, kind, cookie, len) = (fields.u16(), fields.u16(), fields.u64(), fields.u32());
        match (flags, kind, len) {
            (Some(flags), Some(kind), Some(len))
                if u32::from_be_bytes(magic) == STRUCTURED_REPLY_MAGIC
                    && cookie == Some(self.cookie)
                    && self.structured_replies =>
            {
                Ok(Chunk { kind, last: flags & chunk::FLAG_DONE != 0, len })
            }
            _ => Err(malformed("neither magic nor cookie fit")),
        }
    }

    fn chunk_error(&mut self, chunk: &Chunk) -> Result<Error> {
        if chunk.len < 6 || chunk.len > SMALL_CHUNK_BYTES_MAX {
            return Err(malformed("an error of an impossible length"));
        }
        let mut data = vec![0; chunk.len as usize];
        self.exact(&mut data)?;
        let mut fields = Fields::new(&data);
        let (error, message_len) = (fields.u32().unwrap_or(0), fields.u16().unwrap_or(0));
        let message =
            fields.bytes(usize::from(message_len)).ok_or_else(|| malformed("an error cut short"))?;
        Ok(refused(error, message))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.in_step && self.cookie > 0 {
            // The server closes when the connection does, goodbye or not.
            let _ = self.request(Command::Disconnect, 0, ByteOffset::ZERO, ByteLen::ZERO, &[]);
        }
    }
}

/// Descriptors as runs within `extent`: neighbours joined, ends on whole blocks. `None` where nothing is left.
fn runs(descriptors: &[u8], extent: Extent, shift: BlockShift) -> Option<Vec<ExtentStatus>> {
    let mut runs: Vec<ExtentStatus> = Vec::new();
    let mut push = |part: Option<Extent>, allocation: Allocation| {
        let Some(part) = part else { return };
        match runs.last_mut() {
            Some(last) if last.allocation == allocation => {
                last.extent = Extent::between(last.extent.start(), part.end()).unwrap_or(part);
            }
            _ => runs.push(ExtentStatus { extent: part, allocation }),
        }
    };
    let mut fields = Fields::new(descriptors);
    let mut at = extent.start();
    while let (Some(len), Some(flags)) = (fields.u32(), fields.u32()) {
        let end = at.checked_add(ByteLen::new(u64::from(len)))?.min(extent.end());
        let whole_end = end.align_down(shift);
        push(Extent::between(at, whole_end), allocation(flags));
        if end != whole_end {
            // A server may describe single bytes. A block that is not all one thing is data, and is asked from again.
            push(Extent::between(whole_end, end.align_up(shift)), Allocation::Data);
            break;
        }
        at = end;
    }
    (!runs.is_empty()).then_some(runs)
}

fn allocation(flags: u32) -> Allocation {
    match (flags & allocation_state::ZERO != 0, flags & allocation_state::HOLE != 0) {
        (true, true) => Allocation::Hole,
        (true, false) => Allocation::Zero,
        (false, _) => Allocation::Data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(descriptors: &[(u32, u32)], start: u64, len: u64) -> Option<Vec<(u64, Allocation)>> {
        let bytes: Vec<u8> = descriptors
            .iter()
            .flat_map(|(len, flags)| [len.to_be_bytes(), flags.to_be_bytes()].concat())
            .collect();
        let extent = Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap();
        let found = runs(&bytes, extent, BlockShift::SECTOR)?;
        assert_eq!(found[0].extent.start(), extent.start());
        assert!(found.windows(2).all(|pair| pair[0].extent.end() == pair[1].extent.start()));
        Some(found.iter().map(|run| (run.extent.len().get(), run.allocation)).collect())
    }

    #[test]
    fn descriptors_become_runs_of_whole_blocks() {
        use Allocation::{Data, Hole, Zero};
        assert_eq!(
            status(&[(512, 0), (512, 0), (1024, 3)], 512, 2048),
            Some(vec![(1024, Data), (1024, Hole)])
        );
        assert_eq!(status(&[(1 << 20, 2)], 0, 4096), Some(vec![(4096, Zero)]));
        assert_eq!(status(&[(700, 3), (4000, 0)], 0, 4096), Some(vec![(512, Hole), (512, Data)]));
        assert_eq!(status(&[(100, 3)], 0, 4096), Some(vec![(512, Data)]));
        assert_eq!(status(&[], 0, 4096), None);
        assert_eq!(status(&[(0, 3)], 0, 4096), None);
    }
}
