//! `understudy serve`: one image over NBD, without a server.

use super::stop_signal;
use anyhow::Context;
use blocks::OpenMode;
use nbd_server::{Export, Exports, Limits, ListenAddress, Listener, NbdServer};
use std::path::Path;
use store::{HostFile, ImageFormat};

/// Serves the image as the default export ("") until it is told to stop.
pub fn run(
    file: &Path,
    nbd: &[String],
    read_only: bool,
    format: Option<&str>,
    json: bool,
) -> anyhow::Result<()> {
    if file.to_string_lossy().ends_with(store::SETTLING_SUFFIX) {
        anyhow::bail!(
            "{} is half-settled: it holds neither the one checkpoint nor the other until its server has finished",
            file.display()
        );
    }
    super::start_logging();
    let mode = if read_only { OpenMode::Read } else { OpenMode::ReadWrite };
    let opened = if read_only { HostFile::open(file, mode) } else { HostFile::open_exclusive(file, mode) }?;
    let format = format.map(str::parse::<ImageFormat>).transpose()?;
    let volume = store::open_image(opened, format, !read_only)?;
    let exports = Exports::new();
    let export = Export::new(volume.clone()).with_description(file.display().to_string());
    exports.insert("", if read_only { export.read_only() } else { export })?;
    let listeners = nbd.iter().map(|address| listen(address)).collect::<anyhow::Result<Vec<_>>>()?;
    let uris: Vec<String> = listeners.iter().map(|listener| listener.uri("").to_string()).collect();
    let server = NbdServer::start(listeners, exports, Limits::default())?;
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

fn listen(address: &str) -> anyhow::Result<Listener> {
    let address: ListenAddress = address.parse().with_context(|| format!("--nbd {address}"))?;
    Ok(Listener::bind(&address)?)
}
