//! Loop devices, mounts, writers, agents.

use blocks::ByteLen;
use cbt::{Agent, AgentConfig, StopHandle, stop_pair};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long anything may take on this machine when others build on it too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A loop device over a sparse file of its own.
pub struct Disk {
    pub device: PathBuf,
    pub backing: PathBuf,
    pub folder: tempfile::TempDir,
    pub len: ByteLen,
}

impl Disk {
    pub fn new(bytes: u64) -> Disk {
        let folder = tempfile::tempdir().unwrap();
        let backing = folder.path().join("disk");
        File::create(&backing).unwrap().set_len(bytes).unwrap();
        let output = run("losetup", &["-f", "--show", backing.to_str().unwrap()]);
        let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        Disk { device, backing, folder, len: ByteLen::new(bytes) }
    }

    /// With an empty ext4.
    pub fn with_ext4(bytes: u64) -> Disk {
        let disk = Disk::new(bytes);
        run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk.path()]);
        disk
    }

    pub fn path(&self) -> &str {
        self.device.to_str().unwrap()
    }

    pub fn mount(&self) -> Mounted {
        Mounted::new(&self.device, self.folder.path().join("mnt"))
    }

    /// What the device holds, past the page cache.
    pub fn content(&self) -> Vec<u8> {
        read_device(&self.device)
    }

    /// Writes to the device itself and syncs.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(&self.device).unwrap();
        file.write_all_at(bytes, at).unwrap();
        file.sync_all().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // In this order: what has the number after the detaching may be another test's.
        let _ = cbt::detach_tracker(self.device.file_name().unwrap().to_str().unwrap());
        let _ = Command::new("losetup").args(["-d", self.path()]).output();
    }
}

pub fn read_device(device: &Path) -> Vec<u8> {
    let disk = cbt::Disk::open(device).unwrap();
    let mut buffer = blocks::AlignedBuffer::new(1 << 20);
    let whole = blocks::Extent::whole(disk.len()).unwrap();
    let parts = whole.split(ByteLen::new(1 << 20));
    parts.flat_map(|part| disk.read(part, &mut buffer).unwrap().to_vec()).collect()
}

/// A mounted ext4; thawed and unmounted on drop.
pub struct Mounted {
    pub at: PathBuf,
}

impl Mounted {
    pub fn new(device: &Path, at: PathBuf) -> Mounted {
        std::fs::create_dir_all(&at).unwrap();
        run("mount", &["-t", "ext4", device.to_str().unwrap(), at.to_str().unwrap()]);
        Mounted { at }
    }

    pub fn is_frozen(&self) -> bool {
        // A frozen file system answers a second freeze with EBUSY; one that is not gets frozen, and thawed at once.
        let frozen = !Command::new("fsfreeze").arg("-f").arg(&self.at).output().unwrap().status.success();
        if !frozen {
            run("fsfreeze", &["-u", self.at.to_str().unwrap()]);
        }
        frozen
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.at).output();
        for _ in 0..50 {
            if Command::new("umount").arg(&self.at).output().unwrap().status.success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("{} cannot be unmounted", self.at.display());
    }
}

/// Rewrites and syncs files until it is dropped.
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Writer {
    pub fn start(at: &Path, pause: Duration) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, at) = (Arc::clone(&stop), at.to_owned());
        let thread = std::thread::spawn(move || {
            let mut round = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                round += 1;
                let mut file = File::create(at.join(format!("file-{}", round % 17))).unwrap();
                let bytes: Vec<u8> = (0..64 << 10).map(|at: u64| (at / 512 + round) as u8).collect();
                file.write_all(&bytes).unwrap();
                if round.is_multiple_of(3) {
                    file.sync_all().unwrap();
                }
                std::thread::sleep(pause);
            }
            round
        });
        Writer { stop, thread: Some(thread) }
    }

    /// How many files it wrote.
    pub fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An agent on a thread; stopped on drop.
pub struct RunningAgent {
    stop: StopHandle,
    thread: Option<JoinHandle<blocks::Result<()>>>,
}

