//! A store with a machine, and an agent that plays its half of a failback.

use crate::agent::RestoreLink;
use crate::session::block_set::BLOCK;
use crate::session::context::{Context, SessionsOptions, StepHook};
use crate::session::manager::Sessions;
use crate::session::volume::lock;
use blocks::{
    Allocation, ByteLen, ByteOffset, CheckpointId, DiskIndex, Extent, ExtentMap, ExtentStatus, Id, MachineId,
    Piece, RequestClass, Result, Seq, StoreId, Volume, WallClock,
};
use nbd_server::{Exports, ListenAddress};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use store::testing::{CrashStorage, Random};
use store::{CheckpointSpec, DiskSpec, ImageFormat, Payload as Stored, Store, StoreOptions, Unit, UnitSpec};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use wire::{AgentMessage, HashPurpose, HashReport, Payload, RestoreReady, ServerMessage, TargetKnowledge};

/// A disk in memory that costs only what was written to it.
#[derive(Default)]
pub(crate) struct SparseVolume {
    len: ByteLen,
    blocks: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl SparseVolume {
    pub fn new(len: ByteLen) -> SparseVolume {
        SparseVolume { len, blocks: Mutex::default() }
    }
}

impl Volume for SparseVolume {
    fn len(&self) -> ByteLen {
        self.len
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], _: RequestClass) -> Result<()> {
        let Some(extent) = Extent::between(offset, offset + ByteLen::of(buffer)) else { return Ok(()) };
        let blocks = lock(&self.blocks);
        for part in extent.split(BLOCK.len()) {
            let start = (part.start() - offset).as_usize();
            let out = &mut buffer[start..start + part.len().as_usize()];
            let within = (part.start().get() % BLOCK.bytes()) as usize;
            match blocks.get(&BLOCK.block_of(part.start())) {
                Some(block) => out.copy_from_slice(&block[within..within + out.len()]),
                None => out.fill(0),
            }
        }
        Ok(())
    }
    fn write_at(&self, offset: ByteOffset, data: &[u8], _: bool, _: RequestClass) -> Result<()> {
        let Some(extent) = Extent::between(offset, offset + ByteLen::of(data)) else { return Ok(()) };
        let mut blocks = lock(&self.blocks);
        for part in extent.split(BLOCK.len()) {
            let start = (part.start() - offset).as_usize();
            let within = (part.start().get() % BLOCK.bytes()) as usize;
            let block =
                blocks.entry(BLOCK.block_of(part.start())).or_insert_with(|| vec![0; BLOCK.bytes() as usize]);
            let part = &data[start..start + part.len().as_usize()];
            block[within..within + part.len()].copy_from_slice(part);
        }
        Ok(())
    }
    fn write_zeroes(&self, extent: Extent, _: bool, fua: bool, class: RequestClass) -> Result<()> {
        for part in extent.split(BLOCK.len()) {
            if part.is_aligned(BLOCK) {
                lock(&self.blocks).remove(&BLOCK.block_of(part.start()));
            } else {
                self.write_at(part.start(), &vec![0; part.len().as_usize()], fua, class)?;
            }
        }
        Ok(())
    }
    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.write_zeroes(extent, false, fua, class)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        let held: ExtentMap<()> = lock(&self.blocks)
            .keys()
            .filter_map(|block| Extent::new(BLOCK.start_of(*block), BLOCK.len()).ok())
            .collect();
        let run = |piece| match piece {
            Piece::Data(extent, ()) => ExtentStatus { extent, allocation: Allocation::Data },
            Piece::Hole(extent) => ExtentStatus { extent, allocation: Allocation::Hole },
        };
        Ok(held.lookup(extent).map(run).collect())
    }
}

/// Panics with the first byte in which the two differ.
pub(crate) fn assert_equal(left: &dyn Volume, right: &dyn Volume, what: &str) {
    if let Some(byte) = first_difference(left, right) {
        panic!("{what}: byte {byte} differs");
    }
}

