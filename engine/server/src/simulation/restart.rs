//! The server ends and starts again: by the death of its process, or with its host's power. And rot.

use super::failure::{Failure, Outcome, ensure};
use super::guest::{SessionModel, Stage};
use super::host::{open_host, open_store};
use super::model::{Doubt, End, disk_tag};
use super::play::Play;
use super::serve::tag_of;
use super::targets::set_targets;
use crate::session::{MigrationState, SessionState};
use blocks::{ByteOffset, DiskIndex, Result};
use std::sync::Arc;
use store::Store;
use store::testing::CrashStorage;

impl Play {
    /// The server ends at once and is started again, perhaps to end while it starts.
    pub fn restart(&mut self, end: End) -> Outcome {
        let mut end = end;
        // Whether the power went since guests were last told: then they have lost what they had not flushed.
        let mut power_lost = end == End::PowerLoss;
        self.stop_at_once(end);
        for attempt in 0.. {
            let cut = self.random.chance(15) && attempt < 3 && !self.calm;
            if cut {
                let after = self.random.below(40);
                self.storage.power_off_after(after);
            }
            self.expect_completions(attempt > 0);
            match self.start_again(end) {
                Ok(outcome) => {
                    outcome?;
                    break;
                }
                Err(error) => {
                    ensure(self.storage.has_lost_power(), || format!("the store cannot be opened: {error}"))?;
                    self.counts.one("fault: the server ends while it starts");
                    end = if self.random.chance(50) { End::PowerLoss } else { End::Killed };
                    power_lost |= end == End::PowerLoss;
                    self.stop_at_once(end);
                    // What is on the medium after two ends in a row is what power cuts leave.
                    end = if power_lost { End::PowerLoss } else { end };
                }
            }
        }
        // A cut that was meant for the opening and came too late.
        self.ending = self.ending.or(Some(End::PowerLoss));
        self.sessions_restarted(power_lost)?;
        self.check_all()
    }

    /// Everything of the server goes; its storages are left as such an end leaves them.
    fn stop_at_once(&mut self, end: End) {
        self.count_faults();
        self.storage.power_off_after(0);
        self.targets.power_off_after(0);
        self.views.clear();
        drop(self.host.take());
        self.links.iter().for_each(super::network::Link::cut);
        match end {
            End::Killed => {
                self.counts.one("fault: the server is killed");
                self.storage = self.storage.survive();
                self.targets = self.targets.survive();
            }
            End::PowerLoss => {
                self.counts.one("fault: the server's host loses power");
                let (one, other) = (self.random.number(), self.random.number());
                self.storage = self.storage.crash(one);
                self.targets = self.targets.crash(other);
                self.boot += 1;
                self.bounded = false;
            }
        }
        self.trace.say(|| format!("the server ends: {end:?}"));
        set_targets(Some(Arc::new(self.targets.clone())));
        self.trouble = false;
        self.ending = None;
    }

    /// A start drops branches of sessions that were never begun, and completes promotions; so may one that was cut off.
    fn expect_completions(&mut self, began_before: bool) {
        for (machine, model) in self.units.iter_mut().enumerate() {
            let Some(model) = model else { continue };
            let of_a_session = |branch: &store::BranchId| {
                self.sessions.iter().any(|session| session.machine == machine && session.branch == *branch)
            };
            let main = model.main;
            let never_begun: Vec<_> =
                model.branches.keys().copied().filter(|id| *id != main && !of_a_session(id)).collect();
            model.doubts.extend(never_begun.into_iter().map(Doubt::Drop));
            if began_before {
                model.doubts.push(Doubt::Promote);
            }
        }
    }

