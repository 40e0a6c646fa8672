//! `understudy serve`: one image over NBD, without a server.

use super::{package, stop_signal};
use crate::arguments::{ImageArguments, NbdArguments, UsageError};
use crate::configuration::NbdKeys;
use anyhow::Context;
use blocks::{OpenMode, Storage, Volume};
use nbd_server::{Export, Exports, ListenAddress, Listener, NbdServer};
use std::path::PathBuf;
use std::sync::Arc;
use store::{HostFile, HostStorage, ImageFormat, ImageOptions};

/// Which image, and how.
pub struct Served {
    pub file: PathBuf,
    pub disk: Option<u16>,
    pub read_only: bool,
    pub format: Option<String>,
}

/// Serves the image as the default export ("") until it is told to stop.
pub fn run(served: &Served, nbd: &[String], security: NbdArguments, json: bool) -> anyhow::Result<()> {
    super::start_logging();
    let Served { file, read_only, .. } = served;
    let read_only = *read_only;
    if file.to_string_lossy().ends_with(store::SETTLING_SUFFIX) {
        anyhow::bail!(
            "{} is half-settled: it holds neither the one checkpoint nor the other until its server has finished",
            file.display()
        );
    }
    let mode_of_sockets = super::nbd::socket_mode(security.nbd_socket_mode.as_deref(), None)?;
    let options = super::nbd::options(security, NbdKeys::default())?;
    let encrypted = options.is_encryption_required();
    let volume = open(served)?;
    let exports = Exports::new();
    let export = Export::new(volume.clone()).with_description(file.display().to_string());
    exports.insert("", if read_only { export.read_only() } else { export })?;
    let mut listeners = Listener::inherited()?;
    let default = [super::server::DEFAULT_NBD.to_owned()];
    let nbd = if nbd.is_empty() && listeners.is_empty() { &default[..] } else { nbd };
    for address in nbd {
        listeners.push(listen(address, mode_of_sockets)?);
    }
    let uri = |listener: &Listener| match encrypted {
        true => listener.uri("").encrypted().to_string(),
        false => listener.uri("").to_string(),
    };
    let uris: Vec<String> = listeners.iter().map(uri).collect();
    let server = NbdServer::start_with(listeners, exports, options)?;
    match json {
        true => {
            println!("{}", serde_json::json!({ "file": file, "bytes": volume.len().get(), "uris": uris }))
        }
        false => uris.iter().for_each(|uri| println!("{uri}")),
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(stop_signal())?;
    server.shutdown().context("flushing at the end")?;
    volume.flush().with_context(|| format!("flushing {}", file.display()))
}

fn open(served: &Served) -> anyhow::Result<Arc<dyn Volume>> {
    let Served { file, disk, read_only, format } = served;
    if disk.is_some() {
        let (file, format) = (file.clone(), format.clone());
        let image = ImageArguments { file, disk: *disk, format, parents: Vec::new() };
        let package = package::find(&image)?.context("a disk is only looked for in a package")?;
        return Ok(package::open(&package, &image)?.0);
    }
    let opened = match read_only {
        true => HostFile::open(file, OpenMode::Read),
        false => HostFile::open_exclusive(file, OpenMode::ReadWrite),
    }?;
    let format = format.as_deref().map(str::parse::<ImageFormat>).transpose()?;
    if format.is_none() && hypervisor::looks_like_archive(&*opened)? {
        let context =
            format!("{} is an archive: say which of its disks with --disk N --read-only", file.display());
        return Err(UsageError(context).into());
    }
    let folder: Arc<dyn Storage> = Arc::new(HostStorage::beside(file)?);
    let opening = ImageOptions { format, writable: !read_only, parents: Vec::new(), folder: Some(folder) };
    Ok(store::open_image_with(opened, opening)?)
}

fn listen(address: &str, mode: Option<u32>) -> anyhow::Result<Listener> {
    let address: ListenAddress = address.parse().with_context(|| format!("--nbd {address}"))?;
    Ok(Listener::bind_with_mode(&address, mode)?)
}
