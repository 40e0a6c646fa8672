//! Starting stand-ins, ending them, and what can be done with them meanwhile.

use super::record::{StandInRecord, StandInState};
use crate::control::api::{BootRequest, GuestInfo, SessionInfo};
use crate::definition::define;
use crate::session::Sessions;
use blocks::{ByteLen, Error, ErrorKind, Result};
use hypervisor::{
    Forward, GuestState, HostRoom, Hypervisor, Kernel, Network, Places, Probe, ProbePlace, Source, StandIn,
    fit,
};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use store::Unit;

/// How long a guest may take to switch itself off where nobody says.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a probe is repeated where nobody says, and how often.
const PROBE_TIMEOUT: Duration = Duration::from_secs(300);
const PROBE_EVERY: Duration = Duration::from_millis(100);

/// The stand-ins of a server. Methods block.
#[derive(Debug)]
pub(crate) struct StandIns {
    sessions: Arc<Sessions>,
    hypervisor: Arc<dyn Hypervisor>,
    folder: PathBuf,
    /// One who starts or ends it, for each session.
    turns: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

/// A session and what is known of its stand-in.
pub(super) struct Guest {
    pub session: String,
    pub unit: Arc<Unit>,
    pub identity: String,
    pub places: Places,
}

impl Guest {
    /// The record of it; `NotFound` where no stand-in was ever started.
    fn record(&self) -> Result<StandInRecord> {
        StandInRecord::load(&self.unit, &self.session)?.ok_or_else(|| {
            let context = format!("session {} has no stand-in: start one with `session boot`", self.session);
            Error::new(ErrorKind::NotFound, context)
        })
    }
}

impl StandIns {
    /// Those on these sessions; each has its files in a folder of its own in `folder`, an absolute path.
    pub fn new(sessions: Arc<Sessions>, hypervisor: Arc<dyn Hypervisor>, folder: PathBuf) -> StandIns {
        StandIns { sessions, hypervisor, folder, turns: Mutex::default() }
    }

    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    pub(super) fn hypervisor(&self) -> &dyn Hypervisor {
        &*self.hypervisor
    }

    pub(super) fn guest(&self, session: &str) -> Result<Guest> {
        let (id, unit) = self.sessions.unit_of(session)?;
        let session = id.to_string();
        let places = Places::new(self.folder.join(&session));
        Ok(Guest { identity: uuid(&session), session, unit, places })
    }

