//! JSON in lines over a unix socket, with a deadline on every wait.

use blocks::{Error, ErrorKind, Result};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::Value;
use std::io::{ErrorKind as Io, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest line that is taken; what is asked for here has answers of a few KiB.
const LINE_BYTES_MAX: usize = 1 << 20;
const READ_BYTES: usize = 16 << 10;

/// A connection. After an error it is of no use any more.
pub(crate) struct Lines {
    stream: UnixStream,
    path: PathBuf,
    /// What was read but not taken, and how much of it has no line's end.
    buffer: Vec<u8>,
    searched: usize,
}

impl Lines {
    /// Connects without ever waiting: `NotFound` where nobody listens, `Busy` where whoever listens does not accept.
    pub fn connect(path: &Path) -> Result<Lines> {
        let context = || path.display().to_string();
        let failed = |error: rustix::io::Errno| match error {
            rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED => {
                Error::new(ErrorKind::NotFound, format!("nobody listens at {}", path.display()))
            }
            rustix::io::Errno::AGAIN => {
                Error::new(ErrorKind::Busy, format!("{} accepts no connection", path.display()))
            }
            other => Error::io(context(), other.into()),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        connect(&socket, &address).map_err(failed)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false).map_err(|error| Error::io(context(), error))?;
        Ok(Lines { stream, path: path.to_owned(), buffer: Vec::new(), searched: 0 })
    }

    /// Sends a line before `deadline`.
    pub fn send(&mut self, message: &Value, deadline: Instant) -> Result<()> {
        let mut line = message.to_string().into_bytes();
        line.push(b'\n');
        let mut rest = &line[..];
        while !rest.is_empty() {
            let left = self.left(deadline)?;
            let timed = self.stream.set_write_timeout(Some(left));
            match timed.and_then(|()| self.stream.write(rest)) {
                Ok(0) => return Err(self.ended()),
                Ok(written) => rest = &rest[written..],
                Err(error) => self.again(error)?,
            }
        }
        Ok(())
    }

    /// The next line's JSON. `Cancelled` at the deadline, `NotFound` at the end, `Corrupt` where it is no JSON or too
    /// long.
    pub fn next(&mut self, deadline: Instant) -> Result<Value> {
        loop {
            let found = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            if let Some(at) = found {
                let line: Vec<u8> = self.buffer.drain(..=self.searched + at).collect();
                self.searched = 0;
                let text = line.trim_ascii();
                if text.is_empty() {
                    continue;
                }
                let context = || format!("{} says what is no JSON", self.path.display());
                return serde_json::from_slice(text)
                    .map_err(|error| Error::with_source(ErrorKind::Corrupt, context(), error));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_BYTES_MAX {
                let context = format!("{} sends a line without an end", self.path.display());
                return Err(Error::corrupt(context));
            }
            self.fill(deadline)?;
        }
    }

    fn fill(&mut self, deadline: Instant) -> Result<()> {
        let mut bytes = [0; READ_BYTES];
        let left = self.left(deadline)?;
        let timed = self.stream.set_read_timeout(Some(left));
        match timed.and_then(|()| self.stream.read(&mut bytes)) {
            Ok(0) => Err(self.ended()),
            Ok(read) => {
                self.buffer.extend_from_slice(&bytes[..read]);
                Ok(())
            }
            Err(error) => self.again(error),
        }
    }

    /// Whether it is worth another look: the deadline is looked at next.
    fn again(&self, error: std::io::Error) -> Result<()> {
        match error.kind() {
            Io::WouldBlock | Io::TimedOut | Io::Interrupted => Ok(()),
            Io::ConnectionReset | Io::BrokenPipe => Err(self.ended()),
            _ => Err(Error::io(self.path.display().to_string(), error)),
        }
    }

    fn left(&self, deadline: Instant) -> Result<Duration> {
        let left = deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => {
                let context = format!("{} did not answer in time", self.path.display());
                Err(Error::new(ErrorKind::Cancelled, context))
            }
            false => Ok(left),
        }
    }

    fn ended(&self) -> Error {
        Error::new(ErrorKind::NotFound, format!("{} has closed the connection", self.path.display()))
    }
}