    /// `Err`: the store or the sessions cannot be opened.
    fn start_again(&mut self, end: End) -> Result<Outcome> {
        let store = open_store(&self.storage, self.image_format)?;
        if self.storage.has_lost_power() {
            return Err(blocks::Error::new(blocks::ErrorKind::Io, "the power is off"));
        }
        if let Err(failure) = self.units_restarted(&store, end) {
            // Opening has put all that was found on the medium, so it can be held against the model now and again.
            return Ok(Err(failure));
        }
        let host = open_host(&self.storage, store, self.boot, self.image_format)?;
        if self.storage.has_lost_power() {
            return Err(blocks::Error::new(blocks::ErrorKind::Io, "the power is off"));
        }
        self.host = Some(host);
        Ok(Ok(()))
    }

    fn units_restarted(&mut self, store: &Arc<Store>, end: End) -> Outcome {
        let torn = store.findings().iter().filter(|finding| finding.contains("torn")).count() as u64;
        self.counts.add("torn tails cut", torn);
        let damaged = store.damaged_units();
        ensure(damaged.is_empty(), || format!("a unit is damaged without rot: {damaged:?}"))?;
        for unit in store.units() {
            let machine = tag_of(&unit.name());
            if self.units[machine].is_none() {
                // Its registration was not answered.
                let tag = self.machines[machine].tag;
                self.units[machine] = Some(super::model::UnitModel::new(&unit, tag));
            }
        }
        for model in self.units.iter_mut().flatten() {
            let Some(unit) = store.unit(model.machine) else {
                return Err(Failure::new(format!("machine {} is gone", model.machine)));
            };
            self.trace.say(|| {
                let pending = unit.replaying();
                format!("machine {} is back, replaying {pending:?}", model.tag)
            });
            model.restart(&unit, end)?;
        }
        Ok(())
    }

    /// The sessions are open again: none is missing, and each serves or is held as it must.
    fn sessions_restarted(&mut self, power_lost: bool) -> Outcome {
        for machine in 0..self.machines.len() {
            self.find_new_sessions(machine)?;
            let Some(unit) = self.unit(machine) else { continue };
            let Some(model) = &mut self.units[machine] else { continue };
            // A promotion that was under way is completed by the start.
            model.generation = unit.generation().max(model.generation);
            let there: Vec<_> = unit.branches().iter().map(|info| info.id).collect();
            let gone: Vec<_> = model.branches.keys().copied().filter(|id| !there.contains(id)).collect();
            for branch in gone {
                let known = self
                    .sessions
                    .iter()
                    .any(|session| session.machine == machine && session.branch == branch && !session.ending);
                ensure(!known, || format!("branch {branch} of a session is gone"))?;
                model.dropped(branch);
            }
        }
        let mut place = 0;
        while place < self.sessions.len() {
            match self.live(place) {
                Some(_) => {
                    self.session_restarted(place, power_lost)?;
                    place += 1;
                }
                None => {
                    let session = self.sessions.remove(place);
                    ensure(session.ending, || format!("session {} is gone", session.id))?;
                }
            }
        }
        self.notice_pivots()
    }

    fn session_restarted(&mut self, place: usize, power_lost: bool) -> Outcome {
        let Some(live) = self.live(place) else { return Ok(()) };
        let record = live.record.get();
        self.sessions[place].stage = match record.state() {
            SessionState::Running => Stage::Running,
            _ => Stage::Stopped,
        };
        if self.sessions[place].stage != Stage::Running {
            return Ok(());
        }
        self.notice_pivots()?;
        let session: &mut SessionModel = &mut self.sessions[place];
        let unflushed = session.unflushed.iter().any(|unflushed| *unflushed);
        if let Some(why) = live.held() {
            ensure(power_lost || session.held, || format!("session {} is held: {why}", session.id))?;
            self.counts.one("sessions held after a power loss");
        } else {
            ensure(!(power_lost && unflushed), || {
                format!("session {} serves although completed writes may be lost", session.id)
            })?;
        }
        let end = if power_lost { End::PowerLoss } else { End::Killed };
        for (disk, target) in session.targets.iter_mut().enumerate() {
            let Some(target) = target else { continue };
            let migration = &record.disk(DiskIndex(disk as u16))?.migration;
            let pivoted = migration.as_ref().is_some_and(|known| *known.state() == MigrationState::Pivoted);
            ensure(pivoted, || format!("disk {disk} of session {} is not pivoted any more", session.id))?;
            let Some(open) = live.disks.get(disk) else {
                let why = live.held().unwrap_or_default();
                return Err(Failure::new(format!(
                    "the disks of session {} cannot be opened: {why}",
                    session.id
                )));
            };
            let tag = disk_tag(self.machines[session.machine].tag, disk);
            let found = super::content::read(&open.volume, tag)??;
            target.restart(found, end)?;
        }
        if power_lost {
            session.unflushed.iter_mut().for_each(|unflushed| *unflushed = false);
        }
        session.held = live.held().is_some();
        drop(live);
        if self.sessions[place].held
            && let Some(host) = &self.host
        {
            match host.sessions.guest_restarted(&self.sessions[place].id) {
                Ok(_) => self.sessions[place].held = false,
                Err(error) => self.allow(&error, "saying that a guest was restarted")?,
            }
        }
        Ok(())
    }

