//! The activity log: which regions of a disk may hold what the server has not acknowledged, on a medium outside it.
//!
//! ```text
//!            cover: the slot is written before the write begins
//!   off ───────────────────────────────────────────────────────► on
//!    ▲                                                            │
//!    └── rest: left alone for a while, and nothing in it is due ──┘
//! ```
//!
//! docs/design/0019-tap.md has the rules and the crash points.

use super::slot::{Bits, SLOT_BYTES, Slot, region_of};
use crate::tracker::{Base, Trust};
use blocks::{ByteLen, Error, ErrorKind, Extent, ExtentSet, Result};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where slots are kept.
pub(super) trait Slots: Send + Sync {
    /// Writes slot 0 or 1; on the medium when it returns.
    fn write(&self, slot: u64, bytes: &[u8]) -> Result<()>;
    /// Makes sure that nothing of it is believed again.
    fn destroy(&self) -> Result<()>;
}

/// See the module.
pub(super) struct Activity {
    slots: Box<dyn Slots>,
    state: Mutex<State>,
    written: Condvar,
}

struct State {
    /// What the next slot will say.
    next: Slot,
    /// What is on in the newest slot, and in the one that is being written.
    durable: Bits,
    writing: bool,
    /// When each region was last written to; `None` where it was not in this process.
    touched: Vec<Option<Instant>>,
    /// Set once the log cannot be written and is destroyed: nothing of it counts any more.
    gone: bool,
}

impl Activity {
    /// The log of this disk as `slots` holds it (`found`: those slots that are valid), and what was on. A log of another
    /// disk or none at all is begun anew, not trusted.
    pub fn open(
        slots: Box<dyn Slots>,
        found: Vec<Slot>,
        disk: &str,
        len: ByteLen,
    ) -> Result<(Activity, ExtentSet)> {
        let region = region_of(len)?;
        let newest = found.into_iter().max_by_key(|slot| slot.number);
        let number = newest.as_ref().map_or(0, |slot| slot.number);
        let fits = |slot: &Slot| slot.disk == disk && slot.len == len && slot.region == region;
        let next = match newest {
            Some(slot) if fits(&slot) => slot,
            other => {
                let reason = match other {
                    Some(slot) => {
                        format!("the activity log is that of {} with {} bytes", slot.disk, slot.len)
                    }
                    None => "there is no activity log: the disk is tapped for the first time".to_owned(),
                };
                let trust = Trust::Untrusted { reason };
                let on = Bits::none(len.blocks(region));
                Slot { number, disk: disk.to_owned(), len, region, trust, base: None, on }
            }
        };
        let regions = usize::try_from(len.blocks(region)).expect("few regions");
        let state = State {
            durable: next.on.clone(),
            next,
            writing: false,
            touched: vec![None; regions],
            gone: false,
        };
        let activity = Activity { slots, state: Mutex::new(state), written: Condvar::new() };
        let on = activity.on();
        drop(activity.save(activity.lock())?);
        Ok((activity, on))
    }

    /// Before a write into the extent begins: every region of it is on, on the medium. Waits for the log where one is not.
    /// An error means that nothing may be written there.
    pub fn cover(&self, extent: Extent) -> Result<()> {
        let mut state = self.lock();
        let regions = extent.blocks(state.next.region);
        let now = Instant::now();
        loop {
            let mut covered = true;
            for region in regions.clone() {
                state.touched[usize::try_from(region).expect("few regions")] = Some(now);
                covered &= state.next.on.is_on(region) && state.durable.is_on(region);
                state.next.on.set(region, true);
            }
            if covered || state.gone {
                return Ok(());
            }
            state = match state.writing {
                true => self.written.wait(state).unwrap_or_else(PoisonError::into_inner),
                false => self.save(state)?,
            };
        }
    }

