//! Made while everything is still mounted: what is needed to record a shutdown when nothing is any more.

use super::layout::unsupported;
use super::record::Record;
use super::survey::{Survey, digest};
use crate::disk::Disk;
use crate::tracker::{self, EbpfTracker};
use blocks::{ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentSet, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FOLDER: &str = "shutdown";
const NAME: &str = "plan.json";

/// For all disks of which a shutdown can be recorded.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Good in this boot only.
    pub boot: String,
    pub disks: Vec<DiskPlan>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DiskPlan {
    pub device: PathBuf,
    /// The file whose blocks take the record.
    pub record: String,
    witnesses: Vec<(u64, u64)>,
    suspects: Vec<(u64, u64)>,
    structure: Vec<(u64, u64)>,
    /// The BLAKE3 over the last, as they were.
    structure_was: [u8; 32],
}

impl DiskPlan {
    pub fn witnesses(&self) -> Result<ExtentSet> {
        set(&self.witnesses)
    }

    /// `Busy` where the disk was divided anew since the plan was made: then it is none for this disk.
    pub fn require_structure(&self, disk: &Disk) -> Result<()> {
        match digest(disk, &set(&self.structure)?)? == self.structure_was {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Busy,
                "its partitions or volumes were changed after the agent was stopped",
            )),
        }
    }

    pub fn suspects(&self) -> Result<ExtentSet> {
        set(&self.suspects)
    }
}

impl Plan {
    /// The plan that the agent left when it was stopped in this boot. `NotFound` where there is none.
    pub fn of_this_boot(state_dir: &Path) -> Result<Plan> {
        let plan = Plan::read(state_dir)?;
        match plan.boot == boot_id()? {
            true => Ok(plan),
            false => Err(Error::new(ErrorKind::NotFound, "the agent made its plan in another boot")),
        }
    }

    /// The plan that the agent left when it was last stopped. `NotFound` where there is none.
    pub fn read(state_dir: &Path) -> Result<Plan> {
        let path = folder(state_dir).join(NAME);
        let missing = |error| {
            let context = format!("{}: the agent made no plan when it stopped", path.display());
            Error::with_source(ErrorKind::NotFound, context, error)
        };
        let text = fs::read(&path).map_err(missing)?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::with_source(ErrorKind::Corrupt, path.display().to_string(), error))
    }
}

/// Where plan and records are.
pub(super) fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join(FOLDER)
}

/// The machine runs again and is written to: what was recorded is of no use any more.
pub(crate) fn forget(state_dir: &Path) -> Result<()> {
    let folder = folder(state_dir);
    match fs::remove_dir_all(&folder) {
        Ok(()) => sync_folder(state_dir),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(folder.display().to_string(), error)),
    }
}

/// The agent has been stopped: plans the record of each tracked disk. Which disks have none, and why.
pub(crate) fn plan(state_dir: &Path, devices: &[PathBuf]) -> Result<Vec<(PathBuf, Error)>> {
    forget(state_dir)?;
    let folder = folder(state_dir);
    fs::create_dir_all(&folder).map_err(|error| Error::io(folder.display().to_string(), error))?;
    let (mut surveys, mut refused) = (Vec::new(), Vec::new());
    for (number, device) in devices.iter().enumerate() {
        let record = folder.join(number.to_string());
        match survey(device, &record) {
            Ok(survey) => surveys.push((device, survey, record)),
            Err(error) => {
                // No room for it, perhaps: what there is of it takes up some.
                let _ = fs::remove_file(&record);
                refused.push((device.clone(), error));
            }
        }
    }
    // The records are written to when the maps have been read already, and may lie on any of the disks.
    let records: Vec<PathBuf> = surveys.iter().map(|(.., record)| record.clone()).collect();
    let mut disks = Vec::new();
    for (device, mut survey, record) in surveys {
        records.iter().try_for_each(|record| survey.suspect_file(record))?;
        let record = record.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let structure_was = digest(&Disk::open(device)?, &survey.structure)?;
        let [witnesses, suspects, structure] =
            [&survey.witnesses, &survey.suspects, &survey.structure].map(pairs);
        disks.push(DiskPlan {
            device: device.clone(),
            record,
            witnesses,
            suspects,
            structure,
            structure_was,
        });
    }
    let json = serde_json::to_vec(&Plan { boot: boot_id()?, disks }).expect("numbers and text");
    wire::write_private_file(&folder.join(NAME), &json)?;
    sync_folder(&folder)?;
    sync_folder(state_dir)?;
    Ok(refused)
}

/// Looks at one disk and makes the file for its record.
fn survey(device: &Path, record: &Path) -> Result<Survey> {
    let disk = Disk::open(device)?;
    if !tracker::is_pinned(&disk.kernel_name()) {
        return Err(Error::new(ErrorKind::NotFound, "it is not tracked in the kernel"));
    }
    let survey = Survey::of(&disk)?;
    make_file(record, Record::room(EbpfTracker::words_for(disk.len())))?;
    Ok(survey)
}

/// A file whose every block is allocated and initialised where it stays.
fn make_file(path: &Path, len: u64) -> Result<()> {
    let failed = |error: std::io::Error| Error::io(path.display().to_string(), error);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let kind = rustix::fs::fstatfs(&file).map_err(|error| failed(error.into()))?.f_type;
    // linux/magic.h: ext2, 3 and 4; XFS.
    if !matches!(u64::try_from(kind), Ok(0xef53 | 0x5846_5342)) {
        let context = format!("{}: its file system may move what is written over", path.display());
        return Err(unsupported(context));
    }
    let zeroes = vec![0; 1 << 20];
    let mut left = len as usize;
    while left > 0 {
        let step = left.min(zeroes.len());
        file.write_all(&zeroes[..step]).map_err(failed)?;
        left -= step;
    }
    file.sync_all().map_err(failed)
}

fn sync_folder(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(|error| Error::io(path.display().to_string(), error))
}

pub(super) fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).map_err(|error| Error::io(path, error))?.trim().to_owned())
}

fn pairs(extents: &ExtentSet) -> Vec<(u64, u64)> {
    extents.iter().map(|(extent, ())| (extent.start().get(), extent.len().get())).collect()
}

fn set(pairs: &[(u64, u64)]) -> Result<ExtentSet> {
    let extent = |(start, len): &(u64, u64)| Extent::new(ByteOffset::new(*start), ByteLen::new(*len));
    let extents = pairs.iter().map(extent).collect::<std::result::Result<Vec<_>, _>>();
    let extents =
        extents.map_err(|error| Error::with_source(ErrorKind::Corrupt, "the shutdown's plan", error))?;
    Ok(extents.into_iter().collect())
}
