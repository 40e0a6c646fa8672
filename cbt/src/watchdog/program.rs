//! The watchdog's own program.

use super::ioctl::thaw;
use super::note::{Note, thaw_left_behind};
use blocks::{Error, ErrorKind, Result};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a freeze that has not returned is tried to be thawed.
const RETRY: Duration = Duration::from_millis(5);
/// A thaw needs next to no stack; it is locked in memory.
const THAW_STACK_BYTES: usize = 64 << 10;

/// Runs the watchdog until its agent is gone and nothing is frozen. `arguments`: the folder for notes. Standard input
/// is the socket to the agent. Returns the process' exit status.
pub fn watchdog_main(arguments: impl IntoIterator<Item = String>) -> i32 {
    let Some(run_dir) = arguments.into_iter().next().map(PathBuf::from) else {
        eprintln!("the watchdog is started by the agent, not by hand");
        return 2;
    };
    match run(&run_dir) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("watchdog: {error}");
            1
        }
    }
}

fn run(run_dir: &Path) -> Result<()> {
    harden();
    thaw_left_behind(run_dir);
    let agent = std::os::unix::process::parent_id();
    let alive = pidfd(agent)?;
    // SAFETY: standard input belongs to this function: nothing else in this process reads it.
    let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(libc::STDIN_FILENO) });
    let mut program = Program { run_dir, agent, stream, received: Vec::new(), duty: None };
    program.say("ready")?;
    program.watch(&alive)
}

/// Own session, memory locked, not killed for memory, deaf to everything but the agent. What is not allowed (inside a
/// container) is done without: the watchdog is still better than none.
fn harden() {
    let _ = rustix::process::setsid();
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: takes no memory of ours.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) };
}

fn pidfd(process: u32) -> Result<OwnedFd> {
    let gone = || Error::new(ErrorKind::NotFound, "the agent is gone already");
    let pid = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw).ok_or_else(gone)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .map_err(|error| Error::io("watching the agent", error.into()))
}

struct Program<'a> {
    run_dir: &'a Path,
    agent: u32,
    stream: UnixStream,
    received: Vec<u8>,
    duty: Option<Duty>,
}

/// What is frozen or about to be, from `arm` to `release`.
struct Duty {
    deadline: Instant,
    systems: Vec<System>,
    rescue: Vec<JoinHandle<()>>,
    /// The deadline is past or the agent gone: whatever is still said to be frozen is thawed at once.
    overdue: bool,
    _note: Note,
}

struct System {
    file: Arc<File>,
    /// Set from before it is frozen until it is known to be thawed.
    at_stake: bool,
    /// Set once nobody can be freezing it any more, so that "not frozen" is the last word.
    settled: Arc<AtomicBool>,
    rescued: Arc<AtomicBool>,
    /// A thread is at it.
    being_rescued: bool,
}

