//! Requests about sessions.

use super::api::{BootRequest, Reply, SessionInfo};
use super::job::Job;
use super::{at, guests, machines};
use crate::agent::blocking;
use crate::services::Services;
use crate::session::{Beginning, FailbackOptions, MigrateOptions};
use crate::stand_in::PATIENCE;
use crate::takeover;
use blocks::{DiskIndex, Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};
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

/// As in [`super::api::Request::Recover`].
pub(super) struct Recovery {
    pub machine: String,
    pub at: Option<String>,
    pub drill: bool,
    pub boot: Option<BootRequest>,
}

/// Which session is meant by a recovery.
enum Meant {
    /// Asked for again, perhaps because the answer was lost: a moment in the same words may mean a little more by now, or less.
    InCharge(SessionInfo),
    Anew(Beginning),
}

pub(super) async fn recover(services: Arc<Services>, wanted: Recovery, job: Job) -> Result<Reply> {
    let begun = Instant::now();
    let unit = machines::find(&services.store, &wanted.machine)?;
    let meant = {
        let (services, unit) = (services.clone(), Arc::clone(&unit));
        blocking(move || match (wanted.at.as_deref(), wanted.drill) {
            (Some(at), false) if let Some(session) = services.sessions.moment_in_charge(&unit, at)? => {
                Ok(Meant::InCharge(session))
            }
            (at, _) => beginning(&unit, at).map(Meant::Anew),
        })
    };
    let session = match meant.await? {
        Meant::InCharge(session) => session,
        Meant::Anew(beginning) => takeover::recover(&services, &unit, beginning, wanted.drill).await?,
    };
    match wanted.boot {
        Some(boot) => guests::boot(services, session.session, boot, begun, job).await,
        None => guests::seen(services, session).await,
    }
}

/// What is meant: as in [`choose`], but where the machine's writes have come in order a time means the last of them that is
/// not after it. Blocks.
fn beginning(unit: &Unit, at: Option<&str>) -> Result<Beginning> {
    let checkpoint = choose(unit, at)?;
    let chosen = unit.checkpoint(checkpoint);
    let (Some(text), Some(chosen)) = (at.map(str::trim), chosen) else { return Ok(checkpoint.into()) };
    let Some(time) = at::parse_write_time(text) else { return Ok(checkpoint.into()) };
    if chosen.name == text || chosen.server_time.0 * 1000 == time.0 {
        return Ok(checkpoint.into());
    }
    // Within the chosen one's own millisecond it may begin with an earlier one.
    Ok(match unit.moment(time)?.filter(|moment| moment.base >= checkpoint) {
        // A later checkpoint, where nothing was written between the time and that.
        Some(moment) if moment.time.is_none() => moment.base.into(),
        Some(moment) => Beginning::Moment { moment, asked: text.to_owned() },
        None => checkpoint.into(),
    })
}

/// The checkpoint that is meant; by a time or without a word about it, of the main line alone.
pub(super) fn choose(unit: &Unit, at: Option<&str>) -> Result<blocks::CheckpointId> {
    let mut checkpoints = unit.checkpoints();
    let is_named = |at: &str| checkpoints.iter().any(|checkpoint| checkpoint.name == at);
    let is_time = |at: &str| at::parse_time(at).is_some() && !is_named(at);
    if at.map(str::trim).is_none_or(is_time) {
        let main = unit.main_branch();
        checkpoints.retain(|checkpoint| checkpoint.branch == main);
    }
    let chosen = at::choose(&checkpoints, at);
    Ok(chosen.map_err(|error| error.context(format_args!("machine '{}'", unit.name())))?.id)
}

pub(super) async fn list(services: Arc<Services>) -> Result<Reply> {
    blocking(move || {
        let mut sessions = services.sessions.list()?;
        for session in &mut sessions {
            session.guest = services.stand_ins.info(&session.session)?;
        }
        Ok(Reply::Sessions { sessions })
    })
    .await
}

pub(super) async fn get(services: Arc<Services>, session: String) -> Result<Reply> {
    let found = {
        let services = services.clone();
        blocking(move || services.sessions.get(&session)).await?
    };
    guests::seen(services, found).await
}

pub(super) async fn guest_restarted(services: Arc<Services>, session: String) -> Result<Reply> {
    blocking(move || services.sessions.guest_restarted(&session).map(Reply::Session)).await
}

pub(super) async fn stop(
    services: Arc<Services>,
    session: String,
    discard: bool,
    patience: Duration,
) -> Result<Reply> {
    blocking(move || {
        services.stand_ins.end(&session, patience)?;
        let guest = services.stand_ins.info(&session)?;
        services.stand_ins.clean(&session)?;
        let (_, unit) = services.sessions.unit_of(&session)?;
        let mut info = services.sessions.stop(&session, discard)?;
        if discard {
            crate::stand_in::forget(&unit, &info.session)?;
        }
        info.guest = guest;
        Ok(Reply::Session(info))
    })
    .await
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
    let (agents, is_home) = (Arc::clone(&services.agents), wanted.cutover);
    let (reply, agent) = blocking(move || {
        services.sessions.get(&wanted.session)?;
        let unit = machines::find(&services.store, &wanted.to)?;
        let agent = services.agents.handle(unit.machine()).ok_or_else(|| {
            let context =
                format!("the agent of '{}' is not connected: start it on the machine first", unit.name());
            Error::new(ErrorKind::NotFound, context)
        })?;
        let devices: Vec<_> =
            wanted.disks.into_iter().map(|(disk, device)| (DiskIndex(disk), device)).collect();
        let options = FailbackOptions {
            machine: unit.machine(),
            serials: agent.serials(&devices),
            devices,
            cutover: wanted.cutover,
            discard_unsent: wanted.discard_unsent,
        };
        if options.cutover {
            // Its last writes have to be on its disks before they are sent.
            services.stand_ins.end(&wanted.session, PATIENCE)?;
        }
        let report = |progress| job.report(progress);
        let link = || agent.restore_link();
        let info = services.sessions.failback(&wanted.session, link, &options, &report)?;
        Ok((Reply::Failback(info), agent))
    })
    .await?;
    // An agent whose disk is longer than the session's connects again at once, and may have been told to stand by while
    // the session was still going home.
    if is_home && agents.handle(agent.machine()).is_some_and(|now| !now.is_same(&agent)) {
        agents.fence(agent.machine(), "its session has come home: connect again").await;
    }
    Ok(reply)
}
