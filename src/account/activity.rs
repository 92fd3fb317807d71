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
    random,
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

impl Activity {
    /// Sightings to be written to `db`.
    pub fn new(db: PgPool) -> Self {
        Self { db, noted: Arc::default() }
    }

    /// Notes that a token with these claims has been used for the first time here.
    pub fn note(&self, claims: &Claims, now: OffsetDateTime) {
        let seen = Seen { generation: random::generation_of(claims.token_id), at: now };
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() < MAX_NOTED || noted.contains_key(&claims.session_id) {
            // Of two generations the younger one is what matters, and it comes later.
            noted.insert(claims.session_id, seen);
        }
    }

    /// Writes what was noted. What cannot be written is dropped: the next token tells as much.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn flush(&self) -> Result<(), store::Error> {
        let noted = std::mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner));
        if noted.is_empty() {
            return Ok(());
        }
        let mut sightings: Vec<_> = noted
            .into_iter()
            .map(|(session_id, seen)| Sighting { session_id, generation: seen.generation, at: seen.at })
            .collect();
        // Always in this order, so that two replicas that write at once do not wait for each other in a circle.
        sightings.sort_unstable_by_key(|sighting| sighting.session_id);
        let mut conn = self.db.acquire().await.map_err(store::Error::Unavailable)?;
        for batch in sightings.chunks(BATCH) {
            sessions::note_sightings(&mut conn, batch).await?;
        }
        Ok(())
    }

    /// Writes once a second, for as long as it is polled.
    pub async fn keep_writing(&self) {
        let mut ticks = tokio::time::interval(FLUSH_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.flush().await {
                tracing::warn!(%error, "the sightings of sessions could not be written");
            }
        }
    }
}
