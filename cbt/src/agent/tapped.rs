//! Replication of a tapped machine: its writes in order, and what the order could not take, copied as marks.
//!
//! ```text
//!  queue drained? ──no──► pump: writes and instants, in order
//!       │ yes, and marking
//!       ▼
//!  catch up: copy marks ──little was marked──► join ──none left──► in order again, with an instant
//! ```

use super::worker::{Request, Session, Worker};
use crate::barrier;
use crate::copy::{Manner, Phase, Receiver, Replica};
use crate::tap::{Mode, Moment, Next, Order};
use crate::tracker::Trust;
use blocks::{ByteLen, DiskIndex, Error, ErrorKind, Result, Seq, WallClock};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{AgentMessage, CheckpointReport, DiskInstant, DiskWelcome, GapReport};

/// How much is sent between two looks at what the server says.
const PUMP_BYTES: u64 = 8 << 20;
/// How many entries are sent between two looks.
const PUMP_ENTRIES: usize = 1024;
/// Where fewer writes and bytes than these were waiting, others are let gather for a moment: each parcel wakes six threads of both
/// sides on its way and back, which takes more of the processors than the writes in it.
const GATHERED: usize = 256;
const GATHERED_BYTES: usize = 1 << 20;
const GATHER: Duration = Duration::from_millis(2);
/// With no more than this marked, writes go into the queue while the rest is copied.
const JOIN_BYTES: ByteLen = ByteLen::new(8 << 20);
/// How often regions are taken off the activity log.
const REST_EVERY: Duration = Duration::from_secs(1);

impl Worker {
    /// What a welcome means for a tap: what is to be compared, and whether the order goes on.
    pub(super) fn begin_tapped(&mut self, session: &Session, order: &Order, disks: &[DiskWelcome]) {
        for (replica, welcome) in self.replicas.iter_mut().zip(disks) {
            if !matches!(replica.phase, Phase::Tracking) {
                continue;
            }
            let device = replica.disk.path().display();
            if let Some(reason) = stale(replica, welcome, session.receiver) {
                tracing::warn!("{device}: {reason}: all of it is compared");
                (replica.phase, replica.wanted) = (Phase::Idle, Some(Manner::Compare));
            } else if let doubtful = replica.tracker.doubtful()
                && !doubtful.is_empty()
            {
                let bytes = doubtful.covered();
                tracing::info!("{device}: comparing {bytes} bytes that may not have been acknowledged");
                (replica.phase, replica.wanted) = (Phase::Idle, Some(Manner::Compare));
                replica.only = Some(doubtful);
            }
        }
        if !self.replicas.iter().all(Replica::is_tracking) {
            self.abandon_order(order, "the disks are compared");
        }
        let durable = |disk: DiskIndex| disks.get(usize::from(disk.0)).map_or(Seq(0), |disk| disk.durable);
        order.connected(durable, session.link.nudge());
    }

    /// What waits in the order is marked instead.
    pub(super) fn abandon_order(&self, order: &Order, cause: &str) {
        order.abandon(cause, |disk, extent| {
            let found = self.replicas.iter().find(|replica| replica.index == disk);
            if let Some(Err(error)) = found.map(|replica| replica.tracker.mark(&[extent])) {
                tracing::error!("{error}");
            }
        });
    }

    /// One round of a machine whose disks are all tapped and compared; whether there was something to do.
    pub(super) fn replicate_tapped(&mut self, session: &mut Session, order: &Arc<Order>) -> Result<bool> {
        for replica in &mut self.replicas {
            replica.take_acks(&session.link)?;
        }
        order.acknowledged(|disk| session.link.acked(disk));
        self.rest_activity()?;
        self.report_fall(session, order)?;
        if order.mode() == Mode::Ordered
            && let Some(request) = self.due_request(session)
        {
            self.checkpoint_tapped(session, order, request)?;
        }
        order.put_due();
        let pumped = self.pump(session, order)?;
        let behind = order.mode() != Mode::Ordered && order.is_drained();
        let behind = behind || order.mode() == Mode::Joining;
        Ok((behind && self.catch_up(session, order)?) || pumped)
    }

    /// Sends what the order holds, up to a bound.
    fn pump(&mut self, session: &mut Session, order: &Order) -> Result<bool> {
        let next = order.next(PUMP_BYTES, PUMP_ENTRIES);
        let bytes: usize = next.iter().map(Next::payload_bytes).sum();
        let is_little = next.len() < GATHERED && bytes < GATHERED_BYTES;
        let count = next.len();
        let mut numbers = Vec::with_capacity(count);
        let sent = next.into_iter().try_for_each(|next| -> Result<()> {
            numbers.push(self.send_next(session, next)?);
            Ok(())
        });
        // Also what was sent before an error: it is sent again under its number, or was durable.
        order.sent(&numbers);
        sent?;
        session.link.send_gathered()?;
        if count > 0 && is_little {
            std::thread::sleep(GATHER);
        }
        Ok(count > 0)
    }

