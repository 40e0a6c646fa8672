//! Whether the kernel, on its way up, can see a stand-in's disks and network.

use super::{Finding, Root};
use std::path::Path;
use std::process::Command;

/// What the kernel needs to see a stand-in's disks.
const DISK_DRIVERS: [&str; 2] = ["virtio_pci", "virtio_blk"];
const NETWORK_DRIVER: &str = "virtio_net";

pub(super) fn examine(root: &Root, kernel: &str) -> Vec<Finding> {
    let builtin = root.text(&format!("/lib/modules/{kernel}/modules.builtin"));
    let Some(builtin) = builtin else {
        let what = format!("nothing is known of kernel {kernel}: it has no folder in /lib/modules");
        return vec![Finding::doubtful("drivers", what, "see that virtio_pci and virtio_blk are in it")];
    };
    let initramfs = ["/boot/initrd.img-", "/boot/initramfs-"].iter().find_map(|start| {
        let ends = ["", ".img"].iter().map(|end| root.at(&format!("{start}{kernel}{end}")));
        ends.into_iter().find(|path| path.exists())
    });
    let listing = initramfs.as_deref().and_then(list);
    let modules = root.text(&format!("/lib/modules/{kernel}/modules.dep")).unwrap_or_default();
    vec![of_disks(&builtin, initramfs.as_deref(), listing.as_deref()), of_network(&builtin, &modules)]
}

/// The names of the files in an initramfs, by the tool that made it.
fn list(initramfs: &Path) -> Option<String> {
    ["lsinitramfs", "lsinitrd"].iter().find_map(|tool| {
        let output =
            Command::new(tool).arg(initramfs).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

pub(super) fn of_disks(builtin: &str, initramfs: Option<&Path>, listing: Option<&str>) -> Finding {
    let about = "drivers";
    let missing: Vec<&str> = DISK_DRIVERS.into_iter().filter(|driver| !has(builtin, driver)).collect();
    if missing.is_empty() {
        return Finding::fine(about, "virtio disks are known to the kernel itself");
    }
    let advice = "add them to the initramfs: /etc/initramfs-tools/modules and update-initramfs -u, or dracut --add-drivers";
    let missing_text = || missing.join(" and ");
    let (Some(initramfs), Some(listing)) = (initramfs, listing) else {
        let what = match initramfs {
            None => format!("{} are modules and there is no initramfs", missing_text()),
            Some(path) => {
                format!("what is in {} cannot be told: neither lsinitramfs nor lsinitrd", path.display())
            }
        };
        return Finding::doubtful(about, what, advice);
    };
    let absent: Vec<&str> = missing.into_iter().filter(|driver| !has(listing, driver)).collect();
    match absent.is_empty() {
        true => Finding::fine(about, format!("virtio disks are known to {}", initramfs.display())),
        false => {
            Finding::bad(about, format!("{} has no {}", initramfs.display(), absent.join(" and no ")), advice)
        }
    }
}

fn of_network(builtin: &str, modules: &str) -> Finding {
    match has(builtin, NETWORK_DRIVER) || has(modules, NETWORK_DRIVER) {
        true => Finding::fine("network", "virtio network cards are known"),
        false => Finding::doubtful(
            "network",
            "no driver for virtio network cards",
            "the stand-in will be without network",
        ),
    }
}

/// Whether a list of module files names this one: `.../virtio_blk.ko.xz`, which may be written with hyphens.
fn has(list: &str, module: &str) -> bool {
    let hyphens = module.replace('_', "-");
    list.split(|c: char| c.is_whitespace() || c == ':').any(|path| {
        let file = path.rsplit('/').next().unwrap_or(path);
        let stem = file.split(".ko").next().unwrap_or(file);
        file.contains(".ko") && (stem == module || stem == hyphens)
    })
}
