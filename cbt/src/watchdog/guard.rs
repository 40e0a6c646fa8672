//! The agent's hold on its watchdog.

use blocks::{Error, ErrorKind, Result};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
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
        ours.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
        let child = Command::new(program)
            .args(arguments)
            .arg(run_dir)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| Error::io(format!("starting the watchdog {program}"), error))?;
        let mut watchdog = Watchdog { child, reader: BufReader::new(ours) };
        watchdog.expect("ready", Some(ANSWER_TIMEOUT))?;
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

    /// Writes out what these file systems hold back, so that freezing has little left to do. Takes as long as that takes.
    pub fn sync<'a>(&mut self, files: impl IntoIterator<Item = &'a File>) -> Result<()> {
        self.say(&format!("sync{}", numbers(files)))?;
        self.expect("synced", None)
    }

    /// The clock starts: the watchdog thaws these when `budget` is over, unless [`Watchdog::release`] comes first.
    pub fn arm(&mut self, budget: Duration, guarded: &[Guarded]) -> Result<Instant> {
        let files = guarded.iter().map(|guarded| &guarded.file);
        self.say(&format!("arm {}{}", budget.as_millis(), numbers(files)))?;
        let started = Instant::now();
        self.expect("armed", Some(ANSWER_TIMEOUT))?;
        Ok(started)
    }

    /// Freezes the file system of that number: writes everything of it out and stops all writers. What the system said,
    /// where it did not: `EBUSY`, frozen already; `EOPNOTSUPP`, cannot be frozen. `Cancelled` where it takes longer than `within`.
    pub fn freeze(&mut self, index: usize, within: Duration) -> Result<std::result::Result<(), i32>> {
        self.ask("freeze", "frozen", index, Some(within))
    }

    /// Lets the writers of the file system of that number go on. `EINVAL` where it was not frozen.
    pub fn thaw(&mut self, index: usize) -> Result<std::result::Result<(), i32>> {
        self.ask("thaw", "thawed", index, None)
    }

    /// Everything is thawed. `Cancelled` where the watchdog had to thaw: what was read is worth nothing.
    pub fn release(&mut self) -> Result<()> {
        self.say("release")?;
        match self.answer(None, &["released", "late"])?.as_str() {
            "released" => Ok(()),
            other => Err(Error::new(ErrorKind::Cancelled, format!("the watchdog thawed first ({other})"))),
        }
    }

    fn ask(
        &mut self,
        order: &str,
        done: &str,
        index: usize,
        within: Option<Duration>,
    ) -> Result<std::result::Result<(), i32>> {
        self.say(&format!("{order} {index}"))?;
        let done = format!("{done} {index}");
        let answer = self.answer(within, &[&done])?;
        match answer[done.len()..].trim() {
            "" => Ok(Ok(())),
            errno => Ok(Err(errno.parse().unwrap_or(libc::EIO))),
        }
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let mut stream = self.reader.get_ref();
        stream
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|error| Error::io("talking to the watchdog", error))
    }

    fn expect(&mut self, wanted: &str, within: Option<Duration>) -> Result<()> {
        self.answer(within, &[wanted, "ready", "cannot"]).and_then(|answer| match answer {
            answer if answer == wanted => Ok(()),
            other => {
                Err(Error::new(ErrorKind::Io, format!("the watchdog says '{other}' instead of '{wanted}'")))
            }
        })
    }

    /// The next line that begins in one of these ways; what was given up waiting for may come before it.
    fn answer(&mut self, within: Option<Duration>, wanted: &[&str]) -> Result<String> {
        let waiting = |error| Error::io("waiting for the watchdog", error);
        let until = within.map(|within| Instant::now() + within);
        let mut line = String::new();
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Error::new(ErrorKind::Cancelled, "the watchdog has not answered in time"));
            }
            self.reader.get_ref().set_read_timeout(left).map_err(waiting)?;
            match self.reader.read_line(&mut line) {
                Ok(0) => return Err(Error::new(ErrorKind::Io, "the watchdog has ended")),
                Ok(_) => {}
                // What has come of the line stays.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    continue;
                }
                Err(error) => return Err(waiting(error)),
            }
            let said = std::mem::take(&mut line);
            let said = said.trim_end();
            let is_wanted = |wanted: &&str| {
                said == *wanted
                    || said.starts_with(&format!("{wanted} "))
                    || said.starts_with(&format!("{wanted}:"))
            };
            if wanted.iter().any(is_wanted) {
                return Ok(said.to_owned());
            }
        }
    }
}

/// What the watchdog finds them by.
fn numbers<'a>(files: impl IntoIterator<Item = &'a File>) -> String {
    files.into_iter().map(|file| format!(" {}", file.as_raw_fd())).collect()
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = self.reader.get_ref().shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}
