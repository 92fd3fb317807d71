//! The life cycle of a key pair, and when the next step is due. This module is pure: the stored times and the current
//! time decide.
//!
//! ```text
//!            rotate                 rotate                    verifies_until
//!   Next ───────────────▶ Active ───────────────▶ Retiring ───────────────▶ Gone
//!    │                      │      retire now       │       retire now       ▲
//!    └──────────────────────┴───────────────────────┴────────────────────────┘
//! ```
//!
//! Each format always has one active and one next key: a next key is made together with the ring, and whenever the one
//! before it becomes active. So services that read the published keys have a key long before it signs: for the whole of
//! `KEY_ROTATION_INTERVAL` with scheduled rotation, and never for less time than the documents may be cached.
//!
//! A retiring key's tokens are accepted until the last of them has expired. A key that is retired at once is gone at
//! once, whatever a clock says: it verifies until the moment it was retired, which has passed.

use std::time::Duration;

use time::OffsetDateTime;

use super::{KeyId, KeyPairFormat, KeyStatus, PublicKey};

/// How long published keys may be cached, unless keys rotate so often that it must be less.
const CACHED_FOR: Duration = Duration::from_secs(60);
/// How long a replica may keep using the keys that it knew after another replica has made or retired one.
pub const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// A key pair's public half and its times.
#[derive(Clone, Debug)]
pub struct RingKey {
    /// The public key, with its name and format.
    pub public: PublicKey,
    /// When it was made, and published.
    pub published_at: OffsetDateTime,
    /// When it began to sign.
    pub activated_at: Option<OffsetDateTime>,
    /// When it was taken out of signing.
    pub retired_at: Option<OffsetDateTime>,
    /// Until when its tokens are accepted; set whenever `retired_at` is.
    pub verifies_until: Option<OffsetDateTime>,
}

impl RingKey {
    /// The key's status at `now`; `None` if it is gone.
    pub fn status(&self, now: OffsetDateTime) -> Option<KeyStatus> {
        status(self.activated_at, self.retired_at, self.verifies_until, now)
    }

    /// The key's name.
    pub fn id(&self) -> &KeyId {
        self.public.id()
    }
}

/// The status at `now` of a key with these times (see [`RingKey`]); `None` if it is gone.
pub fn status(
    activated_at: Option<OffsetDateTime>,
    retired_at: Option<OffsetDateTime>,
    verifies_until: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> Option<KeyStatus> {
    match (activated_at, retired_at, verifies_until) {
        (None, None, _) => Some(KeyStatus::Next),
        (Some(_), None, _) => Some(KeyStatus::Active),
        (_, Some(retired), Some(until)) if retired < until && now < until => Some(KeyStatus::Retiring),
        (_, Some(_), _) => None,
    }
}

/// When keys are replaced.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// How long a key signs.
    pub interval: Duration,
}

impl Schedule {
    /// How long the published keys may be cached, and so the minimum time for which a key is published before it signs.
    pub fn cached_for(self) -> Duration {
        CACHED_FOR.min(self.interval / 4).max(Duration::from_secs(1))
    }

    /// The time from which the next key may sign: when every cached document that lacks it has expired. If `next` is as
    /// old as an `active` key that has signed from the start, the two were published together with the ring, and no
    /// document ever lacked it. It has to be exactly as old: a key that looks older was made by a clock that is behind.
    pub fn ready_at(self, active: &RingKey, next: &RingKey) -> OffsetDateTime {
        let first = active.published_at;
        if active.activated_at == Some(first) && next.published_at == first {
            next.published_at
        } else {
            later(next.published_at, HEARD_WITHIN + self.cached_for())
        }
    }

    /// Whether `next` should take over from `active` at `now`.
    pub fn is_due(self, active: &RingKey, next: &RingKey, now: OffsetDateTime) -> bool {
        let signs_since = active.activated_at.unwrap_or(active.published_at);
        now >= later(signs_since, self.interval) && now >= self.ready_at(active, next)
    }
}

/// So much later, or at the last time that there is: somebody may have set a key's times by hand.
fn later(at: OffsetDateTime, by: Duration) -> OffsetDateTime {
    at.saturating_add(by.try_into().unwrap_or(time::Duration::MAX))
}

