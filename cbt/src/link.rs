//! The worker's end of a connection: what is to be sent, what has come in.
//!
//! The worker is a plain thread that owns the disks; the connection lives in async tasks. Out goes a bounded queue:
//! when the network is slow the worker waits. In come acknowledgements, which are only a number a disk and never wait,
//! and orders, in a queue that holds at most [`ORDERS_MAX`] and makes the *server* wait.

use blocks::{DiskIndex, Error, ErrorKind, Result, Seq};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use wire::{AgentMessage, Message, ServerMessage};

/// How many parcels wait to be sent; each carries at most 1 MiB and what was gathered before.
const OUTGOING_MAX: usize = 8;
/// How much is gathered into one parcel: less would cost the processors more than it saves waiting.
const PARCEL_BYTES: usize = 256 << 10;
const PARCEL_MESSAGES: usize = 256;
/// How often it is looked for room by somebody who may not wait for long.
const ROOM_WAIT: Duration = Duration::from_micros(200);
/// How many orders wait to be obeyed; each carries at most 1 MiB.
const ORDERS_MAX: usize = 16;

/// What the worker holds. Lives as long as one connection.
#[derive(Debug)]
pub(crate) struct Link {
    outgoing: mpsc::Sender<Parcel>,
    inbox: Arc<Inbox>,
    gathered: RefCell<Gathered>,
}

/// Messages that leave together, in their order.
pub(crate) type Parcel = Vec<AgentMessage>;

#[derive(Debug, Default)]
struct Gathered {
    parcel: Parcel,
    payload_bytes: usize,
}

/// What the connection's tasks hold.
#[derive(Debug)]
pub(crate) struct Wire {
    pub outgoing: mpsc::Receiver<Parcel>,
    pub inbox: Arc<Inbox>,
}

/// What has come in.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    news: Condvar,
    room: Semaphore,
}

/// Wakes the worker that waits for an order: there is something to send.
#[derive(Clone, Debug)]
pub(crate) struct Nudge(Arc<Inbox>);

impl Nudge {
    /// The worker's wait ends, or does not begin.
    pub fn give(&self) {
        self.0.lock().nudged = true;
        self.0.news.notify_all();
    }
}

#[derive(Debug, Default)]
struct State {
    acked: Vec<Seq>,
    orders: VecDeque<ServerMessage>,
    closed: bool,
    stop: bool,
    nudged: bool,
    heard: Option<Instant>,
}

/// A link and the tasks' ends of it.
pub(crate) fn link() -> (Link, Wire) {
    let (sender, receiver) = mpsc::channel(OUTGOING_MAX);
    let inbox = Arc::new(Inbox {
        state: Mutex::new(State::default()),
        news: Condvar::new(),
        room: Semaphore::new(ORDERS_MAX),
    });
    let gathered = RefCell::default();
    (Link { outgoing: sender, inbox: Arc::clone(&inbox), gathered }, Wire { outgoing: receiver, inbox })
}

impl Link {
    /// Queues a message behind what was gathered; waits while the queue is full. `Cancelled` where the connection is gone.
    pub fn send(&self, message: AgentMessage) -> Result<()> {
        self.gathered.borrow_mut().parcel.push(message);
        self.send_gathered()
    }

    /// As [`Link::send`], for one of many small messages: it may stay here until [`Link::send_gathered`] or the next
    /// [`Link::send`].
    pub fn gather(&self, message: AgentMessage) -> Result<()> {
        let mut gathered = self.gathered.borrow_mut();
        gathered.payload_bytes += message.payload().len();
        gathered.parcel.push(message);
        if gathered.payload_bytes < PARCEL_BYTES && gathered.parcel.len() < PARCEL_MESSAGES {
            return Ok(());
        }
        drop(gathered);
        self.send_gathered()
    }

    /// Queues what was gathered, if there is something.
    pub fn send_gathered(&self) -> Result<()> {
        let Gathered { parcel, .. } = self.gathered.take();
        if parcel.is_empty() {
            return Ok(());
        }
        self.outgoing.blocking_send(parcel).map_err(|_| gone())
    }

    /// Waits until so many messages can be sent without waiting, nothing being gathered; false where `go_on` says no before. `Cancelled` where
    /// the connection is gone. Nobody else queues messages, so there still is room when it returns.
    pub fn wait_for_room(&self, messages: usize, go_on: &dyn Fn() -> bool) -> Result<bool> {
        loop {
            if self.outgoing.is_closed() {
                return Err(gone());
            }
            if self.outgoing.capacity() >= messages {
                return Ok(true);
            }
            if !go_on() {
                return Ok(false);
            }
            std::thread::sleep(ROOM_WAIT);
        }
    }

