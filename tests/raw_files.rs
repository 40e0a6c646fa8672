//! A raw file that is served while its file system fills up, or while somebody cuts it: an error code, never a dead server.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]
#![allow(dead_code, reason = "each test file uses its own part of the support")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
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
