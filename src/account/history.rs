//! The history of changes: reading it, sealing it, and keeping it for as long as the operator wants.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Cause, Error,
    admin::{self, Named},
    cut, seals,
};
pub use crate::store::history::Entry;
use crate::{
    chain,
    clock::{self, Clock},
    store::{self, PgPool, history},
};

/// How often new rows are sealed.
const SEAL_INTERVAL: Duration = Duration::from_secs(60);
/// How many seal intervals lie between two rounds of partition upkeep.
const SEALS_PER_UPKEEP: u32 = 60;
/// How long sealing and partition upkeep may take before they are presumed stuck. Seals already made stay, and dropping
/// a month may take ten minutes.
const SEAL_PATIENCE: Duration = Duration::from_secs(60);
const UPKEEP_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// By how much the order of ids may differ from the order of times. A row gets both in one statement, so milliseconds
/// would do; the rest allows for a clock that was set, or for a process that was suspended between the two.
const DISORDER: time::Duration = time::Duration::MINUTE;

/// The history, over one database.
#[derive(Clone, Debug)]
pub struct History {
    pub(super) db: PgPool,
    pub(super) background: PgPool,
    retention: Option<Duration>,
}

/// Which changes to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// About this user's account.
    pub user_id: Option<Uuid>,
    /// In this table.
    pub table_name: Option<&'a str>,
    /// At this time or later.
    pub since: Option<OffsetDateTime>,
    /// Older than the page that ended with this cursor.
    pub cursor: Option<i64>,
}

impl Wanted<'_> {
    /// The tables whose changes the history records.
    pub const TABLES: [&'static str; 5] = ["users", "sessions", "signing_keys", "clients", "history"];
}

/// A part of the history, newest first.
#[derive(Clone, Debug)]
pub struct HistoryPage {
    /// The changes.
    pub changes: Vec<Entry>,
    /// The cursor for the next page; `None` if there is none.
    pub next_cursor: Option<i64>,
}

impl History {
    /// The history in a database, whose months are dropped once they are older than `retention`. Reads use connections
    /// of `db`; sealing and upkeep use those of `background`.
    pub fn new(db: PgPool, background: PgPool, retention: Option<Duration>) -> Self {
        Self { db, background, retention }
    }

    /// A page of at most `limit` changes. A page may have fewer, or none, and still be followed by another.
    ///
    /// Times have no index, so changes are read in the order of their ids, which is nearly the same. Those older than
    /// `since` are read and left out until one is old enough that nothing newer than `since` can follow.
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
        let limit_and_next = i64::from(limit) + 1;
        let reading = self.db.read(async |mut conn| history::page(&mut conn, &filter, limit_and_next).await);
        let mut changes = reading.await?;
        let mut next = cut(&mut changes, limit).map(|change| (change.id, change.changed_at));
        if let Some(since) = wanted.since {
            next = next.filter(|(_, changed_at)| *changed_at >= since.saturating_sub(DISORDER));
            changes.retain(|change| change.changed_at >= since);
        }
        let next_cursor = next.map(|(id, _)| id);
        Ok(HistoryPage { changes, next_cursor })
    }

    /// The id of the user with this id, username or address. An id may also be that of a deleted user.
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

    /// Creates the partitions that will be needed and drops the months past their retention. Returns the names of those
    /// months.
    ///
    /// # Errors
    ///
    /// When the database fails; what was done until then stays done.
    pub async fn keep_up(&self, now: OffsetDateTime) -> Result<Vec<String>, Error> {
        let mut conn = self.background.acquire().await?;
        history::prepare(&mut conn).await?;
        let mut given_up = Vec::new();
        if let Some(retention) = self.retention {
            while let Some(month) = history::drop_month(&mut conn, now - retention, &Cause::service()).await?
            {
                tracing::info!(month, "a month of the history is past its retention and was dropped");
                given_up.push(month);
            }
        }
        Ok(given_up)
    }

    /// Seals every minute and maintains the partitions every hour, for as long as it is polled.
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
            // After sealing: a month is not dropped until it is sealed.
            if tick == 0
                && let Err(error) = store::within(UPKEEP_PATIENCE, self.keep_up(clock.now())).await
            {
                tracing::warn!(
                    error = chain::cause(&error),
                    "the partitions of the history could not be maintained"
                );
            }
        }
    }
}
