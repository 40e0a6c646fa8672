//! libvirt's domain XML (libvirt.org/formatdomain.html).

use crate::definition::{Architecture, Bus, Definition, Disk, Firmware};
use crate::form::{Acceleration, Document, FormOptions, left_out};
use crate::nbd_address::{NbdAddress, NbdPlace};
use crate::source::Source;
use crate::xml::Xml;
use blocks::Result;

/// The longest serial number that a guest sees on the bus is shorter; libvirt's schema says which letters it has.
fn is_serial(serial: &str) -> bool {
    serial.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.+- ".contains(&byte))
}

pub(crate) fn write(definition: &Definition, options: &FormOptions) -> Result<Document> {
    let mut notes = vec!["the network cards are on libvirt's network 'default'".to_owned()];
    let mut xml = Xml::new();
    let kind = if options.acceleration == Acceleration::Tcg { "qemu" } else { "kvm" };
    xml.open("domain", &[("type", kind)]);
    xml.text("name", &[], &definition.name);
    let title = definition.host_name.replace(['\n', '\r'], " ");
    if !title.is_empty() {
        xml.text("title", &[], &title);
    }
    xml.text("memory", &[("unit", "MiB")], &definition.memory_mib().to_string());
    xml.text("vcpu", &[], &definition.cpus.to_string());
    boot(&mut xml, definition);
    xml.open("devices", &[]);
    let bus = definition.bus();
    for (number, disk) in definition.disks.iter().enumerate() {
        write_disk(&mut xml, number, disk, bus, &mut notes);
    }
    if bus == Bus::VirtioScsi {
        xml.empty("controller", &[("type", "scsi"), ("index", "0"), ("model", "virtio-scsi")]);
    }
    for mac in &definition.nics {
        xml.open("interface", &[("type", "network")]);
        xml.empty("mac", &[("address", &mac.to_string())]);
        xml.empty("source", &[("network", "default")]);
        xml.empty("model", &[("type", "virtio")]);
        xml.close();
    }
    xml.open("console", &[("type", "pty")]);
    xml.close();
    if definition.architecture == Architecture::X86_64 {
        xml.empty("graphics", &[("type", "vnc"), ("autoport", "yes")]);
        xml.open("video", &[]);
        xml.empty("model", &[("type", "vga")]);
        xml.close();
    }
    xml.close();
    xml.close();
    Ok(Document { text: xml.finish(), notes })
}

fn boot(xml: &mut Xml, definition: &Definition) {
    let machine = match definition.architecture {
        Architecture::X86_64 => "q35",
        Architecture::Aarch64 => "virt",
    };
    let firmware: &[_] = if definition.firmware == Firmware::Uefi { &[("firmware", "efi")] } else { &[] };
    xml.open("os", firmware);
    xml.text("type", &[("arch", definition.architecture.name()), ("machine", machine)], "hvm");
    xml.close();
    xml.open("features", &[]);
    xml.empty("acpi", &[]);
    xml.close();
    xml.empty("cpu", &[("mode", "maximum")]);
}

fn write_disk(xml: &mut Xml, number: usize, disk: &Disk, bus: Bus, notes: &mut Vec<String>) {
    let (kind, format) = match &disk.source {
        Source::File { path, format } if path.starts_with("/dev/") => ("block", format.of_qemu()),
        Source::File { format, .. } => ("file", format.of_qemu()),
        Source::Nbd(_) => ("network", "raw"),
    };
    xml.open("disk", &[("type", kind), ("device", "disk")]);
    xml.empty("driver", &[("name", "qemu"), ("type", format), ("discard", "unmap")]);
    match &disk.source {
        Source::File { path, .. } if kind == "block" => xml.empty("source", &[("dev", path)]),
        Source::File { path, .. } => xml.empty("source", &[("file", path)]),
        Source::Nbd(address) => write_nbd(xml, number, address, notes),
    }
    let (prefix, bus_name) = match bus {
        Bus::VirtioBlock => ("vd", "virtio"),
        Bus::VirtioScsi => ("sd", "scsi"),
    };
    xml.empty("target", &[("dev", &device_name(prefix, number)), ("bus", bus_name)]);
    if number == 0 {
        xml.empty("boot", &[("order", "1")]);
    }
    match disk.serial_within(bus.serial_bytes_max()).filter(|serial| is_serial(serial)) {
        Some(serial) => xml.text("serial", &[], serial),
        None => notes.extend(disk.serial.as_ref().map(|serial| left_out(number, "serial number", serial))),
    }
    match disk.wwn64() {
        Some(wwn) => xml.text("wwn", &[], wwn),
        None => notes.extend(disk.wwn.as_ref().map(|wwn| left_out(number, "world-wide name", wwn))),
    }
    xml.close();
}

fn write_nbd(xml: &mut Xml, number: usize, address: &NbdAddress, notes: &mut Vec<String>) {
    let tls = if address.encrypted { "yes" } else { "no" };
    xml.open("source", &[("protocol", "nbd"), ("name", &address.export), ("tls", tls)]);
    match &address.place {
        NbdPlace::Tcp { host, port } => xml.empty("host", &[("name", host), ("port", &port.to_string())]),
        NbdPlace::Unix(path) => xml.empty("host", &[("transport", "unix"), ("socket", path)]),
    }
    xml.close();
    notes.push(format!(
        "disk {number} is an NBD export; libvirt ends its guest's requests with errors while the server is away"
    ));
}

/// `vda` to `vdz`, then `vdaa`.
fn device_name(prefix: &str, number: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = number + 1;
    while rest > 0 {
        letters.push(char::from(b'a' + u8::try_from((rest - 1) % 26).unwrap_or_default()));
        rest = (rest - 1) / 26;
    }
    letters.iter().rev().fold(prefix.to_owned(), |name, letter| format!("{name}{letter}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::testing::{HOSTILE, definition};

    #[test]
    fn devices_are_counted_as_linux_counts_them() {
        let names = [0, 25, 26, 27, 254].map(|number| device_name("vd", number));
        assert_eq!(names, ["vda", "vdz", "vdaa", "vdab", "vdiu"]);
    }

    #[test]
    fn hostile_names_and_serials_stay_text() {
        for hostile in HOSTILE {
            let mut machine = Definition { host_name: hostile.to_owned(), ..definition() };
            machine.disks[0].serial = Some(hostile.to_owned());
            let written = write(&machine, &FormOptions::default()).unwrap();
            let read = roxmltree::Document::parse(&written.text).unwrap();
            let count = |name: &str| read.descendants().filter(|node| node.has_tag_name(name)).count();
            assert_eq!((count("disk"), count("serial"), count("evil"), count("title")), (2, 1, 0, 1));
            assert!(written.notes.iter().any(|note| note.contains("serial number")), "{:?}", written.notes);
        }
    }
}
