//! Requests about stand-ins that run.

use super::api::{BootRequest, GuestOrder, Progress, Reply, SessionInfo};
use super::job::Job;
use crate::agent::blocking;
use crate::services::Services;
use blocks::{Error, ErrorKind, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Starts a session's stand-in and waits for its probe, where there is one; what both take counts from `begun`.
pub(super) async fn boot(
    services: Arc<Services>,
    session: String,
    boot: BootRequest,
    begun: Instant,
    job: Job,
) -> Result<Reply> {
    blocking(move || {
        services.stand_ins.boot(&session, &boot)?;
        let report = |step: &str| job.report(Progress { step: step.to_owned(), done: 0, total: 0 });
        services.stand_ins.wait_probe(&session, begun, &report)?;
        with_guest(&services, services.sessions.get(&session)?)
    })
    .await
}

/// A session with what is to be said of its stand-in.
pub(super) async fn seen(services: Arc<Services>, session: SessionInfo) -> Result<Reply> {
    blocking(move || with_guest(&services, session)).await
}

fn with_guest(services: &Services, mut session: SessionInfo) -> Result<Reply> {
    session.guest = services.stand_ins.info(&session.session)?;
    Ok(Reply::Session(session))
}

pub(super) async fn order(services: Arc<Services>, session: String, order: GuestOrder) -> Result<Reply> {
    blocking(move || {
        let stand_ins = &services.stand_ins;
        match order {
            GuestOrder::Pause => stand_ins.pause(&session)?,
            GuestOrder::Unpause => stand_ins.unpause(&session)?,
            GuestOrder::Shutdown { patience_ms } => {
                stand_ins.end(&session, Duration::from_millis(patience_ms))?;
            }
        }
        with_guest(&services, services.sessions.get(&session)?)
    })
    .await
}

pub(super) async fn screenshot(services: Arc<Services>, session: String, output: String) -> Result<Reply> {
    blocking(move || {
        let path = PathBuf::from(&output);
        if !path.is_absolute() || path.exists() {
            let context = format!("{output} is not an absolute path of a file that is not there yet");
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        services.stand_ins.screenshot(&session, &path)?;
        let bytes = std::fs::metadata(&path).map_err(|error| Error::io(output.clone(), error))?.len();
        Ok(Reply::Exported { path: output, bytes })
    })
    .await
}
