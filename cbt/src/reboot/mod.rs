//! A machine that is shut down in order needs no scan: what its trackers knew is carried over to the next boot.
//! docs/design/0021-clean-shutdown.md has the reasons.
//!
//! ```text
//!  agent stops ──► plan ──► everything read-only ──► record ──► next boot, nothing written yet ──► inherit
//! ```

mod boot;
mod content;
mod layout;
mod plan;
mod record;
mod shutdown;
mod survey;

pub use boot::at_boot;
pub(crate) use plan::{forget, plan};
pub use shutdown::at_shutdown;

pub(crate) use record::{read_record_again, resealed};

use crate::session::own_session;
use blocks::{Error, ErrorKind, Result};
use std::path::PathBuf;

/// A stand-in is never a second source, so it has nothing to carry over.
fn require_source() -> Result<()> {
    match own_session() {
        Some(session) => {
            Err(Error::new(ErrorKind::Unsupported, format!("this is a stand-in, of session {session}")))
        }
        None => Ok(()),
    }
}

/// What became of one disk's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Carried {
    /// The disk.
    pub device: PathBuf,
    /// Why it will have to be scanned; `None` where it will not.
    pub refused: Option<String>,
}
