//! A protected machine: its disks, the marks that its kernel keeps, and its agent, as simple as they can be.
//!
//! The real agent is another room's, and its tracker is the kernel's. What matters to the server is what an agent may say:
//! numbers that rise, everything that is not acknowledged sent again, a checkpoint only of one instant, and a scan
//! where the marks were lost.

use super::content::{Content, SECTOR, Version, encode, extent, sectors};
use super::failure::Outcome;
use super::model::{apply, disk_tag};
use super::network::{Link, now};
use blocks::{BlockShift, ByteLen, DiskIndex, Extent, Generation, Id, MachineId, Seq, StoreId, WallClock};
use std::collections::{BTreeMap, BTreeSet};
use store::testing::Random;
use wire::{
    AgentMessage, CheckpointReport, Continuity, DiskHello, DiskInstant, HashPurpose, HashReport, Heartbeat,
    Hello, Payload, Receiver, Role, Sender, ServerMessage, StartFrom, Welcome, Write,
};

/// What is marked at a time: 4 KiB.
const MARK: usize = 8;
/// What is hashed at a time.
const BLOCK: usize = 128;
/// How many writes may wait for their acknowledgement.
const WINDOW: usize = 24;

pub(super) struct Machine {
    pub tag: u16,
    pub name: String,
    pub disks: Vec<SourceDisk>,
    pub boot: u64,
    pub id: Option<MachineId>,
    pub generation: Generation,
    pub agent: Agent,
    next_request: u64,
    /// What the disks held at each instant that was reported.
    pub instants: BTreeMap<u64, Vec<Content>>,
    /// Checkpoints that the server has confirmed.
    pub sealed: u64,
    held: bool,
}

pub(super) struct SourceDisk {
    pub content: Content,
    /// Marked; to be read and sent.
    dirty: BTreeSet<usize>,
    /// Sent, by the number of the write that has it; not acknowledged.
    pending: BTreeMap<usize, Seq>,
    /// The marks account for everything since this store acknowledged something.
    base: Option<(StoreId, Seq)>,
    sent: Seq,
    /// The last write of this connection, or what the welcome said is durable.
    last: Seq,
    /// What is still to be hashed, and what is asked about.
    to_hash: Vec<Extent>,
    asked: usize,
    /// The first copy or a scan is not through.
    copying: bool,
}

/// What the agent is doing.
pub(super) enum Agent {
    Down,
    Away,
    Greeting(Line),
    Source(Line),
    Standby(Line),
}

/// The agent's end of a connection.
pub(super) struct Line {
    pub link: Link,
    sender: Sender<AgentMessage>,
    receiver: Receiver<ServerMessage>,
}

impl Line {
    /// `false`: the connection is gone.
    fn send(&mut self, message: &AgentMessage) -> bool {
        matches!(now(self.sender.send(message)), Some(Ok(())))
    }
}

fn mark(first: usize, count: usize) -> std::ops::RangeInclusive<usize> {
    first / MARK..=(first + count - 1) / MARK
}

impl SourceDisk {
    fn new(len: usize) -> SourceDisk {
        SourceDisk {
            content: vec![0; len],
            dirty: BTreeSet::new(),
            pending: BTreeMap::new(),
            base: None,
            sent: Seq(0),
            last: Seq(0),
            to_hash: Vec::new(),
            asked: 0,
            copying: false,
        }
    }

    pub fn write(&mut self, first: usize, versions: &[Version]) {
        apply(&mut self.content, first, versions);
        self.dirty.extend(mark(first, versions.len()));
    }

    /// What was sent and not acknowledged has to be sent again.
    fn forget_connection(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        self.dirty.extend(pending.into_keys());
        self.to_hash.clear();
        self.asked = 0;
        if std::mem::take(&mut self.copying) {
            self.base = None;
        }
    }

    fn lose_marks(&mut self) {
        self.forget_connection();
        self.dirty.clear();
        self.base = None;
    }

    fn continuity(&self) -> Continuity {
        match self.base {
            Some((store, acked)) => Continuity::Tracked { store, acked, sent: self.sent },
            None => Continuity::Unknown { reason: "nothing is known".into() },
        }
    }

