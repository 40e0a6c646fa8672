//! A server that computers reach over the network, and its folder.

use super::process::Process;
use super::{StandIns, ask, free_port, program};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// See the module. What its stand-ins leave is taken away with it.
pub struct Host {
    pub port: u16,
    _server: Process,
    _stand_ins: StandIns,
    folder: tempfile::TempDir,
}

impl Host {
    /// As a computer of [`super::computer`] sees it.
    pub const ADDRESS: &'static str = "10.0.2.2";

    /// Starts a server that gives a silent machine up after so long.
    pub fn start(heartbeat_deadline: &str) -> Host {
        let folder = tempfile::tempdir().expect("a folder");
        let (port, at) = (free_port(), |name: &str| folder.path().join(name));
        let mut command = program();
        command.args(["server", "--listen", &format!("0.0.0.0:{port}")]);
        command.args(["--heartbeat-deadline", heartbeat_deadline]).arg("--data").arg(at("store"));
        command.arg("--nbd").arg(format!("unix:{}", at("nbd.sock").display()));
        let _server = Process::start(command, None, &at("server.log"));
        let host = Host { port, _server, _stand_ins: StandIns::of(&at("store")), folder };
        let started = Instant::now();
        while host.us(&["status"]).is_err() {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "the server does not answer\n{}",
                host.logs()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        host
    }

    /// A file of its folder.
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command against the server; its JSON, or what it printed to standard error.
    pub fn us(&self, arguments: &[&str]) -> Result<Value, String> {
        ask(&self.at("store"), arguments)
    }

    /// The same for one that must succeed.
    pub fn well(&self, arguments: &[&str]) -> Value {
        self.us(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{}", self.logs()))
    }

    /// What the server said.
    pub fn logs(&self) -> String {
        std::fs::read_to_string(self.at("server.log")).unwrap_or_default()
    }
}
