//! Before anything is written in a new boot: the trackers go on where they were.

use super::content::Content;
use super::plan::{DiskPlan, Plan, boot_id, folder};
use super::record::Record;
use super::shutdown::overwrite;
use super::survey::digest;
use super::{Carried, require_source};
use crate::disk::Disk;
use crate::tracker::{self, EbpfTracker};
use blocks::{Error, ErrorKind, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Where root is looked into.
const LOOK_INTO: &str = "/run/understudy/root";

/// Takes over what was recorded at the last shutdown in the file system on `root`, a device that is not mounted yet, under
/// `state_dir` there, for those of `disks` that it is about. Each is tracked and trusted from here on, or, with the reason in its
/// [`Carried`], left alone. Must be called before anything writes to these disks in this boot; that is checked. `NotFound` where
/// nothing was recorded.
pub fn at_boot(root: &Path, state_dir: &Path, disks: &[PathBuf]) -> Result<Vec<Carried>> {
    require_source()?;
    let mounted = Mounted::new(root)?;
    let state_dir = mounted.inside(state_dir);
    let carry = |plan: &DiskPlan| {
        let refused = inherit(&folder(&state_dir).join(&plan.record), disks).err();
        Carried { device: plan.device.clone(), refused: refused.map(|error| error.to_string()) }
    };
    Ok(Plan::read(&state_dir)?.disks.iter().map(carry).collect())
}

fn inherit(path: &Path, disks: &[PathBuf]) -> Result<()> {
    let bytes = fs::read(path).map_err(|error| Error::io(path.display().to_string(), error))?;
    let record = Record::decode(&bytes)?;
    let disk = find(&record, disks)?;
    if record.boot == boot_id()?.parse()? {
        return Err(Error::new(ErrorKind::InvalidInput, "it was recorded in this very boot"));
    }
    if tracker::is_pinned(&disk.kernel_name()) {
        return Err(Error::new(ErrorKind::Busy, "it is tracked already"));
    }
    let (tracker, _) = EbpfTracker::open(disk.path())?;
    let taken_over = tracker.require_unwritten().and_then(|()| {
        if digest(&disk, &record.witnesses)? != record.digest {
            return Err(Error::new(ErrorKind::Busy, "somebody has written to it since it was recorded"));
        }
        overwrite(path, Record::struck_out())?;
        blocks::crash_point("reboot.struck");
        let suspects: Vec<_> = record.suspects.iter().map(|(extent, ())| extent).collect();
        tracker.inherit(record.base, record.shift, &record.changed, &suspects)
    });
    if taken_over.is_err() {
        // An agent attaches its own, and says why it scans.
        drop(tracker);
        tracker::detach(&disk.kernel_name())?;
    }
    taken_over
}

/// The disk that the record is of; device names may have been given out anew.
fn find(record: &Record, disks: &[PathBuf]) -> Result<Disk> {
    let is_it = |disk: &Disk| {
        let same_name = disk.path() == record.device;
        let named = !record.serial.is_empty() || same_name;
        disk.len() == record.len && disk.serial() == record.serial && named
    };
    let found = disks.iter().filter_map(|device| Disk::open(device).ok()).find(is_it);
    found.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such disk is there any more"))
}

/// Root, read-only and as it was left, for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn new(root: &Path) -> Result<Mounted> {
        let failed = |error: std::io::Error| Error::io(root.display().to_string(), error);
        let content = Content::of(root).map_err(failed)?;
        // Neither replays a journal.
        let (kind, options): (&str, &CStr) = match content {
            Content::FileSystem(kind @ "xfs", _) => (kind, c"norecovery"),
            Content::FileSystem(kind, _) => (kind, c"noload"),
            _ => {
                let context = format!("{} is neither ext4 nor XFS", root.display());
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
        };
        let at = PathBuf::from(LOOK_INTO);
        fs::create_dir_all(&at).map_err(|error| Error::io(LOOK_INTO, error))?;
        mount(root, &at, kind, MountFlags::RDONLY, Some(options)).map_err(|error| failed(error.into()))?;
        Ok(Mounted(at))
    }

    /// A path of that root.
    fn inside(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::empty()) {
            tracing::warn!("{}: {error}", self.0.display());
        }
        let _ = fs::remove_dir(&self.0);
    }
}
