//! The client's side of the handshake.

use super::link::Link;
use crate::fields::Fields;
use crate::protocol::{
    BASE_ALLOCATION, NBD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_BYTES_MAX, handshake_flag, info,
    option, option_reply, transmission_flag,
};
use crate::security::client_session;
use crate::socket::Socket;
use crate::tls::Tls;
use crate::uri::{NbdUri, Place};
use blocks::{Error, ErrorKind, Result};
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Data of one reply at most; a server's descriptions and messages stay far below.
const REPLY_BYTES_MAX: u32 = 64 << 10;
/// Replies to one option at most.
const REPLIES_MAX: u32 = 1000;

/// What the server offers for the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    pub len: u64,
    pub flags: u16,
    pub structured_replies: bool,
    pub base_allocation: bool,
    pub base_allocation_id: u32,
    pub block_bytes_min: u32,
    /// The longest payload of one request: a multiple of the smallest block.
    pub payload_bytes_max: usize,
}

/// One reply to an option.
struct OptionReply {
    kind: u32,
    data: Vec<u8>,
}

/// One connection to the export, ready for requests.
pub fn connect(uri: &NbdUri, timeout: Duration, silence: Duration) -> Result<(Link, Offer)> {
    let failed = |error| Error::io("cannot connect", error);
    let socket = open(uri.place(), timeout).map_err(failed)?;
    socket.set_read_timeout(timeout).and_then(|()| socket.set_write_timeout(timeout)).map_err(failed)?;
    let mut handshake = Handshake { link: Link::new(socket) };
    let session = uri.encryption().map(|encryption| client_session(encryption, uri.place())).transpose()?;
    let offer = handshake.run(uri.export(), session)?;
    let mut link = handshake.link;
    link.agree(&offer, silence)?;
    Ok((link, offer))
}

