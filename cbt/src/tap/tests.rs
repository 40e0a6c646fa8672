//! A tap over a disk and a log in memory, with a server that is another disk: random writes, flushes, cuts, kills. After
//! each step what differs lies in regions that the log on its medium has on; each instant is a state that the disk had.

use super::activity::{Activity, Slots};
use super::disk::Parts;
use super::medium::Medium;
use super::slot::{SLOT_BYTES, Slot};
use super::*;
use crate::link::link;
use crate::tracker::{Base, Tracker, Trust};
use blocks::{
    AlignedBuffer, ByteOffset, Error, ErrorKind, Extent, Generation, Id, MachineId, RequestClass, Seq,
    StoreId,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{HashSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

const DISK: usize = 8 << 20;
const SLOT: u64 = 4096;
/// What is written to: eight blocks of each MiB.
const PLACES: u64 = 64;
const MIB: u64 = 1 << 20;

fn place(number: u64) -> Extent {
    Extent::new(ByteOffset::new(number * (DISK as u64 / PLACES)), ByteLen::new(SLOT)).unwrap()
}

/// What outlives a process. After `left` more operations nothing has an effect any more.
struct World {
    disk: Mutex<Vec<u8>>,
    slots: Mutex<[Vec<u8>; 2]>,
    left: AtomicI64,
    failing_write: AtomicI64,
}

impl World {
    fn new() -> Arc<World> {
        let slots = Mutex::new([vec![0; SLOT_BYTES], vec![0; SLOT_BYTES]]);
        let (left, failing_write) = (AtomicI64::new(i64::MAX), AtomicI64::new(i64::MAX));
        Arc::new(World { disk: Mutex::new(vec![0; DISK]), slots, left, failing_write })
    }

    /// Whether the process lives to see this operation through; the first that it does not may be torn.
    fn step(&self) -> i64 {
        self.left.fetch_sub(1, Ordering::SeqCst)
    }

    fn dead(&self) -> Error {
        Error::new(ErrorKind::Io, "killed")
    }

    fn found(&self) -> Vec<Slot> {
        self.slots.lock().unwrap().iter().filter_map(|bytes| Slot::decode(bytes).ok()).collect()
    }

    fn state(&self) -> Vec<u64> {
        state_of(&self.disk.lock().unwrap())
    }
}

fn state_of(disk: &[u8]) -> Vec<u64> {
    let first = |number| {
        let at = place(number).start().get() as usize;
        u64::from_le_bytes(disk[at..at + 8].try_into().unwrap())
    };
    (0..PLACES).map(first).collect()
}

struct Bare(Arc<World>);

impl Medium for Bare {
    fn read(&self, extent: Extent, buffer: &mut AlignedBuffer) -> Result<()> {
        let from = extent.start().get() as usize;
        let len = extent.len().as_usize();
        buffer[..len].copy_from_slice(&self.0.disk.lock().unwrap()[from..from + len]);
        Ok(())
    }

    fn write(&self, extent: Extent, buffer: &AlignedBuffer) -> Result<()> {
        let from = extent.start().get() as usize;
        let fails = self.0.failing_write.fetch_sub(1, Ordering::SeqCst) == 0;
        match self.0.step() {
            1.. if !fails => self.0.disk.lock().unwrap()[from..from + buffer.len()].copy_from_slice(buffer),
            // A torn write: some of its sectors.
            0 => {
                self.0.disk.lock().unwrap()[from..from + 512].copy_from_slice(&buffer[..512]);
                return Err(self.0.dead());
            }
            _ => {
                if fails {
                    self.0.disk.lock().unwrap()[from..from + 512].copy_from_slice(&buffer[..512]);
                }
                return Err(self.0.dead());
            }
        }
        Ok(())
    }

    fn zero(&self, extent: Extent, _punch: bool) -> Result<()> {
        let (from, len) = (extent.start().get() as usize, extent.len().as_usize());
        if self.0.step() < 0 {
            return Err(self.0.dead());
        }
        self.0.disk.lock().unwrap()[from..from + len].fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if self.0.step() < 0 { Err(self.0.dead()) } else { Ok(()) }
    }
}

impl Slots for Bare {
    fn write(&self, slot: u64, bytes: &[u8]) -> Result<()> {
        let left = self.0.step();
        let kept = match left {
            1.. => bytes.len(),
            0 => bytes.len() / 16,
            _ => return Err(self.0.dead()),
        };
        self.0.slots.lock().unwrap()[slot as usize][..kept].copy_from_slice(&bytes[..kept]);
        if left > 0 { Ok(()) } else { Err(self.0.dead()) }
    }

    fn destroy(&self) -> Result<()> {
        Err(self.0.dead())
    }
}

/// A write and whether it is said to be in order, or an instant.
type Message = Option<(Extent, Vec<u8>, bool)>;

/// The server's copy of the disk.
struct Server {
    disk: Vec<u8>,
    /// The last number that it has.
    has: Seq,
    /// The last number that was sent.
    last: Seq,
    acked: Seq,
    /// Since the last instant every write was said to be in order.
    in_order: bool,
    /// Sent, on its way: a write under its number, or an instant.
    coming: VecDeque<(Seq, Message)>,
}

struct Play {
    random: StdRng,
    world: Arc<World>,
    server: Server,
    tap: Arc<TapDisk>,
    order: Arc<Order>,
    takings: Vec<(u64, Seq)>,
    connected: bool,
    token: u64,
    /// Every state that the disk had between two writes.
    states: HashSet<Vec<u64>>,
    /// Whether instants are looked at: not where several threads write at once.
    states_count: bool,
    instants: u32,
    /// How often a write alone was a state that can be asked for.
    moments: u32,
    compared: u64,
}

fn open(world: &Arc<World>) -> (Arc<TapDisk>, Arc<Order>) {
    let order = Arc::new(Order::new(ByteLen::new(64 << 10), Duration::ZERO));
    let len = ByteLen::new(DISK as u64);
    let slots = Box::new(Bare(Arc::clone(world)));
    let (activity, logged) = Activity::open(slots, world.found(), "memory", len).unwrap();
    let medium = Box::new(Bare(Arc::clone(world)));
    let (index, name) = (DiskIndex(0), "memory".to_owned());
    let sector = BlockShift::SECTOR;
    let tap =
        TapDisk::new(Parts { index, name, len, sector, medium, activity, logged, order: order.clone() });
    (Arc::new(tap), order)
}

impl Play {
    fn new(seed: u64) -> Play {
        let world = World::new();
        let (tap, order) = open(&world);
        let (has, last, acked, coming) = (Seq(0), Seq(0), Seq(0), VecDeque::new());
        let server = Server { disk: vec![0; DISK], has, last, acked, in_order: false, coming };
        let states = HashSet::from([world.state()]);
        let random = StdRng::seed_from_u64(seed);
        let mut play = Play {
            random,
            world,
            server,
            tap,
            order,
            takings: Vec::new(),
            connected: false,
            token: 0,
            states,
            states_count: true,
            instants: 0,
            moments: 0,
            compared: 0,
        };
        assert!(!Tracker::trust(&*play.tap).is_trusted());
        play.connect(true);
        play
    }

    fn base(&self, sent: Seq) -> Base {
        let id = Id::from_bytes([7; 16]).unwrap();
        let (store, machine, generation) = (StoreId(id), MachineId(id), Generation(1));
        Base { store, machine, generation, acked: self.server.acked, sent }
    }

    /// A number for the next write, noted ahead like the outbox does.
    fn number(&mut self) -> Result<Seq> {
        let seq = self.server.last.next();
        if Tracker::base(&*self.tap).is_none_or(|base| base.sent < seq) {
            Tracker::set_base(&*self.tap, self.base(Seq(seq.0 + 16)))?;
        }
        self.server.last = seq;
        Ok(seq)
    }

    fn copy_to_server(&mut self, extent: Extent) -> Result<()> {
        let (from, len) = (extent.start().get() as usize, extent.len().as_usize());
        let bytes = self.world.disk.lock().unwrap()[from..from + len].to_vec();
        let seq = self.number()?;
        self.server.coming.push_back((seq, Some((extent, bytes, false))));
        Ok(())
    }

    /// So much of what is on its way arrives.
    fn arrive(&mut self, count: usize) {
        for (seq, what) in self.server.coming.drain(..count).collect::<Vec<_>>() {
            self.server.has = seq;
            match what {
                Some((extent, bytes, in_order)) => {
                    let from = extent.start().get() as usize;
                    self.server.disk[from..from + bytes.len()].copy_from_slice(&bytes);
                    self.server.in_order &= in_order;
                    if self.server.in_order {
                        self.moments += 1;
                        self.assert_once_was();
                    }
                }
                None => {
                    self.instants += 1;
                    self.server.in_order = true;
                    self.assert_once_was();
                }
            }
        }
    }

    fn assert_once_was(&self) {
        let state = state_of(&self.server.disk);
        assert!(!self.states_count || self.states.contains(&state), "the disk never was like that");
    }

    /// The connection ends: some of what was on its way arrives, and the rest never.
    fn lose(&mut self) {
        let arriving = self.random.random_range(0..=self.server.coming.len());
        self.arrive(arriving);
        self.server.coming.clear();
    }

    /// Connects; `whole`: everything is compared, as at the first start.
    fn connect(&mut self, whole: bool) {
        self.connected = true;
        self.server.acked = self.server.has;
        let doubtful = if whole {
            Extent::whole(Volume::len(&*self.tap)).into_iter().collect()
        } else {
            Tracker::doubtful(&*self.tap)
        };
        if !doubtful.is_empty() {
            let scan = Tracker::begin_scan(&*self.tap, Duration::ZERO).unwrap();
            self.order.abandon("compared", |_, extent| Tracker::mark(&*self.tap, &[extent]).unwrap());
            for (extent, ()) in doubtful.iter() {
                self.compared += if whole { 0 } else { extent.len().get() };
                self.copy_to_server(extent).unwrap();
            }
            self.arrive(self.server.coming.len());
            self.server.acked = self.server.has;
            Tracker::finish_scan(&*self.tap, scan, self.base(Seq(self.server.last.0 + 16))).unwrap();
        }
        let durable = self.server.has;
        let (a_link, _ends) = link();
        self.order.connected(|_| durable, a_link.nudge());
    }

    fn cut(&mut self) {
        self.connected = false;
        self.lose();
        self.order.disconnected(!self.takings.is_empty());
        self.takings.clear();
        Tracker::requeue(&*self.tap).unwrap();
    }

    fn acknowledge(&mut self) {
        let arriving = self.random.random_range(0..=self.server.coming.len());
        self.arrive(arriving);
        let acked = Seq(self.random.random_range(self.server.acked.0..=self.server.has.0));
        self.server.acked = acked;
        let sent = Tracker::base(&*self.tap).map_or(Seq(0), |base| base.sent);
        Tracker::set_base(&*self.tap, self.base(sent)).unwrap();
        self.order.acknowledged(|_| acked);
        let tap = &self.tap;
        self.takings.retain(|(number, last)| {
            let open = *last > acked;
            if !open {
                Tracker::acknowledge(&**tap, *number).unwrap();
            }
            open
        });
    }

    /// One thing that the worker does, as the agent's `replicate_tapped` does it; an error is its death.
    fn work(&mut self) -> Result<()> {
        if !self.connected {
            return Ok(());
        }
        match (self.order.next(1, 1).pop(), self.order.mode()) {
            (Some(Next::Write(OrderedWrite { extent, payload, completed, .. })), _) => {
                let seq = self.number()?;
                let bytes = payload.map_or_else(|| vec![0; extent.len().as_usize()], |data| data.to_vec());
                self.server.coming.push_back((seq, Some((extent, bytes, completed.is_some()))));
                self.order.sent(&[Some(seq)]);
            }
            (Some(Next::Instant(_)), _) => {
                self.server.coming.push_back((self.server.last, None));
                self.order.sent(&[None]);
            }
            (None, Mode::Marking) => {
                self.copy_marks()?;
                if self.random.random_bool(0.5) {
                    self.order.join();
                }
            }
            (None, Mode::Joining) => {
                if !self.copy_marks()? {
                    self.order.joined();
                }
            }
            (None, Mode::Ordered) => {}
        }
        Ok(())
    }

    fn copy_marks(&mut self) -> Result<bool> {
        let taking = Tracker::take(&*self.tap, ByteLen::new(1 << 16)).unwrap();
        for extent in &taking.extents {
            self.copy_to_server(*extent)?;
        }
        let any = !taking.extents.is_empty();
        if any {
            self.takings.push((taking.number, self.server.last));
        }
        Ok(any)
    }

    /// A process dies; whether by itself, in the middle of an operation, or from outside.
    fn kill(&mut self) {
        self.world.left.store(i64::MAX, Ordering::SeqCst);
        self.takings.clear();
        self.lose();
        (self.tap, self.order) = open(&self.world);
        self.check();
        self.states.insert(self.world.state());
        assert!(Tracker::trust(&*self.tap).is_trusted(), "{:?}", Tracker::trust(&*self.tap));
        self.connect(false);
        assert!(self.server.disk == *self.world.disk.lock().unwrap(), "only what was doubtful was compared");
    }

    fn write(&mut self) {
        self.token += 1;
        let extent = place(self.random.random_range(0..PLACES));
        let done = match self.random.random_range(0..10) {
            0 => self.tap.write_zeroes(extent, true, false, RequestClass::Guest),
            1 => self.tap.discard(extent, false, RequestClass::Guest),
            _ => {
                let bytes = self.token.to_le_bytes().repeat(SLOT as usize / 8);
                self.tap.write_at(extent.start(), &bytes, false, RequestClass::Guest)
            }
        };
        // A write that failed may have changed the disk, and so does one that was torn.
        self.states.insert(self.world.state());
        if done.is_err() && self.world.left.load(Ordering::SeqCst) < 0 {
            self.kill();
        }
    }

    /// What differs lies in regions that are on in the newest slot on the medium, where the log is trusted.
    fn check(&self) {
        let newest = self.world.found().into_iter().max_by_key(|slot| slot.number).unwrap();
        if newest.trust != Trust::Trusted {
            return;
        }
        let disk = self.world.disk.lock().unwrap();
        for extent in (0..PLACES).map(place) {
            let range = extent.start().get() as usize..extent.end().get() as usize;
            let (equal, region) =
                (disk[range.clone()] == self.server.disk[range], extent.start().get() / MIB);
            assert!(equal || newest.on.is_on(region), "region {region} differs and is off");
        }
        assert!(newest.base.is_some_and(|base| base.acked <= self.server.acked));
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..=44 => self.write(),
            45..=54 => {
                let _ = self.tap.flush();
            }
            55..=84 => {
                let _ = self.work();
            }
            85..=92 => self.acknowledge(),
            93 if self.connected => self.cut(),
            93..=95 if !self.connected => self.connect(false),
            96 => self.world.left.store(self.random.random_range(0..20), Ordering::SeqCst),
            97 => self.world.failing_write.store(self.random.random_range(0..5), Ordering::SeqCst),
            98 => {
                let _ = self.tap.rest(true);
            }
            _ => {}
        }
        if self.world.left.load(Ordering::SeqCst) < 0 {
            self.kill();
        }
        self.check();
    }
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("UNDERSTUDY_SEED").unwrap_or_else(|| rand::rng().random_range(0..1 << 32));
    first..first + number("UNDERSTUDY_STORIES").unwrap_or(4)
}

#[test]
fn whatever_happens_what_differs_is_on_in_the_log_and_instants_are_states_of_the_disk() {
    let (mut instants, mut moments, mut compared) = (0, 0, 0);
    for seed in seeds() {
        println!("UNDERSTUDY_SEED={seed}");
        let mut play = Play::new(seed);
        (0..1500).for_each(|_| play.step());
        play.world.left.store(i64::MAX, Ordering::SeqCst);
        play.world.failing_write.store(i64::MAX, Ordering::SeqCst);
        if !play.connected {
            play.connect(false);
        }
        for _ in 0..2000 {
            play.work().unwrap();
            play.acknowledge();
        }
        assert_eq!(play.order.mode(), Mode::Ordered);
        play.arrive(play.server.coming.len());
        assert!(play.server.disk == *play.world.disk.lock().unwrap(), "at rest both are equal");
        play.arrive(play.server.coming.len());
        play.server.acked = play.server.has;
        play.acknowledge();
        play.tap.rest(true).unwrap();
        assert!(play.world.found().iter().max_by_key(|slot| slot.number).unwrap().on.iter().next().is_none());
        instants += play.instants;
        moments += play.moments;
        compared += play.compared;
    }
    println!("{instants} instants, {moments} single writes, {compared} bytes compared after kills");
    assert!(instants > 100 && moments > 100, "{instants}, {moments}");
}

#[test]
fn threads_that_overlap_leave_server_and_disk_equal() {
    let world = World::new();
    let mut play = Play::new(1);
    (play.tap, play.order) = open(&world);
    play.world = Arc::clone(&world);
    play.states_count = false;
    play.connect(true);
    play.order.join();
    assert!(play.order.joined());
    let tap = Arc::clone(&play.tap);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4u64)
            .map(|thread| {
                let tap = Arc::clone(&tap);
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(thread);
                    for round in 0..500u64 {
                        let at =
                            place(random.random_range(0..4)).start().get() + 512 * random.random_range(0..8);
                        let bytes = (thread << 32 | round).to_le_bytes().repeat(512 * 8 / 8);
                        tap.write_at(ByteOffset::new(at), &bytes, false, RequestClass::Guest).unwrap();
                    }
                })
            })
            .collect();
        while !writers.iter().all(std::thread::ScopedJoinHandle::is_finished) || !play.order.is_drained() {
            play.work().unwrap();
            play.acknowledge();
        }
    });
    for _ in 0..2000 {
        play.work().unwrap();
        play.acknowledge();
    }
    play.arrive(play.server.coming.len());
    assert!(play.server.disk == *world.disk.lock().unwrap());
}

