//! The SQL of data for developers. Much of it is not checked at compile time: `COPY` and statements that change tables
//! take no parameters, so the macros of sqlx cannot check them. What is put into such a statement is a constant or
//! comes quoted from the catalogue; values are passed through `set_config`.

pub mod load;
pub mod mask;
pub mod masks;
pub mod names;
pub mod sample;
pub mod seed;

use super::{migrations, run};

/// Why there is no data.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody's data is there already.
    #[error("the database is not empty: it contains {0}; use an empty one")]
    NotEmpty(String),
    /// The role that is logged in could change something.
    #[error("{0} can write: use a role that can only read (docs/devdata.md)")]
    MayWrite(String),
    /// Nobody has decided how this is masked.
    #[error("there is no mask for {0}: this version does not know what it is")]
    Unknown(String),
    /// A constraint was not checked, so it may not hold.
    #[error("the constraint {0} was not checked")]
    NotValidated(String),
    /// Nothing says that this is a copy.
    #[error("no row of devdata.copy says that {0} is a copy: this might be production (docs/devdata.md)")]
    NotMarked(String),
    /// Somebody is using it.
    #[error("the database has {0} other session(s): a copy must be masked before anybody uses it")]
    InUse(i64),
    /// A prepared transaction, by its identifier; only a command ends it.
    #[error(
        "the transaction {0} is prepared, and holds its locks until it is ended: end it first (ROLLBACK PREPARED)"
    )]
    Prepared(String),
    /// The schema is not this version's.
    #[error(transparent)]
    Schema(#[from] migrations::Error),
    /// A well-formed statement failed on the rows.
    #[error(
        "a statement failed with SQLSTATE {0}; the database's message is left out, since it may quote a value"
    )]
    OfRows(String),
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// The error of a statement that was prepared before, and so fails because of the rows that it reads. Messages quote
/// their values, whatever the class of the error (`username::integer`, `username::regclass`).
fn without_values(error: sqlx::Error) -> Error {
    match &error {
        sqlx::Error::Database(told) if !super::may_pass(&error) => {
            Error::OfRows(told.code().unwrap_or_default().into_owned())
        }
        _ => error.into(),
    }
}
