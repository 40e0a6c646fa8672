//! Who leads a connection: at most one thread at a time takes what has arrived.
//!
//! ```text
//!          ┌──── hand_on ────► vacant ── a thread of the connection takes it ──► led by its own ──┐
//!          │                      ▲                                                               │
//!   led ◄──┘                      │ give_back, or quiet for a while                               │ park
//!    ▲                            │                                                               ▼
//!    └────────────── take_turn ── parked ◄── park ── led by a thread of the crowd, for a turn   parked
//! ```

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The number of no thread.
const NOBODY: u64 = u64::MAX;

/// Who does what on one connection.
#[derive(Debug)]
pub(super) struct Roles {
    /// The number of the thread that leads.
    leader: AtomicU64,
    threads_max: usize,
    state: Mutex<State>,
    lead_is_free: Condvar,
}

#[derive(Debug)]
struct State {
    /// Threads that are at work for the connection, one of the crowd among them while it has its turn.
    threads: usize,
    /// Threads of the connection that wait for the lead.
    waiting: usize,
    /// One of the connection's own is to lead.
    vacant: bool,
    /// Nobody leads until something arrives.
    parked: bool,
    /// Nothing further is read.
    ended: bool,
    /// The number of the next thread.
    next: u64,
    /// The thread of the crowd that leads.
    turn: Option<u64>,
    /// Threads of the crowd that were relieved of the lead and are not done.
    stuck: Vec<u64>,
}

