//! The guest's side of an export: a loop device over nbdfuse, since this kernel may have no NBD client.

use super::process::Process;
use super::sh;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub struct Guest {
    device: String,
    folder: PathBuf,
    fuse: Option<Process>,
}

impl Guest {
    /// Attaches the export; requests that fail are tried again on a new connection for a minute, so that a restart of
    /// the server is only a pause.
    pub fn attach(uri: &str, folder: &Path) -> Guest {
        std::fs::create_dir_all(folder).expect("a folder");
        let target = folder.join("disk");
        let socket = folder.with_extension("retry");
        let mut retry = Command::new("nbdkit");
        retry.args(["-f", "-U"]).arg(&socket).args(["--filter=retry", "nbd"]).arg(format!("uri={uri}"));
        retry.args(["retries=60", "retry-delay=1", "retry-exponential=no", "--run"]);
        retry.arg(format!("exec nbdfuse {} $uri", target.display()));
        let fuse = Process::start(retry, None, &folder.with_extension("log"));
        let started = Instant::now();
        while !target.exists() {
            assert!(started.elapsed() < Duration::from_secs(60), "nbdfuse does not show {uri}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let device = sh(&format!("losetup --find --show {}", target.display())).trim().to_owned();
        Guest { device, folder: folder.to_owned(), fuse: Some(fuse) }
    }

    /// The device that the guest sees.
    pub fn device(&self) -> &str {
        &self.device
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).output();
        for _ in 0..50 {
            match Command::new("fusermount3").arg("-u").arg(&self.folder).output() {
                Ok(output) if output.status.success() => break,
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        // The wrapper ends by itself when the mount is gone; a moment later it is killed.
        let started = Instant::now();
        while self.fuse.as_mut().is_some_and(Process::alive) && started.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.fuse = None;
    }
}
