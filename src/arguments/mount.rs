//! The command that shows the datastore.

use clap::Args;
use std::path::PathBuf;

/// Where, and for whom.
#[derive(Debug, Args)]
pub struct MountArguments {
    /// A folder. What a dead server has left mounted there is taken over.
    pub folder: PathBuf,
    /// Let other users read everything, too; only root writes.
    #[arg(long)]
    pub allow_other: bool,
    /// Show sessions only for reading, like checkpoints.
    #[arg(long)]
    pub read_only: bool,
}
