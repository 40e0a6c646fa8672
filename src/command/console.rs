//! The serial console of a stand-in, on this terminal.

use anyhow::{Context, anyhow};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use server::control::api::{GuestInfo, SessionInfo};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;

/// Ctrl-]
const LEAVE: u8 = 0x1d;
/// How much of what was said before is shown.
const BEFORE_BYTES_MAX: usize = 4096;

/// The terminal as it was, again when this is dropped.
struct Raw(Termios);

impl Raw {
    fn begin() -> std::io::Result<Raw> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

/// Attaches this terminal until Ctrl-] is typed or the guest ends; without a terminal it prints where the console is.
pub fn attach(session: &SessionInfo) -> anyhow::Result<()> {
    let guest =
        session.guest.as_ref().ok_or_else(|| anyhow!("session {} has no stand-in", session.session))?;
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        println!("{}", guest.console);
        return Ok(());
    }
    let stream = UnixStream::connect(&guest.console)
        .with_context(|| format!("the console at {} (the stand-in is {})", guest.console, guest.state))?;
    eprintln!("attached; Ctrl-] leaves");
    show_before(guest)?;
    let raw = Raw::begin()?;
    let said = copy(stream);
    drop(raw);
    eprintln!();
    said
}

fn show_before(guest: &GuestInfo) -> anyhow::Result<()> {
    let bytes = std::fs::read(&guest.console_log).unwrap_or_default();
    let end = &bytes[bytes.len().saturating_sub(BEFORE_BYTES_MAX)..];
    std::io::stdout().write_all(end)?;
    Ok(std::io::stdout().flush()?)
}

fn copy(mut stream: UnixStream) -> anyhow::Result<()> {
    let mut typed = stream.try_clone()?;
    // It ends with the program where the guest ends first: a read of a terminal cannot be called off.
    std::thread::spawn(move || {
        let mut key = [0];
        while matches!(std::io::stdin().read(&mut key), Ok(1)) && key[0] != LEAVE {
            if typed.write_all(&key).is_err() {
                break;
            }
        }
        let _ = typed.shutdown(std::net::Shutdown::Both);
    });
    let (mut bytes, mut screen) = ([0; 4096], std::io::stdout());
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            read => screen.write_all(&bytes[..read]).and_then(|()| screen.flush())?,
        }
    }
}
