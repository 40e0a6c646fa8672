//! A welcomed agent's connection, to its end.
//!
//! One task owns the state: a `select` yields an [`Event`], [`Conversation::apply`] changes the state. What blocks is on
//! other threads (see `ingest`); what is sent goes through one bounded queue to the task that writes.
//!
//! ```text
//!             Source ◀──────────── RestoreFinished ───────────┐
//!               │ fenced: the connection ends, comes back as   │
//!               ▼                                              │
//!            (ended) ── hello ──▶ Standby ── failback ─────────┘
//! ```

use super::context::AgentContext;
use super::gaps;
use super::greeting::Admitted;
use super::handle::{AgentHandle, HandleEnds, Order};
use super::homecoming::Homecoming;
use super::ingest::{Ingest, Work};
use super::machine::{Machine, Phase};
use super::registration::refusal;
use super::restore_link::{LinkEnds, is_restore_answer, is_restore_order};
use super::source::Source;
use blocks::{Compression, Error, ErrorKind, Result, WriteTime};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Gap, Unit};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use wire::{
    AgentMessage, Hello, Peer, Receiver, Refusal, RefusalKind, Role, Sender, ServerConnection, ServerMessage,
    StartFrom,
};

/// How many messages wait to be sent. With payloads (failback only) of at most 1 MiB this bounds the memory.
const OUT_QUEUE: usize = 16;
/// How long the last messages may take to leave.
const FAREWELL: Duration = Duration::from_secs(5);

/// A connection after its welcome.
pub(super) struct Conversation {
    context: Arc<AgentContext>,
    peer: Peer,
    name: String,
    machine: Arc<Machine>,
    unit: Arc<Unit>,
    handle: AgentHandle,
    ends: HandleEnds,
    receiver: Receiver<AgentMessage>,
    out: mpsc::Sender<ServerMessage>,
    writer: JoinHandle<()>,
    /// `None` while standing by.
    ingest: Option<Ingest>,
    /// Why the ingest has stopped.
    failure: watch::Receiver<Option<Arc<Error>>>,
    link: Option<Link>,
    goodbye: bool,
}

/// The connection's side of a failback.
struct Link {
    answers: mpsc::Sender<AgentMessage>,
    forward: JoinHandle<()>,
}

/// What happens on a connection.
enum Event {
    Said(AgentMessage),
    Closed,
    Order(Order),
    End(Refusal),
    IngestFailed(Arc<Error>),
}

/// Whether the connection goes on.
enum Next {
    GoOn,
    Close,
    Refuse(Refusal),
}

impl Conversation {
    /// Takes up the role of the welcome that was sent.
    pub async fn start(
        context: Arc<AgentContext>,
        peer: Peer,
        admitted: Admitted,
        hello: &Hello,
        connection: ServerConnection,
    ) -> Result<Conversation> {
        let Admitted { machine, unit, handle, ends, welcome, starts } = admitted;
        let (mut sender, mut receiver) = connection.split();
        // What comes home travels the same link.
        sender.set_compression(Compression::Auto);
        // A peer that is silent for twice as long as makes it failed is not worth its socket.
        receiver.set_idle_timeout(Some(context.deadlines.failed * 2));
        let (out, messages) = mpsc::channel(OUT_QUEUE);
        let writer = tokio::spawn(write_all(sender, messages));
        machine.set_trackers(hello.disks.iter().map(|disk| disk.tracker.clone()).collect());
        let mut conversation = Conversation {
            context,
            peer,
            name: hello.name.clone(),
            machine,
            unit,
            handle,
            ends,
            receiver,
            out,
            writer,
            ingest: None,
            failure: watch::channel(None).1,
            link: None,
            goodbye: false,
        };
        let begun = match welcome.role {
            Role::Standby { reason } => {
                conversation.machine.set_phase(Phase::Standby(reason));
                Ok(())
            }
            Role::Source => conversation.begin_as_source(starts, hello.clone()).await,
        };
        if let Err(error) = begun {
            conversation.end(Some(refusal(RefusalKind::Busy, error.to_string()))).await;
            return Err(error);
        }
        Ok(conversation)
    }

    async fn begin_as_source(&mut self, starts: Vec<StartFrom>, hello: Hello) -> Result<()> {
        let unit = self.unit.clone();
        let has_checkpoints = blocking(move || {
            Homecoming::settle(&unit, &hello.disks)?;
            let inventory = hello.inventory.into_bytes();
            if unit.definition() != inventory {
                unit.set_definition(inventory)?;
            }
            if starts.contains(&StartFrom::Scan) {
                gaps::begin(&unit, gaps::SCAN)?;
            }
            Ok((starts, !unit.checkpoints().is_empty()))
        });
        let phase = match has_checkpoints.await? {
            (starts, _) if starts.contains(&StartFrom::Scan) => Phase::Scanning,
            (starts, true) if !starts.contains(&StartFrom::Everything) => Phase::Protected,
            _ => Phase::InitialCopy,
        };
        self.start_ingest().await?;
        self.machine.set_source(phase, Instant::now());
        Ok(())
    }

