//! How long ago something was last heard that must be heard regularly.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// When something was last heard, and how long the silence may be. Times are measured from some fixed moment, by a
/// monotonic clock.
#[derive(Debug)]
pub(super) struct Silence {
    /// In milliseconds, plus one; 0 means never.
    heard_at: AtomicU64,
    max: Duration,
}

impl Silence {
    /// Nothing has been heard yet.
    pub(super) fn new(max: Duration) -> Self {
        Self { heard_at: AtomicU64::new(0), max }
    }

    pub(super) fn heard(&self, at: Duration) {
        self.heard_at.fetch_max(millis(at).saturating_add(1), Ordering::AcqRel);
    }

    /// The length of the silence at `at`; [`Duration::MAX`] if nothing was ever heard.
    pub(super) fn length(&self, at: Duration) -> Duration {
        match self.heard_at.load(Ordering::Acquire).checked_sub(1) {
            Some(heard_at) => Duration::from_millis(millis(at).saturating_sub(heard_at)),
            None => Duration::MAX,
        }
    }

    pub(super) fn max(&self) -> Duration {
        self.max
    }

    /// The [`length`](Self::length), if it is longer than it may be.
    pub(super) fn excess(&self, at: Duration) -> Option<Duration> {
        Some(self.length(at)).filter(|silence| *silence > self.max)
    }
}

fn millis(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}
