//! FIFREEZE and FITHAW.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOWR('X', 119, int)`.
const FIFREEZE: libc::Ioctl = 0xC004_5877_u32 as libc::Ioctl;
/// `_IOWR('X', 120, int)`.
const FITHAW: libc::Ioctl = 0xC004_5878_u32 as libc::Ioctl;

/// Writes everything of this file's file system out and stops all writers. Blocks as long as that takes, whatever
/// signal comes. `EBUSY`: frozen already; `EOPNOTSUPP`: cannot be frozen.
pub(crate) fn freeze(file: &File) -> io::Result<()> {
    // SAFETY: the request takes no memory of ours.
    match unsafe { libc::ioctl(file.as_raw_fd(), FIFREEZE, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets the writers go on. `EINVAL`: it was not frozen. Blocks while a freeze of it has not returned.
pub(crate) fn thaw(file: &File) -> io::Result<()> {
    // SAFETY: the request takes no memory of ours.
    match unsafe { libc::ioctl(file.as_raw_fd(), FITHAW, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
