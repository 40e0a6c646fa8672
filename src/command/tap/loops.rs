//! Tapped disks as files of FUSE mounts, with loop devices over them. The holder keeps the mounts' connections.

use super::holder::Held;
use anyhow::Context;
use blocks::{BlockShift, Error, ErrorKind, Result, Volume};
use cbt::{DeviceNumber, Shown, TapFront};
use fuse_fs::{
    HeldMount, LoopDevice, Served, SingleFile, detach_dead, given_connection, is_dead, serve_held,
};
use rustix::io::{FdFlags, fcntl_setfd};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The file of each mount.
const FILE: &str = "disk";

/// The agent's side: serves the files, and attaches the loop devices.
pub(super) struct Front {
    run_dir: PathBuf,
    state: Mutex<State>,
}

struct State {
    connections: VecDeque<OwnedFd>,
    shown: Vec<(PathBuf, Served)>,
}

impl Front {
    /// With what the holder keeps: numbers of descriptors, in the order of the disks.
    pub(super) fn given(run_dir: &Path, held: &str) -> anyhow::Result<Front> {
        let connections = held.split(',').map(|number| {
            let number = number.parse().with_context(|| format!("{}={held}", super::HELD))?;
            anyhow::Ok(given_connection(number)?)
        });
        let connections = connections.collect::<anyhow::Result<VecDeque<OwnedFd>>>()?;
        let state = Mutex::new(State { connections, shown: Vec::new() });
        Ok(Front { run_dir: run_dir.to_owned(), state })
    }
}

impl super::Front for Front {
    fn release(&self) -> Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // By the file: a device that is free already may be somebody else's now.
        let devices = state.shown.iter().flat_map(|(file, _)| LoopDevice::of(file));
        devices.into_iter().try_for_each(|device| device.detach())
    }
}

impl TapFront for Front {
    fn show(&self, device: &Path, volume: Arc<dyn Volume>, sector: BlockShift) -> Result<Shown> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = state.connections.pop_front().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("{}: no mount is held for it", device.display()))
        })?;
        let served = serve_held(SingleFile::new(FILE, volume), FILE, connection)?;
        let file = folder_of(&self.run_dir, device).join(FILE);
        // Attached by the agent before this one, and perhaps mounted since.
        let attached = match LoopDevice::of(&file).pop() {
            Some(attached) => attached,
            None => LoopDevice::attach(&file, u32::try_from(sector.bytes()).unwrap_or(512))?,
        };
        let number = DeviceNumber::from_raw(attached.number()?);
        let shown = Shown { device: attached.path().to_owned(), number };
        state.shown.push((file, served));
        Ok(shown)
    }
}

/// The holder's side: mounts that wait for whoever serves them.
pub(super) struct Mounts(Vec<HeldMount>);

impl Mounts {
    /// One for each disk; what a tap that is dead has left there is taken away. An error where that is mounted.
    pub(super) fn hold(devices: &[PathBuf], run_dir: &Path) -> anyhow::Result<Mounts> {
        remove_left(devices, run_dir)?;
        let mounts = devices.iter().map(|device| {
            let folder = folder_of(run_dir, device);
            std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            Ok(HeldMount::hold(&folder)?)
        });
        Ok(Mounts(mounts.collect::<anyhow::Result<_>>()?))
    }

    fn devices(&self) -> impl Iterator<Item = LoopDevice> {
        self.0.iter().flat_map(|mount| LoopDevice::of(&mount.folder().join(FILE)))
    }
}

impl Held for Mounts {
    fn word(&self) -> String {
        let numbers = self.0.iter().map(|mount| mount.connection().as_raw_fd().to_string());
        numbers.collect::<Vec<_>>().join(",")
    }

    fn inherited(&self, yes: bool) -> std::io::Result<()> {
        let flags = if yes { FdFlags::empty() } else { FdFlags::CLOEXEC };
        self.0.iter().try_for_each(|mount| Ok(fcntl_setfd(mount.connection(), flags)?))
    }

    fn outlives_its_agent(&self) -> bool {
        self.0.iter().all(HeldMount::outlives_its_server)
    }

    fn is_used(&self) -> bool {
        self.devices().any(|device| device.is_in_use().unwrap_or(true))
    }

    fn release(self) {
        for device in self.devices() {
            if let Err(error) = device.detach() {
                tracing::error!("{error}: what uses it has lost its disk");
            }
        }
    }
}

/// Detaches what a tap has left whose processes were killed: nothing can be read from it any more. An error while it is mounted.
pub(super) fn remove_left(devices: &[PathBuf], run_dir: &Path) -> anyhow::Result<()> {
    for folder in devices.iter().map(|device| folder_of(run_dir, device)) {
        // Before the mount: without it the kernel does not say of a device any more that it was of that mount.
        if !is_dead(&folder) {
            continue;
        }
        let (parent, name) = (folder.parent().unwrap_or(&folder), folder.file_name().unwrap_or_default());
        let parent = parent.canonicalize().with_context(|| parent.display().to_string())?;
        for device in LoopDevice::of(&parent.join(name).join(FILE)) {
            let gone = device.detach();
            gone.with_context(|| {
                format!("{} is left of a tap that is dead: unmount it", device.path().display())
            })?;
        }
        detach_dead(&folder)?;
    }
    Ok(())
}

/// Where a disk's mount is.
fn folder_of(run_dir: &Path, device: &Path) -> PathBuf {
    run_dir.join("tap").join(device.file_name().unwrap_or(OsStr::new(FILE)))
}
