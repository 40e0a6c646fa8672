//! Who is in a session's disk: clients over NBD, or one file of a mount; never both.
//!
//! ```text
//!   shut --open--> nobody <--enter, last leaves--> over NBD, so many clients
//!     ^                ^--enter, last leaves--> in a mount, one file, opened so often
//!     '--shut (waits for requests from a mount; whoever is inside there gets errors from then on)
//! ```
//!
//! A process that has ended may be inside for some moments more: its hang-up and its closes are told to us behind its
//! back. So whoever finds another inside waits for [`LEAVING`] before being refused, and a script that uses a disk over
//! NBD and then as a file is not refused by its own last command.

use crate::session::volume::lock;
use blocks::{
    Arrived, ByteLen, ByteOffset, Error, ErrorKind, Extent, ExtentStatus, RequestClass, Result, Volume,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// How long one may be inside after having ended, on a busy machine.
const LEAVING: Duration = Duration::from_secs(1);

/// The door of one disk.
pub(crate) struct Door {
    state: Mutex<State>,
    /// Told when the last one leaves, and when it is shut.
    left: Condvar,
    /// A request from a mount holds it, shared.
    passage: RwLock<Passage>,
}

/// The way to the disk while the door is open.
struct Passage {
    /// How often it was shut before.
    turn: u64,
    /// Let go of when it is shut, whoever is still inside.
    volume: Option<Arc<dyn Volume>>,
}

struct State {
    turn: u64,
    inside: Inside,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Inside {
    Shut,
    Nobody,
    Nbd { clients: usize },
    Mount { file: String, opens: usize },
}

/// Leaves when dropped.
pub(crate) struct Visit {
    door: Arc<Door>,
    turn: u64,
}

impl Door {
    /// A door that is shut.
    pub fn new() -> Arc<Door> {
        let state = State { turn: 0, inside: Inside::Shut };
        let passage = Passage { turn: 0, volume: None };
        Arc::new(Door { state: Mutex::new(state), left: Condvar::new(), passage: RwLock::new(passage) })
    }

    /// Lets visitors in, to this disk.
    pub fn open(&self, volume: Arc<dyn Volume>) {
        let mut state = lock(&self.state);
        if state.inside == Inside::Shut {
            state.inside = Inside::Nobody;
            self.passage.write().unwrap_or_else(PoisonError::into_inner).volume = Some(volume);
        }
    }

    /// Lets nobody in any more, and waits until no request from a mount is with the disk. NBD's clients are sent away by
    /// whoever takes their export away.
    pub fn shut(&self) {
        let mut state = lock(&self.state);
        state.inside = Inside::Shut;
        state.turn += 1;
        *self.passage.write().unwrap_or_else(PoisonError::into_inner) =
            Passage { turn: state.turn, volume: None };
        self.left.notify_all();
    }

    /// A client over NBD enters. `Busy` where a mount has the disk and keeps it.
    pub fn enter_over_nbd(self: &Arc<Door>) -> Result<Visit> {
        self.enter(LEAVING, |inside| match inside {
            Inside::Nobody => Ok(Inside::Nbd { clients: 1 }),
            Inside::Nbd { clients } => Ok(Inside::Nbd { clients: clients + 1 }),
            Inside::Mount { file, .. } => {
                Err(busy(format!("the disk is open as {file}: close it there first")))
            }
            Inside::Shut => Err(gone()),
        })
    }

    /// `file` of a mount is opened. `Busy` where NBD's clients or another file have the disk and keep it.
    pub fn enter_from_mount(self: &Arc<Door>, file: &str) -> Result<Visit> {
        let opened = |opens| Ok(Inside::Mount { file: file.to_owned(), opens });
        // A mount has few threads, and one of them is to hear of the close that is waited for.
        let waiter = Waiter::new();
        self.enter(waiter.patience(), |inside| match inside {
            Inside::Nobody => opened(1),
            Inside::Mount { file: open, opens } if open == file => opened(opens + 1),
            Inside::Mount { file: open, .. } => {
                Err(busy(format!("the disk is open as {open}: one file of it at a time")))
            }
            Inside::Nbd { clients } => {
                Err(busy(format!("{clients} NBD clients have the disk: disconnect them first")))
            }
            Inside::Shut => Err(gone()),
        })
    }

    /// Waits while the visitor is busy with others who may be leaving.
    fn enter(
        self: &Arc<Door>,
        patience: Duration,
        let_in: impl Fn(&Inside) -> Result<Inside>,
    ) -> Result<Visit> {
        let taken =
            |state: &mut State| let_in(&state.inside).is_err_and(|error| error.kind() == ErrorKind::Busy);
        let waited = self.left.wait_timeout_while(lock(&self.state), patience, taken);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.inside = let_in(&state.inside)?;
        Ok(Visit { door: self.clone(), turn: state.turn })
    }

    /// Who is inside, for people; `None` where nobody is.
    pub fn visitors(&self) -> Option<String> {
        match &lock(&self.state).inside {
            Inside::Shut | Inside::Nobody => None,
            Inside::Nbd { clients } => Some(format!("{clients} NBD clients")),
            Inside::Mount { file, .. } => Some(file.clone()),
        }
    }
}

/// One of those who wait for a door in the thread of a mount.
struct Waiter {
    before: usize,
}

/// How many those are.
static WAITERS: AtomicUsize = AtomicUsize::new(0);

impl Waiter {
    fn new() -> Waiter {
        Waiter { before: WAITERS.fetch_add(1, Ordering::SeqCst) }
    }

    /// Only the first two wait.
    fn patience(&self) -> Duration {
        if self.before < 2 { LEAVING } else { Duration::ZERO }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        WAITERS.fetch_sub(1, Ordering::SeqCst);
    }
}

fn busy(who: String) -> Error {
    Error::new(ErrorKind::Busy, who)
}

fn gone() -> Error {
    Error::new(ErrorKind::Fenced, "the session does not serve its disks any more")
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut state = lock(&self.door.state);
        if state.turn != self.turn {
            return;
        }
        state.inside = match std::mem::replace(&mut state.inside, Inside::Nobody) {
            Inside::Nbd { clients } if clients > 1 => Inside::Nbd { clients: clients - 1 },
            Inside::Mount { file, opens } if opens > 1 => Inside::Mount { file, opens: opens - 1 },
            Inside::Shut => Inside::Shut,
            Inside::Nobody | Inside::Nbd { .. } | Inside::Mount { .. } => Inside::Nobody,
        };
        if state.inside == Inside::Nobody {
            self.door.left.notify_all();
        }
    }
}

/// A session's disk as a mount sees it: as long as the door is not shut.
pub(crate) struct VisitedDisk {
    len: ByteLen,
    visit: Visit,
}

impl VisitedDisk {
    /// The disk, which has this length, for as long as this lives.
    pub fn new(len: ByteLen, visit: Visit) -> VisitedDisk {
        VisitedDisk { len, visit }
    }

    fn with<T>(&self, work: impl FnOnce(&dyn Volume) -> Result<T>) -> Result<T> {
        let passage = self.visit.door.passage.read().unwrap_or_else(PoisonError::into_inner);
        match &passage.volume {
            Some(volume) if passage.turn == self.visit.turn => work(&**volume),
            _ => Err(gone()),
        }
    }
}

impl Volume for VisitedDisk {
    fn len(&self) -> ByteLen {
        self.len
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
        self.with(|volume| volume.read_at(offset, buffer, class))
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, class: RequestClass) -> Result<()> {
        self.with(|volume| volume.write_at(offset, data, fua, class))
    }

    fn write_zeroes(
        &self,
        extent: Extent,
        keep_allocated: bool,
        fua: bool,
        class: RequestClass,
    ) -> Result<()> {
        self.with(|volume| volume.write_zeroes(extent, keep_allocated, fua, class))
    }

    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.with(|volume| volume.discard(extent, fua, class))
    }

    fn flush(&self) -> Result<()> {
        self.with(|volume| volume.flush())
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        self.with(|volume| volume.status(extent))
    }

    fn arrived_len_min(&self) -> Option<ByteLen> {
        self.with(|volume| Ok(volume.arrived_len_min())).ok().flatten()
    }

    fn write_arrived(&self, extent: Extent, from: &mut dyn Arrived, class: RequestClass) -> Result<bool> {
        self.with(|volume| volume.write_arrived(extent, from, class))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::MemoryVolume;

    fn disk() -> Arc<dyn Volume> {
        Arc::new(MemoryVolume::new(ByteLen::new(512)))
    }

    #[test]
    fn one_kind_of_visitor_at_a_time() {
        let door = Door::new();
        assert_eq!(door.enter_over_nbd().err().unwrap().kind(), ErrorKind::Fenced, "it is shut at first");
        door.open(disk());
        let (one, two) = (door.enter_over_nbd().unwrap(), door.enter_over_nbd().unwrap());
        let error = door.enter_from_mount("/mnt/disk0.raw").err().unwrap();
        assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("2 NBD clients"), "{error}");
        drop(one);
        assert_eq!(door.enter_from_mount("/mnt/disk0.raw").err().unwrap().kind(), ErrorKind::Busy);
        drop(two);
        let file = door.enter_from_mount("/mnt/disk0.raw").unwrap();
        let again = door.enter_from_mount("/mnt/disk0.raw").unwrap();
        let error = door.enter_from_mount("/mnt/disk0.vhd").err().unwrap();
        assert!(error.to_string().contains("/mnt/disk0.raw"), "{error}");
        let error = door.enter_over_nbd().err().unwrap();
        assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("/mnt/disk0.raw"), "{error}");
        drop((file, again));
        assert_eq!(door.visitors(), None);
        door.enter_over_nbd().unwrap();
    }

    #[test]
    fn whoever_comes_while_the_last_one_leaves_is_let_in() {
        let door = Door::new();
        door.open(disk());
        for _ in 0..20 {
            let client = door.enter_over_nbd().unwrap();
            let file = std::thread::scope(|scope| {
                let file = scope.spawn(|| door.enter_from_mount("/mnt/disk0.raw"));
                std::thread::sleep(Duration::from_millis(2));
                drop(client);
                file.join().unwrap().unwrap()
            });
            std::thread::scope(|scope| {
                let client = scope.spawn(|| door.enter_over_nbd());
                let other = scope.spawn(|| door.enter_from_mount("/mnt/disk0.raw"));
                drop(other.join().unwrap().unwrap());
                drop(file);
                drop(client.join().unwrap().unwrap());
            });
        }
        let client = door.enter_over_nbd().unwrap();
        let refused = std::thread::scope(|scope| {
            let file = scope.spawn(|| door.enter_from_mount("/mnt/disk0.raw").err());
            std::thread::sleep(Duration::from_millis(2));
            door.shut();
            file.join().unwrap().unwrap()
        });
        assert_eq!(refused.kind(), ErrorKind::Fenced, "nobody waits at a door that is shut");
        drop(client);
    }

    #[test]
    fn who_is_inside_when_it_shuts_gets_errors_and_takes_nobodys_place_later() {
        let door = Door::new();
        let volume = disk();
        door.open(volume.clone());
        let disk = VisitedDisk::new(volume.len(), door.enter_from_mount("a").unwrap());
        disk.write_at(ByteOffset::ZERO, &[1; 512], false, RequestClass::Guest).unwrap();
        door.shut();
        assert_eq!(Arc::strong_count(&volume), 1, "the disk is let go of");
        let error = disk.write_at(ByteOffset::ZERO, &[2; 512], false, RequestClass::Guest).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fenced);
        assert_eq!(
            disk.read_at(ByteOffset::ZERO, &mut [0; 512], RequestClass::Guest).unwrap_err().kind(),
            ErrorKind::Fenced
        );
        door.open(volume);
        let client = door.enter_over_nbd().unwrap();
        drop(disk);
        assert_eq!(door.visitors().as_deref(), Some("1 NBD clients"));
        drop(client);
    }
}
