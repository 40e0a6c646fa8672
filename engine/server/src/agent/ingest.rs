//! From an agent's messages to its journal.
//!
//! ```text
//!   connection ──queue──▶ appender ──append──▶ journal        (in the order in which the agent sent)
//!                            │ └──hashes──▶ comparers ──▶ Differing
//!                            ▼
//!                         committer ──sync──▶ Ack             (by time or bytes)
//! ```
//!
//! One appender a connection keeps the order over all disks, so a checkpoint is sealed exactly between the writes before
//! and after it. The queue is bounded by bytes, whose permits free themselves: a slow store slows this agent alone.
//! Where the store is full the appender keeps the write in its hand and tries again, so nothing that was received has
//! to be asked for anew, and nothing is skipped.

use super::commit::Commit;
use super::comparers::Comparers;
use super::gaps;
use super::machine::Phase;
use super::requests::RequestEvent;
use super::source::Source;
use blocks::{ByteLen, CheckpointId, DiskIndex, Error, ErrorKind, Result, Seq, WriteTime, crash_point};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use store::{CheckpointSpec, Consistency};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wire::{CheckpointReport, HashReport, Payload, ServerMessage, Write};

/// What the queue of one connection may hold.
const QUEUE_BYTES: u32 = 32 << 20;
/// What an entry counts beyond its data.
const ENTRY_BYTES: u32 = 1 << 10;
/// How many checkpoints of a connection are kept in mind: days of them, and a verification takes hours.
const SEALED_MAX: usize = 4096;
/// No write of an agent takes up more than this.
const WRITE_BYTES_MAX: ByteLen = ByteLen::new(2 << 20);
/// How often a full store is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// What the agent sends that has to be taken in order.
#[derive(Debug)]
pub(crate) enum Work {
    Write(Write),
    /// One of all the machine's writes in their order, and when it was completed as far as its age tells.
    WriteInOrder(Write, WriteTime),
    Checkpoint(CheckpointReport),
    Hashes(HashReport),
}

#[derive(Debug)]
struct Entry {
    work: Work,
    _room: OwnedSemaphorePermit,
}

/// A running ingest. Must be finished; dropping it leaves its threads to end by themselves.
#[derive(Debug)]
pub(crate) struct Ingest {
    queue: mpsc::Sender<Entry>,
    room: Arc<Semaphore>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Ingest {
    /// Starts the threads. Call within the runtime that compares hashes.
    pub fn start(source: Source) -> Result<Ingest> {
        let source = Arc::new(source);
        let commit = Arc::new(Commit::new(source.clone()));
        let (queue, entries) = mpsc::channel();
        let stopping = Arc::new(AtomicBool::new(false));
        let comparers = Comparers::new(source.clone());
        let appender = Appender::new(source, commit.clone(), comparers);
        let ending = stopping.clone();
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let failed = |error| Error::io("starting an ingest thread", error);
            std::thread::Builder::new().name(name.into()).spawn(body).map_err(failed)
        };
        let committer = spawn("commit", Box::new(move || commit.run()))?;
        let threads = vec![spawn("append", Box::new(move || appender.run(&entries, &ending)))?, committer];
        let room = Arc::new(Semaphore::new(QUEUE_BYTES as usize));
        Ok(Ingest { queue, room, stopping, threads })
    }

    /// Hands over work, waiting for room. May be dropped: then the work was not handed over. An error means that the
    /// ingest has failed; [`Source::failure`] says why.
    pub async fn submit(&self, work: Work) -> Result<()> {
        let bytes = match &work {
            Work::Write(Write { payload: Payload::Data(data), .. })
            | Work::WriteInOrder(Write { payload: Payload::Data(data), .. }, _) => {
                u32::try_from(data.len()).unwrap_or(QUEUE_BYTES)
            }
            Work::Hashes(report) => u32::try_from(report.hashes.len() * 33).unwrap_or(QUEUE_BYTES),
            Work::Write(_) | Work::WriteInOrder(..) | Work::Checkpoint(_) => 0,
        };
        let permits = bytes.saturating_add(ENTRY_BYTES).min(QUEUE_BYTES);
        let ended = |_| Error::new(ErrorKind::Cancelled, "the ingest has ended");
        let room = self.room.clone().acquire_many_owned(permits).await.map_err(|_| ended(()))?;
        self.queue.send(Entry { work, _room: room }).map_err(|_| ended(()))
    }

    /// Appends and commits what was handed over, and returns when nothing more is done. Where the store is full, what
    /// is left is dropped: it was not acknowledged. Blocks.
    pub fn finish(self) {
        self.stopping.store(true, Ordering::Release);
        drop(self.queue);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("an ingest thread panicked");
            }
        }
    }
}

