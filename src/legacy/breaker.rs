//! The circuit breaker: when the old system does not answer, it is left alone for a while.
//!
//! ```text
//!            MAX_FAILURES in a row             after PAUSE, one
//!   Closed ──────────────────────────▶ Open ──────────────────▶ Trial
//!     ▲                                 ▲                         │
//!     │                                 └────────── down ─────────┤
//!     └─────────────────────────────────────────────── up ────────┘
//! ```
//!
//! A trial that nobody saw the end of makes room for another one at once. What began before the last change of state says
//! nothing about the present one: only a [`Permit`] of the present state counts.

use std::time::Duration;

/// How many failures in a row open it.
pub(super) const MAX_FAILURES: u32 = 5;

/// How long it stays open, from the last failure on.
pub(super) const PAUSE: Duration = Duration::from_secs(30);

/// The breaker. Times are those since any one moment.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// How often the state has changed.
    epoch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Everybody may ask. So many of the last ones had no answer.
    Closed { failures: u32 },
    /// Nobody may ask until then.
    Open { until: Duration },
    /// One is asking, on whom it depends.
    Trial,
}

/// The right to ask once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what became of it is to be told"]
pub(super) struct Permit {
    epoch: u64,
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The old system works, whatever it said.
    Up,
    /// It does not.
    Down,
    /// Nobody waited for the answer.
    Unknown,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self { state: State::Closed { failures: 0 }, epoch: 0 }
    }

    /// Whether somebody may ask now.
    pub(super) fn admit(&mut self, now: Duration) -> Option<Permit> {
        match self.state {
            State::Closed { .. } => {}
            State::Open { until } if now >= until => self.change(State::Trial),
            State::Open { .. } | State::Trial => return None,
        }
        Some(Permit { epoch: self.epoch })
    }

    /// Whoever was admitted tells what became of it; the new state, if that has changed anything but a count.
    pub(super) fn settle(&mut self, permit: Permit, outcome: Outcome, now: Duration) -> Option<State> {
        if permit.epoch != self.epoch {
            return None;
        }
        match (self.state, outcome) {
            (State::Closed { .. }, Outcome::Up) => self.state = State::Closed { failures: 0 },
            (State::Closed { failures }, Outcome::Down) if failures + 1 < MAX_FAILURES => {
                self.state = State::Closed { failures: failures + 1 };
            }
            (State::Trial, Outcome::Up) => {
                self.change(State::Closed { failures: 0 });
                return Some(self.state);
            }
            (State::Closed { .. } | State::Trial, Outcome::Down) => {
                self.change(State::Open { until: now + PAUSE });
                return Some(self.state);
            }
            (State::Trial, Outcome::Unknown) => self.change(State::Open { until: now }),
            // Nobody is admitted while it is open.
            (State::Closed { .. }, Outcome::Unknown) | (State::Open { .. }, _) => {}
        }
        None
    }

    fn change(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const FINE: State = State::Closed { failures: 0 };

    /// A breaker after some questions one after the other, at no time at all.
    fn after(outcomes: &[Outcome]) -> Breaker {
        let mut breaker = Breaker::new();
        for outcome in outcomes {
            let permit = breaker.admit(at(0)).unwrap();
            breaker.settle(permit, *outcome, at(0));
        }
        breaker
    }

    #[test]
    fn every_transition() {
        use Outcome::{Down, Unknown, Up};

        let open = [Down; MAX_FAILURES as usize];
        let failing = |failures| State::Closed { failures };
        let reopened = State::Open { until: at(60) };
        // What was; when one asks, and whether they may; what becomes of it; and what is then.
        for (outcomes, now, asked, state) in [
            (&[][..], 0, Some(Up), FINE),
            (&[], 0, Some(Down), failing(1)),
            (&[], 0, Some(Unknown), FINE),
            (&[Down, Down], 0, Some(Down), failing(3)),
            (&[Down, Down], 0, Some(Up), FINE),
            (&[Down, Down], 0, Some(Unknown), failing(2)),
            (&[Down, Up, Down, Down, Down], 0, Some(Down), failing(4)),
            (&[Down, Down, Down, Down], 0, Some(Up), FINE),
            (&[Down, Down, Down, Down], 0, Some(Unknown), failing(4)),
            (&[Down, Down, Down, Down], 7, Some(Down), State::Open { until: at(37) }),
            (&open, 0, None, State::Open { until: at(30) }),
            (&open, 29, None, State::Open { until: at(30) }),
            (&open, 30, Some(Up), FINE),
            (&open, 30, Some(Down), reopened),
            (&open, 30, Some(Unknown), State::Open { until: at(30) }),
            (&open, 9999, Some(Up), FINE),
        ] {
            let mut breaker = after(outcomes);
            let permit = breaker.admit(at(now));
            assert_eq!(permit.is_some(), asked.is_some(), "{outcomes:?}, {now}");
            if let (Some(permit), Some(outcome)) = (permit, asked) {
                breaker.settle(permit, outcome, at(now));
            }
            assert_eq!(breaker.state, state, "{outcomes:?}, {now}, {asked:?}");
        }
    }

    #[test]
    fn one_tries_at_a_time() {
        let mut breaker = after(&[Outcome::Down; MAX_FAILURES as usize]);
        let trial = breaker.admit(at(30)).unwrap();
        assert_eq!(breaker.admit(at(30)), None);
        assert_eq!(breaker.admit(at(9999)), None);
        breaker.settle(trial, Outcome::Unknown, at(40));
        let trial = breaker.admit(at(40)).unwrap();
        assert_eq!(breaker.settle(trial, Outcome::Up, at(41)), Some(FINE));
        assert!(breaker.admit(at(41)).is_some() && breaker.admit(at(41)).is_some());
    }

    #[test]
    fn who_comes_late_decides_nothing() {
        let mut breaker = Breaker::new();
        let permits = [(); 2 * MAX_FAILURES as usize].map(|()| breaker.admit(at(0)).unwrap());
        let changes: Vec<_> =
            permits.iter().map(|permit| breaker.settle(*permit, Outcome::Down, at(1))).collect();
        let open = State::Open { until: at(31) };
        assert_eq!(changes.iter().flatten().collect::<Vec<_>>(), [&open]);
        assert_eq!(breaker.settle(permits[0], Outcome::Up, at(2)), None);
        assert_eq!(breaker.state, open);
        // Nor do the ones before decide about the trial.
        let trial = breaker.admit(at(31)).unwrap();
        assert_eq!(breaker.settle(permits[1], Outcome::Up, at(31)), None);
        assert_eq!(breaker.state, State::Trial);
        assert_eq!(breaker.settle(trial, Outcome::Down, at(32)), Some(State::Open { until: at(62) }));
    }
}
