//! Whether a restart of the machine will need a scan.

use super::{Finding, Root};

/// What records a shutdown, and what takes the record over: packaging/ has both.
const HOOKS: [&str; 2] =
    ["/usr/lib/systemd/system-shutdown/understudy", "/etc/initramfs-tools/scripts/local-premount/understudy"];

pub(super) fn examine(root: &Root) -> Finding {
    let missing = HOOKS.iter().find(|hook| !root.at(hook).exists());
    match missing {
        None => Finding::fine(
            "restarts",
            "hooks for shutdown and initramfs are there: no scan after a shutdown in order",
        ),
        // A choice, and nothing that would go wrong.
        Some(hook) => Finding {
            advice: Some("install them from packaging/ if that takes too long here".into()),
            ..Finding::fine(
                "restarts",
                format!("each disk is hashed once after a restart ({hook} is not there)"),
            )
        },
    }
}