/// What takes the work, one piece after the other; the appending thread's state.
pub(super) struct Appender {
    source: Arc<Source>,
    commit: Arc<Commit>,
    comparers: Comparers,
    /// For each disk, the last number of this connection.
    last: Vec<Option<Seq>>,
    /// No write in order has a higher time.
    last_time: WriteTime,
    held: bool,
    /// The newest checkpoints of this connection, by request: those that may be verified.
    sealed: VecDeque<(u64, CheckpointId)>,
}

impl Appender {
    pub fn new(source: Arc<Source>, commit: Arc<Commit>, comparers: Comparers) -> Appender {
        let last = vec![None; source.disks.len()];
        let last_time = source.disks.iter().filter_map(|disk| disk.last_time()).max().unwrap_or_default();
        Appender { source, commit, comparers, last, last_time, held: false, sealed: VecDeque::new() }
    }

    fn run(mut self, entries: &mpsc::Receiver<Entry>, stopping: &AtomicBool) {
        while let Ok(entry) = entries.recv() {
            if let Err(error) = self.take(entry.work, stopping) {
                self.source.fail(error);
                break;
            }
            if self.source.has_failed() {
                break;
            }
        }
        self.comparers.wait();
        self.commit.close();
    }

    /// Does `work`, again and again while the store is full. `Cancelled` where the connection ends meanwhile.
    fn take(&mut self, work: Work, stopping: &AtomicBool) -> Result<()> {
        let mut next = self.step(work)?;
        while let Some(work) = next {
            if stopping.load(Ordering::Acquire) {
                return Err(Error::new(ErrorKind::Cancelled, "the connection ended while the store is full"));
            }
            std::thread::sleep(RETRY);
            next = self.step(work)?;
        }
        Ok(())
    }

