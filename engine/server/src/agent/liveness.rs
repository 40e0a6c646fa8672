//! Whether a machine lives, as far as the server can tell.

use std::time::{Duration, Instant};

/// How long silence may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadlines {
    /// A connected machine that was not heard of for this long is late.
    pub late: Duration,
    /// A machine that was not heard of for this long has failed.
    pub failed: Duration,
}

/// A machine's life as the server sees it. Time is given in, never read here.
///
/// ```text
///              connected            late               failed
///   Unseen ───────────────▶ Alive ───────▶ Late ───────────────▶ Failed
///     │                      │ ▲ ◀──heard── │                     │ ▲ ▲
///     │                      │ └────────────│──heard, connected───┘ │ │
///     │                 lost │              │ lost                  │ │
///     │                      ▼              ▼          failed       │ │
///     │                    Gone ◀───────────┘ ──────────────────────┘ │
///     └──────────────────── failed (it does not come back) ───────────┘
///
///   any ──goodbye──▶ Stopped ──connected──▶ Alive
///   any ──promoted──▶ Promoted ──restored──▶ Alive where connected, Stopped after a goodbye, else Gone
/// ```
///
/// A promoted machine's stand-in is in charge: silence is no failure then, and its agent may come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// Known from the store, not heard of since the server started.
    Unseen {
        /// When the server started.
        since: Instant,
    },
    /// Connected and heard of in time.
    Alive {
        /// When it was last heard of.
        heard: Instant,
    },
    /// Connected, but silent for longer than it should be.
    Late {
        /// When it was last heard of.
        heard: Instant,
    },
    /// The connection ended without a goodbye; it may come back.
    Gone {
        /// When it was last heard of.
        heard: Instant,
    },
    /// Silent for so long that it counts as dead.
    Failed {
        /// When it was last heard of, or the server's start.
        heard: Instant,
        /// Whether there is still a connection that says nothing.
        connected: bool,
    },
    /// It said goodbye.
    Stopped {
        /// When.
        since: Instant,
    },
    /// A session is in charge.
    Promoted {
        /// When the fenced machine's agent was last heard of, while it is connected.
        heard: Option<Instant>,
        /// The last one said goodbye: where the machine is in charge again, its silence is no failure.
        goodbye: bool,
    },
}

/// What happens to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A hello was accepted.
    Connected,
    /// A message came.
    Heard,
    /// The connection ended without a goodbye.
    Lost,
    /// A clean stop.
    Goodbye,
    /// A session took charge.
    Promoted,
    /// The machine is in charge again.
    Restored,
    /// Time passes.
    Tick,
}

impl Liveness {
    /// The state after `event` at `now`. An event that cannot happen in a state leaves it as it is.
    #[must_use]
    pub fn after(self, event: Event, now: Instant, deadlines: Deadlines) -> Liveness {
        use Liveness::{Alive, Failed, Gone, Late, Promoted, Stopped, Unseen};
        match (self, event) {
            (Promoted { .. }, Event::Connected | Event::Heard) => {
                Promoted { heard: Some(now), goodbye: false }
            }
            (Promoted { .. }, Event::Goodbye) => Promoted { heard: None, goodbye: true },
            (Promoted { goodbye, .. }, Event::Lost) => Promoted { heard: None, goodbye },
            (Promoted { heard: Some(heard), .. }, Event::Restored) => Alive { heard },
            (Promoted { heard: None, goodbye: true }, Event::Restored) => Stopped { since: now },
            (Promoted { heard: None, goodbye: false }, Event::Restored) => Gone { heard: now },
            (Promoted { .. }, Event::Promoted | Event::Tick) => self,
            (_, Event::Restored) => self,
            (_, Event::Promoted) => Promoted { heard: self.connected_since_heard(), goodbye: false },
            (_, Event::Connected) => Alive { heard: now },
            (_, Event::Goodbye) => Stopped { since: now },
            (Alive { .. } | Late { .. } | Failed { connected: true, .. }, Event::Heard) => {
                Alive { heard: now }
            }
            (Alive { heard } | Late { heard }, Event::Lost) => Gone { heard },
            (Failed { heard, .. }, Event::Lost) => Failed { heard, connected: false },
            (Alive { heard } | Late { heard }, Event::Tick) => silent(heard, now, deadlines),
            (Gone { heard } | Unseen { since: heard }, Event::Tick)
                if elapsed(heard, now) >= deadlines.failed =>
            {
                Failed { heard, connected: false }
            }
            (Unseen { .. } | Gone { .. } | Stopped { .. } | Failed { .. }, _) => self,
        }
    }

    /// Whether a connection exists that was heard of in time, so that a second one is refused.
    pub fn holds_its_place(self, now: Instant, deadlines: Deadlines) -> bool {
        match self {
            Liveness::Alive { heard } | Liveness::Promoted { heard: Some(heard), .. } => {
                elapsed(heard, now) < deadlines.late
            }
            _ => false,
        }
    }

    /// When the machine was last heard of; `None` where that was before the server started.
    pub fn heard(self) -> Option<Instant> {
        match self {
            Liveness::Unseen { .. } => None,
            Liveness::Alive { heard } | Liveness::Late { heard } | Liveness::Gone { heard } => Some(heard),
            Liveness::Failed { heard, .. } => Some(heard),
            Liveness::Stopped { since } => Some(since),
            Liveness::Promoted { heard, .. } => heard,
        }
    }

    fn connected_since_heard(self) -> Option<Instant> {
        match self {
            Liveness::Alive { heard }
            | Liveness::Late { heard }
            | Liveness::Failed { heard, connected: true } => Some(heard),
            _ => None,
        }
    }
}

