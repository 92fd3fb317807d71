//! Table `revocations`: what was revoked, read by every replica in the order in which it was committed.
//!
//! Triggers write the rows, so that a change made by hand is there too. Readers must not miss a row that a slow
//! transaction commits late, behind others with higher numbers. So they do not go by numbers: they keep the snapshot
//! with which their last reading began, and ask for the rows of all transactions that had not committed in it.
//!
//! A snapshot is worth nothing in another server, which may have lost the last transactions of the one before it. Nor
//! is it in the same server after a crash: the ids of transactions that never reached the disk are assigned again, and
//! what these write would look as if it had been there all along. So a [`Position`] also holds when the server was
//! started, which no two have in common, and when its statistics began, which a recovery discards.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::{
    Acquire, Connection, PgConnection,
    postgres::{PgListener, PgPoolOptions},
};
use time::OffsetDateTime;
use tokio::time::timeout;
use uuid::Uuid;

use super::{Error, PgPool};

/// What the triggers notify.
const CHANNEL: &str = "gatepass_revocations";

/// How long a listening connection may hear nothing before it is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(5);

/// A connection of its own that hears of new rows.
#[derive(Debug)]
pub struct Listener(PgListener);

/// Begins to listen, on a connection to the database of `db` that is not from its pool: if it hangs, it can be
/// abandoned, and it takes no place from anybody.
///
/// # Errors
///
/// When the database fails.
pub async fn listen(db: &PgPool) -> Result<Listener, Error> {
    Ok(Listener(listener(db, CHANNEL).await?))
}

async fn listener(db: &PgPool, channel: &str) -> Result<PgListener, sqlx::Error> {
    let own = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(SILENCE)
        .connect_lazy_with(db.options().as_ref().clone());
    let mut listener = PgListener::connect_with(&own).await.map_err(super::source::opening)?;
    listener.eager_reconnect(false);
    listener.listen(channel).await?;
    // An open pool tests the connection when it gets it back, and warns if it has ended, as it has when the database is
    // stopped right after us. The call alone closes the pool; its future would wait for the connection.
    listener.ignore_pool_close_event(true);
    drop(own.close());
    Ok(listener)
}

impl Listener {
    /// Waits for new rows.
    ///
    /// # Errors
    ///
    /// When the connection is lost, and with it any notification that was on its way.
    pub async fn notified(&mut self) -> Result<(), Error> {
        loop {
            match timeout(SILENCE, self.0.try_recv()).await {
                Ok(Ok(Some(_))) => return Ok(()),
                Ok(Ok(None)) => return Err(Error::Unavailable(sqlx::Error::WorkerCrashed)),
                Ok(Err(error)) => return Err(error.into()),
                // There is nothing to report, or nobody left to report it.
                Err(_) => match timeout(SILENCE, self.ping()).await {
                    Ok(answer) => answer?,
                    Err(_) => return Err(Error::timeout()),
                },
            }
            if self.0.next_buffered().is_some() {
                return Ok(());
            }
        }
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.0.acquire().await?.ping().await
    }
}

/// Whether a notification sent on a connection of `db` is heard on another within `patience`. Through a pooler in
/// transaction mode it is not. Nobody else hears of this one.
///
/// # Errors
///
/// When the database fails.
pub async fn is_heard(db: &PgPool, patience: Duration) -> Result<bool, Error> {
    const TRIAL: &str = "gatepass_trial";

    let mut listener = listener(db, TRIAL).await?;
    sqlx::query!("SELECT pg_notify($1, '')", TRIAL).execute(&mut *db.acquire().await?).await?;
    match timeout(patience, listener.recv()).await {
        Ok(heard) => Ok(heard.map(|_| true)?),
        Err(_) => Ok(false),
    }
}

/// How far a reader has got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which transactions had committed.
    pub snapshot: Snapshot,
    /// When the server was started. The snapshot means nothing in another one.
    #[serde(with = "time::serde::timestamp::microseconds")]
    pub server_started_at: OffsetDateTime,
    /// When the server's statistics began. They begin anew after a crash, and the snapshot means nothing after one: a
    /// server recovers without being restarted when one of its processes dies.
    #[serde(with = "time::serde::timestamp::microseconds", default = "unknown")]
    pub statistics_began_at: OffsetDateTime,
}

/// For a position that an earlier release stored without this field: a time that no server has.
fn unknown() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH
}

impl Position {
    /// Whether the two are of one server that has not crashed between them, so that the snapshot of one means something
    /// at the other.
    pub fn is_comparable(&self, other: &Self) -> bool {
        (self.server_started_at, self.statistics_began_at)
            == (other.server_started_at, other.statistics_began_at)
    }
}

/// A `pg_snapshot`, as text: `xmin:xmax:xip,xip,…`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[serde(try_from = "String")]
#[sqlx(transparent)]
pub struct Snapshot(String);

/// Not the text of a `pg_snapshot`.
#[derive(Debug, thiserror::Error)]
#[error("not a snapshot")]
pub struct InvalidSnapshot;

impl TryFrom<String> for Snapshot {
    type Error = InvalidSnapshot;

