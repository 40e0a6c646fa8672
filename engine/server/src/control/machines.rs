//! Machines by name or identity, their enrolment and their removal.

use super::api::{BootRequest, Reply, TokenInfo};
use crate::agent::{Homecoming, blocking, refusal};
use crate::authority::TokenFor;
use crate::drill;
use crate::ladder::Ladder;
use crate::retention;
use crate::services::Services;
use crate::takeover::{self, Policy};
use blocks::{ByteLen, Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Duration;
use store::{Store, Unit};
use wire::RefusalKind;

/// More names than this are not listed in a message.
const NAMES_MAX: usize = 5;

/// The machine of that name or identity. `NotFound` names those that may have been meant.
pub(crate) fn find(store: &Store, wanted: &str) -> Result<Arc<Unit>> {
    let by_identity = || wanted.parse().ok().and_then(|machine| store.unit(machine));
    store.unit_by_name(wanted).or_else(by_identity).ok_or_else(|| {
        let names: Vec<_> = store.units().iter().map(|unit| unit.name()).collect();
        Error::new(ErrorKind::NotFound, not_found(wanted, &names))
    })
}

fn not_found(wanted: &str, names: &[String]) -> String {
    let near = near(wanted, names);
    let wanted = wanted.escape_debug();
    match (&near[..], names.len()) {
        (_, 0) => format!("there is no machine '{wanted}'; none is registered yet"),
        ([], count) if count > NAMES_MAX => {
            format!("there is no machine '{wanted}' among the {count} registered")
        }
        ([], _) => format!("there is no machine '{wanted}'; there is {}", names.join(", ")),
        (near, _) => format!("there is no machine '{wanted}'; did you mean {}?", near.join(" or ")),
    }
}

/// The names that a slip of the finger may have turned into `wanted`, nearest first.
fn near<'a>(wanted: &str, names: &'a [String]) -> Vec<&'a str> {
    let wanted = wanted.to_lowercase();
    let distance = |name: &str| {
        let name = name.to_lowercase();
        let part = wanted.len() >= 2 && (name.contains(&wanted) || wanted.contains(&name));
        if part { 1 } else { edits(&wanted, &name) }
    };
    let mut near: Vec<_> = names.iter().map(|name| (distance(name), name.as_str())).collect();
    near.retain(|(distance, name)| *distance <= 2 && *distance < name.len());
    near.sort();
    near.truncate(NAMES_MAX);
    near.into_iter().map(|(_, name)| name).collect()
}

/// How many letters must be put in, taken out or replaced to turn one into the other.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

pub(super) async fn enroll(
    services: Arc<Services>,
    name: Option<String>,
    rescue: bool,
    seconds: u64,
) -> Result<Reply> {
    if seconds == 0 {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "a token that is good for 0 seconds is good for nothing",
        ));
    }
    let wanted = match (name, rescue) {
        (None, false) => TokenFor::Any,
        (Some(name), false) => TokenFor::Named(name),
        (Some(name), true) => TokenFor::Rescue(name),
        (None, true) => {
            let context = "a token for a rescue system wants the name of the machine that it is on";
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
    };
    let authority = services.authority.clone();
    let token = blocking(move || authority.issue_token(wanted, Duration::from_secs(seconds))).await?;
    Ok(Reply::Token(TokenInfo { token: token.to_string(), expires_in_seconds: seconds }))
}

/// As in [`super::api::Request::SetMachine`].
#[derive(Debug)]
pub(super) struct Changes {
    pub keep: Option<String>,
    pub quota: Option<u64>,
    pub on_failure: Option<String>,
    pub probe: Option<String>,
    pub drill_every_ms: Option<u64>,
    pub drill_boot: Option<BootRequest>,
}

