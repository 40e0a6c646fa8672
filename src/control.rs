//! Asking a running server.

use crate::output::ProgressView;
use anyhow::{Context, anyhow, bail};
use server::control::api::{Event, Reply, Request};
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// The server's data folder where nothing else is said.
pub const DEFAULT_DATA: &str = "/var/lib/understudy/server";

/// Where to ask.
#[derive(Debug)]
pub struct Control {
    socket: PathBuf,
}

impl Control {
    /// Asks at the socket that was named, else at the one in the server's data folder.
    pub fn new(named: Option<PathBuf>, data: Option<PathBuf>) -> Control {
        let in_data = || data.unwrap_or_else(|| PathBuf::from(DEFAULT_DATA)).join("control.sock");
        Control { socket: named.unwrap_or_else(in_data) }
    }

    /// Sends the request, shows progress, and returns what comes of it.
    pub fn ask(&self, request: &Request, progress: &mut dyn ProgressView) -> anyhow::Result<Reply> {
        answer(self.send(request)?, progress)
    }

    /// The same for what goes on until it is called off: when `until` has returned.
    pub fn ask_until(
        &self,
        request: &Request,
        progress: &mut dyn ProgressView,
        until: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<Reply> {
        let stream = self.send(request)?;
        let end = stream.try_clone()?;
        std::thread::spawn(move || {
            until();
            // Where that fails the server is gone already, and the answer says so.
            let _ = end.shutdown(Shutdown::Write);
        });
        answer(stream, progress)
    }

    fn send(&self, request: &Request) -> anyhow::Result<UnixStream> {
        let mut stream = UnixStream::connect(&self.socket).with_context(|| {
            format!(
                "no server answers at {} (is it running? UNDERSTUDY_DATA names its data folder, --control its socket)",
                self.socket.display()
            )
        })?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        Ok(stream)
    }
}

fn answer(stream: UnixStream, progress: &mut dyn ProgressView) -> anyhow::Result<Reply> {
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line?)
            .context("the server's answer makes no sense; are the versions equal?")?
        {
            Event::Progress(now) => progress.show(&now),
            Event::Done { reply } => {
                progress.end();
                return Ok(reply);
            }
            Event::Failed { message, .. } => {
                progress.end();
                return Err(anyhow!(message));
            }
        }
    }
    bail!("the server went away before it had answered; repeat the command to go on")
}
