//! Users on their way out, by the thousand.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Error, PgConnection, Transaction, snapshot};

/// A user as exported.
#[derive(Debug, Serialize)]
pub struct Leaving {
    /// UUIDv7.
    #[serde(skip)]
    pub id: Uuid,
    /// Their id in the system that they came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// As the user wrote it.
    pub username: String,
    /// As the user wrote it.
    pub email: String,
    /// For display.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_name: Option<String>,
    /// Sorted, without duplicates.
    pub roles: Vec<String>,
    /// Whether the user has shown that the address is theirs.
    pub is_email_verified: bool,
    /// Whether the user is disabled.
    pub disabled: bool,
    /// When the user was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The time as of which all this holds.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    /// When the current password was set.
    #[serde(with = "time::serde::rfc3339")]
    pub password_changed_at: OffsetDateTime,
    /// The hash of the password, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<String>,
}

/// All users as they are at one moment.
#[derive(Debug)]
pub struct Export<'c>(Transaction<'c>);

/// Begins an export.
///
/// # Errors
///
/// When the database fails.
pub async fn begin(conn: &mut PgConnection) -> Result<Export<'_>, Error> {
    Ok(Export(snapshot(conn).await?))
}

impl Export<'_> {
    /// At most `limit` users in the order of their ids, after `after`; with their password hashes if `hashes`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn page(&mut self, after: Uuid, limit: i64, hashes: bool) -> Result<Vec<Leaving>, Error> {
        let page = sqlx::query_as!(
            Leaving,
            "SELECT id, external_id, username, email, full_name, roles, is_email_verified, disabled, created_at,
                    updated_at, password_changed_at, CASE WHEN $3 THEN password_hash END AS password_hash
             FROM users WHERE id > $1 ORDER BY id LIMIT $2",
            after,
            limit,
            hashes,
        );
        Ok(page.fetch_all(&mut *self.0).await?)
    }
}
