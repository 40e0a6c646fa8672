//! One queue of a device: a thread that takes requests from the driver and answers them.
//!
//! The driver has one thread answer for a queue, so what takes long goes to the workers and comes back here. What is short is
//! done here, one after the other, where the volume has been quick: waking somebody else takes longer.

use crate::abi::{COMMIT_AND_FETCH_REQ, Descriptor, FETCH_REQ, IoCommand, QUEUE_DEPTH_MAX};
use crate::request::Request;
use crate::workers::{AbortOnPanic, Done, Job, Workers};
use blocks::AlignedBuffer;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A volume that answers sooner is asked here.
const QUICK: Duration = Duration::from_micros(60);
/// After so many requests that others did, it is tried here again: threads that wait for each other look slow.
const TRY_AGAIN: u32 = 1024;
/// Marks what is no tag.
const WAKE: u64 = u64::MAX;

/// What a device's queues have in common.
pub(crate) struct Common {
    /// `/dev/ublkcN`.
    pub(crate) character: File,
    pub(crate) volume: Arc<dyn blocks::Volume>,
    pub(crate) workers: Workers,
    /// Requests a queue, and bytes a request.
    pub(crate) depth: u16,
    pub(crate) buffer_bytes: usize,
}

/// See the module; lives on its own thread.
struct Queue<'a> {
    number: u16,
    common: &'a Common,
    ring: IoUring,
    descriptors: Descriptors,
    /// By tag; with the workers where it is missing.
    buffers: Vec<Option<AlignedBuffer>>,
    done: Arc<Done>,
    /// What reading `done`'s descriptor fills.
    woken: Box<u64>,
    /// Tags that the driver still uses.
    live: usize,
    /// Requests that the workers have.
    away: usize,
    /// How long short requests took lately, as a mean that forgets.
    lately: Duration,
    /// Requests that went to the workers since one was tried here.
    handed: u32,
}

/// Serves a queue until the device is stopped. Calls `ready` when the driver can send requests, or cannot.
pub(crate) fn serve(number: u16, common: &Common, ready: impl FnOnce(io::Result<()>)) {
    let guard = AbortOnPanic;
    match Queue::begin(number, common) {
        Ok(mut queue) => {
            ready(Ok(()));
            if let Err(error) = queue.run() {
                // Nobody answers for the queue from here on, unless another process takes over.
                tracing::error!("queue {number} of a block device: {error}");
                std::process::abort();
            }
        }
        Err(error) => ready(Err(error)),
    }
    std::mem::forget(guard);
}

impl<'a> Queue<'a> {
    fn begin(number: u16, common: &'a Common) -> io::Result<Queue<'a>> {
        let depth = usize::from(common.depth);
        let entries = u32::from(common.depth) + 1;
        // Answers are looked for at calls alone: nobody has to be interrupted for them.
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .build(entries.next_power_of_two())?;
        let mut queue = Queue {
            number,
            common,
            ring,
            descriptors: Descriptors::map(&common.character, number, common.depth)?,
            buffers: (0..depth).map(|_| Some(AlignedBuffer::new(common.buffer_bytes))).collect(),
            done: Arc::new(Done::new()?),
            woken: Box::new(0),
            live: depth,
            away: 0,
            lately: Duration::ZERO,
            handed: 0,
        };
        queue.listen()?;
        for tag in 0..common.depth {
            queue.command(FETCH_REQ, tag, 0)?;
        }
        queue.ring.submit()?;
        Ok(queue)
    }

    fn run(&mut self) -> io::Result<()> {
        let mut arrived = Vec::with_capacity(self.buffers.len());
        while self.live > 0 || self.away > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let mut woken = false;
            for entry in self.ring.completion() {
                match (entry.user_data(), entry.result()) {
                    (WAKE, _) => woken = true,
                    (tag, 0) => arrived.push(u16::try_from(tag).unwrap_or(u16::MAX)),
                    (_, errno) if errno == -libc::ENODEV => self.live -= 1,
                    (tag, errno) => {
                        let error = io::Error::from_raw_os_error(-errno);
                        return Err(io::Error::new(error.kind(), format!("request {tag}: {error}")));
                    }
                }
            }
            if woken {
                self.take_answers()?;
                self.listen()?;
            }
            let alone = arrived.len() == 1 && self.away == 0;
            for tag in arrived.drain(..) {
                self.handle(tag, alone)?;
            }
        }
        Ok(())
    }

