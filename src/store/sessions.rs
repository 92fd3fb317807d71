//! Table `sessions`.

use std::net::IpAddr;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Cause, Error,
    login_attempts::{Forgiveness, forgiving},
};

/// A session to begin.
#[derive(Debug)]
pub struct NewSession<'a> {
    /// UUIDv7.
    pub id: Uuid,
    /// The user it belongs to.
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
    /// When the session ends unless it is renewed before then.
    pub refresh_expires_at: OffsetDateTime,
    /// When the session ends in any case.
    pub expires_at: OffsetDateTime,
    /// When its first access token expires.
    pub access_expires_at: OffsetDateTime,
}

/// What a token says about its session's user.
#[derive(Debug)]
pub struct Owner {
    /// The user's name.
    pub username: String,
    /// The user's roles.
    pub roles: Vec<String>,
}

/// Begins a session, in generation 0, for a user as they are at that moment, and forgives their failed attempts.
/// `None`, with no session begun and nothing forgiven, when the user has been disabled or deleted, or when their
/// password, whoever changed it, is no longer the one that was checked.
///
/// The race with such a change is settled here, in one statement: `FOR SHARE` waits for a transaction that is changing
/// the user and looks again at what it left, and one that comes later finds the session. Whoever ends a user's sessions
/// must therefore change the user first. What is forgiven is locked last, in the same transaction: a session and
/// forgiveness come together or not at all.
///
/// # Errors
///
/// When the database fails.
pub async fn insert(
    conn: &mut PgConnection,
    new: &NewSession<'_>,
    forgiveness: &Forgiveness,
    cause: &Cause,
) -> Result<Option<Owner>, Error> {
    let owner = forgiving!(
        "owner AS (
             SELECT id, username, roles FROM users WHERE id = $8 AND password_changed_at = $9 AND NOT disabled
             FOR SHARE
         ), succeeded AS (
             INSERT INTO sessions
                 (id, user_id, refresh_generation, refresh_salt, user_agent, client_ip, created_at, renewed_at,
                  is_confirmed, last_used_at, refresh_expires_at, expires_at, access_expires_at)
             SELECT $7, owner.id, 0, $10, $11, $12, $5, $5, false, $5, $13, $14, $15 FROM owner
             WHERE (SELECT caused_by($16, $17))
             RETURNING user_id, $9::timestamptz AS password_changed_at
         )",
        r#"SELECT username AS "username!", roles AS "roles!" FROM owner"#,
        forgiveness,
        new.now,
        new.id,
        new.user_id,
        new.password_changed_at,
        &new.refresh_salt[..],
        new.user_agent,
        new.client_ip.map(ipnet::IpNet::from),
        new.refresh_expires_at,
        new.expires_at,
        new.access_expires_at,
        cause.actor(),
        cause.request_id(),
    );
    let owner = owner.fetch_optional(conn).await?;
    Ok(owner.map(|owner| Owner { username: owner.username, roles: owner.roles }))
}

/// Why a session was ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum EndReason {
    /// Its user logged out.
    Logout,
    /// The user or an administrator ended it, or the user had too many others that were used more recently.
    Revoked,
    /// The password was changed.
    PasswordChanged,
    /// The user was disabled.
    UserDisabled,
    /// A refresh token that had been used before was presented again.
    RefreshTokenReused,
}

impl EndReason {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Logout => "logout",
            Self::Revoked => "revoked",
            Self::PasswordChanged => "password_changed",
            Self::UserDisabled => "user_disabled",
            Self::RefreshTokenReused => "refresh_token_reused",
        }
    }
}

/// A session and its user.
#[derive(Debug)]
pub struct Session {
    /// The session.
    pub id: Uuid,
    /// The user it belongs to.
    pub user_id: Uuid,
    /// The user's current name.
    pub username: String,
    /// The user's current roles.
    pub roles: Vec<String>,
    /// Whether the user is disabled.
    pub disabled: bool,
    /// How many times it has been renewed.
    pub refresh_generation: i32,
    /// Goes into the MAC of its refresh tokens.
    pub refresh_salt: [u8; 32],
    /// When the current generation began.
    pub renewed_at: OffsetDateTime,
    /// Whether a token of the current generation has been seen.
    pub is_confirmed: bool,
    /// Where the last login or renewal came from.
    pub client_ip: Option<ipnet::IpNet>,
    /// When it ends unless it is renewed before then.
    pub refresh_expires_at: OffsetDateTime,
    /// When it ends in any case.
    pub expires_at: OffsetDateTime,
    /// When the last of its access tokens expires.
    pub access_expires_at: OffsetDateTime,
    /// Why it was ended; `None`: it was not.
    pub end_reason: Option<EndReason>,
}

