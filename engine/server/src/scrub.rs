//! Reading again what is stored: on a schedule and on demand; what the last one found is kept with each unit.

use crate::background::again_and_again;
use crate::services::Services;
use crate::stop::Stop;
use blocks::{ByteLen, Error, ErrorKind, Result, WallClock};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use store::{Pace, ScrubReport, Unit};

/// The note of the unit that says what its last scrub came to.
const NOTE: &str = "scrub/last";
const VERSION: u32 = 1;
/// How many findings are kept in words, and how long each may be: a note is small.
const LINES_MAX: usize = 50;
const LINE_BYTES_MAX: usize = 800;
/// How often it is looked whether a unit is due, at most.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What the last scrub of a unit came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastScrub {
    version: u32,
    /// On the server's clock.
    pub finished_ms: u64,
    pub read_bytes: u64,
    pub findings: u64,
    /// The first of them.
    pub lines: Vec<String>,
}

impl LastScrub {
    fn of(report: &ScrubReport) -> LastScrub {
        let line = |finding: &store::Finding| {
            let mut line = finding.to_string();
            let mut end = line.len().min(LINE_BYTES_MAX);
            while !line.is_char_boundary(end) {
                end -= 1;
            }
            line.truncate(end);
            line
        };
        LastScrub {
            version: VERSION,
            finished_ms: WallClock::now().0,
            read_bytes: report.read.get(),
            findings: report.count(),
            lines: report.findings.iter().take(LINES_MAX).map(line).collect(),
        }
    }

    /// The last scrub of a unit; `None` where there was none, or none that this version can read.
    pub fn load(unit: &Unit) -> Option<LastScrub> {
        let last: LastScrub = serde_json::from_slice(&unit.note(NOTE)?).ok()?;
        (last.version == VERSION).then_some(last)
    }

    fn save(&self, unit: &Unit) -> Result<()> {
        let bytes = serde_json::to_vec(self)
            .map_err(|error| Error::with_source(ErrorKind::InvalidInput, "what a scrub found", error))?;
        unit.set_note(NOTE, Some(bytes))
    }
}

/// Scrubs one unit and keeps what came of it.
pub(crate) fn scrub(
    unit: &Unit,
    pace: &Pace<'_>,
    progress: &dyn Fn(ByteLen, ByteLen),
) -> Result<ScrubReport> {
    let report = unit.scrub(pace, progress)?;
    for finding in &report.findings {
        tracing::error!(unit = unit.name(), "damage: {finding}");
    }
    LastScrub::of(&report).save(unit)?;
    Ok(report)
}

/// Scrubs every unit whose last scrub is longer ago than `every`, one at a time, until `stop` is heard. A scrub changes
/// nothing: one that is interrupted begins anew after the next start.
pub(crate) async fn run(services: Arc<Services>, every: Duration, stop: Stop) {
    let look_every = (every / 10).clamp(Duration::from_millis(200), LOOK_EVERY);
    let work = move |stopping: &AtomicBool| scrub_due(&services, every, stopping);
    again_and_again("scrubbing", stop, || look_every, work).await;
}

fn scrub_due(services: &Services, every: Duration, stopping: &AtomicBool) {
    let every_ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
    for unit in services.store.units() {
        let last = LastScrub::load(&unit).map(|last| last.finished_ms);
        if last.is_some_and(|last| WallClock::now().0 < last.saturating_add(every_ms)) {
            continue;
        }
        let go_on = || !stopping.load(Ordering::Acquire);
        let pace = Pace::new(services.scrub_rate, Some(&services.guests), &go_on);
        match scrub(&unit, &pace, &|_, _| {}) {
            Ok(report) => tracing::info!(
                unit = unit.name(),
                read_bytes = report.read.get(),
                findings = report.count(),
                "scrubbed"
            ),
            Err(error) if matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::NotFound) => return,
            Err(error) => tracing::error!(%error, unit = unit.name(), "not scrubbed"),
        }
    }
}
