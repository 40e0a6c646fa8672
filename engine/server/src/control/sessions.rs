//! Requests about sessions.

use super::api::Reply;
use super::job::Job;
use super::{at, machines};
use crate::agent::blocking;
use crate::services::Services;
use crate::session::{FailbackOptions, MigrateOptions};
use crate::takeover;
use blocks::{DiskIndex, Error, ErrorKind, Result};
use std::sync::Arc;
use store::Unit;

/// As in [`super::api::Request::Migrate`].
pub(super) struct Wanted {
    pub session: String,
    pub disk: Option<u16>,
    pub to: Option<String>,
    pub format: Option<String>,
    pub rate: Option<u64>,
    pub pivot: bool,
}

/// As in [`super::api::Request::Failback`].
pub(super) struct Homecoming {
    pub session: String,
    pub to: String,
    pub disks: Vec<(u16, String)>,
    pub cutover: bool,
    pub discard_unsent: bool,
}

pub(super) async fn recover(
    services: Arc<Services>,
    machine: String,
    at: Option<String>,
    drill: bool,
) -> Result<Reply> {
    let unit = machines::find(&services.store, &machine)?;
    let checkpoint = choose(&unit, at.as_deref())?;
    takeover::recover(&services, &unit, checkpoint, drill).await.map(Reply::Session)
}

/// The checkpoint that is meant; without a word about it, the newest of the main line.
pub(super) fn choose(unit: &Unit, at: Option<&str>) -> Result<blocks::CheckpointId> {
    let mut checkpoints = unit.checkpoints();
    if at.is_none() {
        let main = unit.main_branch();
        checkpoints.retain(|checkpoint| checkpoint.branch == main);
    }
    let chosen = at::choose(&checkpoints, at);
    Ok(chosen.map_err(|error| error.context(format_args!("machine '{}'", unit.name())))?.id)
}

pub(super) async fn list(services: Arc<Services>) -> Result<Reply> {
    blocking(move || Ok(Reply::Sessions { sessions: services.sessions.list()? })).await
}

pub(super) async fn get(services: Arc<Services>, session: String) -> Result<Reply> {
    blocking(move || services.sessions.get(&session).map(Reply::Session)).await
}

pub(super) async fn guest_restarted(services: Arc<Services>, session: String) -> Result<Reply> {
    blocking(move || services.sessions.guest_restarted(&session).map(Reply::Session)).await
}

pub(super) async fn stop(services: Arc<Services>, session: String, discard: bool) -> Result<Reply> {
    blocking(move || services.sessions.stop(&session, discard).map(Reply::Session)).await
}

pub(super) async fn migrate(services: Arc<Services>, wanted: Wanted, job: Job) -> Result<Reply> {
    blocking(move || {
        let disk = wanted.disk.map(DiskIndex);
        let options = MigrateOptions {
            disk,
            to: wanted.to,
            format: wanted.format,
            rate: wanted.rate,
            pivot: wanted.pivot,
        };
        services.sessions.migrate(&wanted.session, &options)?;
        let report = |progress| job.report(progress);
        services.sessions.wait_migration(&wanted.session, disk, wanted.pivot, &report).map(Reply::Session)
    })
    .await
}

pub(super) async fn failback(services: Arc<Services>, wanted: Homecoming, job: Job) -> Result<Reply> {
    blocking(move || {
        services.sessions.get(&wanted.session)?;
        let unit = machines::find(&services.store, &wanted.to)?;
        let agent = services.agents.handle(unit.machine()).ok_or_else(|| {
            let context =
                format!("the agent of '{}' is not connected: start it on the machine first", unit.name());
            Error::new(ErrorKind::NotFound, context)
        })?;
        let options = FailbackOptions {
            machine: unit.machine(),
            devices: wanted.disks.into_iter().map(|(disk, device)| (DiskIndex(disk), device)).collect(),
            cutover: wanted.cutover,
            discard_unsent: wanted.discard_unsent,
        };
        let report = |progress| job.report(progress);
        let link = || agent.restore_link();
        services.sessions.failback(&wanted.session, link, &options, &report).map(Reply::Failback)
    })
    .await
}
