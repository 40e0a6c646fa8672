//! Bringing the image files alone to a checkpoint.

use super::api::{Reply, Settled};
use super::job::Job;
use super::status::image_path;
use super::{at, machines};
use crate::agent::blocking;
use crate::services::Services;
use blocks::{DiskIndex, Result};
use std::cell::Cell;
use std::sync::Arc;
use store::Unit;

pub(super) async fn settle(
    services: Arc<Services>,
    machine: String,
    at: Option<String>,
    job: Job,
) -> Result<Reply> {
    blocking(move || {
        let unit = machines::find(&services.store, &machine)?;
        let _turn = services.consolidating.for_a_person();
        let checkpoint = choose(&unit, at.as_deref())?;
        let journal = Cell::new(0);
        let step = format!("settling '{}' at checkpoint {checkpoint}", unit.name());
        let report = unit.consolidate(checkpoint, &|done, total| {
            journal.set(total.get());
            job.step(&step, done, total)
        })?;
        let disks = u16::try_from(unit.disks().len()).unwrap_or(u16::MAX);
        let images = (0..disks).map(|disk| image_path(&services, &unit, DiskIndex(disk)));
        Ok(Reply::Settled(Settled {
            checkpoint: checkpoint.0,
            images: images.collect::<Result<_>>()?,
            journal_bytes: journal.get(),
            written_bytes: report.written.get(),
        }))
    })
    .await
}

/// The checkpoint of the main line that is meant; only those can be settled.
fn choose(unit: &Unit, at: Option<&str>) -> Result<blocks::CheckpointId> {
    let main = unit.main_branch();
    let mut line = unit.checkpoints();
    line.retain(|checkpoint| checkpoint.branch == main);
    let chosen =
        at::choose(&line, at).map_err(|error| error.context(format_args!("machine '{}'", unit.name())))?;
    Ok(chosen.id)
}
