//! Users who exist already.

use sqlx::Connection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    password::HashedPassword,
    store::{
        Cause, Error, PgConnection, Transaction,
        sessions::{self, EndReason},
    },
};

/// A user in the columns that are compared with a file.
#[derive(Clone, Debug)]
pub struct Present {
    /// Their id.
    pub id: Uuid,
    /// As the user wrote it. No import changes it.
    pub username: String,
    /// As the user wrote it.
    pub email: String,
    /// For display.
    pub full_name: Option<String>,
    /// `None`: the user cannot log in with a password.
    pub password_hash: Option<HashedPassword>,
    /// Sorted, without duplicates.
    pub roles: Vec<String>,
    /// Whether the user has shown that the address is theirs.
    pub is_email_verified: bool,
    /// Whether the user is disabled.
    pub disabled: bool,
    /// When the current password was set.
    pub password_changed_at: OffsetDateTime,
    /// The time as of which this holds, except for `roles` and `disabled`.
    pub updated_at: OffsetDateTime,
    /// The time as of which `roles` and `disabled` hold. The user's own changes do not count for it.
    pub administered_at: OffsetDateTime,
}

impl Present {
    /// Whether something may have changed by `at`.
    pub fn is_older_than(&self, at: OffsetDateTime) -> bool {
        self.updated_at < at || self.administered_at < at
    }
}

/// `SELECT` of these users, with the rest of the statement.
macro_rules! select {
    ($ids:expr, $rest:tt) => {
        sqlx::query_as!(
            Present,
            r#"SELECT id, username, email, full_name, password_hash AS "password_hash: HashedPassword", roles,
                      is_email_verified, disabled, password_changed_at, updated_at,
                      coalesce(administered_at, updated_at) AS "administered_at!"
               FROM users WHERE id = ANY ($1) "#
                + $rest,
            $ids,
        )
    };
}

/// These users, locked in the order of their ids.
///
/// # Errors
///
/// When the database fails.
pub async fn lock(transaction: &mut Transaction<'_>, ids: &[Uuid]) -> Result<Vec<Present>, Error> {
    Ok(select!(ids, "ORDER BY id FOR UPDATE").fetch_all(&mut **transaction).await?)
}

/// A user locked with [`lock`], as they will be.
#[derive(Debug)]
pub struct Change {
    /// The whole user.
    pub user: Present,
    /// Whether the password is a different one, which ends the user's sessions.
    pub is_other_password: bool,
}

/// Makes users, each listed once, what they will be. It takes two round trips to the database at most, however many
/// users there are: until the transaction ends, none of them can log in.
///
/// # Errors
///
/// Any error ends the transaction.
pub async fn change(
    conn: &mut PgConnection,
    changes: &[Change],
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<(), Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let users = || changes.iter().map(|change| &change.user);
    // Lists of different lengths do not form a two-dimensional array; no role has a comma in its name.
    let roles: Vec<_> = users().map(|user| user.roles.join(",")).collect();
    let done = sqlx::query!(
        "UPDATE users
         SET email = new.email, full_name = new.full_name, password_hash = new.password_hash,
             roles = string_to_array(new.roles, ','), is_email_verified = new.is_email_verified,
             disabled = new.disabled, password_changed_at = new.password_changed_at, updated_at = new.updated_at,
             administered_at = new.administered_at
         FROM unnest(
             $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::boolean[],
             $8::timestamptz[], $9::timestamptz[], $10::timestamptz[]
         ) AS new (
             id, email, full_name, password_hash, roles, is_email_verified, disabled, password_changed_at, updated_at,
             administered_at
         )
         WHERE users.id = new.id AND (SELECT caused_by($11, $12))",
        &users().map(|user| user.id).collect::<Vec<_>>(),
        &users().map(|user| user.email.clone()).collect::<Vec<_>>(),
        &users().map(|user| user.full_name.clone()).collect::<Vec<_>>() as _,
        &users()
            .map(|user| user.password_hash.as_ref().map(|hash| hash.as_str().to_owned()))
            .collect::<Vec<_>>() as _,
        &roles,
        &users().map(|user| user.is_email_verified).collect::<Vec<_>>(),
        &users().map(|user| user.disabled).collect::<Vec<_>>(),
        &users().map(|user| user.password_changed_at).collect::<Vec<_>>(),
        &users().map(|user| user.updated_at).collect::<Vec<_>>(),
        &users().map(|user| user.administered_at).collect::<Vec<_>>(),
        cause.actor(),
        cause.request_id(),
    );
    let done = done.execute(&mut *conn).await?;
    // The rows are locked, so only a trigger of somebody else's can keep one from being changed.
    if done.rows_affected() != changes.len() as u64 {
        return Err(sqlx::Error::RowNotFound.into());
    }
    let others: Vec<_> =
        changes.iter().filter(|change| change.is_other_password).map(|change| change.user.id).collect();
    if !others.is_empty() {
        sessions::end_all(conn, &others, EndReason::PasswordChanged, now, cause).await?;
    }
    Ok(())
}

/// As [`change`], for one user who may be the last administrator and would no longer be one.
///
/// # Errors
///
/// [`Error::LastAdmin`], with nothing changed: the transaction can continue. Any other error ends it.
pub async fn demote(
    transaction: &mut Transaction<'_>,
    change: &Change,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<(), Error> {
    // Not for everybody: it takes three round trips in place of one, and hundreds of savepoints in one transaction slow
    // down everybody else.
    #[expect(
        clippy::disallowed_methods,
        reason = "what is left half way ends with the transaction that it is a part of"
    )]
    let mut savepoint = transaction.begin().await?;
    self::change(&mut savepoint, std::slice::from_ref(change), now, cause).await?;
    savepoint.commit().await?;
    Ok(())
}

/// These users as they are, not locked, in any order.
///
/// # Errors
///
/// When the database fails.
pub async fn present(conn: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Present>, Error> {
    Ok(select!(ids, "").fetch_all(conn).await?)
}

/// The users who have these ids in another system, in any order.
///
/// # Errors
///
/// When the database fails.
pub async fn ids(conn: &mut PgConnection, external_ids: &[String]) -> Result<Vec<Uuid>, Error> {
    let ids = sqlx::query_scalar!("SELECT id FROM users WHERE external_id = ANY ($1)", external_ids);
    Ok(ids.fetch_all(conn).await?)
}

/// At most `limit` users who have come from another system, in the order of their ids, after `after`: the id here, and
/// the one there.
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
