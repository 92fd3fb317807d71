//! Postgres: the only module that knows SQL. There is one file per table, with functions over a connection, and every
//! query is checked against the migrated schema at compile time.
//!
//! Constraint names are translated into errors in one place, [`Error`].
//!
//! Every transaction runs at `READ COMMITTED`, whatever the role's default is ([`Source`] sees to that), and nearly
//! every one is a single statement: its preconditions are in its `WHERE`, never read first and acted on afterwards. A
//! statement that finds its row locked waits, and then looks again at what the other transaction left. A snapshot for
//! the whole transaction would turn that wait into an error, or miss the change.
//!
//! * Transactions that write in more than one statement (`users::set_password`, `users::update_email`, `users::delete`,
//!   `imports::change`) lock or change the user first and the user's other rows second. A login locks the user too, so
//!   no session begins unseen between the two.
//! * Those that seal the history or drop a part of it take an advisory lock first.
//! * An import leaves it to the constraints to decide who was first, and then looks again.
//! * Those that read a whole set of rows need a single snapshot, and ask for one: [`snapshot`], `devdata::sample` and
//!   `imports::foreign_rows`.
//!
//! The rule that one administrator always remains (`users_last_admin`) is about the whole table, and no constraint can
//! express it. A trigger enforces it, and makes the transactions that take an administrator away, and only those, run
//! one after the other.
//!
//! Rows of one table are locked in the order of their ids, so it takes a statement entered by hand, in another order,
//! to cause a deadlock. The transaction that has to give way is tried again ([`PgPool::write`]).

pub mod clients;
pub mod devdata;
mod error;
pub mod export;
pub mod history;
pub mod imports;
pub mod login_attempts;
pub mod migrations;
mod pool;
pub mod pooler;
pub mod revocations;
pub mod roles;
mod scram;
mod server;
pub mod sessions;
pub mod signing_keys;
mod source;
pub mod triggers;
pub mod users;

use sqlx::{AssertSqlSafe, Connection};

pub use self::{
    error::{Error, NoConnection, Unique, may_pass, no_connection, retrying, within},
    history::{Actor, Cause},
    pool::{PgPool, PoolConnection, Use},
    server::{Access, Blocker, access, blockers, is_encrypted, now},
    source::{InvalidUrl, STANDBY, Source, patiently},
};
pub use sqlx::PgConnection;

/// A transaction, rolled back when dropped.
pub type Transaction<'c> = sqlx::Transaction<'c, sqlx::Postgres>;

/// Runs statements that name roles, tables or databases, or that change them: the macros of sqlx cannot check those.
/// The names are constants, or come quoted from the catalogue or from [`roles`].
async fn run(conn: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await?;
    Ok(())
}

/// Begins a transaction, or a savepoint in one, on a connection that is lent to nobody else afterwards: a command's
/// own. On a pool's connection, use [`PoolConnection::begin`].
#[expect(clippy::disallowed_methods, reason = "given up half way, it leaves its transaction to nobody")]
async fn begin_alone(conn: &mut PgConnection) -> Result<Transaction<'_>, sqlx::Error> {
    conn.begin().await
}

/// As [`begin_alone`], for a transaction that sees everything as it is at one moment and changes nothing.
#[expect(clippy::disallowed_methods, reason = "as above")]
async fn begin_snapshot(conn: &mut PgConnection) -> Result<Transaction<'_>, sqlx::Error> {
    conn.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
}

/// Begins a read of everything as it is at one moment. It locks nothing that anybody else wants, so whoever supplies or
/// consumes the users at the other end may be slow.
///
/// # Errors
///
/// When the database fails.
pub async fn snapshot(conn: &mut PgConnection) -> Result<Transaction<'_>, Error> {
    let mut transaction = begin_snapshot(conn).await?;
    let patience = sqlx::query!(
        "SELECT set_config('statement_timeout', '0', true) AS statement,
                set_config('idle_in_transaction_session_timeout', '0', true) AS idle"
    );
    patience.fetch_one(&mut *transaction).await?;
    Ok(transaction)
}