fn silent(heard: Instant, now: Instant, deadlines: Deadlines) -> Liveness {
    let silence = elapsed(heard, now);
    if silence >= deadlines.failed {
        Liveness::Failed { heard, connected: true }
    } else if silence >= deadlines.late {
        Liveness::Late { heard }
    } else {
        Liveness::Alive { heard }
    }
}

fn elapsed(since: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINES: Deadlines = Deadlines { late: Duration::from_secs(10), failed: Duration::from_secs(15) };

    struct Life {
        start: Instant,
        state: Liveness,
    }

    impl Life {
        fn new() -> Life {
            let start = Instant::now();
            Life { start, state: Liveness::Unseen { since: start } }
        }

        fn at(&mut self, seconds: u64, event: Event) -> Liveness {
            let now = self.start + Duration::from_secs(seconds);
            self.state = self.state.after(event, now, DEADLINES);
            self.state
        }

        fn time(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }
    }

    #[test]
    fn silence_makes_late_then_failed_and_a_word_makes_alive() {
        let mut life = Life::new();
        let alive = |at| Liveness::Alive { heard: at };
        assert_eq!(life.at(1, Event::Connected), alive(life.time(1)));
        assert_eq!(life.at(10, Event::Tick), alive(life.time(1)));
        assert_eq!(life.at(11, Event::Tick), Liveness::Late { heard: life.time(1) });
        assert_eq!(life.at(12, Event::Heard), alive(life.time(12)));
        assert_eq!(life.at(27, Event::Tick), Liveness::Failed { heard: life.time(12), connected: true });
        assert_eq!(life.at(28, Event::Heard), alive(life.time(28)));
    }

    #[test]
    fn a_lost_machine_fails_unless_it_comes_back() {
        let mut life = Life::new();
        life.at(0, Event::Connected);
        assert_eq!(life.at(5, Event::Lost), Liveness::Gone { heard: life.time(0) });
        assert_eq!(life.at(14, Event::Tick), Liveness::Gone { heard: life.time(0) });
        assert_eq!(life.at(15, Event::Tick), Liveness::Failed { heard: life.time(0), connected: false });
        assert_eq!(
            life.at(16, Event::Heard),
            Liveness::Failed { heard: life.time(0), connected: false },
            "nobody can be heard without a connection"
        );
        assert_eq!(life.at(17, Event::Connected), Liveness::Alive { heard: life.time(17) });
    }

    #[test]
    fn a_goodbye_is_no_failure() {
        let mut life = Life::new();
        life.at(0, Event::Connected);
        life.at(1, Event::Goodbye);
        assert_eq!(life.at(2, Event::Lost), Liveness::Stopped { since: life.time(1) });
        assert_eq!(life.at(1000, Event::Tick), Liveness::Stopped { since: life.time(1) });
        assert_eq!(life.at(1001, Event::Connected), Liveness::Alive { heard: life.time(1001) });
    }

    #[test]
    fn a_machine_that_never_comes_fails() {
        let mut life = Life::new();
        assert_eq!(life.at(14, Event::Tick), Liveness::Unseen { since: life.time(0) });
        assert_eq!(life.at(15, Event::Tick), Liveness::Failed { heard: life.time(0), connected: false });
    }

    #[test]
    fn a_promoted_machine_stays_so_until_restored() {
        let mut life = Life::new();
        life.at(0, Event::Connected);
        assert_eq!(
            life.at(1, Event::Promoted),
            Liveness::Promoted { heard: Some(life.time(0)), goodbye: false }
        );
        assert_eq!(life.at(2, Event::Lost), Liveness::Promoted { heard: None, goodbye: false });
        assert_eq!(life.at(500, Event::Tick), Liveness::Promoted { heard: None, goodbye: false });
        assert_eq!(
            life.at(501, Event::Connected),
            Liveness::Promoted { heard: Some(life.time(501)), goodbye: false }
        );
        assert_eq!(life.at(502, Event::Restored), Liveness::Alive { heard: life.time(501) });
    }

    #[test]
    fn a_restored_machine_whose_agent_said_goodbye_is_no_failure() {
        let mut life = Life::new();
        life.at(0, Event::Connected);
        life.at(1, Event::Promoted);
        life.at(2, Event::Goodbye);
        life.at(3, Event::Lost);
        assert_eq!(life.at(4, Event::Restored), Liveness::Stopped { since: life.time(4) });
        assert_eq!(life.at(1000, Event::Tick), Liveness::Stopped { since: life.time(4) });
        life.at(1001, Event::Connected);
        life.at(1002, Event::Promoted);
        life.at(1003, Event::Goodbye);
        life.at(1004, Event::Connected);
        life.at(1005, Event::Lost);
        assert_eq!(
            life.at(1006, Event::Restored),
            Liveness::Gone { heard: life.time(1006) },
            "it came again"
        );
    }

    #[test]
    fn only_a_machine_heard_of_in_time_keeps_others_out() {
        let mut life = Life::new();
        assert!(!life.state.holds_its_place(life.time(0), DEADLINES));
        life.at(0, Event::Connected);
        assert!(life.state.holds_its_place(life.time(9), DEADLINES));
        assert!(!life.state.holds_its_place(life.time(10), DEADLINES), "late even if nobody ticked");
        life.at(1, Event::Lost);
        assert!(!life.state.holds_its_place(life.time(1), DEADLINES));
        life.at(2, Event::Promoted);
        assert!(!life.state.holds_its_place(life.time(2), DEADLINES));
        life.at(3, Event::Connected);
        assert!(life.state.holds_its_place(life.time(4), DEADLINES));
    }
}
