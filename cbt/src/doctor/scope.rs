//! Whether the disks are all that the machine lives on.

use super::Finding;
use crate::disk::DeviceNumber;
use crate::inventory::device_path;
use crate::mounts::{MountEntry, members, own_mounts};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// File systems that hold nothing of a machine's own.
const FOREIGN: [&str; 4] = ["squashfs", "iso9660", "erofs", "udf"];

/// The whole disks below file systems that can be written.
pub(super) fn disks_in_use() -> Vec<PathBuf> {
    let used = mounted();
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut disks: Vec<PathBuf> = entries
        .filter_map(|entry| {
            let number = DeviceNumber::parse(fs::read_to_string(entry.path().join("dev")).ok()?.trim())?;
            // A loop device, a RAID or a volume is a layer: what is below it is the disk.
            let is_layer = !entry.path().join("device").exists();
            let is_used = used
                .iter()
                .any(|mount| mount.device_number().is_some_and(|found| members(number).contains_key(&found)));
            (is_used && !is_layer).then(|| PathBuf::from(device_path(number)))
        })
        .collect();
    disks.sort();
    disks
}

/// Names what is mounted from elsewhere than these disks.
pub(super) fn examine(disks: &[PathBuf]) -> Vec<Finding> {
    let numbers =
        disks.iter().filter_map(|disk| Some(DeviceNumber::from_raw(fs::metadata(disk).ok()?.rdev())));
    let protected: BTreeSet<DeviceNumber> = numbers.flat_map(|number| members(number).into_keys()).collect();
    let mut seen = BTreeSet::new();
    let elsewhere = mounted().into_iter().filter_map(|mount| {
        let number = mount.device_number()?;
        (!protected.contains(&number) && seen.insert(number)).then(|| {
            let point = mount.mount_point.display();
            let what = format!("{point} is on {}, which is on none of the disks", device_path(number));
            Finding::doubtful("scope", what, "protect its disk too if the stand-in needs it")
        })
    });
    elsewhere.collect()
}

fn mounted() -> Vec<MountEntry> {
    let own = |mount: &MountEntry| !mount.read_only && !FOREIGN.contains(&mount.kind.as_str());
    own_mounts().into_iter().filter(own).collect()
}
