//! What the server knows of a machine beyond what its unit holds: whether it lives, who speaks for it, how it is doing.

use super::handle::AgentHandle;
use super::liveness::{Deadlines, Event, Liveness};
use blocks::{ByteLen, DiskIndex, MachineId};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::Heartbeat;

/// Over how long rates are measured.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// What a connected machine is doing.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) enum Phase {
    /// Nothing: not connected.
    #[default]
    Idle,
    /// Everything is being sent; there is no checkpoint yet.
    InitialCopy,
    /// Everything is being hashed, because the tracker's map was lost.
    Scanning,
    /// Changes are sent as they happen.
    Protected,
    /// Fenced: the reason.
    Standby(String),
}

/// A disk's numbers, for status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskProgress {
    pub tracker: String,
    pub backlog: ByteLen,
    pub churn_bytes_per_second: u64,
    pub received: ByteLen,
    pub received_bytes_per_second: u64,
}

/// A machine.
#[derive(Debug)]
pub(crate) struct Machine {
    id: MachineId,
    deadlines: Deadlines,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    liveness: Liveness,
    phase: Phase,
    held: Option<String>,
    /// What a second opinion came to since it has failed.
    verdict: Option<String>,
    agent: Option<AgentHandle>,
    trackers: Vec<String>,
    heartbeat: Option<Heartbeat>,
    received: Vec<u64>,
    samples: VecDeque<Sample>,
}

/// The counters at one heartbeat.
#[derive(Debug)]
struct Sample {
    at: Instant,
    churn: Vec<ByteLen>,
    received: Vec<u64>,
}

/// What [`Machine::tick`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticked {
    /// It has failed just now.
    pub failed_now: bool,
    /// It has failed just now, having been heard of since the server started.
    pub lost_now: bool,
}

impl Machine {
    pub fn new(id: MachineId, now: Instant, deadlines: Deadlines) -> Machine {
        let state = State {
            liveness: Liveness::Unseen { since: now },
            phase: Phase::Idle,
            held: None,
            verdict: None,
            agent: None,
            trackers: Vec::new(),
            heartbeat: None,
            received: Vec::new(),
            samples: VecDeque::new(),
        };
        Machine { id, deadlines, state: Mutex::new(state) }
    }

    pub fn id(&self) -> MachineId {
        self.id
    }

    /// Gives the machine's place to a new connection; the one that had it before has to be ended by the caller before
    /// anything is appended. `Err` where that one is alive. A connection that is held is not read, so that its end is
    /// not seen: an agent of the same boot that comes again is taken to have ended it.
    pub fn take_place(&self, agent: AgentHandle, now: Instant) -> Result<Option<AgentHandle>, AgentHandle> {
        let mut state = self.lock();
        if let Some(current) = &state.agent
            && state.liveness.holds_its_place(now, self.deadlines)
            && !(state.held.is_some() && current.boot() == agent.boot())
        {
            return Err(current.clone());
        }
        let before = state.agent.replace(agent);
        state.liveness = state.liveness.after(Event::Connected, now, self.deadlines);
        state.heartbeat = None;
        state.samples.clear();
        Ok(before)
    }

    /// The connection of `agent` has ended; nothing changes where another one has its place already.
    pub fn leave_place(&self, agent: &AgentHandle, goodbye: bool, now: Instant) -> bool {
        let mut state = self.lock();
        if !state.agent.as_ref().is_some_and(|current| current.is_same(agent)) {
            return false;
        }
        state.agent = None;
        state.phase = Phase::Idle;
        state.held = None;
        let event = if goodbye { Event::Goodbye } else { Event::Lost };
        state.liveness = state.liveness.after(event, now, self.deadlines);
        true
    }

    /// Something was heard from the machine.
    pub fn heard(&self, now: Instant) {
        let mut state = self.lock();
        state.liveness = state.liveness.after(Event::Heard, now, self.deadlines);
    }

    /// A heartbeat came.
    pub fn heartbeat(&self, heartbeat: Heartbeat, now: Instant) {
        let mut state = self.lock();
        state.liveness = state.liveness.after(Event::Heard, now, self.deadlines);
        if !heartbeat.trackers.is_empty() {
            state.trackers.clone_from(&heartbeat.trackers);
        }
        let sample = Sample { at: now, churn: heartbeat.churn.clone(), received: state.received.clone() };
        state.samples.push_back(sample);
        while state.samples.len() > 2 && now.saturating_duration_since(state.samples[1].at) >= RATE_WINDOW {
            state.samples.pop_front();
        }
        state.heartbeat = Some(heartbeat);
    }

