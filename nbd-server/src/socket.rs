//! A connected stream, TCP or unix, encrypted from some moment on or not at all.

use crate::look::{Waiting, for_a_moment};
#[cfg(any(test, feature = "fuzzing"))]
use crate::memory_stream::MemoryStream;
use crate::patience::{Patience, Underway};
use crate::tls::Tls;
use blocks::{FileRange, Place};
use rustix::fs::sendfile;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, sendmsg};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

/// A client on this machine copies a file's bytes from the page cache itself, and waits for memory at each of them. Reading
/// them first, a piece of this length at a time, puts them into the cache that the processors share while it is still busy with
/// the piece before: docs/design/0020-landing.md has what that gains.
const WARMED_BYTES: usize = 64 << 10;

/// A body of this length does not fit a socket's buffer, or fills most of it: its sender waits for the client to copy, which on this
/// machine takes less time than waking whoever sleeps.
const LOOKED_FOR_BYTES_MIN: usize = 128 << 10;

/// What a unix socket holds of what was sent, as it is asked for: the kernel counts double. Two chunks of a long read, so that the
/// client copies one while the next is read; the usual 208 KiB are less than one (docs/design/0020-landing.md).
const SEND_BUFFER_BYTES: usize = 256 << 10;

/// A connection that several threads may use at once: one reads, one writes.
#[derive(Debug)]
pub struct Socket {
    stream: Stream,
    tls: OnceLock<Tls>,
    /// Whether the other side is on this machine.
    is_local: bool,
    /// With what is sent; a client's side and a handshake have none but their timeouts.
    patience: OnceLock<Patience>,
}

#[derive(Debug)]
enum Stream {
    /// Over the network.
    Tcp(TcpStream),
    /// On this machine.
    Unix(UnixStream),
    /// Nobody's: given bytes.
    #[cfg(any(test, feature = "fuzzing"))]
    Memory(MemoryStream),
}

macro_rules! on_stream {
    ($socket:expr, $stream:ident => $call:expr) => {
        match &$socket.stream {
            Stream::Tcp($stream) => $call,
            Stream::Unix($stream) => $call,
            #[cfg(any(test, feature = "fuzzing"))]
            Stream::Memory($stream) => $call,
        }
    };
}

fn send(stream: impl AsFd, bytes: &[u8], flags: SendFlags) -> io::Result<usize> {
    Ok(rustix::net::send(stream, bytes, flags)?)
}

