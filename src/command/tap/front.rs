//! The agent's side: what it serves, and the devices that show it.

use super::{CONNECTIONS, FILE, folder_of};
use anyhow::Context;
use blocks::{BlockShift, Error, ErrorKind, Result, Volume};
use cbt::{DeviceNumber, Shown, TapFront};
use fuse_fs::{LoopDevice, Served, SingleFile, given_connection, serve_held};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// See the module.
pub struct Front {
    run_dir: PathBuf,
    state: Mutex<State>,
}

struct State {
    connections: VecDeque<OwnedFd>,
    shown: Vec<(PathBuf, Served)>,
}

impl Front {
    /// With what the holder keeps; `None` where this process has no holder and is to become one.
    pub fn given(run_dir: &Path) -> anyhow::Result<Option<Front>> {
        let Ok(numbers) = std::env::var(CONNECTIONS) else { return Ok(None) };
        // Without its holder this process goes on until nothing uses what it shows.
        set_parent_process_death_signal(Some(Signal::TERM)).context("asking for the holder's end")?;
        let connections = numbers.split(',').map(|number| {
            let number = number.parse().with_context(|| format!("{CONNECTIONS}={numbers}"))?;
            anyhow::Ok(given_connection(number)?)
        });
        let connections = connections.collect::<anyhow::Result<VecDeque<OwnedFd>>>()?;
        let state = Mutex::new(State { connections, shown: Vec::new() });
        Ok(Some(Front { run_dir: run_dir.to_owned(), state }))
    }

    /// Detaches the devices. `Busy`, by name, while one is used.
    pub fn release(&self) -> Result<()> {
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
