//! Tapped disks as block devices of the kernel's ublk driver, which keeps them itself: an agent that dies is replaced, and so is
//! one whose holder died too.

use super::holder::Held;
use anyhow::Context;
use blocks::{BlockShift, Error, Result, Volume};
use cbt::{DeviceNumber, Shown, TapFront};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use ublk_disk::{Device, Label, Served, serve};

/// In place of the connections that are held otherwise.
pub(super) const HELD: &str = "ublk";

/// The agent's side.
#[derive(Default)]
pub(super) struct Front {
    shown: Mutex<Vec<Served>>,
}

impl super::Front for Front {
    fn release(&self) -> Result<()> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept: Option<Error> = None;
        for served in std::mem::take(&mut *shown) {
            if let Err((served, error)) = served.remove() {
                shown.push(served);
                kept.get_or_insert(error);
            }
        }
        kept.map_or(Ok(()), Err)
    }
}

impl TapFront for Front {
    fn show(&self, device: &Path, volume: Arc<dyn Volume>, _: BlockShift) -> Result<Shown> {
        let served = serve(volume, label_of(device))?;
        let number = DeviceNumber::from_raw(served.device().number()?);
        let shown = Shown { device: served.device().path(), number };
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).push(served);
        Ok(shown)
    }
}

/// The holder's side: nothing but the names.
pub(super) struct Devices(Vec<Label>);

impl Devices {
    /// Of these disks, as soon as an agent shows them.
    pub(super) fn of(disks: &[PathBuf]) -> Devices {
        Devices(disks.iter().map(|disk| label_of(disk)).collect())
    }

    fn shown(&self) -> impl Iterator<Item = Device> {
        self.0.iter().filter_map(|label| {
            Device::of(*label)
                .inspect_err(|error| tracing::warn!("looking for what is shown: {error}"))
                .ok()?
        })
    }
}

impl Held for Devices {
    fn word(&self) -> String {
        HELD.to_owned()
    }

    fn inherited(&self, _: bool) -> std::io::Result<()> {
        Ok(())
    }

    fn outlives_its_agent(&self) -> bool {
        true
    }

    fn is_used(&self) -> bool {
        self.shown().any(|device| device.is_in_use().unwrap_or(true))
    }

    fn release(self) {
        for device in self.shown() {
            if let Err(error) = device.delete() {
                tracing::error!("{error}: what uses it waits for an agent");
            }
        }
    }
}

/// Deletes what is left of a tap of these disks that is to be shown in another way. An error while it is used.
pub(super) fn remove_left(disks: &[PathBuf]) -> anyhow::Result<()> {
    for disk in disks {
        if let Some(device) = Device::of(label_of(disk))? {
            let gone = device.delete();
            gone.with_context(|| {
                format!(
                    "{} is left of a tap: unmount it, or leave out --tap-through",
                    device.path().display()
                )
            })?;
        }
    }
    Ok(())
}

fn label_of(disk: &Path) -> Label {
    Label::of(disk.as_os_str().as_bytes())
}