/// The first byte in which two disks of one size differ.
pub(crate) fn first_difference(left: &dyn Volume, right: &dyn Volume) -> Option<u64> {
    assert_eq!(left.len(), right.len());
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = ByteOffset::ZERO;
    while let Some(rest) = Extent::between(at, left.len().end()) {
        let zeroes = |volume: &dyn Volume| {
            let run = volume.status(rest).unwrap()[0];
            if run.allocation.reads_as_zero() { run.extent.len() } else { ByteLen::ZERO }
        };
        let skip = zeroes(left).min(zeroes(right));
        let len = if skip.is_zero() { rest.len().min(ByteLen::of(&ours)) } else { skip };
        if skip.is_zero() {
            let (ours, theirs) = (&mut ours[..len.as_usize()], &mut theirs[..len.as_usize()]);
            left.read_at(at, ours, RequestClass::Background).unwrap();
            right.read_at(at, theirs, RequestClass::Background).unwrap();
            if let Some(byte) = ours.iter().zip(&*theirs).position(|(our, their)| our != their) {
                return Some(at.get() + byte as u64);
            }
        }
        at += len;
    }
    None
}

/// A machine under protection: its own disks, and what the store has of them.
pub(crate) struct World {
    pub storage: CrashStorage,
    pub store: Arc<Store>,
    pub unit: Arc<Unit>,
    /// What the machine's disks hold.
    pub machine: Vec<Arc<SparseVolume>>,
    pub seqs: Vec<Seq>,
    pub base: CheckpointId,
}

pub(crate) const MACHINE: &str = "00000000000000000000000000000077";

impl World {
    /// A machine with disks of these sizes, replicated with some data and a checkpoint.
    pub fn new(lens: &[u64], seed: u64) -> World {
        let storage = CrashStorage::new();
        let store = Arc::new(Store::open(Arc::new(storage.clone()), StoreOptions::default()).unwrap());
        let disk =
            |len: &u64| DiskSpec { len: ByteLen::new(*len), serial: "s".into(), device: "/dev/x".into() };
        let spec = UnitSpec {
            machine: MACHINE.parse().unwrap(),
            name: "web1".into(),
            definition: Vec::new(),
            disks: lens.iter().map(disk).collect(),
            image_format: ImageFormat::Raw,
        };
        let unit = store.create_unit(spec).unwrap();
        let machine = lens.iter().map(|len| Arc::new(SparseVolume::new(ByteLen::new(*len)))).collect();
        let seqs = vec![Seq(0); lens.len()];
        let mut world = World { storage, store, unit, machine, seqs, base: CheckpointId(0) };
        let mut random = Random::new(seed);
        for disk in 0..lens.len() {
            for _ in 0..40 {
                world.replicate(disk, &mut random);
            }
        }
        world.base = world.seal("base");
        world
    }

    /// The machine writes, and the server receives it.
    pub fn replicate(&mut self, disk: usize, random: &mut Random) {
        let (extent, data) = some_write(self.machine[disk].len(), random);
        self.machine[disk].write_at(extent.start(), &data, false, RequestClass::Guest).unwrap();
        self.seqs[disk] = self.seqs[disk].next();
        let main = self.unit.disk(self.unit.main_branch(), index(disk)).unwrap();
        main.append(self.seqs[disk], extent, Stored::Data(&data)).unwrap();
    }

    /// The machine writes, and the server never hears of it.
    pub fn write_unsent(&mut self, disk: usize, random: &mut Random) -> Extent {
        let (extent, data) = some_write(self.machine[disk].len(), random);
        self.machine[disk].write_at(extent.start(), &data, false, RequestClass::Guest).unwrap();
        extent
    }

    pub fn seal(&mut self, name: &str) -> CheckpointId {
        let spec = CheckpointSpec {
            name: name.into(),
            source_time: WallClock::now(),
            seqs: self.seqs.clone(),
            ..CheckpointSpec::crash_consistent_now()
        };
        self.unit.seal(self.unit.main_branch(), spec).unwrap().into_inner()
    }

