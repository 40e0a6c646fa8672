//! Sessions, their guests, migrations and consolidation in a simulation.

use super::content::{SECTOR, compare, encode, extent};
use super::failure::{Failure, Outcome, ensure};
use super::guest::{SessionModel, Stage, TargetModel};
use super::machine::Machine;
use super::model::{Doubt, Head, Write, disk_tag};
use super::play::{OpenView, Play};
use super::serve::newest;
use crate::session::{LiveSession, MigrateOptions, MigrationState, SessionState};
use blocks::{ByteOffset, CheckpointId, DiskIndex, ErrorKind, RequestClass, Volume};
use std::sync::Arc;
use store::{BranchId, ThinGoal, Unit};

const CLASS: RequestClass = RequestClass::Guest;
/// No more sessions than this at a time.
const SESSIONS_MAX: usize = 3;

impl Play {
    pub fn live(&self, place: usize) -> Option<Arc<LiveSession>> {
        self.host.as_ref()?.sessions.find(&self.sessions[place].id).ok()
    }

    pub fn unit(&self, machine: usize) -> Option<Arc<Unit>> {
        let id = self.units[machine].as_ref()?.machine;
        self.host.as_ref()?.store.unit(id)
    }

    fn some_running(&mut self) -> Option<usize> {
        let running = self.running();
        (!running.is_empty()).then(|| running[self.below(running.len())])
    }

