//! The protocol by hand, for what no decent client does.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

pub struct Raw(pub TcpStream);

pub struct OptionReply {
    pub kind: u32,
    pub data: Vec<u8>,
}

pub const ACK: u32 = 1;
pub const ERR_UNSUP: u32 = (1 << 31) + 1;
pub const ERR_POLICY: u32 = (1 << 31) + 2;
pub const ERR_INVALID: u32 = (1 << 31) + 3;
pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;

/// A chunk of a reply with extended headers.
pub struct Chunk {
    pub kind: u16,
    pub last: bool,
    pub data: Vec<u8>,
}

impl Chunk {
    /// The error that it reports.
    pub fn error(&self) -> Option<u32> {
        (self.kind & 1 << 15 != 0).then(|| u32::from_be_bytes(self.data[..4].try_into().unwrap()))
    }

    /// Context and descriptors of a block status.
    pub fn runs(&self) -> (u32, Vec<(u64, u64)>) {
        assert_eq!(self.kind, 6, "a block status of extended headers");
        let number = |at: usize| u64::from_be_bytes(self.data[at..at + 8].try_into().unwrap());
        let id = u32::from_be_bytes(self.data[..4].try_into().unwrap());
        let runs: Vec<_> = (8..self.data.len()).step_by(16).map(|at| (number(at), number(at + 8))).collect();
        assert_eq!(self.data[4..8], (runs.len() as u32).to_be_bytes());
        (id, runs)
    }
}

pub fn blob(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

impl Raw {
    pub fn connect(port: u16) -> Raw {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        Raw(stream)
    }

    /// Connected, with both client flags set.
    pub fn greeted(port: u16) -> Raw {
        let mut raw = Raw::connect(port);
        let greeting = raw.take(18);
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(greeting[16..], [0, 3]);
        raw.send(&3u32.to_be_bytes());
        raw
    }

    /// In the transmission phase of `disk`, with simple replies.
    pub fn ready(port: u16) -> Raw {
        let mut raw = Raw::greeted(port);
        assert!(raw.go("disk"));
        raw
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) {
        self.send(&[b"IHAVEOPT", &option.to_be_bytes()[..], &blob(data)].concat());
    }

    pub fn option_reply(&mut self, option: u32) -> OptionReply {
        assert_eq!(self.take(8), 0x0003_e889_0455_65a9u64.to_be_bytes());
        assert_eq!(self.u32(), option);
        let kind = self.u32();
        let len = self.u32();
        OptionReply { kind, data: self.take(len as usize) }
    }

    /// Sends an option and gives its final reply with those before it.
    pub fn option(&mut self, option: u32, data: &[u8]) -> (u32, Vec<OptionReply>) {
        self.send_option(option, data);
        let mut before = Vec::new();
        loop {
            let reply = self.option_reply(option);
            if reply.kind == ACK || reply.kind & 1 << 31 != 0 {
                return (reply.kind, before);
            }
            before.push(reply);
        }
    }

    pub fn go(&mut self, name: &str) -> bool {
        self.option(7, &[blob(name.as_bytes()), vec![0, 0]].concat()).0 == ACK
    }

    pub fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u32) {
        self.request_with(flags, command, cookie, offset, len, &[]);
    }

    /// A write whose payload is on its way with its header, so that it has arrived when the header has.
    pub fn write(&mut self, cookie: u64, offset: u64, data: &[u8]) {
        self.request_with(0, 1, cookie, offset, data.len() as u32, data);
    }

    fn request_with(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, len: u32, data: &[u8]) {
        let head = [
            &0x2560_9513u32.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &command.to_be_bytes(),
            &cookie.to_be_bytes(),
            &offset.to_be_bytes(),
            &len.to_be_bytes(),
            data,
        ];
        self.send(&head.concat());
    }

    pub fn extended_request(
        &mut self,
        flags: u16,
        command: u16,
        cookie: u64,
        offset: u64,
        len: u64,
        payload: &[u8],
    ) {
        let head = [
            &0x21e4_1c71u32.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &command.to_be_bytes(),
            &cookie.to_be_bytes(),
            &offset.to_be_bytes(),
            &len.to_be_bytes(),
            payload,
        ];
        self.send(&head.concat());
    }

    /// The next chunk, which must be of that request.
    pub fn extended_chunk(&mut self, cookie: u64, offset: u64) -> Chunk {
        let head = self.take(32);
        assert_eq!(head[..4], 0x6e8a_278cu32.to_be_bytes());
        assert_eq!(head[8..16], cookie.to_be_bytes());
        assert_eq!(head[16..24], offset.to_be_bytes());
        let len = u64::from_be_bytes(head[24..].try_into().unwrap());
        let kind = u16::from_be_bytes(head[6..8].try_into().unwrap());
        Chunk { kind, last: head[5] & 1 == 1, data: self.take(len as usize) }
    }

    /// The error, or 0, of a reply that is one chunk without data.
    pub fn extended_done(&mut self, cookie: u64, offset: u64) -> u32 {
        let chunk = self.extended_chunk(cookie, offset);
        assert!(chunk.last && (chunk.kind == 0 || chunk.error().is_some()), "kind {}", chunk.kind);
        chunk.error().unwrap_or(0)
    }

    /// The error and the cookie of a simple reply.
    pub fn simple_reply(&mut self) -> (u32, u64) {
        assert_eq!(self.u32(), 0x6744_6698);
        let error = self.u32();
        (error, u64::from_be_bytes(self.take(8).try_into().unwrap()))
    }

    /// Whether the server has hung up: the end or a reset, after at most what is already on its way.
    pub fn is_closed(&mut self) -> bool {
        let mut waste = [0; 4096];
        loop {
            match self.0.read(&mut waste) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return true,
                Err(_) => return false,
            }
        }
    }
}
