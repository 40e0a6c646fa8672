//! `understudy`: the one program that users install.
//!
//! Only the command line, the configuration and the wiring live here; what a command does is in the rooms it calls.
//! Exit status: 0 done, 1 failed, 2 wrong usage.

mod arguments;
mod command;
mod configuration;
mod control;
mod output;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = arguments::Arguments::parse();
    match command::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("understudy: {}", in_words(&error));
            ExitCode::from(if error.is::<arguments::UsageError>() { 2 } else { 1 })
        }
    }
}

/// The error and its causes, each said once: some messages contain their cause already.
fn in_words(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        match (text.is_empty(), text.contains(&cause)) {
            (true, _) => cause,
            (false, true) => text,
            (false, false) => format!("{text}: {cause}"),
        }
    })
}
