//! The machines that were enrolled. A certificate counts only while it is the one in its machine's record, so
//! revoking needs no list of the revoked and a lost record fails safe.

use super::poisoned;
use blocks::{Error, ErrorKind, MachineId, Result, WallClock};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};
use wire::{Directory, Fingerprint, PeerIdentity, check_machine_name, write_private_file};

const VERSION: u32 = 1;

/// A machine that was enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolledMachine {
    /// Its name.
    pub name: String,
    /// The certificate that it was given last.
    pub certificate: Fingerprint,
    /// That of a rescue system on it, until the machine speaks for itself again.
    pub rescue: Option<Fingerprint>,
    /// Its identity, since its first hello.
    pub machine: Option<MachineId>,
    /// When it was given that certificate.
    pub enrolled_at: WallClock,
    /// When that was revoked.
    pub revoked_at: Option<WallClock>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    name: String,
    certificate: String,
    #[serde(default)]
    rescue: Option<String>,
    machine: Option<String>,
    enrolled_at_ms: u64,
    revoked_at_ms: Option<u64>,
}

/// All machines, in memory and in one file each.
pub(super) struct Machines {
    folder: PathBuf,
    /// Held over a change and its file; handshakes only need `table`, which no file is written under.
    change: Mutex<()>,
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    by_name: BTreeMap<String, EnrolledMachine>,
    name_of: HashMap<Fingerprint, String>,
}