impl RunningAgent {
    pub fn start(config: AgentConfig) -> RunningAgent {
        let (stop, stopped) = stop_pair();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Agent::run(config, stopped))
        });
        RunningAgent { stop, thread: Some(thread) }
    }

    /// A clean stop.
    pub fn stop(mut self) -> blocks::Result<()> {
        self.stop.stop();
        self.thread.take().unwrap().join().unwrap()
    }

    /// Waits until the agent ends by itself.
    pub fn wait(mut self) -> blocks::Result<()> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A child process, killed on drop.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The agent as a process of its own, to die at that step if one is given; what it says goes to `agent.log`.
pub fn spawn_agent(
    server: &super::Server,
    disk: &Disk,
    folder: &Path,
    every_ms: u64,
    crash_at: Option<&str>,
) -> Killed {
    let wire::Address::Unix(socket) = server.address() else { unreachable!() };
    let mut command = Command::new(example("agent"));
    command
        .arg(socket)
        .arg(folder)
        .arg(example("watchdog"))
        .arg(disk.path())
        .arg(format!("every={every_ms}"));
    if let Some(step) = crash_at {
        command.env("UNDERSTUDY_CRASH_AT", step);
    }
    let log = OpenOptions::new().append(true).create(true).open(folder.join("agent.log")).unwrap();
    Killed(command.stderr(log).spawn().unwrap())
}

/// Waits until the agent has died at that step, and nowhere else.
pub fn wait_dead_at(step: &str, agent: &mut Killed, folder: &Path) {
    eventually(&format!("{step} is reached"), || agent.0.try_wait().unwrap().is_some());
    let said = std::fs::read_to_string(folder.join("agent.log")).unwrap();
    assert!(said.contains(&format!("dying at {step}")), "{step} was not reached: {said}");
}

/// A write that a frozen file system would stop.
pub fn writes_go_on(mounted: &Mounted) -> bool {
    let path = mounted.at.join("alive");
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::fs::write(path, b"alive").map(|()| sender.send(()));
    });
    receiver.recv_timeout(PATIENCE).is_ok()
}

/// A configuration for tests: quick, everything in `folder`.
pub fn config(server: &super::Server, disks: &[&Disk], folder: &Path) -> AgentConfig {
    let devices: Vec<PathBuf> = disks.iter().map(|disk| disk.device.clone()).collect();
    let mut config = AgentConfig::new(server.address(), "machine-1", &devices);
    config.state_dir = folder.join("state");
    config.run_dir = folder.join("run");
    config.hooks_dir = folder.join("hooks");
    config.watchdog = vec![example("watchdog")];
    config.heartbeat = Duration::from_millis(200);
    config.checkpoint_every = Duration::from_secs(3600);
    config.backoff_max = Duration::from_millis(500);
    config
}

/// An example program of this crate: `cargo test` builds them along, `cargo test --test ...` does not.
pub fn example(name: &str) -> String {
    let mut folder = std::env::current_exe().unwrap();
    folder.pop();
    folder.pop();
    let path = folder.join("examples").join(name);
    if !path.exists() {
        run(env!("CARGO"), &["build", "--quiet", "-p", "understudy-cbt", "--examples"]);
    }
    assert!(path.exists(), "{} is not built", path.display());
    path.display().to_string()
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Where two disks differ first, for a message that a person can use.
pub fn assert_same(what: &str, ours: &[u8], theirs: &[u8]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let differing: Vec<usize> = ours
        .chunks(4096)
        .zip(theirs.chunks(4096))
        .enumerate()
        .filter(|(_, (a, b))| a != b)
        .map(|(index, _)| index)
        .collect();
    assert!(
        differing.is_empty(),
        "{what}: {} blocks of 4 KiB differ, first {:?}",
        differing.len(),
        &differing[..differing.len().min(8)]
    );
}

/// The process' resident memory in bytes.
pub fn resident(process: u32) -> u64 {
    let mut text = String::new();
    File::open(format!("/proc/{process}/status")).unwrap().read_to_string(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// Fills the file with bytes that are no zeroes.
pub fn fill(file: &mut File, at: u64, bytes: u64, seed: u64) {
    file.seek(SeekFrom::Start(at)).unwrap();
    let mut state = seed | 1;
    let mut block = vec![0_u8; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        for word in block.chunks_mut(8) {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            word.copy_from_slice(&state.to_le_bytes());
        }
        let part = left.min(1 << 20);
        file.write_all(&block[..part as usize]).unwrap();
        left -= part;
    }
    file.sync_all().unwrap();
}
