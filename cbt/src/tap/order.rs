//! The machine's writes in order, on their way to the server: one queue for all tapped disks.
//!
//! ```text
//!                ┌───────── full, failed write, connection lost with marks unsent ─────────┐
//!                ▼                                                                         │
//!  Marking ── little marked, queue empty ──► Joining ── all marks read and sent ──► Ordered
//!                ▲                              │ full                                     │ flush: instant
//!                └──────────────────────────────┘                                          └─ connection lost: kept
//! ```
//!
//! An entry stays until the server has acknowledged it, so a short cut of the network leaves no hole. Whether a completed
//! write is put here or marked is decided under the lock of the queue, so that a change of mode misses none. Why each
//! step keeps the order: docs/design/0019-tap.md.

use super::medium::memory_of;
use crate::link::Nudge;
use crate::tracker::Changed;
use blocks::{AlignedBuffer, ByteLen, DiskIndex, Extent, Result, Seq, WallClock};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::Consistency;

/// What an entry takes beyond its data, in bytes.
const ENTRY_BYTES: u64 = 256;

/// The queue; see the module.
pub(crate) struct Order {
    /// How much memory it may take.
    bytes_max: u64,
    /// How far apart instants of flushes are at least.
    every: Duration,
    state: Mutex<State>,
}

/// What becomes of a completed write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// It is marked.
    Marking,
    /// It is put into the queue; what was marked before is still being read.
    Joining,
    /// It is put into the queue, and the server has everything before the queue.
    Ordered,
}

struct State {
    mode: Mode,
    /// Since when writes are only marked, and why; `None` where no order was lost.
    fallen: Option<(WallClock, String)>,
    /// How often order was lost.
    falls: u64,
    /// Why a full queue would be full.
    unconnected: bool,
    waiting: VecDeque<Entry>,
    /// Sent, not acknowledged.
    sent: VecDeque<(DiskIndex, Seq, Entry)>,
    bytes: u64,
    /// Something was put in since the last instant.
    changed: bool,
    /// Somebody flushed since the last instant.
    flushed: bool,
    last_instant: Option<Instant>,
    nudge: Option<Nudge>,
}

enum Entry {
    Write(OrderedWrite),
    Instant(Moment),
}

/// A completed write.
#[derive(Clone)]
pub(crate) struct OrderedWrite {
    pub disk: DiskIndex,
    pub extent: Extent,
    /// `None`: zeroes.
    pub payload: Option<Arc<AlignedBuffer>>,
    /// When, where it is in order with all that the server gets before it.
    pub completed: Option<Instant>,
}

/// A point of the queue that is to become a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Moment {
    pub taken_at: WallClock,
    pub consistency: Consistency,
    pub frozen: Duration,
    /// Whose wish it was; `None` for a flush.
    pub request: Option<u64>,
    pub name: String,
    /// Whether source and checkpoint are to be compared afterwards.
    pub verify: bool,
}

/// What is to be sent next.
pub(crate) enum Next {
    Write(OrderedWrite),
    Instant(Moment),
}

impl Next {
    /// How many bytes it carries.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Next::Write(write) => write.payload.as_ref().map_or(0, |payload| payload.len()),
            Next::Instant(_) => 0,
        }
    }
}

impl Entry {
    fn bytes(&self) -> u64 {
        match self {
            Entry::Write(OrderedWrite { payload: Some(buffer), .. }) => {
                ENTRY_BYTES + memory_of(ByteLen::of(buffer))
            }
            Entry::Write(_) | Entry::Instant(_) => ENTRY_BYTES,
        }
    }

    /// Something that came before it comes after it now.
    fn disorder(&mut self) {
        if let Entry::Write(write) = self {
            write.completed = None;
        }
    }
}

impl Order {
    /// An empty queue that takes at most so much memory, marking.
    pub fn new(bytes_max: ByteLen, every: Duration) -> Order {
        let state = State {
            mode: Mode::Marking,
            fallen: None,
            falls: 0,
            unconnected: true,
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            bytes: 0,
            changed: false,
            flushed: false,
            last_instant: None,
            nudge: None,
        };
        Order { bytes_max: bytes_max.get(), every, state: Mutex::new(state) }
    }

    /// A write has completed: it is put in, or marked. The caller holds the range.
    pub fn put(
        &self,
        disk: DiskIndex,
        extent: Extent,
        payload: Option<AlignedBuffer>,
        changed: &Changed,
    ) -> Result<()> {
        let mut state = self.lock();
        if state.mode != Mode::Marking {
            let payload = payload.map(Arc::new);
            let completed = (state.mode == Mode::Ordered).then(Instant::now);
            let entry = Entry::Write(OrderedWrite { disk, extent, payload, completed });
            let bytes = entry.bytes();
            if state.bytes + bytes <= self.bytes_max {
                state.bytes += bytes;
                state.changed = true;
                state.push(entry);
                return Ok(());
            }
            let cause = match state.unconnected {
                true => "no connection to the server, and the tap's queue is full",
                false => "the server takes writes slower than they come, and the tap's queue is full",
            };
            state.fall(cause);
        }
        changed.mark(&[extent])
    }

