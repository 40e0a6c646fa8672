//! A machine, a server and an agent for end-to-end tests: real loop devices, file systems and processes, all gone
//! afterwards, also after a panic.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod boot_sector;
pub mod computer;
pub mod console;
pub mod disk;
pub mod guest;
pub mod host;
pub mod numbered;
pub mod process;
pub mod proxy;
pub mod shown;
pub mod tapped;

use disk::Disk;
use process::Process;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The machine's name in every test.
pub const NAME: &str = "stage";

/// Everything of one test; fields are dropped in this order.
pub struct Stage {
    pub writer: Option<Process>,
    pub agent: Option<Process>,
    pub server: Option<Process>,
    pub disk: Disk,
    pub port: u16,
    stand_ins: StandIns,
    folder: tempfile::TempDir,
}

/// The folder of the stand-ins, which outlive their server and shall not outlive the test.
pub struct StandIns(PathBuf);

impl StandIns {
    /// Those of the server with this data folder.
    pub fn of(store: &Path) -> StandIns {
        StandIns(store.join("stand-ins"))
    }
}

impl Drop for StandIns {
    fn drop(&mut self) {
        let folders = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        for folder in folders.map(|entry| entry.path()) {
            let pid = std::fs::read_to_string(folder.join("qemu.pid")).unwrap_or_default();
            let line = std::fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
            if !pid.is_empty() && String::from_utf8_lossy(&line).contains(&*folder.to_string_lossy()) {
                let _ = Command::new("kill").args(["-9", pid.trim()]).output();
            }
        }
    }
}

