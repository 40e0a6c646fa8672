//! What is read of a disk while it stands still.
//!
//! It is held in memory, as the network is no part of a machine's standstill. Only what does not fit there is sent
//! meanwhile, oldest first, as long as the budget lasts: it was taken, so it travels in any case.

use super::outbox::Outbox;
use super::reader::{Shipment, Stretch, stretches};
use super::replica::{Replica, TAKING_BYTES, offset_in};
use super::{Digests, pieces};
use crate::link::Link;
use crate::tracker::Tracker;
use blocks::{Error, ErrorKind, ExtentSet, Result, Seq};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// What was read of a disk while it stood still and was not sent yet.
#[derive(Debug, Default)]
pub(crate) struct Held {
    shipments: VecDeque<Shipment>,
    takings: Vec<u64>,
    bytes: u64,
}

/// What a look at a frozen disk found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// Nothing has changed outside what is excluded.
    Nothing,
    /// Something had changed and was read.
    Something,
}

/// What binds work on a disk that stands still.
pub(crate) struct Bounds<'a> {
    pub link: &'a Link,
    /// How many bytes may be held of one disk.
    pub room: u64,
    pub until: Instant,
    /// False once it is not certain any more that the disk stands still.
    pub go_on: &'a dyn Fn() -> bool,
}

impl Bounds<'_> {
    fn in_time(&self) -> bool {
        Instant::now() < self.until && (self.go_on)()
    }

    fn check(&self) -> Result<()> {
        if self.in_time() {
            Ok(())
        } else {
            Err(over("reading what had changed took longer than the budget"))
        }
    }
}

impl Replica {
    /// While the disk stands still: takes what is marked, reads it and holds it; what there is no room for is sent.
    /// Logs nothing. `Cancelled` past the bounds, and then what was not read is marked again.
    pub fn hold(&mut self, held: &mut Held, excluded: &ExtentSet, bounds: &Bounds<'_>) -> Result<Found> {
        if self.is_scanned() {
            return self.hold_scanned(held, bounds);
        }
        let tracker = Arc::clone(&self.tracker);
        let taking = tracker.take(TAKING_BYTES)?;
        if taking.extents.is_empty() {
            return Ok(Found::Nothing);
        }
        self.note_written(&taking);
        held.takings.push(taking.number);
        let (reader, outbox, disk) = self.reading()?;
        let read = reader.read(disk, &stretches(&taking.extents), Stretch::shipments, |shipments| {
            bounds.check()?;
            shipments.into_iter().for_each(|shipment| held.push(shipment));
            held.make_room(outbox, &*tracker, bounds)
        });
        if read.is_err() {
            // So that this taking may be acknowledged without all of it having been sent.
            tracker.mark(&taking.extents)?;
        }
        read?;
        let only_excluded = taking.extents.iter().all(|extent| excluded.contains(*extent));
        Ok(if only_excluded { Found::Nothing } else { Found::Something })
    }

    fn hold_scanned(&mut self, held: &mut Held, bounds: &Bounds<'_>) -> Result<Found> {
        let tracker = Arc::clone(&self.tracker);
        let mut found = Found::Nothing;
        for part in self.parts() {
            if !bounds.in_time() {
                self.digests = Digests::new(self.disk.len());
                return Err(over("reading the whole disk takes longer than the budget"));
            }
            for differing in self.differing(part)? {
                found = Found::Something;
                let bytes = &self.buffer[offset_in(part, differing)];
                pieces(differing, bytes).into_iter().for_each(|piece| held.push(piece.into()));
            }
            let made = held.make_room(self.outbox()?, &*tracker, bounds);
            if made.is_err() {
                self.digests = Digests::new(self.disk.len());
            }
            made?;
        }
        Ok(found)
    }

    /// Sends what is held; afterwards everything up to the instant has been sent.
    pub fn ship_held(&mut self, link: &Link, held: Held) -> Result<Seq> {
        let tracker = Arc::clone(&self.tracker);
        let outbox = self.outbox()?;
        held.shipments.into_iter().try_for_each(|shipment| outbox.ship(link, &*tracker, shipment))?;
        let last = outbox.flush(link, &*tracker)?;
        self.takings.extend(held.takings.into_iter().map(|number| (number, last)));
        Ok(last)
    }
}

impl Held {
    fn push(&mut self, shipment: Shipment) {
        self.bytes += shipment.bytes();
        self.shipments.push_back(shipment);
    }

    /// Sends the oldest until no more is held than there is room for, and waits for the network no longer than the
    /// bounds allow.
    fn make_room(&mut self, outbox: &mut Outbox, tracker: &dyn Tracker, bounds: &Bounds<'_>) -> Result<()> {
        while self.bytes > bounds.room {
            // Zeroes that wait to be joined may go out before it.
            if !bounds.link.wait_for_room(2, &|| bounds.in_time())? {
                return Err(over("the network did not take what had changed within the budget"));
            }
            let Some(oldest) = self.shipments.pop_front() else { break };
            self.bytes -= oldest.bytes();
            outbox.ship(bounds.link, tracker, oldest)?;
        }
        Ok(())
    }
}

fn over(what: &str) -> Error {
    Error::new(ErrorKind::Cancelled, what)
}