    /// Accepts what Postgres accepts, so that no text from outside causes an error there.
    fn try_from(text: String) -> Result<Self, InvalidSnapshot> {
        let number = |text: &str| {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u64>().ok().filter(|_| is_number)
        };
        let is_valid = || {
            let mut parts = text.split(':');
            let (xmin, xmax, running) = (number(parts.next()?)?, number(parts.next()?)?, parts.next()?);
            let mut least = xmin;
            for xid in running.split(',').filter(|_| !running.is_empty()) {
                let xid = number(xid)?;
                if xid < least || xid >= xmax {
                    return None;
                }
                least = xid;
            }
            // Zero in the low half is the invalid transaction id.
            let is_ordered = xmin as u32 != 0 && xmax as u32 != 0 && xmin <= xmax;
            (is_ordered && parts.next().is_none()).then_some(())
        };
        if is_valid().is_some() { Ok(Self(text)) } else { Err(InvalidSnapshot) }
    }
}

/// The current end: what commits from here on is not behind it yet.
///
/// # Errors
///
/// When the database fails.
pub async fn position(conn: &mut PgConnection) -> Result<Position, Error> {
    let position = sqlx::query_as!(
        Position,
        r#"SELECT pg_current_snapshot()::text AS "snapshot!: Snapshot", pg_postmaster_start_time() AS "server_started_at!",
                  pg_stat_get_bgwriter_stat_reset_time() AS "statistics_began_at!""#,
    );
    Ok(position.fetch_one(conn).await?)
}

/// The place of a row in the order in which rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its transaction.
    pub xid: i64,
    /// Rises with each row.
    pub id: i64,
}

/// A row.
#[derive(Clone, Debug)]
pub struct Revocation {
    /// Its transaction.
    pub xid: i64,
    /// Rises with each row.
    pub id: i64,
    /// The session that has ended; `None` for a change of roles.
    pub session_id: Option<Uuid>,
    /// The user whose roles have changed; `None` for a session.
    pub user_id: Option<Uuid>,
    /// The user's new roles.
    pub roles: Option<Vec<String>>,
    /// When the last access token concerned expires.
    pub expires_at: OffsetDateTime,
}

impl Revocation {
    /// Where it stands.
    pub fn place(&self) -> Place {
        Place { xid: self.xid, id: self.id }
    }
}

/// At most `limit` rows that were not committed at `since` and concern tokens that are alive at `now`, after the place
/// `after` in the order of the primary key. Two readings may have some rows in common.
///
/// # Errors
///
/// When the database fails.
pub async fn page(
    conn: &mut PgConnection,
    since: Option<&Position>,
    after: Option<Place>,
    now: OffsetDateTime,
    limit: i64,
) -> Result<Vec<Revocation>, Error> {
    // A snapshot before the first transaction, in which nothing had committed. A reader that begins there also reads
    // the rows of a restored database, with transaction ids that this server has not reached yet; to any other snapshot
    // they would be new for ever.
    let since = since.map_or("1:1:", |position| &position.snapshot.0);
    let rows = sqlx::query_as!(
        Revocation,
        r#"SELECT xid::text::bigint AS "xid!", id, session_id, user_id, roles, expires_at
           FROM revocations
           WHERE (xid, id) > (coalesce($2::bigint::text::xid8, pg_snapshot_xmin($1::text::pg_snapshot)), $3)
               AND NOT pg_visible_in_snapshot(xid, $1::text::pg_snapshot)
               AND ($1 = '1:1:' OR xid < pg_snapshot_xmax(pg_current_snapshot()))
               AND expires_at > $4
           ORDER BY xid, id
           LIMIT $5"#,
        since,
        after.map(|place| place.xid),
        after.map_or(0, |place| place.id),
        now,
        limit,
    );
    Ok(rows.fetch_all(conn).await?)
}

/// Deletes at most `limit` rows that concern tokens which expired before `before`, and returns how many. Rows that
/// somebody else has locked are skipped, so 0 does not mean that none is left.
///
/// # Errors
///
/// When the database fails.
pub async fn delete_expired(
    conn: &mut PgConnection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, Error> {
    let done = sqlx::query!(
        "DELETE FROM revocations WHERE (xid, id) IN (
             SELECT xid, id FROM revocations WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
         )",
        before,
        limit,
    );
    Ok(done.execute(conn).await?.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_accepted_exactly_as_postgres_accepts_them() {
        for (text, is_valid) in [
            ("1:1:", true),
            ("731:731:", true),
            ("731:735:731,733", true),
            ("731:735:731,731,734", true),
            ("18446744073709551615:18446744073709551615:", true),
            ("", false),
            ("731", false),
            ("731:735", false),
            ("0:735:", false),
            ("735:731:", false),
            ("1:4294967296:", false),
            ("4294967296:4294967297:", false),
            ("4294967297:4294967297:", true),
            ("731:735:730", false),
            ("731:735:735", false),
            ("731:735:733,731", false),
            ("731:735:731,", false),
            ("731:735:,731", false),
            ("731:735:731:", false),
            ("731: 735:", false),
            ("+731:735:", false),
            ("-1:735:", false),
            ("731:735:x", false),
            ("18446744073709551616:18446744073709551616:", false),
        ] {
            assert_eq!(Snapshot::try_from(text.to_owned()).is_ok(), is_valid, "{text}");
        }
    }
}
