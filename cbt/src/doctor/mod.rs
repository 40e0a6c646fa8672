//! What this machine offers, which rung of the ladder its disks will get, and what would stop a stand-in from booting.
//!
//! Everything is looked at and nothing is changed: what is attached in order to try it is taken away again, unless an agent had
//! left it there.

mod boot_loader;
mod drivers;
mod kernel;
mod names;
mod restarts;
mod scope;
mod tracking;

use crate::inventory;
use crate::tracker::TrackerWish;
use std::fmt;
use std::path::{Path, PathBuf};
use wire::Inventory;

/// How bad what was found is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// It may go wrong, or cannot be told.
    Doubtful,
    /// It will go wrong.
    Bad,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Fine => "fine",
            Verdict::Doubtful => "doubtful",
            Verdict::Bad => "bad",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What was looked at: `kernel`, `/dev/sda`, `boot loader`.
    pub about: String,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found.
    pub what: String,
    /// What to do about it; `None` where nothing is to be done.
    pub advice: Option<String>,
}

impl Finding {
    fn fine(about: &str, what: impl Into<String>) -> Finding {
        Finding { about: about.to_owned(), verdict: Verdict::Fine, what: what.into(), advice: None }
    }

    fn doubtful(about: &str, what: impl Into<String>, advice: impl Into<String>) -> Finding {
        let (what, advice) = (what.into(), Some(advice.into()));
        Finding { about: about.to_owned(), verdict: Verdict::Doubtful, what, advice }
    }

    fn bad(about: &str, what: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Bad, ..Finding::doubtful(about, what, advice) }
    }
}

/// Where the machine's files are: `/`, or in tests a folder that looks like one.
#[derive(Clone, Debug)]
struct Root(PathBuf);

impl Root {
    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.at(path)).ok()
    }
}

/// Looks at this machine as one whose `disks` are to be protected with that tracker. Without disks, those are meant that
/// hold a mounted file system that can be written. Needs root for all of it; what is barred is said to be.
pub fn examine(disks: &[PathBuf], wish: TrackerWish) -> Vec<Finding> {
    let root = Root(PathBuf::from("/"));
    let inventory = inventory::collect();
    let disks = if disks.is_empty() { scope::disks_in_use() } else { disks.to_vec() };
    let mut findings = kernel::examine(&root);
    if disks.is_empty() {
        findings.push(Finding::bad("disks", "no disk holds a mounted file system", "name them with --disk"));
    }
    findings.extend(disks.iter().map(|disk| tracking::examine(disk, wish)));
    findings.extend(scope::examine(&disks));
    findings.extend(examine_boot(&root, &inventory, &disks));
    findings
}

fn examine_boot(root: &Root, inventory: &Inventory, disks: &[PathBuf]) -> Vec<Finding> {
    let mut findings = vec![boot_loader::examine(root, inventory.firmware, disks)];
    findings.extend(drivers::examine(root, &inventory.kernel));
    findings.extend(names::examine(root));
    findings.push(restarts::examine(root));
    findings
}

/// The name of a disk in the kernel: the last part of the path that its links lead to.
fn kernel_name(disk: &Path) -> String {
    let path = std::fs::canonicalize(disk).unwrap_or_else(|_| disk.to_owned());
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
