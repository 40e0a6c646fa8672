//! `understudy agent` and its watchdog.

use super::stop_signal;
use super::tap::{Front, given, hold};
use crate::arguments::{AgentArguments, UsageError};
use crate::configuration::{AgentSection, parse};
use anyhow::Context;
use blocks::ErrorKind;
use cbt::{Agent, AgentConfig, SendMode, TrackerKind, TrackerWish};
use humantime::Duration;
use std::path::Path;
use std::sync::Arc;
use wire::{Address, AgentIdentity, Token};

/// Protects disks until SIGTERM or an interrupt, after which the server is told that this is no failure.
pub fn run(flags: AgentArguments, file: AgentSection) -> anyhow::Result<()> {
    cbt::share_one_heap();
    super::start_logging();
    let token = flags.token.as_deref().map(str::parse::<Token>).transpose();
    let token = token.map_err(|error| UsageError(format!("--token: {error}")))?;
    let through = flags.tap_through.clone().or(file.tap_through.clone());
    let mut config = config(flags, file, token.as_ref())?;
    let tap = tap(&mut config)?;
    if matches!(tap, Tap::Hold) {
        let devices: Vec<_> = config.disks.iter().map(|disk| disk.device.clone()).collect();
        return hold(&devices, &config.run_dir, through.as_deref());
    }
    // One thread for the connection; disks have threads of their own.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        config.identity = identity(&config, token.as_ref()).await?;
        let (stop, stopping) = cbt::stop_pair();
        tokio::spawn(async move {
            if stop_signal().await.is_ok() {
                if let Tap::Serve(front) = tap {
                    released(&*front).await;
                }
                stop.stop();
            }
        });
        Ok(Agent::run(config, stopping).await?)
    })
}

/// What this process is to a machine whose disks are tapped.
#[derive(Clone)]
enum Tap {
    /// Nothing: they are not.
    None,
    /// It keeps what shows them, and another one serves them.
    Hold,
    /// It serves them.
    Serve(Arc<dyn Front>),
}

fn tap(config: &mut AgentConfig) -> anyhow::Result<Tap> {
    if config.tracker != TrackerWish::Only(TrackerKind::Tap) {
        return Ok(Tap::None);
    }
    let refuse = |text: &str| Err(UsageError(text.to_owned()).into());
    if config.restore_only {
        return refuse(
            "--restore writes onto disks, which a tapped disk does not allow: leave --tracker tap out",
        );
    }
    if config.send != SendMode::Continuous {
        return refuse("a tap sends each write as it is made: --send every=... cannot be had with it");
    }
    let Some(front) = given(&config.run_dir)? else { return Ok(Tap::Hold) };
    if let Err(error) = cbt::never_wait_for_own_writes() {
        tracing::warn!("{error}: with little memory left the tap may have to wait for its own writes");
    }
    config.tap.front = Some(front.clone());
    Ok(Tap::Serve(front))
}

