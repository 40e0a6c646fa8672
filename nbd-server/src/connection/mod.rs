//! One client in the transmission phase.
//!
//! Its threads are equal, and one of them leads: it takes what has arrived, does it and lets the replies of one burst
//! leave together. That is the quickest way as long as nothing takes long. Where requests have been slow lately (`pace`) it
//! hands the lead on before each of them, so that they are done side by side; where one gets stuck, `relief` gives the
//! lead to another thread. A thread is started only when the lead is to be handed on and nobody is free. Where there are more
//! connections with something to do than cores, none of its threads waits for the next request: the `crowd` does, and lends a thread
//! for a turn.
//! Every buffer belongs to a thread and is used again. Everything that a slow or hostile client can hold is its own.
//!
//! ```text
//!   leads ── a slow request, or relieved while stuck ──► works ── done ──► waits ── the lead is free ──► leads
//!     ├───── a quick request: does it and leads on                           ▲
//!     └───── nothing to do, in a crowd: parked ──────────────────────────────┘
//! ```

mod roles;
mod turn;

use crate::budget::{Allowance, Permit, TINY_REQUEST_BYTES};
use crate::crowd::{Crowd, Until};
use crate::dispatch::{self, Action, Agreed, Refusal};
use crate::export::Client;
use crate::handshake::Chosen;
use crate::landing::{Landed, Landing};
use crate::limits::Limits;
use crate::outbox::Outbox;
use crate::pace::Pace;
use crate::patience::Patience;
use crate::protocol::PAYLOAD_BYTES_MAX;
use crate::receiver::{NextHeader, Receiver, TICK};
use crate::relief::Relief;
use crate::reply::Reply;
use crate::request::{Command, Request};
use crate::server::Slot;
use crate::traffic::{Operation, Peer};
use blocks::{ByteLen, Error};
use roles::Roles;
use std::cell::Cell;
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A payload up to this length is read and thrown away when it is too long; a longer one is taken for an attack.
const SKIPPED_BYTES_MAX: u64 = 2 * PAYLOAD_BYTES_MAX as u64;
/// What a thread keeps of its buffer between requests.
const KEPT_BUFFER_BYTES: usize = 1 << 20;
/// How long the client of a removed export stays connected, so that what it has on its way is answered, before it is cut
/// off.
const REMOVED_GRACE: Duration = Duration::from_secs(2);

/// What the threads of a connection share.
pub(crate) struct Connection {
    slot: Slot,
    client: Client,
    read_only: bool,
    agreed: Agreed,
    receiver: Mutex<(Receiver, Landing)>,
    outbox: Outbox,
    removed_since: Mutex<Option<Instant>>,
    pace: Pace,
    relief: Arc<Relief>,
    crowd: Arc<Crowd>,
    /// Whether it can wait in a crowd.
    may_park: AtomicBool,
    /// The system's number of the thread that leads.
    leader_thread: AtomicI32,
    /// The number of the request that the leader is at; 0 while it is at none.
    at: AtomicU64,
    /// The number of the newest request.
    requests: AtomicU64,
    roles: Roles,
    budget: Allowance,
}

/// A request that was read, and its answer if there is nothing to do.
struct Received {
    request: Request,
    verdict: Result<Action, Refusal>,
    /// How much of its payload is in the buffer; the rest has been written.
    payload_bytes: usize,
    /// How long it took to write the rest.
    landing: Duration,
    /// Writing a part of its payload has failed.
    failure: Option<Error>,
    /// The next one is here already.
    more: bool,
    _permit: Option<Permit>,
}

/// What whoever leads is to do next.
enum Next {
    /// This.
    Request(Received),
    /// Nothing until something arrives, and in a crowd nobody waits for that.
    Later,
    /// What is there a thread of the connection's own must see to: it may have to wait for the client.
    Own,
    /// Nothing: another thread leads, or nothing further is read.
    Nothing,
}