#[test]
fn what_a_full_queue_has_marked_is_not_read_before_what_was_in_it_is_sent() {
    let mut play = Play::new(7);
    play.states_count = false;
    play.order.join();
    let write = |play: &Play, at: u64, byte: u8| {
        let bytes = [byte; SLOT as usize];
        play.tap.write_at(place(at).start(), &bytes, false, RequestClass::Guest).unwrap();
    };
    write(&play, 0, 1);
    for at in 1.. {
        write(&play, at, 1);
        if play.order.mode() == Mode::Marking {
            break;
        }
    }
    // Newer than the one in the queue, which must not come behind it.
    write(&play, 0, 2);
    let mut taken = Vec::new();
    while !play.order.is_drained() {
        taken.extend(Tracker::take(&*play.tap, ByteLen::new(1 << 20)).unwrap().extents);
        play.work().unwrap();
    }
    assert_eq!(taken, [], "marks wait for the queue");
    while play.order.mode() != Mode::Ordered {
        play.work().unwrap();
    }
    play.arrive(play.server.coming.len());
    assert!(play.server.disk == *play.world.disk.lock().unwrap());
}

/// What was marked, and lost on its way, comes again behind what waits: that one is no state of the disk.
#[test]
fn what_comes_before_marks_that_were_lost_is_not_said_to_be_in_order() {
    let mut play = Play::new(11);
    let write = |play: &mut Play, at: u64, byte: u8| {
        let bytes = [byte; SLOT as usize];
        play.tap.write_at(place(at).start(), &bytes, false, RequestClass::Guest).unwrap();
        play.states.insert(play.world.state());
    };
    play.order.join();
    assert!(play.order.joined());
    for at in 1.. {
        write(&mut play, at % PLACES, 1);
        if play.order.mode() == Mode::Marking {
            break;
        }
    }
    write(&mut play, 0, 2);
    while !play.order.is_drained() {
        play.work().unwrap();
    }
    play.arrive(play.server.coming.len());
    assert!(play.server.in_order && play.moments > 0, "all of that was in order");
    let has = play.server.has;
    play.order.acknowledged(|_| has);
    while play.order.mode() != Mode::Ordered {
        play.work().unwrap();
    }
    write(&mut play, 1, 3);
    assert_eq!(play.order.mode(), Mode::Ordered);
    play.server.coming.clear();
    play.order.disconnected(!play.takings.is_empty());
    play.takings.clear();
    Tracker::requeue(&*play.tap).unwrap();
    play.connect(false);
    while !play.order.is_drained() {
        play.work().unwrap();
    }
    play.arrive(play.server.coming.len());
    assert!(!play.server.in_order);
}

