//! The conversation with the agent that writes: every wait has an end, and neither side can block the other.
//!
//! While an order waits for room, answers are taken in; what may be unanswered is bounded by whoever asks, so the
//! inbox is too.

use crate::agent::RestoreLink;
use blocks::{DiskIndex, Error, ErrorKind, Extent, Result};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::error::TryRecvError;
use wire::{AgentMessage, HashPurpose, HashReport, Payload, RestoreReady, ServerMessage};

/// How many syncs may be unanswered.
const SYNCS_OPEN_MAX: u64 = 2;

/// A restore's end of a link.
pub(crate) struct Line {
    link: RestoreLink,
    runtime: Runtime,
    inbox: VecDeque<AgentMessage>,
    timeout: Duration,
    restore: u64,
    synced: u64,
    sync: u64,
}

/// A conversation in which nothing is said: the agent holds its targets and is asked nothing. Can be dropped anywhere,
/// and the agent is told then.
pub(crate) struct RestingLine {
    link: Option<RestoreLink>,
    restore: u64,
    /// The last sync, which was answered.
    sync: u64,
}

impl RestingLine {
    /// Whether the agent still holds its targets, as far as is known. Whatever it says meanwhile answers nothing.
    pub fn is_alive(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        let gave_up = loop {
            match link.from_agent.try_recv() {
                Ok(AgentMessage::RestoreFailed { restore, .. }) if restore == self.restore => break true,
                Ok(other) => tracing::debug!("an answer that nobody waits for: {other:?}"),
                Err(TryRecvError::Empty) => break false,
                Err(TryRecvError::Disconnected) => break true,
            }
        };
        !gave_up && !link.to_agent.is_closed()
    }

    /// Goes on with the conversation.
    pub fn wake(mut self, timeout: Duration) -> Result<Line> {
        let mut line = Line::new(self.link.take().ok_or_else(gone)?, self.restore, timeout)?;
        (line.sync, line.synced) = (self.sync, self.sync);
        Ok(line)
    }
}

impl Drop for RestingLine {
    fn drop(&mut self) {
        let Some(link) = &self.link else { return };
        let reason = "it was in step and is not gone on with".to_owned();
        let order = ServerMessage::RestoreAbort { restore: self.restore, reason };
        // Nothing is under way, so there is room; where there is none, the connection is gone.
        if let Err(error) = link.to_agent.try_send(order) {
            tracing::debug!("the agent could not be told that the restore ends: {error}");
        }
    }
}

