//! From a new connection to an agreement: fixed newstyle negotiation.
//!
//! `option` decodes what a client may ask for and is pure; this file is the conversation. Every length is checked
//! before memory is taken for it, and the whole conversation has a deadline.

mod option;
mod replies;

use crate::dispatch::Agreed;
use crate::export::{Export, Exports};
use crate::metadata::{self, SELECTED_MAX, Selected};
use crate::protocol::{
    NBD_MAGIC, OPTION_MAGIC, handshake_flag, info, option as opt, option_reply, transmission_flag,
};
use crate::request::Headers;
use crate::socket::Socket;
use option::{ExportQuery, MetaQuery};
use replies::Replies;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Data of one option that we read; up to `SKIPPED_BYTES_MAX` is skipped and refused, more is taken for an attack.
const OPTION_BYTES_MAX: u32 = 64 << 10;
const SKIPPED_BYTES_MAX: u32 = 1 << 20;
/// Options of one handshake; no client needs a tenth of that.
const OPTIONS_MAX: u32 = 200;

/// What the client has chosen.
pub struct Chosen {
    /// Whose volume it gets.
    pub export: Arc<Export>,
    /// How it is spoken to.
    pub agreed: Agreed,
}

/// Talks until the client has chosen an export; `None` where it has said goodbye. `stopping` tells whether the server
/// is shutting down.
pub fn negotiate(
    socket: &Socket,
    exports: &Exports,
    timeout: Duration,
    stopping: impl Fn() -> bool,
) -> io::Result<Option<Chosen>> {
    socket.set_write_timeout(timeout)?;
    let mut conversation = Conversation {
        socket,
        exports,
        deadline: Instant::now() + timeout,
        no_zeroes: false,
        headers: Headers::Simple,
        selection: None,
    };
    conversation.greet()?;
    for _ in 0..OPTIONS_MAX {
        match conversation.option(&stopping)? {
            Next::Option => {}
            Next::Transmission(chosen) => return Ok(Some(chosen)),
            Next::End => return Ok(None),
        }
    }
    Err(invalid("the client sends options without end"))
}

enum Next {
    Option,
    Transmission(Chosen),
    End,
}

struct Conversation<'a> {
    socket: &'a Socket,
    exports: &'a Exports,
    deadline: Instant,
    no_zeroes: bool,
    headers: Headers,
    selection: Option<Selection>,
}

