//! What the server reports about itself.

use time::OffsetDateTime;

use super::{Error, PgConnection};

/// The time by the database's clock.
///
/// # Errors
///
/// When the database fails.
pub async fn now(conn: &mut PgConnection) -> Result<OffsetDateTime, Error> {
    Ok(sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(conn).await?)
}

/// What a connection can be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads and writes.
    Full,
    /// Reads only, by `default_transaction_read_only`: somebody chose so, or it is how the server reacts to a full
    /// disk.
    ReadOnly,
    /// Reads only, of what has been replicated from the primary.
    Standby,
}

impl Access {
    pub(super) fn of(is_standby: bool, is_read_only: bool) -> Self {
        match (is_standby, is_read_only) {
            (true, _) => Self::Standby,
            (false, true) => Self::ReadOnly,
            (false, false) => Self::Full,
        }
    }
}

/// What this connection can be used for now.
///
/// # Errors
///
/// When the database fails.
pub async fn access(conn: &mut PgConnection) -> Result<Access, sqlx::Error> {
    let found = sqlx::query!(
        r#"SELECT pg_is_in_recovery() AS "is_standby!",
                  current_setting('transaction_read_only')::bool AS "is_read_only!""#
    );
    let found = found.fetch_one(conn).await?;
    Ok(Access::of(found.is_standby, found.is_read_only))
}

/// A session that keeps statements of this role waiting for a lock.
#[derive(Debug)]
pub struct Blocker {
    /// Its process id at the server; ending that process ends the session.
    pub pid: i32,
    /// The role that it logged in as; with [`Blocker::application`], `None` when it is not among the listed sessions.
    pub role: Option<String>,
    /// Its `application_name`.
    pub application: Option<String>,
    /// How many statements wait for it.
    pub waiting: i64,
    /// How long the first of them has waited, in seconds.
    pub seconds: f64,
}

/// The sessions that have kept statements of this role in this database waiting for longer than a second. Of sessions
/// that wait in a queue, that is the one at the front, which itself waits for nobody.
///
/// # Errors
///
/// When the database fails.
pub async fn blockers(conn: &mut PgConnection) -> Result<Vec<Blocker>, Error> {
    let blockers = sqlx::query_as!(
        Blocker,
        r#"WITH RECURSIVE queue (waiting, since, pid) AS (
               SELECT pid, query_start, pid FROM pg_stat_activity
               WHERE usename = current_user AND datname = current_database() AND wait_event_type = 'Lock'
                 AND query_start < clock_timestamp() - interval '1 second'
               UNION
               SELECT waiting, since, blocking FROM queue CROSS JOIN unnest(pg_blocking_pids(pid)) AS blocking
           )
           SELECT queue.pid AS "pid!", holder.usename::text AS role, holder.application_name AS application,
                  count(*) AS "waiting!", extract(epoch FROM max(clock_timestamp() - since))::float8 AS "seconds!"
           FROM queue LEFT JOIN pg_stat_activity AS holder ON holder.pid = queue.pid
           -- Whether a session waits, its wait_event_type says only to those who have the rights of its role.
           WHERE queue.pid <> waiting AND pg_blocking_pids(queue.pid) = '{}'
           GROUP BY 1, 2, 3
           ORDER BY 4 DESC
           LIMIT 5"#
    );
    Ok(blockers.fetch_all(conn).await?)
}

/// Whether this connection is encrypted on its way to the server.
///
/// # Errors
///
/// When the database fails.
pub async fn is_encrypted(conn: &mut PgConnection) -> Result<bool, Error> {
    let ssl = sqlx::query_scalar!("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
    Ok(ssl.fetch_optional(conn).await?.flatten().unwrap_or(false))
}
