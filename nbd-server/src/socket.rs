//! A connected stream, TCP or unix.

#[cfg(any(test, feature = "fuzzing"))]
use crate::memory_stream::MemoryStream;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A connection that several threads may use at once: one reads, one writes.
#[derive(Debug)]
pub enum Socket {
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
        match $socket {
            Socket::Tcp($stream) => $call,
            Socket::Unix($stream) => $call,
            #[cfg(any(test, feature = "fuzzing"))]
            Socket::Memory($stream) => $call,
        }
    };
}

impl Socket {
    /// The stream with small messages sent at once and dead peers noticed.
    pub fn tcp(stream: TcpStream) -> io::Result<Socket> {
        stream.set_nodelay(true)?;
        rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
        Ok(Socket::Tcp(stream))
    }

    /// The unix stream.
    pub fn unix(stream: UnixStream) -> Socket {
        Socket::Unix(stream)
    }

    /// What is there, up to the buffer's length; 0 at the end.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        on_stream!(self, stream => (&mut &*stream).read(buffer))
    }

    /// The same into two buffers, the first one first.
    pub fn read_vectored(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        on_stream!(self, stream => (&mut &*stream).read_vectored(buffers))
    }

    /// Fails a read that waits longer with `WouldBlock`. Not zero.
    pub fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        on_stream!(self, stream => stream.set_read_timeout(Some(timeout)))
    }

    /// Fails a write that waits longer with `WouldBlock`. Not zero.
    pub fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        on_stream!(self, stream => stream.set_write_timeout(Some(timeout)))
    }

    /// Ends reading, writing or both; whoever waits for it wakes up.
    pub fn shutdown(&self, how: Shutdown) {
        // A stream that the other side has closed already cannot be shut down, and need not be.
        let _ = on_stream!(self, stream => stream.shutdown(how));
    }

    /// Sends all of the head and then all of the body.
    pub fn write_all(&self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let mut buffers = [IoSlice::new(head), IoSlice::new(body)];
        let mut left = &mut buffers[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match on_stream!(self, stream => (&mut &*stream).write_vectored(left)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => IoSlice::advance_slices(&mut left, sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
