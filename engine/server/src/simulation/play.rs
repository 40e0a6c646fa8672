//! One simulation: a world from a seed, and what happens in it, one step after the other.
//!
//! There are no threads. Each step is chosen by the seed: a machine writes, an agent says something, bytes arrive, the
//! server appends, commits, seals, merges, consolidates, a guest writes, a copy goes on, something breaks. The product's code
//! is the real one; it finds its clock, its random numbers and its storage simulated.

use super::counts::Counts;
use super::failure::{Failure, Outcome};
use super::guest::{SessionModel, Stage};
use super::host::{Host, open_host, open_store};
use super::machine::{Agent, Machine};
use super::model::{End, UnitModel};
use super::network::Link;
use super::targets::set_targets;
use super::trace::Trace;
use blocks::simulation::Simulated;
use blocks::{ErrorKind, PlantedBug};
use std::sync::Arc;
use std::time::Duration;
use store::testing::{CrashStorage, Random};
use store::{ImageFormat, View};

/// A view that stays open, and what it must show.
pub(super) struct OpenView {
    pub view: Arc<View>,
    pub machine: usize,
    pub disk: usize,
    pub expected: super::content::Content,
}

pub(super) struct Play {
    pub random: Random,
    pub clock: Simulated,
    pub storage: CrashStorage,
    /// Where migrations copy to: another storage of the same host.
    pub targets: CrashStorage,
    pub host: Option<Host>,
    pub boot: u64,
    pub image_format: ImageFormat,
    pub machines: Vec<Machine>,
    pub links: Vec<Link>,
    pub units: Vec<Option<UnitModel>>,
    pub sessions: Vec<SessionModel>,
    pub views: Vec<OpenView>,
    pub counts: Counts,
    pub trace: Trace,
    /// Something was made to fail since the server started, so its calls may.
    pub trouble: bool,
    /// The storage has a bound.
    pub bounded: bool,
    /// The power goes soon; how the server ends then.
    pub ending: Option<End>,
    /// How likely it is, in percent, that something breaks when it may: some worlds are calm for long.
    pub rage: u64,
    /// Nothing breaks any more.
    pub calm: bool,
    pub next_version: u32,
    pub next_target: u32,
}

/// Disks of this length grow no more.
const GROWN_SECTORS: usize = 600;

/// How a simulation is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many steps it has.
    pub steps: u64,
    /// Prints each step.
    pub trace: bool,
    /// A bug that it should find.
    pub planted: Option<PlantedBug>,
}

impl Default for Options {
    fn default() -> Options {
        Options { steps: 400, trace: false, planted: None }
    }
}

/// Plays the simulation of a seed. The same seed and options play the same.
pub fn play(seed: u64, options: &Options) -> (Counts, u64, Result<(), Failure>) {
    let clock = Simulated::enter(seed, options.planted);
    let mut play = Play::new(seed, clock, options);
    let result = play.run(options.steps);
    if let Err(failure) = &result {
        play.trace.say(|| format!("FAILED: {failure}"));
    }
    play.count_faults();
    let (counts, digest) = (play.counts.clone(), play.trace.digest());
    play.views.clear();
    drop(play.host.take());
    set_targets(None);
    (counts, digest, result)
}

impl Play {
    fn new(seed: u64, clock: Simulated, options: &Options) -> Play {
        let mut random = Random::new(seed);
        let storage = CrashStorage::new();
        let targets = CrashStorage::new();
        set_targets(Some(Arc::new(targets.clone())));
        let image_format = if random.chance(50) { ImageFormat::Raw } else { ImageFormat::Vhd };
        let mut machines = Vec::new();
        for tag in 0..1 + random.below(2) {
            let disks = 1 + random.below(2);
            // Not a whole number of blocks.
            let lens: Vec<usize> = (0..disks).map(|_| 137 + random.below(320) as usize).collect();
            machines.push(Machine::new(tag as u16, &lens));
        }
        let units = machines.iter().map(|_| None).collect();
        let rage = [15, 50, 100][random.below(3) as usize];
        let links = machines.iter().map(|_| Link::default()).collect();
        Play {
            random,
            clock,
            storage,
            targets,
            host: None,
            boot: 1,
            image_format,
            machines,
            links,
            units,
            sessions: Vec::new(),
            views: Vec::new(),
            counts: Counts::default(),
            trace: Trace::new(options.trace),
            trouble: false,
            bounded: false,
            ending: None,
            rage,
            calm: false,
            next_version: 1,
            next_target: 1,
        }
    }

    fn run(&mut self, steps: u64) -> Outcome {
        let store = open_store(&self.storage, self.image_format)?;
        self.host = Some(open_host(&self.storage, store, self.boot, self.image_format)?);
        for step in 0..steps {
            self.trace.at(step, self.clock.elapsed());
            self.step()?;
            self.after_step()?;
        }
        self.converge()
    }

    /// Time passes; where the power has gone the server starts again.
    pub fn after_step(&mut self) -> Outcome {
        let millis = if self.random.chance(3) { self.random.below(40_000) } else { self.random.below(8) };
        let busy = self.storage.take_busy() + self.targets.take_busy();
        self.clock.advance(Duration::from_millis(millis) + busy);
        if self.storage.faults() != Default::default() || self.targets.faults() != Default::default() {
            self.trouble = true;
        }
        if self.storage.has_lost_power() || self.targets.has_lost_power() {
            let end = self.ending.take().unwrap_or(End::PowerLoss);
            self.restart(end)?;
        }
        Ok(())
    }

