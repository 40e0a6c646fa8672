//! How everything is doing.

use super::api::{AlarmInfo, ConsolidationStatus, DiskStatus, MachineStatus, Reply, SpaceStatus, Status};
use super::{machines, nbd, scrub};
use crate::agent::blocking;
use crate::alarms::{self, Alarm};
use crate::drill;
use crate::retention;
use crate::services::Services;
use crate::takeover::Policy;
use blocks::{ByteLen, DiskIndex, Error, Result, WallClock};
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Checkpoint, DiskSpec, Unit};

pub(super) async fn status(services: Arc<Services>, machine: Option<String>) -> Result<Reply> {
    blocking(move || {
        let mut units = match &machine {
            Some(machine) => vec![machines::find(&services.store, machine)?],
            None => services.store.units(),
        };
        let only = machine.is_some().then(|| units[0].machine());
        units.sort_by_key(|unit| unit.name());
        Ok(Reply::Status(Status {
            store: services.store.id().to_string(),
            free_bytes: services.store.free_space()?.map(ByteLen::get),
            memory_bytes: resident_bytes()?,
            machines: units.iter().map(|unit| machine_status(&services, unit)).collect::<Result<_>>()?,
            alarms: infos(alarms::of_store(&services)?),
            nbd: nbd::status(&services, only),
        }))
    })
    .await
}

fn machine_status(services: &Services, unit: &Unit) -> Result<MachineStatus> {
    let machine = services.agents.machine(unit.machine());
    let (state, mut detail) = machine.state();
    if detail.is_empty() {
        detail = services.sessions.parked_failback(unit.machine()).unwrap_or_default();
    }
    let checkpoints = unit.checkpoints().len() as u64;
    let (line, _) = retention::main_line(unit);
    let (ladder, now) = (retention::ladder_of(services, unit), WallClock::now());
    let age = |checkpoint: &Checkpoint| now.0.saturating_sub(checkpoint.server_time.0);
    let usage = unit.usage()?;
    let bought = alarms::window_bought(&line, &ladder, usage, now);
    let horizon = unit.horizon().map(|horizon| horizon.0);
    let disk = |(index, spec): (u16, DiskSpec)| {
        let progress = machine.progress(DiskIndex(index));
        Ok(DiskStatus {
            index,
            device: spec.device,
            len: spec.len.get(),
            tracker: progress.tracker,
            backlog_bytes: progress.backlog.get(),
            churn_bytes_per_second: progress.churn_bytes_per_second,
            received_bytes: progress.received.get(),
            eta_ms: eta_ms(progress.backlog, progress.received_bytes_per_second),
            image: image_path(services, unit, DiskIndex(index))?,
            horizon,
        })
    };
    Ok(MachineStatus {
        machine: unit.machine().to_string(),
        name: unit.name(),
        generation: unit.generation().0,
        state: state.into(),
        detail,
        heartbeat_age_ms: machine.silent_for(Instant::now()).map(milliseconds),
        rpo_ms: line.last().map(age),
        checkpoints,
        gaps: unit.gaps().len() as u64,
        disks: (0..).zip(unit.disks()).map(disk).collect::<Result<_>>()?,
        scrub: scrub::last(unit),
        drill: drill::status(services, unit)?,
        consolidation: consolidation(unit),
        pins: unit
            .pins()
            .iter()
            .map(|pin| format!("checkpoint {} by {}", pin.checkpoint, pin.holder))
            .collect(),
        keep: ladder.to_string(),
        on_failure: Policy::of(unit).map_or_else(|error| error.to_string(), |policy| policy.to_string()),
        window_ms: line.first().map(age),
        space: SpaceStatus {
            images_bytes: usage.images.get(),
            journal_bytes: usage.journal.get(),
            quota_bytes: usage.quota.map(ByteLen::get),
            window_bought_ms: bought.map(milliseconds),
        },
        alarms: infos(alarms::of_unit(services, unit)?),
    })
}

fn infos(alarms: Vec<Alarm>) -> Vec<AlarmInfo> {
    alarms.into_iter().map(|alarm| AlarmInfo { alarm: alarm.kind.into(), words: alarm.words }).collect()
}

fn consolidation(unit: &Unit) -> ConsolidationStatus {
    let done = unit.consolidated();
    ConsolidationStatus {
        changed_bytes: done.written.get(),
        zeroed_bytes: done.zeroed.get(),
        image_written_bytes: done.image_written.get(),
        image_read_bytes: done.image_read.get(),
        log_read_bytes: done.log_read.get(),
        freed_bytes: done.freed.get(),
        amplification: done.amplification(),
    }
}

/// Where the image of a disk is on the host.
pub(super) fn image_path(services: &Services, unit: &Unit, disk: DiskIndex) -> Result<String> {
    Ok(services.data.join(unit.image_name(disk)?).to_string_lossy().into_owned())
}

/// Until the backlog is received at this rate; `None` where there is no telling.
fn eta_ms(backlog: ByteLen, bytes_per_second: u64) -> Option<u64> {
    if backlog.is_zero() {
        return Some(0);
    }
    let milliseconds = u128::from(backlog.get()) * 1000;
    u64::try_from(milliseconds.checked_div(u128::from(bytes_per_second))?).ok()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// This process's resident memory.
fn resident_bytes() -> Result<u64> {
    let path = "/proc/self/statm";
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| Error::corrupt(format!("{path}: '{text}'")))?;
    Ok(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left() {
        assert_eq!(eta_ms(ByteLen::ZERO, 0), Some(0));
        assert_eq!(eta_ms(ByteLen::new(10), 0), None);
        assert_eq!(eta_ms(ByteLen::new(1 << 30), 1 << 20), Some(1024 * 1000));
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
