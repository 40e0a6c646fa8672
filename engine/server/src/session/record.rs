//! What is durably known of a session: a JSON note of its unit under `session/<id>`.
//!
//! The record decides how things go on after a restart; docs/design/0007-sessions.md has the table of steps.

use crate::session::volume::lock;
use blocks::{
    CheckpointId, DiskIndex, Error, ErrorKind, Generation, MachineId, Result, SessionId, WallClock,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{Arc, Mutex};
use store::{BranchId, DeltaId, Unit};

const NOTE_PREFIX: &str = "session/";
const VERSION: u32 = 1;

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionRecord {
    version: u32,
    session: String,
    machine: String,
    base: u64,
    /// What it begins with behind the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moment: Option<MomentRecord>,
    branch: u64,
    /// The unit's generation under which the session runs; a drill leaves it as it was.
    generation: u64,
    pub drill: bool,
    state: SessionState,
    pub started_ms: u64,
    pub rto_ms: u64,
    pub rpo_ms: u64,
    pub disks: Vec<DiskRecord>,
    pub failback: FailbackRecord,
}

/// The writes behind a checkpoint that a session begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MomentRecord {
    /// When the last of them was completed.
    pub time_us: u64,
    pub writes: u64,
    /// The words in which it was asked for.
    pub asked: String,
}

/// A session from the cradle to the grave.
///
/// ```text
///             Adopt                Adopted              Finished
///   Running --------> Adopting ------------> Finishing ---------> Home
///    |   ^               |
///    |   +----- Undo ----+     (only where the branch has not become the main one)
///    +--- Stop ---> Stopped
/// ```
///
/// From `Finishing` there is no way back: the session's branch is the machine's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub(crate) enum SessionState {
    /// Its disks are served, or ready to be.
    Running,
    /// The machine holds the session's state and the branch is about to become the main one. Whether it has is the
    /// store's to say.
    Adopting { checkpoint: u64, generation: u64 },
    /// The branch is the main one; the machine has not confirmed it yet.
    Finishing { checkpoint: u64, generation: u64, superseded: u64 },
    /// The machine is in charge again.
    Home { checkpoint: u64 },
    /// Ended by an administrator; the branch is kept.
    Stopped,
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionState::Running => f.write_str("it runs"),
            SessionState::Adopting { checkpoint, .. } | SessionState::Finishing { checkpoint, .. } => {
                write!(f, "it is going home with checkpoint {checkpoint}")
            }
            SessionState::Home { checkpoint } => write!(f, "it went home with checkpoint {checkpoint}"),
            SessionState::Stopped => f.write_str("it was stopped"),
        }
    }
}

/// What happens to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionEvent {
    Adopt { checkpoint: CheckpointId, generation: Generation },
    Undo,
    Adopted { superseded: BranchId },
    Finished,
    Stop,
}

/// One disk of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskRecord {
    pub migration: Option<MigrationRecord>,
    /// Set while completed writes wait for a flush: the boot of the server's host that holds them in its memory.
    pub unflushed_boot: Option<String>,
}

/// A copy of a disk elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MigrationRecord {
    pub to: String,
    pub format: String,
    pub rate: Option<u64>,
    pub pivot: bool,
    state: MigrationState,
}

/// A migration from the cradle to the grave.
///
/// ```text
///             Mark            Mark
///             +--+            +--+
///             |  v   InStep   |  v    Pivot
///   -------> Copying -------> InStep -------> Pivoted   (also from Copying)
///             ^  |               |
///       Retry |  | Fail          | Fail
///             |  v               |
///            Failed <------------+
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub(crate) enum MigrationState {
    /// The target holds everything before `position` as it was at the end of `delta`, on its medium.
    Copying { position: u64, delta: u64 },
    /// The same with nothing left but what the guest has just written.
    InStep { position: u64, delta: u64 },
    /// The target is the disk.
    Pivoted,
    /// It came to nothing; the session goes on without it. `Retry` goes on from the mark.
    Failed { detail: String, position: u64, delta: u64 },
}

