//! The receiving half of a connection: requests and payloads out of a stream, few system calls each.
//!
//! A read takes whatever has arrived, so that a client with many small requests in flight costs one system call for
//! several of them; the rest of a large payload goes straight to where it is wanted.

use crate::look::{Look, Waiting, for_a_moment};
use crate::patience::{Patience, Underway};
use crate::request::{Headers, Request};
use crate::socket::Socket;
use blocks::{ByteLen, Place, SECTOR_BYTES};
use std::io::{self, IoSliceMut};
use std::time::{Duration, Instant};

/// How often a quiet connection looks up whether it should end. The socket's read timeout.
pub const TICK: Duration = Duration::from_millis(500);
const BUFFER_BYTES: usize = 256 << 10;
/// After a long payload another is expected: then only so much is received ahead, and the rest where it is wanted.
const WINDOW_BYTES_MIN: usize = 4 << 10;
const LONG_BYTES: usize = 64 << 10;
const HEADER_BYTES_MAX: usize = Request::EXTENDED_BYTES;

/// What came of waiting for a request.
#[derive(Debug)]
pub enum NextHeader {
    /// Its header, followed by zeroes.
    Here([u8; HEADER_BYTES_MAX]),
    /// Nothing has arrived, and it is crowded.
    Later,
    /// The client has left between requests, or whoever was asked did not want to wait any longer.
    Never,
}

/// Bytes that have arrived and are not consumed.
#[derive(Debug)]
pub struct Receiver {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// How much is received ahead.
    window: usize,
    header_bytes: usize,
    /// Payloads are left where they arrive.
    lands: bool,
    /// So many bytes at least are there to be received.
    arrived: usize,
    patience: Patience,
    look: Look,
    /// Nothing further is read: the client has left, said goodbye, or is out of step.
    pub ended: bool,
}

impl Receiver {
    /// Nothing arrived yet. A message that takes too long is an error.
    pub fn new(patience: Patience, headers: Headers) -> Receiver {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Receiver {
            buffer,
            start: 0,
            end: 0,
            window: BUFFER_BYTES,
            header_bytes: headers.request_bytes(),
            lands: false,
            arrived: 0,
            patience,
            look: Look::default(),
            ended: false,
        }
    }

    /// Whether the next request has arrived whole, so that receiving it will not wait.
    pub fn holds_request(&mut self, socket: &Socket, headers: Headers) -> bool {
        let held = &self.buffer[self.start..self.end];
        let Some(request) = Request::decode(headers, held) else { return false };
        let held_of_payload = held.len() - headers.request_bytes();
        let Some(missing) = request.payload_len(headers).get().checked_sub(held_of_payload as u64) else {
            return true;
        };
        // Only where payloads land is one left where it has arrived.
        missing == 0
            || (self.lands
                && self.arrived(socket, ByteLen::new(missing)).is_ok_and(|arrived| arrived.get() == missing))
    }

    /// How long the range of the next request is, where its header is held.
    pub fn held_request_len(&self, headers: Headers) -> Option<ByteLen> {
        Request::decode(headers, &self.buffer[self.start..self.end]).map(|request| request.len)
    }

    /// Whether all that was received is consumed.
    pub fn holds_nothing(&self) -> bool {
        self.start == self.end
    }

    /// Whether the next payload is to be left where it arrives: then only a header is received ahead.
    pub fn expect_landing(&mut self, expected: bool) {
        self.lands = expected;
    }

    /// A payload of that length begins.
    pub fn underway(&self, len: ByteLen) -> Underway {
        self.patience.message(len.get())
    }

    /// How many of the next `wanted` bytes can be received without waiting. Nothing may be held.
    pub fn arrived(&mut self, socket: &Socket, wanted: ByteLen) -> io::Result<ByteLen> {
        if (self.arrived as u64) < wanted.get() {
            self.arrived = socket.arrived()?;
        }
        Ok(ByteLen::new(wanted.get().min(self.arrived as u64)))
    }

    /// The same, with a moment for a sector of them to arrive, where the client is on this machine and it is not crowded.
    pub fn arrives(&mut self, socket: &Socket, wanted: ByteLen) -> io::Result<ByteLen> {
        let enough = ByteLen::new(wanted.get().min(SECTOR_BYTES));
        let arrived = self.arrived(socket, wanted)?;
        if arrived >= enough || !socket.is_local() || self.look.is_crowded() {
            return Ok(arrived);
        }
        let looked = for_a_moment(|| match self.arrived(socket, wanted) {
            Ok(arrived) if arrived < enough => Err(io::ErrorKind::WouldBlock.into()),
            outcome => outcome,
        });
        looked.unwrap_or(Ok(arrived))
    }

    /// Receives into the place what has arrived, and behind the last of a payload the next header. Nothing may be held.
    pub fn land(&mut self, socket: &Socket, place: &Place<'_>, is_last: bool) -> io::Result<usize> {
        let ahead = if is_last { self.header_bytes } else { 0 };
        let count = loop {
            match socket.receive_at(place, &mut self.buffer[..ahead]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received?,
            }
        };
        self.arrived = self.arrived.saturating_sub(count);
        let landed = count.min(place.len());
        (self.start, self.end) = (0, count - landed);
        Ok(landed)
    }

