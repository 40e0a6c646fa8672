//! From a request to what the volume is asked, and back.
//!
//! [`check`] is pure and decides everything that the specification says about a request by itself; [`serve`] does it.

use crate::byte_access::ByteAccess;
use crate::error_code::NbdError;
use crate::export::Export;
use crate::protocol::{PAYLOAD_BYTES_MAX, command_flag};
use crate::reply::Reply;
use crate::request::{Command, Request};
use blocks::{ByteLen, ByteOffset, Extent, ExtentStatus, Result};
use std::io;

/// Structured reads are looked up and sent in pieces of this size, so that a long one holds no long buffer.
pub const READ_PIECE_BYTES: u64 = 1 << 20;
/// Shorter reads are not worth a look for holes.
const HOLE_LOOKUP_BYTES_MIN: u64 = 32 << 10;

/// What the handshake has agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Agreed {
    /// Reads are answered in chunks.
    pub structured_replies: bool,
    /// The client may ask for block status.
    pub base_allocation: bool,
}

/// A request that makes sense. An extent is `None` where the request is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send the bytes back; `whole` in one chunk.
    Read { extent: Option<Extent>, whole: bool },
    /// Store the payload.
    Write { offset: ByteOffset, fua: bool },
    /// Make it read as zeroes.
    WriteZeroes { extent: Option<Extent>, keep_allocated: bool, fua: bool },
    /// Give it up.
    Trim { extent: Option<Extent>, fua: bool },
    /// Put completed changes on the medium.
    Flush,
    /// Tell what is allocated, `one` run of it or more.
    BlockStatus { extent: Extent, one: bool },
}

/// Why a request is answered with an error by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// What the client gets.
    pub error: NbdError,
    /// What a person gets to read.
    pub reason: &'static str,
}

const fn refuse<T>(error: NbdError, reason: &'static str) -> std::result::Result<T, Refusal> {
    Err(Refusal { error, reason })
}

/// What a request means on a disk of this length.
pub fn check(
    request: &Request,
    agreed: Agreed,
    disk_len: ByteLen,
    read_only: bool,
) -> std::result::Result<Action, Refusal> {
    check_flags(request, agreed)?;
    let changes = matches!(request.command, Command::Write | Command::WriteZeroes | Command::Trim);
    if changes && read_only {
        return refuse(NbdError::NotPermitted, "the export is read-only");
    }
    let payload = matches!(request.command, Command::Read | Command::Write);
    if payload && request.len.get() > u64::from(PAYLOAD_BYTES_MAX) {
        return match request.command {
            Command::Read if agreed.structured_replies => {
                refuse(NbdError::Overflow, "more than 32 MiB in one request")
            }
            _ => refuse(NbdError::Invalid, "more than 32 MiB in one request"),
        };
    }
    let fua = request.flags & command_flag::FUA != 0;
    let extent = || {
        let end = request.offset.checked_add(request.len).filter(|end| *end <= disk_len.end());
        match (end, request.command) {
            (Some(end), _) => Ok(Extent::between(request.offset, end)),
            (None, Command::Write | Command::WriteZeroes) => {
                refuse(NbdError::NoSpace, "the range ends past the end of the disk")
            }
            (None, _) => refuse(NbdError::Invalid, "the range ends past the end of the disk"),
        }
    };
    match request.command {
        Command::Read => Ok(Action::Read { extent: extent()?, whole: request.flags & command_flag::DF != 0 }),
        Command::Write => extent().map(|_| Action::Write { offset: request.offset, fua }),
        Command::WriteZeroes => {
            let keep_allocated = request.flags & command_flag::NO_HOLE != 0;
            Ok(Action::WriteZeroes { extent: extent()?, keep_allocated, fua })
        }
        Command::Trim => Ok(Action::Trim { extent: extent()?, fua }),
        Command::Flush if request.offset != ByteOffset::ZERO || !request.len.is_zero() => {
            refuse(NbdError::Invalid, "a flush has neither offset nor length")
        }
        Command::Flush => Ok(Action::Flush),
        Command::BlockStatus if !agreed.base_allocation => {
            refuse(NbdError::Invalid, "no metadata context was selected")
        }
        Command::BlockStatus => match extent()? {
            Some(extent) => {
                Ok(Action::BlockStatus { extent, one: request.flags & command_flag::REQ_ONE != 0 })
            }
            None => refuse(NbdError::Invalid, "the status of no bytes was asked for"),
        },
        Command::Cache => refuse(NbdError::Invalid, "caching was not offered"),
        Command::Disconnect | Command::Unknown(_) => refuse(NbdError::Invalid, "unknown command"),
    }
}

/// FUA is valid on every command, the others on one each.
fn check_flags(request: &Request, agreed: Agreed) -> std::result::Result<(), Refusal> {
    let allowed = match request.command {
        Command::Read if agreed.structured_replies => command_flag::DF,
        Command::WriteZeroes => command_flag::NO_HOLE,
        Command::BlockStatus => command_flag::REQ_ONE,
        _ => 0,
    };
    if request.flags & !(allowed | command_flag::FUA) != 0 {
        return refuse(NbdError::Invalid, "a flag that is not valid for the command");
    }
    Ok(())
}

