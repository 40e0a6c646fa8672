//! The eBPF rung: programs in the kernel mark a bitmap that this side shares with them.
//!
//! Everything that must survive the agent is pinned (pins.rs); this process adds the takings under way and a lock. What
//! turns the map untrusted is looked at in one place, [`EbpfTracker::fault`].

use super::changed::Changed;
use super::counts::{Counts, Verdict};
use super::disk::{DiskIdentity, WholeDisk};
use super::ledger::{Ledger, Reference};
use super::pins::Pins;
use super::program::{self, Mutant, Pinned};
use super::{Agreement, Base, Census, Scan, Taking, Tracker, TrackerKind, Trust};
use blocks::{BlockShift, ByteLen, Error, ErrorKind, Extent, ExtentSet, Result};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long to sleep between two looks at counts that have not settled.
const LOOK_AGAIN: Duration = Duration::from_micros(500);
/// How long counts must stand still to be taken as a reference. A request that is done but whose completion waits for
/// a processor is in flight to nobody; this is to outlast it. One that waits longer costs a scan, not a write.
const STILL: Duration = Duration::from_millis(10);
/// How long a reset waits for the last completion.
const RESET_WITHIN: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct EbpfTracker {
    disk: WholeDisk,
    identity: DiskIdentity,
    changed: Changed,
    kernel: Pinned,
    book: Mutex<Book>,
    _pins: Pins,
}

/// The ledger and which scan is under way.
#[derive(Debug)]
struct Book {
    ledger: Ledger,
    /// Rises with each scan that begins and with each event that voids one.
    scan: u64,
}

impl EbpfTracker {
    /// Takes over the pinned map of this disk, or attaches a new one; says which. `Busy` if another process has it,
    /// `Unsupported` where the disk or the kernel cannot be tracked.
    pub fn open(device: &Path) -> Result<(EbpfTracker, String)> {
        let disk = WholeDisk::open(device)?;
        if let Some(reason) = disk.untrackable() {
            return Err(Error::new(ErrorKind::Unsupported, reason));
        }
        EbpfTracker::open_disk(disk, Mutant::None)
    }

    /// The same without asking whether the disk can be tracked.
    pub fn open_disk(disk: WholeDisk, mutant: Mutant) -> Result<(EbpfTracker, String)> {
        let pins = Pins::lock(disk.name())?;
        let reason = if pins.exist() {
            match EbpfTracker::adopt(&disk, &pins) {
                Ok((ledger, kernel)) => {
                    return Ok((EbpfTracker::assemble(disk, pins, ledger, kernel), "taken over".into()));
                }
                Err(error) => format!("the earlier map is of no use: {error}"),
            }
        } else {
            "tracking began on a disk that was already in use".to_owned()
        };
        pins.clear()?;
        let identity = disk.identity()?;
        let ledger = Ledger {
            shift: program::grain_for(identity.len),
            plumbing: disk.plumbing(),
            identity,
            trust: Trust::Untrusted { reason: format!("{reason}; it has to be scanned once") },
            base: None,
            reference: None,
            kernel_at_attach: disk.kernel_written()?.get(),
        };
        program::attach(&ledger, &pins.begin()?, mutant)?;
        pins.publish()?;
        let kernel = Pinned::open(&pins.live(), &ledger)?;
        let how = format!("attached, because {reason}");
        Ok((EbpfTracker::assemble(disk, pins, ledger, kernel), how))
    }

    /// How many words the map of a disk of this length has.
    pub fn words_for(len: ByteLen) -> usize {
        Changed::words_for(program::grain_for(len), len)
    }

    /// What is marked or pending, a bit a block.
    pub fn changed_words(&self) -> Vec<u64> {
        self.changed.words()
    }

    /// `Unsupported` where the disk was written in this boot before this tracker was there.
    pub fn require_unwritten(&self) -> Result<()> {
        match self.lock().ledger.kernel_at_attach {
            0 => Ok(()),
            bytes => {
                let context = format!("{bytes} bytes were written to it before it was tracked");
                Err(Error::new(ErrorKind::Unsupported, context))
            }
        }
    }

