//! A write's payload put where the volume wants it, by the kernel.
//!
//! ext4 keeps a file that was written at length in large folios, and walks all buffers of one at each small `pwrite`: 9 to
//! 40 us. A system call that writes to the file's mapping instead does not (docs/design/0020-landing.md). The request's
//! bytes are in this process already, so they go through a file in memory, from which one `pread` fills the place.

use blocks::{Arrived, Place};
use rustix::fs::MemfdFlags;
use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Longer payloads are written as they are: another copy of them costs more than it saves.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 10;

thread_local! {
    /// What the payloads of this thread go through; `None` where there can be no such file.
    static MEMORY: OnceCell<Option<File>> = const { OnceCell::new() };
}

/// The bytes of one request.
pub(crate) struct Payload<'a> {
    left: &'a [u8],
}

impl<'a> Payload<'a> {
    /// At most [`PAYLOAD_BYTES_MAX`] bytes.
    pub(crate) fn new(bytes: &'a [u8]) -> Payload<'a> {
        Payload { left: bytes }
    }
}

impl Arrived for Payload<'_> {
    fn put(&mut self, place: Place<'_>) -> io::Result<usize> {
        let len = place.len().min(self.left.len());
        let count = MEMORY.with(|memory| match memory.get_or_init(open) {
            Some(memory) => {
                // No memory for it is no fault of the place's: then it goes the usual way.
                memory.write_all_at(&self.left[..len], 0).map_err(|_| no_way())?;
                // SAFETY: the kernel writes to the place, which is there for that, not more than it has.
                let count = unsafe { libc::pread(memory.as_raw_fd(), place.address().cast(), len, 0) };
                usize::try_from(count).map_err(|_| io::Error::last_os_error())
            }
            None => Err(no_way()),
        })?;
        self.left = &self.left[count..];
        Ok(count)
    }
}

/// As if the place could not be written.
fn no_way() -> io::Error {
    io::Error::from_raw_os_error(libc::EFAULT)
}

fn open() -> Option<File> {
    rustix::fs::memfd_create("understudy-payload", MemfdFlags::CLOEXEC).ok().map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_put_piece_by_piece_and_not_twice() {
        let bytes: Vec<u8> = (0..PAYLOAD_BYTES_MAX).map(|at| (at % 251) as u8).collect();
        let mut payload = Payload::new(&bytes);
        let mut found = vec![0; bytes.len()];
        let (first, rest) = found.split_at_mut(4096);
        assert_eq!(payload.put(Place::over(first)).unwrap(), 4096);
        assert_eq!(payload.put(Place::over(rest)).unwrap(), bytes.len() - 4096);
        assert_eq!(found, bytes);
        let none = payload.put(Place::over(&mut found)).unwrap();
        assert_eq!(none, 0, "there is nothing left");
    }
}
