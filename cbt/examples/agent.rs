//! The agent as a program of its own, for the tests that kill it: SERVER-SOCKET FOLDER WATCHDOG DEVICE [crash-free options].
//!
//! `every=MS` as fifth argument sets how often a checkpoint is taken.

use std::path::{Path, PathBuf};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, folder, watchdog, device, rest @ ..] = arguments.as_slice() else {
        return Err("usage: agent SOCKET FOLDER WATCHDOG DEVICE [every=MS]".into());
    };
    cbt::share_one_heap();
    let server = wire::Address::Unix(PathBuf::from(socket));
    let mut config = cbt::AgentConfig::new(server, "machine-1", &[PathBuf::from(device)]);
    config.state_dir = Path::new(folder).join("state");
    config.run_dir = Path::new(folder).join("run");
    config.watchdog = vec![watchdog.clone()];
    config.heartbeat = Duration::from_millis(200);
    config.backoff_max = Duration::from_millis(500);
    let every = rest.iter().find_map(|option| option.strip_prefix("every="));
    config.checkpoint_every = Duration::from_millis(every.unwrap_or("3600000").parse()?);
    let (_stop, stopped) = cbt::stop_pair();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(cbt::Agent::run(config, stopped))?)
}
