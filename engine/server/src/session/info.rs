//! Sessions and checkpoints as administrators see them.

use crate::control::api::{CheckpointInfo, MigrationInfo, MomentInfo, SessionDisk, SessionInfo};
use crate::control::at::{format_time, format_write_time};
use crate::session::live::{LiveDisk, LiveSession};
use crate::session::record::{MigrationRecord, MigrationState, SessionState};
use blocks::{ByteLen, DiskIndex, Extent, Result, WallClock};
use std::sync::atomic::Ordering;
use store::{Checkpoint, Consistency};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A session as it is now.
pub(crate) fn session_info(session: &LiveSession) -> Result<SessionInfo> {
    let record = session.record.get();
    let disks = session.unit.disks();
    let clients = session.context.exports.list();
    let disk = |index: usize| -> Result<SessionDisk> {
        let number = DiskIndex(u16::try_from(index).unwrap_or(u16::MAX));
        let open = session.disks.get(index).map(|disk| &**disk);
        let name = session.export_name(number);
        let migration = record.disks[index].migration.as_ref();
        Ok(SessionDisk {
            index: number.0,
            len: open
                .map_or_else(|| disks.get(index).map_or(0, |disk| disk.len.get()), |disk| disk.len().get()),
            uris: open.map_or_else(Vec::new, |_| session.context.uris(&name)),
            written_bytes: open.map_or(Ok(ByteLen::ZERO), LiveDisk::written)?.get(),
            clients: clients
                .iter()
                .find(|export| export.name == name)
                .map_or(0, |export| export.clients as u64),
            migration: migration.map(|migration| migration_info(migration, open)),
        })
    };
    let (state, mut detail) = state_words(session, record.state(), &record.disks.iter().collect::<Vec<_>>());
    if detail.is_empty() {
        detail = parked_words(session).unwrap_or_default();
    }
    Ok(SessionInfo {
        session: session.id.to_string(),
        machine: session.unit.machine().to_string(),
        machine_name: session.unit.name(),
        checkpoint: record.base().0,
        moment: record
            .moment
            .map(|moment| MomentInfo { time: format_write_time(moment.time_us), writes: moment.writes }),
        drill: record.drill,
        state,
        detail,
        rto_ms: record.rto_ms,
        rpo_ms: record.rpo_ms,
        disks: (0..record.disks.len()).map(disk).collect::<Result<_>>()?,
        guest: None,
    })
}

/// What to say of a failback that is in step and waits.
pub(crate) fn parked_words(session: &LiveSession) -> Option<String> {
    let since = session.parked_since()?;
    let mib = since.get() as f64 / f64::from(1 << 20);
    Some(format!("in step with {}, {mib:.1} MiB since", session.unit.name()))
}

fn state_words(
    session: &LiveSession,
    state: SessionState,
    disks: &[&crate::session::record::DiskRecord],
) -> (String, String) {
    let migrations = || disks.iter().filter_map(|disk| disk.migration.as_ref()).map(MigrationRecord::state);
    let (word, detail) = match state {
        SessionState::Home { checkpoint } => ("home", format!("the machine holds checkpoint {checkpoint}")),
        SessionState::Stopped => ("stopped", "what its guest wrote is kept as a branch".to_owned()),
        SessionState::Finishing { .. } => {
            ("failing-back", "the machine has not confirmed yet: repeat the failback".to_owned())
        }
        SessionState::Adopting { .. } => ("failing-back", String::new()),
        SessionState::Running => match session.held() {
            Some(why) => ("held", why),
            None if session.failing_back.load(Ordering::SeqCst) => ("failing-back", String::new()),
            None if migrations().any(|state| {
                matches!(state, MigrationState::Copying { .. } | MigrationState::InStep { .. })
            }) =>
            {
                ("migrating", String::new())
            }
            None if !session.disks.is_empty()
                && migrations().filter(|state| **state == MigrationState::Pivoted).count()
                    == session.disks.len() =>
            {
                ("pivoted", String::new())
            }
            None => ("running", String::new()),
        },
    };
    (word.to_owned(), detail)
}

fn migration_info(migration: &MigrationRecord, disk: Option<&LiveDisk>) -> MigrationInfo {
    let progress =
        disk.and_then(|disk| disk.with_migration(|running| running.progress())).unwrap_or_default();
    let (state, detail) = match migration.state() {
        MigrationState::Copying { .. } => ("copying", String::new()),
        MigrationState::InStep { .. } => ("in-step", String::new()),
        MigrationState::Pivoted => ("pivoted", String::new()),
        MigrationState::Failed { detail, .. } => ("failed", detail.clone()),
    };
    MigrationInfo {
        to: migration.to.clone(),
        format: migration.format.clone(),
        state: state.to_owned(),
        detail,
        copied_bytes: progress.copied.get(),
        left_bytes: progress.left.get(),
    }
}

fn protection(checkpoint: &Checkpoint) -> Option<String> {
    if !checkpoint.is_protected(WallClock::now()) {
        return None;
    }
    let until = checkpoint.protected_until;
    Some(if until == Checkpoint::FOREVER { "forever".to_owned() } else { format_time(until) })
}

/// A checkpoint; `branch` is how its branch is called.
pub(crate) fn checkpoint_info(checkpoint: &Checkpoint, branch: String) -> CheckpointInfo {
    let consistency = match checkpoint.consistency {
        Consistency::Crash => "crash",
        Consistency::FileSystem => "file-system",
        Consistency::Application => "application",
        Consistency::Fuzzy => "fuzzy",
    };
    let sealed = OffsetDateTime::from_unix_timestamp_nanos(i128::from(checkpoint.server_time.0) * 1_000_000);
    CheckpointInfo {
        checkpoint: checkpoint.id.0,
        name: checkpoint.name.clone(),
        branch,
        consistency: consistency.to_owned(),
        server_time_ms: checkpoint.server_time.0,
        time: sealed.ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default(),
        source_time_ms: checkpoint.source_time.0,
        frozen_ms: checkpoint.frozen_ms,
        changed_bytes: checkpoint.changed.get(),
        protected_until: protection(checkpoint),
        excluded_bytes: checkpoint.excluded.iter().flatten().map(|extent: &Extent| extent.len().get()).sum(),
    }
}