impl Program<'_> {
    fn watch(&mut self, alive: &OwnedFd) -> Result<()> {
        loop {
            let (readable, agent_died) = self.wait(alive);
            let closed = readable && !self.receive();
            while let Some(line) = self.next_line() {
                self.obey(&line)?;
            }
            if let Some(duty) = &mut self.duty
                && (agent_died || closed || Instant::now() >= duty.deadline)
            {
                duty.rescue();
            }
            if agent_died {
                // Nothing of the agent is left in the kernel: a freeze of it has returned.
                self.duty.iter_mut().for_each(Duty::finish);
                return Ok(());
            }
            if closed {
                match &self.duty {
                    // The agent is on its way out but may still be inside FIFREEZE.
                    Some(_) => self.wait_for_death(alive),
                    None => return Ok(()),
                }
            }
        }
    }

    fn wait(&self, alive: &OwnedFd) -> (bool, bool) {
        let timeout = match &self.duty {
            Some(duty) if !duty.overdue => {
                let left = duty.deadline.saturating_duration_since(Instant::now());
                i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
            }
            _ => -1,
        };
        let mut polled = [
            libc::pollfd { fd: self.stream.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: alive.as_raw_fd(), events: libc::POLLIN, revents: 0 },
        ];
        // SAFETY: two valid pollfds.
        unsafe { libc::poll(polled.as_mut_ptr(), 2, timeout) };
        (polled[0].revents != 0, polled[1].revents != 0)
    }

    fn wait_for_death(&self, alive: &OwnedFd) {
        let mut polled = libc::pollfd { fd: alive.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        while unsafe { libc::poll(&mut polled, 1, -1) } < 1 {}
    }

    /// Takes in what has arrived; false where the agent has closed its end.
    fn receive(&mut self) -> bool {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.received.extend_from_slice(&bytes[..count]);
                true
            }
        }
    }

    fn next_line(&mut self) -> Option<String> {
        let end = self.received.iter().position(|byte| *byte == b'\n')?;
        let line = self.received.drain(..=end).take(end).collect::<Vec<u8>>();
        Some(String::from_utf8_lossy(&line).into_owned())
    }

    fn obey(&mut self, line: &str) -> Result<()> {
        let mut words = line.split_whitespace();
        let word = words.next().unwrap_or_default();
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        match word {
            "arm" => match self.arm(&numbers) {
                Ok(duty) => {
                    self.duty = Some(duty);
                    self.say("armed")
                }
                Err(error) => self.say(&format!("cannot: {error}")),
            },
            "freezing" | "frozen" | "thawed" => {
                let index = numbers.first().and_then(|index| usize::try_from(*index).ok());
                let systems = self.duty.as_mut().map(|duty| &mut duty.systems);
                if let Some(system) = systems.zip(index).and_then(|(systems, index)| systems.get_mut(index)) {
                    system.at_stake = word != "thawed";
                    system.settled.store(word != "freezing", Ordering::Release);
                }
                Ok(())
            }
            "release" => {
                let rescued = self.duty.take().is_some_and(Duty::end);
                self.say(if rescued { "late" } else { "released" })
            }
            _ => Ok(()),
        }
    }

    fn arm(&self, numbers: &[u64]) -> Result<Duty> {
        let (budget, descriptors) = numbers
            .split_first()
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "a watch without a budget"))?;
        let mut systems = Vec::new();
        let mut mount_points = Vec::new();
        for descriptor in descriptors {
            let path = PathBuf::from(format!("/proc/{}/fd/{descriptor}", self.agent));
            let file = File::open(&path).map_err(|error| Error::io(path.display().to_string(), error))?;
            mount_points.push(fs::read_link(&path).unwrap_or(path));
            systems.push(System {
                file: Arc::new(file),
                at_stake: false,
                settled: Arc::new(AtomicBool::new(true)),
                rescued: Arc::new(AtomicBool::new(false)),
                being_rescued: false,
            });
        }
        let note = Note::write(self.run_dir, &mount_points)?;
        let deadline = Instant::now() + Duration::from_millis(*budget);
        Ok(Duty { deadline, systems, rescue: Vec::new(), overdue: false, _note: note })
    }

    /// An answer the agent no longer reads is no reason to leave: its death is seen elsewhere.
    fn say(&mut self, line: &str) -> Result<()> {
        let _ = self.stream.write_all(format!("{line}\n").as_bytes());
        Ok(())
    }
}

impl Duty {
    /// Thaws all that is at stake, each file system by a thread of its own: FITHAW blocks while FIFREEZE does.
    fn rescue(&mut self) {
        self.overdue = true;
        for system in self.systems.iter_mut().filter(|system| system.at_stake && !system.being_rescued) {
            system.being_rescued = true;
            let (file, settled, rescued) =
                (Arc::clone(&system.file), Arc::clone(&system.settled), Arc::clone(&system.rescued));
            let work = move || thaw_until_settled(&file, &settled, &rescued);
            match std::thread::Builder::new().stack_size(THAW_STACK_BYTES).spawn(work) {
                Ok(thread) => self.rescue.push(thread),
                // Without a thread the others wait behind this one, which is still better than not thawing.
                Err(_) => thaw_until_settled(&system.file, &system.settled, &system.rescued),
            }
        }
    }

    /// Lets the threads of the rescue end: nobody freezes any more.
    fn finish(&mut self) {
        self.systems.iter().for_each(|system| system.settled.store(true, Ordering::Release));
        for thread in self.rescue.drain(..) {
            let _ = thread.join();
        }
    }

    /// Whether something had to be thawed.
    fn end(mut self) -> bool {
        self.finish();
        self.systems.iter().any(|system| system.rescued.load(Ordering::Acquire))
    }
}

fn thaw_until_settled(file: &File, settled: &AtomicBool, rescued: &AtomicBool) {
    loop {
        // Asked before trying: what is settled now cannot become frozen after a failed try.
        let last = settled.load(Ordering::Acquire);
        if thaw(file).is_ok() {
            rescued.store(true, Ordering::Release);
            return;
        }
        if last {
            return;
        }
        std::thread::sleep(RETRY);
    }
}