pub(super) async fn set(services: Arc<Services>, machine: String, changes: Changes) -> Result<Reply> {
    let asked = machine.clone();
    let set = services.clone();
    blocking(move || {
        let unit = find(&set.store, &machine)?;
        let parse = |text: &str| {
            text.parse::<Ladder>().map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))
        };
        let Changes { keep, quota, on_failure, probe, drill_every_ms, drill_boot } = &changes;
        // One that cannot be read is an alarm; whoever sets another replaces it.
        let policy = Policy::of(&unit).unwrap_or_default().with(on_failure.as_deref(), probe.as_deref())?;
        let ladder = keep.as_deref().filter(|keep| *keep != "default").map(parse).transpose()?;
        if keep.is_some() {
            retention::set_ladder(&unit, ladder.as_ref())?;
        }
        if let Some(quota) = *quota {
            unit.set_quota(Some(ByteLen::new(quota)).filter(|quota| !quota.is_zero()))?;
        }
        if on_failure.is_some() || probe.is_some() {
            policy.keep(&unit)?;
            takeover::prepare(&set);
        }
        if drill_every_ms.is_some() || drill_boot.is_some() {
            super::drills::set(&unit, *drill_every_ms, drill_boot.clone())?;
        }
        tracing::info!(machine = unit.name(), ?changes, "set");
        Ok(())
    })
    .await?;
    super::status::status(services, Some(asked)).await
}

pub(super) async fn admit(services: Arc<Services>, machine: String) -> Result<Reply> {
    let (asked, set) = (machine.clone(), services.clone());
    blocking(move || {
        let unit = find(&set.store, &machine)?;
        let home = Homecoming::of(&unit)?.ok_or_else(|| {
            let context = format!("no session of '{}' has come home", unit.name());
            Error::new(ErrorKind::NotFound, context)
        })?;
        tracing::warn!(machine = unit.name(), "the next machine of this name is taken for it");
        Homecoming { any: true, ..home }.keep(&unit)
    })
    .await?;
    // One that stands by is not asked again before it connects again.
    if let Some(agent) = services.agents.handle(find(&services.store, &asked)?.machine()) {
        agent.end(refusal(RefusalKind::Busy, "it was admitted: connect again")).await;
    }
    super::status::status(services, Some(asked)).await
}

pub(super) async fn remove(services: Arc<Services>, machine: String) -> Result<Reply> {
    // Nobody registers meanwhile.
    let context = services.agent_context.clone();
    let _turn = context.registering.lock().await;
    blocking(move || {
        let unit = find(&services.store, &machine)?;
        let (id, name) = (unit.machine(), unit.name());
        drop(unit);
        if services.agents.handle(id).is_some() {
            let context = format!("'{name}' is connected; stop its agent first");
            return Err(Error::new(ErrorKind::Busy, context));
        }
        end_sessions(&services, &id.to_string(), &name)?;
        services.store.remove_unit(id)?;
        services.agents.forget(id);
        drill::forget(&services.data, id)?;
        match services.authority.revoke(&name) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        tracing::info!(machine = %id, name, "removed");
        Ok(Reply::Removed { machine: name })
    })
    .await
}

/// `Busy` while a session of the machine runs; those that have ended go with it.
fn end_sessions(services: &Services, machine: &str, name: &str) -> Result<()> {
    let sessions: Vec<_> =
        services.sessions.list()?.into_iter().filter(|session| session.machine == machine).collect();
    if let Some(running) =
        sessions.iter().find(|session| !matches!(session.state.as_str(), "home" | "stopped"))
    {
        let context = format!("'{name}' has session {} ({}); stop it first", running.session, running.state);
        return Err(Error::new(ErrorKind::Busy, context));
    }
    for session in &sessions {
        services.stand_ins.clean(&session.session)?;
        services.sessions.stop(&session.session, true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(wanted: &str, names: &[&str]) -> String {
        not_found(wanted, &names.iter().map(|name| (*name).to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn near_names_are_offered() {
        let names = ["web-1", "web-2", "database", "mail", "x", "backup"];
        assert_eq!(message("wbe-1", &names), "there is no machine 'wbe-1'; did you mean web-1?");
        assert!(message("web", &names).contains("web-1 or web-2"));
        assert!(message("Databse", &names).contains("did you mean database?"));
        assert_eq!(message("printer", &names), "there is no machine 'printer' among the 6 registered");
        assert_eq!(message("printer", &names[..2]), "there is no machine 'printer'; there is web-1, web-2");
        assert!(message("printer", &[]).contains("none is registered yet"));
        assert!(!message("y", &names).contains("mean"), "one letter is near to nothing");
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("same", "same"), 0);
    }
}
