//! What the agent found, as a definition for whoever runs a stand-in.
//!
//! The inventory is the newest that the machine's agent sent; it is not kept for each checkpoint. The disks' lengths are
//! those of the checkpoint.

use blocks::{ByteLen, Error, ErrorKind, Result};
use hypervisor::{Definition, Disk, Firmware, Mac, Source};
use store::{DiskSpec, Unit};
use wire::Inventory;

/// A definition, and what of the inventory is not in it.
pub(crate) struct Defined {
    pub definition: Definition,
    pub notes: Vec<String>,
}

/// The machine with its protected disks, which have these lengths and are to be had there, in the disks' order. Errors:
/// `InvalidInput` where the inventory does not say what a machine needs; `Unsupported` for an unknown architecture.
pub(crate) fn define(unit: &Unit, lens: &[ByteLen], sources: Vec<Source>) -> Result<Defined> {
    let defined = from_inventory(unit.name(), &inventory(unit)?, &unit.disks(), lens, sources)?;
    defined.definition.check()?;
    Ok(defined)
}

/// What the agent sent last. Errors: `InvalidInput` where there is none, or none that can be read.
pub(crate) fn inventory(unit: &Unit) -> Result<Inventory> {
    let name = unit.name();
    let json = String::from_utf8(unit.definition()).unwrap_or_default();
    if json.is_empty() {
        let context = format!("nothing is known of '{name}' but its disks: its agent sent no inventory");
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    Inventory::from_json(&json).map_err(|error| error.context(format_args!("'{name}'")))
}

fn from_inventory(
    name: String,
    inventory: &Inventory,
    disks: &[DiskSpec],
    lens: &[ByteLen],
    sources: Vec<Source>,
) -> Result<Defined> {
    let mut notes = Vec::new();
    let nics = nics(inventory, &mut notes);
    let architecture = inventory.architecture.parse();
    let disks =
        disks.iter().zip(lens).zip(sources).map(|((spec, len), source)| disk(inventory, spec, *len, source));
    let definition = Definition {
        host_name: inventory.hostname.trim().to_owned(),
        firmware: match inventory.firmware {
            wire::Firmware::Bios => Firmware::Bios,
            wire::Firmware::Uefi => Firmware::Uefi,
        },
        architecture: architecture.map_err(|error: Error| error.context(format_args!("'{name}'")))?,
        cpus: inventory.cpus,
        memory: ByteLen::new(inventory.memory_bytes),
        nics,
        disks: disks.collect(),
        name,
    };
    Ok(Defined { definition, notes })
}

fn nics(inventory: &Inventory, notes: &mut Vec<String>) -> Vec<Mac> {
    let mut nics: Vec<Mac> = Vec::new();
    for nic in &inventory.nics {
        let name = nic.name.escape_debug();
        match nic.mac.parse() {
            Ok(mac) if nics.contains(&mac) => {
                notes.push(format!("{name} is left out: another card has its address {mac}, as in a bond"));
            }
            Ok(mac) => nics.push(mac),
            Err(error) => notes.push(format!("{name} is left out: {error}")),
        }
    }
    nics
}

fn disk(inventory: &Inventory, spec: &DiskSpec, len: ByteLen, source: Source) -> Disk {
    let known = inventory.disk(&spec.device);
    let text = |text: &String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let serial = known.and_then(|disk| disk.serial.as_ref()).and_then(text);
    let wwn = known.and_then(|disk| disk.wwn.as_ref()).and_then(text);
    // What the disk was registered by is its serial number or, where it has none, its world-wide name.
    let registered = text(&spec.serial).filter(|registered| wwn.as_ref() != Some(registered));
    Disk { len, serial: serial.or(registered), wwn, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{DiskInventory, Nic};

    fn spec(device: &str, serial: &str) -> DiskSpec {
        DiskSpec { len: ByteLen::new(512), serial: serial.to_owned(), device: device.to_owned() }
    }

    #[test]
    fn only_protected_disks_are_in_it_with_what_is_known_of_them() {
        let disk = |device: &str, serial: Option<&str>, wwn: Option<&str>| DiskInventory {
            device: device.to_owned(),
            serial: serial.map(str::to_owned),
            wwn: wwn.map(str::to_owned),
            ..DiskInventory::default()
        };
        let nic = |name: &str, mac: &str| Nic { name: name.to_owned(), mac: mac.to_owned() };
        let inventory = Inventory {
            hostname: "web\n".to_owned(),
            architecture: "x86_64".to_owned(),
            cpus: 2,
            memory_bytes: 1 << 30,
            firmware: wire::Firmware::Uefi,
            nics: vec![
                nic("eth0", "52:54:00:00:00:01"),
                nic("eth1", "52:54:00:00:00:01"),
                nic("ib0", "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:00:00:01"),
            ],
            disks: vec![
                disk("/dev/sda", Some("  S1 "), None),
                disk("/dev/sdb", Some("not protected"), None),
                disk("/dev/sdc", None, Some("naa.5000c500a1b2c3d4")),
            ],
            ..Inventory::default()
        };
        let specs =
            [spec("/dev/sdc", "naa.5000c500a1b2c3d4"), spec("/dev/sda", "S1"), spec("/dev/gone", "S9")];
        let lens = [1024, 2048, 4096].map(ByteLen::new);
        let sources = ["a.raw", "b.raw", "c.raw"].map(|path| path.parse().unwrap()).to_vec();
        let defined = from_inventory("m".to_owned(), &inventory, &specs, &lens, sources).unwrap();
        let machine = defined.definition;
        assert_eq!((machine.host_name.as_str(), machine.firmware), ("web", Firmware::Uefi));
        let disks: Vec<_> = machine
            .disks
            .iter()
            .map(|disk| (disk.len.get(), disk.serial.as_deref(), disk.wwn.as_deref()))
            .collect();
        let expected =
            [(1024, None, Some("naa.5000c500a1b2c3d4")), (2048, Some("S1"), None), (4096, Some("S9"), None)];
        assert_eq!(disks, expected);
        assert_eq!((machine.nics.len(), defined.notes.len()), (1, 2), "{:?}", defined.notes);
        let other = Inventory { architecture: "riscv64".to_owned(), ..inventory };
        let error = from_inventory("m".to_owned(), &other, &specs, &lens, Vec::new()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