impl Roles {
    /// Thread 0 leads and is the only one; there may be so many.
    pub fn new(threads_max: usize) -> Roles {
        let state = State {
            threads: 1,
            waiting: 0,
            vacant: false,
            parked: false,
            ended: false,
            next: 1,
            turn: None,
            stuck: Vec::new(),
        };
        Roles {
            leader: AtomicU64::new(0),
            threads_max: threads_max.max(1),
            state: Mutex::new(state),
            lead_is_free: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this thread leads.
    pub fn leads(&self, me: u64) -> bool {
        self.leader.load(Ordering::SeqCst) == me
    }

    /// Waits until this thread, one of the connection's own, is to lead; `false` once nobody will.
    pub fn wait_for_lead(&self, me: u64) -> bool {
        let mut state = self.lock();
        state.waiting += 1;
        while !state.vacant && !state.ended {
            state = self.lead_is_free.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        if state.ended {
            return false;
        }
        state.vacant = false;
        self.leader.store(me, Ordering::SeqCst);
        true
    }

    /// Has another thread of the connection lead, a new one if need be, which `start` starts under its number; `false` where
    /// there can be none, and whoever leads goes on.
    pub fn hand_on(&self, start: impl FnOnce(u64) -> io::Result<()>) -> bool {
        self.hand_on_from(&mut self.lock(), start)
    }

    fn hand_on_from(&self, state: &mut State, start: impl FnOnce(u64) -> io::Result<()>) -> bool {
        if state.ended || state.vacant {
            return state.vacant;
        }
        if state.waiting == 0 {
            if state.threads >= self.threads_max {
                return false;
            }
            if let Err(error) = start(state.next) {
                tracing::debug!("a connection goes on with {} threads: {error}", state.threads);
                return false;
            }
            state.next += 1;
            state.threads += 1;
        }
        self.offer(state);
        true
    }

    /// The same because the leader is stuck. Where that is a thread of the crowd, `lend` is called before
    /// [`Roles::end_turn`] can say that it is done, and the lead goes to a thread of the connection as soon as one is free.
    pub fn relieve(&self, start: impl FnOnce(u64) -> io::Result<()>, lend: impl FnOnce()) {
        let mut state = self.lock();
        let turn = state.turn.filter(|turn| self.leads(*turn));
        let is_handed_on = self.hand_on_from(&mut state, start);
        let Some(turn) = turn else { return };
        if !is_handed_on {
            state.vacant = !state.ended;
        }
        state.turn = None;
        state.stuck.push(turn);
        lend();
    }

    /// The leader stops, and nobody leads until something arrives, which `arm` has noticed from now on; `false` where it does not
    /// lead any more, or where one of the crowd's threads is stuck here already: then it waits itself.
    pub fn park(&self, me: u64, arm: impl FnOnce() -> io::Result<()>) -> io::Result<bool> {
        let mut state = self.lock();
        if state.ended || state.vacant || !state.stuck.is_empty() || !self.leads(me) {
            return Ok(false);
        }
        // Under the lock: what it was armed for before counts no more.
        arm()?;
        state.parked = true;
        self.leader.store(NOBODY, Ordering::SeqCst);
        Ok(true)
    }

    /// A thread of the crowd leads a parked connection; its number until [`Roles::end_turn`]. `None` where it is not parked.
    pub fn take_turn(&self) -> Option<u64> {
        let mut state = self.lock();
        if state.ended || !state.parked {
            return None;
        }
        let me = state.next;
        state.next += 1;
        state.threads += 1;
        (state.parked, state.turn) = (false, Some(me));
        self.leader.store(me, Ordering::SeqCst);
        Some(me)
    }

    /// A thread of the crowd is done; whether it had been relieved meanwhile.
    pub fn end_turn(&self, me: u64) -> bool {
        let mut state = self.lock();
        if state.turn == Some(me) {
            state.turn = None;
        }
        let before = state.stuck.len();
        state.stuck.retain(|stuck| *stuck != me);
        state.stuck.len() < before
    }

    /// A thread of the crowd leaves the lead, if it has it, to one of the connection's own, which waits or is about to: whoever parked
    /// it.
    pub fn give_back(&self, me: u64) {
        let mut state = self.lock();
        if self.leads(me) {
            self.offer(&mut state);
        }
    }

    /// The lead of a parked connection goes to a thread of its own.
    pub fn unpark(&self) {
        let mut state = self.lock();
        if state.parked {
            self.offer(&mut state);
        }
    }

    fn offer(&self, state: &mut State) {
        (state.vacant, state.parked) = (true, false);
        self.lead_is_free.notify_one();
    }

    /// Nothing further is read.
    pub fn end(&self) {
        self.lock().ended = true;
        self.lead_is_free.notify_all();
    }

    /// A thread leaves the connection; whether it was the last.
    pub fn leave(&self) -> bool {
        let mut state = self.lock();
        state.threads -= 1;
        state.threads == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(_: u64) -> io::Result<()> {
        Ok(())
    }

    fn refused(_: u64) -> io::Result<()> {
        panic!("nobody is to be started")
    }

    fn parks(roles: &Roles, me: u64) -> bool {
        roles.park(me, || Ok(())).unwrap()
    }

    #[test]
    fn the_lead_is_handed_to_a_new_thread_and_no_more_than_there_may_be() {
        let roles = Roles::new(2);
        assert!(roles.leads(0));
        assert!(roles.hand_on(started));
        assert!(roles.hand_on(refused), "somebody is to lead already");
        assert!(roles.wait_for_lead(1));
        assert!(roles.leads(1) && !roles.leads(0));
        assert!(!roles.hand_on(refused), "both are at work");
        roles.end();
        assert!(!roles.wait_for_lead(0) && !roles.hand_on(refused));
        assert!(!roles.leave() && roles.leave());
    }

    #[test]
    fn a_parked_connection_is_led_by_one_thread_of_the_crowd_at_a_time() {
        let roles = Roles::new(2);
        assert!(roles.take_turn().is_none(), "its own thread leads");
        assert!(parks(&roles, 0));
        assert!(!roles.leads(0) && !parks(&roles, 0));
        let first = roles.take_turn().unwrap();
        assert!(roles.leads(first));
        assert!(roles.take_turn().is_none(), "it has its turn");
        assert!(parks(&roles, first));
        assert!(!roles.end_turn(first));
        let second = roles.take_turn().unwrap();
        assert_ne!(first, second);
        roles.give_back(first);
        assert!(roles.leads(second), "whoever does not lead has nothing to give");
        roles.give_back(second);
        assert!(!parks(&roles, second), "one of its own is to lead");
        assert!(roles.wait_for_lead(0));
        assert!(roles.leads(0));
    }

    #[test]
    fn whoever_is_quiet_goes_back_to_its_own_thread_and_a_late_event_finds_nothing() {
        let roles = Roles::new(2);
        roles.unpark();
        assert!(roles.leads(0));
        assert!(parks(&roles, 0));
        roles.unpark();
        assert!(roles.take_turn().is_none());
        assert!(roles.wait_for_lead(0));
    }

    #[test]
    fn what_cannot_be_armed_is_not_parked() {
        let roles = Roles::new(2);
        assert!(roles.park(0, || Err(io::ErrorKind::OutOfMemory.into())).is_err());
        assert!(roles.leads(0) && roles.take_turn().is_none());
    }

    #[test]
    fn with_a_relieved_thread_of_the_crowd_a_connection_keeps_to_its_own_until_that_is_done() {
        let roles = Roles::new(4);
        roles.relieve(started, || panic!("a thread of its own is no loss to the crowd"));
        assert!(roles.wait_for_lead(1) && parks(&roles, 1));
        let turn = roles.take_turn().unwrap();
        let mut lent = 0;
        roles.relieve(started, || lent += 1);
        roles.relieve(refused, || lent += 1);
        assert_eq!(lent, 1, "once");
        assert!(roles.wait_for_lead(0));
        assert!(!parks(&roles, 0), "a second one of the crowd's could get stuck");
        assert!(roles.end_turn(turn) && !roles.end_turn(turn));
        assert!(parks(&roles, 0));
    }

    #[test]
    fn a_thread_of_the_crowd_that_is_stuck_at_the_end_is_missed_as_well() {
        let roles = Roles::new(4);
        assert!(parks(&roles, 0));
        let turn = roles.take_turn().unwrap();
        roles.end();
        let mut lent = 0;
        roles.relieve(refused, || lent += 1);
        assert_eq!(lent, 1);
        assert!(roles.end_turn(turn) && !roles.leave());
        assert!(!roles.wait_for_lead(0) && roles.leave());
    }

    #[test]
    fn with_every_thread_at_work_the_lead_waits_for_the_first_that_is_done() {
        let roles = Roles::new(1);
        assert!(parks(&roles, 0));
        let turn = roles.take_turn().unwrap();
        let mut lent = 0;
        roles.relieve(refused, || lent += 1);
        assert_eq!(lent, 1);
        assert!(!parks(&roles, turn));
        assert!(roles.end_turn(turn) && !roles.leave());
        assert!(roles.wait_for_lead(0));
    }
}
