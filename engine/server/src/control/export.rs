//! Writing a checkpoint or a session into a new file.

use super::api::Reply;
use super::job::Job;
use super::{export_package, machines, sessions};
use crate::agent::blocking;
use crate::services::Services;
use blocks::{CheckpointId, DiskIndex, Error, ErrorKind, OpenMode, Result, SessionId, Storage};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{HostStorage, ImageKind, Unit, View, export_volume};

/// An export reads and writes beside guests and agents, who come first; compressing needs more than one thread.
pub(super) const THREADS: usize = 2;

/// What is asked for, as in [`super::api::Request::Export`].
pub(super) struct Wanted {
    pub of: String,
    pub disk: Option<u16>,
    pub at: Option<String>,
    pub format: String,
    pub ovf_version: Option<String>,
    pub output: String,
}

pub(super) async fn export(services: Arc<Services>, wanted: Wanted, job: Job) -> Result<Reply> {
    blocking(move || {
        if wanted.format == export_package::FORMAT {
            return export_package::export(&services, &wanted, &job);
        }
        if wanted.ovf_version.is_some() {
            let context = format!("a {} has no version of OVF: only an ova has", wanted.format);
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let (folder, name) = destination(&wanted.output)?;
        let kind: ImageKind = wanted.format.parse()?;
        let (volume, what) = source(&services, &wanted)?;
        let step = format!("writing {what}");
        let storage = HostStorage::new(&folder)?;
        let progress = |done, total| job.step(&step, done, total);
        let written = export_volume(&volume, &storage, &name, kind, THREADS, &progress);
        written.map_err(|error| error.context(format_args!("exporting to {}", wanted.output)))?;
        let bytes = std::fs::metadata(&wanted.output)
            .map_err(|error| Error::io(format!("looking at {}", wanted.output), error))?
            .len();
        Ok(Reply::Exported { path: wanted.output, bytes })
    })
    .await
}

/// What is asked for, as in [`super::api::Request::ExportDelta`].
pub(super) struct WantedDelta {
    pub machine: String,
    pub disk: Option<u16>,
    pub since: String,
    pub at: Option<String>,
    pub output: String,
}

pub(super) async fn export_delta(services: Arc<Services>, wanted: WantedDelta, job: Job) -> Result<Reply> {
    blocking(move || {
        let (folder, name) = destination(&wanted.output)?;
        let unit = machines::find(&services.store, &wanted.machine)?;
        let disk = chosen_disk(&unit, wanted.disk.map(DiskIndex))?;
        let from = sessions::choose(&unit, Some(&wanted.since))?;
        let to = sessions::choose(&unit, wanted.at.as_deref())?;
        let step = format!(
            "writing what changed on disk {disk} of '{}' from checkpoint {from} to {to}",
            unit.name()
        );
        let storage = HostStorage::new(&folder)?;
        let file = storage.open(&name, OpenMode::CreateNew)?;
        let written = unit
            .extract((from, to), disk, file, &|done| job.step(&step, done, done))
            .and_then(|len| storage.sync_dir("").map(|_| len));
        if written.is_err()
            && let Err(error) = storage.remove(&name)
        {
            tracing::warn!(%error, "half an export is left behind");
        }
        let bytes = written.map_err(|error| error.context(format_args!("exporting to {}", wanted.output)))?;
        Ok(Reply::Exported { path: wanted.output, bytes: bytes.get() })
    })
    .await
}

/// Where the file is to be: an absolute path of which only the last part does not exist.
pub(super) fn destination(output: &str) -> Result<(PathBuf, String)> {
    let path = Path::new(output);
    let wrong = |what: &str| Error::new(ErrorKind::InvalidInput, format!("{output}: {what}"));
    if !path.is_absolute() {
        return Err(wrong("an absolute path is needed"));
    }
    let (folder, name) =
        path.parent().zip(path.file_name()).ok_or_else(|| wrong("not the name of a file"))?;
    let name = name.to_str().ok_or_else(|| wrong("the name is not UTF-8"))?;
    if !folder.is_dir() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("the folder {} does not exist", folder.display()),
        ));
    }
    if path.symlink_metadata().is_ok() {
        return Err(Error::new(ErrorKind::AlreadyExists, format!("{output} exists already")));
    }
    Ok((folder.to_owned(), name.to_owned()))
}

/// The volume that is meant, and what it is.
fn source(services: &Services, wanted: &Wanted) -> Result<(View, String)> {
    // A disk that is not there is named before a session is asked for a checkpoint.
    let (unit, session) = unit_of(services, wanted)?;
    let disk = chosen_disk(&unit, wanted.disk.map(DiskIndex))?;
    let (unit, checkpoint) = chosen(services, wanted)?;
    let what = match session {
        Some(session) if wanted.at.is_none() => format!("session {session} as of checkpoint {checkpoint}"),
        _ => format!("disk {disk} of '{}' at checkpoint {checkpoint}", unit.name()),
    };
    Ok((unit.view(checkpoint, disk)?, what))
}

/// The machine of that name or identity or, where there is none, that of a session.
pub(super) fn unit_of(services: &Services, wanted: &Wanted) -> Result<(Arc<Unit>, Option<SessionId>)> {
    let not_found = match machines::find(&services.store, &wanted.of) {
        Ok(unit) => return Ok((unit, None)),
        Err(not_found) => not_found,
    };
    match services.sessions.unit_of(&wanted.of) {
        Ok((session, unit)) => Ok((unit, Some(session))),
        Err(_) => Err(not_found),
    }
}

/// The checkpoint that is meant. A session's guest goes on writing, so of it one of now is taken.
pub(super) fn chosen(services: &Services, wanted: &Wanted) -> Result<(Arc<Unit>, CheckpointId)> {
    let (unit, session) = unit_of(services, wanted)?;
    let checkpoint = match session {
        Some(_) if wanted.at.is_none() => {
            CheckpointId(services.sessions.checkpoint(&wanted.of, "")?.checkpoint)
        }
        _ => sessions::choose(&unit, wanted.at.as_deref())?,
    };
    Ok((unit, checkpoint))
}

fn chosen_disk(unit: &Unit, disk: Option<DiskIndex>) -> Result<DiskIndex> {
    let disks = unit.disks().len();
    match disk {
        Some(disk) if usize::from(disk.0) < disks => Ok(disk),
        None if disks == 1 => Ok(DiskIndex(0)),
        Some(disk) => {
            let context = format!("'{}' has no disk {disk}; it has {disks}", unit.name());
            Err(Error::new(ErrorKind::NotFound, context))
        }
        None => {
            let context = format!("'{}' has {disks} disks: say which with --disk", unit.name());
            Err(Error::new(ErrorKind::InvalidInput, context))
        }
    }
}
