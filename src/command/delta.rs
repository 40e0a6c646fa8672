//! `understudy delta`: delta files, without a server.

use crate::arguments::DeltaCommand;
use crate::output::size;
use anyhow::Context;
use blocks::{OpenMode, Storage};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::{
    DeltaFile, HostFile, HostStorage, ImageFormat, ImageOptions, Prefer, apply_delta, merge_deltas,
    open_image_with,
};

/// Does what was typed.
pub fn run(command: DeltaCommand, json: bool) -> anyhow::Result<()> {
    match command {
        DeltaCommand::Info { file } => info(&file, json),
        DeltaCommand::Merge { files, prefer, output } => merge(&files, prefer.as_deref(), &output, json),
        DeltaCommand::Apply { file, image, format } => apply(&file, &image, format.as_deref(), json),
    }
}

fn open(path: &Path) -> anyhow::Result<DeltaFile> {
    Ok(DeltaFile::open(HostFile::open(path, OpenMode::Read)?)?)
}

fn info(path: &Path, json: bool) -> anyhow::Result<()> {
    let file = open(path)?;
    let header = file.header();
    if json {
        let info = json!({
            "store": header.store.to_string(),
            "machine": header.machine.to_string(),
            "disk": header.disk.0,
            "len": header.len.get(),
            "from": header.from.0,
            "to": header.to.0,
            "time_ms": header.time.0,
            "records": file.record_count(),
            "covered_bytes": file.covered().get(),
        });
        println!("{info}");
        return Ok(());
    }
    println!("disk {} of machine {}, {}", header.disk, header.machine, size(header.len.get()));
    println!("from checkpoint {} to {} of store {}", header.from, header.to, header.store);
    println!("{} in {} records, none cut off", size(file.covered().get()), file.record_count());
    Ok(())
}

fn merge(paths: &[PathBuf], prefer: Option<&str>, output: &Path, json: bool) -> anyhow::Result<()> {
    let files = paths.iter().map(|path| open(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let prefer = match prefer {
        Some("first") => Prefer::First,
        Some(_) => Prefer::Last,
        None => Prefer::Neither,
    };
    let path = std::path::absolute(output)?;
    let (folder, name) = path.parent().zip(path.file_name()).context("not the name of a file")?;
    let name = name.to_str().with_context(|| format!("{}: the name is not UTF-8", output.display()))?;
    let storage = HostStorage::new(folder)?;
    let file = storage.open(name, OpenMode::CreateNew)?;
    let merged = merge_deltas(&files, file, prefer).and_then(|merged| storage.sync_dir("").map(|_| merged));
    if merged.is_err() {
        // Half a file has no end and is refused by every reader; it need not be there either.
        let _ = storage.remove(name);
    }
    let merged = merged?;
    if json {
        let reply = json!({
            "path": path,
            "bytes": merged.len.get(),
            "covered_bytes": merged.covered.get(),
            "decided_bytes": merged.decided.get(),
        });
        println!("{reply}");
        return Ok(());
    }
    println!("{}: {} of the disk", output.display(), size(merged.covered.get()));
    if !merged.decided.is_zero() {
        eprintln!("{} differed between branches", size(merged.decided.get()));
    }
    Ok(())
}

fn apply(path: &Path, image: &Path, format: Option<&str>, json: bool) -> anyhow::Result<()> {
    let delta = open(path)?;
    let format = format.map(str::parse::<ImageFormat>).transpose()?;
    let file = HostFile::open_exclusive(image, OpenMode::ReadWrite)?;
    let folder: Arc<dyn Storage> = Arc::new(HostStorage::beside(image)?);
    let options = ImageOptions { format, writable: true, parents: Vec::new(), folder: Some(folder) };
    let volume = open_image_with(file, options)?;
    apply_delta(&delta, &*volume, &|_, _| true)?;
    let header = delta.header();
    match json {
        true => println!(
            "{}",
            json!({ "path": image, "checkpoint": header.to.0, "bytes": delta.covered().get() })
        ),
        false => println!("{} holds checkpoint {}", image.display(), header.to),
    }
    Ok(())
}
