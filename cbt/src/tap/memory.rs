//! A process that serves a disk must not wait for that disk to be written.

use blocks::{Error, ErrorKind, Result};

/// `prctl`: allocations of this thread, and of those that it starts, never wait for writing back.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Before any other thread is started: keeps what this process needs in memory, and its allocations from waiting for
/// writes that it would have to serve itself. `Unsupported` where the process may not ask for that.
pub fn never_wait_for_own_writes() -> Result<()> {
    let denied = |what: &str| {
        let why = std::io::Error::last_os_error();
        Error::with_source(ErrorKind::Unsupported, format!("the tap needs {what} (is this root?)"), why)
    };
    // What is mapped now is brought in; later pages stay from when they are first touched.
    let (now, later) = (libc::MCL_CURRENT, libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT);
    // SAFETY: takes no memory of ours.
    if unsafe { libc::mlockall(now) != 0 || libc::mlockall(later) != 0 } {
        return Err(denied("locked memory"));
    }
    // SAFETY: takes no memory of ours.
    if unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } != 0 {
        return Err(denied("PR_SET_IO_FLUSHER, kernel 5.6 or newer"));
    }
    Ok(())
}
