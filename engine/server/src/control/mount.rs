//! Showing the datastore in a folder for as long as somebody asks for it.

use super::api::{Progress, Reply};
use super::job::Job;
use crate::agent::blocking;
use crate::datastore::Mounting;
use crate::services::Services;
use blocks::{Error, ErrorKind, Result};
use fuse_fs::{Ended, MountOptions};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether somebody else has unmounted it.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Mounts, says so, and unmounts when whoever asked has gone, or the server ends.
pub(super) async fn mount(
    services: Arc<Services>,
    folder: String,
    options: MountOptions,
    job: Job,
) -> Result<Reply> {
    let path = PathBuf::from(&folder);
    if !path.is_absolute() {
        let context = format!("{folder}: an absolute path is needed");
        return Err(Error::new(ErrorKind::InvalidInput, context));
    }
    let mounting = blocking(move || Mounting::start(services, &path, options)).await?;
    job.report(Progress { step: format!("mounted at {folder}"), done: 0, total: 0 });
    while job.is_wanted() && !mounting.is_over() {
        tokio::select! {
            _ = job.called_off() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
    let ended = blocking(move || mounting.end()).await?;
    Ok(Reply::Unmounted { folder, in_use: ended == Ended::Detached })
}
