//! Loop devices, copies and comparisons for the tracker's tests. Everything is taken down on drop, after a panic too.
#![allow(dead_code, reason = "each test file uses a part")]

use blocks::{ByteLen, ByteOffset, Extent, Generation, Id, MachineId, Seq, StoreId};
use cbt::{Agreement, Base, Tracker};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long anything may take on this machine when others build on it too.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const KIB_4: u64 = 4096;

/// A loop device over a file of its own.
pub struct Loop {
    pub device: PathBuf,
    pub backing: PathBuf,
    pub folder: tempfile::TempDir,
}

impl Loop {
    /// Over a new file of `bytes` bytes, filled with a pattern so that zeroing shows.
    pub fn new(bytes: u64) -> Loop {
        let folder = tempfile::tempdir().unwrap();
        let backing = folder.path().join("disk");
        let file = File::create(&backing).unwrap();
        let pattern: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 4096 + 1) as u8).collect();
        let mut at = 0;
        while at < bytes {
            let part = (bytes - at).min(1 << 20);
            file.write_all_at(&pattern[..part as usize], at).unwrap();
            at += part;
        }
        let device = attach(&["-f", "--show", backing.to_str().unwrap()]);
        Loop { device, backing, folder }
    }

    /// The kernel's name of the device.
    pub fn name(&self) -> String {
        name_of(&self.device)
    }

    /// Makes `partN` from `start` (bytes) on; its node. Removed with the loop.
    pub fn partition(&self, number: u32, start: u64, bytes: u64) -> PathBuf {
        let [number, start, sectors] = [u64::from(number), start / 512, bytes / 512].map(|n| n.to_string());
        run("addpart", &[self.device.to_str().unwrap(), &number, &start, &sectors]);
        let node = PathBuf::from(format!("{}p{number}", self.device.display()));
        wait_for(&node);
        node
    }

    /// Puts a file under the same device number again.
    pub fn reattach(&self, backing: &Path) {
        let _alone = attaching();
        run("losetup", &["-d", self.device.to_str().unwrap()]);
        run("losetup", &[self.device.to_str().unwrap(), backing.to_str().unwrap()]);
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let device = self.device.to_str().unwrap();
        for number in ["1", "2"] {
            let _ = Command::new("delpart").args([device, number]).output();
        }
        // In this order: what has the number after the detaching may be another test's.
        let _ = cbt::detach_tracker(&self.name());
        let _ = Command::new("losetup").args(["-d", device]).output();
    }
}

/// A number that is free for a moment must not be given to another test's disk.
static ATTACHING: Mutex<()> = Mutex::new(());

fn attaching() -> MutexGuard<'static, ()> {
    ATTACHING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attach(arguments: &[&str]) -> PathBuf {
    let _alone = attaching();
    let output = run("losetup", arguments);
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

pub fn name_of(device: &Path) -> String {
    device.file_name().unwrap().to_str().unwrap().to_owned()
}

/// A mounted file system, unmounted on drop.
pub struct Mounted {
    pub at: PathBuf,
}

impl Mounted {
    pub fn new(device: &Path, at: PathBuf) -> Mounted {
        std::fs::create_dir_all(&at).unwrap();
        run("mount", &["-t", "ext4", device.to_str().unwrap(), at.to_str().unwrap()]);
        Mounted { at }
    }

    pub fn freeze(&self) {
        run("fsfreeze", &["-f", self.at.to_str().unwrap()]);
    }

    pub fn thaw(&self) {
        run("fsfreeze", &["-u", self.at.to_str().unwrap()]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.at).output();
        let _ = Command::new("umount").arg(&self.at).output();
    }
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

pub fn wait_for(path: &Path) {
    for _ in 0..2400 {
        if path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("{} did not appear", path.display());
}

/// Memory aligned for O_DIRECT.
pub fn aligned(bytes: usize) -> &'static mut [u8] {
    let pages: Vec<[u64; 512]> = vec![[0; 512]; bytes.div_ceil(4096) + 1];
    let memory = Box::leak(pages.into_boxed_slice());
    // SAFETY: plain bytes, leaked, and of at least the length cut below.
    let memory =
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u8>(), memory.len() * 4096) };
    let skip = memory.as_ptr().align_offset(4096);
    &mut memory[skip..skip + bytes]
}

