//! From an accepted socket to a welcomed agent, or to a refusal.

use super::context::{AgentContext, Registry};
use super::conversation::{self, Conversation};
use super::gaps;
use super::handle::{AgentHandle, HandleEnds};
use super::machine::Machine;
use super::registration::{Decision, cannot_grow, decide, refusal};
use blocks::{ByteLen, Error, ErrorKind, MachineId, Result, crash_point};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::Unit;
use wire::{
    AgentMessage, Hello, Incoming, Peer, Refusal, RefusalKind, ServerConnection, ServerMessage, StartFrom,
    Welcome,
};

/// How long an agent may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a message may wait for the agent to read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the connection before this one may take to end.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of a hello.
pub(super) type Answer<T> = std::result::Result<T, Refusal>;

/// An agent that has its machine's place.
pub(super) struct Admitted {
    pub machine: Arc<Machine>,
    pub unit: Arc<Unit>,
    pub handle: AgentHandle,
    pub ends: HandleEnds,
    pub welcome: Welcome,
    pub starts: Vec<StartFrom>,
}

/// Serves one connection to its end. What goes wrong is logged here; nobody else waits for it.
pub(crate) async fn serve(context: Arc<AgentContext>, incoming: Incoming) {
    let acceptor = context.authority.tls_acceptor();
    match wire::accept(incoming, Some(&acceptor)).await {
        Ok((connection, peer)) => {
            if let Err(error) = greet(context, connection, peer).await {
                tracing::warn!(%error, "an agent's connection ended");
            }
        }
        Err(error) => tracing::warn!(%error, "a connection came to nothing"),
    }
}

async fn greet(context: Arc<AgentContext>, mut connection: ServerConnection, peer: Peer) -> Result<()> {
    connection.set_write_timeout(Some(WRITE_TIMEOUT));
    let first = tokio::time::timeout(HELLO_TIMEOUT, connection.recv()).await;
    let first = first.map_err(|_| Error::new(ErrorKind::Cancelled, "no hello came in time"))??;
    match first {
        None => Ok(()),
        Some(AgentMessage::Enroll(request)) => {
            let answer = blocking(move || Ok(context.authority.answer(&request))).await?;
            connection.send(&answer).await?;
            connection.close().await
        }
        Some(AgentMessage::Hello(hello)) => match admit(&context, &peer, hello).await {
            Ok((admitted, hello)) => {
                tracing::info!(machine = %admitted.machine.id(), name = admitted.handle.name(), role = ?admitted.welcome.role, "welcome");
                connection.send(&ServerMessage::Welcome(admitted.welcome.clone())).await.inspect_err(
                    |_| {
                        admitted.machine.leave_place(&admitted.handle, false, Instant::now());
                    },
                )?;
                Conversation::start(context, peer, admitted, &hello, connection).await?.run().await
            }
            Err(refusal) => {
                tracing::warn!(kind = ?refusal.kind, reason = refusal.reason, "an agent was refused");
                connection.send(&ServerMessage::Refused(refusal)).await?;
                connection.close().await
            }
        },
        Some(_) => Err(Error::new(ErrorKind::InvalidInput, "the first message was no hello")),
    }
}

/// Decides about a hello, and where it is welcome gives it its machine's place.
async fn admit(context: &Arc<AgentContext>, peer: &Peer, hello: Hello) -> Answer<(Admitted, Hello)> {
    let (machine, handle, ends, before, hello) = take_place(context, peer, hello).await?;
    let admitted = welcome(context, &hello, &machine, before).await;
    match admitted {
        Ok((unit, welcome, starts)) => Ok((Admitted { machine, unit, handle, ends, welcome, starts }, hello)),
        Err(refusal) => {
            machine.leave_place(&handle, false, Instant::now());
            Err(refusal)
        }
    }
}

type Placed = (Arc<Machine>, AgentHandle, HandleEnds, Option<AgentHandle>, Hello);

async fn take_place(context: &Arc<AgentContext>, peer: &Peer, mut hello: Hello) -> Answer<Placed> {
    let _turn = context.registering.lock().await;
    if let Peer::Machine(identity) = peer {
        hello.machine = hello.machine.or(identity.machine);
    }
    let (id, hello) = {
        let (context, peer) = (context.clone(), peer.clone());
        blocking(move || Ok(identify(&context, &peer, &hello).map(|id| (id, hello))))
            .await
            .map_err(busy)??
    };
    let (handle, ends) = AgentHandle::new(id, &hello);
    let machine = context.registry.agents.machine(id);
    match machine.take_place(handle.clone(), Instant::now()) {
        Ok(before) => Ok((machine, handle, ends, before, hello)),
        Err(_) => {
            let reason = format!("an agent of '{}' is connected already", hello.name);
            Err(refusal(RefusalKind::Taken, reason))
        }
    }
}

