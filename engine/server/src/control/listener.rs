//! The control socket: a request on a line, then lines of answers.

use super::api::{Event, Request};
use super::dispatch::dispatch;
use super::job::Job;
use crate::services::Services;
use crate::stop::Stop;
use blocks::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use wire::{Incoming, Listener};

/// The longest request.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// How long a request may take to arrive, and a line of an answer to be read.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long requests that are being worked on may take to come to rest when the server ends.
const DRAIN: Duration = Duration::from_secs(20);

/// Answers requests until `stop` is set; then those in work are called off and waited for.
pub(crate) async fn run(services: Arc<Services>, listener: Listener, mut stop: Stop) {
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.heard() => break,
            Some(_) = requests.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok(Incoming::Unix(stream)) => drop(requests.spawn(answer(services.clone(), stream, stop.clone()))),
                Ok(Incoming::Tcp(_)) => tracing::error!("the control socket is not to be reached over TCP"),
                Err(error) => {
                    tracing::warn!(%error, "no request could be accepted");
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
            }
        }
    }
    let drained = tokio::time::timeout(DRAIN, async { while requests.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("{} requests did not come to rest in time", requests.len());
    }
}

async fn answer(services: Arc<Services>, stream: UnixStream, stop: Stop) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let result = match tokio::time::timeout(PATIENCE, read_request(&mut reader)).await {
        Ok(Ok(None)) => return,
        Ok(Ok(Some(request))) => work(services, request, reader, &mut writer, stop).await,
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::new(ErrorKind::Cancelled, "no request came in time")),
    };
    let last = match result {
        Ok(reply) => Event::Done { reply },
        Err(error) => {
            tracing::debug!(%error, "a request failed");
            Event::Failed { kind: kind_name(error.kind()).into(), message: error.to_string() }
        }
    };
    // Who has gone does not read it; the work is done or called off either way.
    let _ = write_line(&mut writer, &last).await;
}

async fn read_request(reader: &mut BufReader<OwnedReadHalf>) -> Result<Option<Request>> {
    let mut line = Vec::new();
    let read = reader.take(REQUEST_BYTES_MAX).read_until(b'\n', &mut line).await;
    if read.map_err(|error| Error::io("reading a request", error))? == 0 {
        return Ok(None);
    }
    let wrong = |error| Error::with_source(ErrorKind::InvalidInput, "the request is not understood", error);
    serde_json::from_slice(&line).map_err(wrong).map(Some)
}

/// Works on a request and passes its progress on. The work is never dropped half-done: when the connection closes, or
/// the server ends, it is told so and comes to rest by itself.
async fn work(
    services: Arc<Services>,
    request: Request,
    mut reader: BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    mut stop: Stop,
) -> Result<super::api::Reply> {
    let (lines, mut progress) = mpsc::channel(4);
    let (gone, gone_seen) = watch::channel(false);
    let job = Job::new(lines, gone_seen);
    let mut working = tokio::spawn(async move { Box::pin(dispatch(services, request, job)).await });
    let mut listening = true;
    loop {
        tokio::select! {
            done = &mut working => {
                return done.unwrap_or_else(|error| Err(Error::with_source(ErrorKind::Io, "the request's task", error)));
            }
            Some(line) = progress.recv() => {
                if write_line(writer, &Event::Progress(line)).await.is_err() {
                    gone.send_replace(true);
                }
            }
            () = wait_for_close(&mut reader), if listening => {
                listening = false;
                gone.send_replace(true);
            }
            () = stop.heard(), if listening => {
                listening = false;
                gone.send_replace(true);
            }
        }
    }
}

/// Returns when the other side has closed; what it sends beyond its request is ignored.
async fn wait_for_close(reader: &mut BufReader<OwnedReadHalf>) {
    let mut ignored = [0; 256];
    while matches!(reader.read(&mut ignored).await, Ok(read) if read > 0) {}
}

async fn write_line(writer: &mut OwnedWriteHalf, event: &Event) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    match tokio::time::timeout(PATIENCE, writer.write_all(&line)).await {
        Ok(written) => written,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidInput => "invalid-input",
        ErrorKind::OutOfRange => "out-of-range",
        ErrorKind::NotFound => "not-found",
        ErrorKind::AlreadyExists => "already-exists",
        ErrorKind::Busy => "busy",
        ErrorKind::ReadOnly => "read-only",
        ErrorKind::NoSpace => "no-space",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Poisoned => "poisoned",
        ErrorKind::Fenced => "fenced",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Cancelled => "cancelled",
        ErrorKind::Io => "io",
    }
}