    /// Takes over what a tracker of an earlier boot knew at its end: the disk differs from `base` at most where it is marked
    /// now, where `words` of that grain say, and in `suspects`. The caller vouches that nobody wrote in between;
    /// `Unsupported` where somebody has in this boot, or the grain is another.
    pub fn inherit(&self, base: Base, grain: BlockShift, words: &[u64], suspects: &[Extent]) -> Result<()> {
        self.require_same_disk()?;
        self.require_unwritten()?;
        let mut book = self.lock();
        if grain != self.changed.shift() {
            let context = format!("its map had blocks of {} bytes", grain.bytes());
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        self.changed.mark_words(words)?;
        self.changed.mark(suspects)?;
        let reference = self.settled(RESET_WITHIN)?;
        if let Some(reason) = self.fault() {
            return Err(Error::new(ErrorKind::Unsupported, reason));
        }
        self.amend(&mut book, |ledger| {
            ledger.trust = Trust::Trusted;
            ledger.base = Some(base);
            ledger.reference = Some(reference);
        })
    }

    /// What is pinned, if it is this very disk's.
    fn adopt(disk: &WholeDisk, pins: &Pins) -> Result<(Ledger, Pinned)> {
        let ledger = program::read_ledger(&pins.live())?;
        if let Some(reason) = mismatch(&ledger.identity, &disk.identity()?) {
            return Err(Error::new(ErrorKind::NotFound, reason));
        }
        if ledger.plumbing != disk.plumbing() {
            return Err(Error::corrupt("the disk takes its writes in another way now"));
        }
        let kernel = Pinned::open(&pins.live(), &ledger)?;
        Ok((ledger, kernel))
    }

    fn assemble(disk: WholeDisk, pins: Pins, ledger: Ledger, mut kernel: Pinned) -> EbpfTracker {
        let (marks, pending, since) = kernel.take_bitmaps();
        let changed = Changed::new(ledger.shift, ledger.identity.len, marks, pending, since);
        // Whoever took those is gone.
        changed.requeue();
        let identity = ledger.identity;
        let book = Mutex::new(Book { ledger, scan: 0 });
        EbpfTracker { disk, identity, changed, kernel, book, _pins: pins }
    }

    /// Why the map cannot be relied on as things are; `None` where it can. A scan that began after the fault cures
    /// what [`EbpfTracker::is_same_disk`] still holds for.
    fn fault(&self) -> Option<String> {
        if let Some(reason) = self.other_disk() {
            return Some(reason);
        }
        let flags = self.kernel.flags();
        let raised = [
            (program::FLAG_MEDIA_CHANGED, "another medium was attached while writes went on"),
            (program::FLAG_BEYOND_END, "a write went past the end that the disk had when tracking began"),
            (program::FLAG_PASSTHROUGH, "a program sent commands to the device past the block layer"),
            (program::FLAG_RANGE_LOST, "more writes were under way at once than can be remembered"),
        ];
        let raised = raised.iter().find(|(flag, _)| flags & flag != 0);
        raised.map(|(_, reason)| (*reason).to_owned()).or_else(|| self.disk.uncounted())
    }

    /// Why this is no longer the disk that the map is of: only opening the tracker anew helps.
    fn other_disk(&self) -> Option<String> {
        match self.disk.identity() {
            Ok(now) => mismatch(&self.identity, &now),
            Err(error) => Some(format!("the disk is gone: {error}")),
        }
    }

    fn distrust(&self, book: &mut Book, reason: String) -> Result<()> {
        book.scan += 1;
        book.ledger.trust = Trust::Untrusted { reason };
        self.kernel.save(&book.ledger)
    }

    /// The ledger with the change applied, pinned before it counts here.
    fn amend(&self, book: &mut Book, change: impl FnOnce(&mut Ledger)) -> Result<()> {
        let mut ledger = book.ledger.clone();
        change(&mut ledger);
        self.kernel.save(&ledger)?;
        book.ledger = ledger;
        Ok(())
    }

    fn counts(&self) -> Result<Counts> {
        // In this order, see `Counts::against`.
        let kernel = self.disk.kernel_written()?.get();
        let queued = self.kernel.queued();
        let completed = self.kernel.completed();
        let queued_after = self.kernel.queued();
        Ok(Counts { kernel, queued, completed, queued_after })
    }

    /// Waits until nothing is in flight and no count moves. `Busy` after `within`.
    fn settled(&self, within: Duration) -> Result<Reference> {
        let until = Instant::now() + within;
        loop {
            let before = (self.counts()?, self.disk.in_flight()?);
            std::thread::sleep(STILL);
            let after = (self.counts()?, self.disk.in_flight()?);
            if before == after && before.1 == 0 {
                let Counts { kernel, queued, completed, .. } = before.0;
                return Ok(Reference { queued, completed, kernel });
            }
            if Instant::now() >= until {
                let context = format!("{} had no instant without a write in flight", self.disk.name());
                return Err(Error::new(ErrorKind::Busy, context));
            }
        }
    }

    fn require_same_disk(&self) -> Result<()> {
        match self.other_disk() {
            Some(reason) => Err(Error::new(ErrorKind::Poisoned, format!("{reason}; open its tracker anew"))),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        // A ledger is replaced as a whole, so a panic elsewhere spoils nothing.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tracker for EbpfTracker {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Ebpf
    }

    fn len(&self) -> ByteLen {
        self.changed.len()
    }

    fn grain(&self) -> BlockShift {
        self.changed.shift()
    }

    fn trust(&self) -> Trust {
        let mut book = self.lock();
        if book.ledger.trust.is_trusted()
            && let Some(reason) = self.fault()
            && let Err(error) = self.distrust(&mut book, reason)
        {
            // The fault itself is still there for whoever looks next, so nothing is lost.
            tracing::warn!(disk = self.disk.name(), %error, "cannot note that the map is not trusted");
        }
        book.ledger.trust.clone()
    }

    fn take(&self, bytes_max: ByteLen) -> Result<Taking> {
        Ok(self.changed.take(bytes_max))
    }

    fn acknowledge(&self, taking: u64) -> Result<()> {
        self.changed.acknowledge(taking)
    }

    fn requeue(&self) -> Result<()> {
        self.changed.requeue();
        Ok(())
    }

    fn backlog(&self) -> Result<ByteLen> {
        Ok(self.changed.backlog())
    }

    fn changed(&self) -> Result<ExtentSet> {
        Ok(self.changed.changed())
    }

    fn mark(&self, extents: &[Extent]) -> Result<()> {
        self.changed.mark(extents)
    }

    fn begin_scan(&self, within: Duration) -> Result<Scan> {
        self.require_same_disk()?;
        let mut book = self.lock();
        self.distrust(&mut book, "a scan has begun and not ended".into())?;
        if let Some(reason) = self.disk.uncounted() {
            return Err(Error::new(ErrorKind::Unsupported, reason));
        }
        self.kernel.clear_flags();
        // Before the reference: what is taken after it must be in `since`.
        self.changed.hold().forget_since();
        let reference = self.settled(within)?;
        self.amend(&mut book, |ledger| ledger.reference = Some(reference))?;
        Ok(Scan(book.scan))
    }

    fn finish_scan(&self, scan: Scan, base: Base) -> Result<()> {
        self.require_same_disk()?;
        let mut book = self.lock();
        if scan.0 != book.scan {
            let context = format!("{}: this scan was voided, scan again", self.disk.name());
            return Err(Error::new(ErrorKind::Busy, context));
        }
        if let Some(reason) = self.fault() {
            let context = format!("{}: {reason}, scan again", self.disk.name());
            self.distrust(&mut book, reason)?;
            return Err(Error::new(ErrorKind::Busy, context));
        }
        self.amend(&mut book, |ledger| {
            ledger.trust = Trust::Trusted;
            ledger.base = Some(base);
        })
    }

    fn reset(&self, base: Base) -> Result<()> {
        self.require_same_disk()?;
        let mut book = self.lock();
        // First of all: a map that is half forgotten must not be found trusted.
        self.distrust(&mut book, "a reset was begun and not ended".into())?;
        self.kernel.clear_flags();
        let before = self.settled(RESET_WITHIN)?;
        self.changed.forget_all();
        let after = self.settled(RESET_WITHIN)?;
        if before != after || !self.changed.nothing_marked() || self.fault().is_some() {
            let context = format!("{} was written to while its map was reset", self.disk.name());
            return Err(Error::new(ErrorKind::Busy, context));
        }
        self.amend(&mut book, |ledger| {
            ledger.trust = Trust::Trusted;
            ledger.base = Some(base);
            ledger.reference = Some(after);
        })
    }

    fn base(&self) -> Option<Base> {
        self.lock().ledger.base
    }

    fn set_base(&self, base: Base) -> Result<()> {
        self.amend(&mut self.lock(), |ledger| ledger.base = Some(base))
    }

    fn census(&self) -> Result<Census> {
        let counts = self.counts()?;
        let book = self.lock();
        let begin = book.ledger.kernel_at_attach;
        // Differences before the reference mean nothing: writes were under way when tracking began.
        let (queued, completed) = match book.ledger.reference {
            Some(reference) => {
                let before = reference.kernel.wrapping_sub(begin);
                let since = |now: u64, then: u64| before.wrapping_add(now.wrapping_sub(then));
                (since(counts.queued, reference.queued), since(counts.completed, reference.completed))
            }
            None => (counts.queued, counts.completed),
        };
        Ok(Census {
            queued: ByteLen::new(queued),
            completed: ByteLen::new(completed),
            kernel: ByteLen::new(counts.kernel.wrapping_sub(begin)),
            in_flight: self.disk.in_flight()?,
            missed_runs: self.kernel.missed_runs()?,
        })
    }

    fn agree(&self, within: Duration) -> Result<Agreement> {
        let mut book = self.lock();
        let Some(reference) = book.ledger.reference else {
            let context =
                format!("{}: no scan has begun, so there is nothing to agree with", self.disk.name());
            return Err(Error::new(ErrorKind::InvalidInput, context));
        };
        let until = Instant::now() + within;
        loop {
            // A write that begins, and is taken, after the counts were read belongs to the next agreement.
            let held = self.changed.hold();
            let counts = self.counts()?;
            let verdict = counts.against(reference);
            let noted =
                Reference { queued: counts.queued, completed: counts.completed, kernel: counts.kernel };
            match verdict {
                Verdict::Agree => {
                    self.amend(&mut book, |ledger| ledger.reference = Some(noted))?;
                    held.forget_since();
                    return Ok(Agreement::Agree);
                }
                Verdict::CompletedShort(by) => {
                    // Marked before the new reference is noted: death in between only repeats this.
                    held.mark_since();
                    self.amend(&mut book, |ledger| ledger.reference = Some(noted))?;
                    return Ok(Agreement::CompletedShort { by: ByteLen::new(by) });
                }
                Verdict::QueuedShort(by) => {
                    self.distrust(&mut book, format!("writes of {by} bytes were not seen"))?;
                    return Ok(Agreement::QueuedShort { by: ByteLen::new(by) });
                }
                Verdict::Nonsense => {
                    self.distrust(&mut book, "more writes completed than began".into())?;
                    return Ok(Agreement::QueuedShort { by: ByteLen::ZERO });
                }
                Verdict::Unsettled(bytes) if Instant::now() >= until => {
                    return Ok(Agreement::InFlight { bytes: ByteLen::new(bytes) });
                }
                Verdict::Unsettled(_) => {
                    drop(held);
                    std::thread::sleep(LOOK_AGAIN);
                }
            }
        }
    }

    fn written(&self) -> Result<ByteLen> {
        let begin = ByteLen::new(self.lock().ledger.kernel_at_attach);
        Ok(self.disk.kernel_written()?.saturating_sub(begin))
    }
}

/// What tells two disks apart, for people; `None` where they are one.
fn mismatch(then: &DiskIdentity, now: &DiskIdentity) -> Option<String> {
    if then == now {
        return None;
    }
    Some(if then.boot != now.boot {
        "the machine has been restarted since".into()
    } else if (then.major, then.minor) != (now.major, now.minor) {
        format!("it is of device {}:{}, this is {}:{}", then.major, then.minor, now.major, now.minor)
    } else if then.diskseq != now.diskseq {
        format!("another medium is attached (disk sequence {}, was {})", now.diskseq, then.diskseq)
    } else {
        format!("the disk has {} bytes, it had {}", now.len, then.len)
    })
}
