//! Bringing every disk of a machine to one instant. docs/design/0004-barrier.md has the reasons.
//!
//! ```text
//!  warm ──last pass fits half the budget──► freeze ──► settle: take, read, hold, agree ──► thaw ──► send what is held
//!   ▲                                          │ over budget, disturbed                         │
//!   └──────────────────────────────────────────┴── thaw, send what is held, a few times ────────┘
//! ```

mod at_rest;
mod freeze;
mod settle;
mod warm;

use crate::copy::{Bounds, Held, Replica};
use crate::hooks::Hooks;
use crate::link::Link;
use crate::mounts::{Superblock, superblocks, swap_extents};
use crate::watchdog::Watchdog;
pub(crate) use at_rest::put_instant;
use blocks::{Error, ErrorKind, Extent, ExtentSet, Result, WallClock};
use freeze::FrozenSystems;
use settle::{Settled, settle};
use std::time::{Duration, Instant};
use wire::{CheckpointReport, Consistency, DiskInstant};

/// How a barrier is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierSettings {
    /// How long writers may stand still, FIFREEZE included.
    pub budget: Duration,
    /// How much may be held in memory while they do; what exceeds it is sent meanwhile.
    pub held_bytes_max: u64,
    /// How often it is tried before a gap is reported.
    pub attempts: u32,
}

impl Default for BarrierSettings {
    fn default() -> BarrierSettings {
        BarrierSettings { budget: Duration::from_secs(2), held_bytes_max: 32 << 20, attempts: 5 }
    }
}

/// What came of a barrier.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Every disk is at one instant and everything up to it was sent.
    Taken(CheckpointReport),
    /// No checkpoint, and why.
    Missed(String),
}

/// What came of one try.
enum Attempt {
    Exact(Vec<Held>, Moment),
    Again(Vec<Held>, String),
}

/// An instant at which every disk stood still.
struct Moment {
    taken_at: WallClock,
    frozen: Duration,
    consistency: Consistency,
}

/// Takes a checkpoint over all disks. Only what is wrong with the connection or a disk is an error; that the machine
/// would not stand still is an outcome.
pub(crate) fn take_checkpoint(
    replicas: &mut [Replica],
    link: &Link,
    watchdog: &mut Option<Watchdog>,
    settings: &BarrierSettings,
    hooks: &Hooks,
    (request, name): (u64, &str),
) -> Result<Outcome> {
    let mut reason = String::new();
    for _ in 0..settings.attempts.max(1) {
        if let Some(cause) = warm::warm(replicas, link, settings)? {
            return Ok(Outcome::Missed(cause));
        }
        let excluded: Vec<ExtentSet> = replicas.iter().map(excluded).collect();
        let rest = hooks.rest().unwrap_or_else(|error| {
            tracing::warn!("this checkpoint is one without the applications: {error}");
            None
        });
        let attempted = attempt(replicas, link, watchdog, settings, &excluded)?;
        let rested = rest.is_some();
        // Before what is held travels: the network is no part of how long they rest.
        drop(rest);
        match attempted {
            Attempt::Exact(held, moment) => {
                let mut disks = Vec::new();
                for ((replica, held), excluded) in replicas.iter_mut().zip(held).zip(&excluded) {
                    let seq = replica.ship_held(link, held)?;
                    let excluded = excluded.iter().map(|(extent, ())| extent).collect();
                    disks.push(DiskInstant { seq, len: replica.disk.len(), excluded });
                }
                let Moment { taken_at, frozen, consistency } = moment;
                let consistency = match consistency {
                    Consistency::FileSystem if rested => Consistency::Application,
                    other => other,
                };
                let frozen_ms = u64::try_from(frozen.as_millis()).unwrap_or(u64::MAX);
                let name = name.to_owned();
                return Ok(Outcome::Taken(CheckpointReport {
                    request,
                    name,
                    consistency,
                    taken_at,
                    frozen_ms,
                    disks,
                }));
            }
            Attempt::Again(held, why) => {
                for (replica, held) in replicas.iter_mut().zip(held) {
                    replica.ship_held(link, held)?;
                }
                reason = why;
            }
        }
    }
    Ok(Outcome::Missed(reason))
}

