//! All machines, connected or not.

use super::handle::AgentHandle;
use super::liveness::Deadlines;
use super::machine::Machine;
use super::registration::refusal;
use blocks::{MachineId, SessionId, monotonic_now};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use wire::{Refusal, RefusalKind};

/// Knows which machines have been promoted.
pub trait Charge: Send + Sync {
    /// The session that is in charge of this machine. Answers from memory.
    fn session_in_charge(&self, machine: MachineId) -> Option<SessionId>;
}

/// The machines of a server.
pub struct Agents {
    deadlines: Deadlines,
    machines: Mutex<BTreeMap<MachineId, Arc<Machine>>>,
    charge: OnceLock<Arc<dyn Charge>>,
}

impl Agents {
    pub(crate) fn new(deadlines: Deadlines) -> Agents {
        Agents { deadlines, machines: Mutex::default(), charge: OnceLock::new() }
    }

    /// Says whom to ask who is in charge; before the first connection, once.
    pub(crate) fn set_charge(&self, charge: Arc<dyn Charge>) {
        if self.charge.set(charge).is_err() {
            tracing::error!("it was said twice whom to ask who is in charge");
        }
    }

    /// The connected agent of a machine.
    pub fn handle(&self, machine: MachineId) -> Option<AgentHandle> {
        self.existing(machine)?.agent()
    }

    /// Ends the connection of a machine's agent after a promotion, and returns once nothing more is appended on its
    /// behalf. It will come back and stand by.
    pub async fn fence(&self, machine: MachineId, reason: &str) {
        if let Some(agent) = self.handle(machine) {
            agent.end(refusal(RefusalKind::Busy, reason)).await;
        }
    }

    pub(crate) fn session_in_charge(&self, machine: MachineId) -> Option<SessionId> {
        self.charge.get()?.session_in_charge(machine)
    }

    /// The machine of that identity, known from now on.
    pub(crate) fn machine(&self, id: MachineId) -> Arc<Machine> {
        let new = || Arc::new(Machine::new(id, monotonic_now(), self.deadlines));
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_insert_with(new).clone()
    }

    pub(crate) fn existing(&self, id: MachineId) -> Option<Arc<Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Forgets a machine that is not connected.
    pub(crate) fn forget(&self, id: MachineId) {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Ends every connection; returns when all have ended.
    pub(crate) async fn end_all(&self, refusal: &Refusal) {
        for machine in self.all() {
            if let Some(agent) = machine.agent() {
                agent.end(refusal.clone()).await;
            }
        }
    }
}

impl std::fmt::Debug for Agents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agents").field("machines", &self.all().len()).finish_non_exhaustive()
    }
}
