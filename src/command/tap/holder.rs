//! The holder: keeps what shows tapped disks while the agent that serves them is replaced.
//!
//! ```text
//!   hold ─► start the agent ─┬─ ends well, or was asked to ──────────────► release
//!               ▲            ├─ fails, and nothing uses a tap ───────────► release, its exit status
//!               └────────────┴─ killed, or fails while a tap is used
//! ```

use super::HELD;
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// What is kept for the agent, in one of the ways of showing disks.
pub(super) trait Held {
    /// What the agent is told of it.
    fn word(&self) -> String;
    /// Whether a process that is started now inherits it.
    fn inherited(&self, yes: bool) -> std::io::Result<()>;
    /// Whether another agent may take the place of one that died.
    fn outlives_its_agent(&self) -> bool;
    /// Whether something is mounted from it, or claims it in another way.
    fn is_used(&self) -> bool;
    /// Takes it away, and says what that hurts.
    fn release(self);
}

/// An agent that lived for so long is started again at once.
const LIVED: Duration = Duration::from_secs(5);
/// How long it is waited for otherwise.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs this very program as the agent of what is held, until that ends for good.
pub(super) fn hold(held: impl Held) -> anyhow::Result<()> {
    // What uses the disks must not be the last to die; inherited by the agent.
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!("this process may be killed for memory, and the tapped disks then fail: {error}");
    }
    let status = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&held));
    held.release();
    match status? {
        status if status.success() => Ok(()),
        // The agent has said why.
        status => std::process::exit(status.code().unwrap_or(1)),
    }
}

/// For the agent: without its holder it goes on until nothing uses what it shows.
pub(super) fn end_with_it() -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM)).context("asking for the holder's end")
}

async fn run(held: &impl Held) -> anyhow::Result<ExitStatus> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut asked = false;
    loop {
        let began = Instant::now();
        let mut agent = start(held)?;
        let status = loop {
            tokio::select! {
                status = agent.wait() => break status?,
                _ = terminate.recv() => asked = pass_on(&agent),
                _ = interrupt.recv() => asked = pass_on(&agent),
            }
        };
        let killed = status.code().is_none();
        if status.success() || asked || !(killed || held.is_used()) {
            return Ok(status);
        }
        if !held.outlives_its_agent() {
            bail!(
                "the agent died ({status}), and this kernel (before 6.9) does not let another take its place: \
                   unmount what is on the tap and start it again"
            );
        }
        tracing::warn!(
            "the agent died ({status}): another takes its place, and what is mounted waits for it"
        );
        if began.elapsed() < LIVED {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn start(held: &impl Held) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("this program's path")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(HELD, held.word());
    // Nothing else is started meanwhile.
    held.inherited(true)?;
    let agent = command.spawn();
    held.inherited(false)?;
    agent.context("starting the agent")
}

/// The agent stops when nothing uses what it shows.
fn pass_on(agent: &Child) -> bool {
    let pid = agent.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(Err(error)) = pid.map(|pid| kill_process(pid, Signal::TERM)) {
        tracing::warn!("asking the agent to stop: {error}");
    }
    true
}
