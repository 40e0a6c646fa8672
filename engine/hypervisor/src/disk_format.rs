//! What a disk's file looks like inside, in the words of the programs that are told.

use blocks::{Error, ErrorKind};
use std::fmt;
use std::str::FromStr;

/// A format that stand-ins run from and packages carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum DiskFormat {
    /// The disk's bytes.
    Raw,
    /// Microsoft's Virtual Hard Disk.
    Vhd,
    /// Its successor.
    Vhdx,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
}

/// OVF names a format by the address of its specification: what producers write, lower case, up to a `#`.
const SPECIFICATIONS: [(&str, DiskFormat); 9] = [
    ("http://www.vmware.com/interfaces/specifications/vmdk.html", DiskFormat::Vmdk),
    ("https://www.vmware.com/interfaces/specifications/vmdk.html", DiskFormat::Vmdk),
    ("http://www.vmware.com/specifications/vmdk.html", DiskFormat::Vmdk),
    ("https://www.vmware.com/specifications/vmdk.html", DiskFormat::Vmdk),
    ("http://technet.microsoft.com/en-us/library/bb676673.aspx", DiskFormat::Vhd),
    ("http://go.microsoft.com/fwlink/?linkid=137171", DiskFormat::Vhd),
    ("http://www.gnome.org/~markmc/qcow-image-format.html", DiskFormat::Qcow2),
    ("https://people.gnome.org/~markmc/qcow-image-format.html", DiskFormat::Qcow2),
    ("http://people.gnome.org/~markmc/qcow-image-format.html", DiskFormat::Qcow2),
];

impl DiskFormat {
    /// Every format.
    pub const ALL: [DiskFormat; 5] =
        [DiskFormat::Raw, DiskFormat::Vhd, DiskFormat::Vhdx, DiskFormat::Qcow2, DiskFormat::Vmdk];

    /// The format's name, which is also the usual ending of its files.
    pub const fn name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Vhd => "vhd",
            DiskFormat::Vhdx => "vhdx",
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Vmdk => "vmdk",
        }
    }

    /// What QEMU and libvirt call it.
    pub const fn of_qemu(self) -> &'static str {
        match self {
            DiskFormat::Vhd => "vpc",
            other => other.name(),
        }
    }

    /// The format that files of this ending have; `None` where the ending says nothing.
    pub fn of_ending(path: &str) -> Option<DiskFormat> {
        let (_, ending) = path.rsplit('/').next()?.rsplit_once('.')?;
        match ending.to_ascii_lowercase().as_str() {
            "raw" | "img" => Some(DiskFormat::Raw),
            "vpc" => Some(DiskFormat::Vhd),
            ending => ending.parse().ok(),
        }
    }

    /// The address of the specification by which OVF names it; `None` for what has none that anybody reads.
    pub const fn specification(self) -> Option<&'static str> {
        match self {
            DiskFormat::Vmdk => {
                Some("http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized")
            }
            DiskFormat::Vhd => Some("http://technet.microsoft.com/en-us/library/bb676673.aspx"),
            DiskFormat::Qcow2 => Some("http://www.gnome.org/~markmc/qcow-image-format.html"),
            DiskFormat::Raw | DiskFormat::Vhdx => None,
        }
    }

    /// The format that OVF names so.
    pub fn of_specification(address: &str) -> Option<DiskFormat> {
        let address = address.trim().to_ascii_lowercase();
        let address = address.split('#').next().unwrap_or_default();
        SPECIFICATIONS.into_iter().find(|(known, _)| *known == address).map(|(_, format)| format)
    }
}

impl FromStr for DiskFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<DiskFormat, Error> {
        DiskFormat::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
            let names = DiskFormat::ALL.map(DiskFormat::name).join(", ");
            let context = format!("{text:?} is not a disk's format; there are {names}");
            Error::new(ErrorKind::InvalidInput, context)
        })
    }
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_recognised() {
        for format in DiskFormat::ALL {
            assert_eq!(format.name().parse::<DiskFormat>().unwrap(), format);
            assert_eq!(DiskFormat::of_ending(&format!("/srv/a.b/disk.{format}")), Some(format));
            if let Some(address) = format.specification() {
                assert_eq!(DiskFormat::of_specification(address), Some(format));
            }
        }
        assert_eq!(DiskFormat::of_ending("/srv/x.raw/disk"), None);
        assert_eq!(DiskFormat::of_specification("http://example.org/vmdk.html"), None);
    }
}
