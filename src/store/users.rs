//! Table `users`.

use sqlx::{
    Decode, PgConnection, Postgres,
    error::BoxDynError,
    postgres::{PgTypeInfo, PgValueRef},
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Cause, Error, PoolConnection, Transaction,
    login_attempts::{self, Columns, Places, Renaming, Taken},
    sessions::{self, EndReason, Which},
};
use crate::password::HashedPassword;

/// A user, as shown to anyone who may see users at all: everything but the password hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// UUIDv7.
    pub id: Uuid,
    /// As the user wrote it.
    pub username: String,
    /// As the user wrote it.
    pub email: String,
    /// For display.
    pub full_name: Option<String>,
    /// Sorted, without duplicates.
    pub roles: Vec<String>,
    /// Whether the user has shown that the address is theirs.
    pub is_email_verified: bool,
    /// Whether the user is disabled: they cannot log in, and whatever sessions they had were ended.
    pub disabled: bool,
    /// When the current password was set.
    pub password_changed_at: OffsetDateTime,
    /// When the user was created.
    pub created_at: OffsetDateTime,
}

/// `SELECT` of a whole [`User`], with the rest of the statement and its parameters. Where the key of an address is
/// looked up, `COLLATE "C"` comes last: the index has that order, and with any other, every row would be read.
macro_rules! select_user {
    ($rest:tt $(, $parameter:expr)*) => {
        sqlx::query_as!(
            User,
            "SELECT id, username, email, full_name, roles, is_email_verified, disabled, password_changed_at, created_at
             FROM users " + $rest
            $(, $parameter)*
        )
    };
}

/// The [`User`] of a row. With a `?`, the columns are there either all together or not at all.
macro_rules! user {
    ($row:ident $($or_none:tt)?) => {
        User {
            id: $row.id $($or_none)?,
            username: $row.username $($or_none)?,
            email: $row.email $($or_none)?,
            full_name: $row.full_name,
            roles: $row.roles $($or_none)?,
            is_email_verified: $row.is_email_verified $($or_none)?,
            disabled: $row.disabled $($or_none)?,
            password_changed_at: $row.password_changed_at $($or_none)?,
            created_at: $row.created_at $($or_none)?,
        }
    };
}

/// A user to be created.
#[derive(Debug)]
pub struct NewUser<'a> {
    /// UUIDv7.
    pub id: Uuid,
    /// Their id in the system that they come from.
    pub external_id: Option<&'a str>,
    /// Checked by the caller; constraints of the table enforce it.
    pub username: &'a str,
    /// Checked by the caller; constraints of the table enforce it.
    pub email: &'a str,
    /// Checked by the caller; constraints of the table enforce it.
    pub full_name: Option<&'a str>,
    /// `None`: the user cannot log in with a password.
    pub password_hash: Option<&'a HashedPassword>,
    /// Sorted, without duplicates.
    pub roles: &'a [String],
    /// Whether the user has shown that the address is theirs.
    pub is_email_verified: bool,
    /// Whether the user is disabled.
    pub disabled: bool,
    /// When the current password was set.
    pub password_changed_at: OffsetDateTime,
    /// When the user was created.
    pub created_at: OffsetDateTime,
    /// The time as of which all this holds.
    pub updated_at: OffsetDateTime,
}

/// Creates a user.
///
/// # Errors
///
/// [`Error::Taken`] when another user has the name or the address, whatever its case, or the external id.
pub async fn insert(conn: &mut PgConnection, new: &NewUser<'_>, cause: &Cause) -> Result<User, Error> {
    let user = sqlx::query_as!(
        User,
        "INSERT INTO users
             (id, external_id, username, email, full_name, password_hash, roles, is_email_verified, disabled,
              password_changed_at, created_at, updated_at)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 WHERE (SELECT caused_by($13, $14))
         RETURNING id, username, email, full_name, roles, is_email_verified, disabled, password_changed_at, created_at",
        new.id,
        new.external_id,
        new.username,
        new.email,
        new.full_name,
        new.password_hash.map(HashedPassword::as_str),
        new.roles,
        new.is_email_verified,
        new.disabled,
        new.password_changed_at,
        new.created_at,
        new.updated_at,
        cause.actor(),
        cause.request_id(),
    )
    .fetch_one(conn)
    .await?;
    Ok(user)
}

