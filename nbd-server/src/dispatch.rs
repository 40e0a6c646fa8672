//! From a request to what the volume is asked, and back.
//!
//! [`check`] is pure and decides everything that the specification says about a request by itself; [`serve`] does it.

use crate::error_code::NbdError;
use crate::export::{Backing, Export};
use crate::fields::Fields;
use crate::metadata::{self, SELECTED_MAX, Selected};
use crate::protocol::{PAYLOAD_BYTES_MAX, command_flag};
use crate::reply::Reply;
use crate::request::{Command, Headers, Request};
use blocks::{ByteAccess, ByteLen, ByteOffset, Error, Extent, ExtentStatus, FileRange, Result};
use std::io;
use std::sync::Arc;

/// Reads in chunks are looked up in pieces of this size.
const LOOKED_UP_BYTES: u64 = 1 << 20;
/// What has to be read into a buffer leaves in chunks of this size: it is still in the processor's cache when the socket
/// takes it, and the client copies one while the next is read (docs/design/0020-landing.md).
const COPIED_BYTES: u64 = 256 << 10;
/// Shorter reads are not worth a look for holes.
const HOLE_LOOKUP_BYTES_MIN: u64 = 32 << 10;
/// From here on bytes of a file are sent without being read first, where that is possible.
const FILE_BYTES_MIN: u64 = 64 << 10;
/// What a request to cache reads at most; the rest of its range is left to the reads that may come.
const CACHED_BYTES_MAX: u64 = 32 << 20;

/// What the handshake has agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Agreed {
    /// How messages look.
    pub headers: Headers,
    /// What the client may ask about ranges; nothing where it selected nothing.
    pub contexts: Arc<[Selected]>,
}

/// A request that makes sense. An extent is `None` where the request is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send the bytes back; `whole` in one chunk.
    Read { extent: Option<Extent>, whole: bool },
    /// Store the payload.
    Write { offset: ByteOffset, fua: bool },
    /// Make it read as zeroes; `fast` or not at all.
    WriteZeroes { extent: Option<Extent>, keep_allocated: bool, fast: bool, fua: bool },
    /// Give it up.
    Trim { extent: Option<Extent>, fua: bool },
    /// Put completed changes on the medium.
    Flush,
    /// Have it at hand.
    Cache { extent: Option<Extent> },
    /// Tell what the selected contexts say, of `one` run or more.
    BlockStatus { extent: Extent, one: bool },
    /// The same with length and contexts in the payload.
    FilteredBlockStatus { offset: ByteOffset, one: bool },
}

impl Action {
    /// So many bytes of a write's payload are written already.
    pub fn skip_written(&mut self, written: ByteLen) {
        if let Action::Write { offset, .. } = self {
            *offset += written;
        }
    }
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
    agreed: &Agreed,
    disk_len: ByteLen,
    read_only: bool,
) -> std::result::Result<Action, Refusal> {
    check_flags(request, agreed)?;
    let changes = matches!(request.command, Command::Write | Command::WriteZeroes | Command::Trim);
    if changes && read_only {
        return refuse(NbdError::NotPermitted, "the export is read-only");
    }
    check_payload(request, agreed)?;
    let has_flag = |flag: u16| request.flags & flag != 0;
    let fua = has_flag(command_flag::FUA);
    let extent = || range(request.command, request.offset, request.len, disk_len);
    match request.command {
        Command::Read => Ok(Action::Read { extent: extent()?, whole: has_flag(command_flag::DF) }),
        Command::Write => extent().map(|_| Action::Write { offset: request.offset, fua }),
        Command::WriteZeroes => Ok(Action::WriteZeroes {
            extent: extent()?,
            keep_allocated: has_flag(command_flag::NO_HOLE),
            fast: has_flag(command_flag::FAST_ZERO),
            fua,
        }),
        Command::Trim => Ok(Action::Trim { extent: extent()?, fua }),
        Command::Cache => Ok(Action::Cache { extent: extent()? }),
        Command::Flush if request.offset != ByteOffset::ZERO || !request.len.is_zero() => {
            refuse(NbdError::Invalid, "a flush has neither offset nor length")
        }
        Command::Flush => Ok(Action::Flush),
        Command::BlockStatus if agreed.contexts.is_empty() => {
            refuse(NbdError::Invalid, "no metadata context was selected")
        }
        Command::BlockStatus => {
            let one = has_flag(command_flag::REQ_ONE);
            if has_flag(command_flag::PAYLOAD_LEN) {
                return Ok(Action::FilteredBlockStatus { offset: request.offset, one });
            }
            status_extent(extent()?).map(|extent| Action::BlockStatus { extent, one })
        }
        Command::Disconnect | Command::Unknown(_) => refuse(NbdError::Invalid, "the command is not known"),
    }
}

