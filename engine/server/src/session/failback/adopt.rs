//! Giving a machine charge again: the session's branch becomes its history.

use crate::agent::Homecoming;
use crate::session::failback::line::Line;
use crate::session::live::LiveSession;
use crate::session::pull::seal_branch;
use crate::session::record::{SessionEvent, SessionRecord, SessionState};
use blocks::{CheckpointId, DiskIndex, Error, ErrorKind, Generation, Result, Seq};
use std::time::Instant;
use store::{BranchId, BranchInfo, BranchKind, Point, Unit};
use wire::ServerMessage;

/// Completes an adoption that may have been interrupted. The branch that was superseded (0 where there was nothing
/// beyond the session's base), or `None` where the session's branch is not the main one.
pub(crate) fn adoption(unit: &Unit, record: &SessionRecord) -> Result<Option<BranchId>> {
    let SessionState::Adopting { generation, .. } = record.state() else { return Ok(None) };
    if unit.main_branch() != record.branch() {
        return Ok(None);
    }
    while unit.generation() < Generation(generation) {
        unit.promote()?;
    }
    let superseded = unit.branches().into_iter().filter(|branch| branch.kind == BranchKind::Superseded);
    Ok(Some(superseded.map(|branch| branch.id).max().unwrap_or(BranchId(0))))
}

/// Seals the session's branch and makes it the main one. Nothing may be written to the session any more.
pub(crate) fn adopt(session: &LiveSession, quiet_since: Instant) -> Result<()> {
    let step = |name| session.context.step(name);
    let id = session.id.to_string();
    let checkpoint = seal_branch(session, &format!("home-from-{}", &id[..8]), quiet_since)?;
    step("failback.sealed");
    let generation = session.unit.generation().next();
    session.record.update(|record| record.apply(SessionEvent::Adopt { checkpoint, generation }))?;
    step("failback.adopting");
    let record = session.record.get();
    let superseded = session.unit.adopt(record.branch())?;
    step("failback.adopted");
    // The same way as after a restart, so that both come to the same.
    let found = adoption(&session.unit, &record)?;
    let superseded = found.map_or(superseded, |found| found.max(superseded));
    session.record.update(|record| record.apply(SessionEvent::Adopted { superseded }))?;
    step("failback.finishing");
    Ok(())
}

/// Tells the machine that it is in charge, and takes note when it says so.
///
/// `serials` are those of the disks that were written, by which the machine is known when it boots from them.
pub(crate) fn finish(line: &mut Line, session: &LiveSession, serials: &[String]) -> Result<CheckpointId> {
    let SessionState::Finishing { checkpoint, generation, superseded } = session.record.get().state() else {
        let context = format!("session {} has not become the machine's history", session.id);
        return Err(Error::new(ErrorKind::InvalidInput, context));
    };
    let main = session.unit.main_branch();
    let seq = |index: usize| -> Result<(DiskIndex, Seq)> {
        let disk = DiskIndex(u16::try_from(index).unwrap_or(u16::MAX));
        Ok((disk, session.unit.disk(main, disk)?.last_seq()))
    };
    Homecoming { generation, serials: serials.to_vec(), any: false }.keep(&session.unit)?;
    let order = ServerMessage::RestoreFinish {
        restore: line.restore(),
        generation: Generation(generation),
        checkpoint: CheckpointId(checkpoint),
        seqs: (0..session.unit.disks().len()).map(seq).collect::<Result<_>>()?,
    };
    line.send(order)?;
    session.context.step("failback.finish-sent");
    line.finished()?;
    // Before the record says home: after that nobody would try again.
    if let Err(error) = drop_if_empty(session, BranchId(superseded)) {
        tracing::warn!("branch {superseded} of {} is left as it is: {error}", session.unit.name());
    }
    session.record.update(|record| {
        record.disks.iter_mut().for_each(|disk| disk.unflushed_boot = None);
        record.apply(SessionEvent::Finished)
    })?;
    session.context.step("failback.home");
    Ok(CheckpointId(checkpoint))
}

/// Drops a superseded branch that holds nothing: no change and no checkpoint after the session's base. It would only
/// keep the horizon where it is.
fn drop_if_empty(session: &LiveSession, superseded: BranchId) -> Result<()> {
    let (unit, base) = (&session.unit, session.record.get().base());
    let is_superseded =
        |branch: &BranchInfo| branch.id == superseded && branch.kind == BranchKind::Superseded;
    if !unit.branches().iter().any(is_superseded)
        || unit.checkpoints().iter().any(|checkpoint| checkpoint.branch == superseded)
    {
        return Ok(());
    }
    for disk in &session.disks {
        if !unit.difference(Point::Head(superseded), Point::Checkpoint(base), disk.index)?.is_empty() {
            return Ok(());
        }
    }
    unit.drop_branch(superseded)?;
    session.context.step("failback.superseded-dropped");
    Ok(())
}
