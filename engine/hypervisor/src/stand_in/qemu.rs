//! Stand-ins that QEMU runs: a process of its own for each, which a server's restart does not touch.

use super::process::Process;
use super::trial::Trial;
use super::{GuestState, Hypervisor, Kernel, Places, StandIn, firmware};
use crate::form::Acceleration;
use crate::network::Network;
use crate::qemu::{CommandLine, command_line};
use crate::qmp::Qmp;
use blocks::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long QEMU may take to open its disks and to stand ready; it waits for NBD servers as long as [`crate::qemu`]
/// says.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long one answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// How often a client that was hung up on comes again.
const TRIES_MAX: u32 = 10;
/// How long a process may take to end after it was told to, and after it was killed.
const QUIT_PATIENCE: Duration = Duration::from_secs(5);
const KILL_PATIENCE: Duration = Duration::from_secs(20);
/// How often a power button is pressed.
const PRESS_EVERY: Duration = Duration::from_secs(5);
const LAST_WORDS_BYTES_MAX: usize = 600;

/// QEMU.
#[derive(Debug, Default)]
pub struct Qemu {
    trial: Trial,
}

impl Qemu {
    /// QEMU was seen to hang up on one who comes while its last client is leaving: who was hung up on comes again.
    fn connect(identity: &str, places: &Places, patience: Duration) -> Result<Qmp> {
        let mut tries = 0;
        loop {
            match Qemu::connect_once(identity, places, patience) {
                Err(error) if error.kind() == ErrorKind::NotFound && tries < TRIES_MAX => {
                    if Process::find(identity, places).is_none() {
                        return Err(error);
                    }
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
                connected => return connected,
            }
        }
    }

    fn connect_once(identity: &str, places: &Places, patience: Duration) -> Result<Qmp> {
        let mut qmp = Qmp::connect(&places.control(), patience)?;
        let found = qmp.execute("query-uuid", json!({}))?;
        match found["UUID"].as_str() {
            Some(uuid) if uuid == identity => Ok(qmp),
            _ => Err(Error::corrupt(format!("{} is another stand-in's", places.control().display()))),
        }
    }

    /// Waits for one whose process is not known, because its file is gone, but which answered.
    fn wait_gone(identity: &str, places: &Places) -> Result<()> {
        let deadline = Instant::now() + QUIT_PATIENCE;
        while Qemu::connect(identity, places, ANSWER_PATIENCE).is_ok() {
            if Instant::now() >= deadline {
                let context =
                    format!("QEMU does not end; which process it is, {} said", places.pid().display());
                return Err(Error::new(ErrorKind::Io, context));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn execute(identity: &str, places: &Places, command: &str, arguments: Value) -> Result<Value> {
        Qemu::connect(identity, places, ANSWER_PATIENCE)?.execute(command, arguments)
    }
}

impl Hypervisor for Qemu {
    fn start(&self, stand_in: &StandIn, places: &Places) -> Result<Vec<String>> {
        places.prepare()?;
        let mut options = firmware::options(stand_in, places)?;
        let architecture = stand_in.definition.architecture;
        let (acceleration, why) = match stand_in.acceleration {
            Acceleration::Fallback => self.trial.verdict(architecture, places),
            said => (said, None),
        };
        options.acceleration = acceleration;
        stand_in.definition.check()?;
        let line = command_line(&stand_in.definition, &options, &stand_in.network)?;
        let CommandLine { groups, mut notes } = line;
        notes.extend(why);
        let mut words = groups.into_iter().flatten();
        let program = words.next().unwrap_or_default();
        let mut command = Command::new(&program);
        command.args(words).args(run_words(stand_in, places));
        let mut child = spawn(command, &program, places)?;
        match ready(&mut child, &program, stand_in, places) {
            Ok(()) => reap(child).map(|()| notes),
            Err(error) => {
                end_of(&mut child, Duration::ZERO).map_err(|error| Error::io(program, error))?;
                Err(error)
            }
        }
    }

    fn state(&self, identity: &str, places: &Places) -> GuestState {
        let asked = Qemu::execute(identity, places, "query-status", json!({}));
        let status = match asked {
            Ok(status) => status,
            Err(error) => {
                return match Process::find(identity, places) {
                    Some(_) => GuestState::Silent(error.to_string()),
                    None => GuestState::Gone(last_words(places)),
                };
            }
        };
        match status["status"].as_str().unwrap_or_default() {
            "running" => GuestState::Running,
            "paused" => GuestState::Paused,
            "io-error" => GuestState::DiskTrouble,
            "shutdown" => GuestState::Off,
            other => GuestState::Stopped(other.chars().take(40).collect()),
        }
    }

    fn pause(&self, identity: &str, places: &Places) -> Result<()> {
        Qemu::execute(identity, places, "stop", json!({})).map(drop)
    }

    fn resume(&self, identity: &str, places: &Places) -> Result<()> {
        Qemu::execute(identity, places, "cont", json!({})).map(drop)
    }

    fn power_down(&self, identity: &str, places: &Places, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        let mut qmp = Qemu::connect(identity, places, ANSWER_PATIENCE)?;
        if qmp.execute("query-status", json!({}))?["status"] == "shutdown" {
            return Ok(true);
        }
        loop {
            // A guest that is still starting does not hear it.
            qmp.execute("system_powerdown", json!({}))?;
            let until = deadline.min(Instant::now() + PRESS_EVERY);
            match qmp.wait_event("SHUTDOWN", until) {
                Ok(()) => return Ok(true),
                // Whoever has ended is off too.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
                Err(error) if error.kind() != ErrorKind::Cancelled => return Err(error),
                Err(_) if Instant::now() >= deadline => return Ok(false),
                Err(_) => {}
            }
        }
    }

    fn kill(&self, identity: &str, places: &Places) -> Result<()> {
        let process = Process::find(identity, places);
        // What it holds for its disks is written out where it ends by itself.
        let told = Qemu::execute(identity, places, "quit", json!({}));
        let Some(process) = process else {
            return match told {
                Ok(_) => Qemu::wait_gone(identity, places),
                Err(_) => Ok(()),
            };
        };
        if told.is_ok() && process.wait(QUIT_PATIENCE) {
            return Ok(());
        }
        process.kill(KILL_PATIENCE)
    }

    fn screenshot(&self, identity: &str, places: &Places, file: &Path) -> Result<()> {
        let arguments = json!({ "filename": file.to_string_lossy(), "format": "png" });
        Qemu::execute(identity, places, "screendump", arguments).map(drop)
    }

    fn is_connected(&self, identity: &str, places: &Places, host_port: u16) -> Result<bool> {
        let arguments = json!({ "command-line": "info usernet" });
        let said = Qemu::execute(identity, places, "human-monitor-command", arguments)?;
        Ok(said.as_str().unwrap_or_default().lines().any(|line| is_established(line, host_port)))
    }
}

/// A line such as `TCP[ESTABLISHED] 15 127.0.0.1 5555 10.0.2.15 22 0 0`: QEMU itself takes a connection before the
/// guest does, so that it was taken says nothing.
fn is_established(line: &str, host_port: u16) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.first() == Some(&"TCP[ESTABLISHED]") && words.get(3) == Some(&host_port.to_string().as_str())
}

/// What a stand-in that runs has beside what is printed of it.
fn run_words(stand_in: &StandIn, places: &Places) -> Vec<String> {
    // In QEMU's options a comma in a value is written twice.
    let text = |path: std::path::PathBuf| path.to_string_lossy().replace(',', ",,");
    let socket = |id: &str, path| format!("socket,id={id},path={},server=on,wait=off", text(path));
    let console_log = text(places.console_log());
    let mut words: Vec<String> = [
        // Found again by it, and told from every other.
        "-uuid",
        &stand_in.identity,
        "-pidfile",
        &places.pid().to_string_lossy(),
        "-chardev",
        &socket("control", places.control()),
        "-mon",
        "chardev=control,mode=control",
        "-chardev",
        &socket("qmp", places.qmp()),
        "-mon",
        "chardev=qmp,mode=control",
        "-chardev",
        &format!("{},logfile={console_log},logappend=on", socket("console", places.console())),
        "-serial",
        "chardev:console",
        "-monitor",
        "none",
        "-display",
        "none",
        "-vnc",
        &format!("unix:{}", text(places.vnc())),
        "-device",
        "virtio-serial-pci,id=channels",
        "-chardev",
        &socket("agent", places.agent()),
        "-device",
        "virtserialport,bus=channels.0,chardev=agent,name=org.qemu.guest_agent.0",
        // That it has switched itself off is to be seen; that its disks are away for long is to be survived.
        "-no-shutdown",
    ]
    .map(str::to_owned)
    .to_vec();
    if let Some(Kernel { image, initrd, append }) = &stand_in.kernel {
        words.extend(["-kernel", image, "-append", append].map(str::to_owned));
        words.extend(initrd.iter().flat_map(|initrd| ["-initrd".to_owned(), initrd.clone()]));
    }
    let mark = &stand_in.mark;
    words.extend(["-smbios".to_owned(), format!("type=1,serial={mark}")]);
    words.extend(["-fw_cfg".to_owned(), format!("name=opt/understudy/session,string={mark}")]);
    for device in ["virtio-blk-device", "scsi-hd"] {
        for error in ["werror", "rerror"] {
            words.extend(["-global".to_owned(), format!("{device}.{error}=stop")]);
        }
    }
    if stand_in.network == Network::Unplugged || stand_in.definition.nics.is_empty() {
        words.extend(["-nic", "none"].map(str::to_owned));
    }
    // A bridge is entered by a program of QEMU's that it has to start.
    let spawn = if matches!(stand_in.network, Network::Bridge(_)) { "allow" } else { "deny" };
    let sandbox = format!("on,obsolete=deny,elevateprivileges={spawn},spawn={spawn},resourcecontrol=deny");
    words.extend(["-sandbox".to_owned(), sandbox]);
    words
}

fn spawn(mut command: Command, program: &str, places: &Places) -> Result<Child> {
    let log = places.log();
    let failed = |error| Error::io(log.display().to_string(), error);
    let errors = OpenOptions::new().create(true).append(true).open(&log).map_err(failed)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
    // What is typed at the server's terminal is not meant for it.
    command.process_group(0);
    command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::new(ErrorKind::NotFound, format!("{program} is not installed here"))
        }
        _ => Error::io(program.to_owned(), error),
    })
}

