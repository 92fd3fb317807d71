//! Users who are new.
//!
//! They are inserted with `COPY`, which cannot be prepared, so that one statement is not checked at compile time.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::{
    password::HashedPassword,
    store::{Cause, Error, PgConnection, Transaction, users::NewUser},
};

/// What identifies users who may be new.
#[derive(Debug, Default)]
pub struct Names {
    /// Their ids in the system that they come from.
    pub external_ids: Vec<Option<String>>,
    /// Usernames.
    pub usernames: Vec<String>,
    /// E-mail addresses.
    pub emails: Vec<String>,
}

/// Who already has a user's names.
#[derive(Clone, Copy, Debug)]
pub struct Holders {
    /// Who has the external id.
    pub external_id: Option<Uuid>,
    /// Who has the username.
    pub username: Option<Uuid>,
    /// Who has the address.
    pub email: Option<Uuid>,
    /// Whether an earlier record has the same external id, and so is the same user.
    pub is_repeated: bool,
    /// Whether an earlier record of another user claims the username or the address.
    pub is_claimed: bool,
}

/// Who has these names, in the order given. Each is looked up through its index, whatever size Postgres believes the
/// table to have.
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

const COPY: &str = "COPY users (id, external_id, username, email, full_name, password_hash, roles, is_email_verified, \
                    disabled, password_changed_at, created_at, updated_at) FROM STDIN";

/// How much is sent at once, in bytes.
const COPY_BUFFER: usize = 1 << 16;

/// Creates users, all of them or none. Must not be used in a request, which may be given up: sqlx does not count the
/// answers to a `COPY`, and whoever is lent the connection next would get them in place of their own.
///
/// # Errors
///
/// [`Error::Taken`] when a name is another's.
pub async fn copy(
    transaction: &mut Transaction<'_>,
    rows: impl Iterator<Item = NewUser<'_>>,
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

impl NewUser<'_> {
    /// Writes the row in the text format of `COPY`.
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