    /// The highest number of the disk that the server has on its medium; 0 before the first.
    pub fn acked(&self, disk: DiskIndex) -> Seq {
        self.inbox.acked(disk)
    }

    /// What wakes the worker from [`Link::next_order`].
    pub fn nudge(&self) -> Nudge {
        Nudge(Arc::clone(&self.inbox))
    }

    /// The next order, if one is there within `timeout`; ends early when an acknowledgement or a nudge comes.
    pub fn next_order(&self, timeout: Duration) -> Result<Option<ServerMessage>> {
        let state = self.inbox.lock();
        if let Some(order) = self.take_order(state)? {
            return Ok(Some(order));
        }
        let mut state = self.inbox.lock();
        let nudged = !timeout.is_zero() && std::mem::take(&mut state.nudged);
        if timeout.is_zero() || nudged || state.closed || state.stop || !state.orders.is_empty() {
            return self.take_order(state);
        }
        let waited = self.inbox.news.wait_timeout(state, timeout);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.nudged = false;
        self.take_order(state)
    }

    fn take_order(&self, mut state: MutexGuard<'_, State>) -> Result<Option<ServerMessage>> {
        if let Some(order) = state.orders.pop_front() {
            self.inbox.room.add_permits(1);
            return Ok(Some(order));
        }
        if state.closed { Err(gone()) } else { Ok(None) }
    }

    /// `Cancelled` where the connection is gone or a stop is asked for: asked in the middle of long work.
    pub fn check(&self) -> Result<()> {
        let state = self.inbox.lock();
        if state.closed || state.stop { Err(gone()) } else { Ok(()) }
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An acknowledgement has come.
    pub fn ack(&self, disk: DiskIndex, seq: Seq) {
        let mut state = self.lock();
        let index = usize::from(disk.0);
        if state.acked.len() <= index {
            state.acked.resize(index + 1, Seq::default());
        }
        state.acked[index] = state.acked[index].max(seq);
        state.heard = Some(Instant::now());
        self.news.notify_all();
    }

    /// An order has come; waits while the worker is behind.
    pub async fn order(&self, order: ServerMessage) {
        if let Ok(permit) = self.room.acquire().await {
            permit.forget();
        }
        let mut state = self.lock();
        state.orders.push_back(order);
        state.heard = Some(Instant::now());
        self.news.notify_all();
    }

    /// The highest number of the disk that the server has on its medium; 0 before the first.
    pub fn acked(&self, disk: DiskIndex) -> Seq {
        self.lock().acked.get(usize::from(disk.0)).copied().unwrap_or_default()
    }

    /// The clock of [`Inbox::silence`] starts afresh: the server owed nothing until now.
    pub fn heard(&self) {
        self.lock().heard = Some(Instant::now());
    }

    /// How long the server has said nothing.
    pub fn silence(&self) -> Duration {
        self.lock().heard.map_or(Duration::ZERO, |heard| heard.elapsed())
    }

    /// The connection is gone.
    pub fn close(&self) {
        self.lock().closed = true;
        self.news.notify_all();
    }

    /// The agent is to stop.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.news.notify_all();
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Cancelled, "the connection to the server is gone or the agent stops")
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{ByteLen, ByteOffset, Extent};
    use wire::{Payload, Write};

    fn write(seq: u64, bytes: usize) -> AgentMessage {
        let extent = Extent::new(ByteOffset::new(seq * 4096), ByteLen::new(bytes as u64)).unwrap();
        AgentMessage::Write(Write {
            disk: DiskIndex(0),
            seq: Seq(seq),
            extent,
            payload: Payload::Data(vec![1; bytes]),
        })
    }

    #[test]
    fn what_is_gathered_leaves_in_order_before_what_is_sent_and_at_a_bound() {
        let (link, mut ends) = link();
        link.send_gathered().unwrap();
        link.gather(write(1, 4096)).unwrap();
        link.gather(write(2, 512)).unwrap();
        assert!(ends.outgoing.try_recv().is_err(), "it waits for more");
        link.send(AgentMessage::Goodbye).unwrap();
        let parcel = ends.outgoing.try_recv().unwrap();
        assert_eq!(parcel, [write(1, 4096), write(2, 512), AgentMessage::Goodbye]);
        let (many, large) = (PARCEL_MESSAGES as u64, 64 << 10);
        (0..many + 1).for_each(|seq| link.gather(write(seq, 512)).unwrap());
        (0..4).for_each(|seq| link.gather(write(seq, large)).unwrap());
        link.send_gathered().unwrap();
        assert_eq!(ends.outgoing.try_recv().unwrap().len(), PARCEL_MESSAGES);
        let bounded = ends.outgoing.try_recv().unwrap();
        assert_eq!(bounded.len(), 5, "one was left, and four make up the bytes");
        assert!(ends.outgoing.try_recv().is_err());
    }
}
