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
use blocks::{CheckpointId, DiskIndex, Error, ErrorKind, Result, Seq, crash_point};
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
/// How often a full store is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// What the agent sends that has to be taken in order.
#[derive(Debug)]
pub(crate) enum Work {
    Write(Write),
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
        let appender = Appender {
            commit: commit.clone(),
            comparers: Comparers::new(source.clone()),
            stopping: stopping.clone(),
            last: vec![None; source.disks.len()],
            source,
            held: false,
            sealed: VecDeque::new(),
        };
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let failed = |error| Error::io("starting an ingest thread", error);
            std::thread::Builder::new().name(name.into()).spawn(body).map_err(failed)
        };
        let committer = spawn("commit", Box::new(move || commit.run()))?;
        let threads = vec![spawn("append", Box::new(move || appender.run(&entries)))?, committer];
        let room = Arc::new(Semaphore::new(QUEUE_BYTES as usize));
        Ok(Ingest { queue, room, stopping, threads })
    }

    /// Hands over work, waiting for room. May be dropped: then the work was not handed over. An error means that the
    /// ingest has failed; [`Source::failure`] says why.
    pub async fn submit(&self, work: Work) -> Result<()> {
        let bytes = match &work {
            Work::Write(Write { payload: Payload::Data(data), .. }) => {
                u32::try_from(data.len()).unwrap_or(QUEUE_BYTES)
            }
            Work::Hashes(report) => u32::try_from(report.hashes.len() * 33).unwrap_or(QUEUE_BYTES),
            Work::Write(_) | Work::Checkpoint(_) => 0,
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

/// The appending thread's state.
struct Appender {
    source: Arc<Source>,
    commit: Arc<Commit>,
    comparers: Comparers,
    stopping: Arc<AtomicBool>,
    /// For each disk, the last number of this connection.
    last: Vec<Option<Seq>>,
    held: bool,
    /// The newest checkpoints of this connection, by request: those that may be verified.
    sealed: VecDeque<(u64, CheckpointId)>,
}

impl Appender {
    fn run(mut self, entries: &mpsc::Receiver<Entry>) {
        while let Ok(entry) = entries.recv() {
            let done = match entry.work {
                Work::Write(write) => self.append(&write),
                Work::Checkpoint(report) => self.seal(report),
                Work::Hashes(report) => self.compare(report),
            };
            if let Err(error) = done {
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

    fn append(&mut self, write: &Write) -> Result<()> {
        let disk = self.source.disk(write.disk)?.clone();
        self.check_number(write.disk, write.seq, disk.last_seq())?;
        let (payload, bytes) = match &write.payload {
            Payload::Data(data) => (store::Payload::Data(data), write.extent.len()),
            Payload::Zero => (store::Payload::Zero, blocks::ByteLen::ZERO),
        };
        self.when_there_is_room(|| disk.append(write.seq, write.extent, payload))
            .map_err(|error| error.context(format_args!("disk {} {}", write.disk, write.extent)))?;
        crash_point("ingest.appended");
        self.source.machine.received(write.disk, bytes.get());
        self.commit.written(write.disk, bytes);
        Ok(())
    }

    /// Numbers rise by one a write; the first of a connection is higher than all before it.
    fn check_number(&mut self, disk: DiskIndex, seq: Seq, stored: Seq) -> Result<()> {
        let last = &mut self.last[usize::from(disk.0)];
        let follows = last.map_or(seq > stored, |last| seq == last.next());
        if !follows {
            let expected = last.map_or(format!("more than {}", stored.0), |last| last.next().0.to_string());
            let context = format!("disk {disk}: write {} came where {expected} was due", seq.0);
            return Err(Error::new(ErrorKind::InvalidInput, context));
        }
        *last = Some(seq);
        Ok(())
    }

    fn seal(&mut self, report: CheckpointReport) -> Result<()> {
        let seqs = self.check_instants(&report)?;
        let spec = CheckpointSpec {
            name: report.name,
            consistency: consistency(report.consistency),
            source_time: report.taken_at,
            frozen_ms: report.frozen_ms,
            seqs: seqs.clone(),
            excluded: report.disks.into_iter().map(|disk| disk.excluded).collect(),
        };
        let (unit, branch) = (self.source.unit.clone(), self.source.branch);
        let sealed = self.when_there_is_room(|| unit.seal(branch, spec.clone()))?;
        for (index, seq) in (0..).zip(seqs) {
            self.source.acknowledge(DiskIndex(index), sealed.map(|_| seq))?;
        }
        let checkpoint = sealed.into_inner();
        gaps::end_all(&self.source.unit)?;
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

    /// Does `work`, again and again while the store is full. `Cancelled` where the connection ends meanwhile.
    fn when_there_is_room<T>(&mut self, work: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            match work() {
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    if self.stopping.load(Ordering::Acquire) {
                        return Err(Error::new(
                            ErrorKind::Cancelled,
                            "the connection ended while the store is full",
                        ));
                    }
                    self.hold(&error)?;
                    std::thread::sleep(RETRY);
                }
                result => {
                    if result.is_ok() && std::mem::take(&mut self.held) {
                        self.source.machine.set_held(None);
                        self.source.tell(ServerMessage::Resume);
                    }
                    return result;
                }
            }
        }
    }

    fn hold(&mut self, error: &Error) -> Result<()> {
        if !self.held {
            self.held = true;
            let reason = format!("the store is full: {error}");
            tracing::warn!(machine = %self.source.machine.id(), "{reason}");
            self.source.machine.set_held(Some(reason.clone()));
            self.source.tell(ServerMessage::Hold { reason });
            if let Err(error) = gaps::begin(&self.source.unit, "the store is full") {
                // Where even that finds no room, the hold itself is still seen in the machine's state.
                tracing::warn!(%error, "the gap could not be recorded");
            }
        }
        Ok(())
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