    fn some_checkpoint(&mut self, machine: usize) -> Option<CheckpointId> {
        let ids: Vec<_> = self.units[machine].as_ref()?.checkpoints.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[self.below(ids.len())])
    }

    /// A guest does something to a disk of its session.
    pub fn guest_steps(&mut self) -> Outcome {
        let Some(place) = self.some_running() else { return Ok(()) };
        for _ in 0..1 + self.random.below(4) {
            let Some(live) = self.live(place) else { return Ok(()) };
            if live.disks.is_empty() || live.held().is_some() {
                return Ok(());
            }
            let disk = self.below(live.disks.len());
            match self.random.below(10) {
                0 | 1 => self.guest_flushes(place, &live, disk)?,
                2 => self.guest_reads(place, &live, disk)?,
                _ => self.guest_writes(place, &live, disk)?,
            }
        }
        Ok(())
    }

    fn guest_writes(&mut self, place: usize, live: &LiveSession, disk: usize) -> Outcome {
        let (machine, branch) = (self.sessions[place].machine, self.sessions[place].branch);
        // The machine's disk may be longer by now.
        let len = live.disks[disk].branch.len().as_usize() / SECTOR;
        let (first, count) = Machine::some_range(&mut self.random, len);
        let kind = self.random.below(10);
        let version = if kind < 8 { self.version() } else { 0 };
        let versions = vec![version; count];
        let fua = self.random.chance(10);
        let (volume, log) = (&live.disks[disk].volume, &live.disks[disk].branch);
        let before = log.last_seq();
        let range = extent(first, count)?;
        let outcome = match kind {
            8 => volume.write_zeroes(range, false, fua, CLASS),
            9 => volume.discard(range, fua, CLASS),
            _ => {
                let bytes = encode(disk_tag(self.machines[machine].tag, disk), first, &versions);
                volume.write_at(ByteOffset::new((first * SECTOR) as u64), &bytes, fua, CLASS)
            }
        };
        let after = log.last_seq();
        self.sessions[place].unflushed[disk] |= !fua && outcome.is_ok();
        match &mut self.sessions[place].targets[disk] {
            Some(target) if outcome.is_ok() => target.write(first, &versions),
            Some(target) => target.fail(first, &versions),
            None => {
                let Some(model) = &mut self.units[machine] else { return Ok(()) };
                let head = &mut model.branch(branch)?.heads[disk];
                let write = Write { seq: after.max(before.next()), first, versions };
                if after > before {
                    head.push(write)
                } else {
                    head.fail(write)
                }
                if fua && outcome.is_ok() {
                    head.settle(after);
                }
            }
        }
        self.counts.one("guests' writes");
        match outcome {
            Ok(()) => Ok(()),
            Err(error) => self.allow(&error, "a guest's write"),
        }
    }

    fn guest_flushes(&mut self, place: usize, live: &LiveSession, disk: usize) -> Outcome {
        let (machine, branch) = (self.sessions[place].machine, self.sessions[place].branch);
        match live.disks[disk].volume.flush() {
            Ok(()) => {
                self.sessions[place].unflushed[disk] = false;
                match &mut self.sessions[place].targets[disk] {
                    Some(target) => target.flush(),
                    None => {
                        let Some(model) = &mut self.units[machine] else { return Ok(()) };
                        let head = &mut model.branch(branch)?.heads[disk];
                        head.settle(head.last_seq());
                    }
                }
                self.counts.one("guests' flushes");
                Ok(())
            }
            Err(error) => self.allow(&error, "a guest's flush"),
        }
    }

    fn guest_reads(&mut self, place: usize, live: &LiveSession, disk: usize) -> Outcome {
        self.check_session_disk(place, live, disk)
    }

    /// Compares a session's disk with what it must hold.
    pub fn check_session_disk(&mut self, place: usize, live: &LiveSession, disk: usize) -> Outcome {
        let session = &self.sessions[place];
        let tag = disk_tag(self.machines[session.machine].tag, disk);
        let found = match super::content::read(&live.disks[disk].volume, tag)? {
            Ok(found) => found,
            Err(error) => return self.allow(&error, "reading a session's disk"),
        };
        let what = format!("session {}, disk {disk}", &session.id[..8]);
        match &session.targets[disk] {
            Some(target) => {
                target.check(&found).map_err(|failure| Failure::new(format!("{what}: {failure}")))
            }
            None => {
                match self.units[session.machine].as_ref().and_then(|unit| unit.branches.get(&session.branch))
                {
                    Some(branch) => compare(&found, branch.heads[disk].now(), &what),
                    None => Err(Failure::new(format!("{what}: the model has no branch"))),
                }
            }
        }
    }

    /// What a session's disks hold now.
    fn session_content(
        &self,
        place: usize,
        live: &LiveSession,
    ) -> Outcome<Option<Vec<super::content::Content>>> {
        let session = &self.sessions[place];
        let model = self.units[session.machine].as_ref();
        let Some(branch) = model.and_then(|model| model.branches.get(&session.branch)) else {
            return Ok(None);
        };
        let mut contents = Vec::new();
        for (disk, (target, head)) in session.targets.iter().zip(&branch.heads).enumerate() {
            let content = match target {
                // What a write that failed has left nobody but the target knows.
                Some(target) if target.is_doubtful() => {
                    let Some(open) = live.disks.get(disk) else { return Ok(None) };
                    let tag = disk_tag(self.machines[session.machine].tag, disk);
                    let Ok(found) = super::content::read(&open.volume, tag)? else { return Ok(None) };
                    target.check(&found)?;
                    found
                }
                Some(target) => target.now().clone(),
                None => head.now().clone(),
            };
            contents.push(content);
        }
        Ok(Some(contents))
    }

    pub fn session_command(&mut self) -> Outcome {
        if self.host.is_none() {
            return Ok(());
        }
        match self.random.below(12) {
            0..=3 => self.recover(),
            4 => self.stop(),
            5..=7 => self.session_checkpoint(),
            _ => self.migrate(),
        }
    }

    /// After a call that failed: what it has done in memory already.
    fn absorb(&mut self, machine: usize, doubt: Doubt) -> Outcome {
        let (Some(unit), Some(model)) = (self.unit(machine), &mut self.units[machine]) else { return Ok(()) };
        model.doubts.push(doubt);
        model.absorb(&unit)
    }

    fn recover(&mut self) -> Outcome {
        let machine = self.below(self.machines.len());
        if self.sessions.len() >= SESSIONS_MAX {
            return Ok(());
        }
        let (Some(unit), Some(at)) = (self.unit(machine), self.some_checkpoint(machine)) else {
            return Ok(());
        };
        let drill = self.random.chance(60);
        let outcome = match &self.host {
            Some(host) => host.sessions.recover(&unit, at, drill),
            None => return Ok(()),
        };
        let before = self.units[machine].as_ref().map_or(0, |model| model.doubts.len());
        if let Some(model) = &mut self.units[machine]
            && !drill
        {
            model.doubts.push(Doubt::Promote);
        }
        self.absorb(machine, Doubt::Fork(at))?;
        self.find_new_sessions(machine)?;
        if outcome.is_ok() && !drill {
            self.fence(machine)?;
        }
        if let Some(model) = &mut self.units[machine]
            && outcome.is_ok()
        {
            // Earlier ones stay open: this call may only have found the session that is in charge already.
            model.doubts.truncate(before);
        }
        match outcome {
            Ok(info) => {
                self.trace.say(|| {
                    format!("session {} of machine {machine} at {at}, drill: {drill}", &info.session[..8])
                });
                self.counts.one("recoveries");
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Busy => Ok(()),
            Err(error) => self.allow(&error, "recovering"),
        }
    }

    /// Sessions that are listed and not known: a call whose outcome was open has begun them.
    pub fn find_new_sessions(&mut self, machine: usize) -> Outcome {
        let Some(host) = &self.host else { return Ok(()) };
        let Some(unit) = self.units[machine].as_ref().map(|unit| unit.machine) else { return Ok(()) };
        for info in host.sessions.list().unwrap_or_default() {
            if info.machine != unit.to_string() || self.sessions.iter().any(|known| known.id == info.session)
            {
                continue;
            }
            let record = host.sessions.find(&info.session)?.record.get();
            let disks = self.machines[machine].disks.len();
            self.sessions.push(SessionModel {
                id: info.session,
                machine,
                branch: record.branch(),
                stage: Stage::Running,
                ending: false,
                held: false,
                targets: vec![None; disks],
                unflushed: vec![false; disks],
            });
        }
        Ok(())
    }

    fn stop(&mut self) -> Outcome {
        if self.sessions.is_empty() {
            return Ok(());
        }
        let place = self.below(self.sessions.len());
        let discard = self.random.chance(60);
        let session = self.sessions[place].clone();
        let outcome = match &self.host {
            Some(host) => host.sessions.stop(&session.id, discard),
            None => return Ok(()),
        };
        self.trace.say(|| format!("stop session {}, discard: {discard}", &session.id[..8]));
        let machine = session.machine;
        match outcome {
            Ok(_) => {
                self.counts.one("sessions stopped");
                let Some(model) = &mut self.units[machine] else { return Ok(()) };
                model.settle(session.branch);
                if discard {
                    model.dropped(session.branch);
                    self.sessions.remove(place);
                } else {
                    let stopped = &mut self.sessions[place];
                    stopped.stage = Stage::Stopped;
                    stopped.unflushed.iter_mut().for_each(|unflushed| *unflushed = false);
                }
                Ok(())
            }
            Err(error) => {
                if discard {
                    self.absorb(machine, Doubt::Drop(session.branch))?;
                    self.sessions[place].ending = true;
                }
                if let Some(live) = self.live(place)
                    && live.record.get().state() == SessionState::Stopped
                {
                    self.sessions[place].stage = Stage::Stopped;
                }
                if error.kind() == ErrorKind::Busy {
                    let needed = self.is_needed(machine, session.branch);
                    return ensure(needed, || format!("nothing needs the branch of a session: {error}"));
                }
                self.allow(&error, "stopping a session")
            }
        }
    }

    /// Whether another branch starts from one, or a view shows it.
    fn is_needed(&self, machine: usize, branch: BranchId) -> bool {
        let Some(model) = &self.units[machine] else { return false };
        let on_it =
            |id: &CheckpointId| model.checkpoints.get(id).is_some_and(|sealed| sealed.branch == branch);
        let branches = model.branches.values().any(|other| other.base.as_ref().is_some_and(on_it));
        branches || self.views.iter().any(|view| view.machine == machine)
    }

    fn session_checkpoint(&mut self) -> Outcome {
        let Some(place) = self.some_running() else { return Ok(()) };
        let Some(live) = self.live(place) else { return Ok(()) };
        let Some(content) = self.session_content(place, &live)? else { return Ok(()) };
        let session = self.sessions[place].clone();
        let outcome = match &self.host {
            Some(host) => host.sessions.checkpoint(&session.id, "from-the-simulation"),
            None => return Ok(()),
        };
        let pivoted = session.targets.iter().any(Option::is_some);
        let Some(unit) = self.unit(session.machine) else { return Ok(()) };
        let Some(model) = &mut self.units[session.machine] else { return Ok(()) };
        match outcome {
            Ok(info) => {
                if pivoted {
                    let branch = model.branch(session.branch)?;
                    branch.loose = false;
                    for (disk, content) in (0..).zip(&content) {
                        let seq = unit.disk(session.branch, DiskIndex(disk))?.last_seq();
                        branch.heads[usize::from(disk)] = Head::new(content.clone(), seq);
                    }
                }
                model.sealed(session.branch, CheckpointId(info.checkpoint), content);
                self.counts.one("checkpoints of sessions");
                Ok(())
            }
            Err(error) => {
                if pivoted {
                    model.branch(session.branch)?.loose = true;
                }
                // What is poisoned publishes nothing.
                if error.kind() != ErrorKind::Poisoned {
                    self.absorb(session.machine, Doubt::Seal(session.branch, content))?;
                }
                match self.live(place).and_then(|live| live.held()) {
                    Some(_) => Ok(()),
                    None => self.allow(&error, "a checkpoint of a session"),
                }
            }
        }
    }

    fn migrate(&mut self) -> Outcome {
        let Some(place) = self.some_running() else { return Ok(()) };
        let session = self.sessions[place].clone();
        let disk = self.below(session.targets.len());
        let options = if self.random.chance(60) {
            self.next_target += 1;
            let format = if self.random.chance(60) { "raw" } else { "vhd" };
            MigrateOptions {
                disk: Some(DiskIndex(disk as u16)),
                to: Some(format!("/target-{}.{format}", self.next_target)),
                format: Some(format.into()),
                rate: None,
                pivot: self.random.chance(50),
            }
        } else {
            MigrateOptions { disk: Some(DiskIndex(disk as u16)), pivot: true, ..MigrateOptions::default() }
        };
        let outcome = match &self.host {
            Some(host) => host.sessions.migrate(&session.id, &options),
            None => return Ok(()),
        };
        self.trace
            .say(|| format!("migrate {} disk {disk}: {:?}", &session.id[..8], outcome.as_ref().map(|_| ())));
        self.notice_pivots()?;
        match outcome {
            Ok(_) => {
                self.counts.one("migrations asked for");
                Ok(())
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::InvalidInput | ErrorKind::Busy | ErrorKind::Unsupported
                ) =>
            {
                Ok(())
            }
            Err(error) => self.allow(&error, "beginning a migration"),
        }
    }

    /// Copies of running sessions go on.
    pub fn migrations_step(&mut self) -> Outcome {
        let Some(place) = self.some_running() else { return Ok(()) };
        let Some(live) = self.live(place) else { return Ok(()) };
        let failed = |live: &LiveSession, disk: usize| -> Outcome<Option<String>> {
            let record = live.record.get();
            Ok(match record.disk(DiskIndex(disk as u16))?.migration.as_ref().map(|record| record.state()) {
                Some(MigrationState::Failed { detail, .. }) => Some(detail.clone()),
                _ => None,
            })
        };
        let before: Vec<_> = (0..live.disks.len()).map(|disk| failed(&live, disk)).collect::<Outcome<_>>()?;
        for _ in 0..1 + self.random.below(3) {
            for disk in &live.disks {
                disk.with_migration(|migration| migration.step());
            }
            self.notice_pivots()?;
        }
        for (disk, before) in before.into_iter().enumerate() {
            if let (None, Some(detail)) = (before, failed(&live, disk)?) {
                self.allow(&blocks::Error::new(ErrorKind::Io, detail), "a migration")?;
            }
        }
        self.counts.one("steps of migrations");
        Ok(())
    }

    /// Disks that were pivoted since the last look: from now on their targets count.
    pub fn notice_pivots(&mut self) -> Outcome {
        for place in self.running() {
            let Some(live) = self.live(place) else { continue };
            let record = live.record.get();
            for disk in 0..self.sessions[place].targets.len() {
                let migration = &record.disk(DiskIndex(disk as u16))?.migration;
                let pivoted =
                    migration.as_ref().is_some_and(|known| *known.state() == MigrationState::Pivoted);
                if pivoted && self.sessions[place].targets[disk].is_none() {
                    let (machine, branch) = (self.sessions[place].machine, self.sessions[place].branch);
                    let Some(model) = &mut self.units[machine] else { continue };
                    let content = model.branch(branch)?.heads[disk].now().clone();
                    self.sessions[place].targets[disk] = Some(TargetModel::new(content));
                    self.counts.one("pivots");
                    self.trace.say(|| format!("disk {disk} of session {place} was pivoted"));
                }
            }
        }
        Ok(())
    }

    pub fn consolidate(&mut self) -> Outcome {
        let machine = self.below(self.machines.len());
        let Some(unit) = self.unit(machine) else { return Ok(()) };
        let chosen = match self.random.chance(50) {
            true => {
                let (line, holds) = crate::retention::main_line(&unit);
                let ladder = crate::ladder::Ladder::all(std::time::Duration::from_secs(60));
                ladder.choose(&line, &holds, blocks::WallClock::now()).consolidate
            }
            false => self.some_checkpoint(machine),
        };
        let Some(up_to) = chosen else { return Ok(()) };
        let cancel_at = if self.random.chance(20) { self.random.below(1 << 20) } else { u64::MAX };
        let outcome = unit.consolidate(up_to, &|done, _| done.get() < cancel_at);
        self.trace.say(|| format!("consolidate machine {machine} up to {up_to}: {outcome:?}"));
        let Some(model) = &mut self.units[machine] else { return Ok(()) };
        let main = model.main;
        let pinned = |place: &CheckpointId| {
            *place < up_to && model.checkpoints.get(place).is_some_and(|sealed| sealed.branch == main)
        };
        let by_branch = model.branches.values().filter_map(|branch| branch.base).any(|base| pinned(&base));
        match outcome {
            Ok(_) => {
                ensure(!by_branch, || {
                    format!("the horizon has passed a checkpoint that a branch needs: {up_to}")
                })?;
                model.consolidated(up_to);
                self.counts.one("consolidations");
                Ok(())
            }
            Err(error) => match error.kind() {
                ErrorKind::InvalidInput => {
                    let other = model.checkpoints.get(&up_to).is_some_and(|sealed| sealed.branch != main);
                    ensure(other, || format!("checkpoint {up_to} is on the main branch: {error}"))
                }
                ErrorKind::Busy => {
                    ensure(by_branch || self.views.iter().any(|view| view.machine == machine), || {
                        format!("nothing holds what lies before {up_to}: {error}")
                    })
                }
                kind => {
                    if unit.replaying() == Some(up_to) {
                        model.consolidated(up_to);
                    }
                    self.absorb(machine, Doubt::Consolidate(up_to))?;
                    if kind == ErrorKind::Cancelled && cancel_at != u64::MAX {
                        self.counts.one("consolidations called off");
                        return Ok(());
                    }
                    self.allow(&error, "consolidating")
                }
            },
        }
    }

    /// Some checkpoints are deleted, and what lay between those that stay is merged.
    pub fn thin(&mut self) -> Outcome {
        let machine = self.below(self.machines.len());
        let Some(unit) = self.unit(machine) else { return Ok(()) };
        for _ in 0..self.random.below(3) {
            let Some(id) = self.some_checkpoint(machine) else { break };
            let outcome = unit.delete_checkpoints(&[id]);
            self.trace.say(|| format!("delete checkpoint {id} of machine {machine}: {outcome:?}"));
            match outcome {
                Ok(()) => {
                    if let Some(model) = &mut self.units[machine] {
                        model.checkpoints.remove(&id);
                    }
                    self.counts.one("checkpoints deleted");
                }
                Err(error) if error.kind() == ErrorKind::Busy => {
                    let must_stay = self.must_stay(machine, &unit, id);
                    ensure(must_stay, || format!("nothing needs checkpoint {id}: {error}"))?;
                }
                Err(error) => {
                    self.absorb(machine, Doubt::Delete(id))?;
                    self.allow(&error, "deleting a checkpoint")?;
                }
            }
        }
        let goal = if self.random.chance(70) { ThinGoal::Everything } else { ThinGoal::Worthwhile };
        let stop_at = if self.random.chance(20) { self.random.below(1 << 17) } else { u64::MAX };
        let outcome = unit.thin(goal, &|looked| looked.get() < stop_at);
        self.trace.say(|| format!("thin machine {machine}: {outcome:?}"));
        match outcome {
            Ok(report) => {
                self.counts.add("deltas merged away", report.deltas);
                Ok(())
            }
            Err(error) => self.allow(&error, "thinning"),
        }
    }

    /// Whether a checkpoint may not be deleted.
    fn must_stay(&self, machine: usize, unit: &Unit, id: CheckpointId) -> bool {
        let Some(model) = &self.units[machine] else { return false };
        let branch = model.checkpoints.get(&id).map(|sealed| sealed.branch);
        let mut later = model.checkpoints.range(id..).skip(1);
        let is_newest = !later.any(|(_, other)| Some(other.branch) == branch);
        let is_base = model.branches.values().any(|branch| branch.base == Some(id));
        let in_images = unit.horizon() == Some(id) || unit.replaying() == Some(id);
        is_newest || is_base || in_images || self.views.iter().any(|view| view.machine == machine)
    }

    /// Somebody looks at an old checkpoint for a while, or stops.
    pub fn open_or_close_view(&mut self) -> Outcome {
        if self.views.len() >= 2 || (self.random.chance(50) && !self.views.is_empty()) {
            let place = self.below(self.views.len());
            let view = self.views.swap_remove(place);
            return self.check_view(&view);
        }
        let machine = self.below(self.machines.len());
        let (Some(unit), Some(at)) = (self.unit(machine), self.some_checkpoint(machine)) else {
            return Ok(());
        };
        let disk = self.below(self.machines[machine].disks.len());
        match unit.view(at, DiskIndex(disk as u16)) {
            Ok(view) => {
                let Some(sealed) = self.units[machine].as_ref().and_then(|unit| unit.checkpoints.get(&at))
                else {
                    return Ok(());
                };
                let expected = sealed.disks[disk].clone();
                self.views.push(OpenView { view: Arc::new(view), machine, disk, expected });
                Ok(())
            }
            Err(error) => self.allow(&error, "opening a view"),
        }
    }

    pub fn check_view(&mut self, view: &OpenView) -> Outcome {
        let tag = disk_tag(self.machines[view.machine].tag, view.disk);
        match super::content::read(&view.view, tag)? {
            Ok(found) => compare(&found, &view.expected, "a view that stayed open"),
            Err(error) => self.allow(&error, "reading a view"),
        }
    }

    /// The newest checkpoint of a machine's main branch.
    pub fn newest_checkpoint(&self, machine: usize) -> Option<CheckpointId> {
        newest(self.units[machine].as_ref()?)
    }
}
