//! Commands that a running server carries out.

use super::{console, metrics, print};
use crate::arguments::{
    BootArguments, BranchCommand, CheckpointsCommand, Command, DefinitionArguments, MachineChanges,
    MachineCommand, SessionCommand, UsageError,
};
use crate::control::Control;
use crate::output;
use anyhow::{anyhow, bail};
use server::control::api::{BootRequest, DefinitionRequest, GuestOrder, Reply, Request};
use std::path::PathBuf;
use std::time::Duration;

const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Asks the server and prints what comes of it.
pub fn run(command: Command, control: &Control, json: bool) -> anyhow::Result<()> {
    let watch = matches!(command, Command::Status { watch: true, .. });
    let as_metrics = matches!(command, Command::Metrics);
    let as_console = matches!(command, Command::Session(SessionCommand::Console { .. }));
    let request = request(command)?;
    loop {
        let reply = control.ask(&request, output::progress(json).as_mut())?;
        if watch && !json {
            print!("\x1b[2J\x1b[H");
        }
        match json {
            true => println!("{}", serde_json::to_string(&reply)?),
            false => match &reply {
                Reply::Session(info) if as_console => return console::attach(info),
                Reply::Status(status) if as_metrics => print!("{}", metrics::text(status)),
                _ => print::reply(&reply),
            },
        }
        if !watch {
            return verdict(&reply);
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
}

fn request(command: Command) -> anyhow::Result<Request> {
    Ok(match command {
        Command::Status { machine, .. } => Request::Status { machine },
        Command::Metrics => Request::Status { machine: None },
        Command::Checkpoint { of, name, protect_until } => Request::Checkpoint { of, name, protect_until },
        Command::Checkpoints { command: Some(command), .. } => of_checkpoints(command),
        Command::Checkpoints { machine: Some(machine), .. } => Request::Checkpoints { machine },
        Command::Checkpoints { .. } => return Err(UsageError("say of which machine".to_owned()).into()),
        Command::Branches { machine } => Request::Branches { machine },
        Command::Branch(BranchCommand::Clone { of, at, name }) => Request::Clone { of, at, name },
        Command::Branch(BranchCommand::Drop { machine, branch }) => Request::DropBranch { machine, branch },
        Command::Settle { machine, at } => Request::Settle { machine, at },
        Command::Recover { machine, at, drill, boot, guest } => {
            if !boot && *guest != BootArguments::default() {
                return Err(UsageError("what a stand-in is to be like is said with --boot".to_owned()).into());
            }
            if drill && guest.probe.is_some() {
                return Ok(Request::Drill { machine, at, boot: of_boot(*guest)? });
            }
            let boot = boot.then(|| of_boot(*guest)).transpose()?;
            Request::Recover { machine, at, drill, boot }
        }
        Command::Drills { machine } => Request::Drills { machine },
        Command::Sessions => Request::Sessions,
        Command::Session(command) => of_session(command)?,
        Command::Migrate { session, disk, to, format, rate, pivot } => {
            if to.is_none() && !pivot {
                return Err(UsageError("migrate wants --to, --pivot or both".to_owned()).into());
            }
            let to = to.map(absolute).transpose()?;
            Request::Migrate { session, disk, to, format, rate: rate.map(|rate| rate.as_u64()), pivot }
        }
        Command::Failback { session, to, disks, cutover, discard_unsent } => {
            Request::Failback { session, to, disks, cutover, discard_unsent }
        }
        Command::Export { of, disk, at, since: Some(since), output, .. } => Request::ExportDelta {
            machine: of,
            disk,
            since,
            at,
            output: absolute(output.to_string_lossy().into_owned())?,
        },
        Command::Export { of, disk, at, format, ovf_version, output, since: None } => {
            let output = absolute(output.to_string_lossy().into_owned())?;
            Request::Export { of, disk, at, format, ovf_version, output }
        }
        Command::Definition(arguments) => Request::Definition(of_definition(arguments)?),
        Command::Scrub { machine, rate } => Request::Scrub { machine, rate: rate.map(|rate| rate.as_u64()) },
        Command::Verify { machine } => Request::Verify { machine },
        Command::Enroll { name, rescue, valid } => Request::Enroll { name, rescue, seconds: valid.as_secs() },
        Command::Machine(MachineCommand::Set { machine, changes }) => of_changes(machine, *changes)?,
        Command::Machine(MachineCommand::Admit { machine }) => Request::AdmitMachine { machine },
        Command::Machine(MachineCommand::Remove { machine }) => Request::RemoveMachine { machine },
        Command::Server(_)
        | Command::Agent { .. }
        | Command::Serve { .. }
        | Command::Mount(_)
        | Command::Delta(_)
        | Command::Image(_)
        | Command::Store(_)
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::AgentWatchdog { .. } => bail!("this command is not one question to a server"),
    })
}

/// In milliseconds; 0 is never.
fn drill_interval(text: &str) -> anyhow::Result<u64> {
    if text == "never" {
        return Ok(0);
    }
    let every: humantime::Duration = text
        .parse()
        .map_err(|error| UsageError(format!("--drill-every {text}: {error}; wants a duration, or never")))?;
    match u64::try_from(every.as_millis()).unwrap_or(u64::MAX) {
        0 => Err(UsageError(format!("--drill-every {text} is too often; say never for none")).into()),
        milliseconds => Ok(milliseconds),
    }
}

fn of_changes(machine: String, changes: MachineChanges) -> anyhow::Result<Request> {
    let MachineChanges { keep, quota, on_failure, probe, drill_every, drill_probe, drill_memory } = changes;
    let memory = drill_memory.map(|memory| memory.as_u64());
    let drill_boot =
        drill_probe.map(|probe| BootRequest { probe: Some(probe), memory, ..BootRequest::default() });
    let drill_every_ms = drill_every.as_deref().map(drill_interval).transpose()?;
    Ok(Request::SetMachine { machine, keep, quota, on_failure, probe, drill_every_ms, drill_boot })
}

fn of_session(command: SessionCommand) -> anyhow::Result<Request> {
    let milliseconds =
        |duration: humantime::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Ok(match command {
        SessionCommand::Show { session } | SessionCommand::Console { session } => {
            Request::Session { session }
        }
        SessionCommand::Resume { session } => Request::GuestRestarted { session },
        SessionCommand::Stop { session, discard, patience } => {
            Request::StopSession { session, discard, patience_ms: Some(milliseconds(patience)) }
        }
        SessionCommand::Boot { session, guest } => Request::Boot { session, boot: of_boot(*guest)? },
        SessionCommand::Shutdown { session, patience } => {
            let order = GuestOrder::Shutdown { patience_ms: milliseconds(patience) };
            Request::Guest { session, order }
        }
        SessionCommand::Pause { session } => Request::Guest { session, order: GuestOrder::Pause },
        SessionCommand::Unpause { session } => Request::Guest { session, order: GuestOrder::Unpause },
        SessionCommand::Screenshot { session, output } => {
            Request::Screenshot { session, output: absolute(output.to_string_lossy().into_owned())? }
        }
    })
}

fn of_boot(arguments: BootArguments) -> anyhow::Result<BootRequest> {
    let file =
        |file: Option<PathBuf>| file.map(|file| absolute(file.to_string_lossy().into_owned())).transpose();
    let timeout = arguments.probe_timeout.map(|timeout| timeout.as_millis());
    Ok(BootRequest {
        memory: arguments.memory.map(|memory| memory.as_u64()),
        cpus: arguments.cpus,
        network: arguments.network,
        acceleration: arguments.accel,
        firmware_code: file(arguments.firmware_code)?,
        firmware_vars: file(arguments.firmware_vars)?,
        kernel: file(arguments.kernel)?,
        initrd: file(arguments.initrd)?,
        append: arguments.append,
        probe: arguments.probe,
        probe_timeout_ms: timeout.map(|timeout| u64::try_from(timeout).unwrap_or(u64::MAX)),
    })
}

fn of_definition(arguments: DefinitionArguments) -> anyhow::Result<DefinitionRequest> {
    let absolute = |file: Option<String>| file.map(absolute).transpose();
    Ok(DefinitionRequest {
        of: arguments.of,
        at: arguments.at,
        form: arguments.form,
        ovf_version: arguments.ovf_version,
        disks: arguments.disk_files.into_iter().map(self::absolute).collect::<anyhow::Result<_>>()?,
        acceleration: Some(arguments.accel),
        firmware_code: absolute(arguments.firmware_code)?,
        firmware_vars: absolute(arguments.firmware_vars)?,
    })
}

fn of_checkpoints(command: CheckpointsCommand) -> Request {
    match command {
        CheckpointsCommand::Delete { machine, checkpoints } => {
            Request::DeleteCheckpoints { machine, checkpoints }
        }
        CheckpointsCommand::Protect { machine, checkpoint, until } => {
            Request::ProtectCheckpoint { machine, checkpoint, until: Some(until) }
        }
        CheckpointsCommand::Unprotect { machine, checkpoint } => {
            Request::ProtectCheckpoint { machine, checkpoint, until: None }
        }
    }
}

/// The server runs in another folder than the person who types a path. URIs are left alone.
fn absolute(path: String) -> anyhow::Result<String> {
    match path.contains("://") {
        true => Ok(path),
        false => Ok(std::path::absolute(path)?.to_string_lossy().into_owned()),
    }
}

/// A comparison that found differences, a scrub that found damage, or a drill without success, is a failure for scripts
/// too.
fn verdict(reply: &Reply) -> anyhow::Result<()> {
    if let Reply::Scrubbed { machines } = reply {
        let damage: u64 = machines.iter().map(|machine| machine.damage).sum();
        return if damage == 0 { Ok(()) } else { Err(anyhow!("{damage} findings of damage")) };
    }
    if let Reply::Drill(info) = reply {
        return if info.passed {
            Ok(())
        } else {
            Err(anyhow!("{}: the drill failed: {}", info.machine, info.detail))
        };
    }
    let Reply::Verified(info) = reply else { return Ok(()) };
    let ranges: usize = info.disks.iter().map(|disk| disk.differing.len()).sum();
    match ranges {
        0 => Ok(()),
        ranges => bail!("{}: {ranges} ranges differ from the stand-in", info.machine),
    }
}
