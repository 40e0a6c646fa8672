//! Which rung of the ladder a disk gets: by trying.

use super::{Finding, kernel_name};
use crate::tracker::{TrackerKind, TrackerWish, best, detach, is_pinned};
use blocks::ErrorKind;
use std::path::Path;

pub(super) fn examine(disk: &Path, wish: TrackerWish) -> Finding {
    let about = disk.display().to_string();
    let name = kernel_name(disk);
    let was_pinned = is_pinned(&name);
    let tried = best(disk, wish).map(|(tracker, why)| (tracker.kind(), why));
    let finding = match tried {
        Ok((TrackerKind::Ebpf, why)) if was_pinned => Finding::fine(&about, why),
        Ok((TrackerKind::Ebpf, _)) => Finding::fine(
            &about,
            "changes are found with eBPF; it is gone through once when protection begins",
        ),
        Ok((_, why)) => {
            let advice = "each checkpoint reads the whole disk; see the reason for what would change that";
            Finding::doubtful(&about, why, advice)
        }
        Err(error) if error.kind() == ErrorKind::Busy => {
            Finding::fine(&about, format!("an agent has it: {error}"))
        }
        Err(error) => Finding::bad(&about, error.to_string(), "name a whole disk that can be protected"),
    };
    if !was_pinned
        && is_pinned(&name)
        && let Err(error) = detach(&name)
    {
        let what = format!("{}; what was attached to try it could not be taken away: {error}", finding.what);
        return Finding::doubtful(&about, what, "it is harmless, and gone after a restart");
    }
    finding
}
