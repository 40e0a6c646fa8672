//! A raw file that is served while its file system fills up, or while somebody cuts it: an error code, never a dead server. And
//! one that is shown as a file: small writes of it are put into the page cache by the kernel, and fio finds each again.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]
#![allow(dead_code, reason = "each test file uses its own part of the support")]

mod support;

use blocks::OpenMode;
use fuse_fs::{Mount, MountOptions, SingleFile};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use store::{HostFile, ImageFormat, open_image};
use support::process::Process;
use support::{program, run};

const MIB: u64 = 1 << 20;

/// A file system in memory, gone with the test however that ends.
struct Small(tempfile::TempDir);

impl Small {
    fn new(mib: u64) -> Small {
        let small = Small(tempfile::tempdir().unwrap());
        std::fs::create_dir(small.root()).unwrap();
        let size = format!("size={mib}m");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(small.root()));
        small
    }

    /// ext4 in a file beside where it is mounted.
    fn ext4(mib: u64) -> Small {
        let small = Small(tempfile::tempdir().unwrap());
        let image = small.0.path().join("image");
        std::fs::create_dir(small.root()).unwrap();
        std::fs::File::create(&image).unwrap().set_len(mib * MIB).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-m0"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).args([image, small.root()]));
        small
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("mounted")
    }

    /// Serves a file of that length; its path and its URI.
    fn serve(&self, len: u64) -> (Process, PathBuf, String) {
        let (disk, socket) = (self.root().join("disk"), self.0.path().join("socket"));
        std::fs::File::create(&disk).unwrap().set_len(len).unwrap();
        let mut command = program();
        command.args(["serve", "--format", "raw"]).arg(&disk);
        command.arg("--nbd").arg(format!("unix:{}", socket.display()));
        let served = Process::start(command, None, &socket.with_extension("log"));
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the server does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        (served, disk, format!("nbd+unix:///?socket={}", socket.display()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.root()).status();
    }
}

fn fio(file: &Path, more: &[&str]) {
    let mut fio = Command::new("fio");
    fio.arg("--name=writes").arg(format!("--filename={}", file.display()));
    fio.args(["--rw=randwrite", "--size=64m", "--ioengine=libaio", "--iodepth=16", "--randseed=7"]);
    fio.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--output-format=terse"])
        .args(more);
    run(&mut fio);
}

/// What qemu-io says to these commands, each on its own line.
fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut tool = Command::new("qemu-io");
    tool.args(["-f", "raw"]);
    for command in commands {
        tool.args(["-c", command]);
    }
    let output = tool.arg(uri).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn bytes_of(file: &Path, at: usize, len: usize) -> Vec<u8> {
    std::fs::read(file).unwrap()[at..at + len].to_vec()
}

#[test]
fn a_full_file_system_is_said_and_what_was_answered_is_there() {
    let small = Small::new(4);
    let (served, disk, uri) = small.serve(16 * MIB);
    // The second write meets pages that are there: it is received in place.
    let said = qemu_io(&uri, &["write -P 3 0 1m", "write -P 4 0 1m", "write -P 5 1m 8m", "read -P 4 0 64k"]);
    assert!(said.contains("No space left on device"), "{said}");
    assert!(!said.contains("Pattern verification failed"), "{said}");
    let said = qemu_io(&uri, &["write -P 6 0 1m", "read -P 4 0 1m"]);
    assert!(said.contains("write failed: Input/output error"), "nothing more is taken: {said}");
    assert!(bytes_of(&disk, 0, MIB as usize).iter().all(|byte| *byte == 4));
    served.stop();
}

#[test]
fn a_file_that_is_cut_under_a_client_kills_nobody() {
    let small = Small::new(8);
    let (served, disk, uri) = small.serve(2 * MIB);
    let said = qemu_io(&uri, &["write -P 3 0 1m", "write -P 4 0 1m", "read -P 4 0 1m"]);
    assert!(!said.contains("failed"), "{said}");
    assert!(bytes_of(&disk, 0, MIB as usize).iter().all(|byte| *byte == 4));
    std::fs::OpenOptions::new().write(true).open(&disk).unwrap().set_len(4096).unwrap();
    let said = qemu_io(&uri, &["write -P 6 512k 256k", "read -P 6 512k 256k"]);
    assert!(!said.contains("failed"), "a write makes the file longer again: {said}");
    assert!(bytes_of(&disk, 512 << 10, 256 << 10).iter().all(|byte| *byte == 6));
    assert!(!qemu_io(&uri, &["write -P 7 0 1m", "read -P 7 0 1m"]).contains("failed"));
    served.stop();
}

#[test]
fn small_writes_of_a_file_that_is_shown_are_found_again_in_it_and_below() {
    let small = Small::ext4(160);
    let (disk, folder) = (small.root().join("disk"), small.0.path().join("shown"));
    std::fs::create_dir(&folder).unwrap();
    for (sizes, is_repeated) in [("--bs=4k", true), ("--bsrange=512-64k", false)] {
        std::fs::write(&disk, vec![5; 64 << 20]).unwrap();
        let file = HostFile::open(&disk, OpenMode::ReadWrite).unwrap();
        let image = open_image(file, Some(ImageFormat::Raw), true).unwrap();
        let mount = Mount::start(SingleFile::new("disk", image), &folder, MountOptions::default()).unwrap();
        fio(&folder.join("disk"), &[sizes, "--direct=1"]);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.contains("/mounted/disk"), "the file is mapped: writes of it go that way");
        mount.unmount().unwrap();
        if is_repeated {
            fio(&disk, &[sizes, "--verify_only"]);
        }
    }
}
