//! One drill, from the checkpoint to the report.

use super::report;
use crate::control::api::{BootRequest, DrillInfo, SessionInfo};
use crate::services::Services;
use crate::stand_in;
use blocks::{CheckpointId, Error, ErrorKind, Result, WallClock};
use nbd_server::Operation;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use store::Unit;

/// How much of the console's end is in the report.
const CONSOLE_BYTES_MAX: usize = 2048;
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What is drilled.
pub(crate) struct Drill {
    pub unit: Arc<Unit>,
    pub checkpoint: CheckpointId,
    /// How the stand-in is started, with a probe.
    pub boot: BootRequest,
}

/// Starts a stand-in apart from everything, waits for its probe, takes a picture of its screen, and takes it all away
/// again but for the report. A stand-in that does not come up is a report too; an error is what keeps a drill from
/// being one, and being called off: `go_on` says whether to wait on.
pub(crate) fn drill(services: &Services, drill: &Drill, go_on: &dyn Fn(&str) -> bool) -> Result<DrillInfo> {
    let Drill { unit, checkpoint, boot } = drill;
    if boot.probe.is_none() {
        return Err(Error::new(ErrorKind::InvalidInput, "a drill wants a probe, by which it is measured"));
    }
    let folder = report::folder(&services.data, unit.machine())?;
    let (begun, started_ms) = (Instant::now(), WallClock::now().0);
    let session = services.sessions.recover(unit, *checkpoint, true)?;
    let played = play(services, &session, boot, begun, go_on);
    let picture = folder.join(format!("{started_ms}.png"));
    let pictured = services.stand_ins.screenshot(&session.session, &picture);
    let guest = services.stand_ins.info(&session.session).map(Option::unwrap_or_default);
    let console = guest.as_ref().map(|guest| end_of(Path::new(&guest.console_log))).unwrap_or_default();
    // Whatever went wrong so far, nothing is left behind.
    take_away(services, unit, &session.session)?;
    let guest = guest?;
    let (first_read_ms, probed) = played;
    let mut notes = guest.notes;
    if let Err(error) = &pictured {
        notes.push(format!("there is no picture: {error}"));
    }
    let report = DrillInfo {
        machine: unit.name(),
        checkpoint: checkpoint.0,
        started_ms,
        probe: boot.probe.clone().unwrap_or_default(),
        passed: probed.is_ok(),
        detail: probed.as_ref().err().map(ToString::to_string).unwrap_or_default(),
        exports_ms: session.rto_ms,
        first_read_ms,
        rto_ms: guest.rto_ms,
        rpo_ms: session.rpo_ms,
        picture: pictured.is_ok().then(|| picture.to_string_lossy().into_owned()),
        console,
        notes,
    };
    if !go_on("") && !report.passed {
        return Err(Error::new(ErrorKind::Cancelled, "the drill was called off"));
    }
    report::save(&folder, &report)?;
    tracing::info!(machine = report.machine, passed = report.passed, rto_ms = report.rto_ms, "drilled");
    Ok(report)
}

/// The end of what a console has said; nothing where there is no log.
fn end_of(log: &Path) -> String {
    let said = std::fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&said[said.len().saturating_sub(CONSOLE_BYTES_MAX)..]).into_owned()
}

/// The time to the first read, where there was one, and whether the probe succeeded.
fn play(
    services: &Services,
    session: &SessionInfo,
    boot: &BootRequest,
    begun: Instant,
    go_on: &dyn Fn(&str) -> bool,
) -> (Option<u64>, Result<()>) {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let first_read = scope.spawn(|| first_read(services, &session.session, begun, &ended));
        let booted = services.stand_ins.boot_in_drill(&session.session, boot);
        let probed = booted.and_then(|()| services.stand_ins.wait_probe(&session.session, begun, go_on));
        ended.store(true, Ordering::Release);
        (first_read.join().unwrap_or_default(), probed)
    })
}

/// When the stand-in first read one of its disks, in milliseconds; `None` where it has not before `ended`.
fn first_read(services: &Services, session: &str, begun: Instant, ended: &AtomicBool) -> Option<u64> {
    let mark = format!("-{}-disk", session.get(..8)?);
    loop {
        let is_over = ended.load(Ordering::Acquire);
        let mut exports = services.exports.traffic().into_iter().filter(|export| export.name.contains(&mark));
        if exports.any(|export| export.traffic.of(Operation::Read).requests() > 0) {
            return u64::try_from(begun.elapsed().as_millis()).ok();
        }
        if is_over {
            return None;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Ends the stand-in without a word and its session with all that was written; nothing of both is left.
pub(super) fn take_away(services: &Services, unit: &Unit, session: &str) -> Result<()> {
    services.stand_ins.end(session, Duration::ZERO)?;
    services.stand_ins.clean(session)?;
    services.sessions.stop(session, true)?;
    stand_in::forget(unit, session)
}