    /// What the agent of the machine would say of a disk.
    pub fn known(&self, disk: usize, changed: Vec<Extent>) -> TargetKnowledge {
        TargetKnowledge::Known { store: self.store.id(), acked: self.seqs[disk], changed }
    }

    pub fn sessions(&self) -> Arc<Sessions> {
        Sessions::open_in(Arc::clone(&self.store), self.context(None)).unwrap()
    }

    pub fn context(&self, on_step: Option<StepHook>) -> Context {
        context_over(&self.storage, on_step, "boot-1")
    }
}

pub(crate) fn context_over(storage: &CrashStorage, on_step: Option<StepHook>, boot: &str) -> Context {
    let mut context = Context::new(SessionsOptions {
        exports: Exports::new(),
        listeners: vec![ListenAddress::Unix("/run/x.sock".into())],
        encrypted: false,
        storage: Arc::new(storage.clone()),
        boot: boot.into(),
    });
    context.answer_timeout = Duration::from_secs(60);
    context.on_step = on_step;
    context
}

pub(crate) fn index(disk: usize) -> DiskIndex {
    DiskIndex(u16::try_from(disk).unwrap())
}

pub(crate) fn some_write(len: ByteLen, random: &mut Random) -> (Extent, Vec<u8>) {
    let longest = if random.chance(10) { 600 } else { 32 };
    let sectors = 1 + random.below(longest);
    let start = random.below(len.get() / 512 - sectors) * 512;
    let mut data = vec![0; (sectors * 512) as usize];
    random.fill(&mut data);
    (Extent::new(ByteOffset::new(start), ByteLen::new(sectors * 512)).unwrap(), data)
}

/// Some writes, zeroes and discards of a guest.
pub(crate) fn guest_writes(volume: &dyn Volume, count: u64, random: &mut Random) {
    for _ in 0..count {
        let (extent, data) = some_write(volume.len(), random);
        match random.below(10) {
            0 => volume.write_zeroes(extent, false, false, RequestClass::Guest).unwrap(),
            1 => volume.discard(extent, false, RequestClass::Guest).unwrap(),
            _ => volume.write_at(extent.start(), &data, random.chance(5), RequestClass::Guest).unwrap(),
        }
    }
}

/// How a scripted agent misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Its connection ends after so many orders.
    GoneAfter(u64),
    /// The nth write is not done but confirmed.
    LosesWrite(u64),
    /// Every write is confirmed and none is done.
    LosesAll,
    /// It says that it cannot begin.
    Refuses,
    /// It never answers the last order.
    SilentAtFinish,
}

/// What a scripted agent did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub written: u64,
    pub zeroed: u64,
    pub hashed: u64,
    pub read: u64,
    pub finished: Option<(u64, u64)>,
    pub seqs: Vec<(DiskIndex, Seq)>,
    pub aborted: bool,
}

/// Plays the agent's half over these targets until the link ends.
pub(crate) fn agent(
    targets: Vec<Arc<dyn Volume>>,
    knowledge: Vec<TargetKnowledge>,
    fault: Fault,
) -> (RestoreLink, JoinHandle<Done>) {
    agent_until(targets, knowledge, fault, Arc::default())
}