/// Who asks for the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// A thread of the connection, which waits for it; where it `parks`, not in a crowd.
    Own { parks: bool },
    /// One of the crowd's, which waits for nothing.
    Crowd,
}

impl Connection {
    /// Serves the client until it leaves, or the export or the server ends.
    pub fn serve(
        slot: Slot,
        chosen: Chosen,
        limits: &Limits,
        budget: Allowance,
        (relief, crowd): (&Arc<Relief>, &Arc<Crowd>),
    ) {
        let patience = Patience::of(limits);
        let timeouts =
            slot.socket().set_read_timeout(TICK).and_then(|()| slot.socket().set_write_patience(patience));
        if let Err(error) = timeouts {
            tracing::warn!("a connection cannot be given timeouts: {error}");
            return;
        }
        let peer = Peer::of(slot.socket(), chosen.client);
        let client = chosen.export.connect(slot.number(), peer, chosen.pass);
        let headers = chosen.agreed.headers;
        let may_park = slot.socket().plain().is_some();
        let connection = Arc::new(Connection {
            slot,
            client,
            read_only: chosen.read_only,
            agreed: chosen.agreed,
            receiver: Mutex::new((Receiver::new(patience, headers), Landing::default())),
            outbox: Outbox::default(),
            removed_since: Mutex::new(None),
            pace: Pace::default(),
            relief: relief.clone(),
            crowd: crowd.clone(),
            may_park: AtomicBool::new(may_park),
            leader_thread: AtomicI32::new(0),
            at: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            roles: Roles::new(limits.threads_per_connection_max),
            budget,
        });
        relief.watch(&connection);
        connection.work(0);
    }

    /// What a thread does in its life; the first one of a connection leads, any other waits for the lead.
    fn work(self: &Arc<Connection>, me: u64) {
        let _ended = Ended(self);
        let mut buffer = Vec::new();
        let mut leads = me == 0;
        while leads || self.roles.wait_for_lead(me) {
            leads = false;
            let outcome = self.lead(me, &mut buffer);
            // Whoever waits holds nothing.
            if buffer.len() > TINY_REQUEST_BYTES {
                buffer = Vec::new();
            }
            if let Err(error) = outcome {
                self.fail(&error);
                return;
            }
        }
    }

    fn fail(&self, error: &io::Error) {
        tracing::debug!("a connection ends: {error}");
        self.slot.socket().shutdown(Shutdown::Both);
        self.roles.end();
    }

    /// Leads until another thread does, or the crowd, or until nothing further is read.
    fn lead(self: &Arc<Connection>, me: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
        self.leader_thread.store(rustix::thread::gettid().as_raw_pid(), Ordering::SeqCst);
        // Whoever was given the lead is to wait for the client: who is quiet, or has sent half a message.
        let mut may_park = false;
        while self.roles.leads(me) {
            // Slow requests are not for a crowd's few threads.
            let parks = may_park && !self.pace.is_slow();
            match self.receive(me, Asks::Own { parks }, buffer)? {
                Next::Request(received) => {
                    let side_by_side = self.pace.is_slow() && self.hand_lead_on();
                    self.perform(me, received, side_by_side, buffer)?;
                    may_park = self.may_park.load(Ordering::Relaxed);
                }
                Next::Later if self.park(me, Until::Arrival) => return Ok(()),
                Next::Later | Next::Own => may_park = false,
                Next::Nothing => break,
            }
        }
        // Replies that were left to us.
        self.outbox.flush(self.slot.socket())
    }