/// The key of `format` with this status, if there is one.
pub fn key(
    keys: &[RingKey],
    format: KeyPairFormat,
    status: KeyStatus,
    now: OffsetDateTime,
) -> Option<&RingKey> {
    keys.iter().find(|key| key.public.format() == format && key.status(now) == Some(status))
}

/// The active and the next key of `format`, if both are there.
pub fn heads(keys: &[RingKey], format: KeyPairFormat, now: OffsetDateTime) -> Option<(&RingKey, &RingKey)> {
    Some((key(keys, format, KeyStatus::Active, now)?, key(keys, format, KeyStatus::Next, now)?))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::token::KeyPair;

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

    fn key(times: [Option<i64>; 4]) -> RingKey {
        let at = |minutes: Option<i64>| minutes.map(|minutes| NOW + time::Duration::minutes(minutes));
        let pair = KeyPair::generate(KeyPairFormat::V4Public).unwrap();
        RingKey {
            public: pair.public_key().clone(),
            published_at: at(times[0]).unwrap(),
            activated_at: at(times[1]),
            retired_at: at(times[2]),
            verifies_until: at(times[3]),
        }
    }

    #[test]
    fn the_status_of_a_key_follows_from_its_times() {
        use KeyStatus::{Active, Next, Retiring};
        for (times, expected) in [
            ([Some(-9), None, None, None], Some(Next)),
            // A clock behind the one by which it was made or activated changes nothing.
            ([Some(9), None, None, None], Some(Next)),
            ([Some(-9), Some(-5), None, None], Some(Active)),
            ([Some(9), Some(9), None, None], Some(Active)),
            ([Some(-9), Some(-5), Some(-1), Some(14)], Some(Retiring)),
            ([Some(-9), Some(-5), Some(1), Some(16)], Some(Retiring)),
            ([Some(-29), Some(-25), Some(-21), Some(0)], None),
            // Retired at once, also as seen by a clock that is behind.
            ([Some(-9), Some(-5), Some(-1), Some(-1)], None),
            ([Some(-9), Some(-5), Some(3), Some(3)], None),
            // A next key that was leaked.
            ([Some(-9), None, Some(-1), Some(-1)], None),
        ] {
            assert_eq!(key(times).status(NOW), expected, "{times:?}");
        }
    }

    #[test]
    fn a_key_signs_only_when_due_and_known_to_every_verifier() {
        let schedule = Schedule { interval: Duration::from_secs(600) };
        let active = |since: i64| key([Some(-100), Some(since), None, None]);
        let next = |published: i64| key([Some(published), None, None, None]);
        assert!(!schedule.is_due(&active(-9), &next(-9), NOW));
        assert!(schedule.is_due(&active(-10), &next(-10), NOW));
        assert!(schedule.is_due(&active(-10), &next(-2), NOW));
        // Whoever wants a key for ever may say so by hand.
        let last = datetime!(9999-12-31 23:59:59 UTC);
        assert!(!schedule.is_due(&RingKey { activated_at: Some(last), ..active(-10) }, &next(-10), NOW));
        assert!(!schedule.is_due(&active(-10), &RingKey { published_at: last, ..next(-10) }, NOW));
        assert!(!schedule.is_due(&active(-10), &next(-1), NOW));
        assert!(!schedule.is_due(&active(-10), &next(0), NOW));
        // Published with the ring itself.
        let first = key([Some(0), Some(0), None, None]);
        assert_eq!(schedule.ready_at(&first, &next(0)), NOW);
        // Made by a replica whose clock is behind, when it activated the key before it.
        let active = key([Some(0), Some(-5), None, None]);
        assert_eq!(schedule.ready_at(&active, &next(-5)), NOW - time::Duration::seconds(4 * 60 - 1));
    }

    #[test]
    fn documents_are_cached_for_a_part_of_the_interval_at_most() {
        let cached_for = |seconds| Schedule { interval: Duration::from_secs(seconds) }.cached_for().as_secs();
        assert_eq!([2, 20, 240, 86_400].map(cached_for), [1, 5, 60, 60]);
    }
}
