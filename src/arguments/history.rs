//! The commands on a machine's history: checkpoints, branches, exported deltas.

use super::formats;
use clap::Subcommand;
use std::path::PathBuf;

/// What can be done with checkpoints.
#[derive(Debug, Subcommand)]
pub enum CheckpointsCommand {
    /// Forget checkpoints; what only they held gives its space back.
    #[command(after_help = "\
Example:
  understudy checkpoints delete web1 17 18

All of them or none. Refused, with the holder named, for one that a session, a branch or a view
needs, a protected one, the one that the images hold, and the newest.")]
    Delete {
        /// A name or identity.
        machine: String,
        /// Numbers or names.
        #[arg(required = true)]
        checkpoints: Vec<String>,
    },
    /// Keep a checkpoint from being deleted or consolidated away.
    #[command(after_help = "\
Example:
  understudy checkpoints protect web1 before-upgrade --until 2027-01-31

All history since then stays as well, and takes up its room.")]
    Protect {
        /// A name or identity.
        machine: String,
        /// Its number or name.
        checkpoint: String,
        /// Until when.
        #[arg(long, value_name = "DATE|forever", default_value = "forever")]
        until: String,
    },
    /// Protect a checkpoint no longer.
    #[command(after_help = "Example:\n  understudy checkpoints unprotect web1 before-upgrade")]
    Unprotect {
        /// A name or identity.
        machine: String,
        /// Its number or name.
        checkpoint: String,
    },
}

/// What can be done with a branch.
#[derive(Debug, Subcommand)]
pub enum BranchCommand {
    /// Make a line that stays, of a checkpoint or of a session as it is now.
    #[command(after_help = "\
Examples:
  understudy branch clone 1f2e3d4c --name after-repair
  understudy branch clone web1 --at 17 --name test-bed
  understudy recover web1 --at test-bed --drill

It outlives its session, and keeps its base from being consolidated until it is dropped.")]
    Clone {
        /// A machine's name or identity, or a session.
        of: String,
        /// A checkpoint's number or name, or a time; the newest, or the session as it is, by default.
        #[arg(long, value_name = "CHECKPOINT|TIME")]
        at: Option<String>,
        /// What it is called, and its first checkpoint.
        #[arg(long)]
        name: String,
    },
    /// Give up a clone or a superseded branch, and what only it holds.
    #[command(after_help = "\
Example:
  understudy branch drop web1 3

A failback leaves what the machine had written after the session's checkpoint as a superseded
branch. It can be recovered and exported like any other history, and keeps its base from being
consolidated, until it is dropped.")]
    Drop {
        /// A name or identity.
        machine: String,
        /// Its number, as `understudy branches` shows it.
        branch: u64,
    },
}

/// What can be done with delta files.
#[derive(Debug, Subcommand)]
pub enum DeltaCommand {
    /// Show what a delta file is about, having looked through all of it.
    #[command(after_help = "Example:\n  understudy delta info web1-17-23.delta")]
    Info {
        /// A delta file.
        file: PathBuf,
    },
    /// Make one file of several that holds the newest of each byte.
    #[command(after_help = "\
Examples:
  understudy delta merge 17-23.delta 23-31.delta -o 17-31.delta
  understudy delta merge main.delta drill.delta --prefer last -o both.delta

The oldest first. Files that do not follow on one another are of different branches: where they
differ the places are named and nothing is written, unless --prefer says which one counts.")]
    Merge {
        /// Delta files, the oldest first.
        #[arg(required = true, num_args = 2..)]
        files: Vec<PathBuf>,
        /// Which counts where branches differ.
        #[arg(long, value_parser = ["first", "last"])]
        prefer: Option<String>,
        /// The new file.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Bring an image that holds the one checkpoint to the other.
    #[command(after_help = "\
Example:
  understudy delta apply web1-17-23.delta web1.vhd --format vhd

The image must hold the checkpoint that the file starts from. What was interrupted is repeated.")]
    Apply {
        /// A delta file.
        file: PathBuf,
        /// An image.
        image: PathBuf,
        /// Its format; found out by default. A raw disk can be made to look like another: name it.
        #[arg(long, value_parser = formats())]
        format: Option<String>,
    },
}
