//! The server's side of the agents' connections: what a conversation does with a socket, step by step.

use super::content::{SECTOR, decode, sectors};
use super::failure::{Failure, Outcome, ensure};
use super::host::ServerEnd;
use super::model::{Doubt, UnitModel, Write, disk_tag};
use super::network::{Link, now};
use super::play::Play;
use crate::agent::{SteppedAgent, Work};
use blocks::{CheckpointId, DiskIndex, ErrorKind, WriteTime};
use std::time::Duration;
use wire::{AgentMessage, Hello, Payload, Refusal, RefusalKind, ServerMessage};

/// How much may wait for the appender.
const QUEUE: usize = 24;

/// What is about to be appended, as the model needs it.
enum Coming {
    Write(DiskIndex, Write),
    Checkpoint(u64),
    Hashes,
}

impl Play {
    /// An agent connects: a new link, and a new end at the server.
    pub fn connect(&mut self, index: usize) -> Outcome {
        let link = Link::default();
        self.links[index] = link.clone();
        self.machines[index].connect(&link)?;
        if let Some(host) = &mut self.host {
            host.ends.push(ServerEnd::new(index, &link));
            self.counts.one("connections");
        }
        Ok(())
    }

    fn some_end(&mut self) -> Option<usize> {
        let count = self.host.as_ref()?.ends.len();
        (count > 0).then(|| self.below(count))
    }

    /// The server reads what has arrived on a connection, while its queue has room.
    pub fn server_hears(&mut self) -> Outcome {
        let Some(at) = self.some_end() else { return Ok(()) };
        for _ in 0..1 + self.random.below(6) {
            let Some(end) = self.host.as_mut().and_then(|host| host.ends.get_mut(at)) else { break };
            if end.over || end.ingest.as_ref().is_some_and(|ingest| ingest.waiting() >= QUEUE) {
                break;
            }
            match now(end.receiver.recv()) {
                None => break,
                Some(Ok(Some(message))) => self.heard(at, message)?,
                Some(Ok(None) | Err(_)) => self.end_connection(at, None)?,
            }
        }
        self.forget_ended();
        Ok(())
    }

    fn heard(&mut self, at: usize, message: AgentMessage) -> Outcome {
        let Some(end) = self.host.as_mut().and_then(|host| host.ends.get_mut(at)) else { return Ok(()) };
        if let Some(agent) = &end.agent {
            agent.machine.heard(blocks::monotonic_now());
        }
        match message {
            AgentMessage::Hello(hello) => self.greet(at, &hello),
            AgentMessage::Write(write) => self.submit(at, Work::Write(write)),
            AgentMessage::WriteInOrder { write, age_us } => {
                let completed = WriteTime::ago(Duration::from_micros(age_us));
                self.submit(at, Work::WriteInOrder(write, completed))
            }
            AgentMessage::Checkpoint(report) => self.submit(at, Work::Checkpoint(report)),
            AgentMessage::Hashes(report) => self.submit(at, Work::Hashes(report)),
            AgentMessage::Heartbeat(heartbeat) => {
                if let Some(agent) = &end.agent {
                    agent.machine.heartbeat(heartbeat, blocks::monotonic_now());
                }
                Ok(())
            }
            other => Err(Failure::new(format!("the agent of the simulation said {other:?}"))),
        }
    }

    fn submit(&mut self, at: usize, work: Work) -> Outcome {
        let Some(end) = self.host.as_mut().and_then(|host| host.ends.get_mut(at)) else { return Ok(()) };
        match &mut end.ingest {
            Some(ingest) => ingest.submit(work),
            None => self.end_connection(at, Some("a machine that stands by sent data"))?,
        }
        Ok(())
    }