    fn begin(&mut self, store: StoreId, durable: Seq, start: StartFrom) -> Outcome {
        self.sent = self.sent.max(durable);
        self.last = durable;
        match start {
            StartFrom::Marked => {}
            StartFrom::Everything => {
                self.copying = true;
                let used = self.content.iter().enumerate().filter(|(_, version)| **version != 0);
                self.dirty = used.map(|(sector, _)| sector / MARK).collect();
            }
            StartFrom::Scan => {
                self.copying = true;
                self.dirty.clear();
                let whole = extent(0, self.content.len())?;
                self.to_hash = whole.split(ByteLen::new((2 * BLOCK * SECTOR) as u64)).collect();
                self.to_hash.reverse();
            }
        }
        self.base = Some((store, durable));
        Ok(())
    }

    fn acknowledged(&mut self, seq: Seq) {
        self.pending.retain(|_, pending| *pending > seq);
        if let Some((_, acked)) = &mut self.base {
            *acked = (*acked).max(seq);
        }
        self.settle();
    }

    fn settle(&mut self) {
        if self.to_hash.is_empty() && self.asked == 0 && self.dirty.is_empty() && self.pending.is_empty() {
            self.copying = false;
        }
    }

    /// Takes some neighbouring marks and reads them.
    fn take(&mut self, tag: u16, disk: u16, most: usize) -> Option<Write> {
        let first = *self.dirty.first()?;
        let mut count = 1;
        while count < most && self.dirty.contains(&(first + count)) {
            count += 1;
        }
        self.sent = self.sent.next();
        self.last = self.sent;
        for chunk in first..first + count {
            self.dirty.remove(&chunk);
            self.pending.insert(chunk, self.sent);
        }
        let start = first * MARK;
        let end = (start + count * MARK).min(self.content.len());
        let versions = &self.content[start..end];
        let payload = match versions.iter().all(|version| *version == 0) {
            true => Payload::Zero,
            false => Payload::Data(encode(disk_tag(tag, usize::from(disk)), start, versions)),
        };
        let extent = extent(start, end - start).ok()?;
        Some(Write { disk: DiskIndex(disk), seq: self.sent, extent, payload })
    }

    fn hashes(&self, tag: u16, disk: u16, range: Extent, purpose: HashPurpose) -> HashReport {
        let hash = |block: Extent| {
            let sectors = sectors(block);
            let bytes =
                encode(disk_tag(tag, usize::from(disk)), sectors.start, &self.content[sectors.clone()]);
            Some(*blake3::hash(&bytes).as_bytes())
        };
        let hashes = range.split(BlockShift::KIB_64.len()).map(hash).collect();
        HashReport { purpose, disk: DiskIndex(disk), range, block: BlockShift::KIB_64, hashes }
    }
}

impl Machine {
    pub fn new(tag: u16, lens: &[usize]) -> Machine {
        Machine {
            tag,
            name: format!("machine{tag}"),
            disks: lens.iter().map(|len| SourceDisk::new(*len)).collect(),
            boot: 1,
            id: None,
            generation: Generation(0),
            agent: Agent::Away,
            next_request: 1,
            instants: BTreeMap::new(),
            sealed: 0,
            held: false,
        }
    }

    /// The lengths of its disks, in sectors.
    pub fn lens(&self) -> impl Iterator<Item = usize> {
        self.disks.iter().map(|disk| disk.content.len())
    }

    pub fn line(&mut self) -> Option<&mut Line> {
        match &mut self.agent {
            Agent::Greeting(line) | Agent::Source(line) | Agent::Standby(line) => Some(line),
            Agent::Down | Agent::Away => None,
        }
    }

    /// The agent's process dies; the kernel keeps the marks.
    pub fn kill_agent(&mut self) {
        self.hang_up();
        self.agent = Agent::Down;
    }

    /// The machine loses power: its marks are gone, its disks are not.
    pub fn power_cut(&mut self) {
        self.kill_agent();
        self.boot += 1;
        self.disks.iter_mut().for_each(SourceDisk::lose_marks);
    }

