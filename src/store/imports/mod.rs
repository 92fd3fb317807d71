//! Table `imports`, and users on their way in, by the thousand.

mod incoming;
mod present;

use sqlx::{AssertSqlSafe, Row as _};
use time::OffsetDateTime;

use super::{Cause, Error, PgConnection, PoolConnection, Transaction, error::has_ended};
pub use incoming::{Holders, Names, copy, holders};
pub use present::{Change, Present, change, demote, foreign, ids, lock, present};

/// What is imported. The same file, imported again, continues where it stopped.
#[derive(Clone, Debug)]
pub struct Source {
    /// SHA-256 of the file and of the options by which it is read.
    pub hash: [u8; 32],
    /// Where the file is.
    pub name: String,
}

/// How far an import has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Users that were created.
    pub created: u64,
    /// Users that existed and were changed.
    pub updated: u64,
    /// Users that existed and stayed as they were.
    pub unchanged: u64,
    /// Records that were refused.
    pub rejected: u64,
    /// The length of the file of rejected records, in bytes.
    pub rejects_bytes: u64,
}

impl Progress {
    /// How many records are done.
    pub fn records(&self) -> u64 {
        self.created + self.updated + self.unchanged + self.rejected
    }
}

/// Begins a transaction for thousands of users, which takes longer than a request may. Nothing else may be awaited
/// between its statements: a process stopped in the middle would keep everybody whose rows it holds locked out.
///
/// # Errors
///
/// When the database fails.
pub async fn begin(conn: &mut PgConnection) -> Result<Transaction<'_>, Error> {
    let mut transaction = super::begin_alone(conn).await?;
    let patience = sqlx::query!("SELECT set_config('statement_timeout', '0', true) AS statement");
    patience.fetch_one(&mut *transaction).await?;
    Ok(transaction)
}

/// Begins a transaction for one user, whose id in the other system is `external_id`, in a request.
///
/// # Errors
///
/// [`Error::NotAdministrator`].
pub async fn begin_one<'c>(
    conn: &'c mut PoolConnection,
    external_id: &str,
    cause: &Cause,
) -> Result<Transaction<'c>, Error> {
    let mut transaction = conn.begin().await?;
    let named = sqlx::query_scalar!(
        r#"SELECT caused_by($1, $2, $3, (SELECT id FROM users WHERE external_id = $4)) AS "done!""#,
        cause.actor(),
        cause.request_id(),
        cause.administrator(),
        external_id,
    );
    named.fetch_one(&mut *transaction).await?;
    Ok(transaction)
}

/// Ends a transaction, keeping what it did or not.
///
/// # Errors
///
/// When the database fails; then nothing has changed.
pub async fn end(transaction: Transaction<'_>, keep: bool) -> Result<(), Error> {
    if keep {
        transaction.commit().await?;
    } else {
        transaction.rollback().await?;
    }
    Ok(())
}

/// How far the import of this source has got, if it has begun and is not done.
///
/// # Errors
///
/// When the database fails.
pub async fn progress(conn: &mut PgConnection, source: &Source) -> Result<Option<Progress>, Error> {
    let row = sqlx::query!(
        "SELECT created, updated, unchanged, rejected, rejects_bytes FROM imports WHERE source_hash = $1",
        &source.hash[..],
    );
    let row = row.fetch_optional(conn).await?;
    Ok(row.map(|row| Progress {
        created: row.created.cast_unsigned(),
        updated: row.updated.cast_unsigned(),
        unchanged: row.unchanged.cast_unsigned(),
        rejected: row.rejected.cast_unsigned(),
        rejects_bytes: row.rejects_bytes.cast_unsigned(),
    }))
}

/// Forgets imports of other files that were at the same place as this one, and returns whether there were any.
///
/// # Errors
///
/// When the database fails.
pub async fn forget_former(conn: &mut PgConnection, source: &Source) -> Result<bool, Error> {
    let done = sqlx::query!(
        "DELETE FROM imports WHERE source_name = $1 AND source_hash <> $2",
        source.name,
        &source.hash[..],
    );
    Ok(done.execute(conn).await?.rows_affected() > 0)
}

