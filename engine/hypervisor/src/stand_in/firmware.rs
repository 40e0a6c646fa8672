//! The firmware of a stand-in that boots by UEFI, and its own copy of the variables.

use super::{Places, StandIn};
use crate::definition::{Architecture, Firmware};
use crate::form::FormOptions;
use blocks::{Error, ErrorKind, Result};
use std::path::Path;

/// Code and variables, where distributions put them: Debian, Fedora, SUSE, Arch.
const X86_64: [(&str, &str); 5] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];
const AARCH64: [(&str, &str); 2] = [
    ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
    ("/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw", "/usr/share/edk2/aarch64/vars-template-pflash.raw"),
];

/// What QEMU is told of the firmware; for UEFI with a copy of the variables in the stand-in's folder,
/// made at its first start. `NotFound` where there
/// is no firmware.
pub(super) fn options(stand_in: &StandIn, places: &Places) -> Result<FormOptions> {
    let definition = &stand_in.definition;
    let mut options = FormOptions::default();
    if definition.firmware == Firmware::Bios {
        return Ok(options);
    }
    let known: &[(&str, &str)] = match definition.architecture {
        Architecture::X86_64 => &X86_64,
        Architecture::Aarch64 => &AARCH64,
    };
    let named = stand_in.firmware_code.as_deref().zip(stand_in.firmware_vars.as_deref());
    let there = |pair: &&(&str, &str)| Path::new(pair.0).exists() && Path::new(pair.1).exists();
    let (code, vars) = named.or_else(|| known.iter().find(there).copied()).ok_or_else(|| {
        let context = format!(
            "'{}' boots by UEFI and no firmware for it is here: install ovmf (x86_64) or qemu-efi-aarch64, or name \
             --firmware-code and --firmware-vars",
            definition.name
        );
        Error::new(ErrorKind::NotFound, context)
    })?;
    let copy = places.firmware_vars();
    if !copy.exists() {
        let new = copy.with_extension("new");
        let copied = std::fs::copy(vars, &new).and_then(|_| std::fs::rename(&new, &copy));
        copied.map_err(|error| Error::io(format!("the firmware's variables {vars}"), error))?;
    }
    options.firmware_code = Some(code.to_owned());
    options.firmware_vars = Some(copy.to_string_lossy().into_owned());
    Ok(options)
}
