//! A running server: the real store, sessions and ingest, and its ends of the connections.

use super::network::Link;
use crate::agent::{Agents, Deadlines, Registry, SteppedAgent, SteppedIngest};
use crate::session::{Context, Sessions, SessionsOptions};
use blocks::{ByteLen, Result, Storage};
use nbd_server::Exports;
use std::sync::Arc;
use std::time::Duration;
use store::testing::CrashStorage;
use store::{Compression, ImageFormat, Store, StoreOptions, Unit};
use wire::{AgentMessage, Receiver, Sender, ServerMessage};

/// What the store keeps free, where the storage has a bound.
pub(super) const RESERVE: ByteLen = ByteLen::new(512 << 10);

pub(super) struct Host {
    // Dropped in this order: connections, then what they use.
    pub ends: Vec<ServerEnd>,
    pub sessions: Arc<Sessions>,
    pub registry: Registry,
    pub store: Arc<Store>,
}

/// The server's end of a connection.
pub(super) struct ServerEnd {
    pub machine: usize,
    pub sender: Sender<ServerMessage>,
    pub receiver: Receiver<AgentMessage>,
    pub agent: Option<SteppedAgent>,
    pub ingest: Option<SteppedIngest>,
    pub unit: Option<Arc<Unit>>,
    /// It is over, and goes at the next look.
    pub over: bool,
}

impl ServerEnd {
    pub fn new(machine: usize, link: &Link) -> ServerEnd {
        let (sender, receiver) = link.server_end().split();
        ServerEnd { machine, sender, receiver, agent: None, ingest: None, unit: None, over: false }
    }
}

/// Small enough that parts, merges and evictions happen in a short history. Half of the histories, those with VHDs, have
/// compressed logs: always and not where it pays, which is measured with a clock that nobody simulates.
pub(super) fn open_store(storage: &CrashStorage, image_format: ImageFormat) -> Result<Arc<Store>> {
    let options = StoreOptions {
        reserve: RESERVE,
        part_extents_max: 12,
        part_log_bytes_max: ByteLen::new(256 << 10),
        long_write: ByteLen::new(1 << 10),
        index_cache: ByteLen::new(64 << 10),
        merge_in_background: false,
        compress: if image_format == ImageFormat::Vhd { Compression::Always } else { Compression::Never },
        guests: Arc::default(),
    };
    Store::open(Arc::new(storage.clone()), options).map(Arc::new)
}

pub(super) fn open_host(
    storage: &CrashStorage,
    store: Arc<Store>,
    boot: u64,
    image_format: ImageFormat,
) -> Result<Host> {
    let options = SessionsOptions {
        exports: Exports::new(),
        listeners: Vec::new(),
        encrypted: false,
        storage: Arc::new(storage.clone()) as Arc<dyn Storage>,
        boot: format!("boot-{boot}"),
    };
    let mut context = Context::new(options);
    context.stepped = true;
    context.mark_bytes = ByteLen::new(128 << 10);
    let sessions = Sessions::open_in(store.clone(), context)?;
    let deadlines = Deadlines { late: Duration::from_secs(10), failed: Duration::from_secs(15) };
    let agents = Arc::new(Agents::new(deadlines));
    agents.set_charge(sessions.clone());
    for unit in store.units() {
        agents.machine(unit.machine());
    }
    let registry = Registry { store: store.clone(), agents, image_format: Some(image_format) };
    Ok(Host { ends: Vec::new(), sessions, registry, store })
}
