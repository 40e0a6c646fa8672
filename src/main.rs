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
            eprintln!("understudy: {error:#}");
            ExitCode::from(if error.is::<arguments::UsageError>() { 2 } else { 1 })
        }
    }
}