#[test]
fn a_disk_that_was_written_past_the_tap_is_compared_whole() {
    let mut play = Play::new(3);
    play.kill();
    let outside = Extent::new(ByteOffset::new(3 * MIB), ByteLen::new(65536)).unwrap();
    let inside = Extent::new(ByteOffset::new(5 * MIB), ByteLen::new(65536)).unwrap();
    play.tap.write_at(inside.start(), &[1; 512], false, RequestClass::Guest).unwrap();
    let scan = Tracker::begin_scan(&*play.tap, Duration::ZERO).unwrap();
    play.tap.note_differing(&[inside]).unwrap();
    assert!(Tracker::trust(&*play.tap).is_trusted(), "the tap wrote there itself");
    play.tap.note_differing(&[outside]).unwrap();
    assert!(!Tracker::trust(&*play.tap).is_trusted());
    let base = play.base(Seq(100));
    assert_eq!(Tracker::finish_scan(&*play.tap, scan, base).unwrap_err().kind(), ErrorKind::Busy);
    let scan = Tracker::begin_scan(&*play.tap, Duration::ZERO).unwrap();
    Tracker::finish_scan(&*play.tap, scan, base).unwrap();
    assert!(Tracker::trust(&*play.tap).is_trusted());
}

#[test]
fn a_full_queue_marks_and_says_why_and_what_was_in_it_stays_in_order() {
    let mut play = Play::new(5);
    play.order.join();
    assert!(play.order.joined());
    let write = |play: &Play, at: u64| {
        play.tap
            .write_at(ByteOffset::new(at * SLOT), &[7; SLOT as usize], false, RequestClass::Guest)
            .unwrap();
    };
    write(&play, 0);
    play.tap.flush().unwrap();
    play.cut();
    (1..20).for_each(|at| write(&play, at));
    let (_, cause) = play.order.fallen().unwrap();
    assert!(cause.contains("no connection"), "{cause}");
    assert!(!Tracker::changed(&*play.tap).unwrap().is_empty());
    // The states of the disk that this play knows of are those that it wrote itself.
    play.states.insert(state_of(&{
        let mut disk = vec![0; DISK];
        disk[..SLOT as usize].fill(7);
        disk
    }));
    play.connect(false);
    while !play.order.is_drained() {
        play.work().unwrap();
    }
    play.arrive(play.server.coming.len());
    assert_eq!((play.order.mode(), play.instants), (Mode::Marking, 2));
    while play.copy_marks().unwrap() {}
    play.order.join();
    assert!(play.order.joined());
    assert!(play.order.fallen().is_none());
    play.arrive(play.server.coming.len());
    assert!(play.server.disk == *play.world.disk.lock().unwrap());
}

#[test]
fn large_requests_at_any_sector_are_whole() {
    let play = Play::new(7);
    play.order.join();
    assert!(play.order.joined());
    let bytes: Vec<u8> = (0..3 * MIB as usize).map(|at| (at / 512 * 7 + at % 251) as u8).collect();
    for (at, len) in [(MIB / 2, 2 * MIB + MIB / 2), (512, MIB), (MIB - 512, 1024)] {
        let data = &bytes[..len as usize];
        play.tap.write_at(ByteOffset::new(at), data, false, RequestClass::Guest).unwrap();
        let mut back = vec![0; data.len()];
        play.tap.read_at(ByteOffset::new(at), &mut back, RequestClass::Guest).unwrap();
        assert!(back == data);
        assert!(play.world.disk.lock().unwrap()[at as usize..][..data.len()] == *data);
    }
}