/// How large a buffer of `serve` becomes for this action.
pub fn reply_bytes(action: &Action, agreed: Agreed) -> usize {
    match action {
        Action::Read { extent: Some(extent), whole } if *whole || !agreed.structured_replies => {
            extent.len().as_usize()
        }
        Action::Read { extent: Some(extent), .. } => {
            ByteLen::new(extent.len().get().min(READ_PIECE_BYTES)).as_usize()
        }
        _ => 0,
    }
}

/// Does what was asked and answers it. `buffer` holds a write's payload; a read takes it for its data.
///
/// An error is one of the connection; what goes wrong with the volume is answered.
pub fn serve(action: Action, export: &Export, buffer: &mut [u8], reply: &Reply<'_>) -> io::Result<()> {
    match action {
        Action::Read { extent: None, .. } => reply.nothing_read(),
        Action::Read { extent: Some(extent), whole } => {
            if whole || !reply.structured {
                read_whole(extent, export, buffer, reply)
            } else {
                read_pieces(extent, export, buffer, reply)
            }
        }
        Action::BlockStatus { extent, one } => match ask(export, reply, |disk| disk.status(extent))? {
            Some(runs) if runs.is_empty() => {
                reply.error(NbdError::Io, "the status of the range is not known")
            }
            Some(runs) => reply.block_status(&runs, one),
            None => Ok(()),
        },
        Action::Write { offset, fua } => change(export, reply, |disk| disk.write(offset, buffer, fua)),
        Action::WriteZeroes { extent: Some(extent), keep_allocated, fua } => {
            change(export, reply, |disk| disk.write_zeroes(extent, keep_allocated, fua))
        }
        Action::Trim { extent: Some(extent), fua } => change(export, reply, |disk| disk.discard(extent, fua)),
        Action::Flush => change(export, reply, ByteAccess::flush),
        Action::WriteZeroes { extent: None, .. } | Action::Trim { extent: None, .. } => reply.done(),
    }
}

/// Asks the volume; `None` where that failed and the client has been told.
fn ask<T>(
    export: &Export,
    reply: &Reply<'_>,
    question: impl FnOnce(&ByteAccess) -> Result<T>,
) -> io::Result<Option<T>> {
    let failed = match export.with_disk(question) {
        Some(Ok(answer)) => return Ok(Some(answer)),
        Some(Err(error)) => {
            tracing::warn!(kind = ?error.kind(), "a request failed: {error}");
            reply.error(NbdError::of(error.kind()), &error.to_string())
        }
        None => reply.error(NbdError::Shutdown, "the export was removed"),
    };
    failed.map(|()| None)
}

fn change(
    export: &Export,
    reply: &Reply<'_>,
    change: impl FnOnce(&ByteAccess) -> Result<()>,
) -> io::Result<()> {
    match ask(export, reply, change)? {
        Some(()) => reply.done(),
        None => Ok(()),
    }
}

fn read_whole(extent: Extent, export: &Export, buffer: &mut [u8], reply: &Reply<'_>) -> io::Result<()> {
    let data = &mut buffer[..extent.len().as_usize()];
    match ask(export, reply, |disk| disk.read(extent.start(), data))? {
        Some(()) => reply.data(extent.start(), &buffer[..extent.len().as_usize()], true),
        None => Ok(()),
    }
}

fn read_pieces(extent: Extent, export: &Export, buffer: &mut [u8], reply: &Reply<'_>) -> io::Result<()> {
    let mut at = extent.start();
    while let Some(rest) = Extent::between(at, extent.end()) {
        let Some(run) = ask(export, reply, |disk| next_run(disk, rest, buffer))? else { return Ok(()) };
        at = run.extent.end();
        let last = at == extent.end();
        if run.allocation.reads_as_zero() {
            reply.hole(run.extent, last)?;
        } else {
            reply.data(run.extent.start(), &buffer[..run.extent.len().as_usize()], last)?;
        }
    }
    Ok(())
}

/// The run at the start of `rest`; its data in the buffer unless it reads as zeroes.
fn next_run(disk: &ByteAccess, rest: Extent, buffer: &mut [u8]) -> Result<ExtentStatus> {
    let piece_len = ByteLen::new(rest.len().get().min(READ_PIECE_BYTES));
    let piece = Extent::new(rest.start(), piece_len)?;
    let data = ExtentStatus { extent: piece, allocation: blocks::Allocation::Data };
    let run = if rest.len().get() < HOLE_LOOKUP_BYTES_MIN {
        data
    } else {
        let runs = disk.status(piece)?;
        match runs.first() {
            Some(first) if first.allocation.reads_as_zero() => *first,
            // One system call for data with small holes in it is better than a chunk for each.
            _ => match runs.iter().find(|run| is_large_hole(run)) {
                Some(hole) => ExtentStatus {
                    extent: Extent::new(piece.start(), hole.extent.start() - piece.start())?,
                    ..data
                },
                None => data,
            },
        }
    };
    if !run.allocation.reads_as_zero() {
        disk.read(run.extent.start(), &mut buffer[..run.extent.len().as_usize()])?;
    }
    Ok(run)
}

fn is_large_hole(run: &ExtentStatus) -> bool {
    run.allocation.reads_as_zero() && run.extent.len().get() >= 4096
}

#[cfg(test)]
#[path = "dispatch_tests.rs"]
mod tests;
