use super::*;
use std::fs;

fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let root = Root(folder.path().to_owned());
    (folder, root)
}

fn verdicts(findings: &[Finding]) -> Vec<Verdict> {
    findings.iter().map(|finding| finding.verdict).collect()
}

#[test]
fn names_of_hardware_are_found_and_names_of_content_are_not() {
    let fstab = "\
# /dev/sda1 / ext4 defaults 0 1
UUID=1234 / ext4 defaults 0 1
/dev/mapper/vg-home /home ext4 defaults 0 2
/dev/vg/var /var xfs defaults 0 2
/dev/disk/by-label/data /data ext4 defaults 0 2
tmpfs /tmp tmpfs defaults 0 0
";
    let cmdline = "BOOT_IMAGE=/vmlinuz root=UUID=1234 ro quiet";
    let (_folder, good) = root(&[("etc/fstab", fstab), ("proc/cmdline", cmdline)]);
    assert_eq!(verdicts(&names::examine(&good)), [Verdict::Fine]);

    let fstab = "\
/dev/sda1 / ext4 defaults 0 1
/dev/nvme0n1p2 /data ext4 nofail,noatime 0 2
/dev/disk/by-id/wwn-0x5000-part1 none swap sw 0 0
";
    let crypttab = "secret /dev/sdb2 none luks\n";
    let cmdline = "root=/dev/sda1 resume=/dev/sda2 ro";
    let (_folder, wrong) =
        root(&[("etc/fstab", fstab), ("etc/crypttab", crypttab), ("proc/cmdline", cmdline)]);
    let found = names::examine(&wrong);
    let expected = [
        (Verdict::Bad, "/dev/sda1"),
        (Verdict::Doubtful, "/dev/nvme0n1p2"),
        (Verdict::Bad, "by-id/wwn-0x5000-part1"),
        (Verdict::Bad, "/dev/sdb2"),
        (Verdict::Bad, "root=/dev/sda1"),
        (Verdict::Doubtful, "resume=/dev/sda2"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (finding, (verdict, named)) in found.iter().zip(expected) {
        assert!(finding.verdict == verdict && finding.what.contains(named), "{finding:?}");
    }
}

#[test]
fn drivers_are_looked_for_in_the_kernel_and_in_what_it_is_started_with() {
    let image = Path::new("/boot/initrd.img-6.1");
    let builtin = "kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/block/virtio_blk.ko\n";
    assert_eq!(drivers::of_disks(builtin, None, None).verdict, Verdict::Fine);
    let listing = "usr/lib/modules/6.1/kernel/drivers/virtio/virtio_pci.ko.xz\nusr/lib/modules/6.1/kernel/drivers/block/virtio-blk.ko\n";
    assert_eq!(drivers::of_disks("", Some(image), Some(listing)).verdict, Verdict::Fine);
    let half = "usr/lib/modules/6.1/kernel/drivers/virtio/virtio_pci.ko\nlib/virtio_blk_notes\n";
    let found = drivers::of_disks("", Some(image), Some(half));
    assert!(found.verdict == Verdict::Bad && found.what.contains("no virtio_blk"), "{found:?}");
    assert!(!found.what.contains("virtio_pci"), "{found:?}");
    assert_eq!(drivers::of_disks("", Some(image), None).verdict, Verdict::Doubtful);
    assert_eq!(drivers::of_disks("", None, None).verdict, Verdict::Doubtful);
}

#[test]
fn a_loader_that_only_this_firmware_knows_is_no_loader() {
    let (_folder, removable) =
        root(&[("boot/efi/EFI/Boot/BOOTX64.EFI", ""), ("boot/efi/EFI/Boot/BOOTAA64.EFI", "")]);
    assert_eq!(boot_loader::examine(&removable, wire::Firmware::Uefi, &[]).verdict, Verdict::Fine);
    let (_folder, own) = root(&[("boot/efi/EFI/debian/grubx64.efi", "")]);
    let found = boot_loader::examine(&own, wire::Firmware::Uefi, &[]);
    assert!(found.verdict == Verdict::Bad && found.advice.unwrap().contains("--removable"));
}

#[test]
fn a_first_sector_without_code_does_not_boot() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let (_folder, root) = root(&[]);
    let verdict = |sector: &[u8]| {
        fs::write(&disk, sector).unwrap();
        boot_loader::examine(&root, wire::Firmware::Bios, std::slice::from_ref(&disk)).verdict
    };
    let mut sector = [0; 512];
    assert_eq!(verdict(&sector), Verdict::Bad);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector[446] = 0x80;
    assert_eq!(verdict(&sector), Verdict::Bad, "a partition table alone");
    sector[0] = 0xeb;
    assert_eq!(verdict(&sector), Verdict::Fine);
    assert_eq!(verdict(&sector[..100]), Verdict::Bad);
}

#[test]
fn an_old_kernel_and_one_that_lets_nobody_look_are_named() {
    let files = |release, lockdown| {
        let status = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        root(&[
            ("proc/sys/kernel/osrelease", release),
            ("proc/self/status", status),
            ("sys/kernel/security/lockdown", lockdown),
        ])
    };
    let (_folder, good) = files("6.1.0-18-amd64\n", "none [integrity] confidentiality\n");
    assert_eq!(verdicts(&kernel::examine(&good)), [Verdict::Fine, Verdict::Fine]);
    let (_folder, old) = files("5.4.0\n", "none integrity [confidentiality]\n");
    assert_eq!(verdicts(&kernel::examine(&old)), [Verdict::Doubtful, Verdict::Fine, Verdict::Bad]);
    let (_folder, nobody) = root(&[("proc/self/status", "CapEff:\t0000000000000000\n")]);
    assert_eq!(verdicts(&kernel::examine(&nobody)), [Verdict::Doubtful, Verdict::Bad]);
}

#[test]
fn a_machine_without_the_hooks_is_told_what_its_restarts_cost() {
    let half = [("usr/lib/systemd/system-shutdown/understudy", "#!/bin/sh\n")];
    let (_folder, without) = root(&half);
    let found = restarts::examine(&without);
    assert!(found.what.contains("local-premount") && found.advice.is_some(), "{found:?}");
    let both = [half[0], ("etc/initramfs-tools/scripts/local-premount/understudy", "#!/bin/sh\n")];
    let (_folder, with) = root(&both);
    assert_eq!(restarts::examine(&with).advice, None);
}
