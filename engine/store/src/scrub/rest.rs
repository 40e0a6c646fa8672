//! A store at rest: checked without opening it, and repaired where that needs no guess.

use super::finding::{Finding, Remedy, RepairStep, ScrubReport};
use super::walk::{OpenLog, Scrubber, own_span};
use crate::index::block_cache::BlockCache;
use crate::index::entry::Entry;
use crate::index::writer::IndexWriter;
use crate::journal::record::LogIdentity;
use crate::journal::recovery::recover;
use crate::journal::straight::is_padding;
use crate::pace::Pace;
use crate::store::{self, Store, StoreOptions, UNITS};
use crate::stored_file::FileTable;
use crate::unit::branch::{DeltaId, Edition};
use crate::unit::files::{self, PublishError};
use crate::unit::inventory::Inventory;
use crate::unit::manifest::Manifest;
use crate::unit::opening::excuse_replayed;
use blocks::{ByteLen, DiskIndex, Error, ErrorKind, MachineId, OpenMode, Result, Storage, StoreId};
use std::collections::BTreeSet;
use std::sync::Arc;

const MANIFEST_LOST: &str =
    "checkpoints and branches are named nowhere else; bring the file back from a copy of the store";
const IMAGE_UNUSABLE: &str =
    "the horizon's state is nowhere else; bring the file back from a copy of the store";
const MARKER_UNKNOWN: &str = "the units do not agree on the store's identity";
const OPEN_LOG_LOST: &str = "what was written there is nowhere else, and cutting it off would lose what was acknowledged; \
                             the machine's agent still has it";

/// Checks everything in the store without changing anything. `progress` is told the bytes done and in all of the unit at
/// hand, with its folder. Errors: `Busy` where a server has the store; `InvalidInput` where there is no store; `Cancelled`
/// by the pace. What is wrong with the store is in the report.
pub fn check(
    storage: &Arc<dyn Storage>,
    pace: &Pace<'_>,
    progress: &dyn Fn(&str, ByteLen, ByteLen),
) -> Result<ScrubReport> {
    storage.lock()?;
    let mut report = ScrubReport::default();
    let names = storage.list("")?;
    let dirs = if names.iter().any(|name| name == UNITS) { storage.list(UNITS)? } else { Vec::new() };
    check_marker(&**storage, &dirs, &mut report)?;
    for name in dirs {
        if name.parse::<MachineId>().is_err() {
            report.notes.push(format!("{UNITS}/{name} is no unit and is left alone"));
            continue;
        }
        let dir = format!("{UNITS}/{name}");
        if store::is_rubbish(&**storage, &dir)? {
            report.notes.push(format!("{dir} was not made or removed completely; opening removes it"));
            continue;
        }
        check_unit(storage, &dir, pace, &|done, total| progress(&dir, done, total), &mut report)?;
    }
    Ok(report)
}

/// Puts right what needs no guess, then opens the store once, which cuts torn tails and removes what is left over. What
/// was done, and what is still wrong after it.
pub fn repair(
    storage: &Arc<dyn Storage>,
    pace: &Pace<'_>,
    progress: &dyn Fn(&str, ByteLen, ByteLen),
) -> Result<(Vec<String>, ScrubReport)> {
    let before = check(storage, pace, progress)?;
    let mut done = Vec::new();
    let mut files = BTreeSet::new();
    for finding in &before.findings {
        let Remedy::Exact(step) = &finding.remedy else { continue };
        if files.insert(finding.file.clone()) {
            match take_step(&**storage, finding, step) {
                Ok(line) => done.push(line),
                Err(error) => done.push(format!("{} could not be made again: {error}", finding.file)),
            }
        }
    }
    let options = StoreOptions { merge_in_background: false, ..StoreOptions::default() };
    // Without a marker that can be relied on a store is not opened at all.
    match Store::open(Arc::clone(storage), options) {
        Ok(store) => done.extend(store.findings()),
        Err(error) => done.push(format!("the store could not be opened: {error}")),
    }
    Ok((done, check(storage, pace, progress)?))
}