    /// Bits rot, in a copy: what can be read there is right, what cannot says so. Nothing else.
    pub fn rot(&mut self) -> Outcome {
        if self.trouble || self.units.iter().all(Option::is_none) || !self.random.chance(25) {
            return Ok(());
        }
        let mut copy = self.storage.crash(self.random.number());
        let mut models = self.units.clone();
        let store = open_store(&copy, self.image_format)?;
        for model in models.iter_mut().flatten() {
            let Some(unit) = store.unit(model.machine) else {
                return Err(Failure::new(format!("machine {} is gone", model.machine)));
            };
            model.restart(&unit, End::PowerLoss)?;
            // What was never sealed may rot unseen at its end: docs/formats/store.md says so.
            for branch in unit.branches() {
                let disks = model.branch(branch.id)?.now();
                let id = unit.seal(branch.id, store::CheckpointSpec::crash_consistent_now())?;
                model.sealed(branch.id, id.into_inner(), disks);
            }
        }
        let replaying = store.units().iter().any(|unit| unit.replaying().is_some());
        drop(store);
        copy = copy.survive();
        self.turn_bits(&copy, replaying)?;
        let store = match open_store(&copy, self.image_format) {
            Ok(store) => store,
            Err(error) => {
                self.counts.one("rot found");
                return ensure(error.kind() == blocks::ErrorKind::Corrupt, || {
                    format!("rot looks like {error}")
                });
            }
        };
        let mut found = store.damaged_units().len() as u64;
        for model in models.iter().flatten() {
            let Some(unit) = store.unit(model.machine) else {
                let told = store.damaged_units().iter().any(|(machine, _)| *machine == model.machine);
                ensure(told, || format!("machine {} is gone without a word", model.machine))?;
                continue;
            };
            found += model.check(&unit, true)?;
        }
        self.counts.add("rot found", found);
        Ok(())
    }

    fn turn_bits(&mut self, copy: &CrashStorage, replaying: bool) -> Outcome {
        let files: Vec<_> = copy
            .files()
            .into_iter()
            .filter(|(name, len)| !len.is_zero() && !name.ends_with(".new") && !name.starts_with("sessions"))
            // While a replay waits to be repeated, its blocks of the image are not held against their checksums.
            .filter(|(name, _)| !replaying || !name.contains("/image."))
            .collect();
        for _ in 0..1 + self.random.below(3) {
            let at = self.below(files.len());
            let Some((name, len)) = files.get(at) else { return Ok(()) };
            let (offset, bit) = (self.random.below(len.get()), self.random.below(8) as u8);
            copy.flip_bit(name, ByteOffset::new(offset), bit)?;
            self.trace.say(|| format!("in a copy, bit {bit} of byte {offset} of {name} turns"));
            self.counts.one("fault: a bit rots");
        }
        Ok(())
    }
}
