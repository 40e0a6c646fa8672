//! Whether KVM works here, found out by running something on it.
//!
//! That its device can be opened says nothing: on hosts that are virtual themselves guests were seen that start, run
//! their first instructions, and then hang. So a guest is run that does what each system does first: it goes from real
//! mode through protected mode into 64 bits with paging, works for a moment on memory, and tells QEMU to end with a
//! status that nothing else makes it end with. That takes 60 ms with QEMU's translator, and less where KVM works.

use super::Places;
use super::qemu::end_of;
use crate::definition::Architecture;
use crate::form::Acceleration;
use blocks::{Error, Result};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// How long the guest may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// QEMU's exit status when the guest wrote 0x2a to the port: twice that and one.
const THROUGH: i32 = 85;
const FIRMWARE_BYTES: usize = 64 << 10;
/// The processor starts here, 16 bytes before the end: a jump to the beginning.
const RESET: [u8; 5] = [0xea, 0x00, 0x00, 0x00, 0xf0];
/// What `trial.s` comes to.
#[rustfmt::skip]
const CODE: [u8; 197] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x70, 0xb8, 0x00, 0xf0, 0x8e, 0xd8, 0x31, 0xc0, 0x8e,
    0xc0, 0xfc, 0xbf, 0x00, 0x10, 0xb9, 0x00, 0x18, 0xf3, 0xab, 0x26, 0x66, 0xc7, 0x06, 0x00, 0x10,
    0x03, 0x20, 0x00, 0x00, 0x26, 0x66, 0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, 0x00, 0x00, 0x26, 0x66,
    0xc7, 0x06, 0x00, 0x30, 0x83, 0x00, 0x00, 0x00, 0x66, 0x0f, 0x01, 0x16, 0xc0, 0x00, 0x0f, 0x20,
    0xe0, 0x66, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0, 0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22,
    0xd8, 0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x66, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f,
    0x30, 0x0f, 0x20, 0xc0, 0x66, 0x0d, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0x75,
    0x00, 0x0f, 0x00, 0x08, 0x00, 0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0x8e, 0xd0, 0x48, 0xc7, 0xc4,
    0x00, 0x70, 0x00, 0x00, 0xb9, 0x00, 0x2d, 0x31, 0x01, 0x31, 0xc0, 0x48, 0x01, 0xc8, 0x48, 0x89,
    0x04, 0x25, 0x00, 0x50, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xf1, 0x31, 0xc0, 0x0f, 0xa2, 0x66, 0xba,
    0x01, 0x05, 0xb0, 0x2a, 0xee, 0xf4, 0xeb, 0xfd, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x92, 0x00, 0x00,
    0x17, 0x00, 0xa8, 0x00, 0x0f,
];

/// What came of trying, remembered for the life of this process.
#[derive(Debug, Default)]
pub(super) struct Trial(OnceLock<Option<String>>);

impl Trial {
    /// KVM where it works for guests of that architecture, else TCG and why. The first call takes a moment.
    pub fn verdict(&self, architecture: Architecture, places: &Places) -> (Acceleration, Option<String>) {
        if architecture.name() != std::env::consts::ARCH {
            let why = format!("QEMU translates its instructions: this host's are {}", std::env::consts::ARCH);
            return (Acceleration::Tcg, Some(why));
        }
        let why = self.0.get_or_init(|| {
            let why = why_not(architecture, places);
            why.map(|why| format!("QEMU translates its instructions: {why}"))
        });
        match why {
            None => (Acceleration::Kvm, None),
            why => (Acceleration::Tcg, why.clone()),
        }
    }
}

fn why_not(architecture: Architecture, places: &Places) -> Option<String> {
    if architecture != Architecture::X86_64 {
        return Some(format!("whether KVM works is not tried on {architecture}; --accel kvm takes it"));
    }
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Some(format!("/dev/kvm cannot be opened ({error})"));
    }
    match run("kvm", &places.folder().join("trial.bin")) {
        Ok(Some(THROUGH)) => None,
        Ok(Some(status)) => Some(format!("a trial guest on KVM ended with status {status}")),
        Ok(None) => Some(format!("a trial guest on KVM hung for {} s", PATIENCE.as_secs())),
        Err(error) => Some(error.to_string()),
    }
}

/// Runs the trial guest; QEMU's exit status, `None` where it hung.
fn run(acceleration: &str, firmware: &Path) -> Result<Option<i32>> {
    let mut image = vec![0; FIRMWARE_BYTES];
    image[..CODE.len()].copy_from_slice(&CODE);
    image[FIRMWARE_BYTES - 16..][..RESET.len()].copy_from_slice(&RESET);
    let failed = |error| Error::io(firmware.display().to_string(), error);
    std::fs::write(firmware, image).map_err(failed)?;
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-display", "none", "-machine", "q35", "-cpu", "max", "-m", "16M"]);
    command.args(["-accel", acceleration, "-device", "isa-debug-exit,iobase=0x501,iosize=1", "-bios"]);
    command.arg(firmware).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let ended = command.spawn().and_then(|mut child| end_of(&mut child, PATIENCE));
    std::fs::remove_file(firmware).map_err(failed)?;
    let ended = ended.map_err(|error| Error::io("qemu-system-x86_64", error))?;
    Ok(ended.map(|status| status.code().unwrap_or(-1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trial_guest_gets_through_where_it_is_run() {
        let folder = tempfile::tempdir().unwrap();
        let firmware = folder.path().join("trial.bin");
        assert_eq!(run("tcg", &firmware).unwrap(), Some(THROUGH));
        assert_eq!(run("nothing", &firmware).unwrap(), Some(1), "QEMU's own trouble is no success");
        assert!(!firmware.exists());
    }

    #[test]
    fn a_verdict_is_given_once() {
        let folder = tempfile::tempdir().unwrap();
        let (trial, places) = (Trial::default(), Places::new(folder.path()));
        let first = trial.verdict(Architecture::X86_64, &places);
        std::fs::remove_dir_all(folder.path()).unwrap();
        assert_eq!(trial.verdict(Architecture::X86_64, &places), first, "nothing is tried again");
        let foreign = trial.verdict(Architecture::Aarch64, &places);
        assert!(std::env::consts::ARCH == "aarch64" || foreign.0 == Acceleration::Tcg);
    }
}
