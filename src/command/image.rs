//! `understudy image ...`: image files without a server.

use super::package;
use crate::arguments::{ImageArguments, ImageCommand, UsageError};
use crate::output;
use anyhow::{Context, anyhow, bail};
use blocks::{
    Allocation, BlockShift, ByteLen, ByteOffset, Extent, ExtentStatus, OpenMode, Storage, StorageFile, Volume,
};
use serde_json::json;
use server::control::api::Progress;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use store::{
    CheckReport, Difference, FaultKind, HostFile, HostStorage, ImageFormat, ImageKind, ImageOptions, NewImage,
};

/// Does what was asked.
pub fn run(command: ImageCommand, json: bool) -> anyhow::Result<()> {
    match command {
        ImageCommand::Info { image } => info(&image, json),
        ImageCommand::Check { image, repair } => check(&image, repair, json),
        ImageCommand::Convert { image, output, to, jobs, no_sync } => {
            let wanted = Conversion { output: &output, to: &to, jobs, no_sync };
            convert(&image, &wanted, json)
        }
        ImageCommand::Compare { image, other, other_format } => {
            let parents = image.parents.clone();
            let other = ImageArguments { file: other, disk: None, format: other_format, parents };
            compare(&image, &other, json)
        }
        ImageCommand::Map { image } => map(&image, json),
        ImageCommand::Resize { image, size } => resize(&image, ByteLen::new(size.as_u64()), json),
        ImageCommand::Merge { child, into } => merge(&child, &into, json),
        ImageCommand::Create { output, format, parent: Some(parent), .. } => {
            create_child(&output, &format, &parent, json)
        }
        ImageCommand::Create { output, format, size, parent: None, fixed, sector } => {
            let logical_sector = if sector == "4096" { BlockShift::KIB_4 } else { BlockShift::SECTOR };
            let len = ByteLen::new(size.map_or(0, |size| size.as_u64()));
            let new = NewImage { fixed, logical_sector, ..NewImage::new(format.parse()?, len) };
            new.check().map_err(|error| UsageError(error.to_string()))?;
            make(&output, new)?.flush()?;
            print_made(&output, &format, len, json);
            Ok(())
        }
    }
}

fn print_made(output: &Path, format: &str, len: ByteLen, json: bool) {
    let path = output.display();
    match json {
        true => println!("{}", json!({ "file": output, "format": format, "bytes": len.get() })),
        false => println!("{path}: {format}, a disk of {} ({len} bytes)", output::size(len.get())),
    }
}

fn create_child(output: &Path, format: &str, parent: &Path, json: bool) -> anyhow::Result<()> {
    if format.parse::<ImageFormat>()? != ImageFormat::Vhd {
        return Err(UsageError(format!("children are made as vhd, not as {format}")).into());
    }
    let file = HostFile::open(parent, OpenMode::Read)?;
    let (storage, name) = destination(output)?;
    let beside = HostStorage::beside(parent)?;
    if std::fs::canonicalize(storage.path())? != std::fs::canonicalize(beside.path())? {
        bail!("{}: a child is made in the folder of its parent, {}", output.display(), parent.display());
    }
    store::create_child(&storage, name, &*file)?;
    storage.sync_dir("")?;
    let len = store::open_image_with(
        HostFile::open(output, OpenMode::Read)?,
        ImageOptions { parents: vec![file], ..ImageOptions::default() },
    )?
    .len();
    print_made(output, format, len, json);
    Ok(())
}

fn resize(image: &ImageArguments, len: ByteLen, json: bool) -> anyhow::Result<()> {
    if package::find(image)?.is_some() {
        return Err(UsageError(format!("{}: nothing in a package is resized", image.file.display())).into());
    }
    let (file, format) = open_file(image, OpenMode::ReadWrite)?;
    let folder: Arc<dyn Storage> = Arc::new(HostStorage::beside(&image.file)?);
    let options = ImageOptions { format: Some(format), folder: Some(folder), ..ImageOptions::default() };
    store::resize_image_with(&file, options, len)?;
    print_made(&image.file, format.name(), len, json);
    Ok(())
}

fn merge(child: &Path, into: &Path, json: bool) -> anyhow::Result<()> {
    let from = HostFile::open(child, OpenMode::Read)?;
    let to = HostFile::open_exclusive(into, OpenMode::ReadWrite)?;
    let step = format!("{} into {}", child.display(), into.display());
    watched(&step, json, |progress| store::merge_image(from, to, progress))?;
    match json {
        true => println!("{}", json!({ "child": child, "into": into })),
        false => println!("{} holds the disk that {} was", into.display(), child.display()),
    }
    Ok(())
}

fn open_file(image: &ImageArguments, mode: OpenMode) -> anyhow::Result<(Arc<dyn StorageFile>, ImageFormat)> {
    let file = match mode {
        OpenMode::Read => HostFile::open(&image.file, mode),
        _ => HostFile::open_exclusive(&image.file, mode),
    }?;
    let format = match &image.format {
        Some(format) => format.parse()?,
        None => store::probe_image(&*file)?,
    };
    Ok((file, format))
}