/// The range of a request, `None` where it is empty.
fn range(
    command: Command,
    offset: ByteOffset,
    len: ByteLen,
    disk_len: ByteLen,
) -> std::result::Result<Option<Extent>, Refusal> {
    let end = offset.checked_add(len).filter(|end| *end <= disk_len.end());
    match (end, command) {
        (Some(end), _) => Ok(Extent::between(offset, end)),
        (None, Command::Write | Command::WriteZeroes) => {
            refuse(NbdError::NoSpace, "the range ends past the end of the disk")
        }
        (None, _) => refuse(NbdError::Invalid, "the range ends past the end of the disk"),
    }
}

fn status_extent(extent: Option<Extent>) -> std::result::Result<Extent, Refusal> {
    extent.ok_or(Refusal { error: NbdError::Invalid, reason: "block status of no bytes" })
}

/// FUA is valid on every command, the others on one each.
fn check_flags(request: &Request, agreed: &Agreed) -> std::result::Result<(), Refusal> {
    let extended = agreed.headers == Headers::Extended;
    let allowed = match request.command {
        Command::Read if agreed.headers.has_chunks() => command_flag::DF,
        Command::Write if extended => command_flag::PAYLOAD_LEN,
        Command::WriteZeroes => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        Command::BlockStatus if extended => command_flag::REQ_ONE | command_flag::PAYLOAD_LEN,
        Command::BlockStatus => command_flag::REQ_ONE,
        _ => 0,
    };
    if request.flags & !(allowed | command_flag::FUA) != 0 {
        return refuse(NbdError::Invalid, "a flag that is not valid for the command");
    }
    Ok(())
}

/// What travels is bounded, in either direction.
fn check_payload(request: &Request, agreed: &Agreed) -> std::result::Result<(), Refusal> {
    let payload_len = request.payload_len(agreed.headers).get();
    if request.command == Command::BlockStatus && payload_len > 0 {
        let ids_len = payload_len.checked_sub(8).filter(|len| len.is_multiple_of(4));
        return match ids_len {
            Some(len) if len <= 4 * SELECTED_MAX as u64 => Ok(()),
            _ => refuse(NbdError::Invalid, "the payload is not a length and a few contexts"),
        };
    }
    let travels = match request.command {
        Command::Read => request.len.get(),
        _ => payload_len,
    };
    if travels <= u64::from(PAYLOAD_BYTES_MAX) {
        return Ok(());
    }
    match request.command {
        Command::Read if agreed.headers.has_chunks() => {
            refuse(NbdError::Overflow, "more than 32 MiB in one request")
        }
        _ => refuse(NbdError::Invalid, "more than 32 MiB in one request"),
    }
}

/// The length and the contexts that a payload of block status names: those that were selected, each once.
pub fn filter<'a>(
    payload: &[u8],
    offset: ByteOffset,
    agreed: &'a Agreed,
    disk_len: ByteLen,
) -> std::result::Result<(Extent, Vec<&'a Selected>), Refusal> {
    let malformed =
        Refusal { error: NbdError::Invalid, reason: "the payload is not a length and a few contexts" };
    let mut fields = Fields::new(payload);
    let len = ByteLen::new(fields.u64().ok_or(malformed)?);
    let mut wanted: Vec<&Selected> = Vec::new();
    while !fields.is_empty() {
        let id = fields.u32().ok_or(malformed)?;
        let Some(selected) = agreed.contexts.iter().find(|selected| selected.id == id) else {
            return refuse(NbdError::Invalid, "a context that was not selected");
        };
        if wanted.contains(&selected) {
            return refuse(NbdError::Invalid, "a context is named twice");
        }
        wanted.push(selected);
    }
    let extent = status_extent(range(Command::BlockStatus, offset, len, disk_len)?)?;
    Ok((extent, wanted))
}

/// How large a buffer of `serve` becomes for this action.
pub fn reply_bytes(action: &Action, agreed: &Agreed) -> usize {
    match action {
        Action::Read { extent: Some(extent), whole } if *whole || !agreed.headers.has_chunks() => {
            extent.len().as_usize()
        }
        Action::Read { extent: Some(extent), .. } | Action::Cache { extent: Some(extent) } => {
            ByteLen::new(extent.len().get().min(COPIED_BYTES)).as_usize()
        }
        _ => 0,
    }
}

