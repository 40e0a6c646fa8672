//! A simulated connection: bytes that fly for a while, arrive in pieces, and are lost when it is cut.
//!
//! The two ends are the real [`wire::Connection`]; what it reads and writes goes through two [`Pipe`]s. Nothing waits:
//! futures are polled once, and a receiver that has not got a whole message says so.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wire::{AgentConnection, ServerConnection};

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    flying: VecDeque<(Duration, Vec<u8>)>,
    arrived: VecDeque<u8>,
    /// When what is written now arrives.
    ready: Duration,
    cut: bool,
}

/// A pipe that both ends hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared(Arc<Mutex<Pipe>>);

/// Both directions.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    pub to_server: Shared,
    pub to_agent: Shared,
}

struct End {
    incoming: Shared,
    outgoing: Shared,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pipe> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is written from now on arrives at `ready`, or after what was written before it.
    pub fn delay_until(&self, ready: Duration) {
        let mut pipe = self.lock();
        pipe.ready = pipe.ready.max(ready);
    }

    /// Lets at most `bytes` arrive of what is due.
    pub fn deliver(&self, now: Duration, bytes: usize) -> bool {
        let mut pipe = self.lock();
        let mut left = bytes;
        while left > 0 && pipe.flying.front().is_some_and(|(ready, _)| *ready <= now) {
            let Some((ready, mut chunk)) = pipe.flying.pop_front() else { break };
            let rest = chunk.split_off(left.min(chunk.len()));
            left -= chunk.len();
            pipe.arrived.extend(chunk);
            if !rest.is_empty() {
                pipe.flying.push_front((ready, rest));
            }
        }
        left < bytes
    }

    /// Bytes that are under way.
    pub fn under_way(&self) -> usize {
        let pipe = self.lock();
        pipe.arrived.len() + pipe.flying.iter().map(|(_, chunk)| chunk.len()).sum::<usize>()
    }

    /// What flies is lost, and both ends find out.
    pub fn cut(&self) {
        let mut pipe = self.lock();
        pipe.cut = true;
        pipe.flying.clear();
    }

    /// Turns a bit of a byte that has not arrived; `false` where there is none.
    pub fn damage(&self, at: usize) -> bool {
        let mut pipe = self.lock();
        match pipe.flying.back_mut() {
            Some((_, chunk)) if !chunk.is_empty() => {
                let at = at % chunk.len();
                chunk[at] ^= 0x10;
                true
            }
            _ => false,
        }
    }
}

impl Link {
    pub fn cut(&self) {
        self.to_server.cut();
        self.to_agent.cut();
    }

    pub fn server_end(&self) -> ServerConnection {
        ServerConnection::new(
            End { incoming: self.to_server.clone(), outgoing: self.to_agent.clone() },
            "an agent",
        )
    }

    pub fn agent_end(&self) -> AgentConnection {
        AgentConnection::new(
            End { incoming: self.to_agent.clone(), outgoing: self.to_server.clone() },
            "the server",
        )
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut pipe = self.incoming.lock();
        if pipe.arrived.is_empty() {
            return match pipe.cut {
                true => Poll::Ready(Err(Error::from(ErrorKind::ConnectionReset))),
                false => Poll::Pending,
            };
        }
        let count = buffer.remaining().min(pipe.arrived.len());
        let bytes: Vec<u8> = pipe.arrived.drain(..count).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let mut pipe = self.outgoing.lock();
        if pipe.cut {
            return Poll::Ready(Err(Error::from(ErrorKind::BrokenPipe)));
        }
        let ready = pipe.ready;
        pipe.flying.push_back((ready, bytes.to_vec()));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What a future has to say at once.
pub(super) fn now<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