/// The same until the agent is killed, too: by `killed`, once it has obeyed every order.
pub(crate) fn agent_until(
    targets: Vec<Arc<dyn Volume>>,
    knowledge: Vec<TargetKnowledge>,
    fault: Fault,
    killed: Arc<AtomicBool>,
) -> (RestoreLink, JoinHandle<Done>) {
    let (to_agent, mut orders) = mpsc::channel(8);
    let (answers, from_agent) = mpsc::channel(8);
    let play = move || {
        let mut done = Done::default();
        let (mut count, mut writes) = (0, 0);
        loop {
            let order = match orders.try_recv() {
                Ok(order) => order,
                Err(TryRecvError::Empty) if !killed.load(Ordering::SeqCst) => {
                    std::thread::sleep(Duration::from_micros(200));
                    continue;
                }
                Err(_) => return done,
            };
            count += 1;
            if fault == Fault::GoneAfter(count) {
                return done;
            }
            let Some(answer) = obey(&targets, &knowledge, fault, order, &mut done, &mut writes) else {
                continue;
            };
            if answers.blocking_send(answer).is_err() {
                return done;
            }
        }
    };
    (RestoreLink { to_agent, from_agent }, std::thread::spawn(play))
}

fn obey(
    targets: &[Arc<dyn Volume>],
    knowledge: &[TargetKnowledge],
    fault: Fault,
    order: ServerMessage,
    done: &mut Done,
    writes: &mut u64,
) -> Option<AgentMessage> {
    let target = |disk: DiskIndex| &targets[usize::from(disk.0)];
    let class = RequestClass::Background;
    match order {
        ServerMessage::RestoreBegin(begin) if fault == Fault::Refuses => {
            let reason = "/dev/x is mounted".into();
            Some(AgentMessage::RestoreFailed { restore: begin.restore, reason })
        }
        ServerMessage::RestoreBegin(begin) => Some(AgentMessage::RestoreReady(RestoreReady {
            restore: begin.restore,
            disks: knowledge.to_vec(),
        })),
        ServerMessage::RestoreHash { restore, disk, range } => {
            done.hashed += range.len().get();
            let hash = |block: Extent| {
                let mut bytes = vec![0; block.len().as_usize()];
                target(disk).read_at(block.start(), &mut bytes, class).unwrap();
                Some(*blake3::hash(&bytes).as_bytes())
            };
            let hashes = range.split(BLOCK.len()).map(hash).collect();
            let purpose = HashPurpose::Restore { restore };
            Some(AgentMessage::Hashes(HashReport { purpose, disk, range, block: BLOCK, hashes }))
        }
        ServerMessage::RestoreRead { restore, disk, range } => {
            done.read += range.len().get();
            let mut bytes = vec![0; range.len().as_usize()];
            target(disk).read_at(range.start(), &mut bytes, class).unwrap();
            let payload = if blocks::is_zero(&bytes) { Payload::Zero } else { Payload::Data(bytes) };
            Some(AgentMessage::RestoreData { restore, disk, extent: range, payload })
        }
        ServerMessage::RestoreWrite { disk, extent, payload, .. } => {
            *writes += 1;
            match &payload {
                Payload::Data(bytes) => done.written += bytes.len() as u64,
                Payload::Zero => done.zeroed += extent.len().get(),
            }
            if fault == Fault::LosesAll || fault == Fault::LosesWrite(*writes) {
                return None;
            }
            match payload {
                Payload::Data(bytes) => target(disk).write_at(extent.start(), &bytes, false, class).unwrap(),
                Payload::Zero => target(disk).write_zeroes(extent, false, false, class).unwrap(),
            }
            None
        }
        ServerMessage::RestoreSync { restore, sync } => Some(AgentMessage::RestoreSynced { restore, sync }),
        ServerMessage::RestoreFinish { restore, generation, checkpoint, seqs } => {
            done.finished = Some((generation.0, checkpoint.0));
            done.seqs = seqs;
            (fault != Fault::SilentAtFinish).then_some(AgentMessage::RestoreFinished { restore })
        }
        ServerMessage::RestoreAbort { .. } => {
            done.aborted = true;
            None
        }
        other => panic!("not an order of a restore: {other:?}"),
    }
}

pub(crate) fn machine_id() -> MachineId {
    MACHINE.parse().unwrap()
}

pub(crate) fn foreign_store() -> StoreId {
    StoreId(Id::from_bytes([9; 16]).unwrap())
}
