//! File systems that stand still.

use crate::disk::{DeviceNumber, IoCounts, sysfs_dir};
use crate::mounts::Superblock;
use crate::watchdog::{Guarded, Watchdog, thaw};
use blocks::{Error, ErrorKind, Result};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

/// Writable file systems, frozen upper before lower. Dropping thaws them all.
#[derive(Debug)]
pub(crate) struct FrozenSystems<'a> {
    watchdog: Option<&'a mut Watchdog>,
    guarded: Vec<Guarded>,
    /// Which of `guarded` are frozen, in the order of freezing.
    frozen: Vec<usize>,
    /// What cannot be frozen (vfat and its like) and was written out in its turn instead.
    written_out: Vec<WrittenOut>,
    armed: bool,
}

/// A file system with nothing held back, for as long as its device is not written to.
#[derive(Debug)]
struct WrittenOut {
    device: DeviceNumber,
    writes: u64,
}

impl WrittenOut {
    /// Writes it out. It is not frozen and nothing below it is yet, so this waits for no thaw.
    fn now(watchdog: &mut Watchdog, file: &File, device: DeviceNumber) -> Option<WrittenOut> {
        watchdog.sync([file]).ok()?;
        Some(WrittenOut { device, writes: writes(device)? })
    }

    fn is_untouched(&self) -> bool {
        writes(self.device) == Some(self.writes)
    }
}

fn writes(device: DeviceNumber) -> Option<u64> {
    let sysfs = sysfs_dir(device).ok()?;
    IoCounts::read(&sysfs).ok().map(|counts| counts.writes)
}

impl<'a> FrozenSystems<'a> {
    /// Freezes what can be frozen of `systems`, which come upper before lower. With anything to freeze there must be a
    /// living watchdog. On error nothing stays frozen.
    pub fn freeze(
        systems: &[Superblock],
        watchdog: Option<&'a mut Watchdog>,
        budget: Duration,
    ) -> Result<FrozenSystems<'a>> {
        let (mut guarded, mut devices) = (Vec::new(), Vec::new());
        for system in systems.iter().filter(|system| !system.read_only) {
            guarded.push(Guarded { file: open(system)?, mount_point: system.mount_point.clone() });
            devices.push(system.number);
        }
        let (frozen, written_out) = (Vec::new(), Vec::new());
        let mut this = FrozenSystems { watchdog, guarded, frozen, written_out, armed: false };
        if this.guarded.is_empty() {
            return Ok(this);
        }
        let Some(watchdog) = this.watchdog.as_deref_mut() else {
            return Err(Error::new(ErrorKind::Unsupported, "no watchdog runs, so nothing is frozen"));
        };
        // Whatever comes of it, it is released in the end.
        this.armed = true;
        let armed = watchdog.arm(budget, &this.guarded)?;
        for (index, device) in devices.into_iter().enumerate() {
            if armed.elapsed() >= budget {
                return Err(over_budget(budget));
            }
            this.freeze_one(index, device, budget.saturating_sub(armed.elapsed()))?;
        }
        if armed.elapsed() >= budget { Err(over_budget(budget)) } else { Ok(this) }
    }

    fn freeze_one(&mut self, index: usize, device: DeviceNumber, within: Duration) -> Result<()> {
        let Some(watchdog) = self.watchdog.as_deref_mut() else { return Ok(()) };
        let Guarded { file, mount_point } = &self.guarded[index];
        let answer = watchdog.freeze(index, within).inspect_err(|_| {
            // It may be frozen for all that: a watchdog that was killed has no answer.
            self.frozen.push(index);
        })?;
        match answer {
            Ok(()) => {
                blocks::crash_point("barrier.frozen");
                self.frozen.push(index);
                Ok(())
            }
            // What is written to it meanwhile is seen by the tracker.
            Err(libc::EOPNOTSUPP | libc::ENOTTY) => {
                self.written_out.extend(WrittenOut::now(watchdog, file, device));
                Ok(())
            }
            Err(libc::EBUSY) => {
                let context = format!("{} is frozen by somebody else", mount_point.display());
                Err(Error::new(ErrorKind::Busy, context))
            }
            Err(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                Err(Error::io(format!("freezing {}", mount_point.display()), error))
            }
        }
    }

    /// How many stand still: frozen, or written out and not written to since.
    pub fn standing(&self) -> usize {
        self.frozen.len() + self.written_out.iter().filter(|system| system.is_untouched()).count()
    }

    /// Whether the watchdog is gone: then thaw at once.
    pub fn watchdog_hung_up(&self) -> bool {
        self.armed && self.watchdog.as_ref().is_some_and(|watchdog| watchdog.hung_up())
    }

    /// Thaws everything, lower before upper. `Cancelled` where something was not frozen any more: whatever was done
    /// meanwhile was not done at an instant.
    pub fn thaw(mut self) -> Result<()> {
        self.thaw_all()
    }

    fn thaw_all(&mut self) -> Result<()> {
        let mut result = Ok(());
        while let Some(index) = self.frozen.pop() {
            let Guarded { file, mount_point } = &self.guarded[index];
            let thawed = match self.watchdog.as_deref_mut().map(|watchdog| watchdog.thaw(index)) {
                Some(Ok(answer)) => answer.map_err(std::io::Error::from_raw_os_error),
                // It is gone.
                _ => thaw(file),
            };
            let Err(cause) = thawed else { continue };
            let mount_point = mount_point.display();
            let context = format!("{mount_point} was thawed by somebody else ({cause})");
            result = Err(Error::new(ErrorKind::Cancelled, context));
        }
        if std::mem::take(&mut self.armed)
            && let Some(watchdog) = self.watchdog.as_deref_mut()
        {
            result = watchdog.release().and(result);
        }
        result
    }
}

impl Drop for FrozenSystems<'_> {
    fn drop(&mut self) {
        let _ = self.thaw_all();
    }
}

/// Writes out what a file system holds back, so that freezing has little left to do.
pub(super) fn sync(system: &Superblock) {
    if let Ok(file) = open(system)
        && !system.read_only
    {
        let _ = rustix::fs::syncfs(&file);
    }
}

/// The same by the watchdog, where there is one: the agent must not wait for a disk that it serves itself.
pub(super) fn sync_by(watchdog: &mut Watchdog, systems: &[Superblock]) {
    let writable = systems.iter().filter(|system| !system.read_only);
    let files: Vec<File> = writable.filter_map(|system| open(system).ok()).collect();
    if let Err(error) = watchdog.sync(&files) {
        tracing::warn!("{error}: freezing may take longer");
    }
}

/// How long writing out takes.
pub(super) fn sync_all(systems: &[Superblock]) -> Duration {
    let began = Instant::now();
    systems.iter().for_each(sync);
    began.elapsed()
}

fn open(system: &Superblock) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(&system.reachable)
        .map_err(|error| Error::io(format!("opening {}", system.reachable.display()), error))
}

fn over_budget(budget: Duration) -> Error {
    let context = format!("freezing the file systems took longer than the budget of {budget:?}");
    Error::new(ErrorKind::Cancelled, context)
}