fn open(place: &Place, timeout: Duration) -> io::Result<Socket> {
    match place {
        Place::Unix(path) => UnixStream::connect(path).map(Socket::unix),
        Place::Tcp { host, port } => {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
            for address in (host.as_str(), *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, timeout) {
                    Ok(stream) => return Socket::tcp(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Io, format!("the server does not speak NBD as we know it: {what}"))
}

struct Handshake {
    link: Link,
}

impl Handshake {
    fn run(&mut self, export: &str, session: Option<Tls>) -> Result<Offer> {
        self.greet()?;
        if let Some(session) = session {
            self.ask(option::STARTTLS, &[])?;
            let reply = self.reply(option::STARTTLS)?;
            if reply.kind != option_reply::ACK {
                return Err(refused(reply.kind, &reply.data).context("encryption"));
            }
            self.link.start_tls(session)?;
        }
        let structured_replies = self.plain(option::STRUCTURED_REPLY, &[])?;
        let base_allocation_id = if structured_replies { self.set_meta_context(export)? } else { None };
        let mut offer = Offer {
            len: 0,
            flags: 0,
            structured_replies,
            base_allocation: base_allocation_id.is_some(),
            base_allocation_id: base_allocation_id.unwrap_or(0),
            block_bytes_min: 1,
            payload_bytes_max: 0,
        };
        self.go(export, &mut offer)?;
        if offer.flags & transmission_flag::HAS_FLAGS == 0 {
            return Err(malformed("transmission flags without the bit that is always set"));
        }
        Ok(offer)
    }

    fn greet(&mut self) -> Result<()> {
        let mut greeting = [0; 18];
        self.link.exact(&mut greeting)?;
        let mut fields = Fields::new(&greeting);
        if (fields.u64(), fields.u64()) != (Some(NBD_MAGIC), Some(OPTION_MAGIC)) {
            return Err(malformed("wrong magic in the greeting"));
        }
        let theirs = fields.u16().unwrap_or(0);
        if theirs & handshake_flag::FIXED_NEWSTYLE == 0 {
            return Err(malformed("no fixed newstyle negotiation"));
        }
        let ours = theirs & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        self.link.send(&u32::from(ours).to_be_bytes(), &[])
    }

    fn ask(&mut self, option: u32, data: &[u8]) -> Result<()> {
        let len = u32::try_from(data.len()).map_err(|_| malformed("an option too long"))?;
        let mut head = [0; 16];
        head[..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        head[8..12].copy_from_slice(&option.to_be_bytes());
        head[12..16].copy_from_slice(&len.to_be_bytes());
        self.link.send(&head, data)
    }

    fn reply(&mut self, option: u32) -> Result<OptionReply> {
        let mut head = [0; 20];
        self.link.exact(&mut head)?;
        let mut fields = Fields::new(&head);
        let (magic, about, kind, len) = (fields.u64(), fields.u32(), fields.u32(), fields.u32());
        if magic != Some(OPTION_REPLY_MAGIC) || about != Some(option) {
            return Err(malformed("a reply to something else"));
        }
        let len = len.filter(|len| *len <= REPLY_BYTES_MAX).ok_or_else(|| malformed("a reply too long"))?;
        let mut data = vec![0; len as usize];
        self.link.exact(&mut data)?;
        Ok(OptionReply { kind: kind.unwrap_or(option_reply::ERROR), data })
    }

    /// Asks for something that is granted or not.
    fn plain(&mut self, option: u32, data: &[u8]) -> Result<bool> {
        self.ask(option, data)?;
        Ok(self.reply(option)?.kind == option_reply::ACK)
    }

    /// The identifier of `base:allocation`, if the server has it.
    fn set_meta_context(&mut self, export: &str) -> Result<Option<u32>> {
        let data = [&blob(export)[..], &1u32.to_be_bytes(), &blob(BASE_ALLOCATION)].concat();
        self.ask(option::SET_META_CONTEXT, &data)?;
        let mut id = None;
        for _ in 0..REPLIES_MAX {
            let reply = self.reply(option::SET_META_CONTEXT)?;
            match reply.kind {
                option_reply::ACK => return Ok(id),
                option_reply::META_CONTEXT => {
                    let mut fields = Fields::new(&reply.data);
                    let found = fields.u32();
                    if fields.rest() == BASE_ALLOCATION.as_bytes() {
                        id = found;
                    }
                }
                _ => return Ok(None),
            }
        }
        Err(malformed("replies without end"))
    }

    fn go(&mut self, export: &str, offer: &mut Offer) -> Result<()> {
        let data = [&blob(export)[..], &1u16.to_be_bytes(), &info::BLOCK_SIZE.to_be_bytes()].concat();
        self.ask(option::GO, &data)?;
        let mut payload_bytes_max = PAYLOAD_BYTES_MAX;
        let mut described = false;
        for _ in 0..REPLIES_MAX {
            let reply = self.reply(option::GO)?;
            let mut fields = Fields::new(&reply.data);
            match reply.kind {
                option_reply::ACK if described => {
                    let whole_blocks =
                        payload_bytes_max.min(PAYLOAD_BYTES_MAX) / offer.block_bytes_min.max(512);
                    offer.payload_bytes_max = whole_blocks as usize * offer.block_bytes_min.max(512) as usize;
                    if offer.payload_bytes_max == 0 {
                        return Err(malformed("a largest payload below the smallest block"));
                    }
                    return Ok(());
                }
                option_reply::ACK => return Err(malformed("no word about the export's size")),
                option_reply::INFO => match fields.u16() {
                    Some(info::EXPORT) => {
                        let (len, flags) = (fields.u64(), fields.u16());
                        offer.len = len.ok_or_else(|| malformed("no size"))?;
                        offer.flags = flags.ok_or_else(|| malformed("no flags"))?;
                        described = true;
                    }
                    Some(info::BLOCK_SIZE) => {
                        let (smallest, _, largest) = (fields.u32(), fields.u32(), fields.u32());
                        offer.block_bytes_min = smallest.ok_or_else(|| malformed("no smallest block"))?;
                        payload_bytes_max = largest.ok_or_else(|| malformed("no largest payload"))?;
                    }
                    _ => {}
                },
                kind => return Err(refused(kind, &reply.data)),
            }
        }
        Err(malformed("replies without end"))
    }
}

fn blob(text: &str) -> Vec<u8> {
    // Names come from URIs that fit in memory; what is too long for the protocol the server refuses.
    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    [&len.to_be_bytes()[..], text.as_bytes()].concat()
}

fn refused(kind: u32, message: &[u8]) -> Error {
    let message = String::from_utf8_lossy(message).into_owned();
    match kind {
        option_reply::ERR_TLS_REQD => Error::new(
            ErrorKind::Unsupported,
            format!("the server wants an encrypted connection, nbds:// ({message})"),
        ),
        option_reply::ERR_UNKNOWN => Error::new(ErrorKind::NotFound, format!("no such export ({message})")),
        option_reply::ERR_SHUTDOWN => {
            Error::new(ErrorKind::Busy, format!("the server is shutting down ({message})"))
        }
        _ => Error::new(ErrorKind::Unsupported, format!("the server refuses with {kind:#x} ({message})")),
    }
}