    /// Sends one entry of the order; the number of a write.
    fn send_next(&mut self, session: &mut Session, next: Next) -> Result<Option<Seq>> {
        match next {
            Next::Write(write) => {
                let disk = write.disk;
                let replica = self.replicas.iter_mut().find(|replica| replica.index == disk);
                let replica = replica.ok_or_else(|| {
                    Error::new(ErrorKind::NotFound, format!("disk {disk} is not tapped here"))
                })?;
                replica.send_in_order(&session.link, &write).map(Some)
            }
            Next::Instant(moment) => self.report_moment(session, moment).map(|()| None),
        }
    }

    /// Everything up to the moment was sent: the server seals it.
    fn report_moment(&mut self, session: &mut Session, moment: Moment) -> Result<()> {
        let mut disks = Vec::new();
        for replica in &mut self.replicas {
            let seq = replica.sent_all(&session.link)?;
            let excluded = replica.excluded_by_user.clone();
            disks.push(DiskInstant { seq, len: replica.disk.len(), excluded });
        }
        let request = moment.request.unwrap_or_else(|| self.new_request());
        if moment.verify {
            let excluded = |replica: &Replica| replica.excluded_by_user.iter().copied().collect();
            let excluded = self.replicas.iter().map(excluded).collect();
            session.verify = Some(super::verify::Verify::begin(request, &mut self.replicas, excluded));
        }
        let Moment { taken_at, consistency, frozen, name, .. } = moment;
        let frozen_ms = u64::try_from(frozen.as_millis()).unwrap_or(u64::MAX);
        session.gap_since = None;
        session.link.send(AgentMessage::Checkpoint(CheckpointReport {
            request,
            name,
            consistency,
            taken_at,
            frozen_ms,
            disks,
        }))
    }

    /// Copies marks; with few left, joins the order.
    fn catch_up(&mut self, session: &mut Session, order: &Order) -> Result<bool> {
        if order.mode() == Mode::Marking {
            let copied = self.copy_all_marked(session)?;
            if copied > JOIN_BYTES {
                return Ok(true);
            }
            order.join();
        }
        // None are added while writes go into the queue, so this ends.
        while !self.copy_all_marked(session)?.is_zero() {
            session.link.check()?;
            if order.mode() != Mode::Joining {
                return Ok(true);
            }
        }
        if order.joined() {
            tracing::info!("the tap sends writes in order");
            session.fall_reported = None;
        }
        Ok(true)
    }

    fn copy_all_marked(&mut self, session: &Session) -> Result<ByteLen> {
        let mut copied = ByteLen::ZERO;
        for replica in &mut self.replicas {
            copied += replica.copy_marked(&session.link)?;
        }
        Ok(copied)
    }

    /// Says once why there is no order any more: a gap, which the next checkpoint ends.
    fn report_fall(&mut self, session: &mut Session, order: &Order) -> Result<()> {
        let Some((from, cause)) = order.fallen() else { return Ok(()) };
        if session.fall_reported == Some(from) {
            return Ok(());
        }
        session.fall_reported = Some(from);
        tracing::warn!("the tap only marks what is written: {cause}");
        session.link.send(AgentMessage::Gap(GapReport { from, until: WallClock(0), cause }))
    }

    fn checkpoint_tapped(&mut self, session: &mut Session, order: &Order, request: Request) -> Result<()> {
        session.next_checkpoint = Some(Instant::now() + self.config.checkpoint_every);
        self.ensure_watchdog();
        let devices: Vec<_> = self.replicas.iter().map(Replica::used_as).collect();
        let (watchdog, settings) = (&mut self.watchdog, &self.config.barrier);
        let Request { number, name, verify } = request;
        let missed =
            barrier::put_instant(&devices, order, watchdog, settings, &self.hooks, (number, &name, verify))?;
        let Some(reason) = missed else { return Ok(()) };
        // Flushes go on being checkpoints, so this is no gap.
        tracing::warn!("no checkpoint of file systems at rest: {reason}");
        if number >> 63 == 1 {
            session.link.send(AgentMessage::CheckpointFailed { request: number, reason })?;
        }
        Ok(())
    }

    fn rest_activity(&mut self) -> Result<()> {
        if self.rested.elapsed() < REST_EVERY {
            return Ok(());
        }
        self.rested = Instant::now();
        self.replicas
            .iter()
            .filter_map(|replica| replica.tap.as_ref())
            .try_for_each(|(tap, _)| tap.rest(false))
    }

    /// The agent ends: what the server has is taken off the activity logs.
    pub(super) fn rest_at_the_end(&self) {
        for (tap, _) in self.replicas.iter().filter_map(|replica| replica.tap.as_ref()) {
            if let Err(error) = tap.rest(true) {
                tracing::warn!("{error}");
            }
        }
    }
}

/// Why the activity log does not say what the server may lack; `None` where it does.
fn stale(replica: &Replica, welcome: &DiskWelcome, receiver: Receiver) -> Option<String> {
    let base = match (replica.tracker.trust(), replica.tracker.base()) {
        (Trust::Trusted, Some(base)) => base,
        _ => return None,
    };
    if base.generation != receiver.generation || base.machine != receiver.machine {
        return Some("the activity log is from before the machine was recovered".into());
    }
    (welcome.durable > base.sent).then(|| {
        let (durable, sent) = (welcome.durable.0, base.sent.0);
        format!("the server has write {durable}, but the activity log ends at {sent}: it is an old one")
    })
}
