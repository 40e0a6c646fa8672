//! OVAs and OVF descriptors as `understudy image` and `understudy serve` take them.

use super::image::{print_report, report_as_json, watched};
use crate::arguments::{ImageArguments, UsageError};
use crate::output;
use anyhow::{anyhow, bail};
use blocks::{OpenMode, Storage, StorageFile, Volume};
use hypervisor::{DescribedDisk, Descriptor, Firmware, Package, Verdict};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use store::{CheckReport, HostFile, HostStorage, ImageFormat, ImageOptions};

/// The package that is meant: an archive, a descriptor, or a folder with one. `None` where it is an image: what the file
/// is was said, or it looks like none of them.
pub fn find(image: &ImageArguments) -> anyhow::Result<Option<Package>> {
    if image.format.is_some() && image.disk.is_none() {
        return Ok(None);
    }
    let path = &image.file;
    let name = path.display().to_string();
    if path.is_dir() {
        // The storage that follows no link is made of a file's path; which file is not asked.
        let folder: Arc<dyn Storage> = Arc::new(HostStorage::beside(path.join("any"))?);
        return Ok(Some(Package::of_folder(name, folder)?));
    }
    let descriptor = path.file_name().and_then(|name| name.to_str()).filter(|name| has_ending(name, ".ovf"));
    if let Some(descriptor) = descriptor {
        let folder: Arc<dyn Storage> = Arc::new(HostStorage::beside(path)?);
        return Ok(Some(Package::in_folder(name, folder, descriptor)?));
    }
    let file = HostFile::open(path, OpenMode::Read)?;
    if has_ending(&name, ".ova") || hypervisor::looks_like_archive(&*file)? {
        return Ok(Some(Package::in_archive(file)?));
    }
    match image.disk {
        Some(_) => {
            Err(UsageError(format!("{name} is one disk: --disk is for OVAs and OVF descriptors")).into())
        }
        None => Ok(None),
    }
}

fn has_ending(name: &str, ending: &str) -> bool {
    name.to_ascii_lowercase().ends_with(ending)
}

/// The disk that is meant, for reading.
pub fn open(package: &Package, image: &ImageArguments) -> anyhow::Result<(Arc<dyn Volume>, ImageFormat)> {
    let number = match (image.disk, package.descriptor().disks.len()) {
        (Some(number), _) => usize::from(number),
        (None, 1) => 0,
        (None, disks) => {
            let context = format!("{} has {disks} disks: say which with --disk", image.file.display());
            return Err(UsageError(context).into());
        }
    };
    let (disk, file) = package.disk(number)?;
    let said = image.format.as_deref().map(str::parse).transpose()?;
    let format = said.map_or_else(|| format_of(number, disk), Ok)?;
    Ok((open_disk(file, format)?, format))
}

/// Disks in packages stand alone: they name no other files, and none would be followed.
fn open_disk(file: Arc<dyn StorageFile>, format: ImageFormat) -> blocks::Result<Arc<dyn Volume>> {
    store::open_image_with(file, alone(format))
}

fn alone(format: ImageFormat) -> ImageOptions {
    ImageOptions { format: Some(format), ..ImageOptions::default() }
}

fn format_of(number: usize, disk: &DescribedDisk) -> anyhow::Result<ImageFormat> {
    match &disk.format {
        Ok(format) => Ok(format.name().parse()?),
        Err(address) => bail!(
            "disk {number} is of a format that is not known, '{}'; --disk {number} --format says what it is",
            address.escape_debug()
        ),
    }
}

/// Says what the package is.
pub fn info(package: &Package, file: &Path, json: bool) {
    let descriptor = package.descriptor();
    if json {
        println!("{}", info_as_json(package, file));
        return;
    }
    let manifest = if package.has_manifest() { "with a manifest" } else { "without a manifest" };
    println!("{}: OVF {}, {manifest}", file.display(), descriptor.version.name());
    println!("machine {}", descriptor.name.escape_debug());
    println!("        {}", words(descriptor));
    descriptor.nics.iter().for_each(|mac| println!("network {mac}"));
    for (number, disk) in descriptor.disks.iter().enumerate() {
        let len = disk
            .capacity
            .map_or_else(|| "a disk".to_owned(), |len| format!("{} ({len} bytes)", output::size(len.get())));
        let format = disk
            .format
            .as_ref()
            .map_or_else(|other| format!("'{}'", other.escape_debug()), ToString::to_string);
        let place =
            disk.file.as_ref().map_or_else(|| "empty".to_owned(), |file| file.escape_debug().to_string());
        println!("disk {number}  {len}, {format}: {place}");
    }
}

fn words(descriptor: &Descriptor) -> String {
    let unknown = || "an unknown number of".to_owned();
    let cpus = descriptor.cpus.map_or_else(unknown, |cpus| cpus.to_string());
    let memory = descriptor.memory.map_or_else(|| "unknown".to_owned(), |len| output::size(len.get()));
    format!("{cpus} processors, memory {memory}, firmware {}", firmware(descriptor).unwrap_or("unknown"))
}

