//! What there is to show.

use super::files::{DiskFile, Lengths, Scratch, disk_files};
use super::{definitions, files};
use crate::services::Services;
use crate::session::LiveSession;
use blocks::{ByteLen, CheckpointId, DiskIndex, Error, ErrorKind, MachineId, Result, WallClock};
use fuse_fs::{Catalogue, Member, Moment, Place, Run, Source, Space};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use store::Unit;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// Without a colon, which QEMU takes for the end of a protocol's name.
const NAME_OF_TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]-[minute]-[second].[subsecond digits:3]Z");

/// The server's machines. Holds the server only as long as something is asked, so that it can end.
pub(super) struct ServerCatalogue {
    services: Weak<Services>,
    /// Where it is mounted, for the definitions of stand-ins.
    folder: PathBuf,
    read_only: bool,
    lengths: Lengths,
    scratch: Scratch,
}

/// A place and what it is of.
pub(super) struct Subject {
    pub(super) unit: Arc<Unit>,
    pub(super) state: State,
    /// The disks' lengths.
    pub(super) lens: Vec<ByteLen>,
    /// When the disks were so, of a session when they began to differ.
    pub(super) time: WallClock,
    /// Its folder.
    pub(super) folder: PathBuf,
}

/// Which state of a machine.
pub(super) enum State {
    Checkpoint(CheckpointId),
    Session(Arc<LiveSession>),
}

impl Subject {
    /// What identities of files are made from: the same for one state of one machine, and for no other.
    pub(super) fn identity(&self, disk: DiskIndex) -> String {
        let machine = self.unit.machine();
        match &self.state {
            State::Checkpoint(number) => format!("{machine} checkpoint {number} disk {disk}"),
            State::Session(session) => format!("{machine} session {} disk {disk}", session.id),
        }
    }
}

impl ServerCatalogue {
    pub(super) fn new(services: &Arc<Services>, folder: PathBuf, read_only: bool) -> ServerCatalogue {
        let (lengths, scratch) = (Lengths::default(), Scratch::default());
        ServerCatalogue { services: Arc::downgrade(services), folder, read_only, lengths, scratch }
    }

    fn services(&self) -> Result<Arc<Services>> {
        let ended = || Error::new(ErrorKind::Cancelled, "the server has ended");
        self.services.upgrade().ok_or_else(ended)
    }

    fn unit(&self, machine: &str) -> Result<Arc<Unit>> {
        let found = self.services()?.store.unit(machine.parse()?);
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no machine {machine}")))
    }

    fn subject(&self, place: &Place) -> Result<Subject> {
        match place {
            Place::Checkpoint { machine, number } => {
                let unit = self.unit(machine)?;
                let gone = || Error::new(ErrorKind::NotFound, format!("checkpoint {number} is gone"));
                let checkpoint = unit.checkpoint(CheckpointId(*number)).ok_or_else(gone)?;
                let time = checkpoint.server_time;
                let state = State::Checkpoint(checkpoint.id);
                let name = name_of(time).unwrap_or_default();
                let folder = self.folder.join(folder_of(&unit)).join("checkpoints").join(name);
                Ok(Subject { unit, state, lens: checkpoint.lens, time, folder })
            }
            Place::Session { machine, session } => {
                let unit = self.unit(machine)?;
                let session = self.session(unit.machine(), session)?;
                let lens = session.disks.iter().map(|disk| disk.len()).collect();
                let folder = self.folder.join(folder_of(&unit)).join("sessions").join(session.id.to_string());
                let time = began(&unit, &session);
                Ok(Subject { unit, state: State::Session(session), lens, time, folder })
            }
        }
    }

    fn session(&self, machine: MachineId, wanted: &str) -> Result<Arc<LiveSession>> {
        let served = self.services()?.sessions.with_disks(machine);
        let found = served.into_iter().find(|session| session.id.to_string() == wanted);
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("session {wanted} is not served")))
    }
}

/// The name of a checkpoint's folder; `None` for an instant that no calendar has.
fn name_of(time: WallClock) -> Option<String> {
    let instant = OffsetDateTime::from_unix_timestamp_nanos(i128::from(time.0) * 1_000_000).ok()?;
    instant.format(NAME_OF_TIME).ok()
}

fn folder_of(unit: &Unit) -> String {
    fuse_fs::file_name(&unit.name()).unwrap_or_else(|| unit.machine().to_string())
}

