//! A loop device, and file systems mounted from it.

use super::sh;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A number that is free for a moment must not be given to another test's disk.
static ATTACHING: Mutex<()> = Mutex::new(());

fn attaching() -> MutexGuard<'static, ()> {
    ATTACHING.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Disk {
    file: PathBuf,
    device: String,
}

impl Disk {
    /// A sparse file of that size behind a loop device.
    pub fn new(folder: &Path, name: &str, mib: u64) -> Disk {
        let file = folder.join(name);
        sh(&format!("truncate -s {mib}M {}", file.display()));
        let _alone = attaching();
        let device = sh(&format!("losetup --find --show {}", file.display())).trim().to_owned();
        Disk { file, device }
    }

    /// Takes the file from under the device, lets something happen meanwhile, and puts it under the same number again.
    pub fn attach_again(&self, meanwhile: impl FnOnce()) {
        let _alone = attaching();
        sh(&format!("losetup -d {}", self.device));
        meanwhile();
        sh(&format!("losetup {} {}", self.device, self.file.display()));
    }

    /// Makes file and device that long, also while they are in use.
    pub fn resize(&self, mib: u64) {
        sh(&format!("truncate -s {mib}M {}", self.file.display()));
        sh(&format!("losetup -c {}", self.device));
    }

    /// The device's path.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The file behind it.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Makes an ext4 file system on the whole disk.
    pub fn format(&self) {
        sh(&format!("mkfs.ext4 -q -F {}", self.device));
    }

    /// Mounts it there until the guard is dropped.
    pub fn mount(&self, at: &Path) -> Mount {
        Mount::new(&self.device, at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let name = self.device.trim_start_matches("/dev/");
        let _ = std::fs::remove_dir_all(format!("/sys/fs/bpf/understudy/{name}"));
        let _ = Command::new("losetup").args(["-d", &self.device]).output();
    }
}

pub struct Mount {
    at: PathBuf,
}

impl Mount {
    /// Mounts the device there.
    pub fn new(device: &str, at: &Path) -> Mount {
        std::fs::create_dir_all(at).expect("a mount point");
        sh(&format!("mount {device} {}", at.display()));
        Mount { at: at.to_owned() }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for _ in 0..50 {
            match Command::new("umount").arg(&self.at).output() {
                Ok(output) if output.status.success() => return,
                _ => std::thread::sleep(std::time::Duration::from_millis(100)),
            }
        }
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
        // Whoever goes on to look at the device would find it in use.
        assert!(std::thread::panicking(), "{} is in use and cannot be unmounted", self.at.display());
    }
}
