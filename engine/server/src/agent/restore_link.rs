//! A session's way to a machine's agent while its disks are brought home.
//!
//! One at a time for each connection. Both queues are bounded, so a slow agent slows only its own failback. The link
//! is closed by either side dropping its ends: a failback that is done drops the link, a connection that ends closes
//! `from_agent`, and `to_agent` then fails.

use tokio::sync::mpsc;
use wire::{AgentMessage, HashPurpose, ServerMessage};

/// How many messages wait in each direction of a [`RestoreLink`]. With payloads of at most 1 MiB this bounds its memory.
pub const RESTORE_QUEUE: usize = 8;

/// The two ends that a failback holds.
#[derive(Debug)]
pub struct RestoreLink {
    /// Takes the `Restore...` messages of [`ServerMessage`]; anything else is dropped with a warning.
    pub to_agent: mpsc::Sender<ServerMessage>,
    /// Gives `RestoreReady`, `RestoreFailed`, `RestoreSynced`, `RestoreData`, `RestoreFinished` and hashes for a restore;
    /// `None` once the connection is gone.
    pub from_agent: mpsc::Receiver<AgentMessage>,
}

/// The ends that the connection holds.
#[derive(Debug)]
pub(crate) struct LinkEnds {
    /// What the failback wants sent.
    pub outgoing: mpsc::Receiver<ServerMessage>,
    /// Where the agent's answers go.
    pub answers: mpsc::Sender<AgentMessage>,
}

/// A fresh link.
pub(crate) fn restore_link() -> (RestoreLink, LinkEnds) {
    let (to_agent, outgoing) = mpsc::channel(RESTORE_QUEUE);
    let (answers, from_agent) = mpsc::channel(RESTORE_QUEUE);
    (RestoreLink { to_agent, from_agent }, LinkEnds { outgoing, answers })
}

/// Whether a message of an agent belongs to a failback.
pub(crate) fn is_restore_answer(message: &AgentMessage) -> bool {
    match message {
        AgentMessage::RestoreReady(_)
        | AgentMessage::RestoreFailed { .. }
        | AgentMessage::RestoreSynced { .. }
        | AgentMessage::RestoreData { .. }
        | AgentMessage::RestoreFinished { .. } => true,
        AgentMessage::Hashes(report) => matches!(report.purpose, HashPurpose::Restore { .. }),
        _ => false,
    }
}

/// Whether a failback may send this.
pub(crate) fn is_restore_order(message: &ServerMessage) -> bool {
    matches!(
        message,
        ServerMessage::RestoreBegin(_)
            | ServerMessage::RestoreHash { .. }
            | ServerMessage::RestoreRead { .. }
            | ServerMessage::RestoreWrite { .. }
            | ServerMessage::RestoreSync { .. }
            | ServerMessage::RestoreFinish { .. }
            | ServerMessage::RestoreAbort { .. }
    )
}
