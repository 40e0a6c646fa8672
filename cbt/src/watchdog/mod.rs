//! The process that freezes and thaws, and thaws when the agent cannot.
//!
//! ```text
//!  agent                                    watchdog (own session, memory locked, never killed for memory)
//!    │── sync AGENT_FD...  ────────────────►│ writes these file systems out
//!    │◄───────────────────────── synced ────│
//!    │── arm BUDGET_MS AGENT_FD...  ───────►│ opens the same file systems, writes a note to /run/understudy
//!    │◄─────────────────────────── armed ───│ the clock runs
//!    │── freeze N ─────────────────────────►│ FIFREEZE by its second thread
//!    │◄────────────── frozen N [ERRNO] ─────│   budget over, socket closed or agent dead:
//!    │   take, read                         │   FITHAW on all that is frozen or about to be,
//!    │── thaw N ───────────────────────────►│   again and again until a freeze that has not returned has
//!    │◄────────────── thawed N [ERRNO] ─────│
//!    │── release ──────────────────────────►│ removes the note
//!    │◄──────── released | late ────────────│ late: the watchdog has thawed on its own; the checkpoint is void
//! ```
//!
//! The agent itself neither freezes nor thaws a file system, nor writes one out on a disk that it taps: each of these waits for the
//! disk, which nothing can interrupt, and a tap the agent serves itself. One that is killed just then could not end before the
//! disk answers, and the disk would not answer before the next agent takes the place of one that has ended. It thaws only
//! where the watchdog is gone.
//!
//! Lines of text over a socket that is the watchdog's standard input. It starts no thread and opens no file while
//! something is frozen, except to thaw.

mod guard;
mod ioctl;
mod note;
mod program;
mod worker;

pub(crate) use guard::{Guarded, Watchdog};
pub(crate) use ioctl::thaw;
pub use program::watchdog_main;
