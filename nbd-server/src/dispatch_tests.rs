use super::*;
use crate::protocol::command_flag::{DF, FUA, NO_HOLE, REQ_ONE};

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
    let request =
        Request { flags, command, cookie: 7, offset: ByteOffset::new(offset), len: ByteLen::new(len) };
    let agreed = Agreed { structured_replies: negotiated, base_allocation: negotiated };
    check(&request, agreed, ByteLen::new(DISK), read_only).map_err(|refusal| refusal.error)
}

#[test]
fn past_the_end_is_enospc_for_writes_and_einval_for_the_rest() {
    for (offset, len) in [(DISK, 1), (DISK - 1, 2), (u64::MAX, 1), (u64::MAX, 4096)] {
        assert_eq!(outcome(Command::Write, 0, offset, len), Err(NbdError::NoSpace));
        assert_eq!(outcome(Command::WriteZeroes, 0, offset, len), Err(NbdError::NoSpace));
        assert_eq!(outcome(Command::Read, 0, offset, len), Err(NbdError::Invalid));
        assert_eq!(outcome(Command::Trim, 0, offset, len), Err(NbdError::Invalid));
        assert_eq!(outcome(Command::BlockStatus, 0, offset, len), Err(NbdError::Invalid));
    }
    assert!(outcome(Command::Read, 0, DISK, 0).is_ok());
}

#[test]
fn each_flag_is_valid_only_where_the_specification_says() {
    use Command::*;
    for command in [Read, Write, Flush, Trim, WriteZeroes, BlockStatus] {
        let len = if command == Flush { 0 } else { 512 };
        assert!(outcome(command, FUA, 0, len).is_ok(), "FUA is valid for {command:?}");
        for (flag, valid_for) in [(NO_HOLE, WriteZeroes), (DF, Read), (REQ_ONE, BlockStatus)] {
            assert_eq!(outcome(command, flag, 0, len).is_ok(), command == valid_for, "{command:?} {flag:#x}");
        }
        for unknown in [1 << 4, 1 << 5, 1 << 15] {
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
    assert_eq!(outcome(Command::Cache, 0, 0, 512), Err(NbdError::Invalid));
    assert_eq!(outcome(Command::Unknown(99), 0, 0, 512), Err(NbdError::Invalid));
    assert_eq!(outcome(Command::Flush, 0, 512, 0), Err(NbdError::Invalid));
}
