//! Made-up rows, written as fast as Postgres takes them: with `COPY` and with the triggers off. What the triggers would
//! have written into the history is then written in one go.

use sqlx::{Postgres, Transaction};
use time::OffsetDateTime;

use super::{Error, run};
use crate::store::{PgConnection, migrations, roles};

/// The columns of `users` that are supplied, in order.
pub const PERSON_COLUMNS: [&str; 11] = [
    "id",
    "username",
    "email",
    "full_name",
    "password_hash",
    "roles",
    "is_email_verified",
    "disabled",
    "password_changed_at",
    "created_at",
    "updated_at",
];

/// The columns of `sessions` that are supplied, in order.
pub const SESSION_COLUMNS: [&str; 15] = [
    "id",
    "user_id",
    "refresh_generation",
    "refresh_salt",
    "user_agent",
    "client_ip",
    "created_at",
    "renewed_at",
    "last_used_at",
    "is_confirmed",
    "refresh_expires_at",
    "access_expires_at",
    "expires_at",
    "ended_at",
    "end_reason",
];

/// An empty database that is being filled, in one transaction.
pub struct Seeding<'c>(Transaction<'c, Postgres>);

impl<'c> Seeding<'c> {
    /// Begins to fill it, as the owner of the schema and without triggers.
    ///
    /// # Errors
    ///
    /// [`Error::NotEmpty`], or [`Error::Schema`] when the schema is not current.
    pub async fn begin(conn: &'c mut PgConnection) -> Result<Self, Error> {
        migrations::require_current(&mut *conn).await?;
        roles::become_owner(&mut *conn).await?;
        let mut transaction = crate::store::begin_alone(conn).await?;
        // Nobody may write between this check and the end.
        run(
            &mut transaction,
            "SET LOCAL timezone = 'UTC';
             LOCK TABLE users, sessions, signing_keys, clients IN SHARE ROW EXCLUSIVE MODE",
        )
        .await?;
        let taken = sqlx::query!(
            r#"SELECT EXISTS (SELECT FROM users) AS "users!", EXISTS (SELECT FROM clients) AS "clients!",
                   EXISTS (SELECT FROM signing_keys) AS "keys!", EXISTS (SELECT FROM history) AS "history!""#
        )
        .fetch_one(&mut *transaction)
        .await?;
        for (is_taken, table) in [
            (taken.users, "users"),
            (taken.clients, "clients"),
            (taken.keys, "signing_keys"),
            (taken.history, "history"),
        ] {
            if is_taken {
                return Err(Error::NotEmpty(table.to_owned()));
            }
        }
        run(
            &mut transaction,
            "ALTER TABLE users DISABLE TRIGGER USER; ALTER TABLE sessions DISABLE TRIGGER USER",
        )
        .await?;
        Ok(Self(transaction))
    }

