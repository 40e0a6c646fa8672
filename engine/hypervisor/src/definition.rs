//! What a machine is, as far as whoever runs a stand-in of it must know.

use crate::{Mac, Source};
use blocks::{ByteLen, Error, ErrorKind, Result};
use std::fmt;
use std::str::FromStr;

/// More than this is no machine but a mistake; every hypervisor's own bound is lower.
const DISKS_MAX: usize = 255;
const NICS_MAX: usize = 64;
/// Memory is given in multiples of this, which VMware demands: in MiB.
const MEMORY_GRAIN_MIB: u64 = 4;

/// A machine at a checkpoint, with its disks in their order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Definition {
    /// What it is called here: good as the name of a file, see [`Definition::check`].
    pub name: String,
    /// What it calls itself; may be anything, also empty.
    pub host_name: String,
    /// How it boots.
    pub firmware: Firmware,
    /// Whose instructions it runs.
    pub architecture: Architecture,
    /// Processors, at least 1.
    pub cpus: u32,
    /// Memory; not zero.
    pub memory: ByteLen,
    /// Its network cards, in their order.
    pub nics: Vec<Mac>,
    /// Its disks, in their order; the first is the one to boot from.
    pub disks: Vec<Disk>,
}

/// A disk of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    /// How long it is.
    pub len: ByteLen,
    /// Its serial number, as the machine finds it; may be anything.
    pub serial: Option<String>,
    /// Its world-wide name as Linux writes it: `naa.5000c500a1b2c3d4`.
    pub wwn: Option<String>,
    /// Where it is to be had.
    pub source: Source,
}

/// How a machine boots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Firmware {
    /// From a boot sector.
    Bios,
    /// From an EFI system partition.
    Uefi,
}

/// Whose instructions a machine runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Architecture {
    /// AMD's and Intel's 64 bits.
    X86_64,
    /// ARM's 64 bits.
    Aarch64,
}

impl Architecture {
    /// As `uname -m` says it.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::X86_64 => "x86_64",
            Architecture::Aarch64 => "aarch64",
        }
    }
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(text: &str) -> Result<Architecture> {
        match text {
            "x86_64" => Ok(Architecture::X86_64),
            "aarch64" => Ok(Architecture::Aarch64),
            other => {
                let context =
                    format!("machines of architecture {other:?} are not defined; x86_64 and aarch64 are");
                Err(Error::new(ErrorKind::Unsupported, context))
            }
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How disks are attached where QEMU runs the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bus {
    /// One PCI device a disk; a serial number has 20 bytes, and there are no world-wide names.
    VirtioBlock,
    /// One controller for all; serial numbers of 36 bytes, and world-wide names of 64 bits.
    VirtioScsi,
}

impl Bus {
    /// How much of a serial number a guest sees.
    pub(crate) const fn serial_bytes_max(self) -> usize {
        match self {
            Bus::VirtioBlock => 20,
            Bus::VirtioScsi => 36,
        }
    }
}

impl Definition {
    /// `InvalidInput` where a definition says what no machine can be; what was checked is what every writer relies on.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| {
            Err(Error::new(ErrorKind::InvalidInput, format!("'{}': {what}", self.name.escape_debug())))
        };
        let in_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let begins_well = self.name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins_well || self.name.len() > 63 || !self.name.chars().all(in_name) {
            return wrong("a machine's name is 1 to 63 of a-z A-Z 0-9 . _ -".to_owned());
        }
        if self.cpus == 0 || self.memory.is_zero() {
            return wrong(
                "its inventory says neither how many processors nor how much memory it has".to_owned(),
            );
        }
        if self.disks.is_empty() || self.disks.len() > DISKS_MAX || self.nics.len() > NICS_MAX {
            let (disks, nics) = (self.disks.len(), self.nics.len());
            return wrong(format!(
                "{disks} disks and {nics} network cards; 1 to {DISKS_MAX} and at most {NICS_MAX} are defined"
            ));
        }
        let is_writable = |disk: &Disk| match &disk.source {
            Source::File { path, .. } => !path.contains(['\0', '\n', '\r']),
            Source::Nbd(_) => true,
        };
        match self.disks.iter().position(|disk| !is_writable(disk)) {
            Some(number) => wrong(format!("the path of disk {number} has a line's end in it")),
            None => Ok(()),
        }
    }

    /// Its memory, rounded up to what every hypervisor takes.
    pub(crate) fn memory_mib(&self) -> u64 {
        self.memory.get().div_ceil(1 << 20).next_multiple_of(MEMORY_GRAIN_MIB)
    }

    /// The simplest bus that carries what is known of every disk.
    pub(crate) fn bus(&self) -> Bus {
        let is_long = |serial: &String| serial.len() > Bus::VirtioBlock.serial_bytes_max();
        let wants_scsi = |disk: &Disk| disk.wwn64().is_some() || disk.serial.as_ref().is_some_and(is_long);
        // Each virtio-blk device takes up one of the root bus's 32 places.
        match self.disks.len() > 16 || self.disks.iter().any(wants_scsi) {
            true => Bus::VirtioScsi,
            false => Bus::VirtioBlock,
        }
    }
}

