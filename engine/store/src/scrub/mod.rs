//! Re-reading what is stored: every manifest, every index, every payload of every log, every block of every image.
//!
//! The same for a unit that is open (`Unit::scrub`, beside everything else that goes on) and for one at rest
//! (`store::check`). Nothing here changes anything: what is found is reported with the checkpoints that it touches, and
//! only `store::repair` puts right what needs no guess.

mod damage;
mod finding;
mod rest;
mod walk;

pub use finding::{Finding, Remedy, RepairStep, ScrubReport};
pub use rest::{check, repair};
pub(crate) use walk::{OpenLog, Scrubber, own_span};
