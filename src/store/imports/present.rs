//! Users who are there already.

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

/// A user as a file is held against them.
#[derive(Clone, Debug)]
pub struct Present {
    /// Who.
    pub id: Uuid,
    /// As the user wrote it. No import changes it.
    pub username: String,
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

/// A user whom [`lock`] has locked, as they will be.
#[derive(Debug)]
pub struct Change {
    /// All of it.
    pub user: Present,
    /// Whether that is another password, which ends the user's sessions.
    pub is_other_password: bool,
}

/// Makes users, each there once, who they will be. To the database and back at most twice, however many they are: until the
/// transaction ends, none of them can log in.
///
/// # Errors
///
/// All end the transaction.
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
    // Lists of different lengths make no array of two dimensions; no role has a comma in its name.
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
    debug_assert_eq!(done.rows_affected(), changes.len() as u64, "the rows are locked");
    let others: Vec<_> =
        changes.iter().filter(|change| change.is_other_password).map(|change| change.user.id).collect();
    if !others.is_empty() {
        sessions::end_all(conn, &others, EndReason::PasswordChanged, now, cause).await?;
    }
    Ok(())
}

/// The same with one who may be the last administrator and would be none any more.
///
/// # Errors
///
/// [`Error::LastAdmin`]: nothing has changed then, and the transaction goes on. All others end it.
pub async fn demote(
    transaction: &mut Transaction<'_>,
    change: &Change,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<(), Error> {
    // Not for everybody: that is to the database and back three times in place of once, and hundreds of savepoints in one
    // transaction slow down everybody else.
    #[expect(
        clippy::disallowed_methods,
        reason = "what is left half way ends with the transaction that it is a part of"
    )]
    let mut savepoint = transaction.begin().await?;
    self::change(&mut savepoint, std::slice::from_ref(change), now, cause).await?;
    savepoint.commit().await?;
    Ok(())
}

/// The same as they are, in any order.
///
/// # Errors
///
/// When the database fails.
pub async fn present(conn: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Present>, Error> {
    Ok(select!(ids, "").fetch_all(conn).await?)
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
