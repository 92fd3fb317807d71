//! Table `signing_keys`.
//!
//! Every step of a key's life is one statement that names the state it starts from. Of many replicas that try, one
//! takes the step and the others find it taken.

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{Cause, Error};

/// How many seconds longer than its tokens a retired key verifies, for those that a replica signs with it before it
/// hears of the change.
const GRACE_SECONDS: i32 = 60;

/// A key without its private part.
#[derive(Clone, Debug)]
pub struct SigningKey {
    /// Its `kid`.
    pub id: String,
    /// Its format's name.
    pub format: String,
    /// PASERK or JWK.
    pub public_key: String,
    /// Name of the root key that the private part is wrapped under; `None` when that part is destroyed.
    pub wrapped_by: Option<String>,
    /// When it was created and published.
    pub published_at: OffsetDateTime,
    /// When it began to sign.
    pub activated_at: Option<OffsetDateTime>,
    /// When it was taken out of signing.
    pub retired_at: Option<OffsetDateTime>,
    /// Until when its tokens are accepted.
    pub verifies_until: Option<OffsetDateTime>,
}

/// A key to be created, unknown to everybody so far.
#[derive(Debug)]
pub struct NewKey<'a> {
    /// Its `kid`.
    pub id: &'a str,
    /// PASERK or JWK.
    pub public_key: &'a str,
    /// The private key, encrypted.
    pub wrapped_key: &'a [u8],
    /// Name of the root key that it is wrapped under.
    pub wrapped_by: &'a str,
    /// The longest life of a token, as far as the key's creator knows, in seconds.
    pub token_seconds: i32,
}

/// The keys that are live at `now`, the retired ones that still verify included, oldest first.
///
/// # Errors
///
/// When the database fails.
pub async fn live(conn: &mut PgConnection, now: OffsetDateTime) -> Result<Vec<SigningKey>, Error> {
    let keys = sqlx::query_as!(
        SigningKey,
        "SELECT id, format, public_key, wrapped_by, published_at, activated_at, retired_at, verifies_until
         FROM signing_keys WHERE retired_at IS NULL OR verifies_until > $1 ORDER BY published_at, id",
        now,
    );
    Ok(keys.fetch_all(conn).await?)
}

/// Every key that there has been, oldest first.
///
/// # Errors
///
/// When the database fails.
pub async fn all(conn: &mut PgConnection) -> Result<Vec<SigningKey>, Error> {
    let keys = sqlx::query_as!(
        SigningKey,
        "SELECT id, format, public_key, wrapped_by, published_at, activated_at, retired_at, verifies_until
         FROM signing_keys ORDER BY published_at, id",
    );
    Ok(keys.fetch_all(conn).await?)
}

/// A private key, encrypted, and the name of the root key that it is wrapped under. `None` when it is destroyed.
///
/// # Errors
///
/// When the database fails.
pub async fn wrapped(conn: &mut PgConnection, id: &str) -> Result<Option<(Vec<u8>, String)>, Error> {
    let row = sqlx::query!(
        r#"SELECT wrapped_key AS "wrapped_key!", wrapped_by AS "wrapped_by!"
           FROM signing_keys WHERE id = $1 AND retired_at IS NULL"#,
        id,
    );
    Ok(row.fetch_optional(conn).await?.map(|row| (row.wrapped_key, row.wrapped_by)))
}

/// Creates the first two keys of a format: one that signs, and the next. Of many who try, one succeeds and gets `true`.
///
/// # Errors
///
/// When the database fails.
pub async fn found(
    conn: &mut PgConnection,
    format: &str,
    active: &NewKey<'_>,
    next: &NewKey<'_>,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<bool, Error> {
    let done = sqlx::query!(
        "INSERT INTO signing_keys
             (id, format, public_key, wrapped_key, wrapped_by, token_seconds, published_at, activated_at)
         SELECT * FROM (
             VALUES ($1, $9, $2, $3::bytea, $4, $10::int, $11::timestamptz, $11::timestamptz),
                 ($5, $9, $6, $7, $8, $10, $11, NULL)
         ) AS new WHERE (SELECT caused_by($12, $13))
         ON CONFLICT DO NOTHING",
        active.id,
        active.public_key,
        active.wrapped_key,
        active.wrapped_by,
        next.id,
        next.public_key,
        next.wrapped_key,
        next.wrapped_by,
        format,
        active.token_seconds,
        now,
        cause.actor(),
        cause.request_id(),
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 2)
}

