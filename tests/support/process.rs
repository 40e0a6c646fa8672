//! A child that dies with the test.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a killed process may take to be gone.
const END_TIMEOUT: Duration = Duration::from_secs(120);

pub struct Process {
    child: Child,
}

/// Whether any thread of the process is there and not dead. Its own state says "zombie" as soon as the first one is gone, while
/// the others still hold its files open.
pub fn runs(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads.map(|thread| std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default()).any(
        |stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X'])),
    )
}

impl Process {
    /// Starts it, its output appended to the log; with `crash_at` it dies at that step.
    pub fn start(mut command: Command, crash_at: Option<&str>, log: &Path) -> Process {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        if let Some(step) = crash_at {
            command.env("UNDERSTUDY_CRASH_AT", step);
        }
        Process { child: command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")) }
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// kill -9, at once.
    pub fn kill(mut self) {
        self.end();
    }

    /// Asks it to stop (SIGTERM) and waits.
    pub fn stop(mut self) {
        super::sh(&format!("kill {}", self.child.id()));
        let _ = self.child.wait();
    }

    /// Its resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or("VmRSS: 0 kB");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// A process that waits for a disk whose server is gone cannot be killed: that must end a test, not hold it for ever.
    fn end(&mut self) {
        let _ = self.child.kill();
        let begun = Instant::now();
        while self.alive() {
            if begun.elapsed() > END_TIMEOUT {
                assert!(std::thread::panicking(), "process {} does not end: it waits for a disk", self.id());
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
