//! The kinds of requests that are told apart.

use crate::request::Command;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the commands of the protocol; Unknown is every other number")]
pub enum Operation {
    Read,
    Write,
    Flush,
    Trim,
    WriteZeroes,
    Cache,
    BlockStatus,
    Unknown,
}

impl Operation {
    /// How many kinds there are.
    pub const COUNT: usize = Operation::ALL.len();

    /// All of them.
    pub const ALL: [Operation; 8] = [
        Operation::Read,
        Operation::Write,
        Operation::Flush,
        Operation::Trim,
        Operation::WriteZeroes,
        Operation::Cache,
        Operation::BlockStatus,
        Operation::Unknown,
    ];

    pub(crate) fn of(command: Command) -> Operation {
        match command {
            Command::Read => Operation::Read,
            Command::Write => Operation::Write,
            Command::Flush => Operation::Flush,
            Command::Trim => Operation::Trim,
            Command::WriteZeroes => Operation::WriteZeroes,
            Command::Cache => Operation::Cache,
            Command::BlockStatus => Operation::BlockStatus,
            Command::Disconnect | Command::Unknown(_) => Operation::Unknown,
        }
    }

    /// The protocol's name in kebab case.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::Trim => "trim",
            Operation::WriteZeroes => "write-zeroes",
            Operation::Cache => "cache",
            Operation::BlockStatus => "block-status",
            Operation::Unknown => "unknown",
        }
    }
}
