//! Bringing applications to rest around a barrier, by programs that an administrator puts into a folder.
//!
//! ```text
//!   note "at rest" ──► each hook `freeze`, in the order of names ──► barrier ──► each hook `thaw`, in reverse ──► note away
//!                         │ one fails or takes too long
//!                         └──► those that were asked to freeze are thawed; the checkpoint is one without the applications
//! ```
//!
//! Hooks run while file systems can still be written. An agent that dies in between leaves the note, in the run folder; the
//! next one thaws before anything else. Hooks must therefore take a `thaw` without a `freeze` before it.

mod program;

use blocks::{Error, ErrorKind, Result};
use program::{Program, programs};
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

const NOTE: &str = "applications-at-rest";

/// The hooks of a machine.
#[derive(Clone, Debug)]
pub(crate) struct Hooks {
    folder: PathBuf,
    note: PathBuf,
    /// How long one of them may take.
    timeout: Duration,
}

/// Applications are at rest for as long as this lives.
pub(crate) struct AtRest<'a> {
    hooks: &'a Hooks,
    asked: Vec<Program>,
    /// Locked: whoever finds the note knows that its writer lives.
    note: File,
}

impl Hooks {
    /// The executables in `folder`, which may be missing. `run_dir` is gone after a restart of the machine.
    pub fn new(folder: &Path, run_dir: &Path, timeout: Duration) -> Hooks {
        Hooks { folder: folder.to_owned(), note: run_dir.join(NOTE), timeout }
    }

    /// Thaws what an agent that died has left at rest.
    pub fn recover(&self) {
        let Ok(note) = File::open(&self.note) else { return };
        if rustix::fs::flock(&note, FlockOperation::NonBlockingLockExclusive).is_ok() {
            tracing::warn!("an earlier agent died while applications were at rest: they are told to go on");
            drop(AtRest { hooks: self, asked: programs(&self.folder), note });
        }
    }

    /// Brings the applications to rest; `None` where there is no hook. Errors: of the first hook that failed, by name; then
    /// all go on. Must not be called while a file system is frozen.
    pub fn rest(&self) -> Result<Option<AtRest<'_>>> {
        let programs = programs(&self.folder);
        if programs.is_empty() {
            return Ok(None);
        }
        if let Some(folder) = self.note.parent() {
            fs::create_dir_all(folder).map_err(|error| self.noting(error))?;
        }
        let note = File::create(&self.note).map_err(|error| self.noting(error))?;
        rustix::fs::flock(&note, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| self.noting(error.into()))?;
        let mut rest = AtRest { hooks: self, asked: Vec::new(), note };
        for program in programs {
            // Also one that fails may have begun.
            rest.asked.push(program.clone());
            program.run("freeze", self.timeout)?;
        }
        Ok(Some(rest))
    }

    fn noting(&self, error: std::io::Error) -> Error {
        Error::with_source(ErrorKind::Io, self.note.display().to_string(), error)
    }
}

impl Drop for AtRest<'_> {
    fn drop(&mut self) {
        for program in self.asked.iter().rev() {
            if let Err(error) = program.run("thaw", self.hooks.timeout) {
                tracing::error!("an application may still be at rest: {error}");
            }
        }
        if let Err(error) = fs::remove_file(&self.hooks.note) {
            tracing::warn!("{}: {error}", self.hooks.note.display());
        }
        // A program that another thread is just starting has copies of all descriptors until it runs: closing would not do.
        let _ = rustix::fs::flock(&self.note, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests;
