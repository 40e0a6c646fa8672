//! Writing a checkpoint or a session into a new file.

use super::api::Reply;
use super::job::Job;
use super::{at, machines};
use crate::agent::blocking;
use crate::services::Services;
use blocks::{DiskIndex, Error, ErrorKind, OpenMode, Result, Storage, Volume};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{HostStorage, ImageKind, Unit, export_volume};

/// An export reads and writes beside guests and agents, who come first; compressing needs more than one thread.
const THREADS: usize = 2;

/// What is asked for, as in [`super::api::Request::Export`].
pub(super) struct Wanted {
    pub of: String,
    pub disk: Option<u16>,
    pub at: Option<String>,
    pub format: String,
    pub output: String,
}

pub(super) async fn export(services: Arc<Services>, wanted: Wanted, job: Job) -> Result<Reply> {
    blocking(move || {
        let (folder, name) = destination(&wanted.output)?;
        let kind: ImageKind = wanted.format.parse()?;
        let (volume, what) = source(&services, &wanted)?;
        let step = format!("writing {what}");
        let storage = HostStorage::new(&folder)?;
        let progress = |done, total| job.step(&step, done, total);
        let written = export_volume(&*volume, &storage, &name, kind, THREADS, &progress);
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
        let from = super::sessions::choose(&unit, Some(&wanted.since))?;
        let to = super::sessions::choose(&unit, wanted.at.as_deref())?;
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
fn destination(output: &str) -> Result<(PathBuf, String)> {
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

/// The volume that is meant: of a machine or, where there is no machine of that name, of a session.
fn source(services: &Services, wanted: &Wanted) -> Result<(Arc<dyn Volume>, String)> {
    let disk = wanted.disk.map(DiskIndex);
    let not_found = match machines::find(&services.store, &wanted.of) {
        Ok(unit) => return view(&unit, disk, wanted.at.as_deref()),
        Err(not_found) => not_found,
    };
    let Ok((session, unit)) = services.sessions.unit_of(&wanted.of) else { return Err(not_found) };
    if wanted.at.is_some() {
        return view(&unit, disk, wanted.at.as_deref());
    }
    // The guest goes on writing, so a checkpoint of now is what is written out.
    let checkpoint = services.sessions.checkpoint(&wanted.of, "")?.checkpoint;
    let (volume, _) = view(&unit, disk, Some(&checkpoint.to_string()))?;
    Ok((volume, format!("session {session} as of checkpoint {checkpoint}")))
}

fn view(unit: &Unit, disk: Option<DiskIndex>, at: Option<&str>) -> Result<(Arc<dyn Volume>, String)> {
    let disk = chosen_disk(unit, disk)?;
    let checkpoints = unit.checkpoints();
    let chosen = match at {
        Some(_) => at::choose(&checkpoints, at)?,
        None => {
            let main = unit.main_branch();
            let newest = checkpoints.iter().rev().find(|checkpoint| checkpoint.branch == main);
            newest.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("'{}' has no checkpoint yet", unit.name()))
            })?
        }
    };
    let what = format!("disk {disk} of '{}' at checkpoint {}", unit.name(), chosen.id);
    Ok((Arc::new(unit.view(chosen.id, disk)?), what))
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