impl Stage {
    /// A disk of that size and nothing running yet.
    pub fn new(disk_mib: u64) -> Stage {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let disk = Disk::new(folder.path(), "disk", disk_mib);
        let stand_ins = StandIns::of(&folder.path().join("store"));
        Stage { writer: None, agent: None, server: None, disk, port: free_port(), stand_ins, folder }
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the server, to die at that step if one is given, and waits until it answers (or is dead).
    pub fn start_server(&mut self, crash_at: Option<&str>) {
        self.start_server_with(crash_at, &[]);
    }

    /// The same with more flags.
    pub fn start_server_with(&mut self, crash_at: Option<&str>, more: &[&str]) {
        self.server = None;
        let mut command = program();
        command.args([
            "server",
            "--listen",
            &format!("127.0.0.1:{}", self.port),
            "--heartbeat-deadline",
            "2s",
        ]);
        command.arg("--data").arg(self.path("store"));
        command.arg("--nbd").arg(format!("unix:{}", self.path("nbd.sock").display()));
        command.args(more);
        self.server = Some(Process::start(command, crash_at, &self.path("server.log")));
        let started = Instant::now();
        while self.us(&["status"]).is_err() && self.server_alive() {
            assert!(started.elapsed() < Duration::from_secs(60), "the server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts an agent for the disk, to die at that step if one is given.
    pub fn start_agent(&mut self, crash_at: Option<&str>) {
        self.start_agent_towards(crash_at, self.port, &[]);
    }

    /// The same towards another port (a proxy's) and with more flags.
    pub fn start_agent_towards(&mut self, crash_at: Option<&str>, port: u16, more: &[&str]) {
        let device = self.disk.device().to_owned();
        self.start_agent_of(&device, crash_at, port, more);
    }

    /// The same for another device.
    pub fn start_agent_of(&mut self, device: &str, crash_at: Option<&str>, port: u16, more: &[&str]) {
        self.agent = None;
        let mut command = program();
        command.args(["agent", "--server", &format!("127.0.0.1:{port}"), "--name", NAME]);
        command.args(["--heartbeat", "500ms"]);
        if !more.contains(&"--checkpoint-every") {
            command.args(["--checkpoint-every", "2s"]);
        }
        command.args(["--disk", device, "--state"]).arg(self.path("agent"));
        command.args(more);
        self.agent = Some(Process::start(command, crash_at, &self.path("agent.log")));
    }

    /// Whether the server runs.
    pub fn server_alive(&mut self) -> bool {
        self.server.as_mut().is_some_and(Process::alive)
    }

    /// Whether the agent runs.
    pub fn agent_alive(&mut self) -> bool {
        self.agent.as_mut().is_some_and(Process::alive)
    }

    /// Runs a command against the server; its JSON, or what it printed to standard error.
    pub fn us(&self, arguments: &[&str]) -> Result<Value, String> {
        ask(&self.path("store"), arguments)
    }

    /// Repeats a command until it succeeds, restarting whatever died, as an administrator would.
    pub fn insist(&mut self, arguments: &[&str]) -> Value {
        let started = Instant::now();
        loop {
            let error = match self.us(arguments) {
                Ok(reply) => return reply,
                Err(error) => error,
            };
            self.revive();
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "{arguments:?} fails: {error}\n{}",
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Restarts what died, without crash points.
    pub fn revive(&mut self) {
        if self.server.is_some() && !self.server_alive() {
            self.start_server(None);
        }
        if self.agent.is_some() && !self.agent_alive() {
            self.start_agent(None);
        }
    }

    /// Waits until the condition holds.
    pub fn wait_until(&mut self, what: &str, seconds: u64, mut holds: impl FnMut(&mut Stage) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(
                started.elapsed() < Duration::from_secs(seconds),
                "waited {seconds} s for {what}\n{}",
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A field of the machine's status, by JSON pointer.
    pub fn status(&self, pointer: &str) -> Value {
        let reply = self.us(&["status", NAME]).unwrap_or_default();
        reply.pointer(&format!("/machines/0{pointer}")).cloned().unwrap_or_default()
    }

    /// Waits until a checkpoint can be offered, restarting what dies meanwhile.
    pub fn wait_protected(&mut self) {
        self.wait_until("the first checkpoint", 60, |stage| {
            stage.revive();
            stage.status("/checkpoints").as_u64().unwrap_or(0) > 0
        });
    }

    /// A writer with a ledger on the mounted file system at `mount`.
    pub fn start_writer(&mut self, mount: &Path) {
        let mut command = Command::new(ledger_program());
        command.arg("write").arg(mount.join("slots")).arg(self.path("ledger"));
        self.writer = Some(Process::start(command, None, &self.path("writer.log")));
    }

    /// Stops the writer where it stands.
    pub fn stop_writer(&mut self) {
        self.writer = None;
    }

    /// Checks a recovered file system against the ledger; how many promises were kept.
    pub fn check_ledger(&self, mount: &Path, until_ms: Option<u64>) -> u64 {
        let mut command = Command::new(ledger_program());
        command.arg("check").arg(mount.join("slots")).arg(self.path("ledger"));
        command.args(until_ms.map(|until| until.to_string()));
        run(&mut command).trim().parse().expect("the ledger prints a number")
    }

    /// Gives up what failbacks superseded, so that the history can be consolidated.
    pub fn drop_superseded(&mut self) {
        let list = self.insist(&["branches", NAME]);
        for branch in
            list["branches"].as_array().expect("a list").iter().filter(|one| one["kind"] == "superseded")
        {
            self.insist(&["branch", "drop", NAME, &branch["branch"].to_string()]);
        }
    }

    /// A new checkpoint of the machine at rest equals its disk, byte for byte, as cmp sees it over NBD.
    pub fn assert_stand_in_equals_disk(&mut self, name: &str) {
        self.insist(&["checkpoint", NAME, "--name", name]);
        let session = self.insist(&["recover", NAME, "--at", name, "--drill"]);
        let copy = self.path("copy.raw");
        sh(&format!("nbdcopy {} {}", uri(&session, 0), copy.display()));
        run(Command::new("cmp").arg(&copy).arg(self.disk.device()));
        std::fs::remove_file(copy).expect("the copy is there");
        self.insist(&["session", "stop", session["session"].as_str().expect("a session"), "--discard"]);
    }

    /// What the first `count` disks of a checkpoint hold, as nbdcopy reads them.
    pub fn disks_at(&mut self, checkpoint: &str, count: usize) -> Vec<Vec<u8>> {
        let session = self.insist(&["recover", NAME, "--at", checkpoint, "--drill"]);
        let copy = self.path("copy.raw");
        let read = |disk| {
            sh(&format!("nbdcopy {} {}", uri(&session, disk), copy.display()));
            std::fs::read(&copy).expect("the copy is there")
        };
        let disks = (0..count).map(read).collect();
        std::fs::remove_file(copy).expect("the copy is there");
        self.insist(&["session", "stop", session["session"].as_str().expect("a session"), "--discard"]);
        disks
    }

    /// Whether a process really died at that step.
    pub fn died_at(&self, step: &str) -> bool {
        let log = |name: &str| std::fs::read_to_string(self.path(name)).unwrap_or_default();
        ["server.log", "agent.log"].iter().any(|name| log(name).contains(&format!("dying at {step},")))
    }

    /// The ends of the logs, for messages.
    pub fn logs(&self) -> String {
        ["server.log", "agent.log"]
            .map(|name| {
                let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"))
            })
            .concat()
    }
}

/// Runs a command against the server of that data folder; its JSON, or what it printed to standard error.
pub fn ask(store: &Path, arguments: &[&str]) -> Result<Value, String> {
    let socket = store.join("control.sock");
    let output =
        program().arg("--json").arg("--control").arg(socket).args(arguments).output().expect("it runs");
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("--json prints JSON")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// The program under test.
pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_understudy"))
}

fn ledger_program() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_understudy")).parent().expect("a folder").to_owned();
    let ledger = folder.join("examples/ledger");
    assert!(ledger.exists(), "{} is missing: cargo build --examples", ledger.display());
    ledger
}

/// Runs a command that must succeed; what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// Runs a command line, split at spaces, that must succeed; what it printed.
pub fn sh(line: &str) -> String {
    let mut words = line.split(' ');
    run(Command::new(words.next().expect("a program")).args(words))
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// The first NBD URI of a session's disk.
pub fn uri(session: &Value, disk: usize) -> String {
    session["disks"][disk]["uris"][0].as_str().expect("a URI").to_owned()
}
