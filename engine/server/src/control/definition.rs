//! Writing down what a machine is.

use super::api::{DefinitionInfo, DefinitionRequest, Reply, SessionInfo};
use super::{machines, sessions};
use crate::agent::blocking;
use crate::definition::define;
use crate::services::Services;
use blocks::{ByteLen, CheckpointId, Error, ErrorKind, Result};
use hypervisor::{Form, FormOptions, OvfVersion, Source};
use std::sync::Arc;
use store::Unit;

pub(super) async fn definition(services: Arc<Services>, wanted: DefinitionRequest) -> Result<Reply> {
    blocking(move || written(&services, &wanted).map(Reply::Definition)).await
}

/// Which machine at which checkpoint, and where its disks are served, where they are.
struct Subject {
    unit: Arc<Unit>,
    checkpoint: CheckpointId,
    lens: Vec<ByteLen>,
    uris: Vec<String>,
}

fn written(services: &Services, wanted: &DefinitionRequest) -> Result<DefinitionInfo> {
    let form = form(&wanted.form, wanted.ovf_version.as_deref())?;
    let options = FormOptions {
        acceleration: wanted.acceleration.as_deref().map(str::parse).transpose()?.unwrap_or_default(),
        firmware_code: wanted.firmware_code.clone(),
        firmware_vars: wanted.firmware_vars.clone(),
    };
    let subject = subject(services, wanted)?;
    let sources = sources(&subject, wanted)?;
    let defined = define(&subject.unit, &subject.lens, sources)?;
    let document = form.write(&defined.definition, &options)?;
    let notes = defined.notes.into_iter().chain(document.notes).collect();
    Ok(DefinitionInfo {
        machine: defined.definition.name,
        checkpoint: subject.checkpoint.0,
        form: wanted.form.clone(),
        text: document.text,
        notes,
    })
}

fn form(form: &str, ovf_version: Option<&str>) -> Result<Form> {
    match (form.parse()?, ovf_version) {
        (Form::Ovf(_), Some(version)) => version.parse().map(Form::Ovf),
        (form, _) => Ok(form),
    }
}

/// The version of OVF that is wanted, 1 where nobody says.
pub(super) fn ovf_version(wanted: Option<&str>) -> Result<OvfVersion> {
    wanted.map_or(Ok(OvfVersion::One), str::parse)
}

fn subject(services: &Services, wanted: &DefinitionRequest) -> Result<Subject> {
    let not_found = match machines::find(&services.store, &wanted.of) {
        Ok(unit) => {
            let checkpoint = sessions::choose(&unit, wanted.at.as_deref())?;
            let lens = lens_at(&unit, checkpoint)?;
            return Ok(Subject { unit, checkpoint, lens, uris: Vec::new() });
        }
        Err(not_found) => not_found,
    };
    let Ok((session, unit)) = services.sessions.unit_of(&wanted.of) else { return Err(not_found) };
    if wanted.at.is_some() {
        let context = format!("session {session} is where its guest is now: --at is for machines");
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    let info = services.sessions.get(&wanted.of)?;
    let lens = info.disks.iter().map(|disk| ByteLen::new(disk.len)).collect();
    let uris = if wanted.disks.is_empty() { uris(&info)? } else { Vec::new() };
    Ok(Subject { unit, checkpoint: CheckpointId(info.checkpoint), lens, uris })
}

/// How long the disks were then.
pub(super) fn lens_at(unit: &Unit, checkpoint: CheckpointId) -> Result<Vec<ByteLen>> {
    let found = unit.checkpoint(checkpoint).map(|checkpoint| checkpoint.lens);
    found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("checkpoint {checkpoint} is gone")))
}

/// One URI a disk: the first of its listeners'.
fn uris(session: &SessionInfo) -> Result<Vec<String>> {
    let uri = |disk: &super::api::SessionDisk| {
        disk.uris.first().cloned().ok_or_else(|| {
            let context = format!(
                "disk {} of session {} is not served now ({}): name files with --disk-file",
                disk.index, session.session, session.state
            );
            Error::new(ErrorKind::InvalidInput, context)
        })
    };
    session.disks.iter().map(uri).collect()
}

fn sources(subject: &Subject, wanted: &DefinitionRequest) -> Result<Vec<Source>> {
    let named = if wanted.disks.is_empty() { &subject.uris } else { &wanted.disks };
    let disks = subject.lens.len();
    if named.is_empty() {
        let context = format!(
            "where are the disks of '{}'? Say --disk-file PATH[:FORMAT] for each of {disks}, or start a session with `recover` and name that",
            subject.unit.name()
        );
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    if named.len() != disks {
        let context = format!(
            "'{}' has {disks} disks, and {} --disk-file are given: one for each, in their order",
            subject.unit.name(),
            named.len()
        );
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    named.iter().map(|source| source.parse()).collect()
}
