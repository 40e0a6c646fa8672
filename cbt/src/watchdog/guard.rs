//! The agent's hold on its watchdog.

use blocks::{Error, ErrorKind, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the watchdog may take to answer while nothing is frozen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A running watchdog. Dropping it lets the process end.
#[derive(Debug)]
pub(crate) struct Watchdog {
    child: Child,
    reader: BufReader<UnixStream>,
}

/// A file system that is about to be frozen: something open on it, and where it is mounted.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub file: File,
    pub mount_point: PathBuf,
}

impl Watchdog {
    /// Starts one. `command` is the program and its first arguments; the folder for notes is added.
    pub fn start(command: &[String], run_dir: &Path) -> Result<Watchdog> {
        let failed = |error: std::io::Error| Error::io("starting the watchdog", error);
        let (program, arguments) = command.split_first().ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "no command is configured for the watchdog")
        })?;
        std::fs::create_dir_all(run_dir).map_err(|error| Error::io(run_dir.display().to_string(), error))?;
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        ours.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
        ours.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
        let child = Command::new(program)
            .args(arguments)
            .arg(run_dir)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| Error::io(format!("starting the watchdog {program}"), error))?;
        let mut watchdog = Watchdog { child, reader: BufReader::new(ours) };
        watchdog.expect("ready")?;
        Ok(watchdog)
    }

    /// Whether the process lives.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None)) && !self.hung_up()
    }

    /// Whether it closed its end; cheap enough to ask between two reads of a frozen disk.
    pub fn hung_up(&self) -> bool {
        let mut polled =
            libc::pollfd { fd: self.reader.get_ref().as_fd().as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one valid pollfd, no waiting.
        unsafe { libc::poll(&mut polled, 1, 0) };
        polled.revents & (libc::POLLHUP | libc::POLLERR) != 0
    }

    /// The clock starts: the watchdog thaws these when `budget` is over, unless [`Watchdog::release`] comes first.
    pub fn arm(&mut self, budget: Duration, guarded: &[Guarded]) -> Result<Instant> {
        let descriptors: String =
            guarded.iter().map(|guarded| format!(" {}", guarded.file.as_raw_fd())).collect();
        self.say(&format!("arm {}{descriptors}", budget.as_millis()))?;
        let started = Instant::now();
        self.expect("armed")?;
        Ok(started)
    }

    /// The file system of that number is about to be frozen. Must be said before it is.
    pub fn freezing(&mut self, index: usize) -> Result<()> {
        self.say(&format!("freezing {index}"))
    }

    /// It is frozen.
    pub fn frozen(&mut self, index: usize) -> Result<()> {
        self.say(&format!("frozen {index}"))
    }

    /// It is not frozen: freezing failed, or it was thawed.
    pub fn thawed(&mut self, index: usize) -> Result<()> {
        self.say(&format!("thawed {index}"))
    }

    /// Everything is thawed. `Cancelled` where the watchdog had to thaw: what was read is worth nothing.
    pub fn release(&mut self) -> Result<()> {
        self.say("release")?;
        match self.answer()?.as_str() {
            "released" => Ok(()),
            other => Err(Error::new(ErrorKind::Cancelled, format!("the watchdog thawed first ({other})"))),
        }
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let mut stream = self.reader.get_ref();
        stream
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|error| Error::io("talking to the watchdog", error))
    }

    fn expect(&mut self, wanted: &str) -> Result<()> {
        match self.answer()? {
            answer if answer == wanted => Ok(()),
            other => {
                Err(Error::new(ErrorKind::Io, format!("the watchdog says '{other}' instead of '{wanted}'")))
            }
        }
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err(Error::new(ErrorKind::Io, "the watchdog has ended")),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(Error::io("waiting for the watchdog", error)),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = self.reader.get_ref().shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}
