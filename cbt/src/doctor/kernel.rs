//! The kernel, and what it lets us do.

use super::{Finding, Root};

/// The oldest kernel that the tracker is meant for.
const OLDEST: (u32, u32) = (5, 15);

pub(super) fn examine(root: &Root) -> Vec<Finding> {
    let release = root.text("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut findings = vec![of_release(release.trim()), of_rights(root)];
    findings.extend(of_lockdown(root));
    findings
}

fn of_release(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST => Finding::fine("kernel", release),
        (Some(_), Some(_)) => {
            let what = format!("{release} is older than {}.{}", OLDEST.0, OLDEST.1);
            Finding::doubtful("kernel", what, "disks may be tracked by scanning alone")
        }
        _ => Finding::doubtful(
            "kernel",
            format!("'{release}' is no release that we know"),
            "see what each disk gets",
        ),
    }
}

/// CAP_SYS_ADMIN: freezing, BPF before 5.8, reading every disk.
fn of_rights(root: &Root) -> Finding {
    let status = root.text("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    match bits {
        Some(bits) if bits & (1 << 21) != 0 => {
            Finding::fine("rights", "file systems can be frozen, programs loaded")
        }
        _ => Finding::bad(
            "rights",
            "this process is not root (it has no CAP_SYS_ADMIN)",
            "run it as the agent will run",
        ),
    }
}

fn of_lockdown(root: &Root) -> Option<Finding> {
    let text = root.text("/sys/kernel/security/lockdown")?;
    text.contains("[confidentiality]").then(|| {
        let what = "lockdown is 'confidentiality': the kernel lets no program look at its requests";
        Finding::bad("lockdown", what, "boot with lockdown=integrity, or disks are tracked by scanning alone")
    })
}