    /// Opens the main branch for what the agent sends from now on.
    async fn start_ingest(&mut self) -> Result<()> {
        let (unit, machine, requests) = (self.unit.clone(), self.machine.clone(), self.ends.requests.clone());
        let out = self.out.clone();
        let source = blocking(move || Source::new(unit, machine, requests, out)).await?;
        self.failure = source.failure.subscribe();
        self.ingest = Some(Ingest::start(source)?);
        Ok(())
    }

    /// Serves the agent until it goes, or has to.
    pub async fn run(mut self) -> Result<()> {
        let last = loop {
            let event = self.next().await;
            match self.apply(event).await {
                Ok(Next::GoOn) => {}
                Ok(Next::Close) => break Ok(None),
                Ok(Next::Refuse(refusal)) => break Ok(Some(refusal)),
                Err(error) => break Err(error),
            }
        };
        let name = self.name.clone();
        match last {
            Ok(refusal) => {
                self.end(refusal).await;
                Ok(())
            }
            Err(error) => {
                self.end(Some(refusal(RefusalKind::Busy, error.to_string()))).await;
                Err(error.context(format_args!("the agent of '{name}'")))
            }
        }
    }

    /// What happens next. May be dropped at any await.
    async fn next(&mut self) -> Event {
        tokio::select! {
            biased;
            Ok(()) = self.ends.end.changed() => {
                let refusal = self.ends.end.borrow_and_update().clone();
                refusal.map_or(Event::Closed, Event::End)
            }
            Ok(()) = self.failure.changed() => match self.failure.borrow_and_update().clone() {
                Some(error) => Event::IngestFailed(error),
                None => Event::Closed,
            },
            () = self.out.closed() => Event::Closed,
            Some(order) = self.ends.orders.recv() => Event::Order(order),
            received = self.receiver.recv() => match received {
                Ok(Some(message)) => Event::Said(message),
                Ok(None) => Event::Closed,
                Err(error) => {
                    tracing::info!(%error, "the connection is lost");
                    Event::Closed
                }
            },
        }
    }

    async fn apply(&mut self, event: Event) -> Result<Next> {
        match event {
            Event::Closed => Ok(Next::Close),
            Event::End(refusal) => Ok(Next::Refuse(refusal)),
            Event::IngestFailed(error) => {
                tracing::error!(%error, name = self.name, "ingest has stopped");
                Ok(Next::Refuse(refusal(RefusalKind::Busy, error.to_string())))
            }
            Event::Order(Order::Send(message)) => {
                self.send_order(message).await;
                Ok(Next::GoOn)
            }
            Event::Order(Order::Link(ends)) => {
                self.take_link(ends);
                Ok(Next::GoOn)
            }
            Event::Said(message) => {
                self.machine.heard(Instant::now());
                self.hear(message).await
            }
        }
    }

    async fn send_order(&mut self, message: ServerMessage) {
        match (&message, &self.ingest) {
            (ServerMessage::TakeCheckpoint { request, .. }, None) => {
                self.ends.requests.fail(*request, "the machine stands by: a session is in charge".into());
            }
            // Where the writer is gone, the connection is about to end.
            _ => drop(self.out.send(message).await),
        }
    }

    fn take_link(&mut self, ends: LinkEnds) {
        let LinkEnds { mut outgoing, answers } = ends;
        let out = self.out.clone();
        let forward = tokio::spawn(async move {
            while let Some(message) = outgoing.recv().await {
                if !is_restore_order(&message) {
                    tracing::error!("a failback sent what is none of its messages");
                } else if out.send(message).await.is_err() {
                    return;
                }
            }
        });
        if let Some(before) = self.link.replace(Link { answers, forward }) {
            before.forward.abort();
        }
    }

    async fn hear(&mut self, message: AgentMessage) -> Result<Next> {
        match message {
            message if is_restore_answer(&message) => return self.hear_restore(message).await,
            AgentMessage::Write(write) => return self.submit(Work::Write(write)).await,
            AgentMessage::WriteInOrder { write, age_us } => {
                let completed = WriteTime::ago(Duration::from_micros(age_us));
                return self.submit(Work::WriteInOrder(write, completed)).await;
            }
            AgentMessage::Checkpoint(report) => return self.submit(Work::Checkpoint(report)).await,
            AgentMessage::Hashes(report) => return self.submit(Work::Hashes(report)).await,
            AgentMessage::Heartbeat(heartbeat) => {
                self.machine.heartbeat(heartbeat, Instant::now());
                return self.check_certificate();
            }
            AgentMessage::Gap(report) => {
                let unit = self.unit.clone();
                let gap = Gap { from: report.from, until: report.until, cause: report.cause };
                blocking(move || unit.record_gap(gap)).await?;
            }
            AgentMessage::CheckpointFailed { request, reason } => self.ends.requests.fail(request, reason),
            AgentMessage::Goodbye => {
                self.goodbye = true;
                return Ok(Next::Close);
            }
            _ => return Err(Error::new(ErrorKind::InvalidInput, "a message that has no place here")),
        }
        Ok(Next::GoOn)
    }

