//! `understudy serve`: one image over NBD, without a server.

use anyhow::Context;
use std::path::Path;

/// Serves the image until it is told to stop.
pub fn run(
    _file: &Path,
    _nbd: &[String],
    _read_only: bool,
    _format: Option<&str>,
    _json: bool,
) -> anyhow::Result<()> {
    Err(anyhow::anyhow!("not wired")).context("serve")
}