    /// Does a request as whoever leads, or with `side_by_side` as whoever has just handed the lead on.
    fn perform(
        &self,
        me: u64,
        received: Received,
        side_by_side: bool,
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        let begun = self.pace.begin();
        let bytes = received.request.len.get();
        let operation = Operation::of(received.request.command);
        self.client.counters().begin();
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        if !side_by_side && self.roles.leads(me) {
            self.at.store(number, Ordering::SeqCst);
            self.relief.wake();
        }
        // Whoever no longer leads has nobody to send its replies.
        let more = received.more && !side_by_side;
        let (landing, mut sending) = (received.landing, Duration::ZERO);
        let answered = self.answer(received, more, buffer, &mut sending);
        // Whoever was relieved meanwhile leaves the new leader's number alone.
        let _ = self.at.compare_exchange(number, 0, Ordering::SeqCst, Ordering::SeqCst);
        let took = self.pace.end(begun, sending, bytes);
        let succeeded = matches!(answered, Ok(true)).then_some(bytes);
        self.client.counters().end(operation, succeeded, landing + took);
        answered?;
        if buffer.len() > KEPT_BUFFER_BYTES {
            *buffer = Vec::new();
        }
        Ok(())
    }

    fn receive(&self, me: u64, asks: Asks, buffer: &mut Vec<u8>) -> io::Result<Next> {
        let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        if receiver.0.ended || !self.roles.leads(me) {
            return Ok(Next::Nothing);
        }
        let received = self.receive_one(&mut receiver, asks, buffer);
        if matches!(received, Err(_) | Ok(Next::Nothing)) {
            receiver.0.ended = true;
            drop(receiver);
            self.roles.end();
        }
        received
    }

