//! What is durably known of a stand-in: a JSON note of its unit under `stand-in/<session>`.

use crate::control::api::BootRequest;
use blocks::{Error, ErrorKind, Result, WallClock};
use serde::{Deserialize, Serialize};
use store::Unit;

const NOTE_PREFIX: &str = "stand-in/";
const VERSION: u32 = 1;

/// A stand-in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StandInRecord {
    version: u32,
    session: String,
    pub state: StandInState,
    pub started_ms: u64,
    /// It is part of a drill, which takes it away at its end.
    #[serde(default)]
    pub in_drill: bool,
    /// How it was wanted.
    pub boot: BootRequest,
    /// What its cards are plugged into, in the words of `--network`.
    pub network: String,
    /// The host's port that leads to the one that is probed.
    pub probe_port: Option<u16>,
    pub rto_ms: Option<u64>,
    pub notes: Vec<String>,
}

/// A stand-in from the cradle to the grave. Whether it runs or stands still is its hypervisor's to say.
///
/// ```text
///   -------> Starting -------> Running -------> Ended -------> (Starting)
///                |                                ^
///                +--------------------------------+
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub(crate) enum StandInState {
    /// Whether there is a process is not known yet.
    Starting,
    /// There is a process, unless it has ended since.
    Running,
    /// There is none; why, for people.
    Ended { why: String },
}

impl StandInRecord {
    /// One that is about to be started.
    pub fn begin(
        session: &str,
        boot: BootRequest,
        network: String,
        probe_port: Option<u16>,
    ) -> StandInRecord {
        StandInRecord {
            version: VERSION,
            session: session.to_owned(),
            state: StandInState::Starting,
            started_ms: WallClock::now().0,
            in_drill: false,
            boot,
            network,
            probe_port,
            rto_ms: None,
            notes: Vec::new(),
        }
    }

    /// The record of a session's stand-in; `None` where there never was one. `Corrupt` or `Unsupported` where it
    /// cannot be read.
    pub fn load(unit: &Unit, session: &str) -> Result<Option<StandInRecord>> {
        let Some(note) = unit.note(&format!("{NOTE_PREFIX}{session}")) else { return Ok(None) };
        let context = || format!("the record of the stand-in of session {session}");
        let record: StandInRecord = serde_json::from_slice(&note)
            .map_err(|error| Error::with_source(ErrorKind::Corrupt, context(), error))?;
        match record.version {
            VERSION => Ok(Some(record)),
            other => Err(Error::new(ErrorKind::Unsupported, format!("{} has version {other}", context()))),
        }
    }

    /// Puts the record on the medium.
    pub fn save(&self, unit: &Unit) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(|error| {
            Error::with_source(ErrorKind::InvalidInput, "the record of a stand-in", error)
        })?;
        unit.set_note(&format!("{NOTE_PREFIX}{}", self.session), Some(bytes))
    }

    /// Whether there may be a process.
    pub fn may_run(&self) -> bool {
        !matches!(self.state, StandInState::Ended { .. })
    }
}

/// Takes the record of a session's stand-in off the medium, if there is one.
pub(crate) fn forget(unit: &Unit, session: &str) -> Result<()> {
    let key = format!("{NOTE_PREFIX}{session}");
    if unit.note(&key).is_some() { unit.set_note(&key, None) } else { Ok(()) }
}