/// The device or file, past the page cache.
pub fn open_direct(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

/// The base that these tests give out.
pub fn base() -> Base {
    Base {
        store: StoreId(Id::from_bytes([1; 16]).unwrap()),
        acked: Seq(5),
        sent: Seq(6),
        generation: Generation::FIRST,
        machine: MachineId(Id::from_bytes([2; 16]).unwrap()),
    }
}

pub fn extent(start: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(start), ByteLen::new(len)).unwrap()
}

/// A stand-in kept by nothing but the tracker's word.
pub struct Copy {
    pub path: PathBuf,
    file: File,
    device: File,
    buffer: &'static mut [u8],
    /// Completions that the kernel did not report, found and cured by counting.
    pub completed_short: u64,
}

impl Copy {
    /// Scans the disk: afterwards the tracker is trusted and the copy is the disk, up to what is marked.
    pub fn begin(tracker: &dyn Tracker, disk: &Loop) -> Copy {
        let mut copy = Copy::of(disk);
        let scan = tracker.begin_scan(PATIENCE).unwrap();
        copy.read(extent(0, tracker.len().get()));
        tracker.finish_scan(scan, base()).unwrap();
        assert!(tracker.trust().is_trusted(), "{}", tracker.trust());
        copy
    }

    /// A copy of nothing.
    pub fn of(disk: &Loop) -> Copy {
        let path = disk.folder.path().join("copy");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        Copy { path, file, device: open_direct(&disk.device), buffer: aligned(1 << 20), completed_short: 0 }
    }

    fn read(&mut self, extent: Extent) {
        for piece in extent.split(ByteLen::new(1 << 20)) {
            let buffer = &mut self.buffer[..piece.len().as_usize()];
            self.device.read_exact_at(buffer, piece.start().get()).unwrap();
            self.file.write_all_at(buffer, piece.start().get()).unwrap();
        }
    }

    /// Takes, reads and acknowledges until nothing is marked; how many bytes.
    pub fn drain(&mut self, tracker: &dyn Tracker) -> u64 {
        let mut bytes = 0;
        loop {
            let taking = tracker.take(ByteLen::new(4 << 20)).unwrap();
            if taking.extents.is_empty() {
                return bytes;
            }
            bytes += taking.bytes().get();
            taking.extents.iter().for_each(|extent| self.read(*extent));
            tracker.acknowledge(taking.number).unwrap();
        }
    }

    /// What the agent does at a barrier: drain, agree, and re-read what completions were missed for.
    pub fn barrier(&mut self, tracker: &dyn Tracker) {
        for _ in 0..10 {
            self.drain(tracker);
            match tracker.agree(PATIENCE).unwrap() {
                Agreement::Agree => return,
                Agreement::CompletedShort { by } => {
                    println!("completions of {by} bytes were not reported; re-reading");
                    self.completed_short += by.get();
                }
                other => panic!("{other:?}; {:?}", tracker.census().unwrap()),
            }
        }
        panic!("never agreed");
    }

    /// The numbers of the 4 KiB blocks that differ from the disk's backing file, found by cmp.
    pub fn differing(&self, disk: &Loop) -> Vec<u64> {
        let output = Command::new("cmp").arg("-l").arg(&disk.backing).arg(&self.path).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let byte = |line: &str| line.split_whitespace().next().unwrap().parse::<u64>().unwrap();
        let mut blocks: Vec<u64> = text.lines().map(|line| (byte(line) - 1) / KIB_4).collect();
        blocks.dedup();
        blocks
    }

    /// Every block that differs is marked; how many differ.
    pub fn assert_marked(&self, tracker: &dyn Tracker, disk: &Loop) -> usize {
        let differing = self.differing(disk);
        let changed = tracker.changed().unwrap();
        for block in &differing {
            let at = extent(block * KIB_4, 1);
            assert!(changed.contains(at), "block {block} differs and is not marked");
        }
        differing.len()
    }
}
