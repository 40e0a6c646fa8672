//! Payloads that go where they belong as they are received, without a stop in a buffer.
//!
//! Only what has arrived already is put there, so that no volume ever waits for a client, and only in whole sectors, so that
//! a client that dies in the middle of a payload leaves sectors that are old or new. The volume says for each piece
//! whether it takes it that way (`Volume::write_arrived`); from the first that it does not, the rest of the payload goes
//! through a buffer like any other.

use crate::dispatch::Action;
use crate::export::Export;
use crate::receiver::Receiver;
use crate::request::Request;
use crate::socket::Socket;
use blocks::{Arrived, ByteLen, Error, Extent, Place, SECTOR_BYTES};
use std::io;
use std::time::{Duration, Instant};

/// Once a volume has refused a piece, so many payloads that it might take go through the buffer before it is asked again:
/// receiving ahead is quicker where nothing lands.
const REFUSED_FOR: u32 = 64;
/// After so many requests of other kinds none is expected to land, and more than one of them is received at a time again.
const OTHERS_MAX: u32 = 8;
/// A shorter payload that has not arrived whole is not waited for here.
const WAITED_FOR_BYTES_MIN: u64 = 64 << 10;

/// Whether payloads of a connection are received where they belong.
#[derive(Debug, Default)]
pub struct Landing {
    /// How many more go through the buffer.
    refused_for: u32,
    /// How many requests there were since the last that could have been received that way.
    others: u32,
    /// How long the volume had the last one, which is part of what its request took.
    took: Duration,
}

/// What became of a payload.
#[derive(Debug)]
pub enum Landed {
    /// So many bytes of it are written; the rest is to be received and written.
    Bytes(ByteLen),
    /// So many bytes of it were not received, because the volume has failed.
    Failed { error: Error, left: ByteLen },
}

impl Landing {
    /// Receives as much of the write's payload as goes this way. Nothing of it may have been received, and `action` must
    /// be what was found of `request`.
    pub fn receive(
        &mut self,
        receiver: &mut Receiver,
        socket: &Socket,
        export: &Export,
        (request, action): (&Request, &Action),
    ) -> io::Result<Landed> {
        self.took = Duration::ZERO;
        let nothing = Ok(Landed::Bytes(ByteLen::ZERO));
        let is_whole_sectors = (request.offset.get() | request.len.get()).is_multiple_of(SECTOR_BYTES);
        let is_candidate = matches!(action, Action::Write { fua: false, .. })
            && is_whole_sectors
            && export.arrived_len_min().is_some_and(|min| request.len >= min)
            && socket.takes_files();
        if !is_candidate {
            self.others += 1;
            if self.others >= OTHERS_MAX {
                receiver.expect_landing(false);
            }
            return nothing;
        }
        self.others = 0;
        let is_refused = self.refused_for > 0;
        self.refused_for -= u32::from(is_refused);
        receiver.expect_landing(!is_refused);
        if is_refused || !receiver.holds_nothing() {
            return nothing;
        }
        self.land(receiver, socket, export, request)
    }

    /// How long the volume had what landed of the last payload.
    pub fn took(&self) -> Duration {
        self.took
    }

    fn land(
        &mut self,
        receiver: &mut Receiver,
        socket: &Socket,
        export: &Export,
        request: &Request,
    ) -> io::Result<Landed> {
        let mut at = request.offset;
        let end = request.offset + request.len;
        let mut underway = receiver.underway(request.len);
        while let Some(rest) = Extent::between(at, end) {
            let arrived = match request.len.get() < WAITED_FOR_BYTES_MIN {
                true => receiver.arrived(socket, rest.len())?,
                false => receiver.arrives(socket, rest.len())?,
            };
            let whole_sectors = ByteLen::new(arrived.get() / SECTOR_BYTES * SECTOR_BYTES);
            let len = if arrived == rest.len() { arrived } else { whole_sectors };
            if len < rest.len() && request.len.get() < WAITED_FOR_BYTES_MIN {
                break;
            }
            let Ok(piece) = Extent::new(at, len) else {
                let sector = Extent::new(at, rest.len().min(ByteLen::new(SECTOR_BYTES))).expect("not empty");
                let written = write_sector(receiver, socket, export, sector)?;
                underway.goes_on()?;
                match written {
                    Some(Ok(())) => at = sector.end(),
                    Some(Err(error)) => {
                        return Ok(Landed::Failed { error, left: rest.len() - sector.len() });
                    }
                    None => break,
                }
                continue;
            };
            let mut queue = Queue { receiver: &mut *receiver, socket, left: rest.len().as_usize() };
            let begun = Instant::now();
            let written = export.with_disk(|disk| disk.write_arrived(piece, &mut queue));
            self.took += begun.elapsed();
            let left = ByteLen::new(queue.left as u64);
            match written {
                Some(Ok(true)) => at = piece.end(),
                // A removed export tells so when it is asked for the rest.
                Some(Ok(false)) | None => {
                    self.refused_for = REFUSED_FOR;
                    receiver.expect_landing(false);
                    break;
                }
                Some(Err(error)) => return Ok(Landed::Failed { error, left }),
            }
        }
        Ok(Landed::Bytes(at - request.offset))
    }
}

/// Waits for a sector of which the first bytes have arrived at most, outside of the volume, and writes it. `None` where the
/// export was removed: then the sector is held, as the beginning of the rest.
fn write_sector(
    receiver: &mut Receiver,
    socket: &Socket,
    export: &Export,
    sector: Extent,
) -> io::Result<Option<blocks::Result<()>>> {
    let held = receiver.hold(socket, sector.len())?;
    let written = export.with_disk(|disk| disk.write(sector.start(), held, false));
    if written.is_some() {
        receiver.consume();
    }
    Ok(written)
}

/// What of a payload has arrived.
struct Queue<'a> {
    receiver: &'a mut Receiver,
    socket: &'a Socket,
    /// How much of the payload is not received.
    left: usize,
}

impl Arrived for Queue<'_> {
    fn put(&mut self, place: Place<'_>) -> io::Result<usize> {
        let is_last = place.len() == self.left;
        let count = self.receiver.land(self.socket, &place, is_last)?;
        self.left -= count;
        Ok(count)
    }
}
