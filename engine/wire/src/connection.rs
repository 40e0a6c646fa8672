//! Messages over a stream of bytes.

use crate::frame::{Header, VERSION, VERSION_PACKED, encode_head};
use crate::packing::Packer;
use crate::{AgentMessage, HEADER_BYTES, Message, ServerMessage, codec};
use blocks::{ByteLen, Compression, Error, ErrorKind, Result};
use std::fmt;
use std::io::IoSlice;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

/// An agent's connection: it says [`AgentMessage`]s and hears [`ServerMessage`]s.
pub type AgentConnection = Connection<AgentMessage, ServerMessage>;
/// A server's connection: it says [`ServerMessage`]s and hears [`AgentMessage`]s.
pub type ServerConnection = Connection<ServerMessage, AgentMessage>;

type Reader = Box<dyn AsyncRead + Send + Sync + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// Small messages are read several at a time; payloads larger than this go straight to where they stay.
const READ_BUFFER_BYTES: usize = 8 << 10;

/// Both directions of a connection; says `S`, hears `R`.
#[derive(Debug)]
pub struct Connection<S, R> {
    sender: Sender<S>,
    receiver: Receiver<R>,
}

/// The sending half.
pub struct Sender<S> {
    writer: Writer,
    peer: String,
    timeout: Option<Duration>,
    /// Set while a frame is half written; a future that is dropped there leaves it set for good.
    torn: bool,
    version: Arc<AtomicU16>,
    packer: Packer,
    sent: u64,
    says: PhantomData<fn(S)>,
}

/// The receiving half.
pub struct Receiver<R> {
    reader: BufReader<Reader>,
    peer: String,
    timeout: Option<Duration>,
    restriction: Restriction,
    progress: Progress,
    /// What both sides understand: ours until the other side has spoken an older one.
    version: Arc<AtomicU16>,
    hears: PhantomData<fn() -> R>,
}

/// What a peer may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restriction {
    /// Everything.
    Nothing,
    /// One small kind: the peer has not shown who it is.
    Enrolment,
}

/// How much of the next frame has arrived. Kept outside the future, so that dropping it loses nothing.
///
/// `Header -> Body -> Header ...`, and `Failed` from anywhere, for good.
enum Progress {
    Header { bytes: [u8; HEADER_BYTES], filled: usize },
    Body { header: Header, fields: Vec<u8>, payload: Vec<u8>, filled: usize },
    Failed,
}

impl<S: Message, R: Message> Connection<S, R> {
    /// A connection over any stream; `peer` is for messages. Unbuffered streams are fine.
    pub fn new<T>(stream: T, peer: impl fmt::Display) -> Connection<S, R>
    where
        T: AsyncRead + AsyncWrite + Send + Sync + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let peer = peer.to_string();
        let version = Arc::new(AtomicU16::new(VERSION));
        Connection {
            sender: Sender {
                writer: Box::new(writer),
                peer: peer.clone(),
                timeout: None,
                torn: false,
                version: version.clone(),
                packer: Packer::default(),
                sent: 0,
                says: PhantomData,
            },
            receiver: Receiver {
                reader: BufReader::with_capacity(READ_BUFFER_BYTES, Box::new(reader)),
                peer,
                timeout: None,
                restriction: Restriction::Nothing,
                progress: Progress::START,
                version,
                hears: PhantomData,
            },
        }
    }

    pub(crate) fn restrict(&mut self, restriction: Restriction) {
        self.receiver.restriction = restriction;
    }

    /// Who is on the other side, for messages.
    pub fn peer(&self) -> &str {
        &self.sender.peer
    }

    /// The two halves, for two tasks.
    pub fn split(self) -> (Sender<S>, Receiver<R>) {
        (self.sender, self.receiver)
    }

    /// See [`Sender::send`].
    pub async fn send(&mut self, message: &S) -> Result<()> {
        self.sender.send(message).await
    }

    /// See [`Receiver::recv`].
    pub async fn recv(&mut self) -> Result<Option<R>> {
        self.receiver.recv().await
    }

    /// See [`Sender::close`].
    pub async fn close(&mut self) -> Result<()> {
        self.sender.close().await
    }

    /// See [`Receiver::set_idle_timeout`].
    pub fn set_idle_timeout(&mut self, timeout: Option<Duration>) {
        self.receiver.set_idle_timeout(timeout);
    }

    /// See [`Sender::set_write_timeout`].
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.sender.set_write_timeout(timeout);
    }
}

