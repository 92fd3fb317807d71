//! The source of time. Everything below the edge takes `now: OffsetDateTime` as a parameter; only the edge (the HTTP
//! handlers, the command line, the bearer layer) asks a [`Clock`]. Tests move the clock instead of waiting.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Instant,
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
    Fixed(Arc<Hands>),
}

/// The hands of a fixed clock, shared by every clone.
#[derive(Debug)]
struct Hands {
    /// Microseconds since the Unix epoch.
    wall: AtomicI64,
    /// Microseconds elapsed.
    elapsed: AtomicU64,
}

/// What [`Clock::elapsed`] counts from.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clock {
    /// The machine's clock, in UTC.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `start` until [`advance`](Self::advance) moves it; every clone of it moves along.
    pub fn fixed(start: OffsetDateTime) -> Self {
        Self(Source::Fixed(Arc::new(Hands { wall: micros(start).into(), elapsed: AtomicU64::new(0) })))
    }

    /// The current time, in UTC and whole microseconds, the precision of Postgres.
    pub fn now(&self) -> OffsetDateTime {
        match &self.0 {
            #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
            Source::System => OffsetDateTime::now_utc().truncate_to_microsecond(),
            Source::Fixed(hands) => {
                let micros = hands.wall.load(Ordering::SeqCst);
                // A clock moved outside the years -9999..=9999 returns the epoch, at which every token fails.
                OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000)
                    .unwrap_or(OffsetDateTime::UNIX_EPOCH)
            }
        }
    }

    /// How much time has passed since some moment in this process. This clock cannot be set and only goes forward; use
    /// it to measure how long ago something was.
    pub fn elapsed(&self) -> std::time::Duration {
        match &self.0 {
            Source::System => BEGINNING.elapsed(),
            Source::Fixed(hands) => std::time::Duration::from_micros(hands.elapsed.load(Ordering::SeqCst)),
        }
    }

    /// Lets time pass on a fixed clock: `by`, which is not negative. Does nothing on the machine's clock.
    pub fn advance(&self, by: Duration) {
        self.shift(by);
        if let Source::Fixed(hands) = &self.0 {
            let by = u64::try_from(by.whole_microseconds()).unwrap_or(0);
            hands.elapsed.fetch_add(by, Ordering::SeqCst);
        }
    }

    /// Sets a fixed clock forward or backward by `by`, without time passing.
    pub fn shift(&self, by: Duration) {
        if let Source::Fixed(hands) = &self.0 {
            let by = i64::try_from(by.whole_microseconds()).unwrap_or(i64::MAX);
            hands.wall.fetch_add(by, Ordering::SeqCst);
        }
    }
}

/// Ticks at once and then every `period`. After a late tick, the next is a whole period away: missed ticks are not made
/// up for with a burst.
#[cfg(feature = "server")]
pub(crate) fn every(period: std::time::Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

fn micros(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000).unwrap_or(0)
}
