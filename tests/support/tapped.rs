//! An agent that taps its disks: the devices that it shows, its processes, and their end.

use super::Stage;
use super::process::runs;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Ends what an agent with a tap leaves, also after a panic. Must be dropped before its stage.
pub struct Tapped {
    holder: u32,
    /// Servers whose holder was killed.
    orphans: Vec<u32>,
    devices: Vec<String>,
    folders: Vec<PathBuf>,
}

impl Tapped {
    /// Starts the agent of the stage's disk towards the port and waits for the device.
    pub fn start(stage: &mut Stage, port: u16, more: &[&str]) -> Tapped {
        let disk = stage.disk.device().to_owned();
        Tapped::start_on(stage, &[&disk], port, more)
    }

    /// The same for these disks or partitions.
    pub fn start_on(stage: &mut Stage, disks: &[&str], port: u16, more: &[&str]) -> Tapped {
        let mut flags = vec!["--tracker", "tap"];
        if !more.contains(&"--tap-checkpoint-every") {
            flags.extend(["--tap-checkpoint-every", "100ms"]);
        }
        disks[1..].iter().for_each(|disk| flags.extend(["--disk", disk]));
        let said = logged(stage).len();
        stage.start_agent_of(disks[0], None, port, &[&flags, more].concat());
        let holder = stage.agent.as_ref().expect("it was started").id();
        let folder = |disk: &&str| Path::new("/run/understudy/tap").join(disk.trim_start_matches("/dev/"));
        let folders = disks.iter().map(folder).collect();
        let mut tapped = Tapped { holder, orphans: Vec::new(), devices: Vec::new(), folders };
        stage.wait_until("the tap", 60, |stage| {
            let log = logged(stage);
            let device = |disk: &&str| -> Option<String> {
                let line =
                    log.get(said..)?.lines().rfind(|line| line.contains(&format!("{disk}: tracker tap")))?;
                Some(line.split("; use ").nth(1)?.split(' ').next()?.to_owned())
            };
            tapped.devices = disks.iter().filter_map(device).collect();
            tapped.devices.len() == disks.len()
        });
        tapped
    }

    /// What is used in the first disk's place.
    pub fn device(&self) -> &str {
        &self.devices[0]
    }

    /// What is used in each disk's place.
    pub fn devices(&self) -> Vec<&str> {
        self.devices.iter().map(String::as_str).collect()
    }

    /// Puts so many zeroes at the beginning of each, where numbered writes will go, and flushes them.
    pub fn zero(&self, bytes: usize) {
        for device in &self.devices {
            let file = OpenOptions::new().write(true).open(device).expect("a device");
            file.write_all_at(&vec![0; bytes], 0).expect("it is written");
            file.sync_data().expect("it is flushed");
        }
    }

    /// The process that serves the tap.
    pub fn server(&self) -> Option<u32> {
        children(self.holder).first().copied()
    }

    /// Kills the holder; the process that serves the tap without it.
    pub fn kill_holder(&mut self, stage: &mut Stage) -> u32 {
        let server = self.server().expect("it runs");
        self.orphans.push(server);
        stage.agent.take().expect("it was started").kill();
        server
    }

    /// Kills both; what is on the tap has lost its disk.
    pub fn kill_both(&mut self, stage: &mut Stage) {
        // One that stands still starts no other.
        kill("-STOP", self.holder);
        let server = self.server().expect("it runs");
        kill("-9", server);
        stage.agent.take().expect("it was started").kill();
        stage.wait_until("the end of both", 30, |_| !runs(server));
    }

    /// For a test that may leave the tap without a server: where it panics, what waits for the tap gets errors, so that the test ends.
    /// Must be dropped before what is mounted.
    pub fn errors_on_panic(&self) -> ErrorsOnPanic {
        ErrorsOnPanic(self.folders.clone())
    }

    /// Waits until writes are sent in order.
    pub fn wait_in_order(&self, stage: &mut Stage) {
        stage.wait_until("order", 60, |stage| {
            stage.status("/disks/0/tracker").as_str().is_some_and(|text| text.contains("; in order"))
        });
    }
}

/// See [`Tapped::errors_on_panic`].
pub struct ErrorsOnPanic(Vec<PathBuf>);

impl Drop for ErrorsOnPanic {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let connections = tempfile::tempdir().expect("a folder");
        let _ = Command::new("mount").args(["-t", "fusectl", "none"]).arg(connections.path()).status();
        // A connection is called after its mount's minor number; looking at the mount itself would wait.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for mount in mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()) {
            let [_, _, number, _, at, ..] = mount[..] else { continue };
            if self.0.iter().any(|folder| folder == Path::new(at))
                && let Some((_, minor)) = number.split_once(':')
            {
                let _ = std::fs::write(connections.path().join(minor).join("abort"), "1");
            }
        }
        let _ = Command::new("umount").arg(connections.path()).status();
    }
}

/// What the agent said so far.
pub fn logged(stage: &Stage) -> String {
    std::fs::read_to_string(stage.path("agent.log")).unwrap_or_default()
}

fn children(process: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    text.unwrap_or_default().split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

fn kill(signal: &str, process: u32) {
    let _ = Command::new("kill").args([signal, &process.to_string()]).output();
}

impl Drop for Tapped {
    fn drop(&mut self) {
        // The watchdog, if any, is a child of the server; it ends with it.
        let mut left = children(self.holder);
        left.append(&mut self.orphans);
        if runs(self.holder) {
            kill("-TERM", self.holder);
        }
        let began = Instant::now();
        let any = |left: &[u32]| left.iter().copied().any(runs);
        while (runs(self.holder) || any(&left)) && began.elapsed() < Duration::from_secs(15) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if runs(self.holder) || any(&left) {
            left.insert(0, self.holder);
            left.into_iter().filter(|process| runs(*process)).for_each(|process| kill("-9", process));
        }
        // Of a tap that ended well neither is left. A device that is not this tap's any more is not touched.
        for (folder, device) in self.folders.iter().zip(&self.devices) {
            let name = device.trim_start_matches("/dev/");
            let behind = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
            if behind.is_ok_and(|file| Path::new(file.trim()).starts_with(folder)) {
                let _ = Command::new("losetup").args(["-d", device]).output();
            }
            let _ = Command::new("umount").args(["-q", "-l"]).arg(folder).output();
            let _ = std::fs::remove_dir(folder);
        }
    }
}