/// The session with this id, even if it has ended.
///
/// # Errors
///
/// When the database fails.
pub async fn by_id(conn: &mut PgConnection, id: Uuid) -> Result<Option<Session>, Error> {
    let row = sqlx::query_as!(
        Session,
        r#"SELECT sessions.id, user_id, username, roles, disabled, refresh_generation,
                  refresh_salt AS "refresh_salt: [u8; 32]", renewed_at, is_confirmed, client_ip, refresh_expires_at,
                  expires_at, access_expires_at, end_reason AS "end_reason: EndReason"
           FROM sessions JOIN users ON users.id = user_id WHERE sessions.id = $1"#,
        id,
    );
    Ok(row.fetch_optional(conn).await?)
}

/// A renewal of a session.
#[derive(Debug)]
pub struct Renewal<'a> {
    /// The session.
    pub id: Uuid,
    /// The user it belongs to.
    pub user_id: Uuid,
    /// The generation that it leaves.
    pub generation: i32,
    /// The client that renews.
    pub user_agent: Option<&'a str>,
    /// Where the renewal comes from.
    pub client_ip: Option<IpAddr>,
    /// When the session ends unless it is renewed before then.
    pub refresh_expires_at: OffsetDateTime,
    /// When the access token that it is given expires.
    pub access_expires_at: OffsetDateTime,
    /// When the renewal happens.
    pub now: OffsetDateTime,
}

/// Moves a session to its next generation and returns its user as they are at that moment. `None` when the session is
/// not in the expected generation or has ended, or when its user is disabled.
///
/// What a token says about its user is read under `FOR SHARE`, as at a login. Either a transaction that changes the
/// roles waits for this one, and then outdates this token too; or this one waits for it, however long it takes to
/// commit, and reads what it left.
///
/// # Errors
///
/// When the database fails.
pub async fn rotate(conn: &mut PgConnection, renewal: &Renewal<'_>) -> Result<Option<Owner>, Error> {
    let owner = sqlx::query_as!(
        Owner,
        "WITH owner AS (
             SELECT id, username, roles FROM users WHERE id = $8 AND NOT disabled
             FOR SHARE
         )
         UPDATE sessions
         SET refresh_generation = refresh_generation + 1, renewed_at = $3, last_used_at = $3, is_confirmed = false,
             refresh_expires_at = $4, user_agent = $5, client_ip = $6,
             access_expires_at = greatest(access_expires_at, $7)
         FROM owner
         WHERE sessions.id = $1 AND refresh_generation = $2 AND ended_at IS NULL AND user_id = owner.id
         RETURNING owner.username, owner.roles",
        renewal.id,
        renewal.generation,
        renewal.now,
        renewal.refresh_expires_at,
        renewal.user_agent,
        renewal.client_ip.map(ipnet::IpNet::from),
        renewal.access_expires_at,
        renewal.user_id,
    );
    Ok(owner.fetch_optional(conn).await?)
}

/// Records the expiry of one more access token that a session is given, and returns the user, read as in [`rotate`].
/// `None` when the session is not in `generation` or has ended, or when its user is disabled.
///
/// # Errors
///
/// When the database fails.
pub async fn extend_access(
    conn: &mut PgConnection,
    id: Uuid,
    user_id: Uuid,
    generation: i32,
    access_expires_at: OffsetDateTime,
) -> Result<Option<Owner>, Error> {
    let owner = sqlx::query_as!(
        Owner,
        "WITH owner AS (
             SELECT id, username, roles FROM users WHERE id = $4 AND NOT disabled
             FOR SHARE
         )
         UPDATE sessions SET access_expires_at = greatest(access_expires_at, $3)
         FROM owner
         WHERE sessions.id = $1 AND refresh_generation = $2 AND ended_at IS NULL AND user_id = owner.id
         RETURNING owner.username, owner.roles",
        id,
        generation,
        access_expires_at,
        user_id,
    );
    Ok(owner.fetch_optional(conn).await?)
}

/// Which of a user's sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All of them.
    All,
    /// All but this one.
    AllBut(Uuid),
    /// This one.
    One(Uuid),
    /// This one, if it is in this generation.
    OneAt(Uuid, i32),
    /// All but this many most recently used ones; ends a thousand at most.
    Beyond(i64),
}