/// The metadata contexts that were selected, and for which export.
struct Selection {
    export: String,
    contexts: Arc<[Selected]>,
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl Conversation<'_> {
    /// Fills the buffer before the deadline, however slowly the bytes drip.
    fn exact(&self, mut wanted: &mut [u8]) -> io::Result<()> {
        while !wanted.is_empty() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(left)?;
            match self.socket.read(wanted) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => wanted = &mut wanted[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn u32(&self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn greet(&mut self) -> io::Result<()> {
        let mut greeting = [0; 18];
        greeting[..8].copy_from_slice(&NBD_MAGIC.to_be_bytes());
        greeting[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        let ours = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        greeting[16..].copy_from_slice(&ours.to_be_bytes());
        self.socket.write_all(&greeting, &[])?;
        let flags = self.u32()?;
        if flags & !u32::from(ours) != 0 {
            return Err(invalid("the client sets flags that were not offered"));
        }
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        Ok(())
    }

    fn option(&mut self, stopping: &impl Fn() -> bool) -> io::Result<Next> {
        let mut magic = [0; 8];
        self.exact(&mut magic)?;
        if u64::from_be_bytes(magic) != OPTION_MAGIC {
            return Err(invalid("an option without its magic"));
        }
        let option = self.u32()?;
        let len = self.u32()?;
        let replies = Replies { socket: self.socket, option };
        if len > OPTION_BYTES_MAX {
            self.skip(len)?;
            if option == opt::EXPORT_NAME {
                return Err(invalid("an export name of more than 64 KiB"));
            }
            replies.error(option_reply::ERR_TOO_BIG, "more than 64 KiB of data with an option")?;
            return Ok(Next::Option);
        }
        let mut data = vec![0; len as usize];
        self.exact(&mut data)?;
        if stopping() && option != opt::ABORT {
            if option == opt::EXPORT_NAME {
                return Err(invalid("the server is shutting down"));
            }
            replies.error(option_reply::ERR_SHUTDOWN, "the server is shutting down")?;
            return Ok(Next::Option);
        }
        self.answer(option, &data, &replies)
    }

    fn skip(&self, len: u32) -> io::Result<()> {
        if len > SKIPPED_BYTES_MAX {
            return Err(invalid("more than 1 MiB of data with an option"));
        }
        let mut waste = vec![0; len as usize];
        self.exact(&mut waste)
    }

    fn answer(&mut self, option: u32, data: &[u8], replies: &Replies<'_>) -> io::Result<Next> {
        match option {
            opt::EXPORT_NAME => return self.export_name(data).map(Next::Transmission),
            opt::ABORT => {
                replies.ack()?;
                return Ok(Next::End);
            }
            opt::GO | opt::INFO => return self.info(data, replies),
            opt::LIST | opt::STRUCTURED_REPLY | opt::EXTENDED_HEADERS | opt::STARTTLS if !data.is_empty() => {
                replies.error(option_reply::ERR_INVALID, "the option has no data")?;
            }
            opt::LIST => {
                for export in self.exports.list().iter().filter(|export| !export.hidden) {
                    replies.server(export)?;
                }
                replies.ack()?;
            }
            opt::STRUCTURED_REPLY if self.headers == Headers::Extended => {
                let message = "extended headers were agreed on already";
                replies.error(option_reply::ERR_EXT_HEADER_REQD, message)?;
            }
            opt::STRUCTURED_REPLY => {
                self.headers = Headers::Structured;
                replies.ack()?;
            }
            opt::EXTENDED_HEADERS => {
                self.headers = Headers::Extended;
                replies.ack()?;
            }
            opt::LIST_META_CONTEXT => self.list_meta_context(data, replies)?,
            opt::SET_META_CONTEXT => self.set_meta_context(data, replies)?,
            opt::STARTTLS => replies.error(option_reply::ERR_POLICY, "this server does not offer TLS")?,
            _ => replies.error(option_reply::ERR_UNSUP, "the option is not known")?,
        }
        Ok(Next::Option)
    }

    /// The old way to choose: there is no way to refuse but to hang up.
    fn export_name(&self, data: &[u8]) -> io::Result<Chosen> {
        if self.headers == Headers::Extended {
            return Err(invalid("a client with extended headers does not choose the old way"));
        }
        let name = option::name(data).ok_or_else(|| invalid("a name that is not valid"))?;
        let export = self.exports.get(name).ok_or_else(|| invalid("there is no such export"))?;
        let mut reply = [0; 10 + 124];
        reply[..8].copy_from_slice(&export.len().get().to_be_bytes());
        reply[8..10].copy_from_slice(&self.transmission_flags(name, &export).to_be_bytes());
        let len = if self.no_zeroes { 10 } else { reply.len() };
        self.socket.write_all(&reply[..len], &[])?;
        Ok(self.chosen(name, export))
    }

    fn info(&self, data: &[u8], replies: &Replies<'_>) -> io::Result<Next> {
        let Some(query) = ExportQuery::decode(data) else {
            replies.error(option_reply::ERR_INVALID, "the option's data is malformed")?;
            return Ok(Next::Option);
        };
        let Some(export) = self.exports.get(query.name) else {
            let message = format!("there is no export '{}'", query.name.escape_debug());
            replies.error(option_reply::ERR_UNKNOWN, &message)?;
            return Ok(Next::Option);
        };
        replies.export(&export, self.transmission_flags(query.name, &export))?;
        for wanted in &query.wanted {
            match *wanted {
                info::NAME => replies.text(info::NAME, query.name)?,
                info::DESCRIPTION if !export.description().is_empty() => {
                    replies.text(info::DESCRIPTION, export.description())?;
                }
                info::BLOCK_SIZE => replies.block_size(&export)?,
                _ => {}
            }
        }
        replies.ack()?;
        if replies.option == opt::GO {
            Ok(Next::Transmission(self.chosen(query.name, export)))
        } else {
            Ok(Next::Option)
        }
    }

    fn list_meta_context(&self, data: &[u8], replies: &Replies<'_>) -> io::Result<()> {
        let Some((query, names)) = self.meta_query(data, replies)? else { return Ok(()) };
        for name in metadata::listed(names, &query.queries) {
            replies.meta_context(0, &name)?;
        }
        replies.ack()
    }

    /// Whatever was selected before is forgotten, also when this fails.
    fn set_meta_context(&mut self, data: &[u8], replies: &Replies<'_>) -> io::Result<()> {
        self.selection = None;
        let Some((query, names)) = self.meta_query(data, replies)? else { return Ok(()) };
        let contexts = metadata::selected(names, &query.queries);
        if contexts.len() > SELECTED_MAX {
            return replies.error(option_reply::ERR_TOO_BIG, "more than 64 metadata contexts");
        }
        for selected in &contexts {
            replies.meta_context(selected.id, &selected.name)?;
        }
        self.selection = Some(Selection { export: query.name.to_owned(), contexts: contexts.into() });
        replies.ack()
    }

    /// The query and the contexts that the export has, unless it was refused.
    fn meta_query<'d>(
        &self,
        data: &'d [u8],
        replies: &Replies<'_>,
    ) -> io::Result<Option<(MetaQuery<'d>, Vec<String>)>> {
        if !self.headers.has_chunks() {
            replies.error(option_reply::ERR_INVALID, "structured replies or extended headers come first")?;
            return Ok(None);
        }
        let Some(query) = MetaQuery::decode(data) else {
            replies.error(option_reply::ERR_INVALID, "the option's data is malformed")?;
            return Ok(None);
        };
        let export = self.exports.get(query.name);
        let names = export
            .and_then(|export| export.with_backing(|backing| metadata::names(backing.metadata.as_ref())));
        let Some(names) = names else {
            let message = format!("there is no export '{}'", query.name.escape_debug());
            replies.error(option_reply::ERR_UNKNOWN, &message)?;
            return Ok(None);
        };
        Ok(Some((query, names)))
    }

    fn transmission_flags(&self, name: &str, export: &Export) -> u16 {
        use transmission_flag as flag;
        // Every connection uses the one volume, so a flush on any covers all.
        let mut flags =
            flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
        flags |= match export.is_read_only() {
            true => flag::READ_ONLY,
            false => flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO,
        };
        if self.headers.has_chunks() {
            flags |= flag::SEND_DF;
        }
        if self.headers == Headers::Extended && !self.contexts(name).is_empty() {
            flags |= flag::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }

    /// What was selected, if it was for the export of that name.
    fn contexts(&self, name: &str) -> Arc<[Selected]> {
        let selection = self.selection.as_ref().filter(|selection| selection.export == name);
        selection.map(|selection| selection.contexts.clone()).unwrap_or_default()
    }

    fn chosen(&self, name: &str, export: Arc<Export>) -> Chosen {
        Chosen { export, agreed: Agreed { headers: self.headers, contexts: self.contexts(name) } }
    }
}
