//! Moments: states of the main line between two checkpoints, where every write came in its order and with its time.
//!
//! ```text
//!   checkpoint 4                     checkpoint 5                head
//!        │   w   w    w  w     w   w      │    w   copied   w      │
//!        └───┴───┴────┴──┴─────┴───┴──────┴────┴─────╳─────────────┘
//!                        ▲ asked for           ▲ as far as can be reached behind 5
//! ```
//! A moment is a checkpoint and the writes behind it up to a time, on all disks alike. It reaches no further than the first
//! record without a time: what was copied came in no order. docs/design/0024-moments.md has the rules and why they suffice.

use crate::branch_disk::BranchDisk;
use crate::journal::location::{Location, RecordKind};
use crate::journal::record::LogIdentity;
use crate::journal::writes::read_writes;
use crate::plan::{Plan, PlanPiece};
use crate::stored_file::StoredFile;
use crate::unit::Unit;
use crate::unit::branch::{BranchId, BranchKind};
use crate::unit::manifest::SealedCheckpoint;
use crate::unit::pins::ViewPin;
use blocks::{
    ByteLen, CheckpointId, DiskIndex, ErrorKind, Extent, ExtentMap, RequestClass, Result, Volume, WriteTime,
    crash_point,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The note of the checkpoints behind which disks lost appends independently of each other.
const TORN: &str = "moments/torn";
/// The most that is appended at once when writes are taken over.
const TAKEN_BYTES_MAX: ByteLen = ByteLen::new(256 << 10);

/// A checkpoint of the main line, and what was written after it up to a time. The checkpoint stays while this lives.
#[derive(Debug)]
pub struct Moment {
    /// What it begins with.
    pub base: CheckpointId,
    /// When the last of its writes was completed; `None` where it is the checkpoint itself.
    pub time: Option<WriteTime>,
    /// How many writes come after the checkpoint.
    pub writes: u64,
    /// Of each disk, what the writes left behind, the oldest first.
    disks: Vec<Vec<Part>>,
    _pin: ViewPin,
}

/// What writes of one log have left.
#[derive(Debug)]
struct Part {
    log: Arc<StoredFile>,
    map: ExtentMap<Location>,
}

/// The deltas of a disk between two states.
struct Stretch {
    logs: Vec<StretchLog>,
    /// A write beyond it belongs to a longer disk.
    len: ByteLen,
}

struct StretchLog {
    log: Arc<StoredFile>,
    identity: LogIdentity,
    len: ByteLen,
    /// Merged: its records are in the order of the disk.
    is_merged: bool,
}

/// How far writes can be followed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Reach {
    /// All the writes up to this time, and no further.
    UpTo(WriteTime),
    /// All that there are, and none is later than asked for.
    Whole,
}

impl Unit {
    /// The newest state of the main line that is not later than `at`, as near as it can be had; `None` where the oldest
    /// checkpoint is later. Of what was written, headers are read and no data. The open deltas are sealed as parts.
    pub fn moment(&self, at: WriteTime) -> Result<Option<Moment>> {
        let manifest = self.manifest();
        let of_main = |sealed: &&SealedCheckpoint| sealed.checkpoint.branch == manifest.main;
        // It was sealed at the end of its millisecond, for all that is known.
        let not_later = |sealed: &&SealedCheckpoint| sealed.checkpoint.server_time.0 < at.0 / 1000;
        let found = manifest.checkpoints.values().filter(of_main).rfind(not_later);
        let Some(mut base) = found.map(|sealed| sealed.checkpoint.id) else { return Ok(None) };
        let torn = self.torn_bases();
        loop {
            let (mut stretches, mut next, pin) = self.stretches(base)?;
            let mut at = at;
            if next.is_none() {
                let tail = self.seal_tail(at)?;
                (stretches, next, _) = self.stretches(base)?;
                // A checkpoint that came meanwhile says the same, and more.
                at = if next.is_some() { at } else { tail };
            }
            let is_nothing_there = stretches.iter().all(|stretch| stretch.logs.is_empty());
            if torn.contains(&base) || is_nothing_there {
                return Moment::of(base, &[], WriteTime(0), pin).map(Some);
            }
            let reaches = stretches.iter().map(|stretch| stretch.reach(at)).collect::<Result<Vec<_>>>()?;
            match (reaches.into_iter().min().unwrap_or(Reach::Whole), next) {
                (Reach::Whole, Some(next)) => base = next,
                (Reach::Whole, None) => return Moment::of(base, &stretches, at, pin).map(Some),
                (Reach::UpTo(time), _) => return Moment::of(base, &stretches, time, pin).map(Some),
            }
        }
    }