/// Ends those of a user's sessions that are live at `now`, and returns how many there were. All code that ends sessions
/// does so here or in [`end_all`], except when a user is disabled: a trigger then ends theirs. Another trigger tells
/// every replica.
///
/// The rows are locked in the order of their ids, as everywhere that several are locked.
///
/// # Errors
///
/// When the database fails.
pub async fn end(
    conn: &mut PgConnection,
    user_id: Uuid,
    which: Which,
    reason: EndReason,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<u64, Error> {
    let (one, generation, but, beyond) = match which {
        Which::All => (None, None, None, None),
        Which::AllBut(id) => (None, None, Some(id), None),
        Which::One(id) => (Some(id), None, None, None),
        Which::OneAt(id, generation) => (Some(id), Some(generation), None, None),
        Which::Beyond(count) => (None, None, None, Some(count)),
    };
    let done = sqlx::query!(
        "WITH ending AS (
             SELECT id FROM sessions
             WHERE user_id = $1 AND ended_at IS NULL AND greatest(refresh_expires_at, access_expires_at) > $2
                 AND ($3::uuid IS NULL OR id = $3) AND ($4::int IS NULL OR refresh_generation = $4)
                 AND ($5::uuid IS NULL OR id <> $5)
                 AND ($6::bigint IS NULL OR id IN (
                     SELECT id FROM sessions
                     WHERE user_id = $1 AND ended_at IS NULL AND greatest(refresh_expires_at, access_expires_at) > $2
                     ORDER BY last_used_at DESC, id DESC
                     OFFSET $6 LIMIT 1000
                 ))
             ORDER BY id
             FOR UPDATE
         )
         UPDATE sessions SET ended_at = $2, end_reason = $7 FROM ending
         WHERE sessions.id = ending.id AND (SELECT caused_by($8, $9, $10, $1))",
        user_id,
        now,
        one,
        generation,
        but,
        beyond,
        reason as EndReason,
        cause.actor(),
        cause.request_id(),
        cause.administrator(),
    );
    Ok(done.execute(conn).await?.rows_affected())
}

/// Ends all sessions of these users that are live at `now`, as [`end`] does for one user.
///
/// # Errors
///
/// When the database fails.
pub async fn end_all(
    conn: &mut PgConnection,
    user_ids: &[Uuid],
    reason: EndReason,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<u64, Error> {
    let done = sqlx::query!(
        "WITH ending AS (
             SELECT id FROM sessions
             WHERE user_id = ANY ($1) AND ended_at IS NULL AND greatest(refresh_expires_at, access_expires_at) > $2
             ORDER BY id
             FOR UPDATE
         )
         UPDATE sessions SET ended_at = $2, end_reason = $3 FROM ending
         WHERE sessions.id = ending.id AND (SELECT caused_by($4, $5))",
        user_ids,
        now,
        reason as EndReason,
        cause.actor(),
        cause.request_id(),
    );
    Ok(done.execute(conn).await?.rows_affected())
}

/// A session as its owner sees it.
#[derive(Clone, Debug)]
pub struct Overview {
    /// The session.
    pub id: Uuid,
    /// When its user logged in.
    pub created_at: OffsetDateTime,
    /// When it was last used.
    pub last_used_at: OffsetDateTime,
    /// When it ends in any case.
    pub expires_at: OffsetDateTime,
    /// The `User-Agent` of the login or of the last renewal.
    pub user_agent: Option<String>,
    /// Where that request came from.
    pub client_ip: Option<ipnet::IpNet>,
}

/// At most `limit` sessions of a user that are live at `now`, most recently used first: they can be renewed or, where
/// access tokens live longer than refresh tokens, their last access token is still accepted.
///
/// # Errors
///
/// When the database fails.
pub async fn of_user(
    conn: &mut PgConnection,
    user_id: Uuid,
    now: OffsetDateTime,
    limit: i64,
) -> Result<Vec<Overview>, Error> {
    let rows = sqlx::query_as!(
        Overview,
        "SELECT id, created_at, last_used_at, expires_at, user_agent, client_ip FROM sessions
         WHERE user_id = $1 AND ended_at IS NULL AND greatest(refresh_expires_at, access_expires_at) > $2
         ORDER BY last_used_at DESC, id DESC LIMIT $3",
        user_id,
        now,
        limit,
    );
    Ok(rows.fetch_all(conn).await?)
}

/// A session that is still stored, whether it has ended or not.
#[derive(Clone, Debug)]
pub struct Stored {
    /// As its owner sees it.
    pub overview: Overview,
    /// When it was ended early.
    pub ended_at: Option<OffsetDateTime>,
    /// Why: an [`EndReason`] as stored in the table.
    pub end_reason: Option<String>,
}

