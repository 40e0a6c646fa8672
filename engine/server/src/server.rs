//! A server's life: what it opens, in which order, and how it ends.

use crate::agent::{self, AgentContext, Agents, Deadlines, Registry};
use crate::authority::Authority;
use crate::config::ServerConfig;
use crate::control::listener as control;
use crate::datastore::Mounts;
use crate::drill;
use crate::retention;
use crate::scrub;
use crate::services::{Services, Turns};
use crate::session::{Sessions, SessionsOptions, host_boot};
use crate::stand_in::{self, StandIns};
use crate::stop::{Stop, StopSender, stop};
use crate::takeover;
use blocks::{Error, ErrorKind, Result, Storage};
use nbd_server::{Exports, ListenAddress, NbdServer};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{HostStorage, Store};
use tokio::task::{JoinHandle, JoinSet};
use wire::{Address, Refusal, RefusalKind};

/// How often silence is looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long those that are just connecting may take to finish when the server ends.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);

/// Starts servers.
#[derive(Debug)]
pub struct Server;

/// A server that runs. To be ended with [`RunningServer::shutdown`]; dropping it leaves its tasks to the runtime.
#[derive(Debug)]
pub struct RunningServer {
    services: Arc<Services>,
    nbd: NbdServer,
    agent_addresses: Vec<Address>,
    nbd_addresses: Vec<ListenAddress>,
    stop: StopSender,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Opens the store in the host's folder `config.data` and starts to serve. Call within a tokio runtime. Errors name
    /// what could not be opened; nothing goes on running after one.
    pub async fn start(config: ServerConfig) -> Result<RunningServer> {
        let data = config.data.clone();
        let storage = agent::blocking(move || HostStorage::new(data)).await?;
        Server::start_on(config, Arc::new(storage)).await
    }

    /// The same with the store on any storage; authority and sockets stay in the folder `config.data`.
    pub async fn start_on(config: ServerConfig, storage: Arc<dyn Storage>) -> Result<RunningServer> {
        let exports = Exports::new();
        // A guest that comes back early waits in the listener's queue until its export is there again.
        let (services, nbd) = {
            let config = config.clone();
            agent::blocking(move || {
                let bind = |address| nbd_server::Listener::bind_with_mode(address, config.nbd_socket_mode);
                let mut listeners = nbd_server::Listener::inherited()?;
                for address in &config.nbd {
                    listeners.push(bind(address)?);
                }
                let addresses = listeners.iter().map(|listener| listener.address().clone()).collect();
                let services = open(&config, storage, exports.clone(), addresses)?;
                Ok((services, NbdServer::start_with(listeners, exports, config.nbd_options)?))
            })
            .await?
        };
        let agent_socket = config.agent_socket.clone().map(Address::Unix);
        let mut listeners = Vec::new();
        for address in config.listen.iter().chain(&agent_socket) {
            listeners.push(wire::Listener::bind(address).await?);
        }
        let socket = wire::Listener::bind(&Address::Unix(config.control_socket())).await?;
        let found = services.clone();
        let interrupted = agent::blocking(move || Ok(drill::Interrupted::find(&found))).await?;
        // From here on nothing can fail any more.
        let (stop, stopping) = stop();
        let agent_addresses: Vec<_> = listeners.iter().map(|listener| listener.address().clone()).collect();
        let agents = |listener| tokio::spawn(accept_agents(services.clone(), listener, stopping.clone()));
        let mut tasks: Vec<_> = listeners.into_iter().map(agents).collect();
        tasks.push(tokio::spawn(control::run(services.clone(), socket, stopping.clone())));
        takeover::prepare(&services);
        tasks.push(tokio::spawn(stand_in::run(services.clone(), stopping.clone())));
        tasks.push(tokio::spawn(drill::run(services.clone(), interrupted, stopping.clone())));
        tasks.push(tokio::spawn(retention::run(services.clone(), stopping.clone())));
        if let Some(every) = config.scrub_every {
            tasks.push(tokio::spawn(scrub::run(services.clone(), every, stopping.clone())));
        }
        tasks.push(tokio::spawn(watch_silence(services.clone(), stopping)));
        let nbd_addresses = nbd.addresses().to_vec();
        tracing::info!(store = %services.store.id(), agents = ?agent_addresses, nbd = ?nbd_addresses, "serving");
        Ok(RunningServer { services, nbd, agent_addresses, nbd_addresses, stop, tasks })
    }
}

impl RunningServer {
    /// Where agents connect, ports as chosen.
    pub fn agent_addresses(&self) -> &[Address] {
        &self.agent_addresses
    }

    /// Where disks are served, ports as chosen.
    pub fn nbd_addresses(&self) -> &[ListenAddress] {
        &self.nbd_addresses
    }

    /// The store's identity.
    pub fn store_id(&self) -> blocks::StoreId {
        self.services.store.id()
    }

