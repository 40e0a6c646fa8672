//! What this machine is: the definition that a stand-in is made from.
//!
//! Gathered from /sys and /proc alone: no tool has to be installed, nothing is opened but what the kernel shows.

use crate::disk::{DeviceNumber, partitions, read_text, read_u64};
use crate::mounts::{MountEntry, own_mounts};
use std::fs;
use std::path::Path;
use wire::{DiskInventory, FileSystem, Firmware, Inventory, Nic, Partition};

/// The machine as it is now.
pub fn collect() -> Inventory {
    Inventory {
        hostname: read_text("/proc/sys/kernel/hostname").unwrap_or_default(),
        kernel: read_text("/proc/sys/kernel/osrelease").unwrap_or_default(),
        architecture: std::env::consts::ARCH.to_owned(),
        boot_id: read_text("/proc/sys/kernel/random/boot_id"),
        firmware: if Path::new("/sys/firmware/efi").exists() { Firmware::Uefi } else { Firmware::Bios },
        cpus: cpus(),
        memory_bytes: memory_bytes(),
        nics: nics(),
        disks: disks(),
        file_systems: file_systems(&own_mounts()),
    }
}

fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

fn memory_bytes() -> u64 {
    let text = read_text("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn nics() -> Vec<Nic> {
    let with_hardware = |name: &String| Path::new(&format!("/sys/class/net/{name}/device")).exists();
    names("/sys/class/net")
        .into_iter()
        .filter(with_hardware)
        .map(|name| Nic {
            mac: read_text(format!("/sys/class/net/{name}/address")).unwrap_or_default(),
            name,
        })
        .collect()
}

fn disks() -> Vec<DiskInventory> {
    let disks = names("/sys/block").into_iter().map(|name| disk(&name));
    // Loop and RAM devices that nothing is attached to are there by the dozen and have no bytes.
    disks.filter(|disk| !disk.is_empty() && !disk.device.starts_with("/dev/ram")).collect()
}

fn disk(name: &str) -> DiskInventory {
    let sysfs = Path::new("/sys/block").join(name);
    let first = |names: &[&str]| names.iter().find_map(|name| read_text(sysfs.join(name)));
    DiskInventory {
        device: format!("/dev/{}", name.replace('!', "/")),
        len: read_u64(sysfs.join("size")).unwrap_or(0) * blocks::SECTOR_BYTES,
        serial: first(&["serial", "device/serial"]),
        wwn: first(&["wwid", "device/wwid"]),
        sector_bytes: read_u64(sysfs.join("queue/logical_block_size"))
            .and_then(|bytes| u32::try_from(bytes).ok())
            .unwrap_or(512),
        partitions: partitions(&sysfs).iter().map(partition).collect(),
    }
}

fn partition(facts: &crate::disk::PartitionFacts) -> Partition {
    let uevent = read_text(facts.sysfs.join("uevent")).unwrap_or_default();
    Partition {
        number: facts.number,
        device: format!("/dev/{}", facts.name.replace('!', "/")),
        start: facts.extent.start().get(),
        len: facts.extent.len().get(),
        kind: None,
        uuid: uevent.lines().find_map(|line| line.strip_prefix("PARTUUID=")).map(str::to_owned),
    }
}

fn file_systems(mounts: &[MountEntry]) -> Vec<FileSystem> {
    let on_device = |mount: &&MountEntry| mount.device_number().is_some_and(|number| number.major != 0);
    let describe = |mount: &MountEntry| FileSystem {
        mount_point: mount.mount_point.display().to_string(),
        kind: mount.kind.clone(),
        device: mount.device_number().map(device_path).unwrap_or_else(|| mount.source.clone()),
    };
    mounts.iter().filter(on_device).map(describe).collect()
}

/// The path of a block device by its number: what udev links may call it is not asked.
pub(crate) fn device_path(number: DeviceNumber) -> String {
    let uevent = read_text(format!("/sys/dev/block/{number}/uevent")).unwrap_or_default();
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| format!("block device {number}"), |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_that_runs_this_is_described() {
        let inventory = collect();
        assert!(inventory.cpus > 0 && inventory.memory_bytes > 1 << 20);
        assert!(inventory.boot().is_some(), "{:?}", inventory.boot_id);
        assert!(!inventory.kernel.is_empty() && !inventory.hostname.is_empty());
        assert!(inventory.disks.iter().all(|disk| disk.len > 0 && disk.sector_bytes >= 512));
        let read = Inventory::from_json(&inventory.to_json()).unwrap();
        assert_eq!(read, inventory);
    }
}
