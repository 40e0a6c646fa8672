//! Threads that do what would keep a queue's other requests waiting.

use crate::request::Request;
use blocks::{AlignedBuffer, Volume};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// How many requests a disk is asked at once, however many processors there are.
const WORKERS: usize = 16;

/// A request on its way, with the memory that it moves bytes to or from.
pub(crate) struct Job {
    pub(crate) tag: u16,
    pub(crate) request: Request,
    pub(crate) buffer: AlignedBuffer,
    /// Whose it is.
    pub(crate) done: Arc<Done>,
}

/// What workers have finished for one queue.
pub(crate) struct Done {
    answers: Mutex<Vec<Answer>>,
    wake: OwnedFd,
}

/// A request that is done.
pub(crate) struct Answer {
    pub(crate) tag: u16,
    pub(crate) result: i32,
    pub(crate) buffer: AlignedBuffer,
}

impl Done {
    pub(crate) fn new() -> std::io::Result<Done> {
        Ok(Done { answers: Mutex::default(), wake: eventfd(0, EventfdFlags::CLOEXEC)? })
    }

    /// Can be read once there are answers that were not taken.
    pub(crate) fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    /// All answers that there are.
    pub(crate) fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.answers())
    }

    fn put(&self, answer: Answer) {
        let mut answers = self.answers();
        answers.push(answer);
        let is_first = answers.len() == 1;
        drop(answers);
        // The others are taken with the first. It cannot fail: the counter is far from full.
        if is_first && let Err(error) = rustix::io::write(&self.wake, &1u64.to_ne_bytes()) {
            tracing::error!("an answer waits for the next: {error}");
        }
    }

    fn answers(&self) -> MutexGuard<'_, Vec<Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module. Dropping it waits for what is under way.
pub(crate) struct Workers {
    jobs: Arc<Jobs>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Jobs {
    waiting: Mutex<Waiting>,
    some: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    over: bool,
}

impl Workers {
    /// For this volume.
    pub(crate) fn start(volume: &Arc<dyn Volume>) -> std::io::Result<Workers> {
        let mut workers = Workers { jobs: Arc::default(), threads: Vec::new() };
        for number in 0..WORKERS {
            let (jobs, volume) = (Arc::clone(&workers.jobs), Arc::clone(volume));
            let thread = std::thread::Builder::new().name(format!("ublk-worker-{number}"));
            workers.threads.push(thread.spawn(move || {
                let guard = AbortOnPanic;
                while let Some(Job { tag, request, mut buffer, done }) = jobs.next() {
                    let result = request.perform(&*volume, &mut buffer);
                    done.put(Answer { tag, result, buffer });
                }
                std::mem::forget(guard);
            })?);
        }
        Ok(workers)
    }

    /// Has it done by whoever is free next.
    pub(crate) fn put(&self, job: Job) {
        self.jobs.lock().jobs.push_back(job);
        self.jobs.some.notify_one();
    }
}

impl Jobs {
    fn next(&self) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            match waiting.jobs.pop_front() {
                Some(job) => return Some(job),
                None if waiting.over => return None,
                None => waiting = self.some.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.jobs.lock().over = true;
        self.jobs.some.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A thread that panicked would leave requests unanswered for ever. Where the process ends, another takes over.
pub(crate) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
