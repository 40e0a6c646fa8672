//! Writing a machine with all its disks into one archive (OVA).

use super::api::Reply;
use super::definition::{lens_at, ovf_version};
use super::export::{self, THREADS, Wanted};
use super::job::Job;
use crate::definition::{define, inventory};
use crate::services::Services;
use blocks::{ByteLen, CheckpointId, DiskIndex, Error, ErrorKind, OpenMode, Result, Storage, StorageFile};
use hypervisor::{Definition, DiskFormat, OvfVersion, PackageWriter, Source};
use std::sync::Arc;
use store::{HostStorage, ImageKind, Unit, View, export_stream};

/// What goes into the archive.
struct Content {
    definition: Definition,
    checkpoint: CheckpointId,
    /// Of every disk, which hold the checkpoint while they are written.
    views: Vec<View>,
}

/// The format by which an archive is asked for.
pub(super) const FORMAT: &str = "ova";

/// Writes the archive; after an error no file is left behind.
pub(super) fn export(services: &Services, wanted: &Wanted, job: &Job) -> Result<Reply> {
    if wanted.disk.is_some() {
        let context = "an OVA carries all disks of a machine: --disk is for images";
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    let version = ovf_version(wanted.ovf_version.as_deref())?;
    let (folder, name) = export::destination(&wanted.output)?;
    // Before a session is asked for a checkpoint, which would stay behind.
    inventory(&export::unit_of(services, wanted)?.0)?;
    let (unit, checkpoint) = export::chosen(services, wanted)?;
    let package = Content::of(&unit, checkpoint)?;
    let storage = HostStorage::new(&folder)?;
    let file = storage.open(&name, OpenMode::CreateNew)?;
    let written = package.write(file, version, job).and_then(|len| storage.sync_dir("").map(|_| len));
    if written.is_err()
        && let Err(error) = storage.remove(&name)
    {
        tracing::warn!(%error, "half an export is left behind");
    }
    let bytes = written.map_err(|error| error.context(format_args!("exporting to {}", wanted.output)))?;
    Ok(Reply::Exported { path: wanted.output.clone(), bytes: bytes.get() })
}

impl Content {
    /// Looks at everything that can be refused before there is a file.
    fn of(unit: &Unit, checkpoint: CheckpointId) -> Result<Content> {
        let lens = lens_at(unit, checkpoint)?;
        let unnamed = Source::File { path: String::new(), format: DiskFormat::Vmdk };
        let defined = define(unit, &lens, vec![unnamed; lens.len()])?;
        defined.notes.iter().for_each(|note| tracing::info!(machine = unit.name(), note, "exporting"));
        for (number, len) in lens.iter().enumerate() {
            let fits = ImageKind::VmdkStream.check_len(*len);
            fits.map_err(|error| error.context(format_args!("disk {number} of '{}'", unit.name())))?;
        }
        let view = |(number, _)| unit.view(checkpoint, DiskIndex(number));
        let views = (0..).zip(&lens).map(view).collect::<Result<_>>()?;
        Ok(Content { definition: defined.definition, checkpoint, views })
    }

    fn write(self, file: Arc<dyn StorageFile>, version: OvfVersion, job: &Job) -> Result<ByteLen> {
        let lens = self.definition.disks.iter().map(|disk| disk.len);
        let total: ByteLen = lens.clone().sum();
        let name = self.definition.name.clone();
        let mut writer = PackageWriter::new(file, self.definition.clone(), version)?;
        let mut before = ByteLen::ZERO;
        for ((number, view), len) in self.views.iter().enumerate().zip(lens) {
            let step = format!("writing disk {number} of '{name}' at checkpoint {}", self.checkpoint);
            let progress = |done, _| job.step(&step, before + done, total);
            writer.disk(|member| export_stream(view, member, THREADS, &progress))?;
            before += len;
        }
        writer.finish()
    }
}