/// What happens to a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MigrationEvent {
    Mark { position: u64, delta: DeltaId },
    InStep,
    Pivot,
    Fail { detail: String },
    Retry,
}

/// What earlier attempts to bring the session home have left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FailbackRecord {
    /// Something was written to the machine's disks: blocks are compared before they are sent again.
    pub written: bool,
    /// The checkpoint that keeps what the machine wrote but never sent.
    pub unsent: Option<u64>,
}

fn refused(state: &dyn std::fmt::Debug, event: &dyn std::fmt::Debug) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{event:?} is not possible in state {state:?}"))
}

impl SessionState {
    /// Whether the session's disks are open: it runs, or its return home is not finished.
    pub fn has_disks(self) -> bool {
        matches!(self, SessionState::Running | SessionState::Adopting { .. } | SessionState::Finishing { .. })
    }

    /// The state after `event`; an error where that must not happen.
    pub fn after(self, event: SessionEvent) -> Result<SessionState> {
        use SessionState as S;
        match (self, event) {
            (S::Running, SessionEvent::Adopt { checkpoint, generation }) => {
                Ok(S::Adopting { checkpoint: checkpoint.0, generation: generation.0 })
            }
            (S::Adopting { .. }, SessionEvent::Undo) => Ok(S::Running),
            (S::Adopting { checkpoint, generation }, SessionEvent::Adopted { superseded }) => {
                Ok(S::Finishing { checkpoint, generation, superseded: superseded.0 })
            }
            (S::Finishing { checkpoint, .. }, SessionEvent::Finished) => Ok(S::Home { checkpoint }),
            (S::Running, SessionEvent::Stop) => Ok(S::Stopped),
            (state, event) => Err(refused(&state, &event)),
        }
    }
}

impl MigrationState {
    /// The state after `event`; an error where that must not happen.
    pub fn after(&self, event: MigrationEvent) -> Result<MigrationState> {
        use MigrationState as M;
        match (self, event) {
            (M::Copying { .. }, MigrationEvent::Mark { position, delta }) => {
                Ok(M::Copying { position, delta: delta.0 })
            }
            (M::InStep { .. }, MigrationEvent::Mark { position, delta }) => {
                Ok(M::InStep { position, delta: delta.0 })
            }
            (M::Copying { position, delta } | M::InStep { position, delta }, MigrationEvent::InStep) => {
                Ok(M::InStep { position: *position, delta: *delta })
            }
            (M::Copying { .. } | M::InStep { .. }, MigrationEvent::Pivot) => Ok(M::Pivoted),
            (
                M::Copying { position, delta } | M::InStep { position, delta },
                MigrationEvent::Fail { detail },
            ) => Ok(M::Failed { detail, position: *position, delta: *delta }),
            (M::Failed { position, delta, .. }, MigrationEvent::Retry) => {
                Ok(M::Copying { position: *position, delta: *delta })
            }
            (state, event) => Err(refused(state, &event)),
        }
    }

    /// The mark: position and delta.
    pub fn mark(&self) -> Option<(u64, DeltaId)> {
        match self {
            MigrationState::Copying { position, delta }
            | MigrationState::InStep { position, delta }
            | MigrationState::Failed { position, delta, .. } => Some((*position, DeltaId(*delta))),
            MigrationState::Pivoted => None,
        }
    }
}

impl MigrationRecord {
    /// A migration that has copied nothing yet.
    pub fn begin(to: String, format: String, delta: DeltaId) -> MigrationRecord {
        let state = MigrationState::Copying { position: 0, delta: delta.0 };
        MigrationRecord { to, format, rate: None, pivot: false, state }
    }

    /// Where it is.
    pub fn state(&self) -> &MigrationState {
        &self.state
    }

    /// Takes note of `event`; an error, and nothing changed, where that must not happen.
    pub fn apply(&mut self, event: MigrationEvent) -> Result<()> {
        self.state = self.state.after(event)?;
        Ok(())
    }
}