    /// The next request; nothing where there will be none.
    fn receive_one(
        &self,
        (receiver, landing): &mut (Receiver, Landing),
        asks: Asks,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Next> {
        let socket = self.slot.socket();
        if !self.may_go_on() {
            return Ok(Next::Nothing);
        }
        let headers = self.agreed.headers;
        let is_held = receiver.holds_request(socket, headers);
        if asks == Asks::Crowd {
            let is_dry = !is_held && receiver.top_up(socket)?;
            if is_dry && receiver.holds_nothing() {
                return Ok(Next::Later);
            }
            if !turn::can_do(receiver, socket, headers) {
                return Ok(Next::Own);
            }
        } else if !is_held {
            self.outbox.flush(socket)?;
        }
        let keep_waiting = || {
            *buffer = Vec::new();
            self.may_go_on()
        };
        let parks = asks == Asks::Own { parks: true };
        let header = match receiver.header(socket, headers, parks, keep_waiting)? {
            NextHeader::Here(header) => header,
            NextHeader::Later => return Ok(Next::Later),
            NextHeader::Never => return Ok(Next::Nothing),
        };
        let Some(request) = Request::decode(headers, &header) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "wrong magic"));
        };
        if request.command == Command::Disconnect {
            return Ok(Next::Nothing);
        }
        self.receive_rest(receiver, landing, request, buffer).map(Next::Request)
    }

    /// Receives what follows the header, if the request is one that can be done.
    fn receive_rest(
        &self,
        receiver: &mut Receiver,
        landing: &mut Landing,
        request: Request,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Received> {
        let (socket, headers, export) = (self.slot.socket(), self.agreed.headers, self.client.export());
        let mut verdict = dispatch::check(&request, &self.agreed, export.len(), self.read_only);
        let mut payload_len = request.payload_len(headers);
        let (mut permit, mut failure, mut landing_took) = (None, None, Duration::ZERO);
        match &mut verdict {
            Ok(action) => {
                if self.pace.is_slow() {
                    receiver.expect_landing(false);
                } else {
                    let landed = landing.receive(receiver, socket, export, (&request, action))?;
                    landing_took = landing.took();
                    match landed {
                        Landed::Bytes(landed) => {
                            payload_len = payload_len - landed;
                            action.skip_written(landed);
                        }
                        Landed::Failed { error, left } => {
                            receiver.skip(socket, left.get())?;
                            payload_len = ByteLen::ZERO;
                            failure = Some(error);
                        }
                    }
                }
                let wanted = payload_len.as_usize().max(dispatch::reply_bytes(action, &self.agreed));
                permit = self.budget.take(wanted);
                if buffer.len() < wanted {
                    buffer.resize(wanted, 0);
                }
                receiver.exact(socket, &mut buffer[..payload_len.as_usize()])?;
            }
            Err(_) if payload_len <= ByteLen::new(SKIPPED_BYTES_MAX) => {
                receiver.skip(socket, payload_len.get())?;
            }
            Err(refusal) => return Err(io::Error::new(io::ErrorKind::InvalidData, refusal.reason)),
        }
        let more = receiver.holds_request(socket, headers);
        Ok(Received {
            request,
            verdict,
            payload_bytes: payload_len.as_usize(),
            landing: landing_took,
            failure,
            more,
            _permit: permit,
        })
    }

    /// Whether another request may be read: always, but for a little while only once the export is removed.
    fn may_go_on(&self) -> bool {
        if !self.client.export().is_removed() {
            return true;
        }
        let mut since = self.removed_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.get_or_insert_with(Instant::now).elapsed() < REMOVED_GRACE
    }

    /// Whether the client got what it asked for, rather than an error; and how long it took to send that.
    fn answer(
        &self,
        received: Received,
        more: bool,
        buffer: &mut [u8],
        sending: &mut Duration,
    ) -> io::Result<bool> {
        let Received { request, verdict, payload_bytes, failure, _permit, .. } = received;
        let reply = Reply {
            socket: self.slot.socket(),
            outbox: &self.outbox,
            more,
            cookie: request.cookie,
            offset: request.offset,
            headers: self.agreed.headers,
            failed: Cell::new(false),
            sending: Cell::default(),
        };
        let sent = match verdict {
            Ok(_) if let Some(error) = failure => dispatch::tell(&error, &reply),
            Ok(Action::Write { .. }) if payload_bytes == 0 => reply.done(),
            Ok(action) => {
                let used = payload_bytes.max(dispatch::reply_bytes(&action, &self.agreed));
                dispatch::serve(action, &self.agreed, self.client.export(), &mut buffer[..used], &reply)
            }
            Err(refusal) => reply.error(refusal.error, refusal.reason),
        };
        *sending = reply.sending.get();
        sent.map(|()| !reply.failed.get())
    }

    /// Has another thread lead; `false` where there can be no other, and whoever leads goes on.
    fn hand_lead_on(self: &Arc<Connection>) -> bool {
        self.roles.hand_on(|number| self.start_thread(number))
    }

    fn start_thread(self: &Arc<Connection>, number: u64) -> io::Result<()> {
        let connection = self.clone();
        std::thread::Builder::new().name("nbd".into()).spawn(move || connection.work(number)).map(drop)
    }

    /// The newest request, and the one that the leader is at, for the watch.
    pub fn progress(&self) -> (u64, u64) {
        (self.requests.load(Ordering::SeqCst), self.at.load(Ordering::SeqCst))
    }

    /// Whether the leader waits for something, rather than computing or waiting for a core.
    pub fn leader_waits(&self) -> bool {
        let thread = self.leader_thread.load(Ordering::SeqCst);
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
        // Behind the name, which may have anything in it. Where it cannot be told, better one thread too many.
        stat.rsplit_once(") ").is_none_or(|(_, rest)| !rest.starts_with('R'))
    }

    /// The leader is stuck at this request: another thread leads, if there can be one.
    pub fn relieve(self: &Arc<Connection>, at: u64) {
        if self.at.compare_exchange(at, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            self.roles.relieve(|number| self.start_thread(number), || self.crowd.lend());
        }
    }
}

/// Leaves the connection: the last one out closes it, and so does a thread whose volume has panicked, because nobody may
/// go on as if nothing had happened.
struct Ended<'a>(&'a Connection);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        if panicking {
            self.0.slot.socket().shutdown(Shutdown::Both);
            self.0.roles.end();
        }
        let last = self.0.roles.leave();
        if last && !panicking {
            // What is left of the last burst, if the client still wants it.
            let _ = self.0.outbox.flush(self.0.slot.socket());
            self.0.slot.socket().say_goodbye();
        }
        if last {
            self.0.slot.socket().shutdown(Shutdown::Both);
        }
    }
}