    fn step(&mut self) -> Outcome {
        match self.random.below(100) {
            0..=11 => self.machine_writes(),
            12..=25 => self.agent_steps(),
            26..=36 => self.bytes_arrive(),
            37..=47 => self.server_hears(),
            48..=60 => self.server_appends(),
            61..=65 => self.server_commits(),
            66..=76 => self.guest_steps(),
            77..=82 => self.migrations_step(),
            83..=87 => self.session_command(),
            88 | 89 => self.thin(),
            90 | 91 => self.consolidate(),
            92 => self.open_or_close_view(),
            93 => self.time_is_noticed(),
            94 => self.check_all(),
            95 => self.rot(),
            _ if self.random.chance(self.rage) => self.something_breaks(),
            _ => Ok(()),
        }
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound.max(1) as u64) as usize
    }

    fn machine_writes(&mut self) -> Outcome {
        let machine = self.below(self.machines.len());
        if self.random.chance(2) {
            self.disk_grows(machine);
        }
        for _ in 0..1 + self.random.below(3) {
            let disk = self.below(self.machines[machine].disks.len());
            let len = self.machines[machine].disks[disk].content.len();
            let (first, count) = Machine::some_range(&mut self.random, len);
            let version = if self.random.chance(10) { 0 } else { self.version() };
            self.machines[machine].disks[disk].write(first, &vec![version; count]);
        }
        Ok(())
    }

    fn disk_grows(&mut self, machine: usize) {
        let disk = self.below(self.machines[machine].disks.len());
        if self.machines[machine].disks[disk].content.len() < GROWN_SECTORS {
            let more = 1 + self.below(60);
            self.machines[machine].grow(disk, more);
            self.counts.one("disks that grew");
            self.trace.say(|| format!("disk {disk} of machine {machine} grows by {more} sectors"));
        }
    }

    pub fn version(&mut self) -> u32 {
        self.next_version += 1;
        self.next_version
    }

    fn agent_steps(&mut self) -> Outcome {
        let index = self.below(self.machines.len());
        match &self.machines[index].agent {
            Agent::Down if self.random.chance(30) => self.machines[index].agent = Agent::Away,
            Agent::Away if self.host.is_some() => self.connect(index)?,
            Agent::Source(_) => {
                for _ in 0..1 + self.random.below(3) {
                    self.machines[index].step(&mut self.random);
                }
                while self.random.chance(70) && self.machines[index].hear()? {}
            }
            _ => while self.machines[index].hear()? {},
        }
        self.delay(index);
        Ok(())
    }

    /// What is sent from now on takes a while.
    pub fn delay(&mut self, index: usize) {
        let millis = if self.random.chance(5) { self.random.below(3000) } else { self.random.below(20) };
        let ready = self.clock.elapsed() + Duration::from_millis(millis);
        self.links[index].to_server.delay_until(ready);
        self.links[index].to_agent.delay_until(ready);
    }

    fn bytes_arrive(&mut self) -> Outcome {
        let now = self.clock.elapsed();
        let index = self.below(self.links.len());
        let most = if self.random.chance(30) { 1 + self.random.below(400) } else { 1 << 20 };
        let link = &self.links[index];
        let some = link.to_server.deliver(now, most as usize);
        let more = link.to_agent.deliver(now, most as usize);
        if (some || more) && most < 1 << 20 {
            self.counts.one("network: partial deliveries");
        }
        Ok(())
    }

    /// The server looks at the clock, as it does every quarter of a second, and sessions at theirs.
    fn time_is_noticed(&mut self) -> Outcome {
        let Some(host) = &self.host else { return Ok(()) };
        for machine in host.registry.agents.all() {
            let promoted = host.registry.agents.session_in_charge(machine.id()).is_some();
            if machine.tick(blocks::monotonic_now(), promoted).failed_now {
                self.counts.one("machines that counted as failed");
            }
        }
        if self.random.chance(50) {
            host.sessions.settle_marks(Duration::from_secs(30));
        }
        Ok(())
    }

    /// Whether a call of the server may end like this: something was made to fail.
    pub fn allow(&mut self, error: &blocks::Error, what: &str) -> Outcome {
        self.trace.say(|| format!("{what}: {error}"));
        let excused = self.trouble
            || self.storage.has_lost_power()
            || self.targets.has_lost_power()
            || self.storage.faults() != Default::default()
            || self.targets.faults() != Default::default()
            || (self.bounded && error.kind() == ErrorKind::NoSpace);
        match excused {
            true => Ok(()),
            false => Err(Failure::new(format!("{what} failed without a fault: {error}"))),
        }
    }

    /// The running sessions' places in the model.
    pub fn running(&self) -> Vec<usize> {
        let runs =
            |(place, session): (usize, &SessionModel)| (session.stage == Stage::Running).then_some(place);
        self.sessions.iter().enumerate().filter_map(runs).collect()
    }
}
