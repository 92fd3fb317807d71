//! Postgres: the only room that knows SQL. One file for each table, functions over a connection, every query checked
//! against the migrated schema at compile time.
//!
//! Constraint names are turned into meaning in one place, [`Error`].
//!
//! Every transaction runs at `READ COMMITTED`, whatever the role's default is ([`Source`] sees to that), and nearly
//! every one is a single statement: what has to hold together is said in its `WHERE`, never read first and written
//! after. A statement that finds its row locked waits, and then looks at what the other left; a snapshot for the whole
//! transaction would make an error of that, or miss it. Those that change by more than one statement
//! (`users::set_password`, `users::update_email`, `users::delete`, `imports::change`) lock or change the user first and
//! what belongs to the user second, and a login locks the user too, so that no session begins between the two unseen.
//! Those that seal the history or give up a part of it take an advisory lock first. An import leaves it to the
//! constraints who was first, and looks again. Who reads all of something wants a single snapshot, and says so:
//! [`snapshot`], `devdata::sample` and `imports::foreign_rows`.
//!
//! That an administrator stays (`users_last_admin`) is a rule about the whole table, and no constraint can say it: a
//! trigger does, and those who take an administrator away, they alone, go one after the other.
//!
//! Rows of one table are locked in the order of their ids. Deadlocks then take a statement by hand that does otherwise;
//! whoever has to give way tries again ([`retrying`]).

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

/// A transaction, undone when dropped.
pub type Transaction<'c> = sqlx::Transaction<'c, sqlx::Postgres>;

/// Runs statements that name roles, tables or databases, or change such: of those the macros of sqlx cannot be told. The
/// names are constants, or come quoted from the catalogue or by [`roles`].
async fn run(conn: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await?;
    Ok(())
}

/// Begins a transaction, or a part of one, on a connection that nobody else is lent afterwards: a command's own. On a pool's,
/// that is for [`PoolConnection::begin`].
#[expect(clippy::disallowed_methods, reason = "given up half way, it leaves its transaction to nobody")]
async fn begin_alone(conn: &mut PgConnection) -> Result<Transaction<'_>, sqlx::Error> {
    conn.begin().await
}

/// The same, for one that sees everything as it is at one moment, and changes nothing.
#[expect(clippy::disallowed_methods, reason = "as above")]
async fn begin_snapshot(conn: &mut PgConnection) -> Result<Transaction<'_>, sqlx::Error> {
    conn.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
}

/// Begins to look at all as it is at one moment. Locks nothing that anybody else wants, so whoever gives or takes the users
/// at the other end may be slow.
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
