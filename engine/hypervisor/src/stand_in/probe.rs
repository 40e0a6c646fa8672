//! By what it is told that a stand-in does its work.

use super::{Hypervisor, Places};
use crate::qmp::Lines;
use blocks::{Error, ErrorKind, Result};
use serde_json::json;
use std::fmt;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long one look may take.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);
/// How much of the console's end is looked at.
const CONSOLE_BYTES_MAX: u64 = 1 << 20;

/// What has to be seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Probe {
    /// The guest takes a connection to this port.
    Tcp(u16),
    /// QEMU's guest agent answers.
    Agent,
    /// The serial console has said this.
    Console(String),
}

/// Where to look.
#[derive(Debug)]
pub struct ProbePlace<'a> {
    /// Who runs it.
    pub hypervisor: &'a dyn Hypervisor,
    /// Which one it is.
    pub identity: &'a str,
    /// Where its files are.
    pub places: &'a Places,
    /// The host's port that leads to the probed one.
    pub host_port: Option<u16>,
}

impl FromStr for Probe {
    type Err = Error;

    /// `tcp:PORT`, `agent` or `console:TEXT`.
    fn from_str(text: &str) -> Result<Probe> {
        let wrong = || {
            let context =
                format!("'{}' is no probe; there are tcp:PORT, agent and console:TEXT", text.escape_debug());
            Error::new(ErrorKind::InvalidInput, context)
        };
        match text.split_once(':') {
            None if text == "agent" => Ok(Probe::Agent),
            Some(("tcp", port)) => {
                port.parse().ok().filter(|port| *port != 0).map(Probe::Tcp).ok_or_else(wrong)
            }
            Some(("console", said)) if !said.is_empty() && said.len() <= 1024 => {
                Ok(Probe::Console(said.to_owned()))
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Tcp(port) => write!(f, "tcp:{port}"),
            Probe::Agent => f.write_str("agent"),
            Probe::Console(said) => write!(f, "console:{said}"),
        }
    }
}

impl Probe {
    /// Looks once, which takes a few seconds at most. An error where looking again is of no use.
    pub fn look(&self, place: &ProbePlace<'_>) -> Result<bool> {
        match self {
            Probe::Tcp(port) => tcp(*port, place),
            Probe::Agent => Ok(agent(place).is_ok()),
            Probe::Console(said) => console(said, place),
        }
    }
}

fn tcp(port: u16, place: &ProbePlace<'_>) -> Result<bool> {
    let Some(host_port) = place.host_port else {
        let context = format!("nothing leads to port {port} of the guest: its network is not QEMU's own");
        return Err(Error::new(ErrorKind::InvalidInput, context));
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, host_port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, LOOK_PATIENCE) else { return Ok(false) };
    let deadline = Instant::now() + LOOK_PATIENCE;
    while Instant::now() < deadline {
        if let Ok(true) = place.hypervisor.is_connected(place.identity, place.places, host_port) {
            return Ok(true);
        }
        // Closed: the guest has refused it.
        let waited = stream.set_read_timeout(Some(Duration::from_millis(100)));
        if waited.is_err() || matches!(stream.read(&mut [0]), Ok(0)) {
            return Ok(false);
        }
    }
    Ok(false)
}

fn agent(place: &ProbePlace<'_>) -> Result<()> {
    let deadline = Instant::now() + LOOK_PATIENCE;
    let mut lines = Lines::connect(&place.places.agent())?;
    // What an earlier look has asked may be answered only now.
    static LOOKS: AtomicU64 = AtomicU64::new(1);
    let number = u64::from(std::process::id()) << 32 | LOOKS.fetch_add(1, Ordering::Relaxed);
    let arguments = json!({ "id": number });
    lines.send(&json!({ "execute": "guest-sync", "arguments": arguments }), deadline)?;
    while lines.next(deadline)?["return"] != number {}
    Ok(())
}

fn console(said: &str, place: &ProbePlace<'_>) -> Result<bool> {
    let path = place.places.console_log();
    let failed = |error| Error::io(path.display().to_string(), error);
    let mut file = match std::fs::File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        opened => opened.map_err(failed)?,
    };
    let len = file.metadata().map_err(failed)?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(CONSOLE_BYTES_MAX))).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(CONSOLE_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes.windows(said.len()).any(|part| part == said.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FakeHypervisor;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    fn look(probe: &str, places: &Places) -> bool {
        let hypervisor = FakeHypervisor::default();
        let place = ProbePlace { hypervisor: &hypervisor, identity: "i", places, host_port: None };
        probe.parse::<Probe>().unwrap().look(&place).unwrap()
    }

    #[test]
    fn probes_are_said_and_read_alike() {
        for text in ["tcp:80", "agent", "console:login: "] {
            assert_eq!(text.parse::<Probe>().unwrap().to_string(), text);
        }
        for wrong in ["", "tcp:", "tcp:0", "tcp:70000", "console:", "agent:", "ping"] {
            assert!(wrong.parse::<Probe>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_guest_agents_own_answer_counts() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::new(folder.path());
        assert!(!look("agent", &places), "nobody listens");
        let listener = UnixListener::bind(places.agent()).unwrap();
        let peer = std::thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let asked: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(asked["execute"], "guest-sync");
            // One to somebody who asked before, first.
            writeln!(stream.get_mut(), "{{\"return\": 5}}").unwrap();
            writeln!(stream.get_mut(), "{{\"return\": {}}}", asked["arguments"]["id"]).unwrap();
            let (mut silent, _) = listener.accept().unwrap();
            writeln!(silent, "{{\"return\": 5}}").unwrap();
            while matches!(silent.read(&mut [0; 256]), Ok(read) if read > 0) {}
        });
        assert!(look("agent", &places));
        assert!(!look("agent", &places), "an answer to somebody else is none");
        peer.join().unwrap();
    }

    #[test]
    fn what_the_console_has_said_is_found_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::new(folder.path());
        assert!(!look("console:login:", &places));
        let before = vec![b'.'; usize::try_from(CONSOLE_BYTES_MAX).unwrap()];
        std::fs::write(places.console_log(), [&before[..], b"\xff login: "].concat()).unwrap();
        assert!(look("console:login:", &places) && !look("console:password", &places));
    }
}