fn firmware(descriptor: &Descriptor) -> Option<&'static str> {
    descriptor.firmware.map(|firmware| match firmware {
        Firmware::Bios => "bios",
        Firmware::Uefi => "uefi",
    })
}

fn info_as_json(package: &Package, file: &Path) -> Value {
    let descriptor = package.descriptor();
    let nics: Vec<_> = descriptor.nics.iter().map(ToString::to_string).collect();
    let disk = |(number, disk): (usize, &DescribedDisk)| {
        let format = disk.format.as_ref().ok().map(|format| format.name());
        json!({ "disk": number, "file": disk.file, "format": format, "serial": disk.serial,
            "bytes": disk.capacity.map(blocks::ByteLen::get) })
    };
    let disks: Vec<_> = descriptor.disks.iter().enumerate().map(disk).collect();
    json!({ "file": file, "format": "ovf", "ovf_version": descriptor.version.name(),
        "descriptor": package.descriptor_name(), "manifest": package.has_manifest(),
        "machine": descriptor.name, "cpus": descriptor.cpus, "firmware": firmware(descriptor),
        "memory_bytes": descriptor.memory.map(blocks::ByteLen::get), "nics": nics, "disks": disks })
}

/// Verifies the manifest, and the structures of every disk.
pub fn check(package: &Package, file: &Path, json: bool) -> anyhow::Result<()> {
    let step = format!("digesting {}", file.display());
    let verdict = watched(&step, json, |progress| package.verify(progress))?;
    let disks = package.descriptor().disks.iter().enumerate().filter(|(_, disk)| disk.file.is_some());
    let looked: Vec<_> = disks.map(|(number, _)| (number, check_disk(package, number))).collect();
    match json {
        true => println!("{}", check_as_json(&verdict, &looked)),
        false => print_check(file, &verdict, &looked),
    }
    let damaged: usize = looked.iter().map(|(_, disk)| disk.damaged()).sum::<usize>() + verdict.faults.len();
    match damaged {
        0 => Ok(()),
        damaged => Err(anyhow!("{}: {damaged} faults", file.display())),
    }
}

/// What a look at a disk has found.
#[derive(Default)]
struct Looked {
    /// Missing where the format has no structures, and where it could not be looked at.
    report: Option<CheckReport>,
    fault: Option<String>,
}

impl Looked {
    fn damaged(&self) -> usize {
        let is_clean = self.report.as_ref().is_none_or(CheckReport::is_clean);
        usize::from(!is_clean) + usize::from(self.fault.is_some())
    }
}

fn check_disk(package: &Package, number: usize) -> Looked {
    let mut looked = Looked::default();
    looked.fault = look(package, number, &mut looked.report).err().map(|error| format!("{error:#}"));
    looked
}

fn look(package: &Package, number: usize, report: &mut Option<CheckReport>) -> anyhow::Result<()> {
    let (disk, file) = package.disk(number)?;
    let format = format_of(number, disk)?;
    if format != ImageFormat::Raw {
        *report = Some(store::check_image_with(&file, alone(format))?);
    }
    let len = open_disk(file, format)?.len();
    match disk.capacity {
        Some(capacity) if capacity != len => {
            bail!("the disk has {len} bytes, and the descriptor says {capacity}")
        }
        _ => Ok(()),
    }
}

fn print_check(file: &Path, verdict: &Verdict, looked: &[(usize, Looked)]) {
    let mut is_clean = verdict.faults.is_empty();
    verdict.faults.iter().for_each(|fault| println!("damage: {fault}"));
    for (number, disk) in looked {
        if let Some(fault) = &disk.fault {
            println!("damage: disk {number}: {fault}");
        }
        if let Some(report) = disk.report.as_ref().filter(|report| !report.faults().is_empty()) {
            print_report(Path::new(&format!("disk {number}")), report);
        }
        is_clean &= disk.damaged() == 0;
    }
    match verdict.manifest_files {
        Some(files) if is_clean => println!("{}: {files} files are what the manifest says", file.display()),
        Some(_) => {}
        None => println!("{}: there is no manifest: only structures were looked at", file.display()),
    }
}

fn check_as_json(verdict: &Verdict, looked: &[(usize, Looked)]) -> Value {
    let disk = |(number, disk): &(usize, Looked)| {
        let report = disk.report.as_ref().map(report_as_json);
        json!({ "disk": number, "fault": disk.fault, "report": report })
    };
    let is_clean = verdict.faults.is_empty() && looked.iter().all(|(_, disk)| disk.damaged() == 0);
    let disks: Vec<_> = looked.iter().map(disk).collect();
    json!({ "clean": is_clean, "manifest_files": verdict.manifest_files, "faults": verdict.faults, "disks": disks })
}