impl<S: Message> Sender<S> {
    /// Sends one message: with the operating system when it returns. Waits while the other side does not read.
    ///
    /// Must not be dropped before it is done: a half frame would be on its way, so every later send fails. Errors:
    /// `InvalidInput` for a message that breaks its own rules (nothing was sent, the connection goes on);
    /// `Cancelled` after the write timeout; `Io`.
    pub async fn send(&mut self, message: &S) -> Result<()> {
        self.send_all(std::slice::from_ref(message)).await
    }

    /// Sends messages together, in this order: many small ones cost one system call. As [`Sender::send`]; where one of them
    /// breaks its own rules, none was sent.
    pub async fn send_all(&mut self, messages: &[S]) -> Result<()> {
        let version = self.version.load(Ordering::Relaxed);
        let mut frames = Vec::with_capacity(messages.len());
        for message in messages {
            let packed = if version >= VERSION_PACKED { self.packer.pack(message.payload()) } else { None };
            frames.push((encode_head(version, message, packed.as_deref())?, packed));
        }
        if self.torn {
            let context =
                format!("the connection to {} ended in the middle of an earlier message", self.peer);
            return Err(Error::new(ErrorKind::Io, context));
        }
        self.torn = true;
        let mut parts = Vec::with_capacity(2 * frames.len());
        for ((head, packed), message) in frames.iter().zip(messages) {
            let payload = packed.as_deref().unwrap_or(message.payload());
            parts.extend([&head[..], payload].into_iter().filter(|part| !part.is_empty()).map(IoSlice::new));
        }
        let bytes = parts.iter().map(|part| part.len()).sum();
        let begun = Instant::now();
        self.write(&mut parts).await?;
        let flushed = bounded(self.timeout, self.writer.flush()).await;
        flushed.map_err(|error| stalled(format_args!("sending to {}", self.peer), self.timeout, error))?;
        self.packer.note_sent(bytes, begun.elapsed());
        self.sent += bytes as u64;
        self.torn = false;
        Ok(())
    }

    /// How many bytes have been sent, as they travelled.
    pub fn sent(&self) -> ByteLen {
        ByteLen::new(self.sent)
    }

    /// What was sent is followed by a pause of that length, because less is allowed than the line would carry: to `Auto` that
    /// is time which the line takes.
    pub fn note_pause(&mut self, pause: Duration) {
        self.packer.note_sent(0, pause);
    }

    /// Whether payloads are packed, where the other side understands that; not at all at first. `Auto` counts how long sends
    /// wait against how long packing takes.
    pub fn set_compression(&mut self, mode: Compression) {
        self.packer.mode = mode;
    }

    /// Writes the parts, none of which is empty.
    async fn write(&mut self, mut parts: &mut [IoSlice<'_>]) -> Result<()> {
        while !parts.is_empty() {
            let written = bounded(self.timeout, self.writer.write_vectored(parts)).await;
            match written
                .map_err(|error| stalled(format_args!("sending to {}", self.peer), self.timeout, error))?
            {
                0 => {
                    return Err(Error::new(ErrorKind::Io, format!("{} takes no more bytes", self.peer)));
                }
                count => IoSlice::advance_slices(&mut parts, count),
            }
        }
        Ok(())
    }

    /// How long a send may go without any byte leaving; `None`, as at first, for ever.
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Says that nothing more will be sent; the other side's [`Receiver::recv`] then returns `None`.
    pub async fn close(&mut self) -> Result<()> {
        let closed = bounded(self.timeout, self.writer.shutdown()).await;
        closed.map_err(|error| {
            stalled(format_args!("closing the connection to {}", self.peer), self.timeout, error)
        })
    }
}

impl<R: Message> Receiver<R> {
    /// The next message; `None` where the other side closed between two messages. An agent or server that is killed
    /// shows as an error over TLS and as `None` on plain connections, so neither means a goodbye.
    ///
    /// May be dropped and called again without losing anything (`select!`). Errors, all final: `Corrupt` for bytes
    /// that are no frame, `Unsupported` for a version or a kind that is not known, `Cancelled` after the idle
    /// timeout, `Io`. Memory is taken only after the announced length was found within its limit.
    pub async fn recv(&mut self) -> Result<Option<R>> {
        let received = self.receive().await;
        if received.is_err() {
            self.progress = Progress::Failed;
        }
        received.map_err(|error| error.context(format_args!("receiving from {}", self.peer)))
    }