    /// Tries `work` once. Gives it back where the store has no room: then nothing has changed, it comes before all
    /// other work, and is to be tried again. After an error nothing more may be taken.
    pub fn step(&mut self, work: Work) -> Result<Option<Work>> {
        let (work, done) = match work {
            Work::Write(write) => {
                let done = self.append(&write, None);
                (Work::Write(write), done)
            }
            Work::WriteInOrder(write, completed) => {
                let done = self.append(&write, Some(completed));
                (Work::WriteInOrder(write, completed), done)
            }
            Work::Checkpoint(report) => {
                let done = self.seal(&report);
                (Work::Checkpoint(report), done)
            }
            Work::Hashes(report) => return self.compare(report).map(|()| None),
        };
        match done {
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                self.hold(&error);
                Ok(Some(work))
            }
            Err(error) => Err(error),
            Ok(()) => {
                if std::mem::take(&mut self.held) {
                    self.source.machine.set_held(None);
                    self.source.tell(ServerMessage::Resume);
                }
                Ok(None)
            }
        }
    }

    fn append(&mut self, write: &Write, completed: Option<WriteTime>) -> Result<()> {
        let disk = self.source.disk(write.disk)?.clone();
        self.check_number(write.disk, write.seq, disk.last_seq())?;
        let (payload, bytes) = match &write.payload {
            Payload::Data(data) => (store::Payload::Data(data), write.extent.len()),
            Payload::Zero => (store::Payload::Zero, ByteLen::ZERO),
        };
        let appended = match completed.filter(|_| !self.source.unit.has_torn_tails()) {
            Some(completed) => {
                // What one message took longer than the next must not change their order.
                let time = completed.max(WriteTime(self.last_time.0 + 1));
                let appended = disk.append_in_order(write.seq, time, write.extent, payload);
                appended.map(|()| self.last_time = time)
            }
            None => disk.append(write.seq, write.extent, payload),
        };
        appended.map_err(|error| error.context(format_args!("disk {} {}", write.disk, write.extent)))?;
        self.last[usize::from(write.disk.0)] = Some(write.seq);
        crash_point("ingest.appended");
        self.source.machine.received(write.disk, bytes.get());
        self.commit.written(write.disk, bytes);
        Ok(())
    }

    /// Numbers rise by one a write; the first of a connection is higher than all before it.
    fn check_number(&self, disk: DiskIndex, seq: Seq, stored: Seq) -> Result<()> {
        let last = self.last[usize::from(disk.0)];
        let follows = last.map_or(seq > stored, |last| seq == last.next());
        if !follows {
            let expected = last.map_or(format!("more than {}", stored.0), |last| last.next().0.to_string());
            let context = format!("disk {disk}: write {} came where {expected} was due", seq.0);
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        Ok(())
    }

    fn seal(&mut self, report: &CheckpointReport) -> Result<()> {
        let seqs = self.check_instants(report)?;
        let spec = CheckpointSpec {
            name: report.name.clone(),
            consistency: consistency(report.consistency),
            source_time: report.taken_at,
            frozen_ms: report.frozen_ms,
            seqs: seqs.clone(),
            excluded: report.disks.iter().map(|disk| disk.excluded.clone()).collect(),
        };
        let (unit, generation) = (&self.source.unit, self.source.generation);
        let sealed = unit.seal_under(generation, self.source.branch, spec)?;
        for (index, seq) in (0..).zip(seqs) {
            self.source.acknowledge(DiskIndex(index), sealed.map(|_| seq))?;
        }
        let checkpoint = sealed.into_inner();
        match gaps::end_all(&self.source.unit) {
            // The checkpoint is there; taking it again for that would make a second one. The next one ends the gap.
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                tracing::warn!(%error, "the end of a gap could not be recorded");
            }
            ended => ended?,
        }
        self.source.machine.set_phase(Phase::Protected);
        self.sealed.push_back((report.request, checkpoint));
        if self.sealed.len() > SEALED_MAX {
            self.sealed.pop_front();
        }
        self.source.tell(ServerMessage::CheckpointSealed { request: report.request, checkpoint });
        self.source.requests.tell_blocking(report.request, RequestEvent::Sealed(checkpoint));
        Ok(())
    }

    /// Everything up to the instant was sent before the report, so it has been appended; what is not so is a mix-up
    /// that must not become a checkpoint. Gives the numbers that the journal holds.
    fn check_instants(&self, report: &CheckpointReport) -> Result<Vec<Seq>> {
        let wrong = |what: String| Err(Error::new(ErrorKind::InvalidInput, format!("a checkpoint {what}")));
        if report.disks.len() != self.source.disks.len() {
            return wrong(format!(
                "of {} disks, of a machine of {}",
                report.disks.len(),
                self.source.disks.len()
            ));
        }
        for ((index, instant), disk) in report.disks.iter().enumerate().zip(&self.source.disks) {
            // Where this connection has sent nothing of a disk, earlier ones have: what has come is the most there can be.
            let stored = disk.last_seq();
            let here = self.last[index].map_or(instant.seq <= stored, |last| instant.seq == last);
            if !here {
                let last = self.last[index].unwrap_or(stored).0;
                return wrong(format!("at write {} of disk {index}, whose last was {last}", instant.seq.0));
            }
            let len = blocks::Volume::len(disk);
            if instant.len != len {
                return wrong(format!("of disk {index} with {} bytes, registered with {len}", instant.len));
            }
        }
        Ok(self.source.disks.iter().map(|disk| disk.last_seq()).collect())
    }

    fn compare(&mut self, report: HashReport) -> Result<()> {
        use wire::HashPurpose::{Restore, Scan, Verify};
        match report.purpose {
            Scan => self.comparers.scan(report),
            Verify { request, last } => match self.sealed.iter().rfind(|(sealed, _)| *sealed == request) {
                Some((_, checkpoint)) => self.comparers.verify(report, request, *checkpoint, last),
                None => {
                    Err(Error::new(ErrorKind::InvalidInput, "hashes for a checkpoint that was not sealed"))
                }
            },
            Restore { .. } => {
                Err(Error::new(ErrorKind::InvalidInput, "hashes for a failback that is not going on"))
            }
        }
    }

    fn hold(&mut self, error: &Error) {
        if !self.held {
            self.held = true;
            // A record is a little longer than what it holds.
            let is_quota = self.source.unit.is_quota_reached(WRITE_BYTES_MAX).unwrap_or(false);
            let cause = if is_quota { gaps::QUOTA } else { gaps::FULL };
            let reason = format!("{cause}: {error}");
            tracing::warn!(machine = %self.source.machine.id(), "{reason}");
            self.source.machine.set_held(Some(reason.clone()));
            self.source.tell(ServerMessage::Hold { reason });
            if let Err(error) = gaps::begin(&self.source.unit, cause) {
                // Where even that finds no room, the hold itself is still seen in the machine's state.
                tracing::warn!(%error, "the gap could not be recorded");
            }
        }
    }
}

fn consistency(reported: wire::Consistency) -> Consistency {
    match reported {
        wire::Consistency::Crash => Consistency::Crash,
        wire::Consistency::FileSystem => Consistency::FileSystem,
        wire::Consistency::Application => Consistency::Application,
        wire::Consistency::Fuzzy => Consistency::Fuzzy,
    }
}
