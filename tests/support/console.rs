//! A shell on a computer's serial console.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a line may take that is typed: everything is slow without hardware virtualisation.
const LINE_TIMEOUT: Duration = Duration::from_secs(120);
/// What the shell says when it is there (scripts/machine/furnish).
const READY: &str = "machine-ready";

pub struct Console {
    stream: UnixStream,
    said: String,
}

impl Console {
    /// Connects to the socket of a serial port that is about to be there.
    pub fn connect(path: &Path) -> Console {
        let started = Instant::now();
        loop {
            if let Ok(stream) = UnixStream::connect(path) {
                stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
                return Console { stream, said: String::new() };
            }
            assert!(started.elapsed() < LINE_TIMEOUT, "nothing listens on {}", path.display());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until somebody is logged in.
    pub fn wait_login(&mut self, seconds: u64) {
        self.until(READY, Duration::from_secs(seconds));
    }

    /// What is said until `mark`, which comes within that time.
    fn until(&mut self, mark: &str, within: Duration) -> String {
        let started = Instant::now();
        let mut bytes = [0; 4096];
        loop {
            if let Some(at) = self.said.find(mark) {
                let rest = self.said.split_off(at + mark.len());
                let mut before = std::mem::replace(&mut self.said, rest);
                before.truncate(at);
                return before;
            }
            assert!(started.elapsed() < within, "the console does not say '{mark}', only:\n{}", self.said);
            match self.stream.read(&mut bytes) {
                Ok(0) => panic!("the console is gone before it says '{mark}':\n{}", self.said),
                Ok(count) => self.said.push_str(&String::from_utf8_lossy(&bytes[..count]).replace('\r', "")),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("the console: {error}"),
            }
        }
    }

    /// Types a line and waits for its end; its exit status and what it printed.
    pub fn ask(&mut self, line: &str) -> (i32, String) {
        // Whoever echoes the line does not say the marks.
        writeln!(self.stream, "echo beg''un; {line}\necho en''ded $?.").expect("the console takes it");
        self.until("begun\n", LINE_TIMEOUT);
        let said = self.until("ended ", LINE_TIMEOUT);
        let status = self.until(".", LINE_TIMEOUT);
        (status.parse().unwrap_or_else(|_| panic!("{line}: '{status}' is no status")), said)
    }

    /// The same for a line that must succeed.
    pub fn run(&mut self, line: &str) -> String {
        let (status, said) = self.ask(line);
        assert_eq!(status, 0, "{line}: {said}");
        said
    }

    /// Asks again and again until the line succeeds; what it printed then.
    pub fn wait(&mut self, line: &str, seconds: u64) -> String {
        // What was said last, and what waits for a disk, where in the kernel.
        const WHY: &str = "tail -n 20 /run/*.log; dmesg | tail -n 5; for t in /proc/[0-9]*/task/*; do \
            grep -q 'State:.D' $t/status && echo $t $(cat $t/comm) && cat $t/stack; done";
        let started = Instant::now();
        loop {
            let (status, said) = self.ask(line);
            if status == 0 {
                return said;
            }
            if started.elapsed() > Duration::from_secs(seconds) {
                let (_, why) = self.ask(WHY);
                panic!("waited {seconds} s for {line}: {said}\n{why}");
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Types a line that ends the computer.
    pub fn type_last(&mut self, line: &str) {
        writeln!(self.stream, "{line}").expect("the console takes it");
    }
}
