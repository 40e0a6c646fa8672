//! A definition written down for somebody.

use crate::ovf::{self, OvfVersion};
use crate::{Definition, libvirt, qemu, vmx};
use blocks::{Error, ErrorKind, Result};
use std::str::FromStr;

/// For whom it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// libvirt's domain XML.
    Libvirt,
    /// VMware's configuration file.
    Vmx,
    /// An OVF descriptor, to lie beside the disks' files.
    Ovf(OvfVersion),
    /// A command that starts QEMU, quoted for a POSIX shell.
    Qemu,
}

impl FromStr for Form {
    type Err = Error;

    fn from_str(text: &str) -> Result<Form> {
        match text {
            "libvirt" => Ok(Form::Libvirt),
            "vmx" => Ok(Form::Vmx),
            "ovf" => Ok(Form::Ovf(OvfVersion::One)),
            "qemu" => Ok(Form::Qemu),
            other => {
                let context =
                    format!("definitions are written as libvirt, vmx, ovf and qemu, not as {other:?}");
                Err(Error::new(ErrorKind::InvalidInput, context))
            }
        }
    }
}

/// What runs the guest's instructions. That a host has KVM's device does not say that it works, so nothing is guessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Acceleration {
    /// KVM where QEMU can open it when it starts, else TCG. libvirt has no such choice and is told KVM.
    #[default]
    Fallback,
    /// KVM or nothing.
    Kvm,
    /// QEMU's own translator.
    Tcg,
}

impl FromStr for Acceleration {
    type Err = Error;

    fn from_str(text: &str) -> Result<Acceleration> {
        match text {
            "auto" => Ok(Acceleration::Fallback),
            "kvm" => Ok(Acceleration::Kvm),
            "tcg" => Ok(Acceleration::Tcg),
            other => {
                let context = format!("{other:?} is no acceleration; there are auto, kvm and tcg");
                Err(Error::new(ErrorKind::InvalidInput, context))
            }
        }
    }
}

/// What is not the machine's but its host's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FormOptions {
    /// What runs the guest's instructions.
    pub acceleration: Acceleration,
    /// The UEFI firmware that QEMU loads; OVMF (x86_64) or AAVMF (aarch64) where Debian puts it, if it is not said.
    pub firmware_code: Option<String>,
    /// The file that keeps the firmware's variables, which QEMU writes. Without it they are forgotten at the end.
    pub firmware_vars: Option<String>,
}

/// What was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    /// All of it; the last line ends.
    pub text: String,
    /// What is known of the machine but not said in it, and what its reader has to do.
    pub notes: Vec<String>,
}

impl Form {
    /// The definition in this form. `InvalidInput` as [`Definition::check`]; `Unsupported` where the form cannot say what
    /// matters, naming it.
    pub fn write(self, definition: &Definition, options: &FormOptions) -> Result<Document> {
        definition.check()?;
        match self {
            Form::Libvirt => libvirt::write(definition, options),
            Form::Vmx => vmx::write(definition),
            Form::Ovf(version) => ovf::write_beside_files(definition, version),
            Form::Qemu => qemu::write(definition, options),
        }
    }
}

/// What is said of a serial number or a world-wide name that a form does not carry.
pub(crate) fn left_out(disk: usize, what: &str, value: &str) -> String {
    format!("the {what} of disk {disk}, '{}', is left out: it cannot be said here", value.escape_debug())
}
