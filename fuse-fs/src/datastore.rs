//! The tree of machines, checkpoints and sessions.
//!
//! ```text
//! .understudy                      the state, as JSON
//! MACHINE/latest                   a link to the newest checkpoint
//! MACHINE/checkpoints/TIME/...     what the catalogue has of it: disks in several formats, definitions; only read
//! MACHINE/sessions/SESSION/...     the same of a session; disks are written where each byte has one place
//! ```

use crate::name::file_name;
use crate::open_file::Source;
use crate::tree::{Entry, EntryKind, Node, NodeKind, Space, Tree};
use blocks::{Error, ErrorKind, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

const STATE: &str = ".understudy";
const LATEST: &str = "latest";
const CHECKPOINTS: &str = "checkpoints";
const SESSIONS: &str = "sessions";
/// How long a list of checkpoints is taken for what it was.
const REMEMBERED: Duration = Duration::from_secs(1);

/// What there is to show. Called from many threads at once.
pub trait Catalogue: Send + Sync + 'static {
    /// The identities of the machines and what they are called.
    fn machines(&self) -> Result<Vec<(String, String)>>;

    /// A machine's checkpoints, oldest first. Names are good as they are, and no two are equal.
    fn checkpoints(&self, machine: &str) -> Result<Vec<Moment>>;

    /// A machine's sessions that have disks.
    fn sessions(&self, machine: &str) -> Result<Vec<Run>>;

    /// The files of a checkpoint or session. Must not cost more than a look at what is in memory.
    fn members(&self, place: &Place) -> Result<Vec<Member>>;

    /// The length of such a file.
    fn len(&self, place: &Place, name: &str) -> Result<u64>;

    /// What such a file holds; as [`Tree::open`].
    fn open(&self, place: &Place, name: &str, writable: bool) -> Result<Source>;

    /// The whole state as JSON.
    fn state(&self) -> Result<String>;

    /// The room of the store.
    fn space(&self) -> Result<Space>;
}

/// A checkpoint in a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moment {
    /// The folder's name.
    pub name: String,
    /// What the catalogue knows it by.
    pub number: u64,
    /// When it was taken.
    pub time: SystemTime,
    /// It may be the one that `latest` leads to; of several the last one is.
    pub on_main_line: bool,
}

/// A session in a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Its identity, which is the folder's name.
    pub name: String,
    /// When the checkpoint that it began with was taken.
    pub time: SystemTime,
}

/// A checkpoint or a session of a machine.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// A checkpoint.
    Checkpoint {
        /// The machine's identity.
        machine: String,
        /// The checkpoint's.
        number: u64,
    },
    /// A session.
    Session {
        /// The machine's identity.
        machine: String,
        /// The session's.
        session: String,
    },
}

/// A file of a checkpoint or session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Good as it is.
    pub name: String,
    /// Whether it can be written.
    pub writable: bool,
}

/// The tree over a catalogue.
pub struct Datastore<C> {
    catalogue: C,
    mounted: SystemTime,
    lists: Mutex<HashMap<String, (Instant, Arc<List>)>>,
}

/// A machine's checkpoints.
struct List {
    moments: Vec<Moment>,
    by_name: HashMap<String, usize>,
}

impl List {
    fn latest(&self) -> Option<&Moment> {
        self.moments.iter().rev().find(|moment| moment.on_main_line)
    }

    fn get(&self, name: &str) -> Option<&Moment> {
        self.by_name.get(name).and_then(|at| self.moments.get(*at))
    }
}

/// What a path means.
enum Meaning {
    Root,
    State,
    Machine(String),
    Latest(String),
    Checkpoints(String),
    Sessions(String),
    Place(Place, SystemTime),
    File(Place, SystemTime, Member),
}

impl<C: Catalogue> Datastore<C> {
    /// A tree that shows what the catalogue has.
    pub fn new(catalogue: C) -> Datastore<C> {
        Datastore { catalogue, mounted: SystemTime::now(), lists: Mutex::default() }
    }

    /// Folders and the identities of their machines. Where a machine's name is none for a folder, or another has it, the
    /// identity is.
    fn machines(&self) -> Result<BTreeMap<String, String>> {
        let mut folders = BTreeMap::new();
        for (identity, name) in self.catalogue.machines()? {
            let folder = file_name(&name).filter(|folder| !folders.contains_key(folder));
            folders.insert(folder.unwrap_or_else(|| identity.clone()), identity);
        }
        Ok(folders)
    }