impl Machines {
    pub fn open(folder: &Path) -> Result<Machines> {
        let mut table = Table::default();
        let failed = |error| Error::io(format!("reading {}", folder.display()), error);
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                table.put(read(&path)?);
            }
        }
        Ok(Machines { folder: folder.to_owned(), change: Mutex::new(()), table: RwLock::new(table) })
    }

    pub fn all(&self) -> Vec<EnrolledMachine> {
        self.read(|table| table.by_name.values().cloned().collect())
    }

    /// The machine of that name, revoked or not.
    pub fn of_name(&self, name: &str) -> Option<EnrolledMachine> {
        self.read(|table| table.by_name.get(name).cloned())
    }

    /// The machine with that identity, revoked or not.
    pub fn of_machine(&self, machine: MachineId) -> Option<EnrolledMachine> {
        self.read(|table| table.by_name.values().find(|known| known.machine == Some(machine)).cloned())
    }

    /// The machine whose certificate in force this is.
    pub fn of_certificate(&self, certificate: Fingerprint) -> Option<EnrolledMachine> {
        self.read(|table| {
            let machine = table.by_name.get(table.name_of.get(&certificate)?)?;
            (machine.has(certificate) && machine.revoked_at.is_none()).then(|| machine.clone())
        })
    }

    /// Gives the machine of that name this certificate, in place of any other. It stays the same machine.
    pub fn enroll(&self, name: &str, certificate: Fingerprint, now: WallClock) -> Result<()> {
        self.change(|| {
            let machine = self.of_name(name).and_then(|known| known.machine);
            let name = name.to_owned();
            Ok(EnrolledMachine {
                name,
                certificate,
                rescue: None,
                machine,
                enrolled_at: now,
                revoked_at: None,
            })
        })
    }

    /// The machine of that name, if a rescue system can speak for it.
    pub fn to_be_rescued(&self, name: &str) -> Result<EnrolledMachine> {
        self.of_name(name).filter(|known| known.revoked_at.is_none()).ok_or_else(|| {
            let context = format!("no machine of the name '{name}' is enrolled that could be rescued");
            Error::new(ErrorKind::NotFound, context)
        })
    }

    /// Gives a rescue system on the machine of that name a certificate beside the machine's own.
    pub fn enroll_rescue(&self, name: &str, certificate: Fingerprint) -> Result<()> {
        self.change(|| Ok(EnrolledMachine { rescue: Some(certificate), ..self.to_be_rescued(name)? }))
    }

    /// Ties a certificate to its machine. Whoever has the machine's own ends what a rescue system was given.
    pub fn bind(&self, certificate: Fingerprint, machine: MachineId) -> Result<()> {
        let known = |found: Option<EnrolledMachine>| {
            found
                .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the certificate was revoked or replaced"))
        };
        let is_done = |found: &EnrolledMachine| {
            found.machine == Some(machine) && (found.rescue.is_none() || found.certificate != certificate)
        };
        if is_done(&known(self.of_certificate(certificate))?) {
            return Ok(());
        }
        self.change(|| {
            let enrolled = known(self.of_certificate(certificate))?;
            let other = self.of_machine(machine).filter(|other| other.name != enrolled.name);
            match (enrolled.machine, other) {
                (Some(bound), _) if bound != machine => {
                    let context =
                        format!("the certificate of '{}' belongs to machine {bound}", enrolled.name);
                    Err(Error::new(ErrorKind::InvalidInput, context))
                }
                (_, Some(other)) => {
                    let context = format!("machine {machine} has the certificate of '{}'", other.name);
                    Err(Error::new(ErrorKind::InvalidInput, context))
                }
                _ => {
                    let rescue = enrolled.rescue.filter(|rescue| *rescue == certificate);
                    Ok(EnrolledMachine { machine: Some(machine), rescue, ..enrolled })
                }
            }
        })
    }

    pub fn revoke(&self, name: &str, now: WallClock) -> Result<()> {
        self.change(|| {
            let enrolled = self.of_name(name).ok_or_else(|| {
                let context = format!("no machine of the name '{}' was ever enrolled", name.escape_debug());
                Error::new(ErrorKind::NotFound, context)
            })?;
            Ok(EnrolledMachine { revoked_at: enrolled.revoked_at.or(Some(now)), ..enrolled })
        })
    }

    /// One change at a time: decided, put on the medium, and only then seen.
    fn change(&self, decide: impl FnOnce() -> Result<EnrolledMachine>) -> Result<()> {
        let _turn = self.change.lock().map_err(|_| poisoned())?;
        let machine = decide()?;
        let json = serde_json::to_vec(&Record::from(&machine)).expect("a record is text and numbers");
        write_private_file(&self.folder.join(format!("{}.json", machine.name)), &json)?;
        self.table.write().unwrap_or_else(PoisonError::into_inner).put(machine);
        Ok(())
    }

    fn read<T>(&self, look: impl FnOnce(&Table) -> T) -> T {
        // Whoever panicked with the lock left a whole table: it is changed by single insertions of whole machines.
        look(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl EnrolledMachine {
    fn certificates(&self) -> impl Iterator<Item = Fingerprint> {
        [Some(self.certificate), self.rescue].into_iter().flatten()
    }

    fn has(&self, certificate: Fingerprint) -> bool {
        self.certificates().any(|own| own == certificate)
    }
}

impl Table {
    fn put(&mut self, machine: EnrolledMachine) {
        if let Some(old) = self.by_name.insert(machine.name.clone(), machine.clone()) {
            old.certificates().for_each(|certificate| drop(self.name_of.remove(&certificate)));
        }
        machine.certificates().for_each(|certificate| {
            self.name_of.insert(certificate, machine.name.clone());
        });
    }
}

impl Directory for Machines {
    fn machine_of(&self, certificate: Fingerprint) -> Option<PeerIdentity> {
        let EnrolledMachine { name, machine, .. } = self.of_certificate(certificate)?;
        Some(PeerIdentity { name, machine, certificate })
    }
}

impl From<&EnrolledMachine> for Record {
    fn from(machine: &EnrolledMachine) -> Record {
        Record {
            version: VERSION,
            name: machine.name.clone(),
            certificate: machine.certificate.to_string(),
            rescue: machine.rescue.map(|certificate| certificate.to_string()),
            machine: machine.machine.map(|machine| machine.to_string()),
            enrolled_at_ms: machine.enrolled_at.0,
            revoked_at_ms: machine.revoked_at.map(|at| at.0),
        }
    }
}

fn read(path: &Path) -> Result<EnrolledMachine> {
    let bytes =
        std::fs::read(path).map_err(|error| Error::io(format!("reading {}", path.display()), error))?;
    decode(&bytes, path)
}

/// The machine that these bytes of the file at `path` are the record of.
pub(super) fn decode(bytes: &[u8], path: &Path) -> Result<EnrolledMachine> {
    let damaged = |error: Error| Error::with_source(ErrorKind::Corrupt, path.display().to_string(), error);
    let record: Record = serde_json::from_slice(bytes)
        .map_err(|error| Error::with_source(ErrorKind::Corrupt, path.display().to_string(), error))?;
    if record.version != VERSION {
        let context = format!("{} has version {}, known is {VERSION}", path.display(), record.version);
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    check_machine_name(&record.name).map_err(damaged)?;
    if path.file_stem().and_then(|stem| stem.to_str()) != Some(&record.name) {
        return Err(Error::corrupt(format!("{} is the record of '{}'", path.display(), record.name)));
    }
    Ok(EnrolledMachine {
        certificate: record.certificate.parse().map_err(damaged)?,
        rescue: record.rescue.map(|text| text.parse()).transpose().map_err(damaged)?,
        machine: record.machine.map(|text| text.parse()).transpose().map_err(damaged)?,
        name: record.name,
        enrolled_at: WallClock(record.enrolled_at_ms),
        revoked_at: record.revoked_at_ms.map(WallClock),
    })
}