/// Runs `work` while the file systems on the disk are frozen: for what needs a disk without writes for a moment.
pub(crate) fn while_frozen<T>(
    replica: &mut Replica,
    watchdog: &mut Option<Watchdog>,
    budget: Duration,
    work: impl FnOnce(&mut Replica) -> Result<T>,
) -> Result<T> {
    let systems = superblocks(&[replica.disk.number()]);
    systems.iter().for_each(freeze::sync);
    let frozen = FrozenSystems::freeze(&systems, watchdog.as_mut(), budget)?;
    let done = work(replica);
    frozen.thaw()?;
    done
}

/// What no checkpoint of this disk promises anything about, as of now.
pub(crate) fn excluded(replica: &Replica) -> ExtentSet {
    let swap = swap_extents(&replica.disk);
    swap.into_iter().chain(replica.excluded_by_user.iter().copied()).collect()
}

fn attempt(
    replicas: &mut [Replica],
    link: &Link,
    watchdog: &mut Option<Watchdog>,
    settings: &BarrierSettings,
    excluded: &[ExtentSet],
) -> Result<Attempt> {
    let numbers: Vec<_> = replicas.iter().map(|replica| replica.disk.number()).collect();
    let systems = superblocks(&numbers);
    let mut held: Vec<Held> = replicas.iter().map(|_| Held::default()).collect();
    let _memory = LockedMemory::lock();
    let began = Instant::now();
    let frozen = match FrozenSystems::freeze(&systems, watchdog.as_mut(), settings.budget) {
        Ok(frozen) => frozen,
        Err(error) => return Ok(Attempt::Again(held, error.to_string())),
    };
    // Nothing from here to the thaw may write to a file, log, or wait for anyone but the disk, and for the network no
    // longer than the budget lasts.
    let bounds = Bounds {
        link,
        room: settings.held_bytes_max / held.len().max(1) as u64,
        until: began + settings.budget.mul_f64(0.8),
        go_on: &|| !frozen.watchdog_hung_up(),
    };
    let settled = settle(replicas, &mut held, excluded, &bounds);
    let taken_at = WallClock::now();
    let consistency = consistency(&systems, &frozen);
    let exact = matches!(settled, Ok(Settled::Exact));
    if exact {
        blocks::crash_point("barrier.read");
    }
    let thawed = frozen.thaw();
    let frozen = began.elapsed();
    if let Err(error) = thawed {
        return Ok(Attempt::Again(held, error.to_string()));
    }
    if exact {
        blocks::crash_point("barrier.thawed");
    }
    Ok(match settled {
        Ok(Settled::Exact) => Attempt::Exact(held, Moment { taken_at, frozen, consistency }),
        Ok(Settled::Not(why)) => Attempt::Again(held, why),
        Err(error) => Attempt::Again(held, error.to_string()),
    })
}

fn consistency(systems: &[Superblock], frozen: &FrozenSystems<'_>) -> Consistency {
    let writable = systems.iter().filter(|system| !system.read_only).count();
    if writable > 0 && frozen.standing() == writable { Consistency::FileSystem } else { Consistency::Crash }
}

/// What the agent's code needs while the disk under it may be frozen stays in memory, where that is allowed.
struct LockedMemory;

impl LockedMemory {
    fn lock() -> LockedMemory {
        // SAFETY: takes no memory of ours.
        unsafe { libc::mlockall(libc::MCL_CURRENT) };
        LockedMemory
    }
}

impl Drop for LockedMemory {
    fn drop(&mut self) {
        // SAFETY: takes no memory of ours.
        unsafe { libc::munlockall() };
    }
}

/// The bytes that a user leaves out, checked against the disk.
pub(crate) fn check_excluded(extents: &[Extent], replica_len: blocks::ByteLen, device: &str) -> Result<()> {
    match extents
        .iter()
        .find(|extent| extent.end() > replica_len.end() || !extent.is_aligned(blocks::BlockShift::SECTOR))
    {
        None => Ok(()),
        Some(wrong) => {
            let context = format!("{device}: {wrong} cannot be excluded: not whole sectors of this disk");
            Err(Error::new(ErrorKind::InvalidInput, context))
        }
    }
}
