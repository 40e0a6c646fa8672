//! An agent that taps its disk: the device that it shows, its processes, and their end.

use super::Stage;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Ends what an agent with a tap leaves, also after a panic. Must be dropped before its stage.
pub struct Tapped {
    holder: u32,
    device: String,
    folder: PathBuf,
}

impl Tapped {
    /// Starts the agent towards that port and waits for the device.
    pub fn start(stage: &mut Stage, port: u16, more: &[&str]) -> Tapped {
        let flags = ["--tracker", "tap", "--tap-checkpoint-every", "100ms"];
        let said = logged(stage).len();
        stage.start_agent_towards(None, port, &[&flags, more].concat());
        let holder = stage.agent.as_ref().expect("it was started").id();
        let name = stage.disk.device().trim_start_matches("/dev/").to_owned();
        let folder = PathBuf::from("/run/understudy/tap").join(name);
        let mut tapped = Tapped { holder, device: String::new(), folder };
        stage.wait_until("the tap", 60, |stage| {
            let log = logged(stage);
            let found = log.get(said..).and_then(|log| log.split("; use ").nth(1));
            tapped.device = found.and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned();
            !tapped.device.is_empty()
        });
        tapped
    }

    /// What is used in the disk's place.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The process that serves the tap.
    pub fn server(&self) -> Option<u32> {
        children(self.holder).first().copied()
    }

    /// Waits until writes are sent in order.
    pub fn wait_in_order(&self, stage: &mut Stage) {
        stage.wait_until("order", 60, |stage| {
            stage.status("/disks/0/tracker").as_str().is_some_and(|text| text.contains("; in order"))
        });
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
        let servers = children(self.holder);
        kill("-TERM", self.holder);
        let began = Instant::now();
        let runs = |process: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
        };
        while runs(&self.holder) && began.elapsed() < Duration::from_secs(15) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if runs(&self.holder) {
            kill("-9", self.holder);
            servers.into_iter().for_each(|server| kill("-9", server));
            let _ = Command::new("umount").arg("-l").arg(&self.folder).output();
            let _ = Command::new("losetup").args(["-d", &self.device]).output();
        }
        let _ = std::fs::remove_dir(&self.folder);
    }
}
