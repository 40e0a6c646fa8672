//! A second opinion on whether a machine lives: heartbeats stop too when only the agent or the way to it is broken.

use blocks::{Error, ErrorKind, Result};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::process::Command;

/// How long one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// `tcp:HOST:PORT`: the machine itself. Who refuses a connection lives.
    Tcp(String),
    /// `command:PROGRAM`: it ends with 0 where the machine lives. It may ask from elsewhere, or the power supply.
    Command(PathBuf),
}

/// What the probe says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Opinion {
    /// Something of the machine answers.
    Lives(String),
    /// Nothing does.
    Silent(String),
}

impl FromStr for Probe {
    type Err = Error;

    fn from_str(text: &str) -> Result<Probe> {
        let wrong =
            |why: &str| Err(Error::new(ErrorKind::InvalidInput, format!("the probe '{text}': {why}")));
        match text.split_once(':') {
            Some(("tcp", address)) => match address.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => {
                    Ok(Probe::Tcp(address.to_owned()))
                }
                _ => wrong("tcp wants HOST:PORT"),
            },
            Some(("command", path)) if path.starts_with('/') => Ok(Probe::Command(path.into())),
            Some(("command", _)) => wrong("command wants the absolute path of a program"),
            _ => wrong("tcp:HOST:PORT or command:PROGRAM"),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Tcp(address) => write!(f, "tcp:{address}"),
            Probe::Command(path) => write!(f, "command:{}", path.display()),
        }
    }
}

impl Probe {
    /// Asks once, for a few seconds at most. Whoever cannot be asked counts as silent: a program that is missing must not
    /// keep a machine from being recovered, and its error is in the words.
    pub async fn ask(&self, machine: &str) -> Opinion {
        match self {
            Probe::Tcp(address) => match tokio::time::timeout(TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(_)) => Opinion::Lives(format!("{address} takes connections")),
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    Opinion::Lives(format!("{address} refuses connections, so something is there"))
                }
                Ok(Err(error)) => Opinion::Silent(format!("{address}: {error}")),
                Err(_) => Opinion::Silent(format!("{address} does not answer")),
            },
            Probe::Command(path) => run(path, machine).await,
        }
    }
}

async fn run(path: &PathBuf, machine: &str) -> Opinion {
    let mut command = Command::new(path);
    command.arg(machine).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let shown = path.display();
    match tokio::time::timeout(TIMEOUT, command.status()).await {
        Ok(Ok(status)) if status.success() => Opinion::Lives(format!("{shown} says so")),
        Ok(Ok(status)) => Opinion::Silent(format!("{shown} ended with {status}")),
        Ok(Err(error)) => Opinion::Silent(format!("{shown} cannot be asked: {error}")),
        Err(_) => Opinion::Silent(format!("{shown} does not end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn probes_are_words() {
        for good in ["tcp:web1:22", "tcp:[::1]:443", "command:/usr/local/bin/power-of"] {
            assert_eq!(good.parse::<Probe>().unwrap().to_string(), good);
        }
        for bad in
            ["", "tcp", "tcp:web1", "tcp::22", "tcp:web1:0", "tcp:web1:http", "command:power-of", "icmp:web1"]
        {
            let error = bad.parse::<Probe>().unwrap_err();
            assert!(error.to_string().contains(&format!("'{bad}'")), "{error}");
        }
    }

    #[tokio::test]
    async fn whoever_takes_or_refuses_a_connection_lives() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let probe = Probe::Tcp(listener.local_addr().unwrap().to_string());
        assert!(matches!(probe.ask("web1").await, Opinion::Lives(words) if words.contains("takes")));
        drop(listener);
        assert!(matches!(probe.ask("web1").await, Opinion::Lives(words) if words.contains("refuses")));
        let nowhere = Probe::Tcp("no-such-host.invalid:1".into());
        assert!(matches!(nowhere.ask("web1").await, Opinion::Silent(_)));
    }

    #[tokio::test]
    async fn a_program_is_told_the_machine_and_its_status_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("asked");
        std::fs::write(&path, "#!/bin/sh\ntest \"$1\" = web1\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let probe = Probe::Command(path);
        assert!(matches!(probe.ask("web1").await, Opinion::Lives(_)));
        assert!(matches!(probe.ask("web2").await, Opinion::Silent(_)));
        let missing = Probe::Command(folder.path().join("missing"));
        assert!(
            matches!(missing.ask("web1").await, Opinion::Silent(words) if words.contains("cannot be asked"))
        );
    }
}
