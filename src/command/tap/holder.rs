//! The holder: keeps the mounts of tapped disks while the agent that serves them is replaced.
//!
//! ```text
//!   hold ─► start the agent ─┬─ ends well, or was asked to ──────────────► release
//!               ▲            ├─ fails, and nothing uses a tap ───────────► release, its exit status
//!               └────────────┴─ killed, or fails while a tap is used
//! ```

use super::{CONNECTIONS, FILE, folder_of};
use anyhow::{Context, bail};
use fuse_fs::{HeldMount, LoopDevice, is_dead};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// An agent that lived for so long is started again at once.
const LIVED: Duration = Duration::from_secs(5);
/// How long it is waited for otherwise.
const PAUSE: Duration = Duration::from_secs(1);

/// Holds mounts for these disks, and runs this very program as their agent, until that ends for good.
pub fn hold(devices: &[PathBuf], run_dir: &Path) -> anyhow::Result<()> {
    // What uses the disks must not be the last to die; inherited by the agent.
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!("this process may be killed for memory, and the tapped disks then fail: {error}");
    }
    let mounts = devices.iter().map(|device| hold_one(&folder_of(run_dir, device)));
    let mounts = mounts.collect::<anyhow::Result<Vec<HeldMount>>>()?;
    let status = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&mounts));
    for device in mounts.iter().flat_map(|mount| LoopDevice::of(&mount.folder().join(FILE))) {
        if let Err(error) = device.detach() {
            tracing::error!("{error}: what uses it has lost its disk");
        }
    }
    drop(mounts);
    match status? {
        status if status.success() => Ok(()),
        // The agent has said why.
        status => std::process::exit(status.code().unwrap_or(1)),
    }
}

fn hold_one(folder: &Path) -> anyhow::Result<HeldMount> {
    // Before anything else of the folder, which can only be looked at once the dead mount is gone from it; and the kernel
    // does not say of the device any more then that it was of that mount.
    if is_dead(folder) {
        release_dead(folder)?;
    } else {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    Ok(HeldMount::hold(folder)?)
}

/// Detaches what a tap has left whose processes were killed: nothing can be read from it any more. An error while it is mounted.
fn release_dead(folder: &Path) -> anyhow::Result<()> {
    let (parent, name) = (folder.parent().unwrap_or(folder), folder.file_name().unwrap_or_default());
    let parent = parent.canonicalize().with_context(|| parent.display().to_string())?;
    for device in LoopDevice::of(&parent.join(name).join(FILE)) {
        let gone = device.detach();
        gone.with_context(|| {
            format!("{} is left of a tap that is dead: unmount it", device.path().display())
        })?;
    }
    Ok(())
}

async fn run(mounts: &[HeldMount]) -> anyhow::Result<ExitStatus> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut asked = false;
    loop {
        let began = Instant::now();
        let mut agent = start(mounts)?;
        let status = loop {
            tokio::select! {
                status = agent.wait() => break status?,
                _ = terminate.recv() => asked = pass_on(&agent),
                _ = interrupt.recv() => asked = pass_on(&agent),
            }
        };
        let killed = status.code().is_none();
        if status.success() || asked || !(killed || is_used(mounts)) {
            return Ok(status);
        }
        if !mounts.iter().all(HeldMount::outlives_its_server) {
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

fn start(mounts: &[HeldMount]) -> anyhow::Result<Child> {
    let numbers: Vec<String> =
        mounts.iter().map(|mount| std::os::fd::AsRawFd::as_raw_fd(&mount.connection()).to_string()).collect();
    let keep = |flags| mounts.iter().try_for_each(|mount| fcntl_setfd(mount.connection(), flags));
    let program = std::env::current_exe().context("this program's path")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(CONNECTIONS, numbers.join(","));
    // Nothing else is started meanwhile.
    keep(FdFlags::empty())?;
    let agent = command.spawn();
    keep(FdFlags::CLOEXEC)?;
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

fn is_used(mounts: &[HeldMount]) -> bool {
    let mut devices = mounts.iter().flat_map(|mount| LoopDevice::of(&mount.folder().join(FILE)));
    devices.any(|device| device.is_in_use().unwrap_or(true))
}
