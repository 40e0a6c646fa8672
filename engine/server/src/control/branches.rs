//! The lines of a machine's history, and giving one up.

use super::api::{Branch, BranchList, Reply};
use super::checkpoints::branch_name;
use super::machines;
use crate::agent::blocking;
use crate::services::Services;
use blocks::{Error, ErrorKind, Result};
use std::sync::Arc;
use store::{BranchInfo, BranchKind, Unit};

pub(super) async fn list(services: Arc<Services>, machine: String) -> Result<Reply> {
    blocking(move || Ok(reply(&*machines::find(&services.store, &machine)?))).await
}

pub(super) async fn clone(
    services: Arc<Services>,
    of: String,
    at: Option<String>,
    name: String,
) -> Result<Reply> {
    blocking(move || {
        let (unit, at) = match machines::find(&services.store, &of) {
            Ok(unit) => (unit, at),
            Err(not_found) => {
                let Ok((_, unit)) = services.sessions.unit_of(&of) else { return Err(not_found) };
                let newest =
                    || services.sessions.checkpoint(&of, "").map(|taken| taken.checkpoint.to_string());
                let at = at.map_or_else(newest, Ok)?;
                (unit, Some(at))
            }
        };
        let base = super::sessions::choose(&unit, at.as_deref())?;
        let (branch, checkpoint) = unit.clone_at(base, &name)?;
        tracing::info!(machine = unit.name(), %branch, %base, name, "a clone was made");
        super::checkpoints::of_number(&unit, checkpoint).map(Reply::Checkpoint)
    })
    .await
}

pub(super) async fn give_up(services: Arc<Services>, machine: String, branch: u64) -> Result<Reply> {
    blocking(move || {
        let unit = machines::find(&services.store, &machine)?;
        let found = unit.branches().into_iter().find(|info| info.id.0 == branch).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("machine '{}' has no branch {branch}", unit.name()))
        })?;
        check_droppable(&unit, &found)?;
        unit.drop_branch(found.id)?;
        tracing::info!(machine = unit.name(), branch, kind = %found.kind, "a branch was given up");
        Ok(reply(&unit))
    })
    .await
}

fn check_droppable(unit: &Unit, branch: &BranchInfo) -> Result<()> {
    let name = unit.name();
    let why = match branch.kind {
        BranchKind::Superseded | BranchKind::Clone => return Ok(()),
        BranchKind::Main => format!("branch {} of '{name}' is its main line", branch.id),
        BranchKind::Session(session) => format!(
            "branch {} of '{name}' is what session {session} wrote; `understudy session stop {session} --discard` gives it up",
            branch.id
        ),
    };
    Err(Error::new(ErrorKind::Busy, why))
}

fn reply(unit: &Unit) -> Reply {
    let checkpoints = unit.checkpoints();
    let branches = unit.branches().into_iter().map(|info| Branch {
        branch: info.id.0,
        kind: branch_name(unit, info.id),
        name: info.name,
        base: info.base.map(|base| base.0),
        checkpoints: checkpoints
            .iter()
            .filter(|checkpoint| checkpoint.branch == info.id)
            .map(|checkpoint| checkpoint.id.0)
            .collect(),
    });
    Reply::Branches(BranchList { machine: unit.name(), branches: branches.collect() })
}
