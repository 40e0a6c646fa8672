//! Group commit: what many writes share is one sync, and only what a sync has covered is acknowledged.

use super::source::Source;
use blocks::{ByteLen, DiskIndex, crash_point};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the first write of a group waits for company.
const GROUP_TIME: Duration = Duration::from_millis(20);
/// How many bytes are enough for a group.
const GROUP_BYTES: ByteLen = ByteLen::new(8 << 20);

/// Written data on its way to the medium.
#[derive(Debug)]
pub(crate) struct Commit {
    source: Arc<Source>,
    group: Mutex<Group>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Group {
    /// Which disks were written to.
    disks: Vec<bool>,
    bytes: ByteLen,
    /// When the first of them was.
    since: Option<Instant>,
    closing: bool,
}

impl Commit {
    pub fn new(source: Arc<Source>) -> Commit {
        let group = Group { disks: vec![false; source.disks.len()], ..Group::default() };
        Commit { source, group: Mutex::new(group), wake: Condvar::new() }
    }

    /// A write is with the kernel.
    pub fn written(&self, disk: DiskIndex, len: ByteLen) {
        let mut group = self.lock();
        if let Some(touched) = group.disks.get_mut(usize::from(disk.0)) {
            *touched = true;
        }
        group.bytes += len;
        let first = group.since.is_none();
        group.since.get_or_insert_with(Instant::now);
        if first || group.bytes >= GROUP_BYTES {
            self.wake.notify_one();
        }
    }

    /// Nothing more will be written; what was is still committed.
    pub fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
    }

    /// Commits group after group until closed; the body of the committing thread.
    pub fn run(&self) {
        loop {
            let (disks, closing) = self.next_group();
            let touched = (0..).zip(disks).filter_map(|(index, touched)| touched.then_some(DiskIndex(index)));
            for disk in touched {
                let committed = self.source.disk(disk).and_then(|volume| volume.sync());
                crash_point("ingest.synced");
                if let Err(error) = committed.and_then(|durable| self.source.acknowledge(disk, durable)) {
                    return self.source.fail(error.context(format_args!("committing disk {disk}")));
                }
            }
            if closing {
                return;
            }
        }
    }

    /// Waits until a group is due and takes it.
    fn next_group(&self) -> (Vec<bool>, bool) {
        let mut group = self.lock();
        loop {
            let waited = group.since.map(|since| since.elapsed());
            match waited {
                _ if group.closing || group.bytes >= GROUP_BYTES => break,
                Some(waited) if waited >= GROUP_TIME => break,
                Some(waited) => {
                    let result = self.wake.wait_timeout(group, GROUP_TIME - waited);
                    group = result.unwrap_or_else(PoisonError::into_inner).0;
                }
                None => group = self.wake.wait(group).unwrap_or_else(PoisonError::into_inner),
            }
        }
        let disks = vec![false; group.disks.len()];
        group.bytes = ByteLen::ZERO;
        group.since = None;
        (std::mem::replace(&mut group.disks, disks), group.closing)
    }

    fn lock(&self) -> MutexGuard<'_, Group> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