impl Line {
    /// A conversation about restore number `restore`.
    pub fn new(link: RestoreLink, restore: u64, timeout: Duration) -> Result<Line> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| Error::io("the timer of a failback", error))?;
        Ok(Line { link, runtime, inbox: VecDeque::new(), timeout, restore, synced: 0, sync: 0 })
    }

    /// Says nothing for a while. Everything that was sent must have been answered.
    pub fn rest(self) -> RestingLine {
        RestingLine { link: Some(self.link), restore: self.restore, sync: self.sync }
    }

    /// The restore's number.
    pub fn restore(&self) -> u64 {
        self.restore
    }

    /// Hands an order over. Errors: no room in time, the connection is gone, the agent gave up.
    pub fn send(&mut self, order: ServerMessage) -> Result<()> {
        let Line { link, runtime, inbox, timeout, .. } = self;
        let RestoreLink { to_agent, from_agent } = link;
        let sent = runtime.block_on(async {
            let room = async {
                loop {
                    tokio::select! {
                        permit = to_agent.reserve() => return permit.map_err(|_| gone()),
                        answer = from_agent.recv() => inbox.push_back(answer.ok_or_else(gone)?),
                    }
                }
            };
            let permit =
                tokio::time::timeout(*timeout, room).await.map_err(|_| late("room for an order"))??;
            permit.send(order);
            Ok(())
        });
        sent.and_then(|()| self.check_inbox())
    }

    /// Whether the agent has given up, as far as is known.
    fn check_inbox(&self) -> Result<()> {
        let failed = |answer: &AgentMessage| match answer {
            AgentMessage::RestoreFailed { restore, reason } if *restore == self.restore => {
                Some(reason.clone())
            }
            _ => None,
        };
        match self.inbox.iter().find_map(failed) {
            Some(reason) => Err(Error::new(ErrorKind::Io, format!("the machine's agent gave up: {reason}"))),
            None => Ok(()),
        }
    }

    fn receive(&mut self, what: &str) -> Result<AgentMessage> {
        self.check_inbox()?;
        if let Some(answer) = self.inbox.pop_front() {
            return Ok(answer);
        }
        let Line { link, runtime, timeout, .. } = self;
        let answer = runtime
            .block_on(async { tokio::time::timeout(*timeout, link.from_agent.recv()).await })
            .map_err(|_| late(what))?;
        self.inbox.push_back(answer.ok_or_else(gone)?);
        self.check_inbox()?;
        self.inbox.pop_front().ok_or_else(gone)
    }

    /// Waits for the answer that `wanted` takes; answers that belong to nothing are dropped, syncs are counted.
    fn await_answer<T>(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(AgentMessage) -> ControlFlow<T, AgentMessage>,
    ) -> Result<T> {
        loop {
            match wanted(self.receive(what)?) {
                ControlFlow::Break(answer) => return Ok(answer),
                ControlFlow::Continue(AgentMessage::RestoreSynced { restore, sync })
                    if restore == self.restore =>
                {
                    self.synced = self.synced.max(sync.min(self.sync));
                }
                ControlFlow::Continue(other) => tracing::debug!("an answer that nobody waits for: {other:?}"),
            }
        }
    }

    /// The agent's answer to the beginning.
    pub fn ready(&mut self) -> Result<RestoreReady> {
        let ours = self.restore;
        self.await_answer("the target to be opened", |answer| match answer {
            AgentMessage::RestoreReady(ready) if ready.restore == ours => ControlFlow::Break(ready),
            other => ControlFlow::Continue(other),
        })
    }

    /// The agent's word that it replicates again.
    pub fn finished(&mut self) -> Result<()> {
        let ours = self.restore;
        self.await_answer("the machine to take charge", |answer| match answer {
            AgentMessage::RestoreFinished { restore } if restore == ours => ControlFlow::Break(()),
            other => ControlFlow::Continue(other),
        })
    }

    /// The next report of hashes for this disk.
    pub fn hashes(&mut self, disk: DiskIndex) -> Result<HashReport> {
        let ours = HashPurpose::Restore { restore: self.restore };
        self.await_answer("hashes", |answer| match answer {
            AgentMessage::Hashes(report) if report.purpose == ours && report.disk == disk => {
                ControlFlow::Break(report)
            }
            other => ControlFlow::Continue(other),
        })
    }

    /// The next piece that was read back from this disk.
    pub fn data(&mut self, disk: DiskIndex) -> Result<(Extent, Payload)> {
        let ours = self.restore;
        self.await_answer("data of the target", |answer| match answer {
            AgentMessage::RestoreData { restore, disk: from, extent, payload }
                if restore == ours && from == disk =>
            {
                ControlFlow::Break((extent, payload))
            }
            other => ControlFlow::Continue(other),
        })
    }

    /// Asks for a sync, and waits where too many are unanswered.
    pub fn window(&mut self) -> Result<()> {
        self.sync += 1;
        let order = ServerMessage::RestoreSync { restore: self.restore, sync: self.sync };
        self.send(order)?;
        self.await_synced(self.sync.saturating_sub(SYNCS_OPEN_MAX - 1))
    }

    /// Returns when everything sent so far is on the target's medium.
    pub fn sync(&mut self) -> Result<()> {
        self.window()?;
        self.await_synced(self.sync)
    }

    fn await_synced(&mut self, wanted: u64) -> Result<()> {
        while self.synced < wanted {
            let ours = self.restore;
            let sync = self.await_answer("the target to be synced", |answer| match answer {
                AgentMessage::RestoreSynced { restore, sync } if restore == ours => ControlFlow::Break(sync),
                other => ControlFlow::Continue(other),
            })?;
            self.synced = self.synced.max(sync.min(self.sync));
        }
        Ok(())
    }

    /// Tells the agent to let go, where it still listens. Never waits long.
    pub fn abort(&mut self, reason: String) {
        self.timeout = self.timeout.min(Duration::from_secs(5));
        let order = ServerMessage::RestoreAbort { restore: self.restore, reason };
        if let Err(error) = self.send(order) {
            tracing::debug!("the agent could not be told that the restore ends: {error}");
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Cancelled, "the connection to the machine's agent is gone")
}

fn late(what: &str) -> Error {
    Error::new(ErrorKind::Cancelled, format!("waiting for {what} took too long"))
}
