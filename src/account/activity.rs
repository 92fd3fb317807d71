//! What is seen of sessions between renewals: noted in memory, written in batches.
//!
//! A token that a replica sees for the first time shows that its session is alive and, by the generation in its id, that
//! whoever renewed has got the answer. That costs at most one row of one batched write for each token and replica, and
//! most of those find the row up to date. What is lost when a replica is killed is a second's worth of it: a lost answer
//! may then be asked for once more.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    chain, clock, random,
    store::{
        self, PgPool,
        sessions::{self, Sighting},
    },
    token::Claims,
};

/// How often what was noted is written.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// How many rows one statement touches.
const BATCH: usize = 500;
/// How many sessions are noted while the database is away; past that, sightings are dropped.
const MAX_NOTED: usize = 100_000;

/// What a token's id tells of a generation: the last 12 bits.
const GENERATION_MASK: u16 = 0xfff;

/// Sightings of sessions that are not written yet.
#[derive(Clone, Debug)]
pub struct Activity {
    db: PgPool,
    noted: Arc<Mutex<HashMap<Uuid, Seen>>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    generation: u16,
    at: OffsetDateTime,
}

impl Seen {
    /// Both in one. Of two generations the younger one is what matters, whichever was seen last: a former access token is
    /// good until it expires.
    fn and(self, other: Self) -> Self {
        let is_younger =
            other.generation.wrapping_sub(self.generation) & GENERATION_MASK <= GENERATION_MASK / 2;
        let generation = if is_younger { other.generation } else { self.generation };
        Self { generation, at: self.at.max(other.at) }
    }
}

impl Activity {
    /// Sightings to be written to `db`.
    pub fn new(db: PgPool) -> Self {
        Self { db, noted: Arc::default() }
    }

    /// Notes that a token with these claims has been used for the first time here.
    pub fn note(&self, claims: &Claims, now: OffsetDateTime) {
        self.add(claims.session_id, Seen { generation: random::generation_of(claims.token_id), at: now });
    }

    fn add(&self, session_id: Uuid, seen: Seen) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = noted.get_mut(&session_id) {
            *known = known.and(seen);
        } else if noted.len() < MAX_NOTED {
            noted.insert(session_id, seen);
        }
    }

    /// Writes what was noted. What is not written stays noted, also when this is cut off; what may have been is written
    /// once more, which changes nothing.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn flush(&self) -> Result<(), store::Error> {
        let mut unwritten = self.take();
        if unwritten.rest().is_empty() {
            return Ok(());
        }
        let mut conn = self.db.acquire().await?;
        while !unwritten.rest().is_empty() {
            let batch = unwritten.rest();
            let batch = &batch[..batch.len().min(BATCH)];
            store::patiently(sessions::note_sightings(&mut conn, batch)).await?;
            unwritten.written += batch.len();
        }
        Ok(())
    }

    fn take(&self) -> Unwritten<'_> {
        let noted = std::mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner));
        let mut sightings: Vec<_> = noted
            .into_iter()
            .map(|(session_id, seen)| Sighting { session_id, generation: seen.generation, at: seen.at })
            .collect();
        // Always in this order, so that two replicas that write at once do not wait for each other in a circle.
        sightings.sort_unstable_by_key(|sighting| sighting.session_id);
        Unwritten { activity: self, sightings, written: 0 }
    }

    /// Writes once a second, for as long as it is polled.
    pub async fn keep_writing(&self) {
        let mut ticks = clock::every(FLUSH_INTERVAL);
        loop {
            ticks.tick().await;
            if let Err(error) = self.flush().await {
                tracing::warn!(
                    error = chain::cause(&error),
                    "the sightings of sessions could not be written"
                );
            }
        }
    }
}

/// What was noted, on its way to the database. What is left of it when this is dropped is noted again.
struct Unwritten<'a> {
    activity: &'a Activity,
    sightings: Vec<Sighting>,
    /// How many of them are written, from the first.
    written: usize,
}

impl Unwritten<'_> {
    fn rest(&self) -> &[Sighting] {
        &self.sightings[self.written..]
    }
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        for Sighting { session_id, generation, at } in self.rest() {
            self.activity.add(*session_id, Seen { generation: *generation, at: *at });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_sightings_the_younger_generation_and_the_later_time_count() {
        let seen = |generation, seconds| {
            let at = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(seconds);
            Seen { generation, at }
        };
        for (former, present) in [(0, 1), (7, 9), (0xffe, 0xfff), (0xfff, 0), (0xf00, 0x10), (5, 5)] {
            for (one, other) in [(seen(former, 1), seen(present, 2)), (seen(present, 1), seen(former, 2))] {
                let both = one.and(other);
                assert_eq!((both.generation, both.at), (present, other.at), "{one:?}, {other:?}");
            }
        }
    }
}
