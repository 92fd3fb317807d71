//! The rate limit for the old system: the generic cell rate algorithm, which the throttle implements in Postgres.

use std::time::Duration;

/// The time from one request to the next in the long run: ten per second.
pub(super) const SPACING: Duration = Duration::from_millis(100);

/// How many requests may be sent at once after a pause.
pub(super) const BURST: u32 = 20;

/// The rate limiter. Times are measured from an arbitrary fixed moment.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When all places are free again.
    free_at: Duration,
}

impl Pace {
    /// Whether one more request may be sent now.
    pub(super) fn admit(&mut self, now: Duration) -> bool {
        let free_at = self.free_at.max(now) + SPACING;
        let is_in_time = free_at - now <= SPACING * BURST;
        if is_in_time {
            self.free_at = free_at;
        }
        is_in_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_at_a_time() {
        let mut pace = Pace::default();
        let mut passed = |now| (0..100).filter(|_| pace.admit(Duration::from_millis(now))).count();
        for (now, expected) in
            [(0, 20), (0, 0), (99, 0), (100, 1), (350, 2), (399, 0), (400, 1), (60_000, 20)]
        {
            assert_eq!(passed(now), expected, "{now} ms");
        }
    }
}
