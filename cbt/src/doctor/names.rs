//! Names of disks that are others on a stand-in.

use super::{Finding, Root};

const ADVICE: &str = "name it by UUID= or LABEL=: `blkid` prints them";

pub(super) fn examine(root: &Root) -> Vec<Finding> {
    let mut findings = of_tables(root);
    findings.extend(of_command_line(&root.text("/proc/cmdline").unwrap_or_default()));
    if findings.is_empty() {
        findings.push(Finding::fine("names", "disks are named by what is on them"));
    }
    findings
}

fn of_tables(root: &Root) -> Vec<Finding> {
    let mut findings = Vec::new();
    // The column of the device, and whether a line without it still lets the machine boot.
    for (table, column, optional) in
        [("/etc/fstab", 0, &["nofail", "noauto"][..]), ("/etc/crypttab", 1, &["nofail", "noauto"])]
    {
        let text = root.text(table).unwrap_or_default();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let Some(device) = fields.get(column).filter(|device| is_of_this_machine(device)) else {
                continue;
            };
            let what = format!("{table} has {device}");
            let options = fields.iter().skip(2).flat_map(|field| field.split(','));
            let is_optional = options.into_iter().any(|option| optional.contains(&option));
            findings.push(match is_optional {
                true => Finding::doubtful("names", what, ADVICE),
                false => Finding::bad("names", format!("{what}, which the stand-in calls otherwise"), ADVICE),
            });
        }
    }
    findings
}

fn of_command_line(line: &str) -> Vec<Finding> {
    let named = |word: &str| {
        let (key, device) = word.split_once('=')?;
        let what = format!("the kernel is started with {word}");
        match (key, is_of_this_machine(device)) {
            ("root", true) => Some(Finding::bad("names", what, "let the boot loader say root=UUID=...")),
            ("resume", true) => Some(Finding::doubtful("names", what, "let it say resume=UUID=...")),
            _ => None,
        }
    };
    line.split_whitespace().filter_map(named).collect()
}

/// Whether the path names a disk by what it hangs on, and not by what is on it.
fn is_of_this_machine(device: &str) -> bool {
    let Some(name) = device.strip_prefix("/dev/") else { return false };
    if let Some(link) = name.strip_prefix("disk/") {
        return link.starts_with("by-id/") || link.starts_with("by-path/") || link.starts_with("by-diskseq/");
    }
    let kinds = ["sd", "hd", "vd", "xvd", "nvme", "mmcblk", "cciss", "dasd"];
    kinds.iter().any(|kind| {
        name.strip_prefix(kind)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/'))
    })
}
