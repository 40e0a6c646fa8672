//! Shows a disk as a block device of the kernel: any [`blocks::Volume`] behind `/dev/ublkbN`, by the ublk driver (Linux 6.5; its
//! interface is linux/ublk_cmd.h and Documentation/block/ublk.rst).
//!
//! A request's way: `queue` takes it from the kernel, `request` says what is asked and asks the volume, `workers` do what would
//! keep others waiting. `control` makes, finds and deletes devices, `abi` has the driver's numbers and structures.
//!
//! ```text
//!             add, start                          the server dies
//!   (none) ─────────────► live: requests come ───────────────────► quiesced: requests wait, what the dead one had is kept
//!      ▲                    │          ▲                                  │
//!      └── delete, unused ──┘          └──── a server takes it over ──────┘
//! ```
//!
//! The device is the kernel's, not the process's: one that dies is replaced, and what is mounted waits. A [`Label`] tells whose
//! device it is; the driver keeps it, so nothing has to be remembered elsewhere. Reasons and figures: docs/design/0019-tap.md.

mod abi;
mod control;
mod device;
mod queue;
mod request;
mod workers;

pub use device::{Device, Label, Served, check, serve};
