use super::*;
use crate::protocol::command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};

const DISK: u64 = 64 << 20;

fn outcome(command: Command, flags: u16, offset: u64, len: u64) -> std::result::Result<Action, NbdError> {
    checked(command, flags, offset, len, true, false)
}

fn checked(
    command: Command,
    flags: u16,
    offset: u64,
    len: u64,
    negotiated: bool,
    read_only: bool,
) -> std::result::Result<Action, NbdError> {
    let headers = if negotiated { Headers::Structured } else { Headers::Simple };
    let names: &[&str] = if negotiated { &["base:allocation"] } else { &[] };
    check_as(&agreed(headers, names), command, flags, offset, len, read_only)
}

fn agreed(headers: Headers, names: &[&str]) -> Agreed {
    let contexts = (1..).zip(names).map(|(id, name)| Selected { id, name: (*name).to_owned() });
    Agreed { headers, contexts: contexts.collect() }
}

fn check_as(
    agreed: &Agreed,
    command: Command,
    flags: u16,
    offset: u64,
    len: u64,
    read_only: bool,
) -> std::result::Result<Action, NbdError> {
    let request =
        Request { flags, command, cookie: 7, offset: ByteOffset::new(offset), len: ByteLen::new(len) };
    check(&request, agreed, ByteLen::new(DISK), read_only).map_err(|refusal| refusal.error)
}

#[test]
fn past_the_end_is_enospc_for_writes_and_einval_for_the_rest() {
    for (offset, len) in [(DISK, 1), (DISK - 1, 2), (u64::MAX, 1), (u64::MAX, 4096)] {
        assert_eq!(outcome(Command::Write, 0, offset, len), Err(NbdError::NoSpace));
        assert_eq!(outcome(Command::WriteZeroes, 0, offset, len), Err(NbdError::NoSpace));
        assert_eq!(outcome(Command::Read, 0, offset, len), Err(NbdError::Invalid));
        assert_eq!(outcome(Command::Trim, 0, offset, len), Err(NbdError::Invalid));
        assert_eq!(outcome(Command::Cache, 0, offset, len), Err(NbdError::Invalid));
        assert_eq!(outcome(Command::BlockStatus, 0, offset, len), Err(NbdError::Invalid));
    }
    assert!(outcome(Command::Read, 0, DISK, 0).is_ok());
}

#[test]
fn each_flag_is_valid_only_where_the_specification_says() {
    use Command::*;
    for command in [Read, Write, Flush, Trim, Cache, WriteZeroes, BlockStatus] {
        let len = if command == Flush { 0 } else { 512 };
        assert!(outcome(command, FUA, 0, len).is_ok(), "FUA is valid for {command:?}");
        for (flag, valid_for) in
            [(NO_HOLE, WriteZeroes), (FAST_ZERO, WriteZeroes), (DF, Read), (REQ_ONE, BlockStatus)]
        {
            assert_eq!(outcome(command, flag, 0, len).is_ok(), command == valid_for, "{command:?} {flag:#x}");
        }
        for unknown in [PAYLOAD_LEN, 1 << 6, 1 << 15] {
            assert_eq!(outcome(command, unknown, 0, len), Err(NbdError::Invalid));
        }
    }
    assert_eq!(checked(Read, DF, 0, 512, false, false), Err(NbdError::Invalid));
}

#[test]
fn a_read_only_export_refuses_each_change_and_nothing_else() {
    for command in [Command::Write, Command::WriteZeroes, Command::Trim] {
        assert_eq!(checked(command, 0, 0, 512, true, true), Err(NbdError::NotPermitted));
    }
    assert!(checked(Command::Read, 0, 0, 512, true, true).is_ok());
    assert!(checked(Command::Flush, 0, 0, 0, true, true).is_ok());
    assert!(checked(Command::BlockStatus, 0, 0, 512, true, true).is_ok());
}

