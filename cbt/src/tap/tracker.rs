//! The tap as a rung of the ladder: the same marks and takings as on every other, and nothing that could be missed.

use super::disk::TapDisk;
use super::order::Mode;
use crate::tracker::{Agreement, Base, Census, Scan, Taking, Tracker, TrackerKind, Trust};
use blocks::{BlockShift, ByteLen, Error, ErrorKind, Extent, ExtentSet, Result};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often it is looked whether writes have come to rest.
const REST_WAIT: Duration = Duration::from_millis(1);

impl Tracker for TapDisk {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Tap
    }

    fn len(&self) -> ByteLen {
        self.len
    }

    fn grain(&self) -> BlockShift {
        self.changed.shift()
    }

    fn trust(&self) -> Trust {
        self.activity.trust()
    }

    /// Takes nothing while writes wait in the order that are older than the marks.
    fn take(&self, bytes_max: ByteLen) -> Result<Taking> {
        let let_go = self.order.lets_marks_go();
        let mut taking = match let_go {
            Some(_) => self.changed.take(bytes_max),
            None => self.changed.take_nothing(),
        };
        // Not under the lock of the order, for which writers wait: whoever lost the order meanwhile has left marks behind it.
        if !taking.extents.is_empty() && self.order.lets_marks_go() != let_go {
            self.changed.mark(&taking.extents)?;
            self.changed.acknowledge(taking.number)?;
            taking.extents.clear();
        }
        Ok(taking)
    }

    fn acknowledge(&self, taking: u64) -> Result<()> {
        self.changed.acknowledge(taking)
    }

    fn requeue(&self) -> Result<()> {
        self.changed.requeue();
        Ok(())
    }

    fn backlog(&self) -> Result<ByteLen> {
        let mut queued = ByteLen::ZERO;
        self.order.each(self.index, |extent| queued += extent.len());
        Ok(self.changed.backlog() + queued)
    }

    fn changed(&self) -> Result<ExtentSet> {
        Ok(self.due())
    }

    fn doubtful(&self) -> ExtentSet {
        TapDisk::doubtful(self)
    }

    fn remark(&self) -> Option<String> {
        Some(match self.order.fallen() {
            Some((_, cause)) => format!("not in order: {cause}"),
            None if self.order.mode() == Mode::Ordered => "in order".into(),
            None => "not in order yet".into(),
        })
    }

    fn mark(&self, extents: &[Extent]) -> Result<()> {
        self.changed.mark(extents)
    }

    fn begin_scan(&self, _within: Duration) -> Result<Scan> {
        Ok(Scan(TapDisk::begin_scan(self)))
    }

    fn finish_scan(&self, scan: Scan, base: Base) -> Result<()> {
        if !TapDisk::finish_scan(self, scan.0) {
            let context = format!("{}: the comparison was voided", self.name);
            return Err(Error::new(ErrorKind::Busy, context));
        }
        self.activity.set_trust(Trust::Trusted, Some(base))
    }

    /// A disk that is tapped is in use, so nothing is written onto it from outside.
    fn reset(&self, _base: Base) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, format!("{}: a tapped disk is not restored", self.name)))
    }

    fn base(&self) -> Option<Base> {
        self.activity.base()
    }

    fn set_base(&self, base: Base) -> Result<()> {
        self.activity.set_base(base)
    }

    fn census(&self) -> Result<Census> {
        let written = self.written()?;
        let in_flight = u64::from(!self.is_at_rest());
        Ok(Census { queued: written, completed: written, in_flight, ..Census::default() })
    }

    /// Whoever writes past the tap is not counted, so there is nothing to disagree with.
    fn agree(&self, within: Duration) -> Result<Agreement> {
        let began = Instant::now();
        while !self.is_at_rest() {
            if began.elapsed() >= within {
                return Ok(Agreement::InFlight { bytes: ByteLen::ZERO });
            }
            std::thread::sleep(REST_WAIT);
        }
        Ok(Agreement::Agree)
    }

    fn written(&self) -> Result<ByteLen> {
        Ok(ByteLen::new(self.written.load(Ordering::Relaxed)))
    }
}