impl SessionRecord {
    /// A session that has just begun.
    pub fn begin(
        session: SessionId,
        machine: MachineId,
        base: CheckpointId,
        branch: BranchId,
        generation: Generation,
        drill: bool,
        disks: usize,
    ) -> SessionRecord {
        SessionRecord {
            version: VERSION,
            session: session.to_string(),
            machine: machine.to_string(),
            base: base.0,
            moment: None,
            branch: branch.0,
            generation: generation.0,
            drill,
            state: SessionState::Running,
            started_ms: WallClock::now().0,
            rto_ms: 0,
            rpo_ms: 0,
            disks: vec![DiskRecord::default(); disks],
            failback: FailbackRecord::default(),
        }
    }

    /// Every session that the unit has a record of.
    pub fn load_all(unit: &Unit) -> Result<Vec<(SessionId, SessionRecord)>> {
        let of_session = |key: &String| key.strip_prefix(NOTE_PREFIX).map(str::to_owned);
        let mut records = Vec::new();
        for id in unit.notes().iter().filter_map(of_session) {
            let note = unit.note(&format!("{NOTE_PREFIX}{id}")).unwrap_or_default();
            let context = || format!("the record of session {id} of {}", unit.name());
            let record = SessionRecord::decode(&note, context)?;
            records.push((id.parse()?, record));
        }
        Ok(records)
    }

    /// The record in a note; `context` says whose it is.
    pub fn decode(note: &[u8], context: impl Fn() -> String) -> Result<SessionRecord> {
        let record: SessionRecord = serde_json::from_slice(note)
            .map_err(|error| Error::with_source(ErrorKind::Corrupt, context(), error))?;
        if record.version != VERSION {
            let context = format!("{} has version {}", context(), record.version);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        Ok(record)
    }

    /// The bytes of its note.
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|error| Error::with_source(ErrorKind::InvalidInput, "the record of a session", error))
    }

    /// Puts the record on the medium.
    pub fn save(&self, unit: &Unit) -> Result<()> {
        let bytes = self.encode()?;
        unit.set_note(&format!("{NOTE_PREFIX}{}", self.session), Some(bytes))
    }

    /// Takes the record off the medium.
    pub fn forget(&self, unit: &Unit) -> Result<()> {
        unit.set_note(&format!("{NOTE_PREFIX}{}", self.session), None)
    }

    /// The checkpoint it starts from.
    pub fn base(&self) -> CheckpointId {
        CheckpointId(self.base)
    }

    /// The branch that takes its writes.
    pub fn branch(&self) -> BranchId {
        BranchId(self.branch)
    }

    /// The generation it runs under.
    pub fn generation(&self) -> Generation {
        Generation(self.generation)
    }

    /// Where it is.
    pub fn state(&self) -> SessionState {
        self.state
    }

    /// Takes note of `event`; an error, and nothing changed, where that must not happen.
    pub fn apply(&mut self, event: SessionEvent) -> Result<()> {
        self.state = self.state.after(event)?;
        Ok(())
    }

    /// The disk of that number.
    pub fn disk(&self, disk: DiskIndex) -> Result<&DiskRecord> {
        self.disks.get(usize::from(disk.0)).ok_or_else(|| self.no_disk(disk))
    }

    /// The disk of that number, to be changed.
    pub fn disk_mut(&mut self, disk: DiskIndex) -> Result<&mut DiskRecord> {
        let missing = self.no_disk(disk);
        self.disks.get_mut(usize::from(disk.0)).ok_or(missing)
    }

    fn no_disk(&self, disk: DiskIndex) -> Error {
        Error::new(ErrorKind::NotFound, format!("session {} has no disk {disk}", self.session))
    }
}

/// The record of a session while the server runs: changed in memory only after it is on the medium.
pub(crate) struct RecordKeeper {
    unit: Arc<Unit>,
    record: Mutex<SessionRecord>,
}

impl RecordKeeper {
    /// Keeps a record that is on the medium already.
    pub fn new(unit: Arc<Unit>, record: SessionRecord) -> RecordKeeper {
        RecordKeeper { unit, record: Mutex::new(record) }
    }