/// Makes `next` sign in place of `active`, and `new` the next key. `active` goes on verifying until the last of its
/// tokens has expired; with `at_once`, it stops now. `false`, with nothing changed, when `active` and `next` no longer
/// are what they were.
///
/// # Errors
///
/// When the database fails.
pub async fn rotate(
    conn: &mut PgConnection,
    active: &str,
    next: &str,
    new: &NewKey<'_>,
    at_once: bool,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<bool, Error> {
    let done = sqlx::query!(
        "WITH heads AS (
             SELECT id FROM signing_keys
             WHERE retired_at IS NULL
                 AND (id = $1 AND activated_at IS NOT NULL OR id = $2 AND activated_at IS NULL)
             ORDER BY id FOR UPDATE
         ), retired AS (
             UPDATE signing_keys
             SET retired_at = $7::timestamptz, wrapped_key = NULL, wrapped_by = NULL,
                 verifies_until = CASE WHEN $8::boolean THEN $7::timestamptz
                                       ELSE $7::timestamptz + make_interval(secs => token_seconds + $9::float8) END
             WHERE id = $1 AND (SELECT count(*) FROM heads) = 2 AND (SELECT caused_by($11, $12))
             RETURNING format, token_seconds
         ), activated AS (
             UPDATE signing_keys SET activated_at = $7::timestamptz
             WHERE id = $2 AND (SELECT count(*) FROM retired) = 1
             RETURNING id
         )
         INSERT INTO signing_keys (id, format, public_key, wrapped_key, wrapped_by, token_seconds, published_at)
         SELECT $3, format, $4, $5, $6, greatest(token_seconds, $10), $7::timestamptz FROM retired
         WHERE (SELECT count(*) FROM activated) = 1",
        active,
        next,
        new.id,
        new.public_key,
        new.wrapped_key,
        new.wrapped_by,
        now,
        at_once,
        f64::from(GRACE_SECONDS),
        new.token_seconds,
        cause.actor(),
        cause.request_id(),
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Replaces the next key, which has signed nothing and never will. `false` when it is no longer the next one.
///
/// # Errors
///
/// When the database fails.
pub async fn replace_next(
    conn: &mut PgConnection,
    next: &str,
    new: &NewKey<'_>,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<bool, Error> {
    let done = sqlx::query!(
        "WITH retired AS (
             UPDATE signing_keys
             SET retired_at = $6::timestamptz, verifies_until = $6, wrapped_key = NULL, wrapped_by = NULL
             WHERE id = $1 AND activated_at IS NULL AND retired_at IS NULL AND (SELECT caused_by($8, $9))
             RETURNING format, token_seconds
         )
         INSERT INTO signing_keys (id, format, public_key, wrapped_key, wrapped_by, token_seconds, published_at)
         SELECT $2, format, $3, $4, $5, greatest(token_seconds, $7), $6 FROM retired",
        next,
        new.id,
        new.public_key,
        new.wrapped_key,
        new.wrapped_by,
        now,
        new.token_seconds,
        cause.actor(),
        cause.request_id(),
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Stops a retired key from verifying, whatever time it is. `false` when it is not retired, or was stopped already.
///
/// # Errors
///
/// When the database fails.
pub async fn end(conn: &mut PgConnection, id: &str, cause: &Cause) -> Result<bool, Error> {
    let done = sqlx::query!(
        "UPDATE signing_keys SET verifies_until = retired_at
         WHERE id = $1 AND verifies_until > retired_at AND (SELECT caused_by($2, $3))",
        id,
        cause.actor(),
        cause.request_id(),
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Records that tokens of these formats now live this long; a longer life that is recorded stays.
///
/// # Errors
///
/// When the database fails.
pub async fn note_token_life(
    conn: &mut PgConnection,
    formats: &[String],
    token_seconds: i32,
    cause: &Cause,
) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE signing_keys SET token_seconds = $2
         WHERE format = ANY ($1) AND retired_at IS NULL AND token_seconds < $2
             AND (SELECT caused_by($3, $4))",
        formats,
        token_seconds,
        cause.actor(),
        cause.request_id(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Replaces a wrapped private key with the same key wrapped under another root key. `false` when somebody else was
/// first.
///
/// # Errors
///
/// When the database fails.
pub async fn rewrap(
    conn: &mut PgConnection,
    id: &str,
    old_root: &str,
    wrapped_key: &[u8],
    new_root: &str,
    cause: &Cause,
) -> Result<bool, Error> {
    let done = sqlx::query!(
        "UPDATE signing_keys SET wrapped_key = $3, wrapped_by = $4
         WHERE id = $1 AND wrapped_by = $2 AND (SELECT caused_by($5, $6))",
        id,
        old_root,
        wrapped_key,
        new_root,
        cause.actor(),
        cause.request_id(),
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}