    /// A write has failed: what the disk holds there is not known.
    pub fn spoil(&self, extent: Extent, cause: &str, changed: &Changed) -> Result<()> {
        let mut state = self.lock();
        state.fall(cause);
        changed.mark(&[extent])
    }

    /// A flush has completed. Whatever completed before it is in the queue.
    pub fn flushed(&self) {
        let mut state = self.lock();
        state.flushed = true;
        self.put_due_instant(&mut state);
    }

    /// A flush that came too soon after the last instant gets its own now, if it is time.
    pub fn put_due(&self) {
        self.put_due_instant(&mut self.lock());
    }

    fn put_due_instant(&self, state: &mut State) {
        let is_time = state.last_instant.is_none_or(|last| last.elapsed() >= self.every);
        if state.flushed && state.changed && is_time && state.mode == Mode::Ordered {
            state.put_instant(Moment::crash(WallClock::now()));
        }
    }

    /// Puts an instant at the end. `false` where there is no order.
    pub fn put_instant(&self, moment: Moment) -> bool {
        let mut state = self.lock();
        let ordered = state.mode == Mode::Ordered;
        if ordered {
            state.put_instant(moment);
        }
        ordered
    }

    /// What was promised of the instant that this request put in does not hold; that it is an instant does.
    pub fn weaken(&self, request: u64) {
        for entry in self.lock().waiting.iter_mut().rev() {
            if let Entry::Instant(moment) = entry
                && moment.request == Some(request)
            {
                moment.consistency = Consistency::Crash;
            }
        }
    }

    /// What a completed write meets now.
    pub fn mode(&self) -> Mode {
        self.lock().mode
    }

    /// Since when there is no order, and why.
    pub fn fallen(&self) -> Option<(WallClock, String)> {
        self.lock().fallen.clone()
    }

    /// Whether marks may be taken now, which lasts as long as this number: `None` while older writes wait to be sent. Behind a
    /// mark that a full queue has left, they would put back what the disk held before.
    pub fn lets_marks_go(&self) -> Option<u64> {
        let state = self.lock();
        let holds_older = state.mode == Mode::Marking && !state.waiting.is_empty();
        (!holds_older).then_some(state.falls)
    }

