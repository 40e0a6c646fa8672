//! What came of drills: a JSON file each, with a picture beside it, in `drills/<machine>/` of the server's data folder.

use crate::control::api::DrillInfo;
use blocks::{Error, ErrorKind, MachineId, Result};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The newest that are kept of a machine.
const REPORTS_MAX: usize = 100;

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |error| Error::io(path.display().to_string(), error)
}

/// Where the reports of a machine are; made where it is not there.
pub(super) fn folder(data: &Path, machine: MachineId) -> Result<PathBuf> {
    let folder = data.join("drills").join(machine.to_string());
    std::fs::create_dir_all(&folder).map_err(failed(&folder))?;
    Ok(folder)
}

/// Keeps a report under a new name; it is on the medium when this returns. The oldest beyond what is kept go.
pub(super) fn save(folder: &Path, report: &DrillInfo) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(report)
        .map_err(|error| Error::with_source(ErrorKind::InvalidInput, "the report of a drill", error))?;
    let path = folder.join(format!("{}.json", report.started_ms));
    let new = path.with_extension("json.new");
    std::fs::write(&new, bytes).and_then(|()| File::open(&new)?.sync_all()).map_err(failed(&new))?;
    std::fs::rename(&new, &path).and_then(|()| File::open(folder)?.sync_all()).map_err(failed(&path))?;
    let known = names(folder)?;
    for old in known.iter().take(known.len().saturating_sub(REPORTS_MAX)) {
        let report = folder.join(old);
        let picture = report.with_extension("png");
        if picture.exists() {
            std::fs::remove_file(&picture).map_err(failed(&picture))?;
        }
        std::fs::remove_file(&report).map_err(failed(&report))?;
    }
    Ok(())
}

/// The names of a machine's reports, the oldest first: they are the milliseconds since 1970 at which the drills began.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed(folder))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed(folder))?.file_name().to_string_lossy().into_owned();
        if let Some(started) = name.strip_suffix(".json").and_then(|stem| stem.parse::<u64>().ok()) {
            found.push((started, name));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

/// What came of a machine's drills, the newest `count` of them, the oldest first. `Corrupt` where one cannot be read.
pub(crate) fn reports(data: &Path, machine: MachineId, count: usize) -> Result<Vec<DrillInfo>> {
    let folder = data.join("drills").join(machine.to_string());
    let names = names(&folder)?;
    let read = |name: &String| {
        let path = folder.join(name);
        let bytes = std::fs::read(&path).map_err(failed(&path))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::with_source(ErrorKind::Corrupt, path.display().to_string(), error))
    };
    names[names.len().saturating_sub(count)..].iter().map(read).collect()
}

/// Forgets all drills of a machine.
pub(crate) fn forget(data: &Path, machine: MachineId) -> Result<()> {
    let folder = data.join("drills").join(machine.to_string());
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(&folder)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_reports_are_kept_in_their_order() {
        let data = tempfile::tempdir().unwrap();
        let machine = MachineId(blocks::Id::from_bytes([7; 16]).unwrap());
        assert!(reports(data.path(), machine, 5).unwrap().is_empty());
        let folder = folder(data.path(), machine).unwrap();
        for started_ms in 0..105 {
            let picture = folder.join(format!("{started_ms}.png"));
            std::fs::write(&picture, b"png").unwrap();
            save(&folder, &DrillInfo { started_ms, ..DrillInfo::default() }).unwrap();
        }
        let kept = reports(data.path(), machine, usize::MAX).unwrap();
        assert_eq!((kept.len(), kept[0].started_ms, kept[99].started_ms), (100, 5, 104));
        assert!(!folder.join("4.png").exists() && folder.join("5.png").exists());
        assert_eq!(reports(data.path(), machine, 1).unwrap()[0].started_ms, 104);
        std::fs::write(folder.join("104.json"), b"{").unwrap();
        assert_eq!(reports(data.path(), machine, 1).unwrap_err().kind(), ErrorKind::Corrupt);
        forget(data.path(), machine).unwrap();
        assert!(reports(data.path(), machine, 1).unwrap().is_empty());
    }
}
