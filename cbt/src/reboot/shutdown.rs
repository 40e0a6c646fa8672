//! Everything stands still: what the trackers know is recorded.

use super::layout::node;
use super::plan::{DiskPlan, Plan, boot_id, folder};
use super::record::Record;
use super::survey::digest;
use super::{Carried, layout, require_source};
use crate::disk::{DeviceNumber, Disk, read_u64, sysfs_dir};
use crate::mounts::{file_extents, members, superblocks, swap_devices};
use crate::tracker::{self, Agreement, EbpfTracker, Tracker, Trust};
use blocks::{AlignedBuffer, ByteLen, Error, ErrorKind, Extent, Result, SECTOR_BYTES};
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// How long the last writes may take to be counted.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);

/// Records what the trackers know, for the next boot. To be called when nothing is mounted for writing any more, and followed by
/// the machine's end: what is written afterwards is not in the record. Nothing is recorded for a disk where that cannot be relied on;
/// the reason is in its [`Carried`]. `NotFound` where no agent was stopped in order in this boot.
pub fn at_shutdown(state_dir: &Path) -> Result<Vec<Carried>> {
    require_source()?;
    let plan = Plan::of_this_boot(state_dir)?;
    let carry = |disk: &DiskPlan| {
        let refused = record(state_dir, disk).err().map(|error| error.to_string());
        Carried { device: disk.device.clone(), refused }
    };
    Ok(plan.disks.iter().map(carry).collect())
}

fn record(state_dir: &Path, plan: &DiskPlan) -> Result<()> {
    let disk = Disk::open(&plan.device)?;
    if !tracker::is_pinned(&disk.kernel_name()) {
        return Err(Error::new(ErrorKind::NotFound, "it is not tracked any more"));
    }
    require_still(&disk)?;
    plan.require_structure(&disk)?;
    let (tracker, _) = EbpfTracker::open(&plan.device)?;
    if let Trust::Untrusted { reason } = tracker.trust() {
        return Err(Error::new(ErrorKind::Unsupported, format!("its map is not trusted: {reason}")));
    }
    let base = tracker.base();
    let base = base.ok_or_else(|| Error::new(ErrorKind::NotFound, "nothing of it was acknowledged yet"))?;
    agree(&tracker)?;
    let (witnesses, suspects) = (plan.witnesses()?, plan.suspects()?);
    let record = Record {
        boot: boot_id()?.parse()?,
        device: plan.device.clone(),
        serial: disk.serial(),
        len: disk.len(),
        base,
        digest: digest(&disk, &witnesses)?,
        witnesses,
        suspects,
        shift: tracker.grain(),
        changed: tracker.changed_words(),
    };
    overwrite(&folder(state_dir).join(&plan.record), &record.encode())
}

/// Nothing on the disk can be written but past its file systems.
fn require_still(disk: &Disk) -> Result<()> {
    let busy = |what: String| Err(Error::new(ErrorKind::Busy, what));
    if let Some(mounted) = superblocks(&[disk.number()]).iter().find(|mounted| !mounted.read_only) {
        return busy(format!("{} is still mounted for writing", mounted.mount_point.display()));
    }
    let members = members(disk.number());
    match swap_devices().iter().find(|device| members.contains_key(device)) {
        Some(device) => busy(format!("device {device} is still swapped to")),
        None => Ok(()),
    }
}

/// The counts prove that no write was missed.
fn agree(tracker: &EbpfTracker) -> Result<()> {
    let mut verdict = tracker.agree(SETTLE_WITHIN)?;
    if matches!(verdict, Agreement::CompletedShort { .. }) {
        // All that was taken since is marked again, and so recorded.
        verdict = tracker.agree(SETTLE_WITHIN)?;
    }
    match verdict {
        Agreement::Agree => Ok(()),
        other => Err(Error::new(ErrorKind::Busy, format!("its writes do not add up: {other:?}"))),
    }
}

/// Writes over the start of a file of a file system that is read-only, by the file's blocks.
pub(super) fn overwrite(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |error: std::io::Error| Error::io(path.display().to_string(), error);
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if (bytes.len() as u64) > metadata.len() {
        let context =
            format!("{} has {} bytes; {} are to go there", path.display(), metadata.len(), bytes.len());
        return Err(Error::new(ErrorKind::NoSpace, context));
    }
    let number = DeviceNumber::from_raw(metadata.dev());
    let sectors = read_u64(sysfs_dir(number)?.join("size")).unwrap_or(0);
    let whole = Extent::whole(ByteLen::new(sectors * SECTOR_BYTES));
    let whole = whole.ok_or_else(|| layout::unsupported(format!("device {number} has no bytes")))?;
    let blocks = file_extents(path, whole, ByteLen::ZERO).map_err(failed)?;
    let covered: ByteLen = blocks.iter().map(|extent| extent.len()).sum();
    if covered.get() < metadata.len() {
        return Err(layout::unsupported(format!("{} has blocks without a place", path.display())));
    }
    let node = node(number)?;
    let flags = libc::O_DIRECT | libc::O_SYNC;
    let device = OpenOptions::new().write(true).custom_flags(flags).open(&node).map_err(failed)?;
    let mut left = bytes;
    for part in blocks.iter().flat_map(|extent| extent.split(ByteLen::new(1 << 20))) {
        if left.is_empty() {
            break;
        }
        let step = left.len().min(part.len().as_usize());
        let mut buffer = AlignedBuffer::new(step.next_multiple_of(SECTOR_BYTES as usize));
        buffer[..step].copy_from_slice(&left[..step]);
        device.write_all_at(&buffer, part.start().get()).map_err(failed)?;
        left = &left[step..];
    }
    device.sync_all().map_err(failed)
}
