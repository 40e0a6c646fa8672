//! A disk that another NBD server serves, as a [`Volume`].
//!
//! Up to four connections where the server shares one cache between them, one otherwise; a request takes one for its
//! duration. They are all made at the start and never again: a server that has been restarted in between may have
//! lost writes that no flush has covered, and a new connection could not tell. So any failure of a connection poisons
//! the volume for writes.

mod connect;
mod link;

use crate::protocol::transmission_flag as flag;
use crate::request::Command;
use crate::uri::NbdUri;
use blocks::{
    Allocation, BlockShift, ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentStatus, RequestClass,
    Result, Volume, check_request,
};
use connect::Offer;
use link::Link;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long connecting and the handshake may take, each.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server may be silent before a request has failed.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
const LINKS_MAX: usize = 4;
/// What one request without a payload covers, so that none of them takes longer than the server may be silent.
const EFFECT_BYTES_MAX: u64 = 128 << 20;
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// An export of another server. A discard travels as write-zeroes, because a trimmed range may read as anything.
pub struct NbdVolume {
    uri: NbdUri,
    offer: Offer,
    len: ByteLen,
    alignment: BlockShift,
    idle: Mutex<Idle>,
    returned: Condvar,
    poisoned: AtomicBool,
}

struct Idle {
    links: Vec<Link>,
    alive: usize,
}

impl NbdVolume {
    /// Connects to the export. Errors name the URI: `NotFound` where there is no such export, `InvalidInput` where the
    /// disk is not of whole sectors, `Cancelled` after ten seconds of silence.
    pub fn connect(uri: &NbdUri) -> Result<NbdVolume> {
        let named = |error: Error| error.context(uri);
        let (first, offer) = connect::connect(uri, CONNECT_TIMEOUT, SILENCE_TIMEOUT).map_err(named)?;
        let alignment = alignment_of(offer.block_bytes_min).map_err(named)?;
        let len = ByteLen::new(offer.len);
        if !len.is_aligned(alignment) {
            let context =
                format!("{uri}: the disk of {len} bytes is not a multiple of {}", alignment.bytes());
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        let mut links = vec![first];
        while offer.flags & flag::CAN_MULTI_CONN != 0 && links.len() < LINKS_MAX {
            match connect::connect(uri, CONNECT_TIMEOUT, SILENCE_TIMEOUT) {
                Ok((link, same)) if same == offer => links.push(link),
                Ok(_) => {
                    let context = format!("{uri}: the server offers each connection something else");
                    return Err(Error::new(ErrorKind::Io, context));
                }
                // A server that takes no more connections is as good with fewer.
                Err(_) => break,
            }
        }
        let idle = Mutex::new(Idle { alive: links.len(), links });
        let uri = uri.clone();
        Ok(NbdVolume {
            uri,
            offer,
            len,
            alignment,
            idle,
            returned: Condvar::new(),
            poisoned: AtomicBool::new(false),
        })
    }

    /// Where the disk is.
    pub fn uri(&self) -> &NbdUri {
        &self.uri
    }

    fn offers(&self, flags: u16) -> bool {
        self.offer.flags & flags == flags
    }

    /// Runs `work` on a connection; one that is out of step afterwards is closed, and poisons the volume.
    fn with_link<T>(&self, work: impl FnOnce(&mut Link) -> Result<T>) -> Result<T> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut idle = self
            .returned
            .wait_while(idle, |idle| idle.links.is_empty() && idle.alive > 0)
            .unwrap_or_else(PoisonError::into_inner);
        let Some(mut link) = idle.links.pop() else {
            return Err(Error::new(ErrorKind::Io, format!("{}: the connection is lost", self.uri)));
        };
        drop(idle);
        let outcome = work(&mut link);
        let in_step = link.is_in_step();
        if !in_step {
            self.poisoned.store(true, Ordering::SeqCst);
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if in_step {
            idle.links.push(link);
        } else {
            idle.alive -= 1;
        }
        drop(idle);
        self.returned.notify_all();
        outcome.map_err(|error| error.context(&self.uri))
    }

    /// The same for something that changes the disk or makes changes durable: a failure poisons.
    fn change(&self, work: impl FnOnce(&mut Link) -> Result<()>) -> Result<()> {
        if self.poisoned.load(Ordering::SeqCst) {
            let context =
                format!("{}: an earlier request failed; the disk must be connected again", self.uri);
            return Err(Error::new(ErrorKind::Poisoned, context));
        }
        let outcome = self.with_link(work);
        if outcome.is_err() {
            self.poisoned.store(true, Ordering::SeqCst);
        }
        outcome
    }

    fn check_change(&self, offset: ByteOffset, len: ByteLen) -> Result<Option<Extent>> {
        let extent = check_request(self.len, self.alignment, offset, len)?;
        if self.is_read_only() {
            return Err(Error::new(ErrorKind::ReadOnly, format!("{} is read-only", self.uri)));
        }
        Ok(extent)
    }

    /// Flags for a change, and whether a flush must follow it because the server has no FUA.
    fn fua(&self, fua: bool) -> (u16, bool) {
        match (fua, self.offers(flag::SEND_FUA)) {
            (true, true) => (crate::protocol::command_flag::FUA, false),
            (wanted, _) => (0, wanted),
        }
    }

    fn zero(&self, extent: Extent, keep_allocated: bool, fua: bool) -> Result<()> {
        let (mut flags, flush) = self.fua(fua);
        if self.offers(flag::SEND_WRITE_ZEROES) {
            if keep_allocated {
                flags |= crate::protocol::command_flag::NO_HOLE;
            }
            for piece in extent.split(ByteLen::new(EFFECT_BYTES_MAX)) {
                self.change(|link| link.simple(Command::WriteZeroes, flags, piece.start(), piece.len()))?;
            }
        } else {
            for piece in extent.split(ByteLen::of(&ZEROES)) {
                self.change(|link| link.write(flags, piece.start(), &ZEROES[..piece.len().as_usize()]))?;
            }
        }
        if flush { self.flush() } else { Ok(()) }
    }
}

/// The smallest block that the server takes, at least a sector.
fn alignment_of(block_bytes_min: u32) -> Result<BlockShift> {
    let bytes = block_bytes_min.max(512);
    let shift = u8::try_from(bytes.trailing_zeros()).ok().filter(|_| bytes.is_power_of_two());
    shift.and_then(BlockShift::new).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("a smallest block of {block_bytes_min} bytes cannot be used"),
        )
    })
}