impl Disk {
    /// The world-wide name's 16 hexadecimal digits, where it is one of 64 bits.
    pub(crate) fn wwn64(&self) -> Option<&str> {
        let text = self.wwn.as_deref()?.trim();
        let digits = text.strip_prefix("naa.").or_else(|| text.strip_prefix("0x"))?;
        (digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())).then_some(digits)
    }

    /// The serial number, if a guest sees all of it and nobody stumbles over a letter of it.
    pub(crate) fn serial_within(&self, bytes_max: usize) -> Option<&str> {
        let serial = self.serial.as_deref()?;
        let shown = |byte: u8| (b' '..=b'~').contains(&byte);
        (!serial.is_empty() && serial.len() <= bytes_max && serial.bytes().all(shown)).then_some(serial)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::DiskFormat;

    /// A machine with two disks, of which the second has what the first has not.
    pub(crate) fn definition() -> Definition {
        let disk = |path: &str, serial: &str| Disk {
            len: ByteLen::new(1 << 30),
            serial: Some(serial.to_owned()),
            wwn: None,
            source: Source::File { path: path.to_owned(), format: DiskFormat::Vmdk },
        };
        Definition {
            name: "web-1".to_owned(),
            host_name: "web-1.example.org".to_owned(),
            firmware: Firmware::Uefi,
            architecture: Architecture::X86_64,
            cpus: 4,
            memory: ByteLen::new((2 << 30) - 12345),
            nics: vec!["52:54:00:00:00:01".parse().unwrap(), "52:54:00:00:00:02".parse().unwrap()],
            disks: vec![disk("/srv/a.vmdk", "S1"), disk("/srv/b.vmdk", "S2")],
        }
    }

    /// Host names, serial numbers and paths that would break out of what they are written into.
    pub(crate) const HOSTILE: [&str; 8] = [
        "</name><evil/>",
        "a\" b='c' & <!DOCTYPE x>",
        "$(touch /tmp/x); `id` 'q' \\",
        "x,file=/etc/shadow,,y",
        "\r\nfirmware = \"evil\"",
        "tab\tand \u{1b}[31m and \u{0}",
        "%s%n ${HOME} |22",
        "ümläut \u{202e} \u{ffff}",
    ];
}

#[cfg(test)]
mod tests {
    use super::testing::definition;
    use super::*;

    #[test]
    fn what_no_machine_can_be_is_refused() {
        definition().check().unwrap();
        for name in ["", "a/b", "..", "a b", "x\n", &"x".repeat(64)] {
            assert!(Definition { name: name.to_owned(), ..definition() }.check().is_err(), "{name:?}");
        }
        assert!(Definition { cpus: 0, ..definition() }.check().is_err());
        assert!(Definition { memory: ByteLen::ZERO, ..definition() }.check().is_err());
        assert!(Definition { disks: Vec::new(), ..definition() }.check().is_err());
        let mut machine = definition();
        machine.disks[1].source = Source::File { path: "/a\nb".to_owned(), format: crate::DiskFormat::Raw };
        assert!(machine.check().unwrap_err().to_string().contains("disk 1"));
    }

    #[test]
    fn the_bus_carries_what_is_known() {
        let mut machine = definition();
        assert_eq!((machine.bus(), machine.memory_mib()), (Bus::VirtioBlock, 2048));
        machine.disks[1].wwn = Some("naa.5000c500a1b2c3d4\n".to_owned());
        assert_eq!((machine.bus(), machine.disks[1].wwn64()), (Bus::VirtioScsi, Some("5000c500a1b2c3d4")));
        machine.disks[1].wwn = Some("t10.ATA     QEMU HARDDISK".to_owned());
        assert_eq!(machine.bus(), Bus::VirtioBlock);
        machine.disks[0].serial = Some("x".repeat(21));
        assert_eq!(machine.bus(), Bus::VirtioScsi);
        assert_eq!(machine.disks[0].serial_within(20), None);
    }
}
