//! What changed between two checkpoints, as a file that stands by itself.

use crate::delta_file::{DeltaHeader, DeltaWriter};
use crate::image::ReplayContent;
use crate::index::merge::Merge;
use crate::journal::location::{Location, RecordKind};
use crate::plan::{Plan, PlanPiece};
use crate::unit::Unit;
use crate::unit::branch::DeltaId;
use crate::unit::changes::delta_readers;
use blocks::{ByteLen, CheckpointId, DiskIndex, Error, ErrorKind, RequestClass, Result, StorageFile};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Unit {
    /// Writes what changed on a disk from checkpoint `from` to checkpoint `to`, which descends from it, into `output`,
    /// which is empty. Gives how long the file is. `Unsupported` where `to` does not descend from `from`, or the images have
    /// swallowed what lies between. `progress` is told how many bytes of the disk are done, and calls it off by `false`.
    pub fn extract(
        &self,
        (from, to): (CheckpointId, CheckpointId),
        disk: DiskIndex,
        output: Arc<dyn StorageFile>,
        progress: &dyn Fn(ByteLen) -> bool,
    ) -> Result<ByteLen> {
        // Its pin keeps the files of everything below, and no merge crosses the other end while this one lives.
        let (_from, view) = (self.view(from, disk)?, self.view(to, disk)?);
        let mut state = self.lock_open()?;
        let manifest = Arc::clone(&state.manifest);
        let place = usize::from(disk.0);
        let (sealed_from, sealed_to) = (manifest.sealed(from)?, manifest.sealed(to)?);
        let below: BTreeSet<DeltaId> = manifest.line(disk, sealed_from.ends[place].0)?.into_iter().collect();
        let mut deltas = manifest.line(disk, sealed_to.ends[place].0)?;
        let line: BTreeSet<DeltaId> = deltas.iter().copied().collect();
        let descends = from <= to && below.is_subset(&line);
        let is_kept = manifest.replay.is_none() && sealed_from.ends[place].0 >= manifest.floor(disk);
        if !descends || !is_kept {
            let context =
                format!("{}: checkpoint {to} does not descend from checkpoint {from}", manifest.name);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        deltas.retain(|delta| !below.contains(delta));
        let readers = delta_readers(&mut state, disk, &deltas)?;
        let logs: std::collections::BTreeMap<_, _> = deltas
            .iter()
            .map(|delta| (*delta, state.inventory.log(disk, manifest.edition(*delta))))
            .collect();
        let image = Arc::clone(state.inventory.image(disk));
        drop(state);
        let header = DeltaHeader {
            store: manifest.store,
            machine: manifest.machine,
            disk,
            len: sealed_to.checkpoint.lens[place],
            from,
            to,
            time: sealed_to.checkpoint.server_time,
        };
        let mut writer = DeltaWriter::new(output, header)?;
        let mut merge = Merge::new(&readers, DeltaId::IMAGE)?;
        let mut done = ByteLen::ZERO;
        while let Some(entry) = merge.next()? {
            let content = match entry.location {
                Location::Empty(RecordKind::Discard) => ReplayContent::Discard,
                Location::Empty(_) => ReplayContent::Zero,
                Location::Log(_) => {
                    let log = logs.get(&entry.delta).ok_or_else(|| {
                        Error::corrupt(format!("an index names delta {}, which is not of it", entry.delta))
                    })?;
                    let mut bytes = vec![0; entry.extent.len().as_usize()];
                    let plan = Plan::of(PlanPiece::at(entry.extent, entry.location, log));
                    plan.read(entry.extent.start(), &mut bytes, &*image, RequestClass::Background)?;
                    ReplayContent::Data(bytes)
                }
            };
            writer.push(entry.extent, &content)?;
            done += entry.extent.len();
            if !progress(done) {
                return Err(Error::new(ErrorKind::Cancelled, "the export was called off"));
            }
        }
        drop(view);
        Ok(writer.finish()?.0)
    }
}
