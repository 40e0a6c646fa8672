//! `understudy server`.

use super::stop_signal;
use crate::arguments::{ServerArguments, UsageError};
use crate::configuration::{Configuration, parse};
use crate::control::DEFAULT_DATA;
use anyhow::Context;
use blocks::ByteLen;
use bytesize::ByteSize;
use humantime::Duration;
use rustix::process::{Resource, Rlimit};
use server::{Server, ServerConfig};
use std::path::PathBuf;

const DEFAULT_LISTEN: &str = "127.0.0.1:10810";
pub(super) const DEFAULT_NBD: &str = "127.0.0.1:10809";

/// Serves until SIGTERM or an interrupt.
pub fn run(flags: ServerArguments, file: Configuration, control: Option<PathBuf>) -> anyhow::Result<()> {
    super::start_logging();
    let config = config(flags, file, control)?;
    raise_file_limit();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let running = Server::start(config).await?;
        stop_signal().await?;
        running.shutdown().await.context("ending")
    })
}

/// As many open files as the system lets us have: two for each idle disk, and one for each connection.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

fn scrub_every(text: &str) -> anyhow::Result<Option<std::time::Duration>> {
    if text == "never" {
        return Ok(None);
    }
    let every: Duration = text
        .parse()
        .map_err(|error| UsageError(format!("scrub-every {text}: {error}; wants a duration, or never")))?;
    Ok(Some(every.into()))
}

fn config(
    flags: ServerArguments,
    file: Configuration,
    control: Option<PathBuf>,
) -> anyhow::Result<ServerConfig> {
    let Configuration { control: control_in_file, server: mut file, .. } = file;
    let nbd_keys = file.take_nbd_keys();
    let mut config =
        ServerConfig::new(flags.data.or(file.data).unwrap_or_else(|| PathBuf::from(DEFAULT_DATA)));
    config.control = control.or(control_in_file);
    let listen = flags.listen.or(file.listen).unwrap_or_else(|| DEFAULT_LISTEN.to_owned());
    config.listen = Some(listen.parse().map_err(|error| UsageError(format!("--listen {listen}: {error}")))?);
    config.agent_socket = flags.agent_socket.or(file.agent_socket);
    let (mode, mode_in_file) = (&flags.nbd_security.nbd_socket_mode, &file.nbd_socket_mode);
    config.nbd_socket_mode = super::nbd::socket_mode(mode.as_deref(), mode_in_file.as_deref())?;
    config.nbd_options = super::nbd::options(flags.nbd_security, nbd_keys)?;
    let default = match nbd_server::Listener::are_inherited() {
        true => Vec::new(),
        false => vec![DEFAULT_NBD.to_owned()],
    };
    let nbd = [flags.nbd, file.nbd, default].into_iter().find(|list| !list.is_empty());
    for address in nbd.unwrap_or_default() {
        config.nbd.push(address.parse().map_err(|error| UsageError(format!("--nbd {address}: {error}")))?);
    }
    if let Some(keep) = flags.keep.or(parse("keep", file.keep)?) {
        config.keep = keep;
    }
    let deadline: Option<Duration> =
        flags.heartbeat_deadline.or(parse("heartbeat-deadline", file.heartbeat_deadline)?);
    if let Some(deadline) = deadline {
        config.heartbeat_deadline = deadline.into();
    }
    if let Some(format) = flags.image_format.or(file.image_format) {
        config.image_format = Some(format.parse()?);
    }
    let compress = flags.compress.or(file.compress).unwrap_or_else(|| "auto".to_owned());
    config.store.compress = compress.parse()?;
    if let Some(rate) =
        flags.consolidate_rate.or(parse::<ByteSize>("consolidate-rate", file.consolidate_rate)?)
    {
        config.consolidate_rate = Some(rate.as_u64());
    }
    if let Some(every) = flags.scrub_every.or(file.scrub_every) {
        config.scrub_every = scrub_every(&every)?;
    }
    if let Some(rate) = flags.scrub_rate.or(parse::<ByteSize>("scrub-rate", file.scrub_rate)?) {
        config.scrub_rate = Some(rate.as_u64());
    }
    if let Some(reserve) = flags.reserve.or(parse::<ByteSize>("reserve", file.reserve)?) {
        config.store.reserve = ByteLen::new(reserve.as_u64());
    }
    Ok(config)
}
