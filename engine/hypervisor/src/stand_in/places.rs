//! Where the files of a stand-in that runs are.

use blocks::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// The longest path of a unix socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A folder of its own, for this user alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places(PathBuf);

impl Places {
    /// In this folder, whether it exists or not.
    pub fn new(folder: impl Into<PathBuf>) -> Places {
        Places(folder.into())
    }

    /// All of it.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// QEMU's control socket for the server alone: it serves one client at a time, and nobody shall keep the server
    /// out.
    pub fn control(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// A control socket for people and their programs.
    pub fn qmp(&self) -> PathBuf {
        self.0.join("qmp.sock")
    }

    /// The serial console, for one client at a time.
    pub fn console(&self) -> PathBuf {
        self.0.join("console.sock")
    }

    /// What the serial console has said.
    pub fn console_log(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// The screen, by VNC.
    pub fn vnc(&self) -> PathBuf {
        self.0.join("vnc.sock")
    }

    /// The guest agent's channel.
    pub fn agent(&self) -> PathBuf {
        self.0.join("agent.sock")
    }

    pub(super) fn pid(&self) -> PathBuf {
        self.0.join("qemu.pid")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.0.join("qemu.log")
    }

    pub(super) fn firmware_vars(&self) -> PathBuf {
        self.0.join("firmware-vars.fd")
    }

    /// Makes the folder ready; what an earlier stand-in left in it goes, but for what its firmware remembers.
    /// `InvalidInput` where a socket's path would be too long. Not for a folder in which one runs.
    pub fn prepare(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let longest = self.control().as_os_str().len();
        if longest > SOCKET_PATH_BYTES_MAX {
            let context = format!(
                "{} is too long for a unix socket: the data folder's path has to be {} bytes shorter",
                self.control().display(),
                longest - SOCKET_PATH_BYTES_MAX
            );
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let failed = |error| Error::io(self.0.display().to_string(), error);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(failed)?;
        for entry in std::fs::read_dir(&self.0).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path != self.firmware_vars() {
                std::fs::remove_file(&path).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Removes all of it, if it is there.
    pub fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(self.0.display().to_string(), error))
            }
            _ => Ok(()),
        }
    }
}
