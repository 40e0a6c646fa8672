//! What the server answers to an option.

use crate::export::{Export, ExportInfo};
use crate::protocol::{OPTION_REPLY_MAGIC, PAYLOAD_BYTES_MAX, info, option_reply};
use crate::socket::Socket;
use std::io;

/// Sends replies to one option.
pub struct Replies<'a> {
    pub socket: &'a Socket,
    pub option: u32,
}

impl Replies<'_> {
    fn send(&self, kind: u32, parts: &[&[u8]]) -> io::Result<()> {
        let data = parts.concat();
        let len = u32::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut head = [0; 20];
        head[..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        head[8..12].copy_from_slice(&self.option.to_be_bytes());
        head[12..16].copy_from_slice(&kind.to_be_bytes());
        head[16..20].copy_from_slice(&len.to_be_bytes());
        self.socket.write_all(&head, &data)
    }

    /// The option is done.
    pub fn ack(&self) -> io::Result<()> {
        self.send(option_reply::ACK, &[])
    }

    /// The option is refused; `message` is for a person.
    pub fn error(&self, kind: u32, message: &str) -> io::Result<()> {
        self.send(kind, &[message.as_bytes()])
    }

    /// One line of the list of exports.
    pub fn server(&self, export: &ExportInfo) -> io::Result<()> {
        let name_len = u32::try_from(export.name.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let parts = [&name_len.to_be_bytes()[..], export.name.as_bytes(), export.description.as_bytes()];
        self.send(option_reply::SERVER, &parts)
    }

    /// What a client must know about the export.
    pub fn export(&self, export: &Export, transmission_flags: u16) -> io::Result<()> {
        let len = export.len().get().to_be_bytes();
        let parts = [&info::EXPORT.to_be_bytes()[..], &len, &transmission_flags.to_be_bytes()];
        self.send(option_reply::INFO, &parts)
    }

    /// A name or a description.
    pub fn text(&self, kind: u16, text: &str) -> io::Result<()> {
        self.send(option_reply::INFO, &[&kind.to_be_bytes(), text.as_bytes()])
    }

    /// Any byte may be addressed, whole blocks are faster, 32 MiB at once at most.
    pub fn block_size(&self, export: &Export) -> io::Result<()> {
        let preferred = export.preferred_block_bytes().to_be_bytes();
        let parts = [
            &info::BLOCK_SIZE.to_be_bytes()[..],
            &1u32.to_be_bytes(),
            &preferred,
            &PAYLOAD_BYTES_MAX.to_be_bytes(),
        ];
        self.send(option_reply::INFO, &parts)
    }

    /// A metadata context under this identifier.
    pub fn meta_context(&self, id: u32, name: &str) -> io::Result<()> {
        self.send(option_reply::META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()])
    }
}