/// Waits until QEMU answers, which it does once its disks are open.
fn ready(child: &mut Child, program: &str, stand_in: &StandIn, places: &Places) -> Result<()> {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        let ended = child.try_wait().map_err(|error| Error::io(program.to_owned(), error))?;
        if let Some(status) = ended {
            let context = format!("{program} does not start ({status}): {}", last_words(places));
            return Err(Error::new(ErrorKind::Io, context));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match Qemu::connect(&stand_in.identity, places, left) {
            Ok(_) => return Ok(()),
            // It has not come so far, or has just ended.
            Err(error) if error.kind() == ErrorKind::NotFound && !left.is_zero() => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(error.context(format_args!("{program} was not ready in time"))),
        }
    }
}

/// Waits for the child in the background, so that it leaves no trace when it ends.
fn reap(mut child: Child) -> Result<()> {
    let thread = std::thread::Builder::new().name("qemu".into()).spawn(move || child.wait());
    thread.map(drop).map_err(|error| Error::io("starting the thread that waits for QEMU", error))
}

/// How a child ended; `None`, and the child killed, where it has not within `patience`.
pub(super) fn end_of(child: &mut Child, patience: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            // One that does not heed even that is left to whoever inherits it.
            let killed = Instant::now() + QUIT_PATIENCE;
            while child.try_wait()?.is_none() && Instant::now() < killed {
                std::thread::sleep(Duration::from_millis(10));
            }
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The end of what QEMU has said to people.
fn last_words(places: &Places) -> String {
    let bytes = std::fs::read(places.log()).unwrap_or_default();
    let end = &bytes[bytes.len().saturating_sub(LAST_WORDS_BYTES_MAX)..];
    String::from_utf8_lossy(end).trim().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::testing::definition;

    #[test]
    fn a_connection_counts_when_the_guest_has_taken_it() {
        let line = |state: &str| format!("  TCP[{state}]  15  127.0.0.1  5555  10.0.2.15  22  0  0");
        assert!(is_established(&line("ESTABLISHED"), 5555));
        assert!(!is_established(&line("SYN_SENT"), 5555) && !is_established(&line("ESTABLISHED"), 22));
        assert!(!is_established(&line("HOST_FORWARD"), 5555) && !is_established("", 0));
    }

    #[test]
    fn a_folder_with_a_comma_stays_one_word() {
        let stand_in = StandIn {
            definition: definition(),
            identity: "i".to_owned(),
            mark: "understudy-session-0".into(),
            network: Network::Unplugged,
            acceleration: Acceleration::Tcg,
            firmware_code: None,
            firmware_vars: None,
            kernel: None,
        };
        let words = run_words(&stand_in, &Places::new("/run/a,b"));
        assert!(words.iter().any(|word| word.contains("path=/run/a,,b/control.sock,server=on")), "{words:?}");
        assert!(words.windows(2).any(|pair| pair == ["-nic", "none"]), "nothing is plugged in by default");
    }
}