/// Returns when nothing uses the tapped disks any more.
async fn released(front: &dyn Front) {
    let mut said = false;
    while let Err(error) = front.release() {
        if !said {
            tracing::warn!("not stopping yet: {error}: unmount it; until then the tap goes on");
        }
        said = true;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
}

/// Runs the process that thaws what a dying agent left frozen.
pub fn watchdog(arguments: &[String]) -> anyhow::Result<()> {
    std::process::exit(cbt::watchdog_main(arguments.iter().cloned()))
}

/// The certificate that this machine has, or gets for its token; none is needed on the server's own machine.
async fn identity(config: &AgentConfig, token: Option<&Token>) -> anyhow::Result<Option<AgentIdentity>> {
    match (AgentIdentity::load(&config.state_dir), token) {
        (Ok(identity), _) => Ok(Some(identity)),
        (Err(error), Some(token)) if error.kind() == ErrorKind::NotFound => {
            let enrolled = wire::enroll(&config.server, token, &config.name, &config.state_dir).await;
            Ok(Some(enrolled.context("enrolling")?))
        }
        (Err(error), None) if error.kind() == ErrorKind::NotFound => Ok(None),
        (Err(error), _) => Err(error.into()),
    }
}

fn config(flags: AgentArguments, file: AgentSection, token: Option<&Token>) -> anyhow::Result<AgentConfig> {
    let usage = |text: &str| UsageError(text.to_owned());
    let server = match flags.server.or(file.server) {
        Some(text) => {
            text.parse::<Address>().map_err(|error| UsageError(format!("--server {text}: {error}")))?
        }
        None => token
            .and_then(|token| token.address().cloned())
            .ok_or_else(|| usage("where is the server? --server HOST:PORT or --server unix:PATH"))?,
    };
    let disks = if flags.disks.is_empty() { file.disks } else { flags.disks };
    if disks.is_empty() {
        return Err(usage("which disks? --disk DEVICE, once for each").into());
    }
    let name = match flags.name.or(file.name) {
        Some(name) => name,
        None => host_name()?,
    };
    let mut config = AgentConfig::new(server, name, &disks);
    config.restore_only = flags.restore;
    if let Some(tracker) = flags.tracker.or(file.tracker) {
        config.tracker = tracker.parse()?;
    }
    if let Some(send) = flags.send.or(file.send) {
        config.send = send_mode(&send)?;
    }
    if let Some(compress) = flags.compress.or(file.compress) {
        config.compress = compress.parse()?;
    }
    config.rate = match flags.rate.or(parse("rate", file.rate)?) {
        Some(rate) if rate.as_u64() == 0 => {
            return Err(usage("a rate of nothing would never send anything").into());
        }
        rate => rate.map(|rate| blocks::ByteLen::new(rate.as_u64())),
    };
    let set = |target: &mut std::time::Duration, value: Option<Duration>| {
        if let Some(value) = value {
            *target = value.into();
        }
    };
    set(
        &mut config.checkpoint_every,
        flags.checkpoint_every.or(parse("checkpoint-every", file.checkpoint_every)?),
    );
    set(
        &mut config.tap.checkpoint_every,
        flags.tap_checkpoint_every.or(parse("tap-checkpoint-every", file.tap_checkpoint_every)?),
    );
    if let Some(queue) = flags.tap_queue.or(parse("tap-queue", file.tap_queue)?) {
        config.tap.queue_bytes = blocks::ByteLen::new(queue.as_u64());
    }
    set(&mut config.heartbeat, flags.heartbeat.or(parse("heartbeat", file.heartbeat)?));
    set(&mut config.barrier.budget, flags.freeze_budget.or(parse("freeze-budget", file.freeze_budget)?));
    set(&mut config.hook_timeout, flags.hook_timeout.or(parse("hook-timeout", file.hook_timeout)?));
    if let Some(folder) = flags.freeze_hooks.or(file.freeze_hooks) {
        config.hooks_dir = folder;
    }
    if let Some(state) = flags.state.or(file.state) {
        config.state_dir = state;
    }
    Ok(config)
}

fn send_mode(text: &str) -> anyhow::Result<SendMode> {
    match (text, text.strip_prefix("every=")) {
        ("continuous", _) => Ok(SendMode::Continuous),
        (_, Some(every)) => Ok(SendMode::Every(every.parse::<Duration>().context("--send")?.into())),
        _ => Err(UsageError(format!("--send {text}: wants continuous, or every=DURATION")).into()),
    }
}

fn host_name() -> anyhow::Result<String> {
    let path = Path::new("/proc/sys/kernel/hostname");
    let name = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn send_modes_are_words() {
        assert_eq!(send_mode("continuous").unwrap(), SendMode::Continuous);
        assert_eq!(send_mode("every=5m").unwrap(), SendMode::Every(std::time::Duration::from_secs(300)));
        assert!(send_mode("sometimes").unwrap_err().is::<UsageError>());
    }
}
