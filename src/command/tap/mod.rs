//! The in-line tap as processes and devices: cbt's volume behind a block device of the machine's, which another process than the
//! agent's keeps while agents are replaced.
//!
//! ```text
//!   holder ── keeps what would go with the agent, starts again what dies ──► agent ── serves the volumes
//! ```
//!
//! Shown in one of two ways: `loops`, a file of fuse-fs and a loop device over it, everywhere; `ublk`, the kernel's own way, where
//! the kernel has it and the program was built with it.

mod holder;
mod loops;
#[cfg(feature = "ublk")]
mod ublk;

use crate::arguments::UsageError;
use blocks::Result;
use cbt::TapFront;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the agent finds that it has a holder, and what that one keeps for it. A holder may be of an earlier version than the agent
/// that it starts.
const HELD: &str = "UNDERSTUDY_TAP_CONNECTIONS";

/// Shows tapped disks, and stops.
pub trait Front: TapFront {
    /// Takes the devices away. `Busy`, by name, while one is used; the others may be gone then.
    fn release(&self) -> Result<()>;
}

/// How tapped disks are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Through {
    Loops,
    #[cfg(feature = "ublk")]
    Ublk,
}

/// The front of a process with a holder; `None` where this process has none and is to become one.
pub fn given(run_dir: &Path) -> anyhow::Result<Option<Arc<dyn Front>>> {
    let Ok(held) = std::env::var(HELD) else { return Ok(None) };
    holder::end_with_it()?;
    #[cfg(feature = "ublk")]
    if held == ublk::HELD {
        return Ok(Some(Arc::new(ublk::Front::default())));
    }
    Ok(Some(Arc::new(loops::Front::given(run_dir, &held)?)))
}

/// Holds these disks' devices, shown in the way of that word, and runs this very program as their agent, until that ends for good.
pub fn hold(devices: &[PathBuf], run_dir: &Path, through: Option<&str>) -> anyhow::Result<()> {
    if let Some(word) = through.filter(|word| !["auto", "loop", "ublk"].contains(word)) {
        return Err(UsageError(format!("tap-through {word}: wants auto, loop or ublk")).into());
    }
    match chosen(through)? {
        Through::Loops => {
            #[cfg(feature = "ublk")]
            ublk::remove_left(devices)?;
            holder::hold(loops::Mounts::hold(devices, run_dir)?)
        }
        #[cfg(feature = "ublk")]
        Through::Ublk => {
            loops::remove_left(devices, run_dir)?;
            holder::hold(ublk::Devices::of(devices))
        }
    }
}

/// The way that this word means: `auto` where there is none.
#[cfg(feature = "ublk")]
fn chosen(word: Option<&str>) -> anyhow::Result<Through> {
    match (word, ublk_disk::check()) {
        (Some("loop"), _) => Ok(Through::Loops),
        (_, Ok(())) => Ok(Through::Ublk),
        (Some("ublk"), Err(error)) => Err(UsageError(format!("--tap-through ublk: {error}")).into()),
        (_, Err(error)) => {
            tracing::debug!("ublk is not used: {error}");
            Ok(Through::Loops)
        }
    }
}

/// The way that this word means: `auto` where there is none.
#[cfg(not(feature = "ublk"))]
fn chosen(word: Option<&str>) -> anyhow::Result<Through> {
    if word == Some("ublk") {
        let text = "--tap-through ublk: this program was built without it (cargo build --features ublk)";
        return Err(UsageError(text.to_owned()).into());
    }
    Ok(Through::Loops)
}
