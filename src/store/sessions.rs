//! Table `sessions`.

use std::net::IpAddr;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Error;

/// A session to be begun.
#[derive(Debug)]
pub struct NewSession<'a> {
    /// UUIDv7.
    pub id: Uuid,
    /// Whose it is.
    pub user_id: Uuid,
    /// The user's `password_changed_at` when the password was checked.
    pub password_changed_at: OffsetDateTime,
    /// Goes into the MAC of the session's refresh tokens.
    pub refresh_salt: &'a [u8; 32],
    /// At most 512 characters.
    pub user_agent: Option<&'a str>,
    /// Where the login came from.
    pub client_ip: Option<IpAddr>,
    /// When the login happens.
    pub now: OffsetDateTime,
    /// When it ends unless renewed before.
    pub refresh_expires_at: OffsetDateTime,
    /// When it ends in any case.
    pub expires_at: OffsetDateTime,
}

/// Begins a session, in generation 0. `false`, and no session, when the user has been disabled or deleted or has another
/// password since it was checked.
///
/// That race is settled here, in one statement: `FOR SHARE` waits for whoever is changing the user and looks again at
/// what they left, and whoever comes later finds the session. Who ends a user's sessions has to change the user first.
///
/// # Errors
///
/// When the database fails.
pub async fn insert(conn: &mut PgConnection, new: &NewSession<'_>) -> Result<bool, Error> {
    let done = sqlx::query!(
        "INSERT INTO sessions
             (id, user_id, refresh_generation, refresh_salt, user_agent, client_ip,
              created_at, last_used_at, refresh_expires_at, expires_at)
         SELECT $1, users.id, 0, $4, $5, $6, $7, $7, $8, $9
         FROM users WHERE users.id = $2 AND users.password_changed_at = $3 AND NOT users.disabled
         FOR SHARE",
        new.id,
        new.user_id,
        new.password_changed_at,
        &new.refresh_salt[..],
        new.user_agent,
        new.client_ip.map(ipnet::IpNet::from),
        new.now,
        new.refresh_expires_at,
        new.expires_at,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// How a session stands, with its user.
#[derive(Clone, Debug)]
pub struct State {
    /// Whose it is.
    pub user_id: Uuid,
    /// The user's name at present.
    pub username: String,
    /// Whether the user is locked out.
    pub disabled: bool,
    /// How often it has been renewed.
    pub refresh_generation: i32,
    /// When it ends unless renewed before.
    pub refresh_expires_at: OffsetDateTime,
    /// When it ends in any case.
    pub expires_at: OffsetDateTime,
}

/// How the session stands; `None` when there is none.
///
/// # Errors
///
/// When the database fails.
pub async fn state(conn: &mut PgConnection, id: Uuid) -> Result<Option<State>, Error> {
    let state = sqlx::query_as!(
        State,
        "SELECT user_id, username, disabled, refresh_generation, refresh_expires_at, sessions.expires_at
         FROM sessions JOIN users ON users.id = user_id WHERE sessions.id = $1",
        id,
    );
    Ok(state.fetch_optional(conn).await?)
}