    /// Seals what is open on the main branch. Gives up to when what lies behind the newest checkpoint is whole on all disks, at
    /// most `at`.
    fn seal_tail(&self, at: WriteTime) -> Result<WriteTime> {
        let disks = self.branch_disks(self.main_branch())?;
        // Every write up to the highest of these times has been appended on its disk; of later ones only some may be. The log
        // of one disk alone is whole up to any time.
        let appended = disks.iter().filter_map(|disk| disk.last_time()).max().unwrap_or_default();
        disks.iter().try_for_each(|disk| self.seal_part(disk, |_| true).map(drop))?;
        Ok(if disks.len() == 1 { at } else { at.min(appended) })
    }

    /// Called when it is opened: where something lies behind the newest checkpoint of several disks (`is_written`, or sealed as
    /// a part), it is noted that this is no state of the machine, for as long as the checkpoint is there.
    pub(super) fn note_torn_tails(&self, is_written: bool, findings: &mut Vec<String>) {
        let manifest = self.manifest();
        let newest = manifest.checkpoints.values().rfind(|sealed| sealed.checkpoint.branch == manifest.main);
        let Some(newest) = newest.filter(|_| manifest.disks.len() > 1) else { return };
        let ends = manifest.branches.get(&manifest.main).into_iter().flat_map(|main| &main.ends);
        let has_parts = ends.zip(&newest.ends).any(|(end, (sealed, _))| end.sealed != *sealed);
        if !is_written && !has_parts {
            return;
        }
        self.torn_tails.store(true, Ordering::Release);
        let mut torn = self.torn_bases();
        if !torn.insert(newest.checkpoint.id) {
            return;
        }
        let kept = torn.iter().filter(|id| manifest.checkpoints.contains_key(id));
        let text: Vec<String> = kept.map(ToString::to_string).collect();
        if let Err(error) = self.set_note(TORN, Some(text.join(" ").into_bytes())) {
            findings.push(format!("{}: {error}", self.dir));
        }
    }

    /// The checkpoints behind which nothing is reached.
    fn torn_bases(&self) -> BTreeSet<CheckpointId> {
        let note = self.note(TORN).unwrap_or_default();
        let words = String::from_utf8_lossy(&note);
        words.split(' ').filter_map(|word| word.parse().ok()).map(CheckpointId).collect()
    }

    /// A new branch that starts at a moment. After a crash before this returns, the branch may be there with less.
    pub fn fork_at(&self, moment: &Moment, kind: BranchKind) -> Result<BranchId> {
        let branch = self.fork(moment.base, kind)?;
        crash_point("moment.forked");
        match self.take_over(moment, branch) {
            Ok(()) => Ok(branch),
            Err(error) => {
                // It was told to nobody; where it cannot go now, the next opening of its session lets it go.
                let _ = self.drop_branch(branch);
                Err(error)
            }
        }
    }

    fn take_over(&self, moment: &Moment, branch: BranchId) -> Result<()> {
        for (disk, parts) in self.branch_disks(branch)?.iter().zip(&moment.disks) {
            for part in parts {
                let image = Arc::clone(self.lock().inventory.image(disk.identity().disk));
                part.append_to(disk, |extent, location, bytes| {
                    let plan = Plan::of(PlanPiece::at(extent, location, &part.log));
                    plan.read(extent.start(), bytes, &*image, RequestClass::Background)
                })?;
            }
            disk.sync()?;
        }
        Ok(())
    }

    /// What each disk was written between a checkpoint of the main line and the next, which is given too, or behind the last
    /// one. The checkpoint stays while the pin lives.
    fn stretches(&self, base: CheckpointId) -> Result<(Vec<Stretch>, Option<CheckpointId>, ViewPin)> {
        let mut state = self.lock_open()?;
        let manifest = Arc::clone(&state.manifest);
        let from = manifest.sealed(base)?;
        let later = manifest.checkpoints.range(base..).skip(1).map(|(_, sealed)| sealed);
        let next = later.into_iter().find(|sealed| sealed.checkpoint.branch == manifest.main);
        let mut stretches = Vec::new();
        for disk in manifest.disk_indexes() {
            let place = usize::from(disk.0);
            let end = match next {
                Some(next) => next.ends[place].0,
                None => manifest.end(manifest.main, disk)?.sealed,
            };
            let mut deltas = manifest.line(disk, end)?;
            deltas.retain(|delta| *delta > from.ends[place].0);
            let logs = deltas.into_iter().rev().filter_map(|delta| {
                let edition = manifest.edition(delta);
                let len = manifest.deltas.get(&delta)?.log_len;
                let identity = LogIdentity { salt: manifest.salt, delta };
                let log = state.inventory.log(disk, edition);
                Some(StretchLog { log, identity, len, is_merged: edition.revision > 0 })
            });
            stretches.push(Stretch { logs: logs.collect(), len: from.checkpoint.lens[place] });
        }
        let pin = self.view_pins.pin(base, DiskIndex(0));
        Ok((stretches, next.map(|next| next.checkpoint.id), pin))
    }
}

