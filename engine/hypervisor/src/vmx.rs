//! VMware's configuration file: `key = "value"`, a line each.

use crate::DiskFormat;
use crate::definition::{Architecture, Definition, Firmware};
use crate::form::{Document, left_out};
use crate::source::Source;
use blocks::{Error, ErrorKind, Result};

/// Controllers, and disks of each: one place is the controller's own.
const CONTROLLERS_MAX: usize = 4;
const DISKS_PER_CONTROLLER: usize = 15;
const NICS_MAX: usize = 10;

pub(crate) fn write(definition: &Definition) -> Result<Document> {
    check(definition)?;
    let mut lines = Lines(Vec::new());
    lines.add(".encoding", "UTF-8");
    lines.add("config.version", "8");
    lines.add("virtualHW.version", "14");
    lines.add("displayName", &definition.name);
    lines.add("annotation", &definition.host_name);
    lines.add("guestOS", "otherlinux-64");
    lines.add("firmware", if definition.firmware == Firmware::Uefi { "efi" } else { "bios" });
    lines.add("numvcpus", &definition.cpus.to_string());
    lines.add("memSize", &definition.memory_mib().to_string());
    lines.add("pciBridge0.present", "TRUE");
    for bridge in 4..8 {
        lines.add(&format!("pciBridge{bridge}.present"), "TRUE");
        lines.add(&format!("pciBridge{bridge}.virtualDev"), "pcieRootPort");
        lines.add(&format!("pciBridge{bridge}.functions"), "8");
    }
    let mut notes = Vec::new();
    disks(definition, &mut lines, &mut notes)?;
    nics(definition, &mut lines);
    notes.push("the network cards are on VMware's NAT; ethernetN.connectionType says otherwise".to_owned());
    Ok(Document { text: lines.0.concat(), notes })
}

fn check(definition: &Definition) -> Result<()> {
    let (disks, nics) = (definition.disks.len(), definition.nics.len());
    let what = match () {
        () if definition.architecture != Architecture::X86_64 => {
            format!("a .vmx is written for x86_64, and this machine is {}", definition.architecture)
        }
        () if disks > CONTROLLERS_MAX * DISKS_PER_CONTROLLER => {
            format!("{disks} disks; a .vmx has places for {}", CONTROLLERS_MAX * DISKS_PER_CONTROLLER)
        }
        () if nics > NICS_MAX => format!("{nics} network cards; a .vmx has places for {NICS_MAX}"),
        () => return Ok(()),
    };
    Err(Error::new(ErrorKind::Unsupported, what))
}

struct Lines(Vec<String>);

impl Lines {
    fn add(&mut self, key: &str, value: &str) {
        self.0.push(format!("{key} = \"{}\"\n", escape(value)));
    }
}

/// A bar and two hexadecimal digits stand for a byte that would end the value or the line, as VMware writes them.
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '"' | '|' | '#' | '\u{7f}' => escaped.push_str(&format!("|{:02X}", u32::from(c))),
            c if c < ' ' => escaped.push_str(&format!("|{:02X}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped
}

fn disks(definition: &Definition, lines: &mut Lines, notes: &mut Vec<String>) -> Result<()> {
    for (number, disk) in definition.disks.iter().enumerate() {
        let path = match &disk.source {
            Source::File { path, format: DiskFormat::Vmdk } => path,
            other => {
                let is = match other {
                    Source::File { format, .. } => format.name(),
                    Source::Nbd(_) => "an NBD export",
                };
                let context = format!(
                    "VMware runs from vmdk files, and disk {number} is {is}: export it as vmdk first"
                );
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
        };
        let (controller, place) = (number / DISKS_PER_CONTROLLER, number % DISKS_PER_CONTROLLER);
        if place == 0 {
            lines.add(&format!("scsi{controller}.present"), "TRUE");
            lines.add(&format!("scsi{controller}.virtualDev"), "pvscsi");
        }
        // The controller has number 7 itself.
        let unit = if place < 7 { place } else { place + 1 };
        lines.add(&format!("scsi{controller}:{unit}.present"), "TRUE");
        lines.add(&format!("scsi{controller}:{unit}.fileName"), path);
        notes.extend(disk.serial.as_ref().map(|serial| left_out(number, "serial number", serial)));
        notes.extend(disk.wwn.as_ref().map(|wwn| left_out(number, "world-wide name", wwn)));
    }
    Ok(())
}

fn nics(definition: &Definition, lines: &mut Lines) {
    for (number, mac) in definition.nics.iter().enumerate() {
        let mut add = |key: &str, value: &str| lines.add(&format!("ethernet{number}.{key}"), value);
        add("present", "TRUE");
        add("virtualDev", "vmxnet3");
        add("connectionType", "nat");
        add("addressType", "static");
        add("address", &mac.to_string());
        // VMware takes addresses from outside its own range only where it is told not to look.
        add("checkMACAddress", "FALSE");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::testing::{HOSTILE, definition};
    use std::collections::BTreeMap;

    /// Keys and values as VMware reads them.
    fn read(text: &str) -> BTreeMap<String, String> {
        let mut read = BTreeMap::new();
        for line in text.lines() {
            let (key, value) = line.split_once(" = \"").unwrap();
            let value = value.strip_suffix('"').unwrap();
            assert!(!value.contains('"'));
            let mut parts = value.split('|');
            let mut plain = parts.next().unwrap().to_owned();
            for part in parts {
                plain.push(char::from(u8::from_str_radix(&part[..2], 16).unwrap()));
                plain.push_str(&part[2..]);
            }
            assert_eq!(read.insert(key.to_owned(), plain), None, "{key} is there once");
        }
        read
    }

    #[test]
    fn the_machine_is_in_it_and_nothing_breaks_out() {
        let plain = read(&write(&definition()).unwrap().text);
        assert_eq!((plain["firmware"].as_str(), plain["memSize"].as_str()), ("efi", "2048"));
        assert_eq!(plain["scsi0:1.fileName"], "/srv/b.vmdk");
        assert_eq!(plain["ethernet1.address"], "52:54:00:00:00:02");
        for hostile in HOSTILE {
            let mut machine = Definition { host_name: hostile.to_owned(), ..definition() };
            machine.disks[0].source = Source::File { path: hostile.to_owned(), format: DiskFormat::Vmdk };
            let written = read(&write(&machine).unwrap().text);
            assert_eq!(written.len(), plain.len(), "{hostile:?}");
            assert_eq!(
                (&written["annotation"], &written["scsi0:0.fileName"]),
                (&hostile.to_owned(), &hostile.to_owned())
            );
        }
    }

    #[test]
    fn no_disk_takes_the_controllers_own_number() {
        let mut machine = definition();
        machine.disks = vec![machine.disks[0].clone(); 60];
        let written = read(&write(&machine).unwrap().text);
        assert!(!written.contains_key("scsi0:7.present") && written.contains_key("scsi3:15.present"));
        machine.disks.push(machine.disks[0].clone());
        assert_eq!(write(&machine).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn what_vmware_cannot_run_from_is_refused_by_name() {
        let mut machine = definition();
        machine.disks[1].source = "/srv/b.qcow2".parse().unwrap();
        let error = write(&machine).unwrap_err().to_string();
        assert!(error.contains("disk 1") && error.contains("qcow2"), "{error}");
        machine.disks[1].source = "nbd://a/b".parse().unwrap();
        assert!(write(&machine).unwrap_err().to_string().contains("NBD"));
    }
}
