//! A connection's work without its threads and its runtime: whoever plays a simulation takes the steps.
//!
//! What decides, appends, commits and acknowledges is what a running server has; only who calls it differs. What
//! `conversation` does with a socket is the simulation's part.

use super::commit::Commit;
use super::comparers::Comparers;
use super::context::Registry;
use super::gaps;
use super::greeting::{Answer, find_or_register, welcome_to};
use super::handle::{AgentHandle, HandleEnds};
use super::ingest::{Appender, Work};
use super::machine::{Machine, Phase};
use super::registration::refusal;
use super::source::Source;
use blocks::{Result, monotonic_now};
use std::collections::VecDeque;
use std::sync::Arc;
use store::{BranchId, Unit};
use tokio::sync::mpsc;
use wire::{Hello, RefusalKind, Role, ServerMessage, StartFrom, Welcome};

/// More messages than come of one step.
const OUT_QUEUE: usize = 64;

/// An agent that has its machine's place.
pub(crate) struct SteppedAgent {
    pub machine: Arc<Machine>,
    pub handle: AgentHandle,
    ends: HandleEnds,
}

/// What a welcomed agent's data goes through.
pub(crate) struct SteppedIngest {
    source: Arc<Source>,
    commit: Arc<Commit>,
    appender: Appender,
    queue: VecDeque<Work>,
    out: mpsc::Receiver<ServerMessage>,
}

impl SteppedAgent {
    /// Gives the hello's machine its place, and with it the one who had it before: that one has to be ended before
    /// [`SteppedAgent::welcome`].
    pub fn admit(registry: &Registry, hello: &Hello) -> Answer<(SteppedAgent, Option<AgentHandle>)> {
        let id = find_or_register(registry, hello)?;
        let (handle, ends) = AgentHandle::new(id, hello);
        let machine = registry.agents.machine(id);
        match machine.take_place(handle.clone(), monotonic_now()) {
            Ok(before) => Ok((SteppedAgent { machine, handle, ends }, before)),
            Err(_) => Err(refusal(RefusalKind::Taken, "an agent is connected already")),
        }
    }

    /// The welcome, and the ingest where the agent is to be the source. After an error the place is free again.
    pub fn welcome(&self, registry: &Registry, hello: &Hello) -> Answer<(Welcome, Option<SteppedIngest>)> {
        let welcomed = welcome_to(registry, hello.clone(), self.machine.id());
        let begun = welcomed.and_then(|(unit, welcome, starts)| match &welcome.role {
            Role::Source => match self.begin(&unit, &starts).and_then(|()| SteppedIngest::start(&unit, self))
            {
                Ok(ingest) => Ok((welcome, Some(ingest))),
                Err(error) => Err(busy(&error)),
            },
            Role::Standby { reason } => {
                self.machine.set_phase(Phase::Standby(reason.clone()));
                Ok((welcome, None))
            }
        });
        if begun.is_err() {
            self.machine.leave_place(&self.handle, false, monotonic_now());
        }
        begun
    }

    fn begin(&self, unit: &Unit, starts: &[StartFrom]) -> Result<()> {
        let phase = match starts {
            starts if starts.contains(&StartFrom::Everything) => Phase::InitialCopy,
            starts if starts.contains(&StartFrom::Scan) => {
                gaps::begin(unit, gaps::SCAN)?;
                Phase::Scanning
            }
            _ => Phase::Protected,
        };
        self.machine.set_source(phase, monotonic_now());
        Ok(())
    }

    /// The connection has ended.
    pub fn end(self, unit: &Unit, was_source: bool, goodbye: bool) {
        self.ends.requests.close();
        if was_source
            && !goodbye
            && let Err(error) = gaps::begin(unit, gaps::LOST)
        {
            tracing::debug!(%error, "the gap could not be recorded");
        }
        self.machine.leave_place(&self.handle, goodbye, monotonic_now());
        self.ends.ended.send_replace(true);
    }
}

fn busy(error: &blocks::Error) -> wire::Refusal {
    refusal(RefusalKind::Busy, error.to_string())
}

impl SteppedIngest {
    fn start(unit: &Arc<Unit>, agent: &SteppedAgent) -> Result<SteppedIngest> {
        let (out, messages) = mpsc::channel(OUT_QUEUE);
        let requests = agent.ends.requests.clone();
        let source = Arc::new(Source::new(unit.clone(), agent.machine.clone(), requests, out)?);
        let commit = Arc::new(Commit::new(source.clone()));
        let appender = Appender::new(source.clone(), commit.clone(), Comparers::inline(source.clone()));
        Ok(SteppedIngest { source, commit, appender, queue: VecDeque::new(), out: messages })
    }

    /// The branch that it appends to.
    pub fn branch(&self) -> BranchId {
        self.source.branch
    }

    /// Takes work over, as the connection does.
    pub fn submit(&mut self, work: Work) {
        self.queue.push_back(work);
    }

    /// How much waits to be appended.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// What is appended next.
    pub fn next(&self) -> Option<&Work> {
        self.queue.front()
    }

    /// Appends, seals or compares what is next. `Ok(false)`: there is nothing, or no room for it.
    pub fn append(&mut self) -> Result<bool> {
        let Some(work) = self.queue.pop_front() else { return Ok(false) };
        match self.appender.step(work) {
            Ok(None) => Ok(true),
            Ok(Some(work)) => {
                self.queue.push_front(work);
                Ok(false)
            }
            Err(error) => {
                let copy = blocks::Error::new(error.kind(), error.to_string());
                self.source.fail(error);
                Err(copy)
            }
        }
    }

    /// Commits the group that is due.
    pub fn commit(&self) {
        self.commit.step();
    }

    /// The connection has ended: what was appended is committed now.
    pub fn close(&self) {
        self.commit.close();
        self.commit.step();
    }

    /// Why nothing more is ingested.
    pub fn failure(&self) -> Option<Arc<blocks::Error>> {
        self.source.failure.borrow().clone()
    }

    /// The next message to the agent.
    pub fn told(&mut self) -> Option<ServerMessage> {
        self.out.try_recv().ok()
    }
}
