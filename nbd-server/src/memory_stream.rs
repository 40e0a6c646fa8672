//! A stream without another side: what comes in is given, what goes out is counted and forgotten. For fuzzing.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Bytes that arrive one after the other, then the end.
#[derive(Debug)]
pub struct MemoryStream {
    input: Mutex<io::Cursor<Vec<u8>>>,
    sent: AtomicU64,
}

impl MemoryStream {
    /// A stream that brings these bytes.
    pub fn new(input: &[u8]) -> MemoryStream {
        MemoryStream { input: Mutex::new(io::Cursor::new(input.to_vec())), sent: AtomicU64::new(0) }
    }

    /// How many bytes were sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Never waits, so there is nothing to limit.
    pub fn set_read_timeout(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    /// The same.
    pub fn set_write_timeout(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    /// Nobody is there to be told.
    pub fn shutdown(&self, _: Shutdown) -> io::Result<()> {
        Ok(())
    }
}

impl Read for &MemoryStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).read(buffer)
    }
}

impl Write for &MemoryStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.sent.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