fn check_marker(storage: &dyn Storage, dirs: &[String], report: &mut ScrubReport) -> Result<()> {
    let what = match store::read_marker(storage) {
        Ok(Some(_)) => return Ok(()),
        Ok(None) => {
            return Err(Error::new(ErrorKind::InvalidInput, "there is no store in this folder"));
        }
        Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error),
        Err(error) => error.to_string(),
    };
    let remedy = match common_store(storage, dirs) {
        Some(_) => Remedy::Exact(RepairStep::RebuildMarker),
        None => Remedy::None(MARKER_UNKNOWN),
    };
    report.add(of_unit("the store", store::MARKER.to_owned(), what, remedy));
    Ok(())
}

/// The store that every readable manifest names.
fn common_store(storage: &dyn Storage, dirs: &[String]) -> Option<StoreId> {
    let manifests =
        dirs.iter().filter_map(|name| files::read_manifest(storage, &format!("{UNITS}/{name}")).ok());
    let stores: BTreeSet<StoreId> = manifests.map(|manifest| manifest.store).collect();
    stores.first().copied().filter(|_| stores.len() == 1)
}

fn of_unit(unit: &str, file: String, what: String, remedy: Remedy) -> Finding {
    Finding {
        unit: unit.to_owned(),
        disk: None,
        file,
        offset: None,
        extent: None,
        what,
        checkpoints: Vec::new(),
        branches: Vec::new(),
        remedy,
    }
}

fn check_unit(
    storage: &Arc<dyn Storage>,
    dir: &str,
    pace: &Pace<'_>,
    progress: &dyn Fn(ByteLen, ByteLen),
    report: &mut ScrubReport,
) -> Result<()> {
    let manifest = match files::read_manifest(&**storage, dir) {
        Ok(manifest) => Arc::new(manifest),
        Err(error) => {
            let file = files::manifest_name(dir);
            report.add(of_unit(dir, file, error.to_string(), Remedy::None(MANIFEST_LOST)));
            return Ok(());
        }
    };
    let mut images = Vec::new();
    for disk in manifest.disk_indexes() {
        match files::open_unit_image(&**storage, dir, &manifest, disk, false) {
            Ok(image) => images.push(image),
            Err(error) => {
                let file = files::present_image_name(&**storage, dir, disk, manifest.image_format)?;
                let mut finding =
                    of_unit(&manifest.name, file, error.to_string(), Remedy::None(IMAGE_UNUSABLE));
                finding.disk = Some(disk);
                finding.checkpoints = manifest.checkpoints.keys().copied().collect();
                report.add(finding);
                report.notes.push(format!("{dir}: the rest of the unit was not checked"));
                return Ok(());
            }
        }
    }
    for name in files::superfluous(&**storage, dir, &manifest)? {
        report.notes.push(format!("{name} is left from an interrupted operation; opening removes it"));
    }
    let table = FileTable::new(Arc::clone(storage));
    let cache = Arc::new(BlockCache::new(StoreOptions::default().index_cache));
    let mut inventory = Inventory::new(dir.to_owned(), table, cache, images);
    if let Some(replay) = &manifest.replay {
        let note = format!("{dir}: the consolidation up to checkpoint {} has to be repeated", replay.up_to);
        report.notes.push(note);
        for (disk, floor) in manifest.disk_indexes().zip(&replay.floors) {
            // Where its indexes are damaged the walk says so.
            let _ = excuse_replayed(&mut inventory, &manifest, disk, *floor);
        }
    }
    let open_logs = check_open_logs(&**storage, dir, &manifest, report)?;
    let everything = |_| true;
    let parts = (dir.to_owned(), manifest, inventory);
    report.absorb(Scrubber::new(&**storage, parts, pace, &everything, progress).run(&open_logs)?);
    Ok(())
}

