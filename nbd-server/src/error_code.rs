//! The errors that travel: the one place where an [`ErrorKind`] becomes an NBD error and back.

use blocks::ErrorKind;

/// An error value of the transmission phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NbdError {
    /// `NBD_EPERM`: a change of a read-only export.
    NotPermitted = 1,
    /// `NBD_EIO`: everything that went wrong below.
    Io = 5,
    /// `NBD_ENOMEM`.
    NoMemory = 12,
    /// `NBD_EINVAL`: the request makes no sense here.
    Invalid = 22,
    /// `NBD_ENOSPC`: a write past the end or onto a full medium.
    NoSpace = 28,
    /// `NBD_EOVERFLOW`: too long for one reply.
    Overflow = 75,
    /// `NBD_ENOTSUP`.
    NotSupported = 95,
    /// `NBD_ESHUTDOWN`: the export or the server is going away.
    Shutdown = 108,
}

impl NbdError {
    /// The value on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The error of that value; the specification has unknown ones treated as `EINVAL`.
    pub const fn from_code(code: u32) -> NbdError {
        match code {
            1 => NbdError::NotPermitted,
            5 => NbdError::Io,
            12 => NbdError::NoMemory,
            28 => NbdError::NoSpace,
            75 => NbdError::Overflow,
            95 => NbdError::NotSupported,
            108 => NbdError::Shutdown,
            _ => NbdError::Invalid,
        }
    }

    /// How a front end's client understands the error of a volume.
    ///
    /// `Unsupported` is not `ENOTSUP`, which the specification keeps for fast zeroing.
    pub const fn of(kind: ErrorKind) -> NbdError {
        match kind {
            ErrorKind::InvalidInput | ErrorKind::OutOfRange | ErrorKind::Unsupported => NbdError::Invalid,
            ErrorKind::ReadOnly => NbdError::NotPermitted,
            ErrorKind::NoSpace => NbdError::NoSpace,
            ErrorKind::Fenced => NbdError::Shutdown,
            ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::Busy
            | ErrorKind::Corrupt
            | ErrorKind::Poisoned
            | ErrorKind::Cancelled
            | ErrorKind::Io => NbdError::Io,
        }
    }

    /// What an error that a server sent means to a user of the volume.
    pub const fn kind(self) -> ErrorKind {
        match self {
            NbdError::NotPermitted => ErrorKind::ReadOnly,
            NbdError::NoSpace => ErrorKind::NoSpace,
            NbdError::Invalid | NbdError::Overflow => ErrorKind::InvalidInput,
            NbdError::NotSupported => ErrorKind::Unsupported,
            NbdError::Io | NbdError::NoMemory | NbdError::Shutdown => ErrorKind::Io,
        }
    }

    /// The name in the specification.
    pub const fn name(self) -> &'static str {
        match self {
            NbdError::NotPermitted => "EPERM",
            NbdError::Io => "EIO",
            NbdError::NoMemory => "ENOMEM",
            NbdError::Invalid => "EINVAL",
            NbdError::NoSpace => "ENOSPC",
            NbdError::Overflow => "EOVERFLOW",
            NbdError::NotSupported => "ENOTSUP",
            NbdError::Shutdown => "ESHUTDOWN",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_specifications() {
        for (error, code) in [
            (NbdError::NotPermitted, 1),
            (NbdError::Io, 5),
            (NbdError::NoMemory, 12),
            (NbdError::Invalid, 22),
            (NbdError::NoSpace, 28),
            (NbdError::Overflow, 75),
            (NbdError::NotSupported, 95),
            (NbdError::Shutdown, 108),
        ] {
            assert_eq!(error.code(), code);
            assert_eq!(NbdError::from_code(code), error);
        }
        assert_eq!(NbdError::from_code(4711), NbdError::Invalid);
    }
}