    /// The record as it is.
    pub fn get(&self) -> SessionRecord {
        lock(&self.record).clone()
    }

    /// Changes the record; durable when this returns. After an error nothing has changed.
    pub fn update(&self, change: impl FnOnce(&mut SessionRecord) -> Result<()>) -> Result<()> {
        let mut record = lock(&self.record);
        let mut changed = record.clone();
        change(&mut changed)?;
        if changed != *record {
            changed.save(&self.unit)?;
            *record = changed;
        }
        Ok(())
    }

    /// The same for a disk's migration.
    pub fn migration(&self, disk: DiskIndex, event: MigrationEvent) -> Result<()> {
        self.update(|record| match &mut record.disk_mut(disk)?.migration {
            Some(migration) => migration.apply(event),
            None => Err(Error::new(ErrorKind::NotFound, format!("disk {disk} is not being migrated"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_takes_only_the_ways_that_are_drawn() {
        let adopt = SessionEvent::Adopt { checkpoint: CheckpointId(7), generation: Generation(3) };
        let adopted = SessionEvent::Adopted { superseded: BranchId(9) };
        let adopting = SessionState::Running.after(adopt).unwrap();
        assert_eq!(adopting.after(SessionEvent::Undo).unwrap(), SessionState::Running);
        let finishing = adopting.after(adopted).unwrap();
        assert_eq!(finishing.after(SessionEvent::Finished).unwrap(), SessionState::Home { checkpoint: 7 });
        for (state, event) in [
            (SessionState::Running, adopted),
            (SessionState::Running, SessionEvent::Finished),
            (adopting, SessionEvent::Stop),
            (finishing, SessionEvent::Undo),
            (finishing, SessionEvent::Stop),
            (SessionState::Stopped, adopt),
            (SessionState::Home { checkpoint: 7 }, adopt),
        ] {
            assert!(state.after(event).is_err(), "{state:?} {event:?}");
        }
    }

    /// The bytes of version 1, kept so that they stay readable; made once by that version's code, by
    /// `UNDERSTUDY_WRITE_FIXTURES=1`, which never touches what is there.
    #[test]
    fn a_record_of_version_1_stays_readable() {
        let id = |byte| blocks::Id::from_bytes([byte; 16]).unwrap();
        let (session, machine) = (SessionId(id(3)), MachineId(id(7)));
        let mut record =
            SessionRecord::begin(session, machine, CheckpointId(4), BranchId(2), Generation(3), true, 2);
        let mut migration = MigrationRecord::begin("/srv/web1.raw".into(), "raw".into(), DeltaId(9));
        migration.apply(MigrationEvent::Mark { position: 1 << 20, delta: DeltaId(9) }).unwrap();
        record.disks[1].migration = Some(migration);
        (record.started_ms, record.rto_ms, record.rpo_ms) = (1, 2, 3);
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/session.json");
        if std::env::var_os("UNDERSTUDY_WRITE_FIXTURES").is_some() && !path.exists() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, record.encode().unwrap()).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(SessionRecord::decode(&bytes, String::new).unwrap(), record);
    }

    #[test]
    fn a_migration_takes_only_the_ways_that_are_drawn() {
        let mut migration = MigrationRecord::begin("/x".into(), "raw".into(), DeltaId(1));
        migration.apply(MigrationEvent::Mark { position: 5, delta: DeltaId(1) }).unwrap();
        migration.apply(MigrationEvent::Fail { detail: "gone".into() }).unwrap();
        assert!(migration.apply(MigrationEvent::Pivot).is_err());
        migration.apply(MigrationEvent::Retry).unwrap();
        assert_eq!(migration.state().mark(), Some((5, DeltaId(1))), "a retry goes on from the mark");
        migration.apply(MigrationEvent::InStep).unwrap();
        migration.apply(MigrationEvent::Pivot).unwrap();
        assert!(migration.apply(MigrationEvent::Fail { detail: "late".into() }).is_err());
        assert_eq!(migration.state(), &MigrationState::Pivoted);
    }
}