/// The logs of open deltas as recovery would leave them.
fn check_open_logs(
    storage: &dyn Storage,
    dir: &str,
    manifest: &Manifest,
    report: &mut ScrubReport,
) -> Result<Vec<OpenLog>> {
    let mut logs = Vec::new();
    for (branch, ends) in manifest.branches.iter().map(|(id, branch)| (*id, &branch.ends)) {
        for (disk, end) in manifest.disk_indexes().zip(ends) {
            let name = files::log_name(dir, disk, Edition::first(end.open));
            let file = match storage.open(&name, OpenMode::Read) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match recover(&*file, LogIdentity { salt: manifest.salt, delta: end.open }) {
                Ok(log) => {
                    if !is_padding(&*file, log.len, log.torn)? {
                        let (torn, at) = (log.torn, log.len);
                        let note =
                            format!("{name}: a torn tail of {torn} bytes at offset {at}; opening cuts it");
                        report.notes.push(note);
                    }
                    logs.push(OpenLog { branch, disk, delta: end.open, len: log.len });
                }
                Err(error) => {
                    let mut finding =
                        of_unit(&manifest.name, name, error.to_string(), Remedy::None(OPEN_LOG_LOST));
                    (finding.disk, finding.branches) = (Some(disk), vec![branch]);
                    report.add(finding);
                }
            }
        }
    }
    Ok(logs)
}

fn take_step(storage: &dyn Storage, finding: &Finding, step: &RepairStep) -> Result<String> {
    let file = &finding.file;
    if *step == RepairStep::RebuildMarker {
        let id = common_store(storage, &storage.list(UNITS)?)
            .ok_or_else(|| Error::new(ErrorKind::Io, "the units no longer agree"))?;
        // The newer version is right for stores of either.
        store::write_marker(storage, id, store::VERSION_TIMED)?;
        return Ok(format!("{file} was made again from what the units say"));
    }
    let (disk, dir) = place_of(file)?;
    let mut manifest = files::read_manifest(storage, dir)?;
    if *step == RepairStep::DropMerged {
        manifest.merged.retain(|merged| files::index_name(dir, disk, merged.span()) != *file);
        files::publish(storage, dir, &manifest).map_err(PublishError::into_error)?;
        return Ok(format!("{file} is given up: the indexes that it was made of are whole"));
    }
    let is_it = |id: &DeltaId| files::index_name(dir, disk, own_span(manifest.edition(*id))) == *file;
    let delta = manifest.deltas.keys().copied().find(is_it);
    let delta = delta.ok_or_else(|| Error::new(ErrorKind::Io, format!("{file} is no index of one delta")))?;
    rebuild_index(storage, dir, disk, delta, &manifest)?;
    Ok(format!("{file} was made again from the log"))
}

/// The disk and the unit's folder of `units/ID/diskN/NAME`.
fn place_of(file: &str) -> Result<(DiskIndex, &str)> {
    let place = file.rsplit_once('/').and_then(|(folder, _)| {
        let (dir, disk) = folder.rsplit_once('/')?;
        Some((DiskIndex(disk.strip_prefix("disk")?.parse().ok()?), dir))
    });
    place.ok_or_else(|| Error::new(ErrorKind::Io, format!("{file} is no file of a disk")))
}

/// Makes the index of a sealed delta from its log, which was found whole. `Corrupt`, and nothing changed, where it would
/// not be what the manifest says.
fn rebuild_index(
    storage: &dyn Storage,
    dir: &str,
    disk: DiskIndex,
    delta: DeltaId,
    manifest: &Manifest,
) -> Result<()> {
    let known =
        manifest.deltas.get(&delta).ok_or_else(|| Error::corrupt(format!("{dir}: no delta {delta}")))?;
    let log = storage.open(&files::log_name(dir, disk, manifest.edition(delta)), OpenMode::Read)?;
    let recovered = recover(&*log, LogIdentity { salt: manifest.salt, delta })?;
    if recovered.len != known.log_len.end() {
        let context =
            format!("{}: {} bytes of it are whole, not {}", log.name(), recovered.len, known.log_len);
        return Err(Error::corrupt(context));
    }
    let name = files::index_name(dir, disk, own_span(manifest.edition(delta)));
    let new_name = format!("{name}.new");
    let mut writer = IndexWriter::new(files::create_anew(storage, &new_name)?, manifest.salt, delta, delta);
    for (extent, location) in recovered.map.iter() {
        writer.push(Entry { extent, delta, location: *location })?;
    }
    let (header, _) = writer.finish()?;
    if (header.entries, header.covered) != (known.entries, known.covered) {
        storage.remove(&new_name)?;
        let context =
            format!("{name}: the log gives {} entries, the manifest says {}", header.entries, known.entries);
        return Err(Error::corrupt(context));
    }
    storage.rename(&new_name, &name)?;
    storage.sync_dir(&files::disk_dir(dir, disk)).map(drop)
}
