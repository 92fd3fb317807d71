//! Where time comes from. Everything below the edge takes `now: OffsetDateTime` as a parameter; only the edge (the HTTP
//! handlers, the command line, the bearer layer) asks a [`Clock`]. Tests move the clock instead of waiting.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use time::{Duration, OffsetDateTime};

/// A source of the current time.
///
/// ```
/// use gatepass::clock::Clock;
/// use time::{Duration, OffsetDateTime};
///
/// let clock = Clock::fixed(OffsetDateTime::UNIX_EPOCH);
/// clock.advance(Duration::minutes(15));
/// assert_eq!(clock.now(), OffsetDateTime::UNIX_EPOCH + Duration::minutes(15));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    System,
    /// Microseconds since the Unix epoch, shared by every clone.
    Fixed(Arc<AtomicI64>),
}

impl Clock {
    /// The machine's clock, in UTC.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `start` until [`advance`](Self::advance) moves it; every clone of it moves along.
    pub fn fixed(start: OffsetDateTime) -> Self {
        Self(Source::Fixed(Arc::new(AtomicI64::new(micros(start)))))
    }

    /// The time now, in UTC and whole microseconds, which is what Postgres keeps.
    pub fn now(&self) -> OffsetDateTime {
        let micros = match &self.0 {
            #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
            Source::System => micros(OffsetDateTime::now_utc()),
            Source::Fixed(micros) => micros.load(Ordering::SeqCst),
        };
        // Outside the years -9999..=9999 only a broken machine clock can lead, and then the epoch makes every token
        // fail rather than pass.
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// Moves a fixed clock by `by`, which may be negative. The machine's clock is not ours to move: nothing happens.
    pub fn advance(&self, by: Duration) {
        if let Source::Fixed(micros) = &self.0 {
            let by = i64::try_from(by.whole_microseconds()).unwrap_or(i64::MAX);
            micros.fetch_add(by, Ordering::SeqCst);
        }
    }
}

fn micros(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000).unwrap_or(0)
}
