//! Holding everything that the server offers against the model; and the end of a simulation, at which all must be well.

use super::failure::{Failure, Outcome, ensure};
use super::machine::Agent;
use super::model::End;
use super::play::Play;
use std::time::Duration;

/// How many rounds a machine gets to be in step again once nothing breaks any more.
const ROUNDS: usize = 3000;

fn is_merged(name: &str) -> bool {
    name.ends_with(".index") && name.rsplit('/').next().is_some_and(|name| name.contains('-'))
}

impl Play {
    /// Compares every checkpoint, branch, session and open view with the model.
    pub fn check_all(&mut self) -> Outcome {
        if self.host.is_none() || self.trouble {
            return Ok(());
        }
        for machine in 0..self.machines.len() {
            if let (Some(unit), Some(model)) = (self.unit(machine), &self.units[machine]) {
                let checked = model.check(&unit, false);
                self.excuse(checked, machine)?;
            }
        }
        for place in self.running() {
            let Some(live) = self.live(place) else {
                return Err(Failure::new(format!("session {} is not listed", self.sessions[place].id)));
            };
            for disk in 0..live.disks.len() {
                self.check_session_disk(place, &live, disk)?;
            }
        }
        let views = std::mem::take(&mut self.views);
        for view in &views {
            self.check_view(view)?;
        }
        self.views = views;
        let merged = self.storage.files().iter().filter(|(name, _)| is_merged(name)).count() as u64;
        self.counts.add("merged indexes seen", merged);
        self.counts.one("full checks");
        Ok(())
    }

    /// A read that was made to fail is no broken promise.
    fn excuse(&mut self, checked: Outcome<u64>, machine: usize) -> Outcome {
        let struck = self.storage.faults().reads > 0;
        match checked {
            Err(failure) if struck => {
                self.trouble = true;
                self.trace.say(|| format!("machine {machine}: {failure}"));
                Ok(())
            }
            checked => {
                checked.map(drop).map_err(|failure| Failure::new(format!("machine {machine}: {failure}")))
            }
        }
    }

    /// Nothing breaks any more. Whoever is not relieved by a session comes into step by itself, and a checkpoint of it is
    /// exactly what it holds.
    pub fn converge(&mut self) -> Outcome {
        self.make_room();
        self.calm = true;
        self.restart(End::PowerLoss)?;
        for machine in 0..self.machines.len() {
            if self.is_relieved(machine) {
                self.counts.one("machines that a session stands in for at the end");
                continue;
            }
            self.come_into_step(machine)?;
        }
        self.restart(End::PowerLoss)?;
        self.restart(End::Killed)
    }

    fn is_relieved(&self, machine: usize) -> bool {
        let Some(model) = &self.units[machine] else { return false };
        let charge = self.host.as_ref().map(|host| host.registry.agents.session_in_charge(model.machine));
        charge.flatten().is_some()
    }

    fn come_into_step(&mut self, machine: usize) -> Outcome {
        self.machines[machine].hang_up();
        let before = self.machines[machine].sealed;
        for round in 0..ROUNDS {
            self.clock.advance(Duration::from_millis(30));
            match &self.machines[machine].agent {
                Agent::Down => self.machines[machine].agent = Agent::Away,
                Agent::Away => self.connect(machine)?,
                Agent::Source(_) if self.machines[machine].is_in_step() && round % 8 == 0 => {
                    self.machines[machine].checkpoint();
                }
                Agent::Source(_) => self.machines[machine].step(&mut self.random),
                Agent::Greeting(_) | Agent::Standby(_) => {}
            }
            let now = self.clock.elapsed();
            self.links[machine].to_server.deliver(now, 1 << 20);
            self.server_hears()?;
            self.server_appends()?;
            self.server_commits()?;
            self.links[machine].to_agent.deliver(now, 1 << 20);
            while self.machines[machine].hear()? {}
            if self.machines[machine].sealed > before + 1 {
                self.counts.one("machines in step at the end");
                return self.holds_the_newest(machine);
            }
            if round % 400 == 399 {
                self.clock.advance(Duration::from_secs(20));
            }
        }
        Err(Failure::new(format!("machine {machine} does not come into step although nothing is broken")))
    }

    fn holds_the_newest(&mut self, machine: usize) -> Outcome {
        let Some(id) = self.newest_checkpoint(machine) else {
            return Err(Failure::new("a checkpoint was confirmed and is not there"));
        };
        let source: Vec<_> = self.machines[machine].disks.iter().map(|disk| disk.content.clone()).collect();
        let sealed = self.units[machine].as_ref().and_then(|unit| unit.checkpoints.get(&id));
        let same = sealed.is_some_and(|sealed| sealed.disks == source);
        ensure(same, || format!("checkpoint {id} of machine {machine} is not what the machine holds"))?;
        self.check_all()
    }
}
