//! The checkpoints of a machine: taking one, listing them.

use super::api::{CheckpointInfo, CheckpointList, GapInfo, Progress, Reply, ThinnedInfo};
use super::job::Job;
use super::{at, machines};
use crate::agent::{AgentHandle, RequestEvent, blocking};
use crate::services::Services;
use crate::session::checkpoint_info;
use blocks::{CheckpointId, Error, ErrorKind, Result, WallClock};
use std::sync::Arc;
use std::time::Duration;
use store::{BranchId, BranchKind, Checkpoint, ThinGoal, Unit};
use tokio::sync::mpsc;

/// How long an agent may take to bring all disks to one instant.
const TAKE_TIMEOUT: Duration = Duration::from_secs(300);

pub(super) async fn take(
    services: Arc<Services>,
    of: String,
    name: String,
    protect_until: Option<String>,
    job: Job,
) -> Result<Reply> {
    let until = protect_until.map(|until| at::parse_until(&until, WallClock::now())).transpose()?;
    let unit = match machines::find(&services.store, &of) {
        Ok(unit) => unit,
        Err(not_found) => {
            let sessions = services.sessions.clone();
            let taken = blocking(move || match sessions.unit_of(&of) {
                Ok((_, unit)) => {
                    let taken = sessions.checkpoint(&of, &name)?;
                    protect(&unit, CheckpointId(taken.checkpoint), until)
                }
                Err(_) => Err(not_found),
            });
            return taken.await.map(Reply::Checkpoint);
        }
    };
    let agent = connected(&services, &unit)?;
    if let ("held", reason) = services.agents.machine(unit.machine()).state() {
        return Err(Error::new(ErrorKind::NoSpace, format!("'{}' is held: {reason}", unit.name())));
    }
    let mut events = agent.take_checkpoint(&name, false).await?;
    let checkpoint = wait_until_sealed(&mut events, &agent, &job).await?;
    blocking(move || protect(&unit, checkpoint, until).map(Reply::Checkpoint)).await
}

/// Protects a checkpoint where that is wanted; what it is then.
fn protect(unit: &Unit, id: CheckpointId, until: Option<WallClock>) -> Result<CheckpointInfo> {
    if let Some(until) = until {
        unit.protect_checkpoint(id, until)?;
    }
    of_number(unit, id)
}

pub(super) fn of_number(unit: &Unit, id: CheckpointId) -> Result<CheckpointInfo> {
    let gone = || Error::new(ErrorKind::NotFound, format!("checkpoint {id} is gone already"));
    Ok(info(unit, &unit.checkpoint(id).ok_or_else(gone)?))
}

pub(super) async fn set_protection(
    services: Arc<Services>,
    machine: String,
    checkpoint: String,
    until: Option<String>,
) -> Result<Reply> {
    blocking(move || {
        let unit = machines::find(&services.store, &machine)?;
        let until = until.map_or(Ok(WallClock(0)), |until| at::parse_until(&until, WallClock::now()))?;
        let id = one(&unit, &checkpoint)?;
        protect(&unit, id, Some(until)).map(Reply::Checkpoint)
    })
    .await
}

pub(super) async fn delete(
    services: Arc<Services>,
    machine: String,
    checkpoints: Vec<String>,
    job: Job,
) -> Result<Reply> {
    blocking(move || {
        let unit = machines::find(&services.store, &machine)?;
        let mut ids = checkpoints.iter().map(|text| one(&unit, text)).collect::<Result<Vec<_>>>()?;
        ids.sort();
        ids.dedup();
        let _turn = services.consolidating.for_a_person();
        unit.delete_checkpoints(&ids)?;
        tracing::info!(machine = unit.name(), ?ids, "checkpoints were deleted");
        let step = format!("merging what lay between the checkpoints of '{}'", unit.name());
        let report = unit.thin(ThinGoal::Everything, &|done| job.step(&step, done, done))?;
        Ok(Reply::Thinned(ThinnedInfo {
            machine: unit.name(),
            deleted: ids.into_iter().map(|id| id.0).collect(),
            freed_bytes: report.freed.get(),
            written_bytes: report.written.get(),
        }))
    })
    .await
}

/// The checkpoint of that number or name; a time is not enough to delete something.
fn one(unit: &Unit, text: &str) -> Result<CheckpointId> {
    let all = unit.checkpoints();
    let named = all.iter().rev().find(|checkpoint| !text.is_empty() && checkpoint.name == text);
    let numbered = || all.iter().find(|checkpoint| checkpoint.id.to_string() == text);
    named.or_else(numbered).map(|checkpoint| checkpoint.id).ok_or_else(|| {
        let context = format!("'{}' has no checkpoint of the number or name '{text}'", unit.name());
        Error::new(ErrorKind::NotFound, context)
    })
}

/// The machine's agent. `NotFound` where it is not connected.
pub(super) fn connected(services: &Services, unit: &Unit) -> Result<AgentHandle> {
    services.agents.handle(unit.machine()).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("the agent of '{}' is not connected", unit.name()))
    })
}

/// Waits for what becomes of a request for a checkpoint.
pub(super) async fn wait_until_sealed(
    events: &mut mpsc::Receiver<RequestEvent>,
    agent: &AgentHandle,
    job: &Job,
) -> Result<CheckpointId> {
    job.report(Progress { step: "waiting for the agent".into(), done: 0, total: 0 });
    let name = agent.name();
    tokio::select! {
        event = events.recv() => match event {
            Some(RequestEvent::Sealed(checkpoint)) => Ok(checkpoint),
            Some(RequestEvent::Failed(reason)) => {
                Err(Error::new(ErrorKind::Cancelled, format!("'{name}' took no checkpoint: {reason}")))
            }
            Some(_) => Err(Error::new(ErrorKind::InvalidInput, format!("'{name}' answered out of order"))),
            None => Err(Error::new(ErrorKind::Cancelled, format!("the connection to '{name}' was lost"))),
        },
        called_off = job.called_off() => Err(called_off),
        () = tokio::time::sleep(TAKE_TIMEOUT) => {
            let seconds = TAKE_TIMEOUT.as_secs();
            Err(Error::new(ErrorKind::Cancelled, format!("'{name}' took no checkpoint within {seconds} s")))
        }
    }
}

pub(super) async fn list(services: Arc<Services>, machine: String) -> Result<Reply> {
    blocking(move || {
        let unit = machines::find(&services.store, &machine)?;
        let gap = |gap: store::Gap| GapInfo { from_ms: gap.from.0, until_ms: gap.until.0, cause: gap.cause };
        Ok(Reply::Checkpoints(CheckpointList {
            machine: unit.name(),
            checkpoints: unit.checkpoints().iter().map(|checkpoint| info(&unit, checkpoint)).collect(),
            gaps: unit.gaps().into_iter().map(gap).collect(),
        }))
    })
    .await
}

fn info(unit: &Unit, checkpoint: &Checkpoint) -> CheckpointInfo {
    checkpoint_info(checkpoint, branch_name(unit, checkpoint.branch))
}

/// A branch in the words of the API.
pub(super) fn branch_name(unit: &Unit, branch: BranchId) -> String {
    match unit.branches().into_iter().find(|info| info.id == branch).map(|info| info.kind) {
        Some(BranchKind::Main) => "main".into(),
        Some(BranchKind::Session(session)) => format!("session {session}"),
        Some(BranchKind::Clone) => "clone".into(),
        Some(BranchKind::Superseded) | None => "superseded".into(),
    }
}
