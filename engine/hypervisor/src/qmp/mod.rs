//! QEMU's control protocol, as much of it as a stand-in needs. Whoever answers is not trusted: every wait has an end,
//! every line a longest length.

mod client;
mod lines;

pub(crate) use client::Qmp;
pub(crate) use lines::Lines;