    /// Adds these lines of [`PERSON_COLUMNS`], and returns how many.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn users(&mut self, lines: &str) -> Result<u64, Error> {
        self.copy("users", &PERSON_COLUMNS, lines).await
    }

    /// Adds these lines of [`SESSION_COLUMNS`], and returns how many.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn sessions(&mut self, lines: &str) -> Result<u64, Error> {
        self.copy("sessions", &SESSION_COLUMNS, lines).await
    }

    async fn copy(&mut self, table: &str, columns: &[&str], lines: &str) -> Result<u64, Error> {
        let statement = format!("COPY {table} ({}) FROM STDIN", columns.join(", "));
        #[expect(clippy::disallowed_methods, reason = "on a command's own connection")]
        let mut copy = self.0.copy_in_raw(&statement).await?;
        copy.send(lines.as_bytes()).await?;
        Ok(copy.finish().await?)
    }

    /// Writes the history of what was added, as the triggers would have done at the time, commits, and returns how many
    /// rows of history there are.
    ///
    /// The triggers themselves say which columns the history shows. The salts are derived from `seed`.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn finish(mut self, seed: &str, now: OffsetDateTime) -> Result<u64, Error> {
        self.make_months(now).await?;
        let written = sqlx::query_scalar!(
            r#"WITH columns AS (
                   SELECT tgname::text AS trigger, args[1]::text[] AS shown, args[2]::text[] AS personal
                   FROM pg_trigger, string_to_array(encode(tgargs, 'escape'), '\000') AS args
                   WHERE tgname IN ('users_history', 'sessions_history_begun')
               ), change (at, trigger, operation, row_id, user_id, actor, old_row, new_row) AS (
                   SELECT created_at, 'users_history', 'INSERT', id, id, id, NULL::jsonb,
                       to_jsonb(users) || '{"disabled": false}'
                   FROM users
                   UNION ALL
                   SELECT updated_at, NULL, 'UPDATE', id, id,
                       (SELECT id FROM users WHERE 'admin' = ANY (roles) ORDER BY created_at LIMIT 1),
                       '{"disabled": false}', '{"disabled": true}'
                   FROM users WHERE disabled
                   UNION ALL
                   SELECT created_at, 'sessions_history_begun', 'INSERT', id, user_id, user_id, NULL,
                       to_jsonb(sessions) || '{"ended_at": null, "end_reason": null}'
                   FROM sessions
                   UNION ALL
                   SELECT ended_at, NULL, 'UPDATE', id, user_id, user_id,
                       '{"ended_at": null, "end_reason": null}',
                       jsonb_build_object('ended_at', ended_at, 'end_reason', end_reason)
                   FROM sessions WHERE ended_at IS NOT NULL
               ), event AS MATERIALIZED (
                   SELECT row_number() OVER (ORDER BY at, row_id, operation) AS id, at, operation, row_id, user_id, actor,
                       CASE WHEN old_row ? 'disabled' OR trigger = 'users_history' THEN 'users' ELSE 'sessions' END
                           AS table_name,
                       jsonb_build_object(
                           'before', old_row,
                           'after', CASE WHEN trigger IS NULL THEN new_row ELSE history_columns(new_row, shown) END
                       ) AS shown,
                       CASE WHEN trigger IS NOT NULL THEN
                           jsonb_build_object('before', NULL, 'after', history_columns(new_row, personal))
                       END AS personal,
                       md5($1 || row_id)::uuid AS salt
                   FROM change LEFT JOIN columns USING (trigger)
               ), personal AS (
                   INSERT INTO history_personal (history_id, user_id, salt, changed_data)
                   SELECT id, user_id, salt, personal FROM event WHERE personal IS NOT NULL
               ), unsealed AS (
                   INSERT INTO history_unsealed (id) SELECT id FROM event
               ), written AS (
                   INSERT INTO history
                       (id, table_name, operation, row_id, user_id, changed_data, personal_hash, changed_at, actor,
                        database_user)
                   SELECT id, table_name, operation, row_id::text, user_id, shown,
                       sha256(uuid_send(salt) || convert_to(personal::text, 'UTF8')), at, actor::text, 'gatepass_app'
                   FROM event ORDER BY id
                   RETURNING 1
               )
               SELECT count(*) AS "count!" FROM written"#,
            seed,
        )
        .fetch_one(&mut *self.0)
        .await?;
        if written > 0 {
            sqlx::query_scalar!("SELECT setval('history_id_seq', $1)", written)
                .fetch_one(&mut *self.0)
                .await?;
        }
        // Without statistics, the first reader, which seals the history, would read all of it again and again.
        run(
            &mut self.0,
            "ALTER TABLE users ENABLE TRIGGER USER; ALTER TABLE sessions ENABLE TRIGGER USER;
             ANALYZE users, sessions, history, history_personal, history_unsealed",
        )
        .await?;
        self.0.commit().await?;
        Ok(written.cast_unsigned())
    }

    /// Creates the missing partitions of the months from the first user on.
    async fn make_months(&mut self, now: OffsetDateTime) -> Result<(), Error> {
        let missing = sqlx::query!(
            r#"SELECT 'history_' || to_char(month, 'YYYY_MM') AS "name!", month::text AS "first!",
                   (month + interval '1 month')::text AS "next!"
               FROM generate_series(
                   (SELECT date_trunc('month', min(created_at)) FROM users), $1::timestamptz, interval '1 month'
               ) AS month
               WHERE to_regclass('history_' || to_char(month, 'YYYY_MM')) IS NULL"#,
            now,
        )
        .fetch_all(&mut *self.0)
        .await?;
        for month in missing {
            let sql = format!(
                "CREATE TABLE {name} (LIKE history INCLUDING ALL);
                 ALTER TABLE history ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{next}')",
                name = month.name,
                first = month.first,
                next = month.next,
            );
            run(&mut self.0, &sql).await?;
        }
        Ok(())
    }
}