    async fn receive(&mut self) -> Result<Option<R>> {
        loop {
            match self.progress.missing()? {
                [] => {
                    if let Some(message) = self.advance()? {
                        return Ok(Some(message));
                    }
                }
                missing => {
                    let read = bounded(self.timeout, self.reader.read(missing)).await;
                    let read = read.map_err(|error| stalled("waiting for bytes", self.timeout, error))?;
                    match (read, self.progress.is_between_frames()) {
                        (0, true) => return Ok(None),
                        (0, false) => {
                            return Err(Error::new(ErrorKind::Io, "the connection ended within a message"));
                        }
                        (count, _) => self.progress.filled(count),
                    }
                }
            }
        }
    }

    /// Goes on from a part that is complete: from a header to its body, from a body to its message.
    fn advance(&mut self) -> Result<Option<R>> {
        match std::mem::replace(&mut self.progress, Progress::START) {
            Progress::Header { bytes, .. } => {
                let header = Header::decode(&bytes)?;
                self.version.fetch_min(header.version, Ordering::Relaxed);
                R::check_kind(header.kind)?;
                self.restriction.check(&header)?;
                self.progress = Progress::Body {
                    fields: vec![0; header.fields_len()],
                    payload: vec![0; header.payload_len()],
                    header,
                    filled: 0,
                };
                Ok(None)
            }
            Progress::Body { header, fields, payload, .. } => {
                let payload = header.open_body(&fields, payload)?;
                codec::decode(header.kind, &fields, payload).map(Some)
            }
            Progress::Failed => Err(already_failed()),
        }
    }

    /// How long to wait for any byte; `None`, as at first, for ever. A peer that sends heartbeats more often than this
    /// is never timed out while it lives.
    pub fn set_idle_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }
}

impl Progress {
    const START: Progress = Progress::Header { bytes: [0; HEADER_BYTES], filled: 0 };

    /// What of the current part has not arrived; empty where it is complete.
    fn missing(&mut self) -> Result<&mut [u8]> {
        match self {
            Progress::Header { bytes, filled } => Ok(&mut bytes[*filled..]),
            Progress::Body { fields, payload, filled, .. } => match filled.checked_sub(fields.len()) {
                None => Ok(&mut fields[*filled..]),
                Some(filled) => Ok(&mut payload[filled..]),
            },
            Progress::Failed => Err(already_failed()),
        }
    }

    fn filled(&mut self, count: usize) {
        match self {
            Progress::Header { filled, .. } | Progress::Body { filled, .. } => *filled += count,
            Progress::Failed => {}
        }
    }

    fn is_between_frames(&self) -> bool {
        matches!(self, Progress::Header { filled: 0, .. })
    }
}

impl Restriction {
    /// The longest body of a peer that has not shown who it is.
    const ENROLMENT_BYTES_MAX: usize = 64 << 10;

    fn check(self, header: &Header) -> Result<()> {
        if self == Restriction::Nothing {
            return Ok(());
        }
        if header.kind != codec::KIND_ENROLL {
            let context =
                format!("kind {:#06x} from a peer without a certificate, who may only enroll", header.kind);
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        if header.fields_len() > Restriction::ENROLMENT_BYTES_MAX {
            let context = format!("an enrolment of {} bytes", header.fields_len());
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        Ok(())
    }
}

async fn bounded<T>(
    timeout: Option<Duration>,
    work: impl Future<Output = std::io::Result<T>>,
) -> std::io::Result<T> {
    match timeout {
        None => work.await,
        Some(timeout) => match tokio::time::timeout(timeout, work).await {
            Ok(result) => result,
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        },
    }
}

fn stalled(what: impl fmt::Display, timeout: Option<Duration>, error: std::io::Error) -> Error {
    match (error.kind(), timeout) {
        (std::io::ErrorKind::TimedOut, Some(timeout)) => {
            Error::io(format!("{what}: nothing moved for {timeout:?}"), error)
        }
        _ => Error::io(what.to_string(), error),
    }
}

fn already_failed() -> Error {
    Error::new(ErrorKind::Io, "the connection failed earlier")
}

impl<S> fmt::Debug for Sender<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sender(to {})", self.peer)
    }
}

impl<R> fmt::Debug for Receiver<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiver(from {})", self.peer)
    }
}
