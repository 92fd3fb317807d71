//! The history of changes: read, sealed, and kept for as long as the operator wants.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Cause, Error,
    admin::{self, Named},
    seals,
};
pub use crate::store::history::Entry;
use crate::{
    chain,
    clock::{self, Clock},
    store::{self, PgPool, history},
};

/// How often what has come is sealed.
const SEAL_INTERVAL: Duration = Duration::from_secs(60);
/// How often partitions are looked after, in seals.
const SEALS_PER_UPKEEP: u32 = 60;
/// How long the sealing and the care for partitions may take before they count as hanging. A seal that is done stays, and a
/// month that is given up may take ten minutes.
const SEAL_PATIENCE: Duration = Duration::from_secs(60);
const UPKEEP_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// By how much the order of ids may differ from that of times. One statement gives a row both, so they are milliseconds
/// apart; the rest is for a clock that was set, or a process that stood still between the two.
const DISORDER: time::Duration = time::Duration::MINUTE;

/// The history, over one database.
#[derive(Clone, Debug)]
pub struct History {
    pub(super) db: PgPool,
    pub(super) background: PgPool,
    retention: Option<Duration>,
}

/// Which changes somebody wants to see.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// About this user's account.
    pub user_id: Option<Uuid>,
    /// Of this table.
    pub table_name: Option<&'a str>,
    /// From then on.
    pub since: Option<OffsetDateTime>,
    /// Older than the page that ended with this.
    pub cursor: Option<i64>,
}

/// A part of the history, newest first.
#[derive(Clone, Debug)]
pub struct HistoryPage {
    /// The changes.
    pub changes: Vec<Entry>,
    /// What to ask with for the next page; `None`: there is none.
    pub next_cursor: Option<i64>,
}

impl History {
    /// The history in a database, of which months are given up once they are older than `retention`. It is read with
    /// connections of `db` and kept with those of `background`.
    pub fn new(db: PgPool, background: PgPool, retention: Option<Duration>) -> Self {
        Self { db, background, retention }
    }

    /// At most `limit` changes. There may be fewer, or none, and a next page all the same: what is older than `since` is
    /// read, and left out, until it is older by enough to be sure that nothing younger follows. Times have no index; so the
    /// newest are read by their ids, whose order is nearly the same.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn page(&self, wanted: &Wanted<'_>, limit: u32) -> Result<HistoryPage, Error> {
        let filter = history::Filter {
            user_id: wanted.user_id,
            table_name: wanted.table_name,
            before_id: wanted.cursor,
        };
        let limit = limit as usize;
        // One more, to know whether there is.
        let mut changes = history::page(&mut *self.db.acquire().await?, &filter, limit as i64 + 1).await?;
        let mut is_last = changes.len() <= limit;
        changes.truncate(limit);
        let oldest = changes.last().map(|change| (change.id, change.changed_at));
        if let Some(since) = wanted.since {
            is_last |= oldest.is_some_and(|(_, changed_at)| changed_at < since.saturating_sub(DISORDER));
            changes.retain(|change| change.changed_at >= since);
        }
        let next_cursor = oldest.filter(|_| !is_last).map(|(id, _)| id);
        Ok(HistoryPage { changes, next_cursor })
    }

    /// The id of the user of this id, username or address. An id may also be that of a user who is gone.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchUser`], [`Error::AmbiguousUser`].
    pub async fn user_id(&self, name: &str) -> Result<Uuid, Error> {
        Ok(match admin::named(&self.db, name).await? {
            Named::Id(id) => id,
            Named::User(user) => user.id,
        })
    }

    /// Makes the partitions that will be needed, and gives up months that have had their time; the names of those.
    ///
    /// # Errors
    ///
    /// When the database fails; what was done until then is.
    pub async fn keep_up(&self, now: OffsetDateTime) -> Result<Vec<String>, Error> {
        let mut conn = self.background.acquire().await?;
        history::prepare(&mut conn).await?;
        let mut given_up = Vec::new();
        if let Some(retention) = self.retention {
            while let Some(month) = history::drop_month(&mut conn, now - retention, &Cause::service()).await?
            {
                tracing::info!(month, "a month of the history has had its time");
                given_up.push(month);
            }
        }
        Ok(given_up)
    }

    /// Seals each minute, and looks after partitions each hour, for as long as it is polled.
    pub async fn keep(&self, clock: &Clock) {
        if let Some(warning) = seals::unlogged_heads() {
            tracing::warn!("{warning}");
        }
        let mut ticks = clock::every(SEAL_INTERVAL);
        for tick in (0..SEALS_PER_UPKEEP).cycle() {
            ticks.tick().await;
            if let Err(error) = store::within(SEAL_PATIENCE, self.seal()).await {
                tracing::warn!(error = chain::cause(&error), "the history could not be sealed");
            }
            // After sealing: no month is given up that is not sealed.
            if tick == 0
                && let Err(error) = store::within(UPKEEP_PATIENCE, self.keep_up(clock.now())).await
            {
                tracing::warn!(
                    error = chain::cause(&error),
                    "the history's months could not be looked after"
                );
            }
        }
    }
}