    /// Does a request, or has it done.
    fn handle(&mut self, tag: u16, alone: bool) -> io::Result<()> {
        let request = Request::of(&self.descriptors.get(tag));
        let missing = || io::Error::other(format!("request {tag} came twice"));
        let slot = self.buffers.get_mut(usize::from(tag)).ok_or_else(missing)?;
        let try_again = self.handed >= TRY_AGAIN;
        if request.is_short() && (alone || self.lately < QUICK || try_again) {
            let buffer = slot.as_mut().ok_or_else(missing)?;
            let began = Instant::now();
            let result = request.perform(&*self.common.volume, buffer);
            let took = began.elapsed();
            self.lately = if try_again { took } else { (self.lately * 7 + took) / 8 };
            self.handed = 0;
            return self.command(COMMIT_AND_FETCH_REQ, tag, result);
        }
        let buffer = slot.take().ok_or_else(missing)?;
        self.away += 1;
        self.handed += 1;
        self.common.workers.put(Job { tag, request, buffer, done: Arc::clone(&self.done) });
        Ok(())
    }

    fn take_answers(&mut self) -> io::Result<()> {
        for answer in self.done.take() {
            self.away -= 1;
            self.buffers[usize::from(answer.tag)] = Some(answer.buffer);
            self.command(COMMIT_AND_FETCH_REQ, answer.tag, answer.result)?;
        }
        Ok(())
    }

    /// Tells the driver what came of a request, and where the next one of the tag has its bytes.
    fn command(&mut self, order: u32, tag: u16, result: i32) -> io::Result<()> {
        let buffer = self.buffers[usize::from(tag)].as_ref().expect("it is not with the workers");
        let addr = buffer.as_ptr().addr() as u64;
        let command = IoCommand { q_id: self.number, tag, result, addr };
        let character = types::Fd(self.common.character.as_raw_fd());
        let entry = opcode::UringCmd16::new(character, order).cmd(command.bytes()).build();
        self.push(&entry.user_data(u64::from(tag)))
    }

    /// Asks to be woken when workers have finished something.
    fn listen(&mut self) -> io::Result<()> {
        let into = (&raw mut *self.woken).cast();
        let entry = opcode::Read::new(types::Fd(self.done.wake().as_raw_fd()), into, 8).build();
        self.push(&entry.user_data(WAKE))
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: buffers and `woken` stay where they are until the queue is dropped, and by then the driver has let go of its
            // tags; what still waits to be woken ends with the ring, which is dropped before them.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }
}

/// What the driver asks, by tag: memory that is shared with it, for reading.
struct Descriptors {
    start: *mut Descriptor,
    bytes: usize,
}

impl Descriptors {
    fn map(character: &File, queue: u16, depth: u16) -> io::Result<Descriptors> {
        let bytes = usize::from(depth) * size_of::<Descriptor>();
        let offset = u64::from(queue) * QUEUE_DEPTH_MAX * size_of::<Descriptor>() as u64;
        let none = std::ptr::null_mut();
        // SAFETY: a new mapping, wherever there is room.
        let start = unsafe {
            mmap(none, bytes, ProtFlags::READ, MapFlags::SHARED | MapFlags::POPULATE, character, offset)
        }?;
        Ok(Descriptors { start: start.cast(), bytes })
    }

    fn get(&self, tag: u16) -> Descriptor {
        assert!((usize::from(tag) + 1) * size_of::<Descriptor>() <= self.bytes, "tag {tag}");
        // SAFETY: within the mapping; the driver leaves it alone until the request is answered.
        unsafe { self.start.add(usize::from(tag)).read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has a reference into it.
        if let Err(error) = unsafe { munmap(self.start.cast(), self.bytes) } {
            tracing::warn!("a queue's memory: {error}");
        }
    }
}
