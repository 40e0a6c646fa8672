//! What an ingest works on, and how its threads tell the connection.

use super::machine::Machine;
use super::requests::Requests;
use blocks::{DiskIndex, Durable, Error, ErrorKind, Generation, Result, Seq};
use std::sync::{Arc, Mutex, PoisonError};
use store::{BranchDisk, BranchId, Unit};
use tokio::sync::{mpsc, watch};
use wire::ServerMessage;

/// A machine's main branch under one generation, on behalf of one connection.
#[derive(Debug)]
pub(crate) struct Source {
    pub unit: Arc<Unit>,
    pub machine: Arc<Machine>,
    pub branch: BranchId,
    pub generation: Generation,
    pub disks: Vec<Arc<BranchDisk>>,
    pub requests: Arc<Requests>,
    pub out: mpsc::Sender<ServerMessage>,
    /// Why the ingest has stopped; the first reason stays.
    pub failure: watch::Sender<Option<Arc<Error>>>,
    acknowledged: Mutex<Vec<Seq>>,
}

impl Source {
    /// The main branch of a unit as it is now. Blocks.
    pub fn new(
        unit: Arc<Unit>,
        machine: Arc<Machine>,
        requests: Arc<Requests>,
        out: mpsc::Sender<ServerMessage>,
    ) -> Result<Source> {
        let (branch, generation) = (unit.main_branch(), unit.generation());
        let count = u16::try_from(unit.disks().len())
            .map_err(|_| Error::new(ErrorKind::Unsupported, "more disks than can be numbered"))?;
        let disks: Vec<_> =
            (0..count).map(|index| unit.disk(branch, DiskIndex(index))).collect::<Result<_>>()?;
        // What the agent knows from its welcome is not acknowledged again.
        let durable = disks.iter().map(|disk| disk.sync().map(Durable::into_inner));
        let acknowledged = Mutex::new(durable.collect::<Result<_>>()?);
        let failure = watch::Sender::new(None);
        Ok(Source { unit, machine, branch, generation, disks, requests, out, failure, acknowledged })
    }

    /// A disk of it. `InvalidInput` for one that the machine does not have.
    pub fn disk(&self, disk: DiskIndex) -> Result<&Arc<BranchDisk>> {
        self.disks.get(usize::from(disk.0)).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("the agent speaks of disk {disk}, which it did not register"),
            )
        })
    }

    /// Tells the agent that everything up to `durable` is on the medium. Numbers go out rising, however many threads
    /// come here. `Fenced` where the machine was promoted meanwhile: then nothing is acknowledged any more.
    pub fn acknowledge(&self, disk: DiskIndex, durable: Durable<Seq>) -> Result<()> {
        let generation = self.unit.generation();
        if generation != self.generation {
            let context = format!("the machine was promoted to generation {generation}");
            return Err(Error::new(ErrorKind::Fenced, context));
        }
        let mut acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = durable.into_inner();
        match acknowledged.get_mut(usize::from(disk.0)) {
            Some(last) if *last < seq => {
                *last = seq;
                self.tell(ServerMessage::Ack { disk, seq });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Sends to the agent, waiting while it is behind. Not from async code.
    pub fn tell(&self, message: ServerMessage) {
        // Where the connection is gone, the agent learns the same from its next welcome.
        let _ = self.out.blocking_send(message);
    }

    /// Nothing more is ingested.
    pub fn fail(&self, error: Error) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            if first {
                *failure = Some(Arc::new(error));
            }
            first
        });
    }

    pub fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }
}