    fn greet(&mut self, at: usize, hello: &Hello) -> Outcome {
        let Some(host) = &mut self.host else { return Ok(()) };
        let machine = host.ends[at].machine;
        // A hello of a connection that is gone may come after the next one's, which told of a longer disk.
        let lens = |disk: &wire::DiskHello| disk.len.as_usize() / SECTOR;
        let overtaken = hello.disks.iter().map(lens).ne(self.machines[machine].lens());
        let admitted = SteppedAgent::admit(&host.registry, hello);
        for unit in host.store.units() {
            let model = &mut self.units[tag_of(&unit.name())];
            if model.is_none() {
                *model = Some(UnitModel::new(&unit, self.machines[machine].tag));
            }
        }
        let (agent, before) = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => return self.refuse(at, refusal, overtaken),
        };
        if let Some(before) = before {
            let ends = &self.host.as_ref().map(|host| &host.ends);
            let same = |end: &ServerEnd| {
                end.agent.as_ref().is_some_and(|agent| agent.handle.is_same(&before)) && !end.over
            };
            if let Some(other) = ends.and_then(|ends| ends.iter().position(same)) {
                self.end_connection(other, Some("another connection has taken its place"))?;
            }
        }
        let Some(host) = &mut self.host else { return Ok(()) };
        let welcomed = agent.welcome(&host.registry, hello);
        if let (Some(model), Some(unit)) = (&mut self.units[machine], host.store.unit(agent.machine.id())) {
            model.follow_growth(&unit)?;
        }
        match welcomed {
            Ok((welcome, ingest)) => {
                let end = &mut host.ends[at];
                end.unit = host.store.unit(welcome.machine);
                (end.agent, end.ingest) = (Some(agent), ingest);
                // What the welcome says is durable counts like an acknowledgement.
                if let Some(unit) = &mut self.units[machine] {
                    let main = unit.main;
                    for (head, disk) in unit.branch(main)?.heads.iter_mut().zip(&welcome.disks) {
                        ensure(disk.durable <= head.last_seq(), || {
                            format!(
                                "a welcome says {} where {} was the last",
                                disk.durable.0,
                                head.last_seq().0
                            )
                        })?;
                        head.settle(disk.durable);
                    }
                }
                self.trace.say(|| format!("machine {machine} is welcome: {:?}", welcome.role));
                self.say(at, &ServerMessage::Welcome(welcome));
                Ok(())
            }
            Err(refusal) => self.refuse(at, refusal, overtaken),
        }
    }

    fn refuse(&mut self, at: usize, refusal: Refusal, overtaken: bool) -> Outcome {
        self.trace.say(|| format!("refused: {}", refusal.reason));
        let excused = self.trouble || self.bounded || self.storage.has_lost_power();
        let expected = refusal.kind == RefusalKind::Taken
            || (refusal.kind == RefusalKind::Disks && overtaken)
            || excused
            || self.storage.faults() != Default::default();
        ensure(expected, || format!("an agent was refused without a fault: {}", refusal.reason))?;
        self.say(at, &ServerMessage::Refused(refusal));
        if let Some(host) = &mut self.host {
            host.ends[at].over = true;
        }
        Ok(())
    }

    fn say(&mut self, at: usize, message: &ServerMessage) {
        if let Some(host) = &mut self.host {
            // Where the connection is gone, the agent learns the same from its next welcome.
            let _ = now(host.ends[at].sender.send(message));
        }
    }

    /// The appender takes what is next.
    pub fn server_appends(&mut self) -> Outcome {
        let Some(at) = self.some_end() else { return Ok(()) };
        for _ in 0..1 + self.random.below(4) {
            if !self.append(at)? {
                break;
            }
        }
        self.forget_ended();
        Ok(())
    }

    /// `false` where nothing was appended.
    fn append(&mut self, at: usize) -> Outcome<bool> {
        let Some(end) = self.host.as_mut().and_then(|host| host.ends.get_mut(at)) else { return Ok(false) };
        let machine = end.machine;
        let Some(ingest) = &mut end.ingest else { return Ok(false) };
        let Some(coming) = ingest.next().map(|work| coming(machine, work)).transpose()? else {
            return Ok(false);
        };
        let branch = ingest.branch();
        let outcome = ingest.append();
        let Some(unit) = end.unit.clone() else { return Ok(false) };
        let Some(model) = &mut self.units[machine] else { return Ok(false) };
        let unknown = |model: &UnitModel| {
            let new = |checkpoint: &store::Checkpoint| !model.checkpoints.contains_key(&checkpoint.id);
            unit.checkpoints().into_iter().find(new).map(|checkpoint| checkpoint.id)
        };
        match (coming, &outcome) {
            (Coming::Write(disk, write), Ok(true)) => {
                model.branch(branch)?.heads[usize::from(disk.0)].push(write);
                self.counts.one("writes appended");
            }
            (Coming::Write(disk, write), Err(_)) => {
                let head = &mut model.branch(branch)?.heads[usize::from(disk.0)];
                let there = unit.disk(branch, disk)?.last_seq() >= write.seq;
                if there { head.push(write) } else { head.fail(write) }
            }
            (Coming::Checkpoint(request), Ok(true) | Err(_)) => {
                let instant = self.machines[machine].instants.get(&request).cloned();
                let Some(instant) = instant else {
                    return Err(Failure::new(format!("no instant belongs to request {request}")));
                };
                match (unknown(model), outcome.is_ok()) {
                    (Some(id), _) => {
                        for (disk, (head, instant)) in
                            model.branch(branch)?.heads.iter().zip(&instant).enumerate()
                        {
                            super::content::compare(
                                head.now(),
                                instant,
                                &format!(
                                    "disk {disk} as the server got it, against the instant of checkpoint {id}"
                                ),
                            )?;
                        }
                        model.sealed(branch, id, instant);
                        self.counts.one("checkpoints");
                    }
                    (None, true) => return Err(Failure::new("a checkpoint was sealed and is not there")),
                    // What is poisoned publishes nothing, and neither does a source that is fenced.
                    (None, false) => {
                        if let Err(error) = &outcome
                            && !matches!(error.kind(), ErrorKind::Poisoned | ErrorKind::Fenced)
                        {
                            model.doubts.push(Doubt::Seal(branch, instant));
                        }
                    }
                }
            }
            (Coming::Hashes, Ok(true)) => self.counts.one("hash reports compared"),
            (_, Ok(false)) => self.counts.one("writes that found no room"),
            (Coming::Hashes, Err(_)) => {}
        }
        self.pass_on(at)?;
        match outcome {
            Ok(appended) => Ok(appended),
            Err(error) => {
                // An agent out of its mind, or one that was fenced, is no fault.
                if !matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Fenced) {
                    self.allow(&error, "appending")?;
                }
                self.end_connection(at, Some("the ingest has failed"))?;
                Ok(false)
            }
        }
    }

    /// The committer commits what is due.
    pub fn server_commits(&mut self) -> Outcome {
        let Some(at) = self.some_end() else { return Ok(()) };
        if let Some(ingest) = self.host.as_ref().and_then(|host| host.ends[at].ingest.as_ref()) {
            ingest.commit();
        }
        self.pass_on(at)?;
        self.end_failed(at)?;
        self.forget_ended();
        Ok(())
    }

    fn end_failed(&mut self, at: usize) -> Outcome {
        let failure = self.host.as_ref().and_then(|host| host.ends[at].ingest.as_ref()?.failure());
        if let Some(error) = failure {
            if error.kind() != ErrorKind::Fenced {
                self.allow(&error, "committing")?;
                self.check_poisoned(at, &error)?;
            }
            self.end_connection(at, Some("the ingest has failed"))?;
        }
        Ok(())
    }

    /// After a failed sync nothing more may be acknowledged on that disk.
    fn check_poisoned(&mut self, at: usize, error: &blocks::Error) -> Outcome {
        let of_a_sync = error.to_string().contains("committing") && self.storage.faults().syncs > 0;
        if error.kind() != ErrorKind::Io || !of_a_sync {
            return Ok(());
        }
        let Some(host) = &self.host else { return Ok(()) };
        let end = &host.ends[at];
        let (Some(unit), Some(ingest)) = (&end.unit, &end.ingest) else { return Ok(()) };
        let mut poisoned = false;
        for disk in 0..self.machines[end.machine].disks.len() {
            poisoned |= unit.disk(ingest.branch(), DiskIndex(disk as u16))?.sync().is_err();
        }
        ensure(poisoned, || format!("a disk acknowledges again after: {error}"))
    }

    /// What the ingest says goes to the agent; an acknowledgement is a promise from here on.
    fn pass_on(&mut self, at: usize) -> Outcome {
        loop {
            let Some(host) = &mut self.host else { return Ok(()) };
            let end = &mut host.ends[at];
            let Some((ingest, machine)) = end.ingest.as_mut().map(|ingest| (ingest, end.machine)) else {
                return Ok(());
            };
            let branch = ingest.branch();
            let Some(message) = ingest.told() else { return Ok(()) };
            if let ServerMessage::Ack { disk, seq } = &message {
                let Some(model) = &mut self.units[machine] else { return Ok(()) };
                let head = &mut model.branch(branch)?.heads[usize::from(disk.0)];
                ensure(*seq <= head.last_seq(), || {
                    format!("write {} was acknowledged and {} is the last", seq.0, head.last_seq().0)
                })?;
                head.settle(*seq);
                self.counts.one("acknowledgements");
            }
            if matches!(message, ServerMessage::Hold { .. }) {
                self.counts.one("machines held");
            }
            self.say(at, &message);
        }
    }

    /// A connection ends: what was taken over is appended and committed first.
    pub fn end_connection(&mut self, at: usize, why: Option<&str>) -> Outcome {
        let failed = |play: &Play| {
            let end = play.host.as_ref().and_then(|host| host.ends.get(at));
            end.and_then(|end| end.ingest.as_ref()?.failure()).is_some()
        };
        {
            let Some(end) = self.host.as_mut().and_then(|host| host.ends.get_mut(at)) else { return Ok(()) };
            if std::mem::replace(&mut end.over, true) {
                return Ok(());
            }
        }
        while !failed(self) && self.append(at)? {}
        if !failed(self)
            && let Some(ingest) = self.host.as_ref().and_then(|host| host.ends[at].ingest.as_ref())
        {
            ingest.close();
        }
        self.pass_on(at)?;
        if let Some(error) = self.host.as_ref().and_then(|host| host.ends[at].ingest.as_ref()?.failure())
            && !matches!(error.kind(), ErrorKind::Fenced | ErrorKind::InvalidInput)
        {
            self.allow(&error, "ending a connection")?;
        }
        if let Some(reason) = why {
            self.trace.say(|| format!("a connection ends: {reason}"));
            let reason = reason.to_owned();
            self.say(at, &ServerMessage::Refused(Refusal { kind: RefusalKind::Busy, reason }));
        }
        let Some(end) = self.host.as_mut().and_then(|host| host.ends.get_mut(at)) else { return Ok(()) };
        let was_source = end.ingest.take().is_some();
        if let (Some(agent), Some(unit)) = (end.agent.take(), end.unit.take()) {
            agent.end(&unit, was_source, false);
        }
        Ok(())
    }

    /// Connections that are over go.
    pub fn forget_ended(&mut self) {
        if let Some(host) = &mut self.host {
            host.ends.retain(|end| !end.over);
        }
    }

    /// Ends every connection of a machine: it was promoted.
    pub fn fence(&mut self, machine: usize) -> Outcome {
        let count = self.host.as_ref().map_or(0, |host| host.ends.len());
        for at in 0..count {
            let is_source = self
                .host
                .as_ref()
                .is_some_and(|host| host.ends[at].machine == machine && host.ends[at].ingest.is_some());
            if is_source {
                self.end_connection(at, Some("a session is in charge"))?;
            }
        }
        self.forget_ended();
        Ok(())
    }
}

/// The number in the name of a machine of the simulation.
pub(super) fn tag_of(name: &str) -> usize {
    name.trim_start_matches("machine").parse().unwrap_or(0)
}

fn coming(machine: usize, work: &Work) -> Outcome<Coming> {
    match work {
        Work::Write(write) | Work::WriteInOrder(write, _) => {
            let range = sectors(write.extent);
            let versions = match &write.payload {
                Payload::Zero => vec![0; range.len()],
                Payload::Data(bytes) => {
                    decode(disk_tag(machine as u16, usize::from(write.disk.0)), range.start, bytes)?
                }
            };
            Ok(Coming::Write(write.disk, Write { seq: write.seq, first: range.start, versions }))
        }
        Work::Checkpoint(report) => Ok(Coming::Checkpoint(report.request)),
        Work::Hashes(_) => Ok(Coming::Hashes),
    }
}

/// The newest checkpoint of a branch.
pub(super) fn newest(model: &UnitModel) -> Option<CheckpointId> {
    model.checkpoints.iter().filter(|(_, sealed)| sealed.branch == model.main).map(|(id, _)| *id).next_back()
}
