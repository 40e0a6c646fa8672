//! The machines' side: who may connect, what they send, and whether they live.

mod restore_link;

pub use restore_link::{RESTORE_QUEUE, RestoreLink};