/// The image for reading, on those that it is allowed to stand on.
fn open(image: &ImageArguments) -> anyhow::Result<(Arc<dyn Volume>, ImageFormat)> {
    if let Some(package) = package::find(image)? {
        return package::open(&package, image);
    }
    let (file, format) = open_file(image, OpenMode::Read)?;
    let parents = image.parents.iter().map(|path| HostFile::open(path, OpenMode::Read));
    let parents = parents.collect::<blocks::Result<Vec<_>>>()?;
    let folder: Arc<dyn Storage> = Arc::new(HostStorage::beside(&image.file)?);
    let options = ImageOptions { format: Some(format), writable: false, parents, folder: Some(folder) };
    let hint = "a file that the image stands on is allowed with --parent FILE";
    let volume = store::open_image_with(file, options).map_err(|error| match error.kind() {
        blocks::ErrorKind::Unsupported if error.to_string().contains("stands on") => {
            anyhow!(error).context(hint)
        }
        _ => anyhow!(error),
    })?;
    Ok((volume, format))
}

/// The folder of a file that is to be, and the file's name.
fn destination(output: &Path) -> anyhow::Result<(HostStorage, &str)> {
    let name = output.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| UsageError(format!("{} is not the name of a file", output.display())))?;
    let folder = match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        bail!("the folder {} does not exist", folder.display());
    }
    Ok((HostStorage::new(folder)?, name))
}

/// Makes a new image; the folder's entry is on the medium when this returns.
fn make(output: &Path, new: NewImage) -> anyhow::Result<Arc<dyn Volume>> {
    let (storage, name) = destination(output)?;
    let volume = store::create_image_with(&storage, name, new)?;
    storage.sync_dir("")?;
    Ok(volume)
}

fn info(image: &ImageArguments, json: bool) -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt;
    if let Some(package) = package::find(image)? {
        package::info(&package, &image.file, json);
        return Ok(());
    }
    let (volume, format) = open(image)?;
    let path = image.file.display();
    let metadata = std::fs::metadata(&image.file).with_context(|| format!("{path}"))?;
    let (len, sector) = (volume.len().get(), volume.alignment().bytes());
    let (file, stored) = (metadata.len(), metadata.blocks() * 512);
    if json {
        let parts = json!({ "file": image.file, "format": format.name(), "bytes": len, "sector_bytes": sector,
            "file_bytes": file, "stored_bytes": stored });
        println!("{parts}");
        return Ok(());
    }
    println!("{path}: {format}");
    println!("disk    {} ({len} bytes, sectors of {sector})", output::size(len));
    println!("file    {} ({file} bytes), of which {} take room", output::size(file), output::size(stored));
    Ok(())
}

fn check(image: &ImageArguments, repair: bool, json: bool) -> anyhow::Result<()> {
    if let Some(package) = package::find(image)? {
        return match repair {
            false => package::check(&package, &image.file, json),
            true => {
                Err(UsageError(format!("{}: nothing in a package is repaired", image.file.display())).into())
            }
        };
    }
    let mode = if repair { OpenMode::ReadWrite } else { OpenMode::Read };
    let (file, format) = open_file(image, mode)?;
    let folder: Arc<dyn Storage> = Arc::new(HostStorage::beside(&image.file)?);
    let parents = Vec::new();
    let options = ImageOptions { format: Some(format), writable: repair, parents, folder: Some(folder) };
    let report = store::check_image_with(&file, options)?;
    match json {
        true => println!("{}", report_as_json(&report)),
        false => print_report(&image.file, &report),
    }
    match report.is_clean() {
        true => Ok(()),
        false => bail!(
            "{}: {} damaged, {} leaked",
            image.file.display(),
            report.damaged(),
            output::size(report.leaked().get())
        ),
    }
}

pub(super) fn print_report(file: &Path, report: &CheckReport) {
    for fault in report.faults() {
        println!("{fault}");
    }
    if report.not_listed() > 0 {
        println!("and {} more", report.not_listed());
    }
    if report.faults().is_empty() {
        println!("{}: nothing is wrong", file.display());
    } else if report.repaired() > 0 {
        println!("{} repaired", report.repaired());
    }
}

pub(super) fn report_as_json(report: &CheckReport) -> serde_json::Value {
    let faults: Vec<_> = report
        .faults()
        .iter()
        .map(|fault| {
            let kind = match fault.kind {
                FaultKind::Leak => "leak",
                FaultKind::Pending => "pending",
                FaultKind::Damage => "damage",
            };
            let place =
                fault.place.map(|place| json!({ "start": place.start().get(), "bytes": place.len().get() }));
            json!({ "kind": kind, "what": fault.what, "place": place, "repaired": fault.repaired })
        })
        .collect();
    json!({ "clean": report.is_clean(), "damaged": report.damaged(), "leaked_bytes": report.leaked().get(),
        "repaired": report.repaired(), "not_listed": report.not_listed(), "faults": faults })
}