/// Which machine the hello comes from, registering it where it is new.
fn identify(context: &AgentContext, peer: &Peer, hello: &Hello) -> Answer<MachineId> {
    let authorized = context.authority.authorize(peer, &hello.name, hello.machine);
    authorized.map_err(|error| refusal(RefusalKind::Identity, error.to_string()))?;
    let machine = find_or_register(&context.registry, hello)?;
    context.authority.bind(peer, machine).map_err(busy)?;
    Ok(machine)
}

/// The machine that the hello is about, registered where it is new. Whoever calls has asked who may speak for it.
pub(super) fn find_or_register(registry: &Registry, hello: &Hello) -> Answer<MachineId> {
    match decide(hello, &registry.knowledge(hello, false).map_err(busy)?) {
        Decision::Refuse(refusal) => Err(refusal),
        Decision::Welcome { machine, .. } | Decision::Grow { machine, .. } => Ok(machine),
        Decision::Register(machine) => {
            let unit = registry.register(hello, machine).map_err(busy)?;
            crash_point("register.published");
            tracing::info!(machine = %unit.machine(), name = hello.name, "registered");
            Ok(unit.machine())
        }
    }
}

pub(super) type Welcomed = (Arc<Unit>, Welcome, Vec<StartFrom>);

/// The welcome, once nothing more is appended for the connection that had the place before.
async fn welcome(
    context: &Arc<AgentContext>,
    hello: &Hello,
    machine: &Arc<Machine>,
    before: Option<AgentHandle>,
) -> Answer<Welcomed> {
    if let Some(before) = before {
        let reason = "another connection of this machine has taken its place";
        let ended = before.end(refusal(RefusalKind::Taken, reason));
        if tokio::time::timeout(PREDECESSOR_TIMEOUT, ended).await.is_err() {
            let reason = "the connection before this one is still being ended; try again";
            return Err(refusal(RefusalKind::Busy, reason));
        }
    }
    let (context, hello, id) = (context.clone(), hello.clone(), machine.id());
    blocking(move || Ok(welcome_to(&context.registry, hello, id))).await.map_err(busy)?
}

/// The welcome of a machine that nothing is appended for any more.
pub(super) fn welcome_to(registry: &Registry, mut hello: Hello, id: MachineId) -> Answer<Welcomed> {
    hello.machine = Some(id);
    let removed = || busy(Error::new(ErrorKind::NotFound, format!("machine {id} was removed")));
    let (unit, store) = (registry.store.unit(id).ok_or_else(removed)?, registry.store.id());
    let mut decision = decide(&hello, &registry.knowledge(&hello, true).map_err(busy)?);
    if let Decision::Grow { lens, .. } = &decision {
        grow(&unit, &hello, lens)?;
        decision = decide(&hello, &registry.knowledge(&hello, true).map_err(busy)?);
    }
    match decision {
        Decision::Welcome { machine, generation, role, disks } => {
            let starts = disks.iter().map(|disk| disk.start).collect();
            Ok((unit, Welcome { store, machine, generation, role, disks }, starts))
        }
        Decision::Refuse(refusal) => Err(refusal),
        Decision::Register(_) => Err(refusal(RefusalKind::Busy, "the machine was removed meanwhile")),
        Decision::Grow { .. } => Err(refusal(RefusalKind::Busy, "the machine's disks have just changed")),
    }
}

/// The unit's disks become as long as the machine's are. What lies behind the old end comes with the scan; until a
/// checkpoint has it, every welcome asks for one.
fn grow(unit: &Unit, hello: &Hello, lens: &[ByteLen]) -> Answer<()> {
    let before = unit.disks();
    unit.grow(lens).map_err(|error| match error.kind() {
        ErrorKind::Unsupported => cannot_grow(&error),
        _ => busy(error),
    })?;
    crash_point("grow.followed");
    let changes = before.iter().zip(&hello.disks).enumerate().filter(|(_, (old, new))| new.len > old.len);
    for (index, (old, new)) in changes {
        let cause = format!("disk {index} ({}) has grown from {} to {} bytes", new.device, old.len, new.len);
        tracing::info!(machine = %unit.machine(), name = hello.name, "{cause}");
        gaps::begin(unit, &format!("{cause}: it is hashed as a whole")).map_err(busy)?;
    }
    Ok(())
}

fn busy(error: Error) -> Refusal {
    tracing::error!(%error, "an agent could not be welcomed");
    refusal(RefusalKind::Busy, error.to_string())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    conversation::blocking(work).await
}