    /// A disk becomes longer. What marks it had are of its old size, and a connection ends for it.
    pub fn grow(&mut self, disk: usize, sectors: usize) {
        match self.agent {
            Agent::Down => {}
            _ => self.hang_up(),
        }
        let disk = &mut self.disks[disk];
        disk.lose_marks();
        disk.content.resize(disk.content.len() + sectors, 0);
    }

    pub fn hang_up(&mut self) {
        if let Some(line) = self.line() {
            line.link.cut();
        }
        self.agent = Agent::Away;
        self.held = false;
        self.disks.iter_mut().for_each(SourceDisk::forget_connection);
    }

    /// Connects and says who this is.
    pub fn connect(&mut self, link: &Link) -> Outcome {
        let (sender, receiver) = link.agent_end().split();
        let mut line = Line { link: link.clone(), sender, receiver };
        let mut boot = [1; 16];
        boot[..8].copy_from_slice(&self.boot.to_le_bytes());
        let hello = |disk: (usize, &SourceDisk)| DiskHello {
            device: format!("/dev/disk{}", disk.0),
            serial: format!("S{}", disk.0),
            len: ByteLen::new((disk.1.content.len() * SECTOR) as u64),
            tracker: "simulated".into(),
            continuity: disk.1.continuity(),
        };
        let hello = Hello {
            machine: self.id,
            name: self.name.clone(),
            generation: self.generation,
            boot: Id::from_bytes(boot).ok_or_else(|| super::failure::Failure::new("no boot id"))?,
            session: None,
            inventory: "{}".into(),
            disks: self.disks.iter().enumerate().map(hello).collect(),
        };
        line.send(&AgentMessage::Hello(hello));
        self.agent = Agent::Greeting(line);
        Ok(())
    }

    /// Takes a message of the server, if one has arrived; whether one has.
    pub fn hear(&mut self) -> Outcome<bool> {
        let Some(line) = self.line() else { return Ok(false) };
        match now(line.receiver.recv()) {
            None => Ok(false),
            Some(Ok(Some(message))) => self.obey(message).map(|()| true),
            Some(Ok(None) | Err(_)) => {
                self.hang_up();
                Ok(true)
            }
        }
    }