fn receive(stream: impl AsFd, buffers: &mut [IoSliceMut<'_>], flags: RecvFlags) -> io::Result<usize> {
    Ok(rustix::net::recvmsg(stream, buffers, &mut RecvAncillaryBuffer::default(), flags)?.bytes)
}

/// Some of a message is sent and some is not.
fn go_on(underway: &mut Option<Underway>) -> io::Result<()> {
    underway.as_mut().map_or(Ok(()), Underway::goes_on)
}

impl Socket {
    /// The stream with small messages sent at once and dead peers noticed.
    pub fn tcp(stream: TcpStream) -> io::Result<Socket> {
        stream.set_nodelay(true)?;
        rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
        let is_local = stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback());
        Ok(Socket::over(Stream::Tcp(stream), is_local))
    }

    /// The unix stream, with room for what is sent.
    pub fn unix(stream: UnixStream) -> Socket {
        if let Err(error) = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES) {
            tracing::debug!("a unix socket keeps its buffer: {error}");
        }
        Socket::over(Stream::Unix(stream), true)
    }

    /// Given bytes.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn memory(stream: MemoryStream) -> Socket {
        Socket::over(Stream::Memory(stream), true)
    }

    fn over(stream: Stream, is_local: bool) -> Socket {
        Socket { stream, tls: OnceLock::new(), is_local, patience: OnceLock::new() }
    }

    /// What a fuzzed conversation has sent.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn sent(&self) -> u64 {
        match &self.stream {
            Stream::Memory(stream) => stream.sent(),
            _ => 0,
        }
    }

    /// Who is at the other end: `ADDRESS:PORT`, or `unix:pid=PID,uid=UID`.
    pub fn peer(&self) -> String {
        let found = match &self.stream {
            Stream::Tcp(stream) => stream.peer_addr().map(|address| address.to_string()),
            Stream::Unix(stream) => rustix::net::sockopt::socket_peercred(stream)
                .map(|peer| format!("unix:pid={},uid={}", peer.pid.as_raw_nonzero(), peer.uid.as_raw()))
                .map_err(io::Error::from),
            #[cfg(any(test, feature = "fuzzing"))]
            Stream::Memory(_) => Ok("memory".to_owned()),
        };
        // It has left already.
        found.unwrap_or_else(|_| "unknown".to_owned())
    }

    /// Whether the other side is on this machine.
    pub fn is_local(&self) -> bool {
        self.is_local
    }

    /// Whether what is said is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.tls.get().is_some()
    }

    /// Goes one step of the encryption's handshake, with one wait for the other side at most. Once it is done,
    /// everything that is read and written is encrypted, and the answer is `true`.
    pub fn shake_hands(&self, tls: Tls) -> io::Result<Result<(), Tls>> {
        if !on_stream!(self, stream => tls.shake_hands(stream))? {
            return Ok(Err(tls));
        }
        self.tls.set(tls).map(Ok).map_err(|_| io::ErrorKind::AlreadyExists.into())
    }

    /// The certificates that the other side has shown, its own first; none without encryption.
    pub fn peer_certificates(&self) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        self.tls.get().map(Tls::peer_certificates).unwrap_or_default()
    }

    /// What is there, up to the buffer's length; 0 at the end.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.tls.get() {
            None => on_stream!(self, stream => (&mut &*stream).read(buffer)),
            Some(tls) => on_stream!(self, stream => tls.read(stream, buffer)),
        }
    }

    /// What is there, up to the length of both buffers, the first one first; 0 at the end. Encrypted, it may always wait.
    pub fn receive(&self, buffers: &mut [IoSliceMut<'_>], waiting: Waiting) -> io::Result<usize> {
        let flags = if waiting == Waiting::Never { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
        if self.tls.get().is_none() {
            return match &self.stream {
                Stream::Tcp(stream) => receive(stream, buffers, flags),
                Stream::Unix(stream) => receive(stream, buffers, flags),
                #[cfg(any(test, feature = "fuzzing"))]
                Stream::Memory(stream) => (&mut &*stream).read_vectored(buffers),
            };
        }
        match buffers.iter_mut().find(|buffer| !buffer.is_empty()) {
            Some(buffer) => self.read(buffer),
            None => Ok(0),
        }
    }

    /// How many bytes have arrived and can be received without waiting. Only where [`Socket::takes_files`].
    pub fn arrived(&self) -> io::Result<usize> {
        let arrived = match &self.stream {
            Stream::Tcp(stream) => rustix::io::ioctl_fionread(stream)?,
            Stream::Unix(stream) => rustix::io::ioctl_fionread(stream)?,
            #[cfg(any(test, feature = "fuzzing"))]
            Stream::Memory(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(usize::try_from(arrived).unwrap_or(usize::MAX))
    }

    /// Receives into the place and then into the buffer, without waiting. `EFAULT` where nothing could be written to
    /// the place. Only where [`Socket::takes_files`].
    pub fn receive_at(&self, place: &Place<'_>, ahead: &mut [u8]) -> io::Result<usize> {
        let descriptor: RawFd = match &self.stream {
            Stream::Tcp(stream) => stream.as_raw_fd(),
            Stream::Unix(stream) => stream.as_raw_fd(),
            #[cfg(any(test, feature = "fuzzing"))]
            Stream::Memory(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        let mut parts = [
            libc::iovec { iov_base: place.address().cast(), iov_len: place.len() },
            libc::iovec { iov_base: ahead.as_mut_ptr().cast(), iov_len: ahead.len() },
        ];
        // SAFETY: a message header of zeroes has neither a name nor control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = if ahead.is_empty() { 1 } else { 2 };
        // SAFETY: the kernel writes to the place, which is there for that, and to the buffer, which is ours alone.
        let count = unsafe { libc::recvmsg(descriptor, &raw mut message, libc::MSG_DONTWAIT) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// Fails a read that waits longer with `WouldBlock`. Not zero.
    pub fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        on_stream!(self, stream => stream.set_read_timeout(Some(timeout)))
    }

    /// Fails a write that waits longer with `WouldBlock`. Not zero.
    pub fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        on_stream!(self, stream => stream.set_write_timeout(Some(timeout)))
    }

    /// Fails a write that stands still for too long with `WouldBlock`, one that drips with `TimedOut`. Once.
    pub fn set_write_patience(&self, patience: Patience) -> io::Result<()> {
        self.set_write_timeout(patience.stall)?;
        self.patience.set(patience).map_err(|_| io::ErrorKind::AlreadyExists.into())
    }

    fn underway(&self, bytes: u64) -> Option<Underway> {
        self.patience.get().map(|patience| patience.message(bytes))
    }

    /// Ends reading, writing or both; whoever waits for it wakes up.
    pub fn shutdown(&self, how: Shutdown) {
        // A stream that the other side has closed already cannot be shut down, and need not be.
        let _ = on_stream!(self, stream => stream.shutdown(how));
    }

    /// Ends the encryption in order, where there is any and nobody is sending. Nothing can be sent afterwards.
    pub fn say_goodbye(&self) {
        if let Some(tls) = self.tls.get() {
            on_stream!(self, stream => tls.close(stream));
        }
    }

    /// Whether [`Socket::write_file`] can be used.
    pub fn takes_files(&self) -> bool {
        self.tls.get().is_none() && matches!(self.stream, Stream::Tcp(_) | Stream::Unix(_))
    }

    /// The descriptor, where what is on it is what was said: to be polled, nothing else.
    pub fn plain(&self) -> Option<BorrowedFd<'_>> {
        match &self.stream {
            _ if self.is_encrypted() => None,
            Stream::Tcp(stream) => Some(stream.as_fd()),
            Stream::Unix(stream) => Some(stream.as_fd()),
            #[cfg(any(test, feature = "fuzzing"))]
            Stream::Memory(_) => None,
        }
    }

    /// Sends what a file follows.
    pub fn write_head_of_file(&self, mut head: &[u8]) -> io::Result<()> {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        while !head.is_empty() {
            let sent = match &self.stream {
                Stream::Tcp(stream) => send(stream, head, flags),
                Stream::Unix(stream) => send(stream, head, flags),
                #[cfg(any(test, feature = "fuzzing"))]
                Stream::Memory(_) => return Err(io::ErrorKind::Unsupported.into()),
            };
            match sent {
                Ok(count) => head = &head[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends `len` bytes of the file as they are. What is in `scratch` afterwards is nobody's business.
    pub fn write_file(&self, from: &FileRange, len: u64, scratch: &mut [u8]) -> io::Result<()> {
        let mut at = from.offset.get();
        let end = at + len;
        let scratch_len = scratch.len().min(WARMED_BYTES);
        let scratch = if self.is_local { &mut scratch[..scratch_len] } else { &mut [] };
        let mut warm = at;
        let mut underway = self.underway(len);
        while at < end {
            let mut count = usize::try_from(end - at).unwrap_or(usize::MAX);
            if !scratch.is_empty() {
                if warm <= at {
                    count = count.min(scratch.len());
                    // Whatever stands in the way is met again, and told, where the bytes are sent.
                    let _ = from.file.read_at(&mut scratch[..count], at);
                    warm = at + count as u64;
                }
                count = usize::try_from(warm - at).unwrap_or(count);
            }
            let sent = match &self.stream {
                Stream::Tcp(stream) => sendfile(stream, &*from.file, Some(&mut at), count),
                Stream::Unix(stream) => sendfile(stream, &*from.file, Some(&mut at), count),
                #[cfg(any(test, feature = "fuzzing"))]
                Stream::Memory(_) => return Err(io::ErrorKind::Unsupported.into()),
            };
            match sent {
                // The file has become shorter.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if at < end => go_on(&mut underway)?,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Sends as much as there is room for, or waits for room. Where it is worth a `look`, it looks for room before it sleeps.
    fn write_some(&self, buffers: &[IoSlice<'_>], look: bool) -> io::Result<usize> {
        let looked = if look && self.is_local { for_a_moment(|| self.write_now(buffers)) } else { None };
        looked.unwrap_or_else(|| on_stream!(self, stream => (&mut &*stream).write_vectored(buffers)))
    }

    /// Sends as much as there is room for; `WouldBlock` where there is none.
    fn write_now(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut nothing = SendAncillaryBuffer::default();
        Ok(match &self.stream {
            Stream::Tcp(stream) => sendmsg(stream, buffers, &mut nothing, flags)?,
            Stream::Unix(stream) => sendmsg(stream, buffers, &mut nothing, flags)?,
            #[cfg(any(test, feature = "fuzzing"))]
            Stream::Memory(stream) => (&mut &*stream).write_vectored(buffers)?,
        })
    }

    /// Sends all of the head and then all of the body.
    pub fn write_all(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        if let Some(tls) = self.tls.get() {
            let mut underway = self.underway((head.len() + body.len()) as u64);
            return on_stream!(self, stream => tls.write_all(stream, head, body, || go_on(&mut underway)));
        }
        let mut underway = self.underway((head.len() + body.len()) as u64);
        let mut buffers = [IoSlice::new(head), IoSlice::new(body)];
        let mut left = &mut buffers[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match self.write_some(left, body.len() >= LOOKED_FOR_BYTES_MIN) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    IoSlice::advance_slices(&mut left, sent);
                    if !left.is_empty() {
                        go_on(&mut underway)?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_messages_are_sent_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!client.nodelay().unwrap());
        let socket = Socket::tcp(client.try_clone().unwrap()).unwrap();
        assert!(client.nodelay().unwrap());
        assert_eq!(socket.peer(), listener.local_addr().unwrap().to_string());
    }
}