    /// A certificate may have been revoked while the connection lasts.
    fn check_certificate(&self) -> Result<Next> {
        match self.context.authority.authorize(&self.peer, &self.name, Some(self.machine.id())) {
            Ok(()) => Ok(Next::GoOn),
            Err(error) => Ok(Next::Refuse(refusal(RefusalKind::Identity, error.to_string()))),
        }
    }

    /// Hands work to the ingest. While that has no room the connection is not read, and the agent counts as heard of: it
    /// is we who do not listen.
    async fn submit(&mut self, work: Work) -> Result<Next> {
        let Some(ingest) = &self.ingest else {
            let reason = "a machine that stands by sent data; it must connect again";
            return Ok(Next::Refuse(refusal(RefusalKind::Busy, reason)));
        };
        let mut waiting = tokio::time::interval(Duration::from_secs(1));
        let submitted = ingest.submit(work);
        tokio::pin!(submitted);
        loop {
            tokio::select! {
                biased;
                // A failed ingest says why through `failure`, which is the next event.
                _ = &mut submitted => return Ok(Next::GoOn),
                Ok(()) = self.ends.end.changed() => {
                    let refusal = self.ends.end.borrow_and_update().clone();
                    return Ok(refusal.map_or(Next::Close, Next::Refuse));
                }
                () = self.out.closed() => return Ok(Next::Close),
                _ = waiting.tick() => self.machine.heard(Instant::now()),
            }
        }
    }

    async fn hear_restore(&mut self, message: AgentMessage) -> Result<Next> {
        if matches!(message, AgentMessage::RestoreFinished { .. }) {
            self.become_source().await?;
        }
        let delivered = match &self.link {
            Some(link) => link.answers.send(message).await.is_ok(),
            None => false,
        };
        if !delivered {
            tracing::warn!(name = self.name, "an answer came for a failback that is over");
        }
        Ok(Next::GoOn)
    }

    /// The machine's disks hold the newest checkpoint of what is the main branch by now: replication goes on from there.
    async fn become_source(&mut self) -> Result<()> {
        self.finish_ingest().await;
        self.start_ingest().await?;
        self.machine.set_source(Phase::Protected, Instant::now());
        Ok(())
    }

    async fn finish_ingest(&mut self) {
        if let Some(ingest) = self.ingest.take() {
            // Waits for threads, and for nothing but them; a panic in there has been reported.
            let _ = tokio::task::spawn_blocking(move || ingest.finish()).await;
        }
    }

    /// Ends everything that belongs to the connection, then gives its machine's place free.
    async fn end(mut self, refusal: Option<Refusal>) {
        self.ends.requests.close();
        let was_source = self.ingest.is_some();
        let shutdown = refusal.as_ref().is_some_and(|refusal| refusal.kind == RefusalKind::Shutdown);
        if let Some(ingest) = self.ingest.take() {
            let mut finishing = tokio::task::spawn_blocking(move || ingest.finish());
            if tokio::time::timeout(FAREWELL, &mut finishing).await.is_err() {
                // It may wait for room in the queue of messages while its agent reads nothing; now that fails.
                self.writer.abort();
                let _ = finishing.await;
            }
        }
        if let Some(link) = self.link.take() {
            link.forward.abort();
        }
        if was_source && !self.goodbye {
            let (unit, cause) = (self.unit.clone(), if shutdown { gaps::SHUTDOWN } else { gaps::LOST });
            if let Err(error) = blocking(move || gaps::begin(&unit, cause)).await {
                tracing::error!(%error, name = self.name, "the gap could not be recorded");
            }
        }
        // Nothing more is appended: whoever comes next need not wait until this one has been told.
        self.machine.leave_place(&self.handle, self.goodbye, Instant::now());
        self.ends.ended.send_replace(true);
        if let Some(refusal) = refusal {
            let told = self.out.send(ServerMessage::Refused(refusal));
            // Who cannot be told finds out by the connection's end.
            let _ = tokio::time::timeout(FAREWELL, told).await;
        }
        // The writer ends when nobody can give it anything more.
        drop(self.out);
        if tokio::time::timeout(FAREWELL, &mut self.writer).await.is_err() {
            self.writer.abort();
        }
        tracing::info!(name = self.name, goodbye = self.goodbye, "the agent has gone");
    }
}

/// The writing task: a message that was begun is always finished.
async fn write_all(mut sender: Sender<ServerMessage>, mut messages: mpsc::Receiver<ServerMessage>) {
    while let Some(message) = messages.recv().await {
        if let Err(error) = sender.send(&message).await {
            tracing::info!(%error, "an agent cannot be told anything more");
            return;
        }
    }
    // The other side may be gone already, which is what closing wants.
    let _ = sender.close().await;
}

/// Does `work` on a thread that may block. Never cut short: it runs to its end even where nobody waits any more.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::with_source(ErrorKind::Io, "a thread that did blocking work", error)),
    }
}
