//! `understudy mount`: the datastore in a folder, for as long as the command runs.
//!
//! The server serves it; this process holds the connection that keeps it. However it ends, the server unmounts then.
//! Where the server ends first, what it leaves is detached here.

use super::stop_signal;
use crate::arguments::MountArguments;
use crate::control::Control;
use crate::output::ProgressView;
use anyhow::Context;
use server::control::api::{Progress, Reply, Request};
use std::path::{Path, PathBuf};

const FUSE_MAGIC: rustix::fs::FsWord = 0x6573_5546;

/// Mounts, waits for SIGTERM or an interrupt, and unmounts.
pub fn run(arguments: &MountArguments, control: &Control, json: bool) -> anyhow::Result<()> {
    let folder = std::path::absolute(&arguments.folder)?;
    let request = Request::Mount {
        folder: folder.to_str().context("the folder's name is not UTF-8")?.to_owned(),
        allow_other: arguments.allow_other,
        read_only: arguments.read_only,
    };
    let signals = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stopped = move || {
        if let Err(error) = signals.block_on(stop_signal()) {
            eprintln!("understudy: signals are not heard: {error}");
        }
    };
    let mut view = Mounted { folder: folder.clone(), json };
    let reply = control.ask_until(&request, &mut view, stopped).inspect_err(|_| detach(&folder))?;
    match reply {
        reply if json => println!("{}", serde_json::to_string(&reply)?),
        Reply::Unmounted { folder, in_use: false } => eprintln!("{folder} is unmounted"),
        Reply::Unmounted { folder, .. } => {
            eprintln!("{folder} is detached; what is open in it is served until it is closed");
        }
        other => anyhow::bail!("the server's answer makes no sense: {other:?}"),
    }
    Ok(())
}

/// Takes away what a server that is gone has left.
fn detach(folder: &Path) {
    match fuse_fs::detach_dead(folder) {
        Ok(true) => eprintln!("{} was detached: its server is gone", folder.display()),
        Ok(false) => {}
        Err(error) => eprintln!("understudy: {error}"),
    }
}

/// Says that it is mounted.
struct Mounted {
    folder: PathBuf,
    json: bool,
}

impl ProgressView for Mounted {
    fn show(&mut self, now: &Progress) {
        match self.json {
            true => println!("{}", serde_json::json!({ "mounted": self.folder })),
            false => println!("{}", now.step),
        }
        let is_seen = rustix::fs::statfs(&self.folder).is_ok_and(|found| found.f_type == FUSE_MAGIC);
        if !is_seen {
            eprintln!(
                "understudy: the server has mounted it where this process does not see it: does it run in a mount \
                 namespace of its own?"
            );
        }
    }

    fn end(&mut self) {}
}