/// Shows how far it is, from whichever thread calls.
pub(super) fn watched<T>(
    step: &str,
    json: bool,
    work: impl FnOnce(&(dyn Fn(ByteLen, ByteLen) -> bool + Sync)) -> T,
) -> T {
    let view = Mutex::new(Shown(output::progress(json)));
    let report = |done: ByteLen, total: ByteLen| {
        let now = Progress { step: step.to_owned(), done: done.get(), total: total.get() };
        view.lock().unwrap_or_else(PoisonError::into_inner).0.show(&now);
        true
    };
    let result = work(&report);
    view.into_inner().unwrap_or_else(PoisonError::into_inner).0.end();
    result
}

/// What shows progress, handed from thread to thread under a lock.
struct Shown(Box<dyn output::ProgressView + Send>);

/// A program's own work is done best by one a processor.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).max(2)
}

fn threads(jobs: Option<u16>) -> usize {
    // They wait for the medium more than they work.
    jobs.map_or((4 * processors()).clamp(4, 16), usize::from)
}

/// What is to be made of an image.
struct Conversion<'a> {
    output: &'a Path,
    to: &'a str,
    jobs: Option<u16>,
    no_sync: bool,
}

fn convert(image: &ImageArguments, wanted: &Conversion<'_>, json: bool) -> anyhow::Result<()> {
    let &Conversion { output, to, jobs, no_sync } = wanted;
    let (from, from_format) = open(image)?;
    let kind: ImageKind = to.parse()?;
    kind.check_len(from.len()).map_err(|error| UsageError(error.to_string()))?;
    let (storage, name) = destination(output)?;
    let storage = if no_sync { storage.without_syncs() } else { storage };
    let step = format!("{} to {}", image.file.display(), output.display());
    watched(&step, json, |progress| {
        // Into memory nobody waits for the medium.
        let threads = if no_sync && jobs.is_none() { processors() } else { threads(jobs) };
        store::export_volume(&*from, &storage, name, kind, threads, progress)
    })?;
    let len = from.len().get();
    match json {
        true => println!(
            "{}",
            json!({ "from": image.file, "from_format": from_format.name(), "to": output,
            "to_format": to, "bytes": len })
        ),
        false => println!("{}: {to}, a disk of {} ({len} bytes)", output.display(), output::size(len)),
    }
    Ok(())
}

fn compare(image: &ImageArguments, other: &ImageArguments, json: bool) -> anyhow::Result<()> {
    let ((one, _), (two, _)) = (open(image)?, open(other)?);
    let found =
        watched("comparing", json, |progress| store::compare_volumes(&*one, &*two, threads(None), progress))?;
    let (first, second) = (image.file.display(), other.file.display());
    if json {
        let at = match found {
            Some(Difference::At(at)) => Some(at.get()),
            _ => None,
        };
        let same_len = one.len() == two.len();
        println!("{}", json!({ "equal": found.is_none(), "first_difference": at, "same_length": same_len }));
    }
    match found {
        None if json => Ok(()),
        None => {
            println!("{first} and {second} hold the same disk");
            Ok(())
        }
        Some(Difference::At(at)) => bail!("{first} and {second} differ at byte {at}"),
        Some(Difference::LengthOnly) => bail!(
            "{first} has {} bytes and {second} {}; what both have is equal, the rest zero",
            one.len(),
            two.len()
        ),
    }
}

/// All runs of a volume, neighbours of one kind joined.
fn runs(volume: &dyn Volume) -> blocks::Result<Vec<ExtentStatus>> {
    let mut all: Vec<ExtentStatus> = Vec::new();
    let mut at = ByteOffset::ZERO;
    while let Some(rest) = Extent::between(at, volume.len().end()) {
        for run in volume.status(rest)? {
            at = run.extent.end();
            match all.last_mut() {
                Some(last) if last.allocation == run.allocation => {
                    last.extent = Extent::between(last.extent.start(), at).unwrap_or(last.extent);
                }
                _ => all.push(run),
            }
        }
    }
    Ok(all)
}

fn map(image: &ImageArguments, json: bool) -> anyhow::Result<()> {
    let (volume, _) = open(image)?;
    let kind = |allocation| match allocation {
        Allocation::Data => "data",
        Allocation::Zero => "zero",
        Allocation::Hole => "hole",
    };
    let runs = runs(&*volume)?;
    if json {
        let rows = runs.iter().map(|run| {
            json!({ "start": run.extent.start().get(), "bytes": run.extent.len().get(),
                "kind": kind(run.allocation) })
        });
        println!("{}", serde_json::Value::from_iter(rows));
        return Ok(());
    }
    let rows = runs.iter().map(|run| {
        let (start, len) = (run.extent.start().get(), run.extent.len().get());
        vec![start.to_string(), len.to_string(), output::size(len), kind(run.allocation).to_owned()]
    });
    println!("{}", output::table(&["START", "BYTES", "", "KIND"], rows));
    Ok(())
}
