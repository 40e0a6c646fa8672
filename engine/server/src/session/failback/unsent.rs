//! Keeping what the machine wrote but never sent, before it is overwritten.
//!
//! It is appended to the main branch, which is what that disk descends from, and sealed there; when the session's branch
//! is adopted it becomes part of the superseded branch, where it can be looked at.

use crate::session::failback::disk_work::CHUNK;
use crate::session::failback::line::Line;
use crate::session::live::LiveSession;
use blocks::{CheckpointId, DiskIndex, Error, ErrorKind, Extent, ExtentSet, RequestClass, Result, Volume};
use std::collections::VecDeque;
use store::{CheckpointSpec, Consistency};
use wire::{Payload, ServerMessage};

/// How many pieces are asked for before the first is answered.
const READS_OPEN_MAX: usize = 4;

/// Reads `unsent` back from the targets and seals it on the main branch; `None` where there is nothing.
pub(crate) fn keep(
    line: &mut Line,
    session: &LiveSession,
    unsent: &[(DiskIndex, ExtentSet)],
    told: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Option<CheckpointId>> {
    if unsent.iter().all(|(_, extents)| extents.is_empty()) {
        return Ok(None);
    }
    for (disk, extents) in unsent {
        keep_disk(line, session, *disk, extents, told)?;
    }
    let id = session.id.to_string();
    let spec = CheckpointSpec {
        name: format!("unsent-before-{}", &id[..8]),
        consistency: Consistency::Crash,
        ..CheckpointSpec::crash_consistent_now()
    };
    let kept = session.unit.seal(session.unit.main_branch(), spec)?.into_inner();
    Ok(Some(kept))
}

fn keep_disk(
    line: &mut Line,
    session: &LiveSession,
    disk: DiskIndex,
    extents: &ExtentSet,
    told: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let main = session.unit.disk(session.unit.main_branch(), disk)?;
    let mut pieces = extents.iter().flat_map(|(extent, ())| extent.split(CHUNK));
    let mut open: VecDeque<Extent> = VecDeque::new();
    loop {
        while open.len() < READS_OPEN_MAX
            && let Some(range) = pieces.next()
        {
            let restore = line.restore();
            line.send(ServerMessage::RestoreRead { restore, disk, range })?;
            open.push_back(range);
        }
        let Some(asked) = open.pop_front() else { return Ok(()) };
        let (extent, payload) = line.data(disk)?;
        if extent != asked {
            let context = format!("the agent sent {extent} of disk {disk}; {asked} was asked for");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        match payload {
            Payload::Zero => main.write_zeroes(extent, false, false, RequestClass::Background)?,
            Payload::Data(bytes) if bytes.len() == extent.len().as_usize() => {
                main.write_at(extent.start(), &bytes, false, RequestClass::Background)?;
            }
            Payload::Data(bytes) => {
                let context = format!("the agent sent {} bytes for {extent} of disk {disk}", bytes.len());
                return Err(Error::new(ErrorKind::InvalidInput, context));
            }
        }
        told(extent.len().get())?;
    }
}
