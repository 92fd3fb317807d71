//! Deletes rows that are no longer needed: in small batches, on one replica at a time, at startup and then every
//! hour.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    chain,
    clock::{self, Clock},
    store::{self, Cause, PgConnection, PgPool, imports, login_attempts, revocations, sessions},
};

const INTERVAL: Duration = Duration::from_secs(3600);
/// How many rows one statement looks at. Each statement is a transaction of its own, so its locks are soon released.
const BATCH: i64 = 1000;
/// How long a revocation is kept after the last token that it concerns has expired: a replica whose clock was wrong
/// reads it again once the clock is right.
const REVOCATION_RETENTION: time::Duration = time::Duration::DAY;
/// How long an interrupted import can be resumed.
const IMPORT_RETENTION: time::Duration = time::Duration::days(30);

/// Deletes rows past their retention.
#[derive(Clone, Debug)]
pub struct CleanUp {
    db: PgPool,
    session_retention: Duration,
}

/// What a clean-up has deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Sessions.
    pub sessions: u64,
    /// Revocations.
    pub revocations: u64,
    /// Failed attempts that no longer count, and devices that are no longer known.
    pub login_attempts: u64,
    /// Progress records of imports that were never finished.
    pub imports: u64,
}

impl CleanUp {
    /// Cleans up `db`. Sessions are kept for `session_retention` after their last token has expired; for that long,
    /// anyone who presents a refresh token is told what became of its session.
    pub fn new(db: PgPool, session_retention: Duration) -> Self {
        Self { db, session_retention }
    }

    /// Runs one clean-up. If another replica is running one, leaves the sessions to that replica; of the other tables
    /// each deletes what the other has not locked.
    ///
    /// # Errors
    ///
    /// When the database fails; what was deleted until then stays deleted.
    pub async fn run(&self, now: OffsetDateTime) -> Result<Cleaned, store::Error> {
        let mut cleaned = Cleaned::default();
        let before = now - self.session_retention;
        let mut after = Uuid::nil();
        let cause = Cause::service();
        while let Some(batch) =
            self.batch(async |conn| sessions::clean_up(conn, after, before, BATCH, &cause).await).await?
        {
            cleaned.sessions += batch.deleted.cast_unsigned();
            after = batch.last;
        }
        let before = now - REVOCATION_RETENTION;
        while let deleted @ 1.. =
            self.batch(async |conn| revocations::delete_expired(conn, before, BATCH).await).await?
        {
            cleaned.revocations += deleted;
        }
        while let deleted @ 1.. =
            self.batch(async |conn| login_attempts::delete_expired(conn, now, BATCH).await).await?
        {
            cleaned.login_attempts += deleted;
        }
        let before = now - IMPORT_RETENTION;
        while let deleted @ 1.. =
            self.batch(async |conn| imports::delete_forsaken(conn, before, BATCH).await).await?
        {
            cleaned.imports += deleted;
        }
        Ok(cleaned)
    }

    /// Each batch acquires the connection anew, so that others get their turn in between.
    async fn batch<T>(
        &self,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, store::Error>,
    ) -> Result<T, store::Error> {
        let mut conn = self.db.acquire().await?;
        store::patiently(statement(&mut conn)).await
    }

    /// Runs a clean-up now and another every hour, for as long as it is polled.
    pub async fn keep_clean(&self, clock: &Clock) {
        let mut ticks = clock::every(INTERVAL);
        loop {
            ticks.tick().await;
            match self.run(clock.now()).await {
                Ok(cleaned) if cleaned == Cleaned::default() => {}
                Ok(Cleaned { sessions, revocations, login_attempts, imports }) => {
                    tracing::info!(sessions, revocations, login_attempts, imports, "deleted expired rows");
                }
                Err(error) => {
                    tracing::warn!(error = chain::cause(&error), "expired rows could not be deleted");
                }
            }
        }
    }
}