    pub(super) fn turn(&self, session: &str) -> Arc<Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(session.to_owned()).or_default())
    }

    /// Starts the stand-in of a session on its exports. One that runs is left as it is. Errors: `Busy` where the
    /// session is not served; what [`define`] and [`Hypervisor::start`] say.
    pub fn boot(&self, session: &str, boot: &BootRequest) -> Result<()> {
        self.start(session, boot, false)
    }

    /// The same of a drill, which takes it away at its end, after a restart of the server too.
    pub fn boot_in_drill(&self, session: &str, boot: &BootRequest) -> Result<()> {
        self.start(session, boot, true)
    }

    fn start(&self, session: &str, boot: &BootRequest, in_drill: bool) -> Result<()> {
        let guest = self.guest(session)?;
        let turn = self.turn(&guest.session);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = StandInRecord::load(&guest.unit, &guest.session)?;
        if before.is_some_and(|before| before.may_run())
            && self.hypervisor.state(&guest.identity, &guest.places).is_there()
        {
            return Ok(());
        }
        let info = self.sessions.get(&guest.session)?;
        let (stand_in, mut record) = self.plan(&guest, &info, boot)?;
        record.in_drill = in_drill;
        record.save(&guest.unit)?;
        blocks::crash_point("boot.recorded");
        match self.hypervisor.start(&stand_in, &guest.places) {
            Ok(notes) => {
                blocks::crash_point("boot.started");
                record.notes.extend(notes);
                record.state = StandInState::Running;
                tracing::info!(session = guest.session, notes = ?record.notes, "the stand-in runs");
                record.save(&guest.unit)
            }
            Err(error) => {
                record.state = StandInState::Ended { why: error.to_string() };
                record.save(&guest.unit)?;
                Err(error.context(format_args!(
                    "session {} is served, its stand-in does not start",
                    guest.session
                )))
            }
        }
    }

    fn plan(
        &self,
        guest: &Guest,
        info: &SessionInfo,
        boot: &BootRequest,
    ) -> Result<(StandIn, StandInRecord)> {
        let defined = define(&guest.unit, &lens(info), sources(info)?)?;
        let room = HostRoom::now()?;
        let (definition, notes) = fit(defined.definition, boot.cpus, boot.memory.map(ByteLen::new), room);
        let probe: Option<Probe> = boot.probe.as_deref().map(str::parse).transpose()?;
        let mut network: Network =
            boot.network.as_deref().map_or_else(|| Ok(Network::default()), str::parse)?;
        if info.drill {
            network = network.isolated();
        }
        let probe_port = match (&probe, &mut network) {
            (Some(Probe::Tcp(port)), Network::User(user)) if !definition.nics.is_empty() => {
                let forward = forward_to(*port)?;
                let host_port = forward.host_port;
                user.forwards.push(forward);
                Some(host_port)
            }
            (Some(Probe::Tcp(port)), _) => {
                let context = format!(
                    "port {port} of the stand-in is not to be reached: it has no card on a network of QEMU's own"
                );
                return Err(Error::new(ErrorKind::InvalidInput, context));
            }
            _ => None,
        };
        let acceleration = boot.acceleration.as_deref().map(str::parse).transpose()?.unwrap_or_default();
        let mut record = StandInRecord::begin(&guest.session, boot.clone(), network.to_string(), probe_port);
        record.notes = defined.notes.into_iter().chain(notes).collect();
        let stand_in = StandIn {
            definition,
            identity: guest.identity.clone(),
            mark: format!("understudy-session-{}", guest.session),
            network,
            acceleration,
            firmware_code: boot.firmware_code.clone(),
            firmware_vars: boot.firmware_vars.clone(),
            kernel: kernel(boot)?,
        };
        Ok((stand_in, record))
    }

    /// Waits until the probe that the stand-in was started with succeeds, and notes how long that took since `begun`.
    /// Without a probe it does nothing. `go_on` returns whether to wait on; an error where the guest has ended or time
    /// is over.
    pub fn wait_probe(&self, session: &str, begun: Instant, go_on: &dyn Fn(&str) -> bool) -> Result<()> {
        let guest = self.guest(session)?;
        let record = guest.record()?;
        let Some(probe) = record.boot.probe.as_deref().map(str::parse::<Probe>).transpose()? else {
            return Ok(());
        };
        let timeout = record.boot.probe_timeout_ms.map_or(PROBE_TIMEOUT, Duration::from_millis);
        let deadline = Instant::now() + timeout;
        let place = ProbePlace {
            hypervisor: &*self.hypervisor,
            identity: &guest.identity,
            places: &guest.places,
            host_port: record.probe_port,
        };
        while !probe.look(&place)? {
            let state = self.hypervisor.state(&guest.identity, &guest.places);
            if let GuestState::Off | GuestState::Gone(_) = state {
                let context = format!("the stand-in has ended before {probe} was seen: {}", words(&state).1);
                return Err(Error::new(ErrorKind::Io, context));
            }
            if Instant::now() >= deadline {
                let context = format!("{probe} was not seen within {}", humantime::format_duration(timeout));
                return Err(Error::new(ErrorKind::Cancelled, context));
            }
            if !go_on(&format!("waiting for {probe}")) {
                return Err(Error::new(ErrorKind::Cancelled, "called off"));
            }
            std::thread::sleep(PROBE_EVERY);
        }
        let rto_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.change(&guest, |record| record.rto_ms = record.rto_ms.or(Some(rto_ms)))
    }

    pub(super) fn change(&self, guest: &Guest, change: impl FnOnce(&mut StandInRecord)) -> Result<()> {
        let mut record = guest.record()?;
        let before = record.clone();
        change(&mut record);
        if record == before { Ok(()) } else { record.save(&guest.unit) }
    }

    /// How a session's stand-in is; `None` where there never was one.
    pub fn info(&self, session: &str) -> Result<Option<Box<GuestInfo>>> {
        let guest = self.guest(session)?;
        let Some(record) = StandInRecord::load(&guest.unit, &guest.session)? else { return Ok(None) };
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let (state, detail) = match &record.state {
            StandInState::Ended { why } => ("ended", why.clone()),
            StandInState::Starting | StandInState::Running => {
                words(&self.hypervisor.state(&guest.identity, &guest.places))
            }
        };
        Ok(Some(Box::new(GuestInfo {
            state: state.to_owned(),
            detail,
            started_ms: record.started_ms,
            rto_ms: record.rto_ms,
            network: record.network,
            console: text(guest.places.console()),
            console_log: text(guest.places.console_log()),
            qmp: text(guest.places.qmp()),
            vnc: text(guest.places.vnc()),
            notes: record.notes,
        })))
    }

    /// Lets it stand still.
    pub fn pause(&self, session: &str) -> Result<()> {
        let guest = self.running(session)?;
        self.hypervisor.pause(&guest.identity, &guest.places)
    }

    /// Lets it go on.
    pub fn unpause(&self, session: &str) -> Result<()> {
        let guest = self.running(session)?;
        self.hypervisor.resume(&guest.identity, &guest.places)
    }

    /// Writes what is on its screen into a new PNG file.
    pub fn screenshot(&self, session: &str, file: &Path) -> Result<()> {
        let guest = self.running(session)?;
        self.hypervisor.screenshot(&guest.identity, &guest.places, file)
    }

    fn running(&self, session: &str) -> Result<Guest> {
        let guest = self.guest(session)?;
        let why = match guest.record()?.state {
            StandInState::Ended { why } => why,
            _ => match self.hypervisor.state(&guest.identity, &guest.places) {
                GuestState::Gone(last) => last,
                _ => return Ok(guest),
            },
        };
        let context = format!("the stand-in of session {} has ended: {why}", guest.session);
        Err(Error::new(ErrorKind::NotFound, context))
    }

    /// Ends a session's stand-in, if one runs: its power button first, and after `patience` its process, which is
    /// noted. It is gone when this returns.
    pub fn end(&self, session: &str, patience: Duration) -> Result<()> {
        let guest = self.guest(session)?;
        let turn = self.turn(&guest.session);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = StandInRecord::load(&guest.unit, &guest.session)? else { return Ok(()) };
        if !record.may_run() {
            return Ok(());
        }
        let (identity, places) = (&guest.identity, &guest.places);
        let why = match self.hypervisor.state(identity, places) {
            GuestState::Gone(last) => format!("QEMU has ended by itself: {last}"),
            GuestState::Off => "it has switched itself off".to_owned(),
            _ if patience.is_zero() => "it was ended without a word".to_owned(),
            state => {
                if state == GuestState::Paused {
                    self.hypervisor.resume(identity, places)?;
                }
                match self.hypervisor.power_down(identity, places, patience) {
                    Ok(true) => "it was shut down".to_owned(),
                    Ok(false) => {
                        let waited = humantime::format_duration(patience);
                        format!("it did not shut down within {waited} and was ended")
                    }
                    Err(error) => format!("it could not be shut down and was ended: {error}"),
                }
            }
        };
        self.hypervisor.kill(identity, places)?;
        tracing::info!(session = guest.session, "the stand-in has ended: {why}");
        self.change(&guest, |record| record.state = StandInState::Ended { why })
    }

    /// Removes what a stand-in that has ended has left: its files.
    pub fn clean(&self, session: &str) -> Result<()> {
        let guest = self.guest(session)?;
        match StandInRecord::load(&guest.unit, &guest.session)? {
            Some(record) if record.may_run() => {
                Err(Error::new(ErrorKind::Busy, format!("the stand-in of session {} runs", guest.session)))
            }
            _ => guest.places.remove(),
        }
    }
}

