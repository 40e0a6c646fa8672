//! Errors that can be matched, say what they are about, and keep their source.

use std::error::Error as StdError;
use std::fmt;

/// The result of anything that touches a volume or a storage.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, as far as a caller may act on it. Front ends map it to errno or NBD codes in one match.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ErrorKind {
    /// The caller's arguments are wrong: misaligned, out of range, malformed.
    InvalidInput,
    /// The range ends past the end of the disk.
    OutOfRange,
    /// The thing does not exist.
    NotFound,
    /// The thing exists already.
    AlreadyExists,
    /// Somebody else holds it: open, mounted, pinned, in use.
    Busy,
    /// Writing is not allowed here.
    ReadOnly,
    /// The medium or a quota is full.
    NoSpace,
    /// Stored bytes do not match their checksum or their format.
    Corrupt,
    /// An earlier write or sync of this volume failed; it acknowledges nothing until it is reopened.
    Poisoned,
    /// A higher generation has taken over.
    Fenced,
    /// Not possible here or with this format, and never silently approximated.
    Unsupported,
    /// The other side did not answer in time or the work was called off.
    Cancelled,
    /// Everything else that the operating system reports.
    Io,
}

/// An error: its kind, what it is about (which file, which extent), and what caused it.
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of that kind about that thing.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        Error { kind, context: context.into(), source: None }
    }

    /// The same with its cause.
    pub fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Error {
        Error { kind, context: context.into(), source: Some(source.into()) }
    }

    /// An operating-system error about that thing; the kind follows from it.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Error {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::NotFound => ErrorKind::NotFound,
            Io::AlreadyExists => ErrorKind::AlreadyExists,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::NoSpace,
            Io::ReadOnlyFilesystem | Io::PermissionDenied => ErrorKind::ReadOnly,
            Io::ResourceBusy | Io::ExecutableFileBusy => ErrorKind::Busy,
            Io::Unsupported => ErrorKind::Unsupported,
            Io::TimedOut => ErrorKind::Cancelled,
            _ => ErrorKind::Io,
        };
        Error::with_source(kind, context, source)
    }

    /// Stored bytes that do not match.
    pub fn corrupt(context: impl Into<String>) -> Error {
        Error::new(ErrorKind::Corrupt, context)
    }

    /// What a caller may act on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The same error seen from further out: `outer: context`.
    #[must_use]
    pub fn context(mut self, outer: impl fmt::Display) -> Error {
        self.context = format!("{outer}: {}", self.context);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<crate::ExtentError> for Error {
    fn from(error: crate::ExtentError) -> Error {
        Error::new(ErrorKind::InvalidInput, error.to_string())
    }
}