/// Records how far an import has got since `before`. `false`, with nothing recorded, when somebody else has continued
/// it from there. Until the transaction ends, nobody else can. It does not matter if the row has gone meanwhile: then
/// another file was imported from the same place, perhaps on another machine ([`forget_former`]).
///
/// # Errors
///
/// When the database fails.
pub async fn note_progress(
    conn: &mut PgConnection,
    source: &Source,
    before: &Progress,
    after: &Progress,
    now: OffsetDateTime,
) -> Result<bool, Error> {
    let done = sqlx::query!(
        "INSERT INTO imports AS present (source_hash, source_name, created, updated, unchanged, rejected, rejects_bytes,
                                         started_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)
         ON CONFLICT (source_hash) DO UPDATE
         SET created = excluded.created, updated = excluded.updated, unchanged = excluded.unchanged,
             rejected = excluded.rejected, rejects_bytes = excluded.rejects_bytes, updated_at = excluded.updated_at
         WHERE present.created + present.updated + present.unchanged + present.rejected = $9",
        &source.hash[..],
        source.name,
        after.created.cast_signed(),
        after.updated.cast_signed(),
        after.unchanged.cast_signed(),
        after.rejected.cast_signed(),
        after.rejects_bytes.cast_signed(),
        now,
        before.records().cast_signed(),
    );
    Ok(done.execute(conn).await?.rows_affected() == 1)
}

/// Ends an import that is done: run again, it starts from the beginning.
///
/// # Errors
///
/// When the database fails.
pub async fn finish(conn: &mut PgConnection, source: &Source) -> Result<(), Error> {
    sqlx::query!("DELETE FROM imports WHERE source_hash = $1", &source.hash[..]).execute(conn).await?;
    Ok(())
}

/// Forgets at most `limit` imports that have not advanced since `before`, and returns how many. Rows that somebody else
/// has locked are skipped, so 0 does not mean that none is left.
///
/// # Errors
///
/// When the database fails.
pub async fn delete_forsaken(
    conn: &mut PgConnection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, Error> {
    let done = sqlx::query!(
        "DELETE FROM imports WHERE source_hash IN (
             SELECT source_hash FROM imports WHERE updated_at < $1 ORDER BY updated_at LIMIT $2 FOR UPDATE SKIP LOCKED
         )",
        before,
        limit,
    );
    Ok(done.execute(conn).await?.rows_affected())
}

/// Reads what `query` returns in another database, as of one moment: each row as a JSON object, some at a time, until
/// `take` returns `false`.
///
/// # Errors
///
/// When that database fails, or when `query` is not a query or would change something.
pub async fn foreign_rows(
    source: &super::Source,
    query: &str,
    mut take: impl AsyncFnMut(Vec<String>) -> bool,
) -> Result<(), sqlx::Error> {
    let mut conn = source.connect_as_it_is().await?;
    let mut transaction = super::begin_snapshot(&mut conn).await?;
    let query = query.trim().trim_end_matches(';');
    let declare = format!(
        "SET LOCAL timezone = 'UTC';
         DECLARE source NO SCROLL CURSOR FOR SELECT to_jsonb(source)::text FROM ({query}\n) AS source"
    );
    sqlx::raw_sql(AssertSqlSafe(declare)).execute(&mut *transaction).await?;
    loop {
        let rows = sqlx::raw_sql("FETCH 1000 FROM source").fetch_all(&mut *transaction).await?;
        let rows: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        if rows.is_empty() || !take(rows).await {
            return transaction.rollback().await;
        }
    }
}

/// Whether the connection has ended midway: the same work may succeed with another one.
pub fn is_cut_off(error: &Error) -> bool {
    match error {
        Error::Unavailable(error) => has_ended(error),
        // idle_in_transaction_session_timeout: nothing happened for too long.
        Error::Failed(sqlx::Error::Database(error)) => error.code().as_deref() == Some("25P03"),
        _ => false,
    }
}
