//! Whether this machine is itself a stand-in: then its agent is the guest's, never a second source.

use crate::disk::read_text;
use blocks::SessionId;

/// Where the hypervisor leaves the session's mark: QEMU's firmware configuration, and the serial number in the
/// firmware's tables, for hypervisors that have only that.
const MARKS: [&str; 2] =
    ["/sys/firmware/qemu_fw_cfg/by_name/opt/understudy/session/raw", "/sys/class/dmi/id/product_serial"];
const PREFIX: &str = "understudy-session-";

/// The session that this machine runs in.
pub(crate) fn own_session() -> Option<SessionId> {
    MARKS.iter().filter_map(read_text).find_map(|text| parse(&text))
}

fn parse(mark: &str) -> Option<SessionId> {
    mark.strip_prefix(PREFIX)?.trim_end_matches('\0').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mark_of_ours_makes_a_session() {
        assert!(parse("understudy-session-00112233445566778899aabbccddeeff").is_some());
        assert!(parse("00112233445566778899aabbccddeeff").is_none());
        assert!(parse("understudy-session-").is_none());
    }
}
