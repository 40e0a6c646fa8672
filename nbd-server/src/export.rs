//! What is served: names and the volumes behind them.

use crate::metadata::Metadata;
use crate::protocol::STRING_BYTES_MAX;
use crate::traffic::{Counters, ExportTraffic, Peer, Visitors};
use blocks::{ByteAccess, ByteLen, Error, ErrorKind, Result, Volume};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Called with the number of connected clients each time it changes. Must not block.
pub type ClientHook = Arc<dyn Fn(usize) + Send + Sync>;

/// Asked for each client that wants to enter the transmission phase, and dropped when it has left. An error turns the
/// client away with its words. Must not block.
pub type Gate = Arc<dyn Fn() -> Result<Pass> + Send + Sync>;

/// What a gate gives a client to keep as long as it is there.
pub type Pass = Box<dyn Send + Sync>;

/// What an export is made of.
pub(crate) struct Backing {
    pub disk: ByteAccess,
    pub metadata: Option<Arc<dyn Metadata>>,
}

/// A volume as it is offered.
pub struct Export {
    /// `None` once removed. A request holds the lock, shared, while it is with the volume, so that whoever has taken
    /// the volume away knows that nobody uses it any more.
    backing: RwLock<Option<Backing>>,
    len: ByteLen,
    preferred_block_bytes: u32,
    description: String,
    read_only: bool,
    hidden: bool,
    clients: AtomicUsize,
    visitors: Visitors,
    client_hook: Option<ClientHook>,
    /// Held while the number changes and the hook hears of it.
    hook_turn: Mutex<()>,
    gate: Option<Gate>,
}

/// One line of the list of exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// What clients ask for.
    pub name: String,
    /// For a person.
    pub description: String,
    /// The size of the disk.
    pub len: ByteLen,
    /// Whether changes are refused.
    pub read_only: bool,
    /// Whether clients are not told of it.
    pub hidden: bool,
    /// How many connections are in the transmission phase.
    pub clients: usize,
}

impl Export {
    /// Offers this volume; read-only where the volume is.
    pub fn new(volume: Arc<dyn Volume>) -> Export {
        let preferred = volume.alignment().bytes().clamp(4096, 32 << 20);
        Export {
            len: volume.len(),
            preferred_block_bytes: u32::try_from(preferred).unwrap_or(4096),
            read_only: volume.is_read_only(),
            backing: RwLock::new(Some(Backing { disk: ByteAccess::new(volume), metadata: None })),
            hidden: false,
            description: String::new(),
            clients: AtomicUsize::new(0),
            visitors: Visitors::default(),
            client_hook: None,
            hook_turn: Mutex::default(),
            gate: None,
        }
    }

    /// Adds a line for people; cut at 4096 bytes, the protocol's limit.
    #[must_use]
    pub fn with_description(mut self, description: impl Into<String>) -> Export {
        self.description = description.into();
        let mut end = self.description.len().min(STRING_BYTES_MAX);
        while !self.description.is_char_boundary(end) {
            end -= 1;
        }
        self.description.truncate(end);
        self
    }

    /// Refuses every change, whatever the volume would say.
    #[must_use]
    pub fn read_only(mut self) -> Export {
        self.read_only = true;
        self
    }

    /// Leaves it out of the list that clients get; who knows its name may open it.
    #[must_use]
    pub fn hidden(mut self) -> Export {
        self.hidden = true;
        self
    }

