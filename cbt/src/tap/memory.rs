//! A process that serves a disk must not wait for that disk to be written.

use blocks::{Error, ErrorKind, Result};

/// `prctl`: allocations of this thread, and of those that it starts, never wait for writing back.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Before any other thread is started: keeps what this process needs in memory, and its allocations from waiting for
/// writes that it would have to serve itself. Errors, `Unsupported`: what of it this process may not have (a container without
/// CAP_SYS_RESOURCE); the rest is had all the same.
pub fn never_wait_for_own_writes() -> Result<()> {
    let denied = |what: &str| {
        let why = std::io::Error::last_os_error();
        Error::with_source(ErrorKind::Unsupported, format!("no {what} for the tap"), why)
    };
    // What is mapped now is brought in; later pages stay from when they are first touched.
    let (now, later) = (libc::MCL_CURRENT, libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT);
    // SAFETY: takes no memory of ours.
    let locked = unsafe { libc::mlockall(now) == 0 && libc::mlockall(later) == 0 };
    let locked = if locked { Ok(()) } else { Err(denied("locked memory")) };
    // SAFETY: takes no memory of ours.
    match unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } {
        0 => locked,
        _ => Err(denied("PR_SET_IO_FLUSHER (Linux 5.6, CAP_SYS_RESOURCE)")),
    }
}
