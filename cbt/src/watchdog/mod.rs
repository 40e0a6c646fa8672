//! The process that thaws when the agent cannot.
//!
//! ```text
//!  agent                                    watchdog (own session, memory locked, never killed for memory)
//!    │── arm BUDGET_MS AGENT_FD...  ───────►│ opens the same file systems, writes a note to /run/understudy
//!    │◄─────────────────────────── armed ───│ the clock runs
//!    │── freezing N ───────────────────────►│
//!    │   FIFREEZE                           │   budget over, socket closed or agent dead:
//!    │── frozen N ─────────────────────────►│   FITHAW on all that is frozen or about to be,
//!    │   take, read                         │   again and again until a freeze that has not returned has
//!    │   FITHAW                             │
//!    │── release ──────────────────────────►│ removes the note
//!    │◄──────── released | late ────────────│ late: the watchdog has thawed something; the checkpoint is void
//! ```
//!
//! Lines of text over a socket that is the watchdog's standard input. It starts no thread and opens no file while
//! something is frozen, except to thaw.

mod guard;
mod ioctl;
mod note;
mod program;

pub(crate) use guard::{Guarded, Watchdog};
pub(crate) use ioctl::{freeze, thaw};
pub use program::watchdog_main;
