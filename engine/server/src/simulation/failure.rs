//! What a simulation ends with where something is not as promised.

use std::fmt;

/// A broken promise, or something that the simulation did not expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

/// What a part of a simulation comes to.
pub(super) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(super) fn new(what: impl Into<String>) -> Failure {
        Failure(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<blocks::Error> for Failure {
    fn from(error: blocks::Error) -> Failure {
        Failure(format!("unexpected: {error}"))
    }
}

/// A failure with this message unless `holds`.
pub(super) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(Failure(what())) }
}