    /// Ends in order: no new connections, agents are told and what they sent is committed, requests of guests are
    /// answered, background work stops where it can go on later. An error says what did not end in time.
    pub async fn shutdown(self) -> Result<()> {
        let RunningServer { services, nbd, stop, tasks, .. } = self;
        stop.say();
        services.agents.end_all(&farewell()).await;
        for task in tasks {
            if task.await.is_err() {
                tracing::error!("a task of the server panicked");
            }
        }
        let (drained, services) = agent::blocking(move || {
            services.mounts.end_all();
            Ok((nbd.shutdown(), services))
        })
        .await?;
        // Sessions flush their disks and stop their background work when the last one lets them go.
        agent::blocking(move || {
            drop(services);
            Ok(())
        })
        .await?;
        drained
    }
}

fn farewell() -> Refusal {
    Refusal { kind: RefusalKind::Shutdown, reason: "the server is shutting down".into() }
}

/// Opens what is on the medium: the store first, which claims the folder.
fn open(
    config: &ServerConfig,
    storage: Arc<dyn Storage>,
    exports: Exports,
    nbd_addresses: Vec<ListenAddress>,
) -> Result<Arc<Services>> {
    check_data(&config.data)?;
    let store = Arc::new(Store::open(storage.clone(), config.store.clone())?);
    for finding in store.findings() {
        tracing::warn!("{finding}");
    }
    for (machine, why) in store.damaged_units() {
        tracing::error!(%machine, "this unit cannot be opened: {why}");
    }
    let authority = Arc::new(Authority::open(&config.data.join("authority"))?);
    let options = SessionsOptions {
        exports: exports.clone(),
        listeners: nbd_addresses,
        encrypted: config.nbd_options.is_encryption_required(),
        storage,
        boot: host_boot()?,
    };
    let sessions = Sessions::open(store.clone(), options)?;
    let failed = config.heartbeat_deadline;
    let deadlines = Deadlines { late: failed * 2 / 3, failed };
    let agents = Arc::new(Agents::new(deadlines));
    agents.set_charge(sessions.clone());
    for unit in store.units() {
        agents.machine(unit.machine());
    }
    let registry =
        Registry { store: store.clone(), agents: agents.clone(), image_format: config.image_format };
    let agent_context = Arc::new(AgentContext {
        registry,
        authority: authority.clone(),
        deadlines,
        registering: tokio::sync::Mutex::new(()),
    });
    let data =
        std::path::absolute(&config.data).map_err(|error| Error::io("the data folder's path", error))?;
    let stand_ins = StandIns::new(sessions.clone(), config.hypervisor.clone(), data.join("stand-ins"));
    let (consolidating, guests) = (Turns::default(), config.store.guests.clone());
    let (scrub_rate, consolidate_rate) = (config.scrub_rate, config.consolidate_rate);
    Ok(Arc::new(Services {
        data,
        store,
        agents,
        agent_context,
        authority,
        sessions,
        stand_ins: Arc::new(stand_ins),
        exports,
        arrivals: config.nbd_options.arrivals.clone(),
        mounts: Mounts::default(),
        consolidating,
        keep: config.keep.clone(),
        guests,
        consolidate_rate,
        scrub_rate,
    }))
}

fn check_data(data: &Path) -> Result<()> {
    match std::fs::metadata(data) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::new(ErrorKind::InvalidInput, format!("{} is no folder", data.display()))),
        Err(error) => Err(Error::io(format!("the data folder {}", data.display()), error)),
    }
}

async fn accept_agents(services: Arc<Services>, listener: wire::Listener, mut stop: Stop) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.heard() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok(incoming) => drop(connections.spawn(agent::serve(services.agent_context.clone(), incoming))),
                Err(error) => {
                    // Out of descriptors, most likely: others end soon.
                    tracing::warn!(%error, "no connection could be accepted");
                    tokio::time::sleep(TICK).await;
                }
            }
        }
    }
    // Those that have a machine's place are told to end, also those that got it just now; whoever is still greeting
    // after that is cut off, having been promised nothing.
    let deadline = Instant::now() + GREETING_PATIENCE;
    while Instant::now() < deadline {
        services.agents.end_all(&farewell()).await;
        if let Ok(None) = tokio::time::timeout(TICK, connections.join_next()).await {
            return;
        }
    }
    connections.shutdown().await;
}

/// Lets time pass for every machine, and notes the gap when one falls silent.
async fn watch_silence(services: Arc<Services>, mut stop: Stop) {
    let mut responses = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.heard() => break,
            Some(_) = responses.join_next() => continue,
            () = tokio::time::sleep(TICK) => {}
        }
        for machine in services.agents.all() {
            let promoted = services.agents.session_in_charge(machine.id()).is_some();
            let ticked = machine.tick(Instant::now(), promoted);
            if !ticked.failed_now {
                continue;
            }
            tracing::warn!(machine = %machine.id(), "not heard of in time: it has failed");
            let Some(unit) = services.store.unit(machine.id()) else { continue };
            if ticked.lost_now {
                let (services, stop) = (services.clone(), stop.clone());
                responses.spawn(takeover::respond(services, unit.clone(), machine.clone(), stop));
            }
            if let Err(error) = agent::blocking(move || agent::begin_gap(&unit, agent::SILENT)).await {
                tracing::error!(%error, machine = %machine.id(), "the gap could not be recorded");
            }
        }
    }
    while responses.join_next().await.is_some() {}
}
