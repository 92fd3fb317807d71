//! The circuit breaker: leaves the old system alone for a while when it does not answer.
//!
//! ```text
//!            MAX_FAILURES in a row             after PAUSE, one
//!   Closed ──────────────────────────▶ Open ──────────────────▶ Trial
//!     ▲                                 ▲                         │
//!     │                                 └────────── down ─────────┤
//!     └─────────────────────────────────────────────── up ────────┘
//! ```
//!
//! A trial whose outcome no one saw makes room for another at once. A request that began before the last change of
//! state says nothing about the current state: only a [`Permit`] of the current state counts.

use std::time::Duration;

/// How many failures in a row open the breaker.
pub(super) const MAX_FAILURES: u32 = 5;

/// How long it stays open, counted from the last failure.
pub(super) const PAUSE: Duration = Duration::from_secs(30);

/// The breaker. Times are measured from an arbitrary fixed moment.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// How often the state has changed.
    epoch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Every request is admitted. The last `failures` of them failed.
    Closed { failures: u32 },
    /// No request is admitted until then.
    Open { until: Duration },
    /// One request is under way, and decides the next state.
    Trial,
}

/// The permission to ask once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the outcome has to be reported to `settle`"]
pub(super) struct Permit {
    epoch: u64,
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The old system works, whatever its answer.
    Up,
    /// It does not work.
    Down,
    /// No one waited for the answer.
    Unknown,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self { state: State::Closed { failures: 0 }, epoch: 0 }
    }

    /// A permit, if a request may be sent now.
    pub(super) fn admit(&mut self, now: Duration) -> Option<Permit> {
        match self.state {
            State::Closed { .. } => {}
            State::Open { until } if now >= until => self.change(State::Trial),
            State::Open { .. } | State::Trial => return None,
        }
        Some(Permit { epoch: self.epoch })
    }

    /// Reports the outcome of an admitted request. Returns the new state, if anything but a count has changed.
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
            // No request is admitted while the breaker is open.
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

    /// A breaker after some requests in sequence, all at time zero.
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
        // The outcomes so far; the time of the next request; its outcome, if it is admitted; and the state after it.
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
    fn only_one_trial_request_is_admitted_at_a_time() {
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
    fn late_outcomes_do_not_change_the_state() {
        let mut breaker = Breaker::new();
        let permits = [(); 2 * MAX_FAILURES as usize].map(|()| breaker.admit(at(0)).unwrap());
        let changes: Vec<_> =
            permits.iter().map(|permit| breaker.settle(*permit, Outcome::Down, at(1))).collect();
        let open = State::Open { until: at(31) };
        assert_eq!(changes.iter().flatten().collect::<Vec<_>>(), [&open]);
        assert_eq!(breaker.settle(permits[0], Outcome::Up, at(2)), None);
        assert_eq!(breaker.state, open);
        // Nor do the earlier requests decide the trial.
        let trial = breaker.admit(at(31)).unwrap();
        assert_eq!(breaker.settle(permits[1], Outcome::Up, at(31)), None);
        assert_eq!(breaker.state, State::Trial);
        assert_eq!(breaker.settle(trial, Outcome::Down, at(32)), Some(State::Open { until: at(62) }));
    }
}