    /// The next request's header. `keep_waiting` is asked at each [`TICK`]; with `parks` nobody waits in a crowd.
    pub fn header(
        &mut self,
        socket: &Socket,
        headers: Headers,
        parks: bool,
        mut keep_waiting: impl FnMut() -> bool,
    ) -> io::Result<NextHeader> {
        while self.start == self.end {
            (self.start, self.end) = (0, 0);
            let window = self.window_for_headers();
            let mut buffers = [IoSliceMut::new(&mut self.buffer[..window])];
            let receive = |waiting| socket.receive(&mut buffers, waiting);
            let received = match parks {
                true => self.look.receive_unless_crowded(receive),
                false => self.look.receive(receive).map(Some),
            };
            match received {
                Ok(Some(0)) => return Ok(NextHeader::Never),
                Ok(Some(count)) => self.take_in(count),
                Ok(None) => return Ok(NextHeader::Later),
                Err(error) if is_timeout(&error) => {
                    if !keep_waiting() {
                        return Ok(NextHeader::Never);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut header = [0; HEADER_BYTES_MAX];
        self.exact(socket, &mut header[..headers.request_bytes()])?;
        Ok(NextHeader::Here(header))
    }

    fn window_for_headers(&self) -> usize {
        if self.lands { self.header_bytes } else { self.window }
    }

    fn take_in(&mut self, count: usize) {
        self.end += count;
        self.arrived = self.arrived.saturating_sub(count);
    }

    /// Receives what has arrived behind what is held, without waiting; `true` where nothing has, and something may yet. Only
    /// where [`Socket::takes_files`].
    pub fn top_up(&mut self, socket: &Socket) -> io::Result<bool> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let window = self.window_for_headers();
        if self.end >= window {
            return Ok(false);
        }
        let mut buffers = [IoSliceMut::new(&mut self.buffer[self.end..window])];
        match socket.receive(&mut buffers, Waiting::Never) {
            Ok(count) => {
                self.take_in(count);
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether this connection is one of more that have something to do than there are cores.
    pub fn is_crowded(&mut self) -> bool {
        self.look.is_crowded()
    }

    /// Fills `wanted`.
    pub fn exact(&mut self, socket: &Socket, wanted: &mut [u8]) -> io::Result<()> {
        // Headers say nothing about how long payloads are.
        if wanted.len() > HEADER_BYTES_MAX {
            self.window = if wanted.len() >= LONG_BYTES { WINDOW_BYTES_MIN } else { BUFFER_BYTES };
        }
        let ahead_bytes = match (self.lands, wanted.len() > HEADER_BYTES_MAX) {
            (false, _) => self.window,
            (true, true) => self.header_bytes,
            (true, false) => 0,
        };
        self.fill(socket, wanted, ahead_bytes)
    }

    /// Waits until so many bytes of a payload have arrived and holds them, and no more. Nothing may be held, and the buffer
    /// must have room for them.
    pub fn hold(&mut self, socket: &Socket, count: ByteLen) -> io::Result<&[u8]> {
        let mut buffer = std::mem::take(&mut self.buffer);
        (self.start, self.end) = (0, 0);
        let filled = self.fill(socket, &mut buffer[..count.as_usize()], 0);
        self.buffer = buffer;
        filled?;
        (self.start, self.end) = (0, count.as_usize());
        Ok(&self.buffer[..count.as_usize()])
    }

    /// Forgets what is held.
    pub fn consume(&mut self) {
        self.start = self.end;
    }

    fn fill(&mut self, socket: &Socket, wanted: &mut [u8], ahead_bytes: usize) -> io::Result<()> {
        let ready = wanted.len().min(self.end - self.start);
        wanted[..ready].copy_from_slice(&self.buffer[self.start..self.start + ready]);
        self.start += ready;
        let mut wanted = &mut wanted[ready..];
        let mut last_progress = None;
        let mut underway = self.patience.message(wanted.len() as u64);
        while !wanted.is_empty() {
            let wanted_len = wanted.len();
            let ahead = &mut self.buffer[..ahead_bytes];
            let mut buffers = [IoSliceMut::new(wanted), IoSliceMut::new(ahead)];
            match self.look.receive(|waiting| socket.receive(&mut buffers, waiting)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    last_progress = None;
                    self.arrived = self.arrived.saturating_sub(count);
                    (self.start, self.end) = (0, count.saturating_sub(wanted_len));
                    wanted = &mut wanted[count.min(wanted_len)..];
                    if !wanted.is_empty() {
                        underway.goes_on()?;
                    }
                }
                Err(error) if is_timeout(&error) => {
                    if last_progress.get_or_insert_with(Instant::now).elapsed() >= self.patience.stall {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads `count` bytes and forgets them, so that the stream stays in step.
    pub fn skip(&mut self, socket: &Socket, mut count: u64) -> io::Result<()> {
        let mut waste = [0; 16 << 10];
        while count > 0 {
            let step = count.min(waste.len() as u64);
            self.exact(socket, &mut waste[..step as usize])?;
            count -= step;
        }
        Ok(())
    }
}

/// Whether a read or write gave up because of the socket's timeout.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
