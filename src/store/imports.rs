//! Table `imports`, and the rows of `users` that come in and go out by the thousand.
//!
//! New users go in by `COPY`, which nothing can prepare: that one statement is not checked at compile time.

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row as _};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{
    Cause, Error, PoolConnection, Transaction,
    sessions::{self, EndReason, Which},
};
use crate::password::HashedPassword;

/// What is imported: the same file again goes on where it stopped.
#[derive(Clone, Debug)]
pub struct Source {
    /// SHA-256 of the file and of what it is read by.
    pub hash: [u8; 32],
    /// Where the file lies.
    pub name: String,
}

/// How far an import has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Users that were made.
    pub created: u64,
    /// Users that were there, and were changed.
    pub updated: u64,
    /// Users that were there, and stayed as they were.
    pub unchanged: u64,
    /// Records that were refused.
    pub rejected: u64,
    /// The length of the file of those.
    pub rejects_bytes: u64,
}

impl Progress {
    /// How many records are done.
    pub fn records(&self) -> u64 {
        self.created + self.updated + self.unchanged + self.rejected
    }
}

/// Begins a transaction.
///
/// # Errors
///
/// When the database fails.
pub async fn begin(conn: &mut PgConnection) -> Result<Transaction<'_>, Error> {
    let mut transaction = super::begin_alone(conn).await?;
    be_patient(&mut transaction).await?;
    Ok(transaction)
}

/// Begins a transaction for one user, in a request.
///
/// # Errors
///
/// When the database fails.
pub async fn begin_one(conn: &mut PoolConnection) -> Result<Transaction<'_>, Error> {
    Ok(conn.begin().await?)
}

/// Thousands of users take longer than a request may, and so may the other end: whoever gives or takes them.
async fn be_patient(transaction: &mut Transaction<'_>) -> Result<(), Error> {
    let patience = sqlx::query!(
        "SELECT set_config('statement_timeout', '0', true) AS statement,
                set_config('idle_in_transaction_session_timeout', '0', true) AS idle"
    );
    patience.fetch_one(&mut **transaction).await?;
    Ok(())
}

/// Ends a transaction: with what it did, or without.
///
/// # Errors
///
/// When the database fails; then nothing has changed.
pub async fn end(transaction: Transaction<'_>, keep: bool) -> Result<(), Error> {
    if keep {
        transaction.commit().await?;
    } else {
        transaction.rollback().await?;
    }
    Ok(())
}

/// How far the import of this source has come, if it has begun and is not done.
///
/// # Errors
///
/// When the database fails.
pub async fn progress(conn: &mut PgConnection, source: &Source) -> Result<Option<Progress>, Error> {
    let row = sqlx::query!(
        "SELECT created, updated, unchanged, rejected, rejects_bytes FROM imports WHERE source_hash = $1",
        &source.hash[..],
    );
    let row = row.fetch_optional(conn).await?;
    Ok(row.map(|row| Progress {
        created: row.created.cast_unsigned(),
        updated: row.updated.cast_unsigned(),
        unchanged: row.unchanged.cast_unsigned(),
        rejected: row.rejected.cast_unsigned(),
        rejects_bytes: row.rejects_bytes.cast_unsigned(),
    }))
}

/// Forgets imports of other files that lay where this one lies; whether there were any.
///
/// # Errors
///
/// When the database fails.
pub async fn forget_former(conn: &mut PgConnection, source: &Source) -> Result<bool, Error> {
    let done = sqlx::query!(
        "DELETE FROM imports WHERE source_name = $1 AND source_hash <> $2",
        source.name,
        &source.hash[..],
    );
    Ok(done.execute(conn).await?.rows_affected() > 0)
}