fn began(unit: &Unit, session: &LiveSession) -> WallClock {
    unit.checkpoint(session.record.get().base()).map_or(WallClock(0), |base| base.server_time)
}

fn system_time(time: WallClock) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(time.0)
}

impl Catalogue for ServerCatalogue {
    fn machines(&self) -> Result<Vec<(String, String)>> {
        let units = self.services()?.store.units();
        Ok(units.iter().map(|unit| (unit.machine().to_string(), unit.name())).collect())
    }

    fn checkpoints(&self, machine: &str) -> Result<Vec<Moment>> {
        let unit = self.unit(machine)?;
        let main = unit.main_branch();
        let mut taken = HashSet::new();
        let moment = |checkpoint: store::Checkpoint| {
            let mut name = name_of(checkpoint.server_time).unwrap_or_else(|| checkpoint.id.to_string());
            if !taken.insert(name.clone()) {
                // Two of one millisecond.
                name = format!("{name}-{}", checkpoint.id);
            }
            Moment {
                name,
                number: checkpoint.id.0,
                time: system_time(checkpoint.server_time),
                on_main_line: checkpoint.branch == main,
            }
        };
        Ok(unit.checkpoints().into_iter().map(moment).collect())
    }

    fn sessions(&self, machine: &str) -> Result<Vec<Run>> {
        let unit = self.unit(machine)?;
        let run = |session: Arc<LiveSession>| Run {
            name: session.id.to_string(),
            time: system_time(began(&unit, &session)),
        };
        Ok(self.services()?.sessions.with_disks(unit.machine()).into_iter().map(run).collect())
    }

    fn members(&self, place: &Place) -> Result<Vec<Member>> {
        let subject = self.subject(place)?;
        let is_session = matches!(subject.state, State::Session(_));
        let writable = is_session && !self.read_only;
        let files = disk_files(&subject.lens, is_session);
        let disks = files.into_iter().map(|file| Member { name: file.to_string(), writable });
        let texts = definitions::texts(&subject).into_iter();
        let texts = texts.map(|(name, _)| Member { name: name.to_owned(), writable: false });
        Ok(disks.chain(texts).collect())
    }

    fn len(&self, place: &Place, name: &str) -> Result<u64> {
        let subject = self.subject(place)?;
        match name.parse::<DiskFile>() {
            Ok(file) => self.lengths.get(place, &subject, file),
            Err(_) => definitions::text(&subject, name).map(|text| text.len() as u64),
        }
    }

    fn open(&self, place: &Place, name: &str, _writable: bool) -> Result<Source> {
        let subject = self.subject(place)?;
        match name.parse::<DiskFile>() {
            Ok(file) => files::open(&subject, file, &self.scratch).map(Source::Volume),
            Err(_) => definitions::text(&subject, name).map(|text| Source::Bytes(text.into_bytes())),
        }
    }

    fn state(&self) -> Result<String> {
        let services = self.services()?;
        let machines = services.store.units().into_iter().map(|unit| {
            let sessions = services.sessions.with_disks(unit.machine());
            let sessions = sessions.iter().map(|session| {
                let disks = session.disks.iter().map(|disk| {
                    serde_json::json!({ "index": disk.index.0, "len": disk.len().get(), "used_by": disk.door.visitors() })
                });
                serde_json::json!({ "session": session.id.to_string(), "disks": disks.collect::<Vec<_>>() })
            });
            serde_json::json!({
                "machine": unit.machine().to_string(),
                "name": unit.name(),
                "folder": folder_of(&unit),
                "checkpoints": unit.checkpoints().len(),
                "definitions": definitions::why_none(&unit),
                "sessions": sessions.collect::<Vec<_>>(),
            })
        });
        let state = serde_json::json!({
            "store": services.store.id().to_string(),
            "folder": self.folder,
            "read_only": self.read_only,
            "machines": machines.collect::<Vec<_>>(),
        });
        Ok(format!("{state:#}\n"))
    }

    fn space(&self) -> Result<Space> {
        let services = self.services()?;
        let found = rustix::fs::statvfs(&services.data)
            .map_err(|error| Error::io(services.data.display().to_string(), error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Space { total: bytes(found.f_blocks), free: bytes(found.f_bavail) })
    }
}
