//! What the kernel is told where something went wrong.

use blocks::{Error, ErrorKind};
use fuser::Errno;

/// The errno of an error. What a caller could not have avoided is logged here, since nobody else sees the words.
pub(crate) fn errno_of(path: &str, error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::Busy => tracing::warn!("{path} cannot be opened: {error}"),
        ErrorKind::Corrupt
        | ErrorKind::Poisoned
        | ErrorKind::Fenced
        | ErrorKind::Cancelled
        | ErrorKind::Io => {
            tracing::error!("{path}: {error}");
        }
        ErrorKind::InvalidInput
        | ErrorKind::OutOfRange
        | ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::ReadOnly
        | ErrorKind::NoSpace
        | ErrorKind::Unsupported => tracing::debug!("{path}: {error}"),
    }
    match error.kind() {
        ErrorKind::InvalidInput | ErrorKind::OutOfRange => Errno::EINVAL,
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::AlreadyExists => Errno::EEXIST,
        ErrorKind::Busy => Errno::EBUSY,
        ErrorKind::ReadOnly => Errno::EROFS,
        ErrorKind::NoSpace => Errno::ENOSPC,
        ErrorKind::Unsupported => Errno::EOPNOTSUPP,
        ErrorKind::Corrupt
        | ErrorKind::Poisoned
        | ErrorKind::Fenced
        | ErrorKind::Cancelled
        | ErrorKind::Io => Errno::EIO,
    }
}