    /// Adds metadata contexts to those that every export has. Must be about the same volume.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Arc<dyn Metadata>) -> Export {
        let backing = self.backing.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(backing) = backing {
            backing.metadata = Some(metadata);
        }
        self
    }

    /// Has `hook` called with the number of clients each time it changes, in that order.
    #[must_use]
    pub fn with_client_hook(mut self, hook: ClientHook) -> Export {
        self.client_hook = Some(hook);
        self
    }

    /// Has `gate` asked whether a client may enter.
    #[must_use]
    pub fn with_gate(mut self, gate: Gate) -> Export {
        self.gate = Some(gate);
        self
    }

    /// Lets a client in, as far as the gate does.
    pub(crate) fn enter(&self) -> Result<Option<Pass>> {
        self.gate.as_ref().map(|gate| gate()).transpose()
    }

    /// The size of the disk.
    pub fn len(&self) -> ByteLen {
        self.len
    }

    /// Whether the disk has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len.is_zero()
    }

    /// Whether changes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn description(&self) -> &str {
        &self.description
    }

    pub(crate) fn preferred_block_bytes(&self) -> u32 {
        self.preferred_block_bytes
    }

    /// The shortest write that the volume may take from the socket itself, as it is now.
    pub(crate) fn arrived_len_min(&self) -> Option<ByteLen> {
        self.with_disk(ByteAccess::arrived_len_min).flatten()
    }

    /// Runs `work` on the disk; `None` once the export is removed. `work` must not send anything: removing waits for it.
    pub(crate) fn with_disk<T>(&self, work: impl FnOnce(&ByteAccess) -> T) -> Option<T> {
        self.with_backing(|backing| work(&backing.disk))
    }

    /// The same with all that the export is made of.
    pub(crate) fn with_backing<T>(&self, work: impl FnOnce(&Backing) -> T) -> Option<T> {
        self.backing.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(work)
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.backing.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Takes the volume away and waits until no request is with it.
    fn remove(&self) {
        self.backing.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Counts a client until the returned guard is dropped.
    pub(crate) fn connect(self: &Arc<Export>, connection: u64, peer: Peer, pass: Option<Pass>) -> Client {
        self.count(|clients| clients.fetch_add(1, Ordering::SeqCst) + 1);
        let counters = self.visitors.enter(connection, peer);
        Client { export: self.clone(), connection, counters, _pass: pass }
    }

    fn count(&self, change: impl FnOnce(&AtomicUsize) -> usize) {
        let _turn = self.hook_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let clients = change(&self.clients);
        if let Some(hook) = &self.client_hook {
            hook(clients);
        }
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("len", &self.len)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

/// A connected client of an export.
pub(crate) struct Client {
    export: Arc<Export>,
    connection: u64,
    counters: Arc<Counters>,
    _pass: Option<Pass>,
}

impl Client {
    pub(crate) fn export(&self) -> &Export {
        &self.export
    }

    /// Where its requests are counted.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.export.visitors.leave(self.connection);
        self.export.count(|clients| clients.fetch_sub(1, Ordering::SeqCst) - 1);
    }
}

/// The table of exports: cheap to clone, every clone is the same table. May change while it is served.
#[derive(Debug, Clone, Default)]
pub struct Exports {
    table: Arc<RwLock<BTreeMap<String, Arc<Export>>>>,
}

impl Exports {
    /// An empty table.
    pub fn new() -> Exports {
        Exports::default()
    }

    /// Offers `export` as `name`; the empty name is what a client gets that asks for none. Errors: the name is taken,
    /// longer than 4096 bytes or contains NUL.
    pub fn insert(&self, name: impl Into<String>, export: Export) -> Result<()> {
        let name = name.into();
        if name.len() > STRING_BYTES_MAX || name.contains('\0') {
            let context =
                format!("an export's name has up to 4096 bytes and no NUL: '{}'", name.escape_debug());
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.contains_key(&name) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("there is an export '{name}' already")));
        }
        table.insert(name, Arc::new(export));
        Ok(())
    }

    /// Ends the export: returns when no request is with its volume any more and the volume has been let go. Requests
    /// that come later get `ESHUTDOWN`, and their connections end. Whether there was one of that name.
    pub fn remove(&self, name: &str) -> bool {
        let removed = self.table.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(export) = &removed {
            export.remove();
        }
        removed.is_some()
    }

    /// What is offered, by name.
    pub fn list(&self) -> Vec<ExportInfo> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let info = |(name, export): (&String, &Arc<Export>)| ExportInfo {
            name: name.clone(),
            description: export.description.clone(),
            len: export.len,
            read_only: export.read_only,
            hidden: export.hidden,
            clients: export.clients.load(Ordering::SeqCst),
        };
        table.iter().map(info).collect()
    }

    /// What clients did, by export. A removed export is forgotten with what it counted.
    pub fn traffic(&self) -> Vec<ExportTraffic> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner).clone();
        table.into_iter().map(|(name, export)| export.visitors.look(name)).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Export>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}