/// Does what was asked and answers it. `buffer` holds a request's payload; a read takes it for its data.
///
/// An error is one of the connection; what goes wrong with the volume is answered.
pub fn serve(
    action: Action,
    agreed: &Agreed,
    export: &Export,
    buffer: &mut [u8],
    reply: &Reply<'_>,
) -> io::Result<()> {
    match action {
        Action::Read { extent: None, .. } => reply.nothing_read(),
        Action::Read { extent: Some(extent), whole } => {
            if whole || !agreed.headers.has_chunks() {
                read_whole(extent, export, buffer, reply)
            } else {
                read_pieces(extent, export, buffer, reply)
            }
        }
        Action::BlockStatus { extent, one } => {
            let all: Vec<&Selected> = agreed.contexts.iter().collect();
            block_status(extent, &all, one, export, reply)
        }
        Action::FilteredBlockStatus { offset, one } => match filter(buffer, offset, agreed, export.len()) {
            Ok((extent, contexts)) => block_status(extent, &contexts, one, export, reply),
            Err(refusal) => reply.error(refusal.error, refusal.reason),
        },
        Action::Write { offset, fua } => change(export, reply, |disk| disk.write(offset, buffer, fua)),
        Action::WriteZeroes { extent: Some(extent), keep_allocated, fast, fua } => {
            if fast && export.with_disk(|disk| disk.zeroes_fast(extent, keep_allocated)) == Some(false) {
                return reply.error(NbdError::NotSupported, "zeroing would be no faster than writing");
            }
            change(export, reply, |disk| disk.write_zeroes(extent, keep_allocated, fua))
        }
        Action::Trim { extent: Some(extent), fua } => change(export, reply, |disk| disk.discard(extent, fua)),
        Action::Flush => change(export, reply, ByteAccess::flush),
        Action::Cache { extent: Some(extent) } => change(export, reply, |disk| cache(disk, extent, buffer)),
        Action::WriteZeroes { extent: None, .. }
        | Action::Trim { extent: None, .. }
        | Action::Cache { extent: None } => reply.done(),
    }
}

/// Asks the volume; `None` where that failed and the client has been told.
fn ask<T>(
    export: &Export,
    reply: &Reply<'_>,
    question: impl FnOnce(&Backing) -> Result<T>,
) -> io::Result<Option<T>> {
    let failed = match export.with_backing(question) {
        Some(Ok(answer)) => return Ok(Some(answer)),
        Some(Err(error)) => tell(&error, reply),
        None => reply.error(NbdError::Shutdown, REMOVED),
    };
    failed.map(|()| None)
}

/// Answers with what the volume has said.
pub fn tell(error: &Error, reply: &Reply<'_>) -> io::Result<()> {
    log(error);
    reply.error(NbdError::of(error.kind()), &error.to_string())
}

const REMOVED: &str = "the export was removed";

fn log(error: &Error) {
    tracing::warn!(kind = ?error.kind(), "a request failed: {error}");
}

fn change(
    export: &Export,
    reply: &Reply<'_>,
    change: impl FnOnce(&ByteAccess) -> Result<()>,
) -> io::Result<()> {
    match ask(export, reply, |backing| change(&backing.disk))? {
        Some(()) => reply.done(),
        None => Ok(()),
    }
}

/// Reads the range and forgets it: what lies below keeps what it is worth keeping.
fn cache(disk: &ByteAccess, extent: Extent, buffer: &mut [u8]) -> Result<()> {
    let len = ByteLen::new(extent.len().get().min(CACHED_BYTES_MAX));
    for piece in Extent::new(extent.start(), len)?.split(ByteLen::of(buffer)) {
        disk.read(piece.start(), &mut buffer[..piece.len().as_usize()])?;
    }
    Ok(())
}

/// One chunk a context, once all are known: an error after the first would make it hard to tell what holds.
fn block_status(
    extent: Extent,
    contexts: &[&Selected],
    one: bool,
    export: &Export,
    reply: &Reply<'_>,
) -> io::Result<()> {
    let Some((last, before)) = contexts.split_last() else {
        return reply.error(NbdError::Invalid, "the status of no context");
    };
    let found = ask(export, reply, |backing| {
        let runs = |selected: &&Selected| {
            metadata::runs(&selected.name, extent, &backing.disk, backing.metadata.as_ref())
        };
        Ok((before.iter().map(runs).collect::<Result<Vec<_>>>()?, runs(last)?))
    })?;
    let Some((found, found_last)) = found else { return Ok(()) };
    for (selected, runs) in before.iter().zip(&found) {
        reply.block_status(selected.id, runs, one, false)?;
    }
    reply.block_status(last.id, &found_last, one, true)
}

