//! What a server may ask of an agent.

use super::config::DiskConfig;
use super::protect::protect;
use super::worker::{Request, Session, Worker};
use crate::copy::{Manner, Phase, Receiver};
use crate::restore::{Restore, Target};
use crate::tracker::Base;
use blocks::{DiskIndex, Error, ErrorKind, Generation, Result, Seq};
use wire::{AgentMessage, RestoreBegin, ServerMessage};

impl Worker {
    /// Does what the server says. Errors end the connection or the agent; a restore that fails is only reported.
    pub fn obey(&mut self, session: &mut Session, order: ServerMessage) -> Result<()> {
        match order {
            ServerMessage::TakeCheckpoint { request, name, verify } => {
                self.request(session, Request { number: request, name, verify })
            }
            ServerMessage::CheckpointSealed { request, .. } => {
                if let Some(verify) = session.verify.as_mut().filter(|verify| verify.request() == request) {
                    verify.sealed = true;
                }
                Ok(())
            }
            ServerMessage::Differing { disk, range, extents } => {
                let replica = self.replicas.iter_mut().find(|replica| replica.index == disk);
                match replica.filter(|replica| matches!(replica.phase, Phase::Initial(_))) {
                    Some(replica) => {
                        let sent = replica.send_differing(&session.link, range, &extents);
                        if sent.is_err() {
                            (replica.phase, replica.wanted) = (Phase::Idle, Some(Manner::Compare));
                        }
                        sent
                    }
                    None => Ok(()),
                }
            }
            ServerMessage::Hold { reason } => {
                tracing::warn!("the server takes no data now: {reason}");
                session.held_by_server = true;
                Ok(())
            }
            ServerMessage::Resume => self.resume(session),
            ServerMessage::RestoreBegin(begin) => self.begin_restore(session, &begin),
            ServerMessage::RestoreAbort { restore, reason } => {
                if session.restore.as_ref().is_some_and(|current| current.id == restore) {
                    tracing::warn!("the failback was called off: {reason}");
                    session.restore = None;
                }
                Ok(())
            }
            ServerMessage::RestoreHash { .. }
            | ServerMessage::RestoreRead { .. }
            | ServerMessage::RestoreWrite { .. }
            | ServerMessage::RestoreSync { .. }
            | ServerMessage::RestoreFinish { .. } => self.restore_step(session, order),
            ServerMessage::Welcome(_)
            | ServerMessage::Refused(_)
            | ServerMessage::Enrolled(_)
            | ServerMessage::Ack { .. } => {
                tracing::warn!("the server said something out of turn");
                Ok(())
            }
        }
    }

    /// What the server let go of meanwhile is sent again.
    fn resume(&mut self, session: &mut Session) -> Result<()> {
        session.held_by_server = false;
        if let Some(order) = &self.order {
            order.rewind(self.replicas.iter().any(|replica| !replica.takings.is_empty()));
        }
        for replica in &mut self.replicas {
            replica.take_acks(&session.link)?;
            match replica.phase {
                Phase::Tracking if replica.is_scanned() => replica.wanted = Some(Manner::Compare),
                Phase::Tracking => replica.requeue()?,
                Phase::Initial(_) => replica.wanted = Some(Manner::Compare),
                Phase::Idle => {}
            }
            if replica.wanted.is_some() {
                replica.phase = Phase::Idle;
            }
        }
        Ok(())
    }

    fn begin_restore(&mut self, session: &mut Session, begin: &RestoreBegin) -> Result<()> {
        session.restore = None;
        if self.order.is_some() {
            let what = "the disks of this machine are tapped, so nothing can be written onto them from outside: \
                        unmount what is on the tap, stop the agent, and start it without --tracker tap until the \
                        failback is through";
            return fail(session, begin.restore, &Error::new(ErrorKind::Busy, what));
        }
        match Restore::begin(begin, &self.replicas) {
            Ok((restore, ready)) => {
                tracing::info!(
                    "session {} comes home: {} disks are held for it",
                    begin.session,
                    ready.disks.len()
                );
                session.restore = Some(restore);
                session.link.send(AgentMessage::RestoreReady(ready))
            }
            Err(error) => fail(session, begin.restore, &error),
        }
    }