/// Notes how far an import has come since `before`; `false`, and nothing is noted, when somebody else has taken it on from
/// there. Until the transaction ends, nobody else can. That its row may have gone meanwhile is no matter: another file was
/// imported from the same place, perhaps of another machine ([`forget_former`]).
///
/// # Errors
///
/// When the database fails.
pub async fn note_progress(
    conn: &mut PgConnection,
    source: &Source,
    before: &Progress,
    after: &Progress,
    now: OffsetDateTime,
) -> Result<bool, Error> {
    let done = sqlx::query!(
        "INSERT INTO imports AS present (source_hash, source_name, created, updated, unchanged, rejected, rejects_bytes,
                                         started_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)
         ON CONFLICT (source_hash) DO UPDATE
         SET created = excluded.created, updated = excluded.updated, unchanged = excluded.unchanged,
             rejected = excluded.rejected, rejects_bytes = excluded.rejects_bytes, updated_at = excluded.updated_at
         WHERE present.created + present.updated + present.unchanged + present.rejected = $9",
        &source.hash[..],
        source.name,
        after.created.cast_signed(),
        after.updated.cast_signed(),
        after.unchanged.cast_signed(),
        after.rejected.cast_signed(),
        after.rejects_bytes.cast_signed(),
        now,
        before.records().cast_signed(),
    );
    Ok(done.execute(conn).await?.rows_affected() == 1)
}

/// An import is done: run again, it begins from the beginning.
///
/// # Errors
///
/// When the database fails.
pub async fn finish(conn: &mut PgConnection, source: &Source) -> Result<(), Error> {
    sqlx::query!("DELETE FROM imports WHERE source_hash = $1", &source.hash[..]).execute(conn).await?;
    Ok(())
}

/// Forgets at most `limit` imports that have not gone on since `before`; how many.
///
/// # Errors
///
/// When the database fails.
pub async fn delete_forsaken(
    conn: &mut PgConnection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, Error> {
    let done = sqlx::query!(
        "DELETE FROM imports
         WHERE source_hash IN (SELECT source_hash FROM imports WHERE updated_at < $1 LIMIT $2) AND updated_at < $1",
        before,
        limit,
    );
    Ok(done.execute(conn).await?.rows_affected())
}

/// What tells users apart, of users who may be new.
#[derive(Debug, Default)]
pub struct Names {
    /// In the system that they come from.
    pub external_ids: Vec<Option<String>>,
    /// Usernames.
    pub usernames: Vec<String>,
    /// E-mail addresses.
    pub emails: Vec<String>,
}

/// Who has a user's names already.
#[derive(Clone, Copy, Debug)]
pub struct Holders {
    /// Who has the external id.
    pub external_id: Option<Uuid>,
    /// Who has the username.
    pub username: Option<Uuid>,
    /// Who has the address.
    pub email: Option<Uuid>,
    /// Whether somebody before it has the same external id: it is the same user once more.
    pub is_repeated: bool,
    /// Whether another user before it wants the username or the address.
    pub is_claimed: bool,
}

/// Who has these names, in their order. Each is looked up by its index, whatever Postgres thinks of the table's size.
///
/// # Errors
///
/// When the database fails.
pub async fn holders(conn: &mut PgConnection, names: &Names) -> Result<Vec<Holders>, Error> {
    let holders = sqlx::query_as!(
        Holders,
        r#"SELECT (SELECT id FROM users WHERE users.external_id = wanted.external_id) AS external_id,
                  (SELECT id FROM users WHERE users.username_key = wanted.username_key) AS username,
                  (SELECT id FROM users WHERE users.email_key = wanted.email_key) AS email,
                  wanted.external_id IS NOT NULL AND row_number() OVER by_external_id > 1 AS "is_repeated!",
                  row_number() OVER by_username
                      > CASE WHEN wanted.external_id IS NULL THEN 1 ELSE row_number() OVER by_own_username END
                  OR row_number() OVER by_email
                      > CASE WHEN wanted.external_id IS NULL THEN 1 ELSE row_number() OVER by_own_email END
                      AS "is_claimed!"
           FROM (
               SELECT number, external_id COLLATE "C" AS external_id, lower(username COLLATE "C") AS username_key,
                      lower(normalize(email) COLLATE "und-x-icu") COLLATE "C" AS email_key
               FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY
                   AS given (external_id, username, email, number)
           ) AS wanted
           WINDOW by_external_id AS (PARTITION BY wanted.external_id ORDER BY number),
                  by_username AS (PARTITION BY wanted.username_key ORDER BY number),
                  by_own_username AS (PARTITION BY wanted.username_key, wanted.external_id ORDER BY number),
                  by_email AS (PARTITION BY wanted.email_key ORDER BY number),
                  by_own_email AS (PARTITION BY wanted.email_key, wanted.external_id ORDER BY number)
           ORDER BY number"#,
        &names.external_ids as _,
        &names.usernames,
        &names.emails,
    );
    Ok(holders.fetch_all(conn).await?)
}

/// A whole row.
#[derive(Debug)]
pub struct Row<'a> {
    /// UUIDv7.
    pub id: Uuid,
    /// Who they are in the system that they come from.
    pub external_id: Option<&'a str>,
    /// Checked by the caller; the table's constraints hold it.
    pub username: &'a str,
    /// Checked by the caller; the table's constraints hold it.
    pub email: &'a str,
    /// Checked by the caller; the table's constraints hold it.
    pub full_name: Option<&'a str>,
    /// The password; `None`: the user cannot log in with one.
    pub password_hash: Option<&'a HashedPassword>,
    /// Sorted, none twice.
    pub roles: &'a [String],
    /// Whether the user has shown that the address is theirs.
    pub is_email_verified: bool,
    /// Whether the user is locked out.
    pub disabled: bool,
    /// When the present password was set.
    pub password_changed_at: OffsetDateTime,
    /// When the user was made.
    pub created_at: OffsetDateTime,
    /// As of when this is so.
    pub updated_at: OffsetDateTime,
}

