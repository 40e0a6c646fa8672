//! `understudy agent at-shutdown` and `at-boot`: a machine's restart without a scan.

use crate::arguments::UsageError;
use crate::configuration::AgentSection;
use anyhow::{Context, bail};
use cbt::Carried;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Records what is known of the disks.
pub fn at_shutdown(state: Option<PathBuf>, file: AgentSection, as_json: bool) -> anyhow::Result<()> {
    super::start_logging();
    let carried = cbt::at_shutdown(&state_dir(state, &file)).context("nothing is recorded")?;
    print(&carried, "recorded: its next start needs no scan", as_json)
}

/// Goes on tracking from what was recorded.
pub fn at_boot(
    root: &Path,
    disks: Vec<PathBuf>,
    state: Option<PathBuf>,
    file: AgentSection,
    as_json: bool,
) -> anyhow::Result<()> {
    super::start_logging();
    let state = state_dir(state, &file);
    let disks = if disks.is_empty() { file.disks } else { disks };
    if disks.is_empty() {
        return Err(UsageError("which disks? --disk DEVICE, once for each".into()).into());
    }
    let carried = cbt::at_boot(root, &state, &disks).context("nothing is taken over")?;
    print(&carried, "tracked since before the first write: no scan", as_json)
}

fn state_dir(flag: Option<PathBuf>, file: &AgentSection) -> PathBuf {
    flag.or_else(|| file.state.clone()).unwrap_or_else(|| PathBuf::from(cbt::DEFAULT_STATE_DIR))
}

fn print(carried: &[Carried], well: &str, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let row = |disk: &Carried| json!({ "disk": disk.device, "carried": disk.refused.is_none(), "why_not": disk.refused });
        println!("{}", json!({ "disks": carried.iter().map(row).collect::<Vec<_>>() }));
    } else {
        for disk in carried {
            let fate = disk.refused.as_ref().map_or(well.to_owned(), |why| format!("will be scanned: {why}"));
            println!("understudy: {}: {fate}", disk.device.display());
        }
    }
    match carried.iter().filter(|disk| disk.refused.is_some()).count() {
        0 => Ok(()),
        count => bail!("{count} of {} disks will be scanned", carried.len()),
    }
}
