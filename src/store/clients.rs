//! Table `clients`.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Cause, Error};

/// An introspection client, without the hash of its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// UUIDv7; the `client_id`.
    pub id: Uuid,
    /// What operators call it.
    pub name: String,
    /// When it was created.
    pub created_at: OffsetDateTime,
}

/// Creates a client.
///
/// # Errors
///
/// [`Error::Taken`] when another client has the name.
pub async fn insert(
    conn: &mut PgConnection,
    new: &Client,
    secret_hash: &[u8; 32],
    cause: &Cause,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO clients (id, name, secret_hash, created_at) SELECT $1, $2, $3, $4
         WHERE (SELECT caused_by($5, $6))",
        new.id,
        new.name,
        &secret_hash[..],
        new.created_at,
        cause.actor(),
        cause.request_id(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The SHA-256 of the secret of the client with this id.
///
/// # Errors
///
/// When the database fails.
pub async fn secret_hash(conn: &mut PgConnection, id: Uuid) -> Result<Option<[u8; 32]>, Error> {
    let hash = sqlx::query_scalar!(
        r#"SELECT secret_hash AS "secret_hash: [u8; 32]" FROM clients WHERE id = $1"#,
        id,
    );
    Ok(hash.fetch_optional(conn).await?)
}

/// All clients, oldest first.
///
/// # Errors
///
/// When the database fails.
pub async fn all(conn: &mut PgConnection) -> Result<Vec<Client>, Error> {
    let clients = sqlx::query_as!(Client, "SELECT id, name, created_at FROM clients ORDER BY id");
    Ok(clients.fetch_all(conn).await?)
}

/// Deletes the client with this id or name; `None` when there is none. There is one at most, since no name is an id.
///
/// # Errors
///
/// When the database fails.
pub async fn delete(
    conn: &mut PgConnection,
    id: Option<Uuid>,
    name: &str,
    cause: &Cause,
) -> Result<Option<Client>, Error> {
    let deleted = sqlx::query_as!(
        Client,
        "DELETE FROM clients WHERE (id = $1 OR name = $2) AND (SELECT caused_by($3, $4))
         RETURNING id, name, created_at",
        id,
        name,
        cause.actor(),
        cause.request_id(),
    );
    Ok(deleted.fetch_optional(conn).await?)
}
