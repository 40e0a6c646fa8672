//! One volume as a file of a real mount.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use blocks::{ByteLen, ByteOffset, MemoryVolume, RequestClass, Volume};
use fuse_fs::{Ended, Mount, MountOptions, SingleFile, detach_dead};
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

struct Mounted {
    mount: Option<Mount>,
    disk: Arc<MemoryVolume>,
    folder: tempfile::TempDir,
}

impl Mounted {
    fn new(disk: MemoryVolume, options: MountOptions) -> Mounted {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(disk);
        let tree = SingleFile::new("disk.raw", disk.clone());
        let mount = Mount::start(tree, folder.path(), options).unwrap();
        Mounted { mount: Some(mount), disk, folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("disk.raw")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.mount = None;
    }
}

fn sh(script: &str) -> String {
    let output = Command::new("bash").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn patterned(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512 * 7 + at % 251) as u8).collect()
}

#[test]
fn what_is_written_is_in_the_volume_and_read_again() {
    const LEN: usize = (9 << 20) + 512;
    let mounted = Mounted::new(MemoryVolume::new(ByteLen::new(LEN as u64)), MountOptions::default());
    let bytes = patterned(LEN);
    let file = OpenOptions::new().read(true).write(true).open(mounted.file()).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    assert!(mounted.disk.snapshot() == bytes, "a write is with the volume before it returns");
    file.write_all_at(b"odd", 1021).unwrap();
    file.sync_all().unwrap();
    assert_eq!(mounted.disk.snapshot()[1020..1025], [bytes[1020], b'o', b'd', b'd', bytes[1024]]);
    drop(file);
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(mounted.file()).unwrap();
    drop(direct);
    assert!(fs::read(mounted.file()).unwrap() == mounted.disk.snapshot());
    let seen = fs::metadata(mounted.file()).unwrap();
    assert_eq!((seen.len(), seen.blocks(), seen.nlink(), seen.mode() & 0o7777), (LEN as u64, 0, 1, 0o644));
    assert_eq!(mounted.mount.as_ref().unwrap().unmount().unwrap(), Ended::Unmounted);
    assert!(!mounted.file().exists());
}

#[test]
fn the_end_of_the_disk_is_the_end_of_the_file() {
    let mounted = Mounted::new(MemoryVolume::new(ByteLen::new(8192)), MountOptions::default());
    let file = OpenOptions::new().read(true).write(true).open(mounted.file()).unwrap();
    let error = file.write_all_at(&[1], 8192).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(file.set_len(4096).unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(file.read_at(&mut [0; 10], 8192).unwrap(), 0);
    assert_eq!(fs::metadata(mounted.file()).unwrap().len(), 8192);
}

#[test]
fn holes_are_found_and_punched() {
    let mounted = Mounted::new(MemoryVolume::new(ByteLen::new(1 << 20)), MountOptions::default());
    let path = mounted.file();
    let path = path.display();
    mounted.disk.write_at(ByteOffset::new(65536), &[7; 65536], false, RequestClass::Guest).unwrap();
    let map = sh(&format!("qemu-img map --output=json -f raw {path}"));
    assert!(map.contains("\"start\": 65536, \"length\": 65536"), "{map}");
    sh(&format!("fallocate --punch-hole --offset 66000 --length 1000 {path}"));
    let bytes = mounted.disk.snapshot();
    assert_eq!((bytes[65999], bytes[66000], bytes[66999], bytes[67000]), (7, 0, 0, 7));
    sh(&format!("fallocate --zero-range --offset 65536 --length 512 {path}"));
    assert_eq!(mounted.disk.snapshot()[65536], 0);
    let refused = Command::new("fallocate").args(["--length", "4096"]).arg(mounted.file()).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("not supported"), "room cannot be promised: {said}");
}

#[test]
fn a_writer_of_what_is_only_read_gets_erofs() {
    let only_read = MemoryVolume::read_only(patterned(4096));
    let mounted = Mounted::new(only_read, MountOptions { allow_other: true, read_only: false });
    for how in [
        OpenOptions::new().write(true),
        OpenOptions::new().append(true),
        OpenOptions::new().write(true).truncate(true),
    ] {
        assert_eq!(how.open(mounted.file()).unwrap_err().raw_os_error(), Some(libc::EROFS));
    }
    let path = mounted.file();
    let as_other =
        format!("setpriv --reuid 65534 --regid 65534 --clear-groups bash -c ': >> {}'", path.display());
    let said = Command::new("bash").args(["-c", &as_other]).output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("Read-only file system"), "{said}");
    for script in
        ["touch {}", "rm {}", "mv {} {}2", "mkdir {}.d", "truncate -s 0 {}", "ln {} {}.2", "touch {}.new"]
    {
        let script = script.replace("{}", &path.display().to_string());
        let said = Command::new("bash").args(["-c", &script]).output().unwrap();
        let words = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && words.contains("Read-only file system"), "{script}: {words}");
    }
    let writable = Mounted::new(
        MemoryVolume::new(ByteLen::new(512)),
        MountOptions { allow_other: false, read_only: true },
    );
    let error = OpenOptions::new().write(true).open(writable.file()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS), "a mount that is only read");
}

