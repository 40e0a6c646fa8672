//! Which file systems live on a disk, and how far above it.

use super::mountinfo::{MountEntry, all_mounts};
use crate::disk::{DeviceNumber, holders, partitions, read_text, sysfs_dir};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// A mounted file system on a disk.
#[derive(Clone, Debug)]
pub(crate) struct Superblock {
    /// Its device.
    pub number: DeviceNumber,
    /// How many layers above the disk: what is frozen first is the highest.
    pub height: u32,
    /// One of its mount points, to open.
    pub reachable: PathBuf,
    /// The same, for people.
    pub mount_point: PathBuf,
    /// Whether nothing can be written to it.
    pub read_only: bool,
}

/// The disk itself and every device that is part of it or stacked on it, with its height above the disk.
pub(crate) fn members(disk: DeviceNumber) -> BTreeMap<DeviceNumber, u32> {
    let mut found = BTreeMap::new();
    add_member(disk, 0, &mut found);
    found
}

fn add_member(number: DeviceNumber, height: u32, found: &mut BTreeMap<DeviceNumber, u32>) {
    // A device can be reached twice (a volume over two partitions); the higher place counts.
    if found.get(&number).is_some_and(|known| *known >= height) || height > 32 {
        return;
    }
    found.insert(number, height);
    let Ok(sysfs) = sysfs_dir(number) else { return };
    for partition in partitions(&sysfs) {
        add_member(partition.device, height + 1, found);
    }
    for holder in holders(&sysfs) {
        add_member(holder, height + 1, found);
    }
}

/// The mounted superblocks on these disks, each once, upper before lower.
pub(crate) fn superblocks(disks: &[DeviceNumber]) -> Vec<Superblock> {
    let mounts = all_mounts();
    let mut devices = BTreeMap::new();
    for disk in disks {
        add_member(*disk, 0, &mut devices);
    }
    // A loop device over a file on one of them is a layer above; and so on.
    for _ in 0..8 {
        let found = collect(&mounts, &devices);
        let before = devices.len();
        for (number, file_system) in loops_on(&found) {
            add_member(number, file_system + 1, &mut devices);
        }
        if devices.len() == before {
            break;
        }
    }
    collect(&mounts, &devices)
}

fn collect(mounts: &[MountEntry], devices: &BTreeMap<DeviceNumber, u32>) -> Vec<Superblock> {
    let mut found: BTreeMap<DeviceNumber, Superblock> = BTreeMap::new();
    for mount in mounts {
        let Some(height) = mount.device_number().and_then(|number| devices.get(&number)) else { continue };
        let candidate = || Superblock {
            number: mount.superblock,
            height: *height,
            reachable: mount.reachable.clone(),
            mount_point: mount.mount_point.clone(),
            read_only: mount.read_only,
        };
        found.entry(mount.superblock).or_insert_with(candidate);
    }
    let mut found: Vec<Superblock> = found.into_values().collect();
    found.sort_by_key(|superblock| std::cmp::Reverse(superblock.height));
    found
}

/// Loop devices whose backing file lies on one of these file systems, with the height of that file system.
fn loops_on(file_systems: &[Superblock]) -> Vec<(DeviceNumber, u32)> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let backing = read_text(entry.path().join("loop/backing_file"))?;
            let on = DeviceNumber::from_raw(fs::metadata(backing).ok()?.dev());
            let below = file_systems.iter().find(|file_system| file_system.number == on)?;
            Some((DeviceNumber::parse(&read_text(entry.path().join("dev"))?)?, below.height))
        })
        .collect()
}