    fn list_of(&self, machine: &str) -> Result<Arc<List>> {
        let lists = || self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, list)) = lists().get(machine)
            && at.elapsed() < REMEMBERED
        {
            return Ok(list.clone());
        }
        let moments = self.catalogue.checkpoints(machine)?;
        let by_name = moments.iter().enumerate().map(|(at, moment)| (moment.name.clone(), at)).collect();
        let list = Arc::new(List { moments, by_name });
        let mut lists = lists();
        lists.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
        lists.insert(machine.to_owned(), (Instant::now(), list.clone()));
        Ok(list)
    }

    fn meaning(&self, path: &str) -> Result<Option<Meaning>> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let machine = match parts.first() {
            None => return Ok(Some(Meaning::Root)),
            Some(&STATE) => return Ok((parts.len() == 1).then_some(Meaning::State)),
            Some(folder) => match self.machines()?.remove(*folder) {
                Some(machine) => machine,
                None => return Ok(None),
            },
        };
        Ok(match parts[1..] {
            [] => Some(Meaning::Machine(machine)),
            [LATEST] => self.list_of(&machine)?.latest().map(|_| Meaning::Latest(machine)),
            [CHECKPOINTS] => Some(Meaning::Checkpoints(machine)),
            [SESSIONS] => Some(Meaning::Sessions(machine)),
            [group, name] => {
                self.place(machine, group, name)?.map(|(place, time)| Meaning::Place(place, time))
            }
            [group, name, file] => match self.place(machine, group, name)? {
                Some((place, time)) => {
                    let members = self.catalogue.members(&place)?;
                    let member = members.into_iter().find(|member| member.name == file);
                    member.map(|member| Meaning::File(place, time, member))
                }
                None => None,
            },
            _ => None,
        })
    }

    fn place(&self, machine: String, group: &str, name: &str) -> Result<Option<(Place, SystemTime)>> {
        match group {
            CHECKPOINTS => {
                let list = self.list_of(&machine)?;
                let found = list.get(name).map(|moment| (moment.number, moment.time));
                Ok(found.map(|(number, time)| (Place::Checkpoint { machine, number }, time)))
            }
            SESSIONS => {
                let run = self.catalogue.sessions(&machine)?.into_iter().find(|run| run.name == name);
                Ok(run.map(|run| (Place::Session { machine, session: run.name }, run.time)))
            }
            _ => Ok(None),
        }
    }
}

fn missing(path: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no {path:?}"))
}

fn count(folders: usize) -> NodeKind {
    NodeKind::Folder { folders: u32::try_from(folders).unwrap_or(u32::MAX) }
}

fn folders<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Entry> {
    let entry = |name: &str| Entry { name: name.to_owned(), kind: EntryKind::Folder };
    names.into_iter().map(entry).collect()
}

impl<C: Catalogue> Tree for Datastore<C> {
    fn node(&self, path: &str) -> Result<Option<Node>> {
        let Some(meaning) = self.meaning(path)? else { return Ok(None) };
        let (kind, modified) = match meaning {
            Meaning::Root => (count(self.machines()?.len()), self.mounted),
            Meaning::State => {
                let len = self.catalogue.state()?.len() as u64;
                (NodeKind::File { len, writable: false, made_anew: true }, SystemTime::now())
            }
            Meaning::Machine(machine) => {
                let modified = self.list_of(&machine)?.latest().map_or(self.mounted, |moment| moment.time);
                (count(2), modified)
            }
            Meaning::Latest(machine) => {
                let list = self.list_of(&machine)?;
                let moment = list.latest().ok_or_else(|| missing(path))?;
                (NodeKind::Link { len: link_to(moment).len() as u64 }, moment.time)
            }
            Meaning::Checkpoints(machine) => {
                let list = self.list_of(&machine)?;
                let modified = list.moments.last().map_or(self.mounted, |moment| moment.time);
                (count(list.moments.len()), modified)
            }
            Meaning::Sessions(machine) => (count(self.catalogue.sessions(&machine)?.len()), self.mounted),
            Meaning::Place(_, time) => (count(0), time),
            Meaning::File(place, time, Member { name, writable }) => {
                let len = self.catalogue.len(&place, &name)?;
                (NodeKind::File { len, writable, made_anew: false }, time)
            }
        };
        Ok(Some(Node { kind, modified }))
    }

    fn list(&self, path: &str) -> Result<Vec<Entry>> {
        let file = |name: String| Entry { name, kind: EntryKind::File };
        Ok(match self.meaning(path)?.ok_or_else(|| missing(path))? {
            Meaning::Root => {
                let mut entries = folders(self.machines()?.keys().map(String::as_str));
                entries.push(file(STATE.to_owned()));
                entries
            }
            Meaning::Machine(machine) => {
                let mut entries = folders([CHECKPOINTS, SESSIONS]);
                if self.list_of(&machine)?.latest().is_some() {
                    entries.push(Entry { name: LATEST.to_owned(), kind: EntryKind::Link });
                }
                entries
            }
            Meaning::Checkpoints(machine) => {
                folders(self.list_of(&machine)?.moments.iter().map(|moment| moment.name.as_str()))
            }
            Meaning::Sessions(machine) => {
                folders(self.catalogue.sessions(&machine)?.iter().map(|run| run.name.as_str()))
            }
            Meaning::Place(place, _) => {
                self.catalogue.members(&place)?.into_iter().map(|member| file(member.name)).collect()
            }
            Meaning::State | Meaning::Latest(_) | Meaning::File(..) => return Err(missing(path)),
        })
    }

    fn target(&self, path: &str) -> Result<String> {
        match self.meaning(path)? {
            Some(Meaning::Latest(machine)) => {
                let list = self.list_of(&machine)?;
                list.latest().map(link_to).ok_or_else(|| missing(path))
            }
            _ => Err(missing(path)),
        }
    }

    fn open(&self, path: &str, writable: bool) -> Result<Source> {
        match self.meaning(path)? {
            Some(Meaning::File(_, _, member)) if writable && !member.writable => read_only(path),
            Some(Meaning::File(place, _, member)) => self.catalogue.open(&place, &member.name, writable),
            Some(Meaning::State) if writable => read_only(path),
            Some(Meaning::State) => Ok(Source::Bytes(self.catalogue.state()?.into_bytes())),
            _ => Err(missing(path)),
        }
    }

    fn space(&self) -> Result<Space> {
        self.catalogue.space()
    }
}

fn link_to(moment: &Moment) -> String {
    format!("{CHECKPOINTS}/{}", moment.name)
}

fn read_only<T>(path: &str) -> Result<T> {
    Err(Error::new(ErrorKind::ReadOnly, format!("{path:?} is only read")))
}
