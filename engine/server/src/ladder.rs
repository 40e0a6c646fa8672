//! How long history is kept: a ladder, the finest rung first. Pure.
//!
//! ```text
//!   all=4h, hourly=2d, daily=14d
//!
//!   now       4 h                   2 d                             14 d
//!    ├─ every ─┼──── one an hour ────┼────────── one a day ──────────┤ into the images
//! ```
//! Of the checkpoints in an hour, a day and so on (in UTC) the newest stays. They go when the last of them has left the
//! rung before, all at once, so that what they held is merged once and not again with every one of them. A
//! checkpoint with a name is never thinned; it goes when the horizon reaches it.

use blocks::{CheckpointId, WallClock};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use store::Checkpoint;

/// How long which checkpoints are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ladder {
    /// The finest first; steps and times rise. None: no history at all.
    rungs: Vec<Rung>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rung {
    /// One checkpoint for each of these stays; zero is all of them.
    step: Duration,
    /// Up to this age.
    keep: Duration,
}

/// A text that is no ladder, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LadderError(String);

/// What a ladder makes of a history.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Choice {
    /// Up to where the images are to be brought.
    pub consolidate: Option<CheckpointId>,
    /// Which checkpoints are to be forgotten.
    pub thin: Vec<CheckpointId>,
}

/// What a ladder has to know of a history beside its checkpoints.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Holds {
    /// What the images hold, or will.
    pub horizon: Option<CheckpointId>,
    /// What somebody needs.
    pub pinned: BTreeSet<CheckpointId>,
}

const HOUR: u64 = 60 * 60;
const NAMED_STEPS: [(&str, Duration); 4] = [
    ("all", Duration::ZERO),
    ("hourly", Duration::from_secs(HOUR)),
    ("daily", Duration::from_secs(24 * HOUR)),
    ("weekly", Duration::from_secs(7 * 24 * HOUR)),
];

impl Default for Ladder {
    fn default() -> Ladder {
        let rung = |step, keep| Rung { step: Duration::from_secs(step), keep: Duration::from_secs(keep) };
        Ladder { rungs: vec![rung(0, 4 * HOUR), rung(HOUR, 48 * HOUR), rung(24 * HOUR, 14 * 24 * HOUR)] }
    }
}

impl Ladder {
    /// Nothing is kept: the images are always brought to the newest checkpoint.
    pub fn none() -> Ladder {
        Ladder { rungs: Vec::new() }
    }

    /// Every checkpoint, for so long.
    pub fn all(keep: Duration) -> Ladder {
        Ladder { rungs: vec![Rung { step: Duration::ZERO, keep }] }
    }

    /// The age at which a checkpoint goes into the images.
    pub fn window(&self) -> Duration {
        self.rungs.last().map_or(Duration::ZERO, |rung| rung.keep)
    }

    /// The ages at which the rungs end, rising.
    pub(crate) fn times(&self) -> impl Iterator<Item = Duration> {
        self.rungs.iter().map(|rung| rung.keep)
    }

    /// How often it is worth looking.
    pub(crate) fn interval(&self) -> Duration {
        let finest = self.rungs.first().map_or(Duration::ZERO, |rung| rung.keep);
        (finest / 10).clamp(Duration::from_secs(1), Duration::from_secs(60))
    }

    /// What is to be done with the main line, whose checkpoints come by rising number.
    pub(crate) fn choose(&self, line: &[Checkpoint], holds: &Holds, now: WallClock) -> Choice {
        let consolidate = self.new_horizon(line, holds, now);
        let horizon = consolidate.max(holds.horizon);
        let newest = line.last().map(|checkpoint| checkpoint.id);
        let mut buckets: BTreeMap<(Duration, u128), CheckpointId> = BTreeMap::new();
        let mut thin = Vec::new();
        // The newest first: it is the one of its bucket that stays.
        for checkpoint in line.iter().rev() {
            let Some((rung, before)) = self.rung_of(checkpoint, now) else { continue };
            let step = rung.step.as_millis();
            if step == 0 {
                continue;
            }
            let bucket = u128::from(checkpoint.server_time.0) / step;
            let stays = *buckets.entry((rung.step, bucket)).or_insert(checkpoint.id) == checkpoint.id;
            let is_over = (bucket + 1) * step + before.as_millis() <= u128::from(now.0);
            let needed = stays
                || !checkpoint.name.is_empty()
                || checkpoint.is_protected(now)
                || holds.pinned.contains(&checkpoint.id)
                || Some(checkpoint.id) == newest
                || horizon.is_some_and(|horizon| checkpoint.id <= horizon);
            if is_over && !needed {
                thin.push(checkpoint.id);
            }
        }
        thin.reverse();
        Choice { consolidate, thin }
    }

