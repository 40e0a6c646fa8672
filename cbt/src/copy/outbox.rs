//! Numbering what a disk sends.

use super::reader::Shipment;
use crate::link::Link;
use crate::tap::OrderedWrite;
use crate::tracker::{Base, Tracker};
use blocks::{DiskIndex, Extent, Generation, MachineId, Result, Seq, StoreId};
use wire::{AgentMessage, Payload, Write};

/// How many numbers are noted as sent ahead of time, so that not every write has to be noted.
const NOTED_AHEAD: u64 = 1024;

/// Who takes what is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Receiver {
    pub store: StoreId,
    pub machine: MachineId,
    pub generation: Generation,
}

/// The writes of one disk on one connection: each gets the next number, zeroes that touch become one.
#[derive(Debug)]
pub(crate) struct Outbox {
    disk: DiskIndex,
    receiver: Receiver,
    durable: Seq,
    first: Seq,
    last: Seq,
    noted: Seq,
    acked: Seq,
    zeroes: Option<Extent>,
}

impl Outbox {
    /// Numbers go on after `last`, which must be no lower than any number sent before.
    pub fn new(disk: DiskIndex, receiver: Receiver, acked: Seq, last: Seq) -> Outbox {
        Outbox { disk, receiver, durable: acked, first: last, last, noted: Seq(0), acked, zeroes: None }
    }

    /// The number of the last write; zeroes that still wait to be joined are not counted.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// Whether anything was sent on this connection.
    pub fn sent_anything(&self) -> bool {
        self.last > self.first
    }

    /// Sends what was read.
    pub fn ship(&mut self, link: &Link, tracker: &dyn Tracker, shipment: Shipment) -> Result<()> {
        match shipment.bytes {
            Some(bytes) => self.data(link, tracker, shipment.extent, bytes),
            None => self.zero(link, tracker, shipment.extent),
        }
    }

    /// Sends a write as it was made, at the latest with the next [`Link::send_gathered`]; its number.
    pub fn write_in_order(
        &mut self,
        link: &Link,
        tracker: &dyn Tracker,
        write: &OrderedWrite,
    ) -> Result<Seq> {
        self.flush(link, tracker)?;
        let payload = write.payload.as_ref().map_or(Payload::Zero, |data| Payload::Data(data.to_vec()));
        let age = write.completed.map(|completed| completed.elapsed().as_micros());
        let write = self.number(tracker, write.extent, payload)?;
        link.gather(match age {
            Some(age) => AgentMessage::WriteInOrder { write, age_us: u64::try_from(age).unwrap_or(u64::MAX) },
            None => AgentMessage::Write(write),
        })?;
        Ok(self.last)
    }

    /// Sends bytes.
    fn data(&mut self, link: &Link, tracker: &dyn Tracker, extent: Extent, bytes: Vec<u8>) -> Result<()> {
        self.flush(link, tracker)?;
        self.send(link, tracker, extent, Payload::Data(bytes))
    }

    /// Sends zeroes, at the latest with the next [`Outbox::flush`].
    fn zero(&mut self, link: &Link, tracker: &dyn Tracker, extent: Extent) -> Result<()> {
        match self.zeroes {
            Some(before) if before.end() == extent.start() => {
                self.zeroes = Extent::between(before.start(), extent.end());
                Ok(())
            }
            _ => {
                self.flush(link, tracker)?;
                self.zeroes = Some(extent);
                Ok(())
            }
        }
    }

    /// Sends what waits; the number of the last write that the server has or was sent.
    pub fn flush(&mut self, link: &Link, tracker: &dyn Tracker) -> Result<Seq> {
        if let Some(zeroes) = self.zeroes.take() {
            self.send(link, tracker, zeroes, Payload::Zero)?;
        }
        // Numbers that were only noted ahead in an earlier connection never were writes.
        Ok(if self.sent_anything() { self.last } else { self.durable })
    }

    /// The connection is gone: no number past the last write was sent.
    pub fn close(&mut self, tracker: &dyn Tracker) -> Result<()> {
        if self.sent_anything() {
            self.noted = self.last;
            tracker.set_base(self.base())?;
        }
        Ok(())
    }

    fn send(&mut self, link: &Link, tracker: &dyn Tracker, extent: Extent, payload: Payload) -> Result<()> {
        link.send(AgentMessage::Write(self.number(tracker, extent, payload)?))
    }

    /// Gives the write the next number.
    fn number(&mut self, tracker: &dyn Tracker, extent: Extent, payload: Payload) -> Result<Write> {
        let seq = self.last.next();
        if seq > self.noted {
            self.noted = Seq(seq.0 + NOTED_AHEAD);
            tracker.set_base(self.base())?;
        }
        self.last = seq;
        Ok(Write { disk: self.disk, seq, extent, payload })
    }

    /// Notes how far the server has come.
    pub fn note_acked(&mut self, tracker: &dyn Tracker, acked: Seq) -> Result<()> {
        if acked > self.acked {
            self.acked = acked;
            tracker.set_base(self.base())?;
        }
        Ok(())
    }

    /// What the tracker's marks are relative to now.
    pub fn base(&self) -> Base {
        let Receiver { store, machine, generation } = self.receiver;
        Base { store, acked: self.acked, sent: self.noted.max(self.last), generation, machine }
    }
}