/// How a user is named at a login or on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name<'a> {
    /// By username.
    Username(&'a str),
    /// By e-mail address.
    Email(&'a str),
}

/// The user with this name, whatever its case.
///
/// # Errors
///
/// When the database fails.
pub async fn by_name(conn: &mut PgConnection, name: Name<'_>) -> Result<Option<User>, Error> {
    let user = match name {
        Name::Username(name) => {
            select_user!(r#"WHERE username_key = lower($1::text COLLATE "C")"#, name)
                .fetch_optional(conn)
                .await
        }
        Name::Email(name) => {
            select_user!(
                r#"WHERE email_key = lower(normalize($1::text) COLLATE "und-x-icu") COLLATE "C""#,
                name
            )
            .fetch_optional(conn)
            .await
        }
    };
    Ok(user?)
}

/// The user with this id.
///
/// # Errors
///
/// When the database fails.
pub async fn by_id(conn: &mut PgConnection, id: Uuid) -> Result<Option<User>, Error> {
    Ok(select_user!("WHERE id = $1", id).fetch_optional(conn).await?)
}

/// The user with this id in the system that they come from.
///
/// # Errors
///
/// When the database fails.
pub async fn by_external_id(conn: &mut PgConnection, external_id: &str) -> Result<Option<User>, Error> {
    Ok(select_user!("WHERE external_id = $1", external_id).fetch_optional(conn).await?)
}

/// What is known of a user but not shown along with them.
#[derive(Debug)]
pub struct Particulars {
    /// Their id in the system that they come from.
    pub external_id: Option<String>,
    /// When they were last changed.
    pub updated_at: OffsetDateTime,
}

/// The particulars of this user.
///
/// # Errors
///
/// When the database fails.
pub async fn particulars(conn: &mut PgConnection, id: Uuid) -> Result<Option<Particulars>, Error> {
    let row = sqlx::query_as!(Particulars, "SELECT external_id, updated_at FROM users WHERE id = $1", id);
    Ok(row.fetch_optional(conn).await?)
}

/// At most `limit` users in the order of their ids, which is the order of their age, after the user `after`. With
/// `role`, only those who have it.
///
/// Without a role, this walks the primary key. With one, Postgres knows how many users have it: few are found through
/// the index on roles and sorted; of many, the next ones are soon found in the order of ids.
///
/// # Errors
///
/// When the database fails.
pub async fn page(
    conn: &mut PoolConnection,
    role: Option<&str>,
    after: Option<Uuid>,
    limit: u32,
) -> Result<Vec<User>, Error> {
    let mut transaction = begin_planning(conn).await?;
    let page = select_user!(
        "WHERE id > $1 AND ($2::text IS NULL OR roles @> ARRAY[$2] AND roles <> '{}') ORDER BY id LIMIT $3",
        after.unwrap_or(Uuid::nil()),
        role,
        i64::from(limit)
    );
    let page = page.fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(page)
}

/// A user, and the key by which a search found them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The user.
    pub user: User,
    /// The username or the address in its case-insensitive form: the sort key of the results. No two are equal, since
    /// an address has an `@` and a username has none.
    pub key: String,
}

/// At most `limit` users whose username or e-mail address begins with `prefix`, whatever its case, in the order of the
/// key that was found, after the key `after`. With `role`, only those who have it. A user whose username and address
/// both begin with `prefix` is found by the username.
///
/// # Errors
///
/// When the database fails.
pub async fn search(
    conn: &mut PoolConnection,
    prefix: &str,
    role: Option<&str>,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<Found>, Error> {
    macro_rules! select {
        ($key:tt, $condition:tt $(, $parameter:expr)*) => {
            sqlx::query!(
                "SELECT id, username, email, full_name, roles, is_email_verified, disabled, password_changed_at,
                        created_at, " + $key + r#" AS "key!"
                 FROM users
                 WHERE ($2::text IS NULL OR "# + $key + " > $2)
                     AND ($3::text IS NULL OR roles @> ARRAY[$3] AND roles <> '{}')
                     AND " + $condition + "
                 ORDER BY " + $key + " LIMIT $4",
                prefix,
                after,
                role,
                i64::from(limit)
                $(, $parameter)*
            )
            .map(|row| Found { user: user!(row), key: row.key })
        };
    }
    let mut transaction = begin_planning(conn).await?;
    let by_username = select!("username_key", r#"username_key ^@ lower($1 COLLATE "C")"#);
    let mut found = by_username.fetch_all(&mut *transaction).await?;
    // Once the usernames fill a page, no address past the last of them is wanted. Without this bound, an address would
    // be read and passed over for each username that begins with the prefix.
    let before = if found.len() < limit as usize { None } else { found.last().map(|last| last.key.clone()) };
    let by_email = select!(
        "email_key",
        r#"email_key ^@ (lower(normalize($1) COLLATE "und-x-icu") COLLATE "C")
           AND ($5::text IS NULL OR email_key < $5) AND NOT username_key ^@ lower($1 COLLATE "C")"#,
        before
    );
    found.extend(by_email.fetch_all(&mut *transaction).await?);
    transaction.commit().await?;
    found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    found.truncate(limit as usize);
    Ok(found)
}

/// Begins a transaction whose statements are planned anew for the values that they are given. How rare a role or a
/// prefix is decides which index is the right one, and a generic plan would take the wrong one for some.
async fn begin_planning(conn: &mut PoolConnection) -> Result<Transaction<'_>, Error> {
    Ok(conn.begin_with("BEGIN; SET LOCAL plan_cache_mode = force_custom_plan").await?)
}

/// As its text.
impl sqlx::Type<Postgres> for HashedPassword {
    fn type_info() -> PgTypeInfo {
        <String as sqlx::Type<Postgres>>::type_info()
    }

    fn compatible(found: &PgTypeInfo) -> bool {
        <String as sqlx::Type<Postgres>>::compatible(found)
    }
}

impl<'r> Decode<'r, Postgres> for HashedPassword {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        <String as Decode<Postgres>>::decode(value).map(Self::from_stored)
    }
}

/// What a login is checked against.
#[derive(Debug)]
pub struct Credentials {
    /// The user they belong to.
    pub user: User,
    /// `None`: the user cannot log in with a password.
    pub password_hash: Option<HashedPassword>,
    /// Their id in the system that they were imported from.
    pub external_id: Option<String>,
}

/// The credentials of the user with this id.
///
/// # Errors
///
/// When the database fails.
pub async fn credentials(conn: &mut PgConnection, id: Uuid) -> Result<Option<Credentials>, Error> {
    let row = sqlx::query!(
        r#"SELECT id, external_id, username, email, full_name, password_hash AS "password_hash: HashedPassword", roles,
                  is_email_verified, disabled, password_changed_at, created_at
           FROM users WHERE id = $1"#,
        id,
    );
    let credentials = row.map(|row| Credentials {
        user: user!(row),
        password_hash: row.password_hash,
        external_id: row.external_id,
    });
    Ok(credentials.fetch_optional(conn).await?)
}

/// The password hashes of the oldest and of the newest users, at most `limit` of each, with the users' ids. However
/// many users there are, it reads no more of them than these.
///
/// # Errors
///
/// When the database fails.
pub async fn some_password_hashes(
    conn: &mut PgConnection,
    limit: i64,
) -> Result<Vec<(Uuid, HashedPassword)>, Error> {
    // The users without a hash are left out afterwards, or so many of them would be read until there are enough others.
    let rows = sqlx::query!(
        r#"SELECT id AS "id!", password_hash AS "password_hash!: HashedPassword"
           FROM (
               (SELECT id, password_hash FROM users ORDER BY id LIMIT $1)
               UNION
               (SELECT id, password_hash FROM users ORDER BY id DESC LIMIT $1)
           ) AS looked_at
           WHERE password_hash IS NOT NULL
           ORDER BY id"#,
        limit
    );
    Ok(rows.map(|row| (row.id, row.password_hash)).fetch_all(conn).await?)
}

/// Takes the places of a login attempt, as [`login_attempts::take`] does, and once it has them looks up the credentials
/// of the user with this name, whatever its case. A name of `None` is nobody's. So is a name that its user has lost
/// while the attempt was waiting for its places: the failure would count for that name alone.
///
/// A refusal looks nobody up. It costs the caller nothing, so they could ask until a difference of microseconds told
/// them which names have users.
///
/// # Errors
///
/// When the database fails.
pub async fn attempt(
    conn: &mut PgConnection,
    Places { buckets, device }: &Places,
    name: Option<Name<'_>>,
    now: OffsetDateTime,
) -> Result<(Taken, Option<Credentials>), Error> {
    let Columns { keys, spacings, spans } = Columns::new(buckets);
    let (username, email) = match name {
        Some(Name::Username(name)) => (Some(name), None),
        Some(Name::Email(name)) => (None, Some(name)),
        None => (None, None),
    };
    let row = sqlx::query!(
        r#"SELECT again_at, is_device_known AS "is_device_known!", (who).id AS "id?", (who).external_id,
                  (who).username AS "username?", (who).email AS "email?", (who).full_name,
                  (who).password_hash AS "password_hash?: HashedPassword", (who).roles AS "roles?",
                  (who).is_email_verified AS "is_email_verified?", (who).disabled AS "disabled?",
                  (who).password_changed_at AS "password_changed_at?", (who).created_at AS "created_at?"
           FROM attempt_login($1, $2, $3, $4, $5, $6, coalesce(
               lower($7::text COLLATE "C") COLLATE "C",
               lower(normalize($8::text) COLLATE "und-x-icu") COLLATE "C"
           ))"#,
        now,
        &keys,
        &spacings,
        &spans,
        device.as_ref().map(|device| &device.account[..]),
        device.as_ref().map(|device| &device.device[..]),
        username,
        email,
    );
    let attempt = row.map(|row| {
        let credentials = || {
            let (password_hash, external_id) = (row.password_hash, row.external_id);
            Some(Credentials { user: user!(row?), password_hash, external_id })
        };
        let taken = Taken { again_at: row.again_at, is_device_known: row.is_device_known };
        (taken, credentials())
    });
    Ok(attempt.fetch_one(conn).await?)
}

/// What to change about a user. `None` leaves a field as it is.
#[derive(Debug, Default)]
pub struct Change<'a> {
    /// `Some(None)` removes the name.
    pub full_name: Option<Option<&'a str>>,
    /// A different address is unverified until the user shows that it is theirs.
    pub email: Option<&'a str>,
    /// Sorted, without duplicates.
    pub roles: Option<&'a [String]>,
    /// Whether the user is disabled.
    pub disabled: Option<bool>,
}

