//! From a new connection to an agreement: fixed newstyle negotiation.
//!
//! `option` decodes what a client may ask for and is pure; this file is the conversation. Every length is checked
//! before memory is taken for it, and the whole conversation has a deadline.

mod option;
mod replies;

use crate::dispatch::Agreed;
use crate::export::{Export, ExportInfo, Exports, Pass};
use crate::metadata::{self, SELECTED_MAX, Selected};
use crate::protocol::{
    NBD_MAGIC, OPTION_MAGIC, handshake_flag, info, option as opt, option_reply, transmission_flag,
};
use crate::request::Headers;
use crate::security::{self, Access, Permission, ServerTls};
use crate::socket::Socket;
use crate::tls::Tls;
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
    /// Changes are refused, because of the export or of the client.
    pub read_only: bool,
    /// How it is spoken to.
    pub agreed: Agreed,
    /// The names in its certificate.
    pub client: Vec<String>,
    /// What the export's gate gave it.
    pub pass: Option<Pass>,
}

/// What a server has to say in a handshake.
pub struct Host<'a> {
    /// What is offered.
    pub exports: &'a Exports,
    /// How it can be encrypted, if at all.
    pub tls: Option<&'a ServerTls>,
    /// To whom.
    pub access: &'a Access,
    /// How long all of it may take.
    pub timeout: Duration,
}