    fn obey(&mut self, message: ServerMessage) -> Outcome {
        match message {
            ServerMessage::Welcome(welcome) => return self.welcomed(&welcome),
            ServerMessage::Refused(_) => self.hang_up(),
            ServerMessage::Ack { disk, seq } => {
                if let Some(disk) = self.disks.get_mut(usize::from(disk.0)) {
                    disk.acknowledged(seq);
                }
            }
            ServerMessage::Differing { disk, extents, .. } => {
                if let Some(disk) = self.disks.get_mut(usize::from(disk.0)) {
                    disk.asked = disk.asked.saturating_sub(1);
                    for differing in extents {
                        let sectors = sectors(differing);
                        disk.dirty.extend(mark(sectors.start, sectors.len()));
                    }
                    disk.settle();
                }
            }
            ServerMessage::Hold { .. } => self.held = true,
            ServerMessage::Resume => self.held = false,
            ServerMessage::CheckpointSealed { request, .. } => {
                self.instants.remove(&request);
                self.sealed += 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn welcomed(&mut self, welcome: &Welcome) -> Outcome {
        self.id = Some(welcome.machine);
        let Agent::Greeting(line) = std::mem::replace(&mut self.agent, Agent::Away) else { return Ok(()) };
        match &welcome.role {
            Role::Standby { .. } => self.agent = Agent::Standby(line),
            Role::Source => {
                self.generation = welcome.generation;
                for (disk, welcome_disk) in self.disks.iter_mut().zip(&welcome.disks) {
                    disk.begin(welcome.store, welcome_disk.durable, welcome_disk.start)?;
                }
                self.agent = Agent::Source(line);
            }
        }
        Ok(())
    }

    /// The agent does one of the things that a source does.
    pub fn step(&mut self, random: &mut Random) {
        if !matches!(self.agent, Agent::Source(_)) || self.held {
            return;
        }
        let disk = random.below(self.disks.len() as u64) as usize;
        match random.below(12) {
            0 => self.heartbeat(),
            1..=3 => self.checkpoint(),
            4 | 5 => self.hash(disk),
            _ => {
                if self.disks[disk].pending.len() < WINDOW {
                    self.send(disk, 1 + random.below(4) as usize);
                }
            }
        }
    }

    fn say(&mut self, message: &AgentMessage) {
        let sent = self.line().is_some_and(|line| line.send(message));
        if !sent {
            self.hang_up();
        }
    }

    fn heartbeat(&mut self) {
        let heartbeat = Heartbeat {
            now: WallClock::now(),
            backlog: vec![ByteLen::ZERO; self.disks.len()],
            churn: vec![ByteLen::ZERO; self.disks.len()],
            trackers: vec!["simulated".into(); self.disks.len()],
        };
        self.say(&AgentMessage::Heartbeat(heartbeat));
    }

    fn send(&mut self, disk: usize, most: usize) {
        let tag = self.tag;
        if let Some(write) = self.disks[disk].take(tag, disk as u16, most) {
            // Those of every other machine come with times, as from a tap.
            self.say(&match tag % 2 {
                0 => AgentMessage::Write(write),
                _ => AgentMessage::WriteInOrder { write, age_us: 0 },
            });
        }
    }

    fn hash(&mut self, disk: usize) {
        let tag = self.tag;
        let source = &mut self.disks[disk];
        if let Some(range) = source.to_hash.pop() {
            source.asked += 1;
            let report = source.hashes(tag, disk as u16, range, HashPurpose::Scan);
            self.say(&AgentMessage::Hashes(report));
        }
    }

    /// Whether everything was sent that a checkpoint has to hold.
    fn can_be_exact(&self) -> bool {
        self.disks.iter().all(|disk| disk.to_hash.is_empty() && disk.asked == 0)
    }

    /// Everything that is marked is sent, and the instant after it reported.
    pub fn checkpoint(&mut self) {
        if !matches!(self.agent, Agent::Source(_)) || self.held || !self.can_be_exact() {
            return;
        }
        for disk in 0..self.disks.len() {
            while !self.disks[disk].dirty.is_empty() && matches!(self.agent, Agent::Source(_)) {
                self.send(disk, 64);
            }
        }
        let request = self.next_request;
        self.next_request += 1;
        let instant = |disk: &SourceDisk| DiskInstant {
            seq: disk.last,
            len: ByteLen::new((disk.content.len() * SECTOR) as u64),
            excluded: Vec::new(),
        };
        let report = CheckpointReport {
            request,
            name: String::new(),
            consistency: wire::Consistency::Crash,
            taken_at: WallClock::now(),
            frozen_ms: 1,
            disks: self.disks.iter().map(instant).collect(),
        };
        self.instants.insert(request, self.disks.iter().map(|disk| disk.content.clone()).collect());
        self.say(&AgentMessage::Checkpoint(report));
    }

    /// Something that no agent says: a write out of order, behind one that it has sent.
    pub fn misbehave(&mut self) {
        let len = self.disks[0].content.len();
        if let Ok(extent) = extent(len - 1, 1)
            && matches!(self.agent, Agent::Source(_))
            && !self.disks[0].pending.is_empty()
        {
            let seq = Seq(self.disks[0].sent.0 + 1000);
            self.say(&AgentMessage::Write(Write { disk: DiskIndex(0), seq, extent, payload: Payload::Zero }));
        }
    }

    /// Everything marked was sent and acknowledged.
    pub fn is_in_step(&self) -> bool {
        let rests = |disk: &SourceDisk| {
            disk.dirty.is_empty() && disk.pending.is_empty() && disk.to_hash.is_empty() && disk.asked == 0
        };
        matches!(self.agent, Agent::Source(_)) && self.disks.iter().all(rests)
    }

    /// The sectors at which a disk of this length may be written.
    pub fn some_range(random: &mut Random, len: usize) -> (usize, usize) {
        let first = random.below(len as u64) as usize;
        let longest = if random.chance(8) { 160 } else { 12 };
        (first, (1 + random.below(longest) as usize).min(len - first))
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("name", &self.name).finish_non_exhaustive()
    }
}
