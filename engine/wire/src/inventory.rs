//! What a machine is: the definition that a stand-in is made from, and that a person reads to recognise it.
//!
//! JSON, because people and tools read it, it is small, and it grows: fields that are missing take their default,
//! fields that are unknown are ignored, so both sides may be of different age.

use blocks::{ByteLen, Error, ErrorKind, Id, Result};
use serde::{Deserialize, Serialize};

/// The longest inventory in bytes of JSON.
const INVENTORY_BYTES_MAX: usize = 1 << 20;

/// A machine as its agent finds it. Sizes and positions are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inventory {
    /// The host name.
    pub hostname: String,
    /// The kernel's release, as `uname -r` says it.
    pub kernel: String,
    /// `x86_64`, `aarch64`, as `uname -m` says it.
    pub architecture: String,
    /// The kernel's boot id; `None` where it cannot be told.
    pub boot_id: Option<String>,
    /// How the machine boots.
    pub firmware: Firmware,
    /// How many processors are online.
    pub cpus: u32,
    /// How much memory the kernel has.
    pub memory_bytes: u64,
    /// Network interfaces with hardware.
    pub nics: Vec<Nic>,
    /// Whole block devices, protected or not.
    pub disks: Vec<DiskInventory>,
    /// What is mounted from a block device.
    pub file_systems: Vec<FileSystem>,
}

/// How a machine boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// From a boot sector.
    #[default]
    Bios,
    /// From an EFI system partition.
    Uefi,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Nic {
    /// Its name: `eth0`.
    pub name: String,
    /// Its hardware address: `52:54:00:12:34:56`.
    pub mac: String,
}

/// A whole block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskInventory {
    /// Its path: `/dev/sda`.
    pub device: String,
    /// Its size.
    pub len: u64,
    /// Its serial number, where it has one.
    pub serial: Option<String>,
    /// Its world-wide name, where it has one.
    pub wwn: Option<String>,
    /// Its logical sector size.
    pub sector_bytes: u32,
    /// Its partitions, in the order of their numbers.
    pub partitions: Vec<Partition>,
}

/// A part of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Partition {
    /// Its number on the disk, from 1.
    pub number: u32,
    /// Its path: `/dev/sda1`.
    pub device: String,
    /// Where it starts on the disk.
    pub start: u64,
    /// How long it is.
    pub len: u64,
    /// The type in the partition table, where it is known: a GUID or an MBR type in hexadecimal.
    pub kind: Option<String>,
    /// The partition's own UUID, where it is known.
    pub uuid: Option<String>,
}

/// A mounted file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileSystem {
    /// Where it is mounted.
    pub mount_point: String,
    /// What it is: `ext4`.
    pub kind: String,
    /// The device it is mounted from: `/dev/sda1`.
    pub device: String,
}

impl Inventory {
    /// Reads what [`Inventory::to_json`] wrote, perhaps in another release. `InvalidInput` over 1 MiB or where it is
    /// no inventory.
    pub fn from_json(json: &str) -> Result<Inventory> {
        if json.len() > INVENTORY_BYTES_MAX {
            let context = format!("an inventory of {} bytes is over {INVENTORY_BYTES_MAX}", json.len());
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        serde_json::from_str(json)
            .map_err(|error| Error::with_source(ErrorKind::InvalidInput, "the machine's inventory", error))
    }

    /// The inventory as one line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an inventory has only text keys and finite numbers")
    }

    /// The boot id as a number that can be compared; `None` where there is none or it is none.
    pub fn boot(&self) -> Option<Id> {
        self.boot_id.as_deref().and_then(|text| text.trim().parse().ok())
    }

    /// The disk at this path.
    pub fn disk(&self, device: &str) -> Option<&DiskInventory> {
        self.disks.iter().find(|disk| disk.device == device)
    }
}

impl DiskInventory {
    /// Its size.
    pub fn len(&self) -> ByteLen {
        ByteLen::new(self.len)
    }

    /// Whether it has no bytes, such as a card reader without a card.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Inventory {
        Inventory {
            hostname: "web-1".into(),
            kernel: "6.1.0-30-cloud-amd64".into(),
            architecture: "x86_64".into(),
            boot_id: Some("00112233-4455-6677-8899-aabbccddeeff\n".into()),
            firmware: Firmware::Uefi,
            cpus: 4,
            memory_bytes: 8 << 30,
            nics: vec![Nic { name: "eth0".into(), mac: "52:54:00:12:34:56".into() }],
            disks: vec![DiskInventory {
                device: "/dev/sda".into(),
                len: 1 << 30,
                serial: Some("S1".into()),
                wwn: None,
                sector_bytes: 512,
                partitions: vec![Partition {
                    number: 1,
                    device: "/dev/sda1".into(),
                    start: 1 << 20,
                    len: 1 << 29,
                    kind: Some("c12a7328-f81f-11d2-ba4b-00a0c93ec93b".into()),
                    uuid: None,
                }],
            }],
            file_systems: vec![FileSystem {
                mount_point: "/".into(),
                kind: "ext4".into(),
                device: "/dev/sda1".into(),
            }],
        }
    }

    #[test]
    fn an_inventory_reads_what_it_writes() {
        let inventory = sample();
        assert_eq!(Inventory::from_json(&inventory.to_json()).unwrap(), inventory);
        assert_eq!(inventory.boot().unwrap().to_string(), "00112233445566778899aabbccddeeff");
        assert_eq!(inventory.disk("/dev/sda").unwrap().len(), ByteLen::new(1 << 30));
    }

    #[test]
    fn older_and_newer_inventories_are_read() {
        let older = Inventory::from_json(r#"{"hostname":"old"}"#).unwrap();
        assert_eq!(older, Inventory { hostname: "old".into(), ..Inventory::default() });
        let newer =
            Inventory::from_json(r#"{"hostname":"new","tpm":{"version":2},"firmware":"uefi"}"#).unwrap();
        assert_eq!((newer.hostname.as_str(), newer.firmware), ("new", Firmware::Uefi));
        for wrong in ["", "3", "{\"cpus\":-1}", "{\"firmware\":\"coreboot\"}"] {
            assert_eq!(Inventory::from_json(wrong).unwrap_err().kind(), ErrorKind::InvalidInput, "{wrong}");
        }
        let long = format!("{{\"hostname\":\"{}\"}}", "x".repeat(INVENTORY_BYTES_MAX));
        assert!(Inventory::from_json(&long).unwrap_err().to_string().contains("is over"));
    }
}