    /// Turns off what was left alone for `idle` and of which `due` has nothing. `due` is asked after those regions are
    /// off, so that a write that was let through before is seen by it; it must name what is under way first.
    pub fn rest(&self, idle: Duration, due: impl FnOnce() -> ExtentSet) -> Result<()> {
        let mut state = self.lock();
        let quiet = |touched: &Option<Instant>| touched.is_none_or(|touched| touched.elapsed() >= idle);
        let candidates: Vec<u64> =
            state.next.on.iter().filter(|region| quiet(&state.touched[*region as usize])).collect();
        if candidates.is_empty() || state.gone {
            return Ok(());
        }
        for region in &candidates {
            state.next.on.set(*region, false);
            state.durable.set(*region, false);
        }
        drop(state);
        let due = due();
        let mut state = self.lock();
        let (len, region_shift) = (state.next.len, state.next.region);
        let mut off = false;
        for region in candidates {
            match extent_of(region, region_shift, len) {
                Some(extent) if due.overlaps(extent) => state.next.on.set(region, true),
                _ => off = true,
            }
        }
        while off && state.writing {
            state = self.written.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if off { self.save(state).map(drop) } else { Ok(()) }
    }

    /// What is on.
    pub fn on(&self) -> ExtentSet {
        let state = self.lock();
        let extents = state.next.on.iter();
        extents.filter_map(|region| extent_of(region, state.next.region, state.next.len)).collect()
    }

    /// Whether every region of the extent is on.
    pub fn is_on(&self, extent: Extent) -> bool {
        let state = self.lock();
        extent.blocks(state.next.region).all(|region| state.next.on.is_on(region))
    }

    /// What the log is relative to.
    pub fn base(&self) -> Option<Base> {
        self.lock().next.base
    }

    /// Notes a newer base; on the medium before it returns where a number is to be used that it does not cover yet.
    /// What was acknowledged reaches the medium with the next slot, at the latest with the one that relies on it.
    pub fn set_base(&self, base: Base) -> Result<()> {
        let mut state = self.lock();
        let same = |old: &Base| {
            (old.store, old.generation, old.machine) == (base.store, base.generation, base.machine)
        };
        let lazy = state.next.base.is_some_and(|old| same(&old) && base.sent <= old.sent);
        state.next.base = Some(base);
        if lazy { Ok(()) } else { self.save_in_turn(state) }
    }

    /// Whether the log can be relied on.
    pub fn trust(&self) -> Trust {
        let state = self.lock();
        match state.gone {
            true => Trust::Untrusted { reason: "the activity log cannot be written".into() },
            false => state.next.trust.clone(),
        }
    }

    /// Changes that; on the medium when it returns.
    pub fn set_trust(&self, trust: Trust, base: Option<Base>) -> Result<()> {
        let mut state = self.lock();
        state.next.trust = trust;
        state.next.base = base.or(state.next.base);
        self.save_in_turn(state)
    }

    fn save_in_turn(&self, mut state: MutexGuard<'_, State>) -> Result<()> {
        while state.writing {
            state = self.written.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.save(state).map(drop)
    }

    /// Writes the next slot, without the lock. Where that fails the log is destroyed, so that it is not believed after a
    /// crash; an error means that not even that was possible.
    fn save<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>> {
        if state.gone {
            return Ok(state);
        }
        state.writing = true;
        state.next.number += 1;
        let slot = state.next.clone();
        state.durable.intersect(&slot.on);
        drop(state);
        let mut saved = self.slots.write(slot.number % 2, &slot.encode());
        let mut gone = false;
        if let Err(error) = &saved {
            tracing::error!("{error}: after a crash the whole disk will be compared");
            saved = self.slots.destroy();
            gone = saved.is_ok();
        }
        let mut state = self.lock();
        state.writing = false;
        state.gone = gone;
        if saved.is_ok() {
            state.durable = slot.on;
        }
        self.written.notify_all();
        saved.map(|()| state)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn extent_of(region: u64, shift: blocks::BlockShift, len: ByteLen) -> Option<Extent> {
    Extent::between(shift.start_of(region), shift.start_of(region + 1).min(len.end()))
}

/// Slots in a file.
pub(super) struct SlotFile {
    path: PathBuf,
    file: File,
}

impl SlotFile {
    /// Opens or makes the file; those slots that are valid.
    pub fn open(path: &Path) -> Result<(SlotFile, Vec<Slot>)> {
        let failed = |error| Error::io(path.display().to_string(), error);
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(libc::O_DSYNC).open(path).map_err(failed)?;
        let mut found = Vec::new();
        let len = file.metadata().map_err(failed)?.len();
        if len == 2 * SLOT_BYTES as u64 {
            let mut bytes = vec![0; SLOT_BYTES];
            for slot in 0..2 {
                file.read_exact_at(&mut bytes, slot * SLOT_BYTES as u64).map_err(failed)?;
                match Slot::decode(&bytes) {
                    Ok(slot) => found.push(slot),
                    Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error),
                    Err(_) => {}
                }
            }
        } else {
            // Written whole, so that no later write has to find room.
            file.set_len(0).and_then(|()| file.write_all_at(&[0; 2 * SLOT_BYTES], 0)).map_err(failed)?;
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        Ok((SlotFile { path: path.to_owned(), file }, found))
    }
}

impl Slots for SlotFile {
    fn write(&self, slot: u64, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(bytes, slot * SLOT_BYTES as u64);
        written.map_err(|error| Error::io(format!("writing {}", self.path.display()), error))
    }

    fn destroy(&self) -> Result<()> {
        remove(&self.path)
    }
}

/// Removes a log for good, where there is one.
pub(super) fn remove(path: &Path) -> Result<()> {
    let failed = |error| Error::io(format!("removing {}", path.display()), error);
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        removed => removed.map_err(failed)?,
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}