fn read_whole(extent: Extent, export: &Export, buffer: &mut [u8], reply: &Reply<'_>) -> io::Result<()> {
    let data = &mut buffer[..extent.len().as_usize()];
    let takes_files = reply.socket.takes_files();
    let fetched = ask(export, reply, |backing| {
        let file = file_range(&backing.disk, extent, takes_files);
        if file.is_none() {
            backing.disk.read(extent.start(), data)?;
        }
        Ok(file)
    })?;
    match fetched {
        Some(Some(file)) => reply.file(extent, &file, true, buffer),
        Some(None) => reply.data(extent.start(), &buffer[..extent.len().as_usize()], true),
        None => Ok(()),
    }
}

/// Where the bytes lie as they are, if they are to be sent from there.
fn file_range(disk: &ByteAccess, extent: Extent, takes_files: bool) -> Option<FileRange> {
    let worth_it = takes_files && extent.len().get() >= FILE_BYTES_MIN;
    worth_it.then(|| disk.file_range(extent)).flatten()
}

fn read_pieces(extent: Extent, export: &Export, buffer: &mut [u8], reply: &Reply<'_>) -> io::Result<()> {
    let mut at = extent.start();
    let takes_files = reply.socket.takes_files();
    while let Some(rest) = Extent::between(at, extent.end()) {
        let found = export.with_disk(|disk| {
            let run = next_run(disk, rest)?;
            let is_zero = run.allocation.reads_as_zero();
            Ok((run, if is_zero { None } else { file_range(disk, run.extent, takes_files) }))
        });
        let Some((run, file)) = told(found, at, reply)? else { return Ok(()) };
        at = run.extent.end();
        let last = at == extent.end();
        if run.allocation.reads_as_zero() {
            reply.hole(run.extent, last)?;
        } else if let Some(file) = file {
            reply.file(run.extent, &file, last, buffer)?;
        } else {
            for part in run.extent.split(ByteLen::new(COPIED_BYTES)) {
                let data = &mut buffer[..part.len().as_usize()];
                let located = takes_files && part.len().get() >= FILE_BYTES_MIN;
                let read = export.with_disk(|disk| match located {
                    true => disk.read_located(part.start(), data),
                    false => disk.read(part.start(), data).map(|()| None),
                });
                let Some(file) = told(read, part.start(), reply)? else { return Ok(()) };
                let last = part.end() == extent.end();
                match file {
                    Some(file) => {
                        // They were read just now, so they are near already.
                        reply.file(part, &file, last, &mut [])?;
                        // From then on the file may change.
                        if export.is_removed() {
                            return Err(io::ErrorKind::ConnectionAborted.into());
                        }
                    }
                    None => reply.data(part.start(), data, last)?,
                }
            }
        }
    }
    Ok(())
}

/// What a read came to; `None` where it failed at this offset, or the export is gone, and the client has been told.
fn told<T>(outcome: Option<Result<T>>, at: ByteOffset, reply: &Reply<'_>) -> io::Result<Option<T>> {
    let failed = match outcome {
        Some(Ok(found)) => return Ok(Some(found)),
        Some(Err(error)) => {
            log(&error);
            reply.error_at(NbdError::of(error.kind()), &error.to_string(), at)
        }
        None => reply.error_at(NbdError::Shutdown, REMOVED, at),
    };
    failed.map(|()| None)
}

/// The run at the start of `rest`, as it is to be sent.
fn next_run(disk: &ByteAccess, rest: Extent) -> Result<ExtentStatus> {
    let piece = Extent::new(rest.start(), ByteLen::new(rest.len().get().min(LOOKED_UP_BYTES)))?;
    let data = ExtentStatus { extent: piece, allocation: blocks::Allocation::Data };
    if rest.len().get() < HOLE_LOOKUP_BYTES_MIN {
        return Ok(data);
    }
    let runs = disk.status(piece)?;
    match runs.first() {
        Some(first) if first.allocation.reads_as_zero() => Ok(*first),
        // One system call for data with small holes in it is better than a chunk for each.
        _ => match runs.iter().find(|run| is_large_hole(run)) {
            Some(hole) => {
                let len = hole.extent.start() - piece.start();
                Ok(ExtentStatus { extent: Extent::new(piece.start(), len)?, ..data })
            }
            None => Ok(data),
        },
    }
}

fn is_large_hole(run: &ExtentStatus) -> bool {
    run.allocation.reads_as_zero() && run.extent.len().get() >= 4096
}

#[cfg(test)]
#[path = "dispatch_tests.rs"]
mod tests;
