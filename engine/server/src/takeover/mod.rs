//! What happens when a machine falls silent: a second opinion, then what its policy says.
//!
//! ```text
//!   failed ──▶ asked ──silent, three times──▶ recovered (by its policy) or left to people
//!     ▲          │ lives                        │ fails
//!     └──────────┴───────── 10 s later ─────────┘        heard of again, or promoted: over
//! ```
//!
//! Nothing of it is written down: a server that starts in between sees the machine as not heard of yet, and such a one is
//! left to people, because after an outage of the whole site a slow machine would otherwise find its stand-in in charge.

mod policy;
mod probe;

pub(crate) use policy::{OnFailure, Policy};

use crate::agent::{Machine, blocking};
use crate::control::api::{BootRequest, SessionInfo};
use crate::retention;
use crate::services::Services;
use crate::session::Beginning;
use crate::stop::Stop;
use blocks::{Error, ErrorKind, Result};
use probe::{Opinion, Probe};
use std::sync::Arc;
use std::time::Duration;
use store::Unit;

/// How often a probe is asked before its silence is believed, and the pause between.
const ASKED: u32 = 3;
const BETWEEN: Duration = Duration::from_secs(1);
/// Until a machine whose probe answers, or whose recovery failed, is looked at again.
const AGAIN: Duration = Duration::from_secs(10);

/// Where a machine's stand-in is to be started by itself, nothing that can be known before is to be waited for then.
pub(crate) fn prepare(services: &Arc<Services>) {
    let boots = |unit: &Arc<Unit>| Policy::of(unit).is_ok_and(|policy| policy.on_failure == OnFailure::Boot);
    if services.store.units().iter().any(boots) {
        let stand_ins = services.stand_ins.clone();
        // The runtime waits for it at its end, so that no trial guest outlives an orderly stop.
        tokio::task::spawn_blocking(move || stand_ins.prepare());
    }
}

/// Looks after a machine that has just failed, until it is heard of again or a session is in charge.
pub(crate) async fn respond(services: Arc<Services>, unit: Arc<Unit>, machine: Arc<Machine>, mut stop: Stop) {
    while machine.has_failed() {
        tokio::select! {
            () = stop.heard() => return,
            done = attempt(&services, &unit, &machine) => match done {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, machine = unit.name(), "it could not be recovered by itself");
                    machine.set_verdict(format!("it could not be recovered: {error}"));
                }
            }
        }
        tokio::select! {
            () = stop.heard() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// One look; whether there is nothing more to do.
async fn attempt(services: &Arc<Services>, unit: &Arc<Unit>, machine: &Machine) -> Result<bool> {
    let policy = Policy::of(unit)?;
    if let Some(probe) = &policy.probe
        && let Opinion::Lives(why) = opinion(probe, &unit.name()).await
    {
        if machine.set_verdict(format!("but the machine lives: {why}")) {
            tracing::warn!(machine = unit.name(), "its agent is silent, but the machine lives: {why}");
        }
        return Ok(false);
    }
    if policy.on_failure == OnFailure::Notify {
        machine.set_verdict("nothing of it answers; it is not to be recovered by itself".into());
        return Ok(false);
    }
    // Asking has taken a while.
    if !machine.has_failed() {
        return Ok(true);
    }
    let (line, _) = retention::main_line(unit);
    let newest = line.last().ok_or_else(|| Error::new(ErrorKind::NotFound, "it has no checkpoint yet"))?;
    let session = recover(services, unit, newest.id, false).await?;
    tracing::warn!(
        machine = unit.name(),
        session = session.session,
        "recovered by itself, as its policy says"
    );
    if policy.on_failure == OnFailure::Boot {
        // From here on the session is in charge: what goes wrong now is not to be tried again over and over.
        let (stand_ins, id) = (services.stand_ins.clone(), session.session.clone());
        if let Err(error) = blocking(move || stand_ins.boot(&id, &BootRequest::default())).await {
            let (machine, session) = (unit.name(), &session.session);
            tracing::error!(%error, machine, session, "the stand-in could not be started: `session boot` tries again");
        }
    }
    Ok(true)
}

/// Begins a session at a checkpoint or a moment; unless it is a drill, it takes charge, and the machine's agent is told so.
pub(crate) async fn recover(
    services: &Arc<Services>,
    unit: &Arc<Unit>,
    beginning: impl Into<Beginning>,
    drill: bool,
) -> Result<SessionInfo> {
    let beginning = beginning.into();
    let begun = {
        let (services, unit) = (services.clone(), unit.clone());
        blocking(move || services.sessions.recover(&unit, beginning, drill))
    };
    let session = begun.await?;
    if !drill {
        let reason = format!("session {} took charge of '{}'", session.session, unit.name());
        services.agents.fence(unit.machine(), &reason).await;
    }
    Ok(session)
}

/// Silence is believed when it is heard again and again; one answer is enough.
async fn opinion(probe: &Probe, machine: &str) -> Opinion {
    let mut opinion = probe.ask(machine).await;
    for _ in 1..ASKED {
        if matches!(opinion, Opinion::Lives(_)) {
            break;
        }
        tokio::time::sleep(BETWEEN).await;
        opinion = probe.ask(machine).await;
    }
    opinion
}