impl Volume for NbdVolume {
    fn len(&self) -> ByteLen {
        self.len
    }

    fn is_read_only(&self) -> bool {
        self.offers(flag::READ_ONLY)
    }

    fn alignment(&self) -> BlockShift {
        self.alignment
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], _: RequestClass) -> Result<()> {
        check_request(self.len, self.alignment, offset, ByteLen::of(buffer))?;
        let mut at = offset;
        for piece in buffer.chunks_mut(self.offer.payload_bytes_max) {
            self.with_link(|link| link.read(at, piece))?;
            at += ByteLen::of(piece);
        }
        Ok(())
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, _: RequestClass) -> Result<()> {
        self.check_change(offset, ByteLen::of(data))?;
        let (flags, flush) = self.fua(fua);
        let mut at = offset;
        for piece in data.chunks(self.offer.payload_bytes_max) {
            self.change(|link| link.write(flags, at, piece))?;
            at += ByteLen::of(piece);
        }
        if flush { self.flush() } else { Ok(()) }
    }

    fn write_zeroes(&self, extent: Extent, keep_allocated: bool, fua: bool, _: RequestClass) -> Result<()> {
        self.check_change(extent.start(), extent.len())?;
        self.zero(extent, keep_allocated, fua)
    }

    fn discard(&self, extent: Extent, fua: bool, _: RequestClass) -> Result<()> {
        self.check_change(extent.start(), extent.len())?;
        self.zero(extent, false, fua)
    }

    fn flush(&self) -> Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        if !self.offers(flag::SEND_FLUSH) {
            let context = format!("{}: the server cannot be asked to put writes on the medium", self.uri);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        self.change(|link| link.simple(Command::Flush, 0, ByteOffset::ZERO, ByteLen::ZERO))
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        check_request(self.len, self.alignment, extent.start(), extent.len())?;
        if !self.offer.base_allocation {
            return Ok(vec![ExtentStatus { extent, allocation: Allocation::Data }]);
        }
        let asked_len = ByteLen::new(extent.len().get().min(1 << 30));
        let asked = Extent::new(extent.start(), asked_len)?;
        self.with_link(|link| link.block_status(asked, self.alignment))
    }
}

impl fmt::Debug for NbdVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NbdVolume({}, {} bytes)", self.uri, self.len)
    }
}