#[test]
fn what_is_open_outlives_the_mount_and_a_second_mount_is_refused() {
    let mounted = Mounted::new(MemoryVolume::new(ByteLen::new(4096)), MountOptions::default());
    let mount = mounted.mount.as_ref().unwrap();
    let again = Mount::start(
        SingleFile::new("x", mounted.disk.clone()),
        mounted.folder.path(),
        MountOptions::default(),
    );
    assert_eq!(again.err().unwrap().kind(), blocks::ErrorKind::Busy);
    assert!(!detach_dead(mounted.folder.path()).unwrap(), "a mount that is served is left alone");
    let file = OpenOptions::new().write(true).open(mounted.file()).unwrap();
    assert_eq!(mount.unmount().unwrap(), Ended::Detached);
    file.write_all_at(b"still here", 0).unwrap();
    assert_eq!(&mounted.disk.snapshot()[..10], b"still here");
    assert!(!mount.is_over());
}

#[test]
fn what_a_dead_server_left_is_taken_over() {
    let mounted = Mounted::new(MemoryVolume::new(ByteLen::new(4096)), MountOptions::default());
    let held = File::open(mounted.file()).unwrap();
    // As after the death of its process: the connection is gone, the mount is not.
    let device = fs::metadata(mounted.folder.path()).unwrap().dev();
    sh(&format!(
        "at=/sys/fs/fuse/connections; mountpoint -q $at || {{ mount -t fusectl none $at; trap 'umount /sys/fs/fuse/connections' EXIT; }}; \
                 echo 1 > $at/{}/abort",
        libc::minor(device)
    ));
    assert_eq!(rustix::fs::statfs(mounted.folder.path()).unwrap_err(), rustix::io::Errno::NOTCONN);
    let second = Arc::new(MemoryVolume::new(ByteLen::new(512)));
    let mount =
        Mount::start(SingleFile::new("second", second), mounted.folder.path(), MountOptions::default())
            .unwrap();
    assert_eq!(fs::metadata(mounted.folder.path().join("second")).unwrap().len(), 512);
    drop((held, mount));
}

/// Detaches a loop device.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn a_loop_device_on_the_file_verifies_and_holds_file_systems() {
    let mounted = Mounted::new(MemoryVolume::new(ByteLen::new(320 << 20)), MountOptions::default());
    for direct in ["off", "on"] {
        let file = mounted.file();
        let device = sh(&format!("losetup --find --show --direct-io={direct} {}", file.display()));
        let device = Loop(device.trim().to_owned());
        let folder = tempfile::tempdir().unwrap();
        let (device, folder) = (&device.0, folder.path().display());
        sh(&format!(
            "fio --name=v --verify_state_save=0 --filename={device} --rw=randwrite --bsrange=512-256k --size=24m --direct=1 \
                     --ioengine=libaio --iodepth=16 --verify=crc32c --do_verify=1 --verify_fatal=1 --minimal"
        ));
        for (make, check) in [("mkfs.ext4 -q -F", "e2fsck -f -n"), ("mkfs.xfs -q -f", "xfs_repair -n")] {
            sh(&format!("{make} {device} && mount {device} {folder} && trap 'umount {folder}' EXIT
                         dd if=/dev/urandom of={folder}/a bs=1M count=20 status=none && cp {folder}/a {folder}/b
                         rm {folder}/a && fstrim {folder} && sync && sha256sum < {folder}/b > {folder}/sum"));
            sh(&format!(
                "{check} {device} >&2 && mount {device} {folder} && trap 'umount {folder}' EXIT
                         sha256sum < {folder}/b | cmp - {folder}/sum"
            ));
        }
    }
}

/// What fsx does, with a model in memory: reads, writes, holes and zeroes at random, through two descriptors.
#[test]
fn random_operations_do_what_bytes_in_memory_do() {
    const LEN: u64 = (3 << 20) + 512;
    let mounted = Mounted::new(MemoryVolume::new(ByteLen::new(LEN)), MountOptions::default());
    let open = || OpenOptions::new().read(true).write(true).open(mounted.file()).unwrap();
    let files = [open(), open()];
    let mut model = vec![0_u8; LEN as usize];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    println!("seed {state:#x}");
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for step in 0..4000 {
        let (kind, which) = (random(10), random(2) as usize);
        let start = random(LEN);
        let longest = if random(10) == 0 { 1 << 20 } else { 9000 };
        let len = (1 + random(longest)).min(LEN - start);
        let range = start as usize..(start + len) as usize;
        let file = &files[which];
        match kind {
            0..=3 => {
                let bytes: Vec<u8> = (0..len).map(|at| (step + at) as u8).collect();
                file.write_all_at(&bytes, start).unwrap();
                model[range].copy_from_slice(&bytes);
            }
            4 | 5 => {
                let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                let flags = if kind == 4 { punch } else { rustix::fs::FallocateFlags::ZERO_RANGE };
                rustix::fs::fallocate(file, flags, start, len).unwrap();
                model[range].fill(0);
            }
            6 => file.sync_data().unwrap(),
            _ => {
                let mut bytes = vec![0; len as usize];
                file.read_exact_at(&mut bytes, start).unwrap();
                assert!(bytes == model[range], "step {step}: {len} bytes at {start}");
            }
        }
    }
    assert!(mounted.disk.snapshot() == model);
}