impl Stretch {
    /// How far its writes can be followed up to `at`.
    fn reach(&self, at: WriteTime) -> Result<Reach> {
        let (mut last, mut reach) = (WriteTime(0), None);
        for log in &self.logs {
            if log.is_merged {
                return Ok(Reach::UpTo(last));
            }
            let read = read_writes(&*log.log.open()?, log.identity, log.len, |time, pieces| {
                reach = match time {
                    Some(time) if time > at => Some(Reach::UpTo(at)),
                    Some(time) if self.holds(pieces) => {
                        last = time;
                        None
                    }
                    _ => Some(Reach::UpTo(last)),
                };
                reach.is_none()
            });
            if ends_in_damage(read)? {
                return Ok(Reach::UpTo(last));
            }
            if let Some(reach) = reach {
                return Ok(reach);
            }
        }
        Ok(Reach::Whole)
    }

    fn holds(&self, pieces: &[(Extent, Location)]) -> bool {
        pieces.iter().all(|(extent, _)| extent.end().get() <= self.len.get())
    }

    /// What its writes up to that time have left, how many they are, and the time of the last.
    fn parts(&self, up_to: WriteTime) -> Result<(Vec<Part>, u64, Option<WriteTime>)> {
        let (mut parts, mut writes, mut last) = (Vec::new(), 0, None);
        for log in self.logs.iter().take_while(|log| !log.is_merged) {
            let (mut map, mut goes_on) = (ExtentMap::new(), true);
            let read = read_writes(&*log.log.open()?, log.identity, log.len, |time, pieces| {
                goes_on = time.is_some_and(|time| time <= up_to) && self.holds(pieces);
                if goes_on {
                    (writes, last) = (writes + 1, time);
                    pieces.iter().for_each(|(extent, location)| map.insert(*extent, *location));
                }
                goes_on
            });
            goes_on &= !ends_in_damage(read)?;
            parts.push(Part { log: Arc::clone(&log.log), map });
            if !goes_on {
                break;
            }
        }
        Ok((parts, writes, last))
    }
}

/// A damaged record is no error here: what comes before it can be had.
fn ends_in_damage(read: Result<()>) -> Result<bool> {
    match read {
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(true),
        read => read.map(|()| false),
    }
}

impl Moment {
    fn of(base: CheckpointId, stretches: &[Stretch], up_to: WriteTime, pin: ViewPin) -> Result<Moment> {
        let mut moment = Moment { base, time: None, writes: 0, disks: Vec::new(), _pin: pin };
        for stretch in stretches {
            let (parts, writes, last) = stretch.parts(up_to)?;
            moment.writes += writes;
            moment.time = moment.time.max(last);
            moment.disks.push(parts);
        }
        Ok(moment)
    }
}

impl Part {
    /// Appends all of it; `read` gives the bytes of a piece. Neighbours are appended together.
    fn append_to(
        &self,
        disk: &BranchDisk,
        read: impl Fn(Extent, Location, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let (mut gathered, mut bytes) = (None::<Extent>, Vec::new());
        let append = |gathered: Option<Extent>, bytes: &mut Vec<u8>| match gathered {
            Some(extent) => {
                let appended = disk.write_at(extent.start(), bytes, false, RequestClass::Background);
                bytes.clear();
                appended
            }
            None => Ok(()),
        };
        for (extent, location) in self.map.iter() {
            let before = gathered.filter(|before| {
                before.end() == extent.start()
                    && before.len() + extent.len() <= TAKEN_BYTES_MAX
                    && location.kind() == RecordKind::Data
            });
            if before.is_none() {
                append(gathered.take(), &mut bytes)?;
            }
            match location.kind() {
                RecordKind::Data => {
                    let from = bytes.len();
                    bytes.resize(from + extent.len().as_usize(), 0);
                    read(extent, *location, &mut bytes[from..])?;
                    let start = before.map_or(extent.start(), Extent::start);
                    gathered = Extent::between(start, extent.end());
                }
                RecordKind::Zero => disk.write_zeroes(extent, false, false, RequestClass::Background)?,
                RecordKind::Discard => disk.discard(extent, false, RequestClass::Background)?,
            }
        }
        append(gathered.take(), &mut bytes)
    }
}