const COPY: &str = "COPY users (id, external_id, username, email, full_name, password_hash, roles, is_email_verified, \
                    disabled, password_changed_at, created_at, updated_at) FROM STDIN";

/// How much is sent at once, in bytes.
const COPY_BUFFER: usize = 1 << 16;

/// Makes users, all of them or none. Not in a request, which may be given up: sqlx does not count the answers to a `COPY`,
/// and whoever is lent the connection next would be given them in place of their own.
///
/// # Errors
///
/// [`Error::Taken`] when a name is another's.
pub async fn copy(
    transaction: &mut Transaction<'_>,
    rows: impl Iterator<Item = Row<'_>>,
    cause: &Cause,
) -> Result<(), Error> {
    let named =
        sqlx::query_scalar!(r#"SELECT caused_by($1, $2) AS "done!""#, cause.actor(), cause.request_id());
    named.fetch_one(&mut **transaction).await?;
    #[expect(clippy::disallowed_methods, reason = "on a command's own connection")]
    let mut copy = transaction.copy_in_raw(COPY).await?;
    let mut buffer = String::with_capacity(2 * COPY_BUFFER);
    for row in rows {
        row.write(&mut buffer);
        if buffer.len() >= COPY_BUFFER {
            copy.send(buffer.as_bytes()).await?;
            buffer.clear();
        }
    }
    copy.send(buffer.as_bytes()).await?;
    copy.finish().await?;
    Ok(())
}

/// Makes one user.
///
/// # Errors
///
/// [`Error::Taken`] when a name is another's.
pub async fn insert(conn: &mut PgConnection, row: &Row<'_>, cause: &Cause) -> Result<(), Error> {
    let insert = sqlx::query!(
        "INSERT INTO users
             (id, external_id, username, email, full_name, password_hash, roles, is_email_verified, disabled,
              password_changed_at, created_at, updated_at)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 WHERE (SELECT caused_by($13, $14))",
        row.id,
        row.external_id,
        row.username,
        row.email,
        row.full_name,
        row.password_hash.map(HashedPassword::as_str),
        row.roles,
        row.is_email_verified,
        row.disabled,
        row.password_changed_at,
        row.created_at,
        row.updated_at,
        cause.actor(),
        cause.request_id(),
    );
    insert.execute(conn).await?;
    Ok(())
}

impl Row<'_> {
    /// In the text format of `COPY`.
    fn write(&self, out: &mut String) {
        let time = |at: OffsetDateTime| at.format(&Rfc3339).unwrap_or_default();
        let roles = format!("{{{}}}", self.roles.join(","));
        let columns = [
            Some(&*self.id.to_string()),
            self.external_id,
            Some(self.username),
            Some(self.email),
            self.full_name,
            self.password_hash.map(HashedPassword::as_str),
            Some(&roles),
            Some(if self.is_email_verified { "t" } else { "f" }),
            Some(if self.disabled { "t" } else { "f" }),
            Some(&time(self.password_changed_at)),
            Some(&time(self.created_at)),
            Some(&time(self.updated_at)),
        ];
        for (i, column) in columns.into_iter().enumerate() {
            if i > 0 {
                out.push('\t');
            }
            let Some(text) = column else {
                out.push_str("\\N");
                continue;
            };
            for c in text.chars() {
                match c {
                    '\\' => out.push_str("\\\\"),
                    '\t' => out.push_str("\\t"),
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    c => out.push(c),
                }
            }
        }
        out.push('\n');
    }
}

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

