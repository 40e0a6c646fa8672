//! What other rooms of the server may ask of a connected agent.

use super::requests::{RequestEvent, Requests};
use super::restore_link::{LinkEnds, RestoreLink, restore_link};
use blocks::{DiskIndex, Error, ErrorKind, Id, MachineId, Result};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};
use wire::{AgentMessage, Hello, Refusal, ServerMessage};

/// How many orders wait for a connection.
const ORDERS: usize = 8;

/// What a connection is asked to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Carry a failback.
    Link(LinkEnds),
    /// Send this.
    Send(ServerMessage),
}

/// A connected agent. Cheap to clone; outliving the connection is fine, every request then fails with `NotFound`.
#[derive(Clone, Debug)]
pub struct AgentHandle {
    machine: MachineId,
    name: Arc<str>,
    boot: Id,
    /// Device and serial number of each of its disks.
    disks: Arc<[(String, String)]>,
    orders: mpsc::Sender<Order>,
    requests: Arc<Requests>,
    /// The answering end of the link in use, if any.
    link: Arc<Mutex<Option<mpsc::WeakSender<AgentMessage>>>>,
    end: watch::Sender<Option<Refusal>>,
    ended: watch::Receiver<bool>,
}

/// The connection's side of a handle.
#[derive(Debug)]
pub(crate) struct HandleEnds {
    /// What is asked of it.
    pub orders: mpsc::Receiver<Order>,
    /// Set when it has to end, with what the agent is told.
    pub end: watch::Receiver<Option<Refusal>>,
    /// Set by the connection when nothing more will be appended on its behalf; dropping it says the same.
    pub ended: watch::Sender<bool>,
    /// Checkpoints that were asked for.
    pub requests: Arc<Requests>,
}

impl AgentHandle {
    pub(crate) fn new(machine: MachineId, hello: &Hello) -> (AgentHandle, HandleEnds) {
        let (orders, orders_end) = mpsc::channel(ORDERS);
        let (end, end_seen) = watch::channel(None);
        let (ended, ended_seen) = watch::channel(false);
        let requests = Arc::new(Requests::default());
        let handle = AgentHandle {
            machine,
            name: hello.name.as_str().into(),
            boot: hello.boot,
            disks: hello.disks.iter().map(|disk| (disk.device.clone(), disk.serial.clone())).collect(),
            orders,
            requests: requests.clone(),
            link: Arc::default(),
            end,
            ended: ended_seen,
        };
        (handle, HandleEnds { orders: orders_end, end: end_seen, ended, requests })
    }

    /// Which machine it is.
    pub fn machine(&self) -> MachineId {
        self.machine
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's boot id that the agent gave.
    pub fn boot(&self) -> Id {
        self.boot
    }

    /// The serial number of each disk as a failback would write them, some onto other devices; empty where it is not known.
    pub fn serials(&self, devices: &[(DiskIndex, String)]) -> Vec<String> {
        let serial = |(index, (own, serial)): (u16, &(String, String))| {
            let named = devices.iter().find(|(disk, _)| disk.0 == index);
            let is_own = named.is_none_or(|(_, device)| device == own);
            if is_own { serial.clone() } else { String::new() }
        };
        (0..).zip(self.disks.iter()).map(serial).collect()
    }

    /// A way to carry a failback. `Busy` while another one has it, `NotFound` where the agent has gone.
    pub fn restore_link(&self) -> Result<RestoreLink> {
        let mut current = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let in_use = current.as_ref().and_then(mpsc::WeakSender::upgrade).is_some_and(|end| !end.is_closed());
        if in_use {
            let context = format!("a failback onto '{}' is already going on", self.name);
            return Err(Error::new(ErrorKind::Busy, context));
        }
        let (link, ends) = restore_link();
        let answers = ends.answers.downgrade();
        self.orders.try_send(Order::Link(ends)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Error::new(ErrorKind::Busy, format!("the agent of '{}' is busy", self.name))
            }
            mpsc::error::TrySendError::Closed(_) => self.gone(),
        })?;
        *current = Some(answers);
        Ok(link)
    }

    /// Whether a failback is going on.
    pub fn is_restoring(&self) -> bool {
        let current = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().and_then(mpsc::WeakSender::upgrade).is_some_and(|end| !end.is_closed())
    }

    /// Asks for a checkpoint; what becomes of it comes out of the receiver, which closes when the connection ends.
    pub(crate) async fn take_checkpoint(
        &self,
        name: &str,
        verify: bool,
    ) -> Result<mpsc::Receiver<RequestEvent>> {
        let (request, events) = self.requests.begin();
        let message = ServerMessage::TakeCheckpoint { request, name: name.into(), verify };
        if self.orders.send(Order::Send(message)).await.is_err() {
            self.requests.forget(request);
            return Err(self.gone());
        }
        Ok(events)
    }

    /// Ends the connection, telling the agent why, and returns once nothing more is appended on its behalf.
    pub(crate) async fn end(&self, refusal: Refusal) {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(refusal);
            }
            first
        });
        self.wait_until_ended().await;
    }

    /// Returns once nothing more is appended on the connection's behalf.
    pub(crate) async fn wait_until_ended(&self) {
        // An error means that the connection's task is gone, panicked or not: it has ended as well.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Whether both are of one connection.
    pub(crate) fn is_same(&self, other: &AgentHandle) -> bool {
        self.orders.same_channel(&other.orders)
    }

    fn gone(&self) -> Error {
        Error::new(ErrorKind::NotFound, format!("the agent of '{}' is not connected", self.name))
    }
}