/// Whom to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The user with this id.
    Any(Uuid),
    /// The user with this id, unless they are disabled.
    Enabled(Uuid),
}

/// Changes a user, all fields at once; `None` when there is no such user. Triggers end the sessions of a user who gets
/// disabled, and outdate the tokens of one whose roles change.
///
/// What an import brings counts only if it is newer than `updated_at`. That is why `updated_at` never goes back,
/// whatever our clock says, and stays as it is when nothing changes.
///
/// # Errors
///
/// [`Error::Taken`] when another user has the address; [`Error::LastAdmin`], [`Error::NotAdministrator`].
pub async fn update(
    conn: &mut PgConnection,
    whom: Whom,
    change: &Change<'_>,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<Option<User>, Error> {
    let (id, also_disabled) = match whom {
        Whom::Any(id) => (id, true),
        Whom::Enabled(id) => (id, false),
    };
    let user = sqlx::query_as!(
        User,
        r#"UPDATE users
           SET full_name = CASE WHEN $3 THEN $4 ELSE full_name END,
               email = coalesce($5, email),
               is_email_verified = is_email_verified
                   AND coalesce(lower(normalize($5) COLLATE "und-x-icu") = email_key, true),
               roles = coalesce($6, roles),
               disabled = coalesce($7, disabled),
               updated_at = CASE
                   WHEN (CASE WHEN $3 THEN $4 ELSE full_name END, coalesce($5, email), coalesce($6, roles),
                         coalesce($7, disabled)) IS DISTINCT FROM (full_name, email, roles, disabled)
                   THEN greatest($8, updated_at + interval '1 microsecond') ELSE updated_at
               END
           WHERE id = $1 AND ($2 OR NOT disabled) AND (SELECT caused_by($9, $10, $11, $1))
           RETURNING id, username, email, full_name, roles, is_email_verified, disabled, password_changed_at, created_at"#,
        id,
        also_disabled,
        change.full_name.is_some(),
        change.full_name.flatten(),
        change.email,
        change.roles,
        change.disabled,
        now,
        cause.actor(),
        cause.request_id(),
        cause.administrator(),
    )
    .fetch_optional(conn)
    .await?;
    Ok(user)
}

