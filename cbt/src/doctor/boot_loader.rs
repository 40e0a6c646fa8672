//! Whether firmware that has never seen the machine finds something to start.

use super::{Finding, Root};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use wire::Firmware;

const ABOUT: &str = "boot loader";
/// Where an EFI system partition is mounted, by custom.
const EFI_MOUNTS: [&str; 3] = ["/boot/efi", "/efi", "/boot"];
/// The code of a master boot record ends where the disk's signature begins.
const CODE_BYTES: usize = 440;

pub(super) fn examine(root: &Root, firmware: Firmware, disks: &[PathBuf]) -> Finding {
    match firmware {
        Firmware::Bios => of_bios(disks),
        Firmware::Uefi => of_uefi(root),
    }
}

fn of_bios(disks: &[PathBuf]) -> Finding {
    let booting = disks.iter().find(|disk| has_boot_code(disk));
    match booting {
        Some(disk) => Finding::fine(ABOUT, format!("{} has one in its first sector", disk.display())),
        None => {
            let what = "none of the disks has code in its first sector";
            Finding::bad(ABOUT, what, "install one: grub-install /dev/DISK")
        }
    }
}

fn has_boot_code(disk: &Path) -> bool {
    let mut sector = [0; 512];
    let read = File::open(disk).and_then(|mut file| file.read_exact(&mut sector));
    read.is_ok() && sector[510..] == [0x55, 0xaa] && sector[..CODE_BYTES].iter().any(|byte| *byte != 0)
}

/// A stand-in's firmware has none of this machine's boot entries, so it looks for the loader of removable media.
fn of_uefi(root: &Root) -> Finding {
    let wanted = match std::env::consts::ARCH {
        "aarch64" => "bootaa64.efi",
        _ => "bootx64.efi",
    };
    match EFI_MOUNTS.iter().find_map(|mount| loader_below(&root.at(mount), wanted)) {
        Some(path) => Finding::fine(ABOUT, format!("{} is there", path.display())),
        None => {
            let what = format!(
                "no EFI/BOOT/{wanted} on the EFI system partition: only this machine's own firmware knows where its loader is"
            );
            Finding::bad(ABOUT, what, "grub-install --removable, or bootctl install")
        }
    }
}

/// FAT knows no case, and people write it either way.
fn loader_below(mount: &Path, wanted: &str) -> Option<PathBuf> {
    ["efi", "boot", wanted].iter().try_fold(mount.to_owned(), |folder, name| {
        let mut entries = fs::read_dir(folder).ok()?.flatten();
        entries.find(|entry| entry.file_name().eq_ignore_ascii_case(name)).map(|entry| entry.path())
    })
}