    fn restore_step(&mut self, session: &mut Session, order: ServerMessage) -> Result<()> {
        let number = match &order {
            ServerMessage::RestoreHash { restore, .. }
            | ServerMessage::RestoreRead { restore, .. }
            | ServerMessage::RestoreWrite { restore, .. }
            | ServerMessage::RestoreSync { restore, .. }
            | ServerMessage::RestoreFinish { restore, .. } => *restore,
            _ => return Ok(()),
        };
        // What was on its way when a restore failed or was called off.
        let Some(restore) = session.restore.as_mut().filter(|current| current.id == number) else {
            return Ok(());
        };
        let link = &session.link;
        let done = match order {
            ServerMessage::RestoreHash { disk, range, .. } => restore.hash(link, disk, range),
            ServerMessage::RestoreRead { disk, range, .. } => restore.read(link, disk, range),
            ServerMessage::RestoreWrite { disk, extent, payload, .. } => {
                restore.write(disk, extent, &payload)
            }
            ServerMessage::RestoreSync { sync, .. } => restore.sync().and_then(|()| {
                blocks::crash_point("restore.synced");
                link.send(AgentMessage::RestoreSynced { restore: number, sync })
            }),
            ServerMessage::RestoreFinish { generation, seqs, .. } => self.finish(session, generation, &seqs),
            _ => Ok(()),
        };
        match done {
            Err(error) if session.link.check().is_ok() && !ends_agent(&error) => {
                fail(session, number, &error)
            }
            other => other,
        }
    }

    /// The targets hold the checkpoint: their trackers start from it, then they are released, then replication goes on.
    fn finish(
        &mut self,
        session: &mut Session,
        generation: Generation,
        seqs: &[(DiskIndex, Seq)],
    ) -> Result<()> {
        let Some(restore) = session.restore.take() else { return Ok(()) };
        let number = restore.id;
        let receiver = Receiver { generation, ..session.receiver };
        let mut elsewhere = None;
        for target in restore.targets {
            target.flush_cache()?;
            let seq =
                seqs.iter().find(|(disk, _)| *disk == target.disk).map(|(_, seq)| *seq).unwrap_or_default();
            match target.block_device() {
                Some(disk) => {
                    if disk.len() > target.len {
                        let (device, len) = (target.device.display(), target.len);
                        self.came_home_longer =
                            Some(format!("{device} has {} bytes, and {len} came home", disk.len()));
                    }
                    self.adopt(&target, receiver, seq)?;
                }
                None => elsewhere = Some(target.device.clone()),
            }
        }
        blocks::crash_point("restore.reset");
        session.receiver = receiver;
        if let Err(error) = self.state.remember(receiver.machine, generation) {
            tracing::warn!("{error}");
        }
        session.link.send(AgentMessage::RestoreFinished { restore: number })?;
        self.restored = true;
        if self.config.restore_only {
            tracing::info!("the disks hold what the session held; the machine can be started from them");
            return Ok(());
        }
        if let Some(file) = elsewhere {
            let context = format!(
                "{} holds the disk now, and a file cannot be protected: attach it and start the agent with the device",
                file.display()
            );
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        session.source = !self.inside_session && self.came_home_longer.is_none();
        self.note_vitals();
        Ok(())
    }

    /// From here on the target is the disk that is protected under its index, and everything on it is acknowledged.
    fn adopt(&mut self, target: &Target, receiver: Receiver, seq: Seq) -> Result<()> {
        let position = self.replicas.iter().position(|replica| replica.index == target.disk);
        let position = position.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("disk {} is not protected by this agent", target.disk))
        })?;
        if !target.is_disk(&self.replicas[position].disk) {
            let exclude = self.replicas[position].excluded_by_user.clone();
            let disk = DiskConfig { device: target.device.clone(), exclude };
            let before = self.replicas[position].disk.path().display().to_string();
            self.replicas[position] = protect(&self.config, target.disk, &disk, None)?;
            let now = target.device.display();
            tracing::warn!(
                "disk {} is {now} now, not {before}: start the agent with it from now on",
                target.disk
            );
        }
        let replica = &mut self.replicas[position];
        let base = Base {
            store: receiver.store,
            acked: seq,
            sent: seq,
            generation: receiver.generation,
            machine: receiver.machine,
        };
        let reset = replica.tracker.reset(base);
        replica.takings.clear();
        replica.outbox = None;
        replica.connect(receiver, seq);
        replica.phase = Phase::Tracking;
        replica.wanted = None;
        if let Err(error) = &reset {
            tracing::warn!("{}: scanning after the failback: {error}", target.device.display());
        }
        if reset.is_err() || replica.is_scanned() {
            replica.phase = Phase::Idle;
            replica.wanted = Some(Manner::Compare);
        }
        Ok(())
    }
}

/// Whether there is no sense in going on.
pub(super) fn ends_agent(error: &Error) -> bool {
    error.kind() == ErrorKind::Unsupported
}

/// Nothing more of this restore is written; its targets are released.
fn fail(session: &mut Session, restore: u64, error: &Error) -> Result<()> {
    tracing::error!("the failback cannot go on: {error}");
    session.restore = None;
    session.link.send(AgentMessage::RestoreFailed { restore, reason: error.to_string() })
}
