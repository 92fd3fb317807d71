//! Sightings: the use of sessions between renewals, noted in memory and written in batches.
//!
//! When a replica sees a token for the first time, it knows that the token's session is in use. From the generation in
//! the token's id, it also knows that whoever renewed has received the answer. A sighting costs at most one row of one
//! batched write per token and replica, and most find the row up to date. A replica that is killed loses a second's
//! worth of sightings; a renewal that they would have confirmed may then be repeated, as if its answer had been lost.
//! Other replicas learn of a sighting with the next write; this one writes before it takes an answer for lost.

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
/// How many sessions are noted while the database is unavailable; sightings of further sessions are dropped.
const MAX_NOTED: usize = 100_000;

/// The part of a generation that a token's id contains: the last 12 bits.
const GENERATION_MASK: u16 = 0xfff;

/// Sightings of sessions that have yet to be written.
#[derive(Clone, Debug)]
pub struct Activity {
    db: PgPool,
    noted: Arc<Mutex<HashMap<Uuid, Seen>>>,
    /// Held while writing. Once it is acquired, everything that was noted before has been written, or is noted again.
    writing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    generation: u16,
    at: OffsetDateTime,
}

impl Seen {
    /// Merges two sightings. The later generation counts, whichever was seen last, since an earlier access token stays
    /// valid until it expires.
    fn and(self, other: Self) -> Self {
        let is_younger =
            other.generation.wrapping_sub(self.generation) & GENERATION_MASK <= GENERATION_MASK / 2;
        let generation = if is_younger { other.generation } else { self.generation };
        Self { generation, at: self.at.max(other.at) }
    }
}

impl Activity {
    /// An empty set of sightings, to be written to `db`.
    pub fn new(db: PgPool) -> Self {
        Self { db, noted: Arc::default(), writing: Arc::default() }
    }

    /// Notes that a token with these claims was used on this replica for the first time.
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

    /// Writes what was noted; when this returns, all that this replica saw before is written. What could not be written
    /// stays noted, even if this future is dropped. What may or may not have been written is written again, which
    /// changes nothing.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn flush(&self) -> Result<(), store::Error> {
        let _writing = self.writing.lock().await;
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
        // Always in this order, so that two replicas that write at the same time do not deadlock.
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

/// Sightings on their way to the database. Those that are unwritten when this is dropped are noted again.
struct Unwritten<'a> {
    activity: &'a Activity,
    sightings: Vec<Sighting>,
    /// How many of them are written, counted from the first.
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
    fn merging_sightings_keeps_the_newer_generation_and_the_later_time() {
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
