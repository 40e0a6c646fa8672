//! One hook: a program that is told `freeze` or `thaw`.

use blocks::{Error, ErrorKind, Result};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a running hook is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// How much of what a hook says is kept for the error.
const SAID_BYTES_MAX: u64 = 2000;

#[derive(Clone, Debug)]
pub(super) struct Program(PathBuf);

/// The executables in the folder in the order of their names. Those that somebody else than root could have changed are left
/// out, with a warning: the agent would run them as root.
pub(super) fn programs(folder: &Path) -> Vec<Program> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| is_executable(path)).collect();
    paths.sort();
    paths.into_iter().filter(|path| is_safe(path)).map(Program).collect()
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0)
}

fn is_safe(path: &Path) -> bool {
    let trusted = |path: &Path| {
        let own = rustix::process::geteuid().as_raw();
        fs::metadata(path).is_ok_and(|found| [0, own].contains(&found.uid()) && found.mode() & 0o022 == 0)
    };
    let safe = trusted(path) && path.parent().is_none_or(trusted);
    if !safe {
        tracing::warn!("{} is not run: others than root could have changed it or its folder", path.display());
    }
    safe
}

impl Program {
    /// Runs it with this one word. Errors name it: it could not be started, said no (with what it printed to its standard
    /// error), or took longer, and then it and what it had started was killed.
    pub(super) fn run(&self, word: &str, timeout: Duration) -> Result<()> {
        let failed = |what: String| Error::new(ErrorKind::Io, format!("{} {word}: {what}", self.0.display()));
        let mut command = Command::new(&self.0);
        command.arg(word).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let until = Instant::now() + timeout;
        let mut child = start(&mut command, until).map_err(|error| failed(error.to_string()))?;
        match wait(&mut child, until).map_err(|error| failed(error.to_string()))? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(failed(format!("{status}: {}", said(&mut child)))),
            None => Err(failed(format!("it took longer than {timeout:?} and was killed"))),
        }
    }
}

/// Starts it; waits while somebody is just writing it.
fn start(command: &mut Command, until: Instant) -> std::io::Result<Child> {
    loop {
        match command.spawn() {
            Err(error)
                if error.kind() == std::io::ErrorKind::ExecutableFileBusy && Instant::now() < until =>
            {
                std::thread::sleep(LOOK);
            }
            done => return done,
        }
    }
}

/// How it ended; `None` where it had to be killed.
fn wait(child: &mut Child, until: Instant) -> std::io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
                rustix::process::kill_process_group(group, rustix::process::Signal::KILL)?;
            }
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// What it printed, as far as it is there: a child of its own may hold the pipe open.
fn said(child: &mut Child) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = child.stderr.take() {
        let ready = rustix::io::ioctl_fionread(&pipe).unwrap_or(0).min(SAID_BYTES_MAX);
        // What cannot be read is not part of the message.
        let _ = pipe.take(ready).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}