/// What another database's query gives, as of one moment: each row an object of JSON, some at a time, until `take` returns
/// `false`.
///
/// # Errors
///
/// When that database fails, or `query` is none, or would change something.
pub async fn foreign_rows(
    source: &super::Source,
    query: &str,
    mut take: impl AsyncFnMut(Vec<String>) -> bool,
) -> Result<(), sqlx::Error> {
    let mut conn = source.connect_as_it_is().await?;
    let mut transaction = super::begin_snapshot(&mut conn).await?;
    let query = query.trim().trim_end_matches(';');
    let declare = format!(
        "SET LOCAL timezone = 'UTC';
         DECLARE source NO SCROLL CURSOR FOR SELECT to_jsonb(source)::text FROM ({query}\n) AS source"
    );
    sqlx::raw_sql(AssertSqlSafe(declare)).execute(&mut *transaction).await?;
    loop {
        let rows = sqlx::raw_sql("FETCH 1000 FROM source").fetch_all(&mut *transaction).await?;
        let rows: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        if rows.is_empty() || !take(rows).await {
            return transaction.rollback().await;
        }
    }
}

/// Begins to look at all as it is at one moment. Locks nothing that anybody else wants.
///
/// # Errors
///
/// When the database fails.
pub async fn snapshot(conn: &mut PgConnection) -> Result<Transaction<'_>, Error> {
    let mut transaction = super::begin_snapshot(conn).await?;
    be_patient(&mut transaction).await?;
    Ok(transaction)
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

/// A user as they go out.
#[derive(Debug)]
pub struct Leaving {
    /// UUIDv7.
    pub id: Uuid,
    /// Who they are in the system that they came from.
    pub external_id: Option<String>,
    /// As the user wrote it.
    pub username: String,
    /// As the user wrote it.
    pub email: String,
    /// For display.
    pub full_name: Option<String>,
    /// Sorted, none twice.
    pub roles: Vec<String>,
    /// Whether the user has shown that the address is theirs.
    pub is_email_verified: bool,
    /// Whether the user is locked out.
    pub disabled: bool,
    /// When the user was made.
    pub created_at: OffsetDateTime,
    /// As of when this is so.
    pub updated_at: OffsetDateTime,
    /// When the present password was set.
    pub password_changed_at: OffsetDateTime,
    /// The password's, for whoever asks for it.
    pub password_hash: Option<String>,
}

/// All users as they are at one moment.
#[derive(Debug)]
pub struct Export<'c>(Transaction<'c>);

/// Begins to export.
///
/// # Errors
///
/// When the database fails.
pub async fn export(conn: &mut PgConnection) -> Result<Export<'_>, Error> {
    Ok(Export(snapshot(conn).await?))
}

impl Export<'_> {
    /// At most `limit` users by id after `after`; with their hashes or without.
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
