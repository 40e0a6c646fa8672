//! QEMU's command line.
//!
//! Everything that comes from the machine goes in as JSON (QEMU 6.2 and later), in which a comma is only a comma.

use crate::definition::{Architecture, Bus, Definition, Disk, Firmware};
use crate::form::{Acceleration, Document, FormOptions, left_out};
use crate::nbd_address::{NbdAddress, NbdPlace};
use crate::network::Network;
use crate::shell::quote;
use crate::source::Source;
use blocks::{Error, ErrorKind, Result};
use serde_json::{Value, json};

/// How long QEMU holds requests back while it tries to reach an NBD server that is away: as long as a server takes to
/// start again, and shorter than a guest's kernel waits for a disk.
pub(crate) const RECONNECT_SECONDS: u32 = 25;
/// Network cards beside the disks on the root bus.
const NICS_MAX: usize = 12;

/// A command line in groups of words that belong together, the program first, and what is to be said about it.
pub(crate) struct CommandLine {
    pub groups: Vec<Vec<String>>,
    pub notes: Vec<String>,
}

pub(crate) fn write(definition: &Definition, options: &FormOptions) -> Result<Document> {
    let CommandLine { groups, mut notes } = command_line(definition, options, &Network::default())?;
    notes.insert(0, "the network cards are on QEMU's own network, which leads out and not in".to_owned());
    let lines: Vec<String> = groups
        .iter()
        .map(|group| group.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "))
        .collect();
    Ok(Document { text: format!("{}\n", lines.join(" \\\n  ")), notes })
}

/// What a printed command and a stand-in that runs have in common. Errors as [`crate::Form::write`].
pub(crate) fn command_line(
    definition: &Definition,
    options: &FormOptions,
    network: &Network,
) -> Result<CommandLine> {
    if definition.nics.len() > NICS_MAX {
        let context = format!("{} network cards; at most {NICS_MAX} have a place", definition.nics.len());
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let mut notes = Vec::new();
    let mut groups = vec![machine(definition), acceleration(options.acceleration)];
    groups.extend(firmware(definition, options, &mut notes)?);
    groups.push(words(&[
        "-smp",
        &definition.cpus.to_string(),
        "-m",
        &format!("{}M", definition.memory_mib()),
    ]));
    groups.extend(disks(definition, &mut notes)?);
    groups.extend((0..).zip(&definition.nics).map(|(number, mac): (u32, _)| {
        let mut card = json!({ "driver": "virtio-net-pci", "mac": mac.to_string() });
        let Some(netdev) = network.netdev(number) else {
            return words(&["-device", &card.to_string()]);
        };
        card["netdev"] = json!(format!("net{number}"));
        words(&["-netdev", &netdev, "-device", &card.to_string()])
    }));
    Ok(CommandLine { groups, notes })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn machine(definition: &Definition) -> Vec<String> {
    let kind = match definition.architecture {
        Architecture::X86_64 => "q35",
        Architecture::Aarch64 => "virt",
    };
    let program = format!("qemu-system-{}", definition.architecture);
    words(&[&program, "-name", &definition.name, "-machine", kind, "-cpu", "max"])
}

fn acceleration(acceleration: Acceleration) -> Vec<String> {
    match acceleration {
        Acceleration::Fallback => words(&["-accel", "kvm", "-accel", "tcg"]),
        Acceleration::Kvm => words(&["-accel", "kvm"]),
        Acceleration::Tcg => words(&["-accel", "tcg"]),
    }
}

fn firmware(
    definition: &Definition,
    options: &FormOptions,
    notes: &mut Vec<String>,
) -> Result<Vec<Vec<String>>> {
    let (code, vars) = match (definition.firmware, definition.architecture) {
        (Firmware::Bios, Architecture::X86_64) => return Ok(Vec::new()),
        (Firmware::Bios, Architecture::Aarch64) => {
            return Err(Error::new(ErrorKind::Unsupported, "an aarch64 machine that boots without UEFI"));
        }
        (Firmware::Uefi, Architecture::X86_64) => {
            ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")
        }
        (Firmware::Uefi, Architecture::Aarch64) => {
            ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd")
        }
    };
    let flash = |node: &str, file: &str, read_only: bool| {
        let file = json!({ "driver": "file", "filename": file });
        let node = json!({ "driver": "raw", "node-name": node, "read-only": read_only, "file": file });
        words(&["-blockdev", &node.to_string()])
    };
    let code = options.firmware_code.as_deref().unwrap_or(code);
    let mut groups = vec![flash("firmware-code", code, true), words(&["-machine", "pflash0=firmware-code"])];
    match &options.firmware_vars {
        Some(vars) => {
            groups.push(flash("firmware-vars", vars, false));
            groups.push(words(&["-machine", "pflash1=firmware-vars"]));
        }
        None => {
            // Of a template nothing may be kept: what the guest writes goes into a temporary file of QEMU's.
            let drive = format!("if=pflash,unit=1,format=raw,snapshot=on,file={vars}");
            groups.push(words(&["-drive", &drive]));
            notes.push(format!(
                "what the firmware remembers is forgotten when QEMU ends: copy {vars} and name the copy with --firmware-vars"
            ));
        }
    }
    Ok(groups)
}

fn disks(definition: &Definition, notes: &mut Vec<String>) -> Result<Vec<Vec<String>>> {
    let bus = definition.bus();
    let mut groups = Vec::new();
    if bus == Bus::VirtioScsi {
        groups.push(words(&["-device", "virtio-scsi-pci,id=scsi0"]));
    }
    for (number, disk) in definition.disks.iter().enumerate() {
        let node = node(number, disk)?;
        let device = device(number, disk, bus, notes);
        groups.push(words(&["-blockdev", &node.to_string(), "-device", &device.to_string()]));
    }
    Ok(groups)
}

fn node(number: usize, disk: &Disk) -> Result<Value> {
    let name = format!("disk{number}");
    match &disk.source {
        Source::File { path, format } => {
            let driver = if path.starts_with("/dev/") { "host_device" } else { "file" };
            let file = json!({ "driver": driver, "filename": path, "discard": "unmap" });
            Ok(json!({ "driver": format.of_qemu(), "node-name": name, "discard": "unmap", "file": file }))
        }
        Source::Nbd(address) if address.encrypted => {
            let context = format!(
                "disk {number} is served over an encrypted connection, for which QEMU needs to be told of certificates"
            );
            Err(Error::new(ErrorKind::Unsupported, context))
        }
        Source::Nbd(address) => {
            let file = json!({ "driver": "nbd", "server": server(address), "export": address.export,
                "reconnect-delay": RECONNECT_SECONDS, "open-timeout": RECONNECT_SECONDS });
            Ok(json!({ "driver": "raw", "node-name": name, "discard": "unmap", "file": file }))
        }
    }
}

fn server(address: &NbdAddress) -> Value {
    match &address.place {
        NbdPlace::Tcp { host, port } => json!({ "type": "inet", "host": host, "port": port.to_string() }),
        NbdPlace::Unix(path) => json!({ "type": "unix", "path": path }),
    }
}

fn device(number: usize, disk: &Disk, bus: Bus, notes: &mut Vec<String>) -> Value {
    let node = format!("disk{number}");
    let mut device = match bus {
        Bus::VirtioBlock => json!({ "driver": "virtio-blk-pci", "drive": node }),
        Bus::VirtioScsi => {
            json!({ "driver": "scsi-hd", "bus": "scsi0.0", "scsi-id": number, "drive": node })
        }
    };
    if number == 0 {
        device["bootindex"] = json!(1);
    }
    match disk.serial_within(bus.serial_bytes_max()) {
        Some(serial) => device["serial"] = json!(serial),
        None => notes.extend(disk.serial.as_ref().map(|serial| left_out(number, "serial number", serial))),
    }
    match disk.wwn64().and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
        Some(wwn) => device["wwn"] = json!(wwn),
        None => notes.extend(disk.wwn.as_ref().map(|wwn| left_out(number, "world-wide name", wwn))),
    }
    device
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::testing::{HOSTILE, definition};
    use std::process::Command;

    /// The words as a shell splits them.
    fn split(line: &str) -> Vec<String> {
        let script = line.replacen("qemu-system-x86_64", "printf '%s\\0'", 1);
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_terminator('\0').map(str::to_owned).collect()
    }

    fn after<'a>(words: &'a [String], option: &str) -> Vec<&'a str> {
        words.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn the_whole_machine_is_in_the_command() {
        let written = write(&definition(), &FormOptions::default()).unwrap();
        let words = split(&written.text);
        assert_eq!(after(&words, "-accel"), ["kvm", "tcg"]);
        assert_eq!((after(&words, "-m"), after(&words, "-smp")), (vec!["2048M"], vec!["4"]));
        let devices: Vec<Value> =
            after(&words, "-device").iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        assert_eq!(
            devices[0],
            json!({ "driver": "virtio-blk-pci", "drive": "disk0", "bootindex": 1, "serial": "S1" })
        );
        assert_eq!(devices[3]["mac"], "52:54:00:00:00:02");
        assert!(written.text.contains("OVMF_CODE_4M.fd"), "{}", written.text);
        assert_eq!(written.notes.len(), 2, "{:?}", written.notes);
    }

    #[test]
    fn exports_are_reached_again_when_their_server_is_back() {
        let mut machine = definition();
        machine.disks[0].source = "nbd://[::1]:7/a,b".parse().unwrap();
        machine.disks[1].source = "nbd+unix:///x?socket=/run/a,b".parse().unwrap();
        machine.disks[1].wwn = Some("naa.5000c500a1b2c3d4".to_owned());
        let words = split(&write(&machine, &FormOptions::default()).unwrap().text);
        let nodes: Vec<Value> =
            after(&words, "-blockdev").iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        let disk = &nodes[1]["file"];
        assert_eq!((&disk["export"], &disk["reconnect-delay"]), (&json!("a,b"), &json!(25)));
        assert_eq!(disk["server"], json!({ "type": "inet", "host": "::1", "port": "7" }));
        assert_eq!(nodes[2]["file"]["server"], json!({ "type": "unix", "path": "/run/a,b" }));
        let device = after(&words, "-device")[2];
        assert_eq!(serde_json::from_str::<Value>(device).unwrap()["wwn"], json!(0x5000_c500_a1b2_c3d4_u64));
        machine.disks[0].source = "nbds://a/b".parse().unwrap();
        let error = write(&machine, &FormOptions::default()).unwrap_err();
        assert!(error.to_string().contains("disk 0"), "{error}");
    }

    #[test]
    fn nothing_breaks_out_of_its_place() {
        for hostile in HOSTILE {
            let mut machine = definition();
            machine.disks[0].serial = Some(hostile.to_owned());
            let path = hostile.replace('\0', "");
            machine.disks[1].source = Source::File { path: path.clone(), format: crate::DiskFormat::Raw };
            let written = write(&machine, &FormOptions::default()).unwrap();
            let words = split(&written.text);
            let mut plain = definition();
            plain.disks[0].serial = Some("x".repeat(hostile.len()));
            let plain = split(&write(&plain, &FormOptions::default()).unwrap().text);
            assert_eq!(words.len(), plain.len(), "{hostile:?}");
            let node: Value = serde_json::from_str(after(&words, "-blockdev")[2]).unwrap();
            assert_eq!(node["file"]["filename"], json!(path));
            let devices = after(&words, "-device")
                .into_iter()
                .filter_map(|text| serde_json::from_str::<Value>(text).ok());
            let device = devices.into_iter().find(|device| device["drive"] == "disk0").unwrap();
            let said = written.notes.iter().any(|note| note.contains("serial number"));
            assert!(said || device["serial"] == json!(hostile), "{hostile:?}: {device}");
        }
    }
}