    /// Whether nothing waits to be sent.
    pub fn is_drained(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// Writes go into the queue from here on. Only with the queue drained.
    pub fn join(&self) {
        let mut state = self.lock();
        if state.mode == Mode::Marking && state.waiting.is_empty() {
            state.mode = Mode::Joining;
        }
    }

    /// Everything marked before [`Order::join`] was read and sent: the end of the queue is an instant. `false` where the
    /// queue was full meanwhile: begin again.
    pub fn joined(&self) -> bool {
        let mut state = self.lock();
        if state.mode != Mode::Joining {
            return false;
        }
        state.mode = Mode::Ordered;
        state.fallen = None;
        state.put_instant(Moment::crash(WallClock::now()));
        true
    }

    /// What is to be sent next, of both at most so much and at least one entry; it stays in place until [`Order::sent`].
    pub fn next(&self, bytes_max: u64, entries_max: usize) -> Vec<Next> {
        let state = self.lock();
        let mut bytes = 0;
        let next = state.waiting.iter().take(entries_max).take_while(|entry| {
            let fits = bytes < bytes_max;
            bytes += entry.bytes();
            fits
        });
        // Not the bytes themselves: who puts in waits for this lock.
        next.map(|entry| match entry {
            Entry::Write(write) => Next::Write(write.clone()),
            Entry::Instant(moment) => Next::Instant(moment.clone()),
        })
        .collect()
    }

    /// The next entries were sent: writes under these numbers, instants under none.
    pub fn sent(&self, numbers: &[Option<Seq>]) {
        let mut state = self.lock();
        for number in numbers {
            match (state.waiting.pop_front(), number) {
                (Some(Entry::Write(write)), Some(seq)) => {
                    state.sent.push_back((write.disk, *seq, Entry::Write(write)));
                }
                (Some(gone), _) => state.bytes -= gone.bytes(),
                (None, _) => {}
            }
        }
    }

    /// The server has these numbers on its medium.
    pub fn acknowledged(&self, acked: impl Fn(DiskIndex) -> Seq) {
        let mut state = self.lock();
        let (count, bytes) = state
            .sent
            .iter()
            .take_while(|(disk, seq, _)| *seq <= acked(*disk))
            .fold((0, 0), |(count, bytes), (_, _, entry)| (count + 1, bytes + entry.bytes()));
        let gone: Vec<_> = state.sent.drain(..count).collect();
        state.bytes -= bytes;
        // Giving memory back takes a while, and who puts in waits for this lock.
        drop(state);
        drop(gone);
    }

    /// A connection is there: `durable` of each disk needs not be sent again, whoever waits is to be woken.
    pub fn connected(&self, durable: impl Fn(DiskIndex) -> Seq, nudge: Nudge) {
        let mut state = self.lock();
        state.unconnected = false;
        state.nudge = Some(nudge);
        let sent = std::mem::take(&mut state.sent);
        let (dropped, kept): (Vec<_>, Vec<_>) =
            sent.into_iter().partition(|(disk, seq, _)| *seq <= durable(*disk));
        dropped.iter().for_each(|(_, _, entry)| state.bytes -= entry.bytes());
        kept.into_iter().rev().for_each(|(_, _, entry)| state.waiting.push_front(entry));
    }

    /// The connection is gone. With `takings_unsent`, of marks that the server was sent and has not acknowledged, it lacks
    /// more than the queue holds: there is no order until it is joined again, and no instant of the queue is one.
    pub fn disconnected(&self, takings_unsent: bool) {
        let mut state = self.lock();
        state.unconnected = true;
        state.nudge = None;
        state.lose(takings_unsent);
    }

    /// The server says that what it has not acknowledged is to be sent again; `takings_unsent` as above.
    pub fn rewind(&self, takings_unsent: bool) {
        let mut state = self.lock();
        // It may have some of them.
        state.sent.iter_mut().for_each(|(_, _, entry)| entry.disorder());
        let sent = std::mem::take(&mut state.sent);
        sent.into_iter().rev().for_each(|(_, _, entry)| state.waiting.push_front(entry));
        state.lose(takings_unsent);
    }

    /// There is no order any more, and the queue is no prefix of anything: what was in it, to be marked.
    pub fn abandon(&self, cause: &str, mark: impl Fn(DiskIndex, Extent)) {
        let mut state = self.lock();
        if state.mode != Mode::Marking {
            state.fall(cause);
        }
        let sent = std::mem::take(&mut state.sent).into_iter().map(|(_, _, entry)| entry);
        for entry in sent.chain(std::mem::take(&mut state.waiting)) {
            if let Entry::Write(write) = entry {
                mark(write.disk, write.extent);
            }
        }
        state.bytes = 0;
    }

    /// Runs `see` on each write of the disk that the server has not acknowledged.
    pub fn each(&self, disk: DiskIndex, mut see: impl FnMut(Extent)) {
        let state = self.lock();
        let sent = state.sent.iter().map(|(_, _, entry)| entry);
        for entry in sent.chain(&state.waiting) {
            if let Entry::Write(write) = entry
                && write.disk == disk
            {
                see(write.extent);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, entry: Entry) {
        let first = self.waiting.is_empty();
        self.waiting.push_back(entry);
        if first && let Some(nudge) = &self.nudge {
            nudge.give();
        }
    }

    fn put_instant(&mut self, moment: Moment) {
        self.bytes += ENTRY_BYTES;
        (self.changed, self.flushed) = (false, false);
        self.last_instant = Some(Instant::now());
        self.push(Entry::Instant(moment));
    }

    fn lose(&mut self, takings_unsent: bool) {
        for entry in &mut self.waiting {
            if let Entry::Instant(moment) = entry {
                (moment.request, moment.verify) = (None, false);
            }
        }
        if takings_unsent || self.mode == Mode::Joining {
            self.drop_instants();
            self.waiting.iter_mut().for_each(Entry::disorder);
            self.sent.iter_mut().for_each(|(_, _, entry)| entry.disorder());
            if self.mode != Mode::Marking {
                self.fall("the connection was lost before all that was marked had been sent");
            }
        }
    }

    fn fall(&mut self, cause: &str) {
        self.mode = Mode::Marking;
        self.falls += 1;
        self.fallen.get_or_insert_with(|| (WallClock::now(), cause.to_owned()));
    }

    fn drop_instants(&mut self) {
        let before = self.waiting.len();
        self.waiting.retain(|entry| !matches!(entry, Entry::Instant(_)));
        self.bytes -= (before - self.waiting.len()) as u64 * ENTRY_BYTES;
    }
}

impl Moment {
    /// What a power cut would have left then.
    pub fn crash(taken_at: WallClock) -> Moment {
        let (frozen, name) = (Duration::ZERO, String::new());
        Moment { taken_at, consistency: Consistency::Crash, frozen, request: None, name, verify: false }
    }
}
