//! What stands between us and Postgres: found out by trying, for no pooler tells.

use std::time::Duration;

use sqlx::Connection;
use tokio::time::timeout;

use super::{PgConnection, Source};

/// How long the whole of it may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a statement may wait for another connection than the one that it had. Where a pooler has no other, it waits
/// for ever.
const ELSEWHERE_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is tried whether two connections are one. Others who use the pooler may come between.
const TRIALS: usize = 3;

/// How connections to Postgres are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Each of ours has its own: there is no pooler, or one in session mode.
    Session,
    /// Each transaction gets another, and statements that were prepared before it are there.
    Transaction,
    /// Each transaction gets another, and statements that were prepared before it are not, or are somebody else's.
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
        // The pooler has most likely given it what was given back last.
        if self::server(&mut transaction).await? == server {
            sharing = Sharing::Transaction;
        }
        // Then this has to go to another, where it was never prepared.
        let elsewhere = timeout(ELSEWHERE_PATIENCE, self::server(one)).await;
        transaction.rollback().await?;
        let Ok(elsewhere) = elsewhere else { break };
        if elsewhere? != server {
            sharing = Sharing::Transaction;
        }
    }
    Ok(sharing)
}

/// Which process of Postgres answers.
async fn server(conn: &mut PgConnection) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT pg_backend_pid() AS "pid!""#).fetch_one(conn).await
}

/// Whether a statement was looked for and not there, or there and not ours.
fn is_unprepared(error: &sqlx::Error) -> bool {
    match error {
        // invalid_sql_statement_name, duplicate_prepared_statement; protocol_violation is what a pooler says itself.
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("26000" | "42P05" | "08P01"))
        }
        // An answer to something else.
        sqlx::Error::Protocol(_) => true,
        _ => false,
    }
}

/// How long Postgres works at a statement of ours, where nothing is set on the connection: `statement_timeout` in
/// milliseconds, 0 for ever.
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