/// Talks until the client has chosen an export; `None` where it has said goodbye. `stopping` tells whether the server
/// is shutting down.
pub fn negotiate(
    socket: &Socket,
    host: &Host<'_>,
    stopping: impl Fn() -> bool,
) -> io::Result<Option<Chosen>> {
    socket.set_write_timeout(host.timeout)?;
    let mut conversation = Conversation {
        socket,
        host,
        client: Vec::new(),
        deadline: Instant::now() + host.timeout,
        fixed_newstyle: false,
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
    host: &'a Host<'a>,
    /// The names in the client's certificate.
    client: Vec<String>,
    deadline: Instant,
    fixed_newstyle: bool,
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
    /// Lets reads wait until the deadline; an error once it is over.
    fn wait_no_longer_than_allowed(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(left)
    }

    /// Fills the buffer before the deadline, however slowly the bytes drip.
    fn exact(&self, mut wanted: &mut [u8]) -> io::Result<()> {
        while !wanted.is_empty() {
            self.wait_no_longer_than_allowed()?;
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
        self.fixed_newstyle = flags & u32::from(handshake_flag::FIXED_NEWSTYLE) != 0;
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
        if self.encrypts_first() && !matches!(option, opt::STARTTLS | opt::ABORT) {
            if option == opt::EXPORT_NAME {
                return Err(invalid("the server insists on encryption"));
            }
            replies.error(option_reply::ERR_TLS_REQD, "the server insists on encryption: STARTTLS first")?;
            return Ok(Next::Option);
        }
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
                let listed = |export: &&ExportInfo| !export.hidden && self.permission(&export.name).is_some();
                for export in self.host.exports.list().iter().filter(listed) {
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
            opt::STARTTLS => self.start_tls(replies)?,
            _ => replies.error(option_reply::ERR_UNSUP, "the option is not known")?,
        }
        Ok(Next::Option)
    }

    /// Whether nothing is answered yet because it would not be encrypted.
    fn encrypts_first(&self) -> bool {
        self.host.tls.is_some_and(|tls| tls.required) && !self.socket.is_encrypted()
    }

    /// Encrypts what is said from here on, and forgets what was said before.
    fn start_tls(&mut self, replies: &Replies<'_>) -> io::Result<()> {
        let tls = match self.host.tls {
            _ if self.socket.is_encrypted() => {
                return replies.error(option_reply::ERR_INVALID, "this is encrypted already");
            }
            Some(tls) if self.fixed_newstyle => tls,
            _ => return replies.error(option_reply::ERR_POLICY, "this server does not offer TLS"),
        };
        replies.ack()?;
        let session = rustls::ServerConnection::new(tls.config()).map_err(io::Error::other)?;
        let mut tls = Tls::new(session.into());
        loop {
            self.wait_no_longer_than_allowed()?;
            match self.socket.shake_hands(tls)? {
                Ok(()) => break,
                Err(unfinished) => tls = unfinished,
            }
        }
        (self.headers, self.selection) = (Headers::Simple, None);
        let shown = self.socket.peer_certificates();
        self.client = shown.first().map(security::names).unwrap_or_default();
        Ok(())
    }

    fn permission(&self, export: &str) -> Option<Permission> {
        self.host.access.permission(&self.client, export)
    }

    /// The export of that name and whether the client may only read it; `None` where it may not know of it.
    fn find(&self, name: &str) -> Option<(Arc<Export>, bool)> {
        let permission = self.permission(name)?;
        let export = self.host.exports.get(name)?;
        let read_only = export.is_read_only() || permission == Permission::ReadOnly;
        Some((export, read_only))
    }

    /// The old way to choose: there is no way to refuse but to hang up.
    fn export_name(&self, data: &[u8]) -> io::Result<Chosen> {
        if self.headers == Headers::Extended {
            return Err(invalid("a client with extended headers does not choose the old way"));
        }
        let name = option::name(data).ok_or_else(|| invalid("a name that is not valid"))?;
        let (export, read_only) = self.find(name).ok_or_else(|| invalid("there is no such export"))?;
        let pass = export.enter().map_err(io::Error::other)?;
        let mut reply = [0; 10 + 124];
        reply[..8].copy_from_slice(&export.len().get().to_be_bytes());
        reply[8..10].copy_from_slice(&self.transmission_flags(name, read_only).to_be_bytes());
        let len = if self.no_zeroes { 10 } else { reply.len() };
        self.socket.write_all(&reply[..len], &[])?;
        Ok(self.chosen(name, export, read_only, pass))
    }

    fn info(&self, data: &[u8], replies: &Replies<'_>) -> io::Result<Next> {
        let Some(query) = ExportQuery::decode(data) else {
            replies.error(option_reply::ERR_INVALID, "the option's data is malformed")?;
            return Ok(Next::Option);
        };
        let Some((export, read_only)) = self.find(query.name) else {
            let message = format!("there is no export '{}'", query.name.escape_debug());
            replies.error(option_reply::ERR_UNKNOWN, &message)?;
            return Ok(Next::Option);
        };
        let entered = if replies.option == opt::GO { export.enter() } else { Ok(None) };
        let pass = match entered {
            Ok(pass) => pass,
            Err(error) => {
                tracing::warn!("an NBD client may not have '{}': {error}", query.name.escape_debug());
                replies.error(option_reply::ERR_POLICY, &error.to_string())?;
                return Ok(Next::Option);
            }
        };
        replies.export(&export, self.transmission_flags(query.name, read_only))?;
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
            Ok(Next::Transmission(self.chosen(query.name, export, read_only, pass)))
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
        let names = self.find(query.name).and_then(|(export, _)| {
            export.with_backing(|backing| metadata::names(backing.metadata.as_ref()))
        });
        let Some(names) = names else {
            let message = format!("there is no export '{}'", query.name.escape_debug());
            replies.error(option_reply::ERR_UNKNOWN, &message)?;
            return Ok(None);
        };
        Ok(Some((query, names)))
    }

    fn transmission_flags(&self, name: &str, read_only: bool) -> u16 {
        use transmission_flag as flag;
        // Every connection uses the one volume, so a flush on any covers all.
        let mut flags =
            flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
        flags |= match read_only {
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

    fn chosen(&self, name: &str, export: Arc<Export>, read_only: bool, pass: Option<Pass>) -> Chosen {
        let agreed = Agreed { headers: self.headers, contexts: self.contexts(name) };
        Chosen { export, read_only, agreed, client: self.client.clone(), pass }
    }
}
