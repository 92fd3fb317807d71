//! How often the old system is asked: the generic cell rate algorithm, as the throttle has it in Postgres.

use std::time::Duration;

/// From one question to the next, in the long run: ten in a second.
pub(super) const SPACING: Duration = Duration::from_millis(100);

/// How many there may be at once after a pause.
pub(super) const BURST: u32 = 20;

/// Lets so many through. Times are those since any one moment.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When all places are free again.
    free_at: Duration,
}

impl Pace {
    /// Whether one more may pass now.
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
