//! QEMU's process, never mistaken for another that has its number.

use super::Places;
use blocks::{Error, ErrorKind, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// The process that runs in a folder. The descriptor stays with it: a later process of the same number is another.
pub(super) struct Process {
    descriptor: OwnedFd,
    pid: i32,
    mark: Vec<u8>,
}

impl Process {
    /// The one that the folder's file names, if it is alive and was started under this identity.
    pub fn find(identity: &str, places: &Places) -> Option<Process> {
        let text = std::fs::read_to_string(places.pid()).ok()?;
        let pid: i32 = text.trim().parse().ok()?;
        let descriptor = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let mark = identity.as_bytes().to_vec();
        let process = Process { descriptor, pid, mark };
        process.is_alive().then_some(process)
    }

    /// A process that has ended has no command line, whether somebody has waited for it or not.
    pub fn is_alive(&self) -> bool {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        line.windows(self.mark.len()).any(|part| part == self.mark)
    }

    /// SIGKILL; returns when it is gone. `Io` where it is not after `patience`.
    pub fn kill(&self, patience: Duration) -> Result<()> {
        match pidfd_send_signal(&self.descriptor, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                return Err(Error::io(format!("killing QEMU's process {}", self.pid), error.into()));
            }
        }
        match self.wait(patience) {
            true => Ok(()),
            false => {
                let context = format!("QEMU's process {} does not end though it was killed", self.pid);
                Err(Error::new(ErrorKind::Io, context))
            }
        }
    }

    /// Whether it is gone within `patience`.
    pub fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}