/// A session's identity as the UUID that its guest sees.
fn uuid(session: &str) -> String {
    let part = |from: usize, to: usize| session.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

/// A state's word and what there is to say of it.
pub(super) fn words(state: &GuestState) -> (&'static str, String) {
    match state {
        GuestState::Running => ("running", String::new()),
        GuestState::Paused => ("paused", String::new()),
        GuestState::DiskTrouble => {
            ("disk-trouble", "a disk could not be read or written; it goes on when that is over".to_owned())
        }
        GuestState::Off => ("off", "it has switched itself off".to_owned()),
        GuestState::Stopped(word) => ("stopped", word.clone()),
        GuestState::Silent(why) => ("silent", why.clone()),
        GuestState::Gone(last) => ("ended", last.clone()),
    }
}

fn lens(info: &SessionInfo) -> Vec<ByteLen> {
    info.disks.iter().map(|disk| ByteLen::new(disk.len)).collect()
}

/// Where the disks are served, at a unix socket if there is one.
fn sources(info: &SessionInfo) -> Result<Vec<Source>> {
    if !matches!(info.state.as_str(), "running" | "migrating" | "pivoted") {
        let context = format!("session {} is not served ({}): {}", info.session, info.state, info.detail);
        return Err(Error::new(ErrorKind::Busy, context));
    }
    let of_disk = |disk: &crate::control::api::SessionDisk| {
        let unix = disk.uris.iter().find(|uri| uri.contains("+unix:"));
        let uri = unix.or(disk.uris.first()).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "the server serves no disks over NBD: start it with --nbd")
        });
        uri?.parse()
    };
    info.disks.iter().map(of_disk).collect()
}

/// A port of this host that was free a moment ago, leading to that one of the guest.
fn forward_to(guest_port: u16) -> Result<Forward> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let port = listener.and_then(|listener| listener.local_addr()).map(|address| address.port());
    let host_port = port.map_err(|error| Error::io("a free port", error))?;
    Ok(Forward { is_udp: false, host: Some(Ipv4Addr::LOCALHOST), host_port, guest: None, guest_port })
}

/// The kernel that is asked for. Its files have to be there, or QEMU's words about them would be all that is heard.
fn kernel(boot: &BootRequest) -> Result<Option<Kernel>> {
    let Some(image) = &boot.kernel else {
        return match boot.initrd.is_some() || boot.append.is_some() {
            true => Err(Error::new(ErrorKind::InvalidInput, "an initrd or a command line without a kernel")),
            false => Ok(None),
        };
    };
    for file in Some(image).into_iter().chain(&boot.initrd) {
        if let Err(error) = std::fs::File::open(file) {
            return Err(Error::io(file.clone(), error));
        }
    }
    let append = boot.append.clone().unwrap_or_default();
    Ok(Some(Kernel { image: image.clone(), initrd: boot.initrd.clone(), append }))
}
