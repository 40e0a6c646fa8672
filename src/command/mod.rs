//! One file a family of commands; each says what it calls and how the result is printed.

mod agent;
mod ask;
mod console;
mod delta;
mod doctor;
mod image;
mod metrics;
mod mount;
mod nbd;
mod package;
mod print;
mod restart;
mod serve;
mod server;
mod store;
mod tap;

use crate::arguments::{AgentCommand, Arguments, Command, StoreCommand};
use crate::configuration::Configuration;
use crate::control::Control;
use clap::CommandFactory;

/// Runs what was typed.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let json = arguments.json;
    // The watchdog must come up without reading anything from a disk that may be frozen.
    if let Command::AgentWatchdog { arguments } = &arguments.command {
        return agent::watchdog(arguments);
    }
    let configuration = Configuration::load(arguments.config.as_deref())?;
    match arguments.command {
        Command::Server(flags) => server::run(flags, configuration, arguments.control),
        Command::Agent { command: Some(AgentCommand::Doctor { disks, tracker }), .. } => {
            doctor::run(disks, tracker, configuration.agent, json)
        }
        Command::Agent { command: Some(AgentCommand::AtShutdown { state }), .. } => {
            restart::at_shutdown(state, configuration.agent, json)
        }
        Command::Agent { command: Some(AgentCommand::AtBoot { root, disks, state }), .. } => {
            restart::at_boot(&root, disks, state, configuration.agent, json)
        }
        Command::Agent { flags, command: None } => agent::run(*flags, configuration.agent),
        Command::Serve { file, disk, nbd, read_only, format, security } => {
            let served = serve::Served { file, disk, read_only, format };
            serve::run(&served, &nbd, security, json)
        }
        Command::Delta(command) => delta::run(command, json),
        Command::Image(command) => image::run(command, json),
        Command::Store(StoreCommand::Check { dir, repair }) => store::check(&dir, repair, json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "understudy", &mut std::io::stdout());
            Ok(())
        }
        Command::Man { folder } => Ok(clap_mangen::generate_to(Arguments::command(), folder)?),
        asked => {
            let data = std::env::var_os("UNDERSTUDY_DATA").map(Into::into).or(configuration.server.data);
            let control = Control::new(arguments.control.or(configuration.control), data);
            match asked {
                Command::Mount(arguments) => mount::run(&arguments, &control, json),
                asked => ask::run(asked, &control, json),
            }
        }
    }
}

/// Logs to standard error; `UNDERSTUDY_LOG` filters as `RUST_LOG` does elsewhere.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("UNDERSTUDY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

/// Waits for SIGTERM or an interrupt.
async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