#[test]
fn payloads_are_bounded_and_effects_are_not() {
    let too_long = u64::from(PAYLOAD_BYTES_MAX) + 1;
    assert!(outcome(Command::Read, 0, 0, too_long - 1).is_ok());
    assert_eq!(outcome(Command::Read, 0, 0, too_long), Err(NbdError::Overflow));
    assert_eq!(checked(Command::Read, 0, 0, too_long, false, false), Err(NbdError::Invalid));
    assert_eq!(outcome(Command::Write, 0, 0, too_long), Err(NbdError::Invalid));
    assert!(outcome(Command::Trim, 0, 0, DISK).is_ok());
    assert!(outcome(Command::WriteZeroes, 0, 0, DISK).is_ok());
    assert!(outcome(Command::BlockStatus, 0, 0, DISK).is_ok());
}

#[test]
fn what_was_not_negotiated_or_does_not_exist_is_einval() {
    assert_eq!(checked(Command::BlockStatus, 0, 0, 512, false, false), Err(NbdError::Invalid));
    assert_eq!(outcome(Command::BlockStatus, 0, 0, 0), Err(NbdError::Invalid));
    assert_eq!(outcome(Command::Unknown(99), 0, 0, 512), Err(NbdError::Invalid));
    assert_eq!(outcome(Command::Flush, 0, 512, 0), Err(NbdError::Invalid));
}

#[test]
fn extended_headers_have_long_lengths_and_name_payloads() {
    let agreed = agreed(Headers::Extended, &["base:allocation", "qemu:allocation-depth"]);
    let ask = |command, flags, len| check_as(&agreed, command, flags, 0, len, false);
    let long = 1 << 40;
    assert!(ask(Command::Write, 0, 512).is_ok(), "as QEMU sends it");
    assert!(ask(Command::Write, PAYLOAD_LEN, 512).is_ok());
    assert_eq!(ask(Command::Write, PAYLOAD_LEN, (32 << 20) + 1), Err(NbdError::Invalid));
    assert_eq!(ask(Command::Read, 0, long), Err(NbdError::Overflow));
    for command in [Command::Read, Command::Trim, Command::WriteZeroes, Command::Cache, Command::Flush] {
        assert_eq!(ask(command, PAYLOAD_LEN, 512), Err(NbdError::Invalid), "{command:?} has no payload");
    }
    for (len, fits) in [(8, true), (12, true), (16, true), (4, false), (13, false), (8 + 4 * 65, false)] {
        assert_eq!(ask(Command::BlockStatus, PAYLOAD_LEN, len).is_ok(), fits, "{len}");
    }
    let big = ByteLen::new(1 << 50);
    let request = Request {
        flags: 0,
        command: Command::Trim,
        cookie: 1,
        offset: ByteOffset::new(7),
        len: ByteLen::new(long),
    };
    let extent = Extent::new(ByteOffset::new(7), ByteLen::new(long)).unwrap();
    assert_eq!(check(&request, &agreed, big, false), Ok(Action::Trim { extent: Some(extent), fua: false }));
}

#[test]
fn a_filter_names_selected_contexts_once() {
    let agreed = agreed(Headers::Extended, &["base:allocation", "qemu:allocation-depth"]);
    let payload = |len: u64, ids: &[u32]| {
        let mut bytes = len.to_be_bytes().to_vec();
        ids.iter().for_each(|id| bytes.extend(id.to_be_bytes()));
        bytes
    };
    let ask = |payload: &[u8]| {
        filter(payload, ByteOffset::new(512), &agreed, ByteLen::new(DISK))
            .map(|(extent, found)| (extent.len().get(), found.iter().map(|one| one.id).collect::<Vec<_>>()))
            .map_err(|refusal| refusal.error)
    };
    assert_eq!(ask(&payload(4096, &[2, 1])), Ok((4096, vec![2, 1])));
    assert_eq!(ask(&payload(4096, &[])), Ok((4096, vec![])));
    for wrong in
        [payload(4096, &[1, 1]), payload(4096, &[3]), payload(DISK, &[1]), payload(0, &[1]), vec![0; 7]]
    {
        assert_eq!(ask(&wrong), Err(NbdError::Invalid), "{wrong:?}");
    }
}