    /// Time passes; `promoted` is whether a session is in charge.
    pub fn tick(&self, now: Instant, promoted: bool) -> Ticked {
        let mut state = self.lock();
        let event = if promoted { Event::Promoted } else { Event::Restored };
        let before = state.liveness;
        state.liveness = before.after(event, now, self.deadlines).after(Event::Tick, now, self.deadlines);
        let is_failed = |liveness| matches!(liveness, Liveness::Failed { .. });
        if !is_failed(state.liveness) {
            state.verdict = None;
        }
        let failed_now = !is_failed(before) && is_failed(state.liveness);
        Ticked { failed_now, lost_now: failed_now && !matches!(before, Liveness::Unseen { .. }) }
    }

    /// Whether it counts as dead.
    pub fn has_failed(&self) -> bool {
        matches!(self.lock().liveness, Liveness::Failed { .. })
    }

    /// What a second opinion came to; whether that is news.
    pub fn set_verdict(&self, verdict: String) -> bool {
        let mut state = self.lock();
        let is_news = state.verdict.as_ref() != Some(&verdict);
        state.verdict = Some(verdict);
        is_news
    }

    /// The connected machine is in charge of itself and does this.
    pub fn set_source(&self, phase: Phase, now: Instant) {
        let mut state = self.lock();
        state.liveness = state.liveness.after(Event::Restored, now, self.deadlines);
        state.phase = phase;
    }

    pub fn set_phase(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    /// The tracker of each disk as the hello gave it.
    pub fn set_trackers(&self, trackers: Vec<String>) {
        self.lock().trackers = trackers;
    }

    /// Data is not taken, and why; `None` when it is again.
    pub fn set_held(&self, held: Option<String>) {
        self.lock().held = held;
    }

    /// Counts data of a disk.
    pub fn received(&self, disk: DiskIndex, bytes: u64) {
        let mut state = self.lock();
        let index = usize::from(disk.0);
        if state.received.len() <= index {
            state.received.resize(index + 1, 0);
        }
        state.received[index] += bytes;
    }

    pub fn agent(&self) -> Option<AgentHandle> {
        self.lock().agent.clone()
    }

    /// State and detail in the words of the control API.
    pub fn state(&self) -> (&'static str, String) {
        let state = self.lock();
        let none = String::new;
        match (&state.liveness, &state.phase) {
            _ if state.agent.as_ref().is_some_and(AgentHandle::is_restoring) => ("failing-back", none()),
            (Liveness::Promoted { .. }, Phase::Standby(reason)) => ("promoted", reason.clone()),
            (Liveness::Promoted { .. }, _) => ("promoted", none()),
            (Liveness::Unseen { .. }, _) => ("disconnected", "not heard of since the server started".into()),
            (Liveness::Gone { .. }, _) => ("disconnected", none()),
            (Liveness::Failed { connected, .. }, _) => {
                let seen = if *connected { "connected, but silent" } else { "heartbeats stopped" };
                let verdict = state.verdict.as_ref().map(|verdict| format!("; {verdict}"));
                ("failed", format!("{seen}{}", verdict.unwrap_or_default()))
            }
            (Liveness::Stopped { .. }, _) => ("stopped", none()),
            (Liveness::Alive { .. } | Liveness::Late { .. }, phase) => match (phase, &state.held) {
                (_, Some(reason)) => ("held", reason.clone()),
                (Phase::Idle, _) => ("disconnected", "its earlier connection is being ended".into()),
                (Phase::InitialCopy, _) => ("initial-copy", none()),
                (Phase::Scanning, _) => ("scanning", none()),
                (Phase::Protected, _) => ("protected", none()),
                (Phase::Standby(reason), _) => ("promoted", reason.clone()),
            },
        }
    }

    /// How long ago it was last heard of.
    pub fn silent_for(&self, now: Instant) -> Option<Duration> {
        self.lock().liveness.heard().map(|heard| now.saturating_duration_since(heard))
    }

    /// The numbers of a disk.
    pub fn progress(&self, disk: DiskIndex) -> DiskProgress {
        let state = self.lock();
        let index = usize::from(disk.0);
        let heartbeat = state.heartbeat.as_ref();
        let rate = |counter: &dyn Fn(&Sample) -> u64| match (state.samples.front(), state.samples.back()) {
            (Some(first), Some(last)) if last.at > first.at => {
                let seconds = last.at.duration_since(first.at).as_secs_f64();
                (counter(last).saturating_sub(counter(first)) as f64 / seconds) as u64
            }
            _ => 0,
        };
        DiskProgress {
            tracker: state.trackers.get(index).cloned().unwrap_or_default(),
            backlog: heartbeat.and_then(|beat| beat.backlog.get(index)).copied().unwrap_or_default(),
            churn_bytes_per_second: rate(&|sample| sample.churn.get(index).map_or(0, |churn| churn.get())),
            received: ByteLen::new(state.received.get(index).copied().unwrap_or_default()),
            received_bytes_per_second: rate(&|sample| {
                sample.received.get(index).copied().unwrap_or_default()
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