/// At most `limit` of all stored sessions of a user, oldest first, after the session `after`.
///
/// # Errors
///
/// When the database fails.
pub async fn stored(
    conn: &mut PgConnection,
    user_id: Uuid,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Stored>, Error> {
    let rows = sqlx::query!(
        "SELECT id, created_at, last_used_at, expires_at, user_agent, client_ip, ended_at, end_reason FROM sessions
         WHERE user_id = $1 AND id > $2 ORDER BY id LIMIT $3",
        user_id,
        after,
        limit,
    );
    let rows = rows.map(|row| Stored {
        overview: Overview {
            id: row.id,
            created_at: row.created_at,
            last_used_at: row.last_used_at,
            expires_at: row.expires_at,
            user_agent: row.user_agent,
            client_ip: row.client_ip,
        },
        ended_at: row.ended_at,
        end_reason: row.end_reason,
    });
    Ok(rows.fetch_all(conn).await?)
}

/// How far a clean-up has got.
#[derive(Debug)]
pub struct CleanUp {
    /// The last session that it looked at.
    pub last: Uuid,
    /// How many it deleted.
    pub deleted: i64,
}

/// Looks at `limit` sessions after `after`, in the order of their ids, and deletes those whose last refresh token and
/// last access token both expired before `before`. `None` when there are no more, or when another replica is cleaning
/// up.
///
/// This walks the primary key: an index on the time of expiry would have to be updated at each renewal.
///
/// # Errors
///
/// When the database fails.
pub async fn clean_up(
    conn: &mut PgConnection,
    after: Uuid,
    before: OffsetDateTime,
    limit: i64,
    cause: &Cause,
) -> Result<Option<CleanUp>, Error> {
    let done = sqlx::query_as!(
        CleanUp,
        r#"WITH looked_at AS MATERIALIZED (
             SELECT id, greatest(refresh_expires_at, access_expires_at) AS dead_at FROM sessions
             WHERE (SELECT pg_try_advisory_xact_lock($4)) AND id > $1
             ORDER BY id LIMIT $3
         ), deleted AS (
             DELETE FROM sessions USING looked_at
             WHERE sessions.id = looked_at.id AND looked_at.dead_at < $2 AND sessions.refresh_expires_at < $2
                 AND (SELECT caused_by($5, $6))
             RETURNING sessions.id
         )
         SELECT id AS "last!", (SELECT count(*) FROM deleted) AS "deleted!" FROM looked_at ORDER BY id DESC LIMIT 1"#,
        after,
        before,
        limit,
        CLEAN_UP_LOCK,
        cause.actor(),
        cause.request_id(),
    );
    Ok(done.fetch_optional(conn).await?)
}

/// The advisory lock of the replica that cleans up: "sessions" in ASCII.
const CLEAN_UP_LOCK: i64 = i64::from_be_bytes(*b"sessions");

/// One use of a session's token.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// The session.
    pub session_id: Uuid,
    /// The last 12 bits of the generation that the token came with.
    pub generation: u16,
    /// When.
    pub at: OffsetDateTime,
}

/// Records that sessions were used, and confirms the generation that was seen if it is still the current one. The rows
/// are locked in the order of their ids; there may be at most one sighting per session.
///
/// # Errors
///
/// When the database fails.
pub async fn note_sightings(conn: &mut PgConnection, sightings: &[Sighting]) -> Result<(), Error> {
    let ids: Vec<_> = sightings.iter().map(|sighting| sighting.session_id).collect();
    let generations: Vec<_> = sightings.iter().map(|sighting| i32::from(sighting.generation)).collect();
    let times: Vec<_> = sightings.iter().map(|sighting| sighting.at).collect();
    sqlx::query!(
        r#"WITH seen AS (
             SELECT sessions.id, sighting.generation, sighting.at
             FROM unnest($1::uuid[], $2::int[], $3::timestamptz[]) AS sighting (id, generation, at)
             JOIN sessions ON sessions.id = sighting.id
             WHERE ended_at IS NULL
                 AND (last_used_at < sighting.at
                     OR NOT is_confirmed AND refresh_generation & 4095 = sighting.generation)
             ORDER BY sessions.id
             FOR UPDATE OF sessions
         )
         UPDATE sessions
         SET last_used_at = greatest(last_used_at, seen.at),
             is_confirmed = is_confirmed OR refresh_generation & 4095 = seen.generation
         FROM seen WHERE sessions.id = seen.id"#,
        &ids,
        &generations,
        &times,
    )
    .execute(conn)
    .await?;
    Ok(())
}
