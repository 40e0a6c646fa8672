//! Group commit: what many writes share is one sync, and only what a sync has covered is acknowledged.

use super::source::Source;
use blocks::{ByteLen, DiskIndex, Durable, PlantedBug, Result, Synced, crash_point, monotonic_now};
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

impl Group {
    /// How long until the group has to be committed; `None` while there is nothing to commit.
    fn due_in(&self) -> Option<Duration> {
        if self.closing || self.bytes >= GROUP_BYTES {
            return Some(Duration::ZERO);
        }
        let waited = monotonic_now().saturating_duration_since(self.since?);
        Some(GROUP_TIME.saturating_sub(waited))
    }

    /// The disks that were written to; from now on the group is empty.
    fn take(&mut self) -> Vec<bool> {
        let disks = vec![false; self.disks.len()];
        self.bytes = ByteLen::ZERO;
        self.since = None;
        std::mem::replace(&mut self.disks, disks)
    }
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
        group.since.get_or_insert_with(monotonic_now);
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
            if !self.commit(&disks) || closing {
                return;
            }
        }
    }

    /// Commits the group that is due, if one is, without waiting. Whether it may go on.
    #[cfg(feature = "simulation")]
    pub fn step(&self) -> bool {
        let mut group = self.lock();
        match group.due_in() {
            Some(Duration::ZERO) => {
                let disks = group.take();
                drop(group);
                self.commit(&disks)
            }
            _ => !group.closing,
        }
    }

    /// Syncs these disks and acknowledges what that has covered; `false` where the ingest has failed.
    fn commit(&self, disks: &[bool]) -> bool {
        let touched = (0..).zip(disks).filter_map(|(index, touched)| touched.then_some(DiskIndex(index)));
        for disk in touched {
            if let Err(error) = self.commit_disk(disk) {
                self.source.fail(error.context(format_args!("committing disk {disk}")));
                return false;
            }
        }
        true
    }

    fn commit_disk(&self, disk: DiskIndex) -> Result<()> {
        let volume = self.source.disk(disk)?;
        if PlantedBug::AcknowledgementBeforeSync.is_planted() {
            let lie = Durable::new(volume.last_seq(), Synced::after_completed_sync());
            self.source.acknowledge(disk, lie)?;
        }
        let durable = volume.sync()?;
        crash_point("ingest.synced");
        self.source.acknowledge(disk, durable)
    }

    /// Waits until a group is due and takes it.
    fn next_group(&self) -> (Vec<bool>, bool) {
        let mut group = self.lock();
        loop {
            match group.due_in() {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let result = self.wake.wait_timeout(group, left);
                    group = result.unwrap_or_else(PoisonError::into_inner).0;
                }
                None => group = self.wake.wait(group).unwrap_or_else(PoisonError::into_inner),
            }
        }
        (group.take(), group.closing)
    }

    fn lock(&self) -> MutexGuard<'_, Group> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
