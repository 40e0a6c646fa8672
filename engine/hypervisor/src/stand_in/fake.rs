//! A hypervisor that only pretends, for the tests of whoever uses one.

use super::{GuestState, Hypervisor, Places, StandIn};
use blocks::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Stand-ins that are only a state each, which a test can set; every call is noted.
#[derive(Debug, Default)]
pub struct FakeHypervisor {
    guests: Mutex<BTreeMap<String, GuestState>>,
    calls: Mutex<Vec<String>>,
    is_deaf: bool,
    is_broken: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeHypervisor {
    /// One whose guests do not heed their power button.
    pub fn deaf() -> FakeHypervisor {
        FakeHypervisor { is_deaf: true, ..FakeHypervisor::default() }
    }

    /// One that starts nothing.
    pub fn broken() -> FakeHypervisor {
        FakeHypervisor { is_broken: true, ..FakeHypervisor::default() }
    }

    /// Something happened to a guest.
    pub fn set(&self, identity: &str, state: GuestState) {
        lock(&self.guests).insert(identity.to_owned(), state);
    }

    /// What was asked for since the last call, but for states.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.calls))
    }

    fn turn(&self, call: &str, identity: &str, to: GuestState) -> Result<()> {
        lock(&self.calls).push(call.to_owned());
        match lock(&self.guests).get_mut(identity) {
            Some(state) => {
                *state = to;
                Ok(())
            }
            None => Err(Error::new(ErrorKind::NotFound, format!("there is no guest {identity}"))),
        }
    }
}

impl Hypervisor for FakeHypervisor {
    fn start(&self, stand_in: &StandIn, places: &Places) -> Result<Vec<String>> {
        lock(&self.calls).push("start".to_owned());
        places.prepare()?;
        if self.is_broken {
            return Err(Error::new(ErrorKind::Io, "the hypervisor is broken"));
        }
        self.set(&stand_in.identity, GuestState::Running);
        Ok(Vec::new())
    }

    fn prepare(&self, _scratch: &Places) {}

    fn state(&self, identity: &str, _: &Places) -> GuestState {
        lock(&self.guests).get(identity).cloned().unwrap_or_else(|| GuestState::Gone(String::new()))
    }

    fn pause(&self, identity: &str, _: &Places) -> Result<()> {
        self.turn("pause", identity, GuestState::Paused)
    }

    fn resume(&self, identity: &str, _: &Places) -> Result<()> {
        self.turn("resume", identity, GuestState::Running)
    }

    fn power_down(&self, identity: &str, _: &Places, _: Duration) -> Result<bool> {
        let to = if self.is_deaf { GuestState::Running } else { GuestState::Off };
        self.turn("power_down", identity, to).map(|()| !self.is_deaf)
    }

    fn kill(&self, identity: &str, _: &Places) -> Result<()> {
        lock(&self.calls).push("kill".to_owned());
        lock(&self.guests).remove(identity);
        Ok(())
    }

    fn screenshot(&self, _: &str, _: &Places, file: &Path) -> Result<()> {
        std::fs::write(file, b"\x89PNG").map_err(|error| Error::io(file.display().to_string(), error))
    }

    fn is_connected(&self, identity: &str, places: &Places, _: u16) -> Result<bool> {
        Ok(self.state(identity, places) == GuestState::Running)
    }
}
