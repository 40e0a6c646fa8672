//! The watchdog's own program.

use super::ioctl::thaw;
use super::note::{Note, thaw_left_behind};
use super::worker::{Order, Worker};
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
    let failed = |error| Error::io("the watchdog's second thread", error);
    let worker = stream.try_clone().and_then(Worker::start).map_err(failed)?;
    let mut program = Program { run_dir, agent, stream, received: Vec::new(), worker, duty: None };
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
    worker: Worker,
    duty: Option<Duty>,
}

/// What is frozen or about to be, from `arm` to `release`.
struct Duty {
    deadline: Instant,
    systems: Vec<Arc<System>>,
    rescue: Vec<JoinHandle<()>>,
    /// The deadline is past or the agent gone: whatever is still said to be frozen is thawed at once.
    overdue: bool,
    _note: Note,
}

/// A file system that may be frozen.
pub(super) struct System {
    pub(super) file: File,
    /// Set from before it is frozen until it is known to be thawed.
    pub(super) at_stake: AtomicBool,
    /// Set while nobody is freezing it, so that "not frozen" is the last word.
    pub(super) settled: AtomicBool,
    rescued: AtomicBool,
    /// A thread is at it.
    being_rescued: AtomicBool,
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
            if agent_died || closed {
                // Nothing more is asked for. A freeze that is under way on a tap returns when another agent serves that.
                self.worker.wait_idle();
                self.duty.iter_mut().for_each(Duty::finish);
                return Ok(());
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
            "sync" => {
                let files = numbers.iter().filter_map(|number| self.open(*number).ok());
                match self.worker.put(Order::Sync(files.map(|(file, _)| file).collect())) {
                    true => Ok(()),
                    false => self.say("synced"),
                }
            }
            "freeze" | "thaw" => self.freeze_or_thaw(word == "freeze", numbers.first().copied()),
            "release" => {
                // What is being frozen still, where the agent has given up on that.
                self.duty.iter_mut().for_each(Duty::rescue);
                self.worker.wait_idle();
                let rescued = self.duty.take().is_some_and(Duty::end);
                self.say(if rescued { "late" } else { "released" })
            }
            _ => Ok(()),
        }
    }

    fn freeze_or_thaw(&mut self, freeze: bool, number: Option<u64>) -> Result<()> {
        let index = number.and_then(|number| usize::try_from(number).ok()).unwrap_or(usize::MAX);
        let found = self.duty.as_ref().and_then(|duty| duty.systems.get(index)).map(Arc::clone);
        let done = if freeze { "frozen" } else { "thawed" };
        let Some(system) = found else { return self.say(&format!("{done} {index} {}", libc::EINVAL)) };
        if freeze {
            system.at_stake.store(true, Ordering::Release);
            system.settled.store(false, Ordering::Release);
        }
        let order = if freeze {
            Order::Freeze(index, Arc::clone(&system))
        } else {
            Order::Thaw(index, Arc::clone(&system))
        };
        if self.worker.put(order) {
            return Ok(());
        }
        // The agent has given up on what is under way: nothing may wait for that.
        if freeze {
            system.at_stake.store(false, Ordering::Release);
            system.settled.store(true, Ordering::Release);
        }
        self.duty.iter_mut().for_each(Duty::rescue);
        self.say(&format!("{done} {index} {}", libc::EAGAIN))
    }

    fn arm(&self, numbers: &[u64]) -> Result<Duty> {
        let (budget, descriptors) = numbers
            .split_first()
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "a watch without a budget"))?;
        let mut systems = Vec::new();
        let mut mount_points = Vec::new();
        for descriptor in descriptors {
            let (file, mount_point) = self.open(*descriptor)?;
            mount_points.push(mount_point);
            systems.push(Arc::new(System {
                file,
                at_stake: AtomicBool::new(false),
                settled: AtomicBool::new(true),
                rescued: AtomicBool::new(false),
                being_rescued: AtomicBool::new(false),
            }));
        }
        let note = Note::write(self.run_dir, &mount_points)?;
        let deadline = Instant::now() + Duration::from_millis(*budget);
        Ok(Duty { deadline, systems, rescue: Vec::new(), overdue: false, _note: note })
    }

    /// What the agent has open under that number, and where.
    fn open(&self, descriptor: u64) -> Result<(File, PathBuf)> {
        let path = PathBuf::from(format!("/proc/{}/fd/{descriptor}", self.agent));
        let file = File::open(&path).map_err(|error| Error::io(path.display().to_string(), error))?;
        Ok((file, fs::read_link(&path).unwrap_or(path)))
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
        let at_stake = self.systems.iter().filter(|system| system.at_stake.load(Ordering::Acquire));
        for system in at_stake.filter(|system| !system.being_rescued.swap(true, Ordering::AcqRel)) {
            let theirs = Arc::clone(system);
            let work = move || thaw_until_settled(&theirs);
            match std::thread::Builder::new().stack_size(THAW_STACK_BYTES).spawn(work) {
                Ok(thread) => self.rescue.push(thread),
                // Without a thread the others wait behind this one, which is still better than not thawing.
                Err(_) => thaw_until_settled(system),
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

fn thaw_until_settled(system: &System) {
    loop {
        // Asked before trying: what is settled now cannot become frozen after a failed try.
        let last = system.settled.load(Ordering::Acquire);
        if thaw(&system.file).is_ok() {
            system.rescued.store(true, Ordering::Release);
            return;
        }
        if last {
            return;
        }
        std::thread::sleep(RETRY);
    }
}
