//! Reading again what is stored, because somebody asked.

use super::api::{FindingInfo, Reply, ScrubMachine, ScrubStatus};
use super::job::Job;
use super::machines;
use crate::agent::blocking;
use crate::scrub::{LastScrub, scrub as scrub_unit};
use crate::services::Services;
use blocks::Result;
use std::sync::Arc;
use store::{Finding, Pace, ScrubReport, Unit};

pub(super) async fn scrub(
    services: Arc<Services>,
    machine: Option<String>,
    rate: Option<u64>,
    job: Job,
) -> Result<Reply> {
    blocking(move || {
        let mut scrubbed = Vec::new();
        let units = match &machine {
            Some(machine) => vec![machines::find(&services.store, machine)?],
            None => services.store.units(),
        };
        for unit in units {
            let step = format!("scrubbing '{}'", unit.name());
            let go_on = || job.is_wanted();
            let pace = Pace::new(rate, Some(&services.guests), &go_on);
            let report = scrub_unit(&unit, &pace, &|done, total| {
                // Whether to go on is asked by the pace.
                let _ = job.step(&step, done, total);
            })?;
            scrubbed.push(machine_info(&unit, &report));
        }
        if machine.is_none() {
            // They could not even be opened; nothing of them was read now.
            scrubbed.extend(services.store.damaged_units().into_iter().map(|(machine, why)| ScrubMachine {
                machine: machine.to_string(),
                name: String::new(),
                read_bytes: 0,
                damage: 1,
                findings: vec![FindingInfo {
                    text: format!("unit of machine {machine}: {why}"),
                    ..FindingInfo::default()
                }],
            }));
        }
        Ok(Reply::Scrubbed { machines: scrubbed })
    })
    .await
}

fn machine_info(unit: &Unit, report: &ScrubReport) -> ScrubMachine {
    ScrubMachine {
        machine: unit.machine().to_string(),
        name: unit.name(),
        read_bytes: report.read.get(),
        damage: report.count(),
        findings: report.findings.iter().map(FindingInfo::from).collect(),
    }
}

impl From<&Finding> for FindingInfo {
    fn from(finding: &Finding) -> FindingInfo {
        FindingInfo {
            disk: finding.disk.map(|disk| disk.0),
            file: finding.file.clone(),
            offset: finding.offset.map(|offset| offset.get()),
            extent: finding.extent.map(|extent| (extent.start().get(), extent.len().get())),
            checkpoints: finding.checkpoints.iter().map(|id| id.0).collect(),
            branches: finding.branches.iter().map(|id| id.0).collect(),
            text: finding.to_string(),
            remedy: finding.remedy.to_string(),
        }
    }
}

/// What the last scrub of a unit came to, for its status.
pub(super) fn last(unit: &Unit) -> Option<ScrubStatus> {
    let last = LastScrub::load(unit)?;
    Some(ScrubStatus {
        finished_ms: last.finished_ms,
        read_bytes: last.read_bytes,
        damage: last.findings,
        findings: last.lines,
    })
}
