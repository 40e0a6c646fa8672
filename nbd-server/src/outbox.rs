//! Replies on their way out: small ones wait for their neighbours, so that a burst of requests costs one system call.
//!
//! Who appends with `more` promises that somebody sends soon: the leader of the connection does before it waits for the
//! network, and whoever appends without `more` sends all that waits. Messages never mix.

use crate::socket::Socket;
use blocks::FileRange;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Longer bodies are sent at once from where they are; shorter ones are copied behind their heads.
pub const COPIED_BYTES_MAX: usize = 16 << 10;
/// What waits at most.
const WAITING_BYTES_MAX: usize = 128 << 10;

/// What waits to be sent on one connection.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: Mutex<Vec<u8>>,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message, or with `more` lets it wait if it is short.
    pub fn message(&self, socket: &Socket, head: &[u8], body: &[u8], more: bool) -> io::Result<()> {
        let mut waiting = self.lock();
        if body.len() > COPIED_BYTES_MAX {
            if waiting.is_empty() {
                return socket.write_all(head, body);
            }
            waiting.extend_from_slice(head);
            return send(socket, &mut waiting, body);
        }
        waiting.extend_from_slice(head);
        waiting.extend_from_slice(body);
        if more && waiting.len() < WAITING_BYTES_MAX {
            return Ok(());
        }
        send(socket, &mut waiting, &[])
    }

    /// Sends a message whose body is that much of a file, as it is when it leaves. After an error the stream is out of step.
    pub fn file_message(
        &self,
        socket: &Socket,
        head: &[u8],
        (body, len): (&FileRange, u64),
        scratch: &mut [u8],
    ) -> io::Result<()> {
        let mut waiting = self.lock();
        waiting.extend_from_slice(head);
        let sent = socket.write_head_of_file(&waiting).and_then(|()| socket.write_file(body, len, scratch));
        waiting.clear();
        sent
    }

    /// Sends all that waits.
    pub fn flush(&self, socket: &Socket) -> io::Result<()> {
        let mut waiting = self.lock();
        if waiting.is_empty() { Ok(()) } else { send(socket, &mut waiting, &[]) }
    }
}

fn send(socket: &Socket, waiting: &mut Vec<u8>, body: &[u8]) -> io::Result<()> {
    let sent = socket.write_all(waiting, body);
    waiting.clear();
    sent
}
