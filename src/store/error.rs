//! What a database error means, and what to do about it.

use std::{io, time::Duration};

use tokio::time::timeout;

use crate::chain;

/// Why a statement did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value that has to be unique is in another row already.
    #[error("{0:?} is taken")]
    Taken(Unique),
    /// No enabled administrator would be left: `users_last_admin`.
    #[error("the user is the last administrator who is not disabled")]
    LastAdmin,
    /// The administrator who wants this is none any more: `caused_by_administrator`.
    #[error("the user is not an administrator any more")]
    NotAdministrator,
    /// The database cannot be reached, has no connection free, or takes no writes. The same call may succeed later.
    #[error("the database is unavailable at the moment")]
    Unavailable(#[source] sqlx::Error),
    /// Somebody else was changing the same rows, and this side had to give way. The same call may succeed at once.
    #[error("others were changing the same rows")]
    Conflict(#[source] sqlx::Error),
    /// A fault in this program or in the schema.
    #[error("the database refused a statement")]
    Failed(#[source] sqlx::Error),
}

impl Error {
    /// A statement has had no answer in time, perhaps because somebody holds a lock.
    pub(super) fn timeout() -> Self {
        let silence = io::Error::new(io::ErrorKind::TimedOut, "the database has not answered in time");
        Self::Unavailable(sqlx::Error::Io(silence))
    }
}

/// The result of `work`, or [`Error::Unavailable`] when it takes longer than `patience`.
///
/// # Errors
///
/// Those of `work`.
pub async fn within<T, E: From<Error>>(
    patience: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    timeout(patience, work).await.unwrap_or_else(|_| Err(Error::timeout().into()))
}

/// What is unique, by the constraint that enforces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unique {
    /// `users_username_key`
    Username,
    /// `users_email_key`
    Email,
    /// `users_external_id_key`
    ExternalId,
    /// `clients_name_key`
    ClientName,
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error().and_then(|error| error.constraint()) {
            Some("users_username_key") => Self::Taken(Unique::Username),
            Some("users_email_key") => Self::Taken(Unique::Email),
            Some("users_external_id_key") => Self::Taken(Unique::ExternalId),
            Some("clients_name_key") => Self::Taken(Unique::ClientName),
            Some("users_last_admin") => Self::LastAdmin,
            Some("caused_by_administrator") => Self::NotAdministrator,
            _ if is_conflict(&error) => Self::Conflict(error),
            _ if may_pass(&error) => Self::Unavailable(error),
            _ => Self::Failed(error),
        }
    }
}

/// A serialization failure or a deadlock; or a row that was on its way into the history's default partition when the
/// partition of its month was created.
fn is_conflict(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    match error.code().as_deref() {
        Some("40001" | "40P01") => true,
        // The partition constraint, which has no name.
        Some("23514") => error.constraint().is_none() && error.table() == Some("history_default"),
        _ => false,
    }
}

/// How many times a conflict is retried.
const MAX_CONFLICTS: usize = 4;

/// Runs `work`, and again, a few times, when others were changing the same rows.
///
/// # Errors
///
/// Those of `work`.
pub async fn retrying<T, W>(mut work: impl FnMut() -> W) -> Result<T, Error>
where
    W: Future<Output = Result<T, Error>>,
{
    for _ in 0..MAX_CONFLICTS {
        match work().await {
            Err(Error::Conflict(error)) => tracing::debug!(error = chain::cause(&error), "trying again"),
            done => return done,
        }
    }
    work().await
}

/// Whether the database answered with one of these codes.
pub(super) fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| codes.contains(&&*code))
}

/// Whether the connection is gone, or about to go.
pub(super) fn has_ended(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        // 57P01 to 57P03: the server, or somebody with the right to, has ended it.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P")),
        _ => false,
    }
}

/// Whether the peer cannot prove that it is the server that we want, or does not speak TLS.
fn is_about_tls(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        // How rustls reports a bad certificate.
        sqlx::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoConnection {
    /// As in [`is_about_tls`].
    Tls,
    /// No answer at all, not even a refusal.
    Silence,
    /// No server is there.
    NoServer,
    /// The server has no database with this name.
    NoDatabase,
    /// The server does not let this user in: a different password, or `pg_hba.conf`.
    NotAuthenticated,
    /// The user may not connect to this database.
    NotPrivileged,
    /// The server, the database or the role has as many connections as it may.
    TooMany,
}

/// Why there is no connection, if the error of an attempt says so.
pub fn no_connection(error: &sqlx::Error) -> Option<NoConnection> {
    Some(match error {
        error if is_about_tls(error) => NoConnection::Tls,
        sqlx::Error::PoolTimedOut => NoConnection::Silence,
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => NoConnection::Silence,
        sqlx::Error::Io(_) => NoConnection::NoServer,
        sqlx::Error::Database(error) => match &*error.code()? {
            "3D000" => NoConnection::NoDatabase,
            "28P01" | "28000" => NoConnection::NotAuthenticated,
            "42501" => NoConnection::NotPrivileged,
            "53300" => NoConnection::TooMany,
            _ => return None,
        },
        _ => return None,
    })
}

/// Whether the same call may succeed later: the database is not there, not up yet, shutting down, full, or read-only.
pub fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        error if is_about_tls(error) => false,
        // Class 08, connection exception; 53, insufficient resources; 57, operator intervention, including
        // statement_timeout; 25006, a standby that has not been promoted yet, or a database that is read-only.
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| ["08", "53", "57", "25006"].iter().any(|class| code.starts_with(class))),
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}