    /// The newest checkpoint that is too old for every rung, not past a pin, and past the horizon.
    fn new_horizon(&self, line: &[Checkpoint], holds: &Holds, now: WallClock) -> Option<CheckpointId> {
        let keep = u64::try_from(self.window().as_millis()).unwrap_or(u64::MAX);
        let pinned = holds.pinned.first().copied();
        let old = |checkpoint: &&Checkpoint| checkpoint.server_time.0.saturating_add(keep) <= now.0;
        let free = |checkpoint: &&Checkpoint| pinned.is_none_or(|pinned| checkpoint.id <= pinned);
        let newest = line.iter().filter(old).filter(free).map(|checkpoint| checkpoint.id).max()?;
        Some(newest).filter(|newest| holds.horizon.is_none_or(|horizon| *newest > horizon))
    }

    /// The rung that a checkpoint is on, and how long the one before keeps; the last one also has what is too old.
    fn rung_of(&self, checkpoint: &Checkpoint, now: WallClock) -> Option<(Rung, Duration)> {
        let age = Duration::from_millis(now.0.saturating_sub(checkpoint.server_time.0));
        let at = self.rungs.iter().position(|rung| age < rung.keep).or(self.rungs.len().checked_sub(1))?;
        let before = at.checked_sub(1).map_or(Duration::ZERO, |before| self.rungs[before].keep);
        Some((self.rungs[at], before))
    }
}

impl FromStr for Ladder {
    type Err = LadderError;

    /// `none`, `RUNG=DURATION[,RUNG=DURATION...]` with `all`, `hourly`, `daily`, `weekly` or a duration for RUNG, or a
    /// duration alone, which is that of `all`.
    fn from_str(text: &str) -> Result<Ladder, LadderError> {
        let wrong = |why: String| {
            LadderError(format!(
                "'{text}' says not how long history is kept ({why}); say none, a duration such as 4h, or a ladder such as {}",
                Ladder::default()
            ))
        };
        let duration = |text: &str| {
            text.trim()
                .parse::<humantime::Duration>()
                .map(Duration::from)
                .map_err(|error| wrong(error.to_string()))
        };
        if text.trim() == "none" {
            return Ok(Ladder::none());
        }
        if !text.contains('=') {
            return duration(text).map(Ladder::all);
        }
        let mut rungs: Vec<Rung> = Vec::new();
        for part in text.split(',') {
            let (step, keep) = part.split_once('=').ok_or_else(|| wrong(format!("'{part}' has no =")))?;
            let named = NAMED_STEPS.iter().find(|(name, _)| *name == step.trim()).map(|(_, step)| *step);
            let step = named.map_or_else(|| duration(step), Ok)?;
            let rung = Rung { step, keep: duration(keep)? };
            if rungs.last().is_some_and(|before| before.step >= rung.step || before.keep >= rung.keep) {
                return Err(wrong(format!(
                    "'{part}' has to be coarser and longer than what comes before it"
                )));
            }
            rungs.push(rung);
        }
        Ok(Ladder { rungs })
    }
}

impl fmt::Display for Ladder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rungs.is_empty() {
            return f.write_str("none");
        }
        for (index, rung) in self.rungs.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let keep = words(rung.keep);
            match NAMED_STEPS.iter().find(|(_, step)| *step == rung.step) {
                Some((name, _)) => write!(f, "{comma}{name}={keep}")?,
                None => write!(f, "{comma}{}={keep}", words(rung.step))?,
            }
        }
        Ok(())
    }
}

/// As humantime says it, without spaces.
fn words(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "").replace("days", "d").replace("day", "d")
}

impl fmt::Display for LadderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LadderError {}

#[cfg(test)]
#[path = "ladder_tests.rs"]
pub(crate) mod tests;
