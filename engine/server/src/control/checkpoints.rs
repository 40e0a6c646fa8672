//! The checkpoints of a machine: taking one, listing them.

use super::api::{CheckpointInfo, CheckpointList, GapInfo, Progress, Reply};
use super::job::Job;
use super::machines;
use crate::agent::{AgentHandle, RequestEvent, blocking};
use crate::services::Services;
use crate::session::checkpoint_info;
use blocks::{CheckpointId, Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Duration;
use store::{BranchId, BranchKind, Checkpoint, Unit};
use tokio::sync::mpsc;

/// How long an agent may take to bring all disks to one instant.
const TAKE_TIMEOUT: Duration = Duration::from_secs(300);

pub(super) async fn take(services: Arc<Services>, of: String, name: String, job: Job) -> Result<Reply> {
    let unit = match machines::find(&services.store, &of) {
        Ok(unit) => unit,
        Err(not_found) => {
            let sessions = services.sessions.clone();
            let taken = blocking(move || match sessions.unit_of(&of) {
                Ok(_) => sessions.checkpoint(&of, &name),
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
    blocking(move || {
        let gone = || Error::new(ErrorKind::NotFound, format!("checkpoint {checkpoint} is gone already"));
        Ok(Reply::Checkpoint(info(&unit, &unit.checkpoint(checkpoint).ok_or_else(gone)?)))
    })
    .await
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
