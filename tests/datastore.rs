//! The datastore in a mount, read and written by programs that others wrote.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use blocks::{OpenMode, WallClock};
use fuse_fs::{Ended, Mount, MountOptions, SingleFile};
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use store::{HostFile, ImageFormat, ShownImage, ShownKind};
use support::shown::{Shown, bash};
use support::{NAME, program, run, sh, uri};

/// What a script that must fail says.
fn refused(script: &str) -> String {
    let output = Command::new("bash").args(["-c", script]).output().unwrap();
    assert!(!output.status.success(), "{script} works");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_format_of_a_checkpoint_is_what_others_read() {
    let shown = Shown::new(96, &[]);
    let (folder, device) = (shown.filled(), shown.stage.disk.device().to_owned());
    let at = folder.display();
    for (format, ending) in
        [("raw", "raw"), ("vpc", "vhd"), ("vhdx", "vhdx"), ("vmdk", "vmdk"), ("qcow2", "qcow2")]
    {
        let file = format!("{at}/disk0.{ending}");
        let info: Value = serde_json::from_str(&sh(&format!("qemu-img info --output=json {file}"))).unwrap();
        assert_eq!(
            (&info["format"], &info["virtual-size"]),
            (&format.into(), &(96_u64 << 20).into()),
            "{info}"
        );
        sh(&format!("qemu-img compare -f {format} -F raw {file} {device}"));
        if !matches!(format, "raw" | "vpc") {
            sh(&format!("qemu-img check -f {format} {file}"));
        }
        if format != "raw" {
            let ours = run(program().args(["--json", "image", "check", &file]));
            assert!(ours.contains("\"clean\":true"), "{ours}");
        }
        let copy = shown.stage.path("copy");
        bash(&format!(
            "cp {file} {0} && cmp {file} {0} && qemu-img convert -f {format} -O raw {0} {0}.raw \
                       && cmp {0}.raw {device}; cmp {file} {0}",
            copy.display()
        ));
        assert_eq!(bash(&format!("du --block-size=1 {file} | cut -f1")).trim(), "0", "{file} takes up room");
        let smaller = fs::metadata(&file).unwrap().len() < 96 << 20;
        assert_eq!(smaller, format != "raw", "{file} has only what holds data");
    }
    bash(&format!(
        "vhdiinfo {at}/disk0.vhd && vhdiinfo {at}/disk0.vhdx && vmdkinfo {at}/disk0.vmdk && qcowinfo {at}/disk0.qcow2"
    ));
    for (tool, ending) in
        [("vhdimount", "vhd"), ("vhdimount", "vhdx"), ("vmdkmount", "vmdk"), ("qcowmount", "qcow2")]
    {
        let inside = shown.stage.path(tool);
        fs::create_dir_all(&inside).unwrap();
        bash(&format!(
            "{tool} {at}/disk0.{ending} {0} >/dev/null 2>&1; trap 'umount {0} || umount -l {0}' EXIT; cmp {0}/* {device}",
            inside.display()
        ));
    }
    let loop_mount = shown.stage.path("loop");
    fs::create_dir(&loop_mount).unwrap();
    bash(&format!(
        "mount -o loop,ro,noload {at}/disk0.raw {0} && trap 'umount {0}' EXIT
                   diff -r /usr/include/linux {0}/linux",
        loop_mount.display()
    ));
}

#[test]
fn folders_say_what_they_are_and_nothing_of_a_checkpoint_is_written() {
    let mut shown = Shown::new(24, &[]);
    let folder = shown.filled();
    let latest = fs::read_link(shown.folder.join(NAME).join("latest")).unwrap();
    assert!(latest.starts_with("checkpoints"), "{latest:?}");
    let names = bash(&format!("ls {}", folder.display()));
    for name in [
        "disk0.raw",
        "disk0.vhd",
        "disk0.vhdx",
        "disk0.vmdk",
        "disk0.qcow2",
        "domain.xml",
        "machine.vmx",
        "machine.ovf",
        "qemu.sh",
    ] {
        assert!(names.lines().any(|line| line == name), "no {name} among\n{names}");
    }
    bash(&format!(
        "cd {} && xmllint --noout domain.xml machine.ovf && grep -q disk0.vmdk machine.vmx && bash -n qemu.sh",
        folder.display()
    ));
    let list = shown.stage.us(&["checkpoints", NAME]).unwrap();
    let filled =
        list["checkpoints"].as_array().unwrap().iter().find(|one| one["name"] == "filled").unwrap().clone();
    let (before, after) = (fs::metadata(&folder).unwrap(), fs::metadata(folder.join("disk0.raw")).unwrap());
    for seen in [&before, &after] {
        assert_eq!(
            seen.mtime() as u64,
            filled["server_time_ms"].as_u64().unwrap() / 1000,
            "the checkpoint's time"
        );
    }
    assert_eq!((before.nlink(), after.nlink(), after.len()), (2, 1, 24 << 20));
    for name in ["disk0.raw", "disk0.qcow2", "domain.xml"] {
        let error = OpenOptions::new().write(true).open(folder.join(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(30), "EROFS of {name}");
    }
    let number = after.ino();
    shown.mount.take().unwrap().stop();
    assert!(!folder.exists(), "{}", shown.log("mount.log"));
    shown.mount(&[]);
    assert_eq!(fs::metadata(folder.join("disk0.raw")).unwrap().ino(), number, "inode numbers stay");
    let state: Value = serde_json::from_slice(&fs::read(shown.folder.join(".understudy")).unwrap()).unwrap();
    assert_eq!(state["machines"][0]["name"], NAME, "{state}");
    assert!(shown.log("mount.log").contains("mounted at"), "{}", shown.log("mount.log"));
}

#[test]
fn a_session_is_written_through_a_loop_device_and_used_in_one_way_at_a_time() {
    let mut shown = Shown::new(400, &[]);
    let (session, folder) = shown.recover();
    let (at, nbd) = (folder.display().to_string(), uri(&session, 0));
    let id = session["session"].as_str().unwrap();
    let held = fs::File::open(folder.join("disk0.raw")).unwrap();
    let said = refused(&format!("qemu-img info -f raw '{nbd}'"));
    assert!(said.contains("disk0.raw"), "the message names the mount: {said}");
    assert!(refused(&format!("cat {at}/disk0.vhd")).contains("busy"), "one file at a time");
    drop(held);
    shown.stage.wait_until("the close", 60, |_| {
        Command::new("nbdinfo").arg(&nbd).output().unwrap().status.success()
    });
    let script = format!(
        "/usr/bin/python3 -c 'import nbd,subprocess
h = nbd.NBD()
h.connect_uri(\"{nbd}\")
r = subprocess.run([\"cat\", \"{at}/disk0.raw\"], capture_output=True)
assert r.returncode != 0 and b\"busy\" in r.stderr, r'"
    );
    bash(&script);
    assert!(shown.log("server.log").contains("NBD clients have the disk"), "{}", shown.log("server.log"));

    let point = shown.stage.path("guest");
    fs::create_dir(&point).unwrap();
    bash(&format!(
        "device=$(losetup --find --show {at}/disk0.raw); trap 'umount -q {0}; losetup -d $device' EXIT
         mount $device {0}; diff -r /usr/include/linux {0}/linux; rm {0}/a; umount {0}; e2fsck -f -n $device >&2
         fio --name=v --filename=$device --rw=randwrite --bsrange=512-128k --size=48m --direct=1 --ioengine=libaio \
             --verify_state_save=0 --iodepth=16 --verify=crc32c --do_verify=1 --verify_fatal=1 --fsync=64 --minimal >&2
         mkfs.xfs -q -f $device; mount $device {0}; cp -r /usr/include/linux {0}/; sync; umount {0}; xfs_repair -n $device
         mount $device {0}; diff -r /usr/include/linux {0}/linux",
        point.display()
    ));
    // What was written there is what the others see.
    let copy = shown.stage.path("copy.raw");
    bash(&format!("nbdcopy {nbd} {0} && cmp {0} {at}/disk0.raw", copy.display()));
    bash(&format!("qemu-img compare -f vpc -F raw {at}/disk0.vhd {}", copy.display()));
    bash(&format!("qemu-img compare -f vmdk -F raw {at}/disk0.vmdk {}", copy.display()));
    for (format, ending, byte) in [("vpc", "vhd", "0x55"), ("vmdk", "vmdk", "0x66")] {
        bash(&format!(
            "qemu-io -f {format} -c 'write -P {byte} 1M 300k' -c flush {at}/disk0.{ending} >&2
                       qemu-io -r -f raw -c 'read -P {byte} 1M 300k' {nbd} >&2"
        ));
    }
    bash(&format!(
        "vhdiinfo {at}/disk0.vhd; fallocate -p -o 1M -l 300k {at}/disk0.raw; qemu-io -r -f raw -c 'read -P 0 1M 300k' {nbd} >&2"
    ));
    // Whoever has a file open when the session ends gets errors, and the session ends.
    let open = OpenOptions::new().read(true).write(true).open(folder.join("disk0.raw")).unwrap();
    shown.stage.insist(&["session", "stop", id, "--discard"]);
    let error = std::os::unix::fs::FileExt::write_all_at(&open, &[1; 512], 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "EIO");
    shown.stage.wait_until("the folder to go", 60, |_| !folder.exists());
}

/// After a pivot the files of a session are its target's, and small writes are put into that one's pages.
#[test]
fn a_pivoted_session_is_written_through_its_files_into_its_target() {
    let mut shown = Shown::new(100, &[]);
    let (session, folder) = shown.recover();
    let (at, id) = (folder.display().to_string(), session["session"].as_str().unwrap());
    let target = shown.stage.path("target.raw");
    shown.stage.insist(&["migrate", id, "--to", target.to_str().unwrap(), "--pivot"]);
    bash(&format!("dd if=/dev/zero of={at}/disk0.raw bs=1M count=64 conv=notrunc status=none"));
    for ending in ["raw", "vhd"] {
        bash(&format!(
            "fio --name=v --filename={at}/disk0.{ending} --rw=randwrite --bs=4k --size=64m --direct=1 --ioengine=libaio \
                 --verify_state_save=0 --iodepth=16 --verify=crc32c --do_verify=1 --verify_fatal=1 --minimal >&2"
        ));
    }
    let file_system = bash(&format!("stat -f -c %T {}", target.display()));
    if ["ext2/ext3", "xfs", "btrfs"].contains(&file_system.trim()) {
        bash("cat /proc/[0-9]*/maps 2>/dev/null | grep -q /target.raw");
    }
    let len = session["disks"][0]["len"].as_u64().unwrap();
    bash(&format!("cmp -n {len} {at}/disk0.raw {}", target.display()));
    let copy = shown.stage.path("copy.raw");
    bash(&format!(
        "nbdcopy {} {1} && cmp -n {len} {1} {2}",
        uri(&session, 0),
        copy.display(),
        target.display()
    ));
}

#[test]
fn what_dead_processes_leave_is_taken_over() {
    let mut shown = Shown::new(24, &["--allow-other"]);
    let file = shown.filled().join("disk0.raw");
    // The command alone: the server notices, and unmounts.
    shown.mount.take().unwrap().kill();
    let seen = |path: &Path| fs::symlink_metadata(path).is_ok();
    shown.stage.wait_until("the unmounting", 20, |_| !seen(&file));
    shown.mount(&[]);
    // The server alone: the command detaches what is left.
    shown.stage.server.take().unwrap().kill();
    shown.stage.wait_until("the command's end", 20, |_| !shown.mount.as_mut().unwrap().alive());
    assert!(fs::read_dir(&shown.folder).unwrap().next().is_none(), "nothing is mounted");
    shown.stage.start_server(None);
    shown.mount(&[]);
    // Both: the next mount takes over.
    shown.stage.server.take().unwrap().kill();
    shown.mount.take().unwrap().kill();
    shown.stage.start_server(None);
    shown.mount(&[]);
    assert!(seen(&file));
    let again = program()
        .arg("--control")
        .arg(shown.stage.path("store/control.sock"))
        .arg("mount")
        .arg(&shown.folder)
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is a mount already"), "{again:?}");
    shown.stage.server.take().unwrap().stop();
    assert!(fs::read_dir(&shown.folder).unwrap().next().is_none(), "a server that ends unmounts");
}

/// Our resident memory in KiB.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn an_image_of_a_disk_of_a_tebibyte_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk.raw");
    // Data of a mebibyte in each second gibibyte, and at the end.
    bash(&format!("truncate -s 1T {}", raw.display()));
    let file = OpenOptions::new().write(true).open(&raw).unwrap();
    for at in (0..512_u64).map(|number| number << 31).chain([(1 << 40) - 512]) {
        let bytes: Vec<u8> =
            (0..if at % 4096 == 0 { 1 << 20 } else { 512 }).map(|byte| (at / 512 + byte) as u8 | 1).collect();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, at).unwrap();
    }
    for format in [ImageFormat::Vhd, ImageFormat::Vhdx, ImageFormat::Vmdk, ImageFormat::Qcow2] {
        let disk =
            store::open_image(HostFile::open(&raw, OpenMode::Read).unwrap(), Some(ImageFormat::Raw), false)
                .unwrap();
        let name = format!("disk.{format}");
        let shown = ShownImage {
            kind: ShownKind::Sparse(format),
            file_name: name.clone(),
            identity: "a tebibyte".to_owned(),
            made: WallClock(1_795_000_000_000),
        };
        let before = resident_kib();
        let shown = store::show_image(disk, &shown).unwrap();
        let grown = resident_kib().saturating_sub(before);
        assert!(grown < 16 << 10, "{format}: {grown} KiB to know where a tebibyte has data");
        let at = folder.path().join(format.name());
        fs::create_dir(&at).unwrap();
        let mount = Mount::start(SingleFile::new(name.clone(), shown), &at, MountOptions::default()).unwrap();
        let file = at.join(name);
        let (file, of_qemu) =
            (file.display(), if format == ImageFormat::Vhd { "vpc" } else { format.name() });
        let info: Value =
            serde_json::from_str(&sh(&format!("qemu-img info --output=json -f {of_qemu} {file}"))).unwrap();
        assert_eq!(info["virtual-size"].as_u64(), Some(1 << 40), "{info}");
        if format != ImageFormat::Vhd {
            sh(&format!("qemu-img check -f {of_qemu} {file}"));
        }
        for (at, len) in
            [(0, 65536), (511_u64 << 31, 1 << 20), ((1 << 40) - 4096, 4096), (300 << 30, 1 << 20)]
        {
            bash(&format!(
                "cmp <(qemu-img dd -f {of_qemu} -O raw bs=4096 skip={0} count={1} if={file} of={2} && cat {2}) \
                     <(tail -c +$(({at} + 1)) {3} | head -c {len})",
                at / 4096,
                (at + len) / 4096,
                folder.path().join("piece").display(),
                raw.display()
            ));
        }
        assert_eq!(bash(&format!("du --block-size=1 {file} | cut -f1")).trim(), "0");
        assert_eq!(mount.unmount().unwrap(), Ended::Unmounted);
    }
}