/// As [`update`], for a user who is not disabled and gets another e-mail address. The failed logins counted under the
/// former address are carried over to the new one in the same transaction, between the keys that `renaming` gives for
/// the two. Otherwise, anyone with a stolen access token could change the address again and again, and have as many
/// guesses at the password as they like.
///
/// # Errors
///
/// As [`update`].
pub async fn update_email(
    conn: &mut PoolConnection,
    id: Uuid,
    email: &str,
    change: &Change<'_>,
    renaming: impl FnOnce(&str, &str) -> Renaming,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<Option<User>, Error> {
    let mut transaction = conn.begin().await?;
    // The user first, as a successful login does.
    let former = sqlx::query_scalar!("SELECT email FROM users WHERE id = $1 AND NOT disabled FOR UPDATE", id);
    let Some(former) = former.fetch_optional(&mut *transaction).await? else { return Ok(None) };
    let renaming = renaming(&former, email);
    if renaming.from != renaming.to.key {
        login_attempts::rename(&mut transaction, &renaming, now).await?;
    }
    let user = update(&mut transaction, Whom::Enabled(id), change, now, cause).await?;
    transaction.commit().await?;
    Ok(user)
}

/// Sets the password and ends sessions, in one transaction, and returns the time from which the password holds. `None`,
/// with nothing changed, when there is no such user, or when their password is no longer the one that was set at
/// `changed_at`. Like `updated_at` ([`update`]), `password_changed_at` never goes back: an import may have brought a
/// later time, and the same import, run again, must not bring its password back.
///
/// # Errors
///
/// When the database fails.
pub async fn set_password(
    conn: &mut PoolConnection,
    id: Uuid,
    hash: &HashedPassword,
    changed_at: Option<OffsetDateTime>,
    end: Which,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<Option<OffsetDateTime>, Error> {
    let mut transaction = conn.begin().await?;
    // The user first: a login that has checked the former password waits here, and then finds that it has changed.
    let set_at = sqlx::query_scalar!(
        "UPDATE users
         SET password_hash = $2, password_changed_at = greatest($4, password_changed_at + interval '1 microsecond'),
             updated_at = greatest($4, updated_at + interval '1 microsecond')
         WHERE id = $1 AND ($3::timestamptz IS NULL OR password_changed_at = $3) AND (SELECT caused_by($5, $6))
         RETURNING password_changed_at",
        id,
        hash.as_str(),
        changed_at,
        now,
        cause.actor(),
        cause.request_id(),
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if set_at.is_some() {
        sessions::end(&mut transaction, id, end, EndReason::PasswordChanged, now, cause).await?;
        transaction.commit().await?;
    }
    Ok(set_at)
}

/// Replaces a hash with a better one of the same password, unless the password has changed meanwhile.
///
/// # Errors
///
/// When the database fails.
pub async fn upgrade_password_hash(
    conn: &mut PgConnection,
    id: Uuid,
    old: &HashedPassword,
    new: &HashedPassword,
    cause: &Cause,
) -> Result<bool, Error> {
    let done = sqlx::query!(
        "UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2 AND (SELECT caused_by($4, $5))",
        id,
        old.as_str(),
        new.as_str(),
        cause.actor(),
        cause.request_id(),
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Deletes a user with all their sessions, in one transaction. `false`, with nothing changed, when there is no such
/// user, or when their password is no longer the one that was set at `changed_at`.
///
/// # Errors
///
/// [`Error::LastAdmin`], [`Error::NotAdministrator`].
pub async fn delete(
    conn: &mut PoolConnection,
    id: Uuid,
    changed_at: Option<OffsetDateTime>,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<bool, Error> {
    let mut transaction = conn.begin().await?;
    // The user first, as everywhere that a user and their sessions change together.
    let found = sqlx::query!(
        "SELECT id FROM users
         WHERE id = $1 AND ($2::timestamptz IS NULL OR password_changed_at = $2) AND (SELECT caused_by($3, $4, $5, $1))
         FOR UPDATE",
        id,
        changed_at,
        cause.actor(),
        cause.request_id(),
        cause.administrator(),
    );
    if found.fetch_optional(&mut *transaction).await?.is_none() {
        return Ok(false);
    }
    sessions::end(&mut transaction, id, Which::All, EndReason::Revoked, now, cause).await?;
    sqlx::query!("DELETE FROM users WHERE id = $1", id).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(true)
}
