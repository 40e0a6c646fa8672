//! A connection in a crowd: parked while there is nothing to do for it, and led by a thread of the crowd for a turn.

use super::{Asks, Connection, Ended, Next};
use crate::budget::{SMALL_REQUEST_BYTES, TINY_REQUEST_BYTES};
use crate::crowd::Until;
use crate::receiver::Receiver;
use crate::request::Headers;
use crate::socket::Socket;
use blocks::ByteLen;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is done in one turn at most: so many requests, and so many bytes until there is no next one.
const REQUESTS_MAX: u32 = 32;
const BYTES_MAX: u64 = SMALL_REQUEST_BYTES as u64;

/// How a turn ends.
enum TurnEnd {
    /// There is nothing more to do for now, or for this turn.
    Parks(Until),
    /// What is next is for a thread of the connection's own.
    GivesBack,
    /// Another thread leads, or nobody will.
    Over,
}

/// Whether the request that is held is here whole and so short that neither receiving it nor room for it is waited for.
pub(super) fn can_do(receiver: &mut Receiver, socket: &Socket, headers: Headers) -> bool {
    receiver.holds_request(socket, headers)
        && receiver.held_request_len(headers).is_some_and(|len| len <= ByteLen::new(BYTES_MAX))
}

impl Connection {
    /// The number of the connection among the server's.
    pub fn number(&self) -> u64 {
        self.slot.number()
    }

    /// Leaves the lead to the crowd until there is something to do; `false` where this thread has to wait itself.
    pub(super) fn park(self: &Arc<Connection>, me: u64, until: Until) -> bool {
        let Some(socket) = self.slot.socket().plain() else { return false };
        if !self.may_park.load(Ordering::Relaxed) {
            return false;
        }
        match self.roles.park(me, || self.crowd.wait_for(self, socket, until)) {
            Ok(is_parked) => {
                if is_parked {
                    // It may have gone to rest before it could see anybody here, if this thread was long without a core.
                    self.relief.wake();
                }
                is_parked
            }
            Err(error) => {
                // What is missing will be missing the next time.
                self.may_park.store(false, Ordering::Relaxed);
                tracing::debug!("a connection does not wait with others: {error}");
                false
            }
        }
    }

    /// Whoever waits in a crowd for nothing waits on its own again.
    pub fn leave_crowd(&self) {
        self.roles.unpark();
    }

    /// Does what has arrived, on a thread of the crowd; nothing where the connection is not parked. Whatever it has to wait for,
    /// it is relieved.
    pub fn take_turn(self: &Arc<Connection>, buffer: &mut Vec<u8>) {
        let Some(me) = self.roles.take_turn() else { return };
        let _ended = Ended(self);
        let _turn = Turn { connection: self, me };
        self.leader_thread.store(rustix::thread::gettid().as_raw_pid(), Ordering::SeqCst);
        let end = self.turn(me, buffer);
        // Whoever waits holds nothing.
        if buffer.len() > TINY_REQUEST_BYTES {
            *buffer = Vec::new();
        }
        match end {
            Ok(TurnEnd::Parks(until)) if self.park(me, until) => {}
            Ok(TurnEnd::Parks(_) | TurnEnd::GivesBack) => self.roles.give_back(me),
            Ok(TurnEnd::Over) => {}
            Err(error) => self.fail(&error),
        }
    }

    fn turn(self: &Arc<Connection>, me: u64, buffer: &mut Vec<u8>) -> io::Result<TurnEnd> {
        let (mut requests_left, mut bytes_left) = (REQUESTS_MAX, BYTES_MAX);
        let end = loop {
            if !self.roles.leads(me) {
                break TurnEnd::Over;
            }
            if self.pace.is_slow() {
                break TurnEnd::GivesBack;
            }
            if requests_left == 0 || bytes_left == 0 {
                break TurnEnd::Parks(Until::Room);
            }
            match self.watched(me, || self.receive(me, Asks::Crowd, buffer))? {
                Next::Request(received) => {
                    requests_left -= 1;
                    bytes_left = bytes_left.saturating_sub(received.request.len.get());
                    self.perform(me, received, false, buffer)?;
                }
                Next::Later => break TurnEnd::Parks(Until::Arrival),
                Next::Own => break TurnEnd::GivesBack,
                Next::Nothing => break TurnEnd::Over,
            }
        };
        self.watched(me, || self.outbox.flush(self.slot.socket()))?;
        // Whoever was relieved meanwhile does not wait for the new leader.
        let is_crowded = || self.receiver.try_lock().is_ok_and(|mut receiver| receiver.0.is_crowded());
        Ok(match end {
            _ if !self.roles.leads(me) => TurnEnd::Over,
            TurnEnd::Parks(_) if !is_crowded() => TurnEnd::GivesBack,
            end => end,
        })
    }

    /// Does the leader's work between requests as a part of the last one: whoever gets stuck in that is relieved.
    fn watched<T>(&self, me: u64, work: impl FnOnce() -> T) -> T {
        let last = self.requests.load(Ordering::SeqCst);
        // The requests of a later leader have later numbers.
        if !self.roles.leads(me) {
            return work();
        }
        let _ = self.at.compare_exchange(0, last, Ordering::SeqCst, Ordering::SeqCst);
        let done = work();
        let _ = self.at.compare_exchange(last, 0, Ordering::SeqCst, Ordering::SeqCst);
        done
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.crowd.forget(self.number());
    }
}

/// A thread of the crowd has its turn.
struct Turn<'a> {
    connection: &'a Connection,
    me: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.connection.roles.end_turn(self.me) {
            self.connection.crowd.take_back();
        }
    }
}
