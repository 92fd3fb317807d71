//! Users who are there already.

use sqlx::Connection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    password::HashedPassword,
    store::{
        Cause, Error, PgConnection, Transaction,
        sessions::{self, EndReason, Which},
    },
};

/// A user as far as an import changes them.
#[derive(Clone, Debug)]
pub struct Present {
    /// Who.
    pub id: Uuid,
    /// As the user wrote it.
    pub email: String,
    /// For display.
    pub full_name: Option<String>,
    /// The password; `None`: none.
    pub password_hash: Option<HashedPassword>,
    /// Sorted, none twice.
    pub roles: Vec<String>,
    /// Whether the user has shown that the address is theirs.
    pub is_email_verified: bool,
    /// Whether the user is locked out.
    pub disabled: bool,
    /// When the present password was set.
    pub password_changed_at: OffsetDateTime,
    /// As of when this is so, but for the roles and whether they are locked out:
    pub updated_at: OffsetDateTime,
    /// as of when those are so. The user's own changes are none of them.
    pub administered_at: OffsetDateTime,
}

impl Present {
    /// Whether something may have changed by `at`.
    pub fn is_older_than(&self, at: OffsetDateTime) -> bool {
        self.updated_at < at || self.administered_at < at
    }
}

/// These users, locked in the order of their ids.
///
/// # Errors
///
/// When the database fails.
pub async fn lock(transaction: &mut Transaction<'_>, ids: &[Uuid]) -> Result<Vec<Present>, Error> {
    let users = sqlx::query!(
        r#"SELECT id, email, full_name, password_hash, roles, is_email_verified, disabled, password_changed_at,
                  updated_at, coalesce(administered_at, updated_at) AS "administered_at!"
           FROM users WHERE id = ANY ($1) ORDER BY id FOR UPDATE"#,
        ids,
    );
    let present = users.map(|row| Present {
        id: row.id,
        email: row.email,
        full_name: row.full_name,
        password_hash: row.password_hash.map(HashedPassword::from_stored),
        roles: row.roles,
        is_email_verified: row.is_email_verified,
        disabled: row.disabled,
        password_changed_at: row.password_changed_at,
        updated_at: row.updated_at,
        administered_at: row.administered_at,
    });
    Ok(present.fetch_all(&mut **transaction).await?)
}

/// Makes `user`, whom [`lock`] has locked, who it says. Another password ends the user's sessions.
///
/// # Errors
///
/// [`Error::LastAdmin`]; where it `demotes` an administrator nothing of this user has changed then, and the transaction goes
/// on. All others end it.
pub async fn change(
    transaction: &mut Transaction<'_>,
    user: &Present,
    is_other_password: bool,
    demotes: bool,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<(), Error> {
    if !demotes {
        return update(transaction, user, is_other_password, now, cause).await;
    }
    // Not for everybody: that is to the database and back three times in place of once, and hundreds of savepoints in one
    // transaction slow down everybody else.
    #[expect(
        clippy::disallowed_methods,
        reason = "what is left half way ends with the transaction that it is a part of"
    )]
    let mut savepoint = transaction.begin().await?;
    update(&mut savepoint, user, is_other_password, now, cause).await?;
    savepoint.commit().await?;
    Ok(())
}

async fn update(
    conn: &mut PgConnection,
    user: &Present,
    is_other_password: bool,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<(), Error> {
    let done = sqlx::query!(
        "UPDATE users
         SET email = $2, full_name = $3, password_hash = $4, roles = $5, is_email_verified = $6, disabled = $7,
             password_changed_at = $8, updated_at = $9, administered_at = $10
         WHERE id = $1 AND (SELECT caused_by($11, $12))",
        user.id,
        user.email,
        user.full_name,
        user.password_hash.as_ref().map(HashedPassword::as_str),
        &user.roles,
        user.is_email_verified,
        user.disabled,
        user.password_changed_at,
        user.updated_at,
        user.administered_at,
        cause.actor(),
        cause.request_id(),
    );
    let done = done.execute(&mut *conn).await?;
    debug_assert_eq!(done.rows_affected(), 1, "the row is locked");
    if is_other_password {
        sessions::end(conn, user.id, Which::All, EndReason::PasswordChanged, now, cause).await?;
    }
    Ok(())
}

/// A user as a file is held against them.
#[derive(Debug)]
pub struct Compared {
    /// As the user wrote it.
    pub username: String,
    /// All else that an import would change.
    pub present: Present,
}

/// These users, in any order.
///
/// # Errors
///
/// When the database fails.
pub async fn compared(conn: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Compared>, Error> {
    let users = sqlx::query!(
        r#"SELECT id, username, email, full_name, password_hash, roles, is_email_verified, disabled, password_changed_at,
                  updated_at, coalesce(administered_at, updated_at) AS "administered_at!"
           FROM users WHERE id = ANY ($1)"#,
        ids,
    );
    let compared = users.map(|row| Compared {
        username: row.username,
        present: Present {
            id: row.id,
            email: row.email,
            full_name: row.full_name,
            password_hash: row.password_hash.map(HashedPassword::from_stored),
            roles: row.roles,
            is_email_verified: row.is_email_verified,
            disabled: row.disabled,
            password_changed_at: row.password_changed_at,
            updated_at: row.updated_at,
            administered_at: row.administered_at,
        },
    });
    Ok(compared.fetch_all(conn).await?)
}

/// The users who are these in another system, in any order.
///
/// # Errors
///
/// When the database fails.
pub async fn ids(conn: &mut PgConnection, external_ids: &[String]) -> Result<Vec<Uuid>, Error> {
    let ids = sqlx::query_scalar!("SELECT id FROM users WHERE external_id = ANY ($1)", external_ids);
    Ok(ids.fetch_all(conn).await?)
}

/// At most `limit` users who have come from another system, by id after `after`: the id, and the one there.
///
/// # Errors
///
/// When the database fails.
pub async fn foreign(conn: &mut PgConnection, after: Uuid, limit: i64) -> Result<Vec<(Uuid, String)>, Error> {
    let users = sqlx::query!(
        r#"SELECT id, external_id AS "external_id!" FROM users
           WHERE id > $1 AND external_id IS NOT NULL ORDER BY id LIMIT $2"#,
        after,
        limit,
    );
    Ok(users.map(|row| (row.id, row.external_id)).fetch_all(conn).await?)
}
