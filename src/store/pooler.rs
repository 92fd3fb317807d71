//! What stands between us and Postgres. It is found out by trial, since no pooler reports itself.

use std::time::Duration;

use sqlx::Connection;
use tokio::time::timeout;

use super::{PgConnection, Source};

/// How long the whole trial may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a statement may wait for a server connection other than the one it had. Where a pooler has no other, the
/// statement waits for ever.
const ELSEWHERE_PATIENCE: Duration = Duration::from_secs(1);
/// How many times to try whether two connections are one. Other users of the pooler may interfere.
const TRIALS: usize = 3;

/// How connections to Postgres are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Each of our connections has its own: there is no pooler, or one in session mode.
    Session,
    /// Each transaction gets another, on which earlier prepared statements exist.
    Transaction,
    /// Each transaction gets another, on which earlier prepared statements do not exist, or are somebody else's.
    Unprepared,
}

/// Finds out how connections are handed out.
///
/// # Errors
///
/// When the database cannot be reached, or does not answer in time.
pub async fn sharing(source: &Source) -> Result<Sharing, sqlx::Error> {
    let found = async {
        let (mut one, mut other) = (source.connect_as_it_is().await?, source.connect_as_it_is().await?);
        let found = compare(&mut one, &mut other).await;
        // A failure to close hides nothing.
        for conn in [one, other] {
            conn.close().await.unwrap_or_default();
        }
        match found {
            Err(error) if is_unprepared(&error) => Ok(Sharing::Unprepared),
            found => found,
        }
    };
    timeout(PATIENCE, found).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

async fn compare(one: &mut PgConnection, other: &mut PgConnection) -> Result<Sharing, sqlx::Error> {
    let mut sharing = Sharing::Session;
    for _ in 0..TRIALS {
        let server = server(one).await?;
        let mut transaction = super::begin_alone(other).await?;
        // The pooler has most likely handed out the server connection that was returned last.
        if self::server(&mut transaction).await? == server {
            sharing = Sharing::Transaction;
        }
        // If so, this has to go to another, on which it was never prepared.
        let elsewhere = timeout(ELSEWHERE_PATIENCE, self::server(one)).await;
        transaction.rollback().await?;
        let Ok(elsewhere) = elsewhere else { break };
        if elsewhere? != server {
            sharing = Sharing::Transaction;
        }
    }
    Ok(sharing)
}

/// The process of Postgres that answers.
async fn server(conn: &mut PgConnection) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT pg_backend_pid() AS "pid!""#).fetch_one(conn).await
}

/// Whether a prepared statement was missing, or was not ours.
fn is_unprepared(error: &sqlx::Error) -> bool {
    match error {
        // invalid_sql_statement_name, duplicate_prepared_statement; protocol_violation comes from poolers themselves.
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("26000" | "42P05" | "08P01"))
        }
        // The answer to something else.
        sqlx::Error::Protocol(_) => true,
        _ => false,
    }
}

/// How long Postgres works on a statement of ours where nothing is set on the connection: `statement_timeout` in
/// milliseconds; 0 means for ever.
///
/// # Errors
///
/// When the database fails.
pub async fn statement_timeout(conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT setting::bigint AS "setting!" FROM pg_settings WHERE name = 'statement_timeout'"#
    )
    .fetch_one(conn)
    .await
}
