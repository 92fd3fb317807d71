//! A part of a database, read through one snapshot by a role that can only read, and masked on the server: no clear
//! value leaves it.

use std::{future::poll_fn, pin::pin};

use futures_core::Stream;
use sqlx::{AssertSqlSafe, Executor, Postgres, SqlSafeStr, Transaction};
use uuid::Uuid;

use super::{
    Error,
    masks::{self, Key, Rows, TABLES},
    without_values,
};
use crate::store::{PgConnection, migrations};

/// One snapshot of the database.
pub struct Snapshot<'c>(Transaction<'c, Postgres>);

/// Which users to take.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// At most this many, spread evenly and always the same.
    pub count: Option<i64>,
    /// Only those for whom this SQL condition, on columns of `users`, holds.
    pub condition: Option<&'a str>,
}

/// A table whose rows are to be copied.
#[derive(Clone, Copy, Debug)]
pub struct Part(&'static masks::Table);

impl Part {
    /// All parts, in the order in which they can be loaded.
    pub fn all() -> impl Iterator<Item = Self> {
        let sampled = |table: &&masks::Table| table.rows != Rows::None;
        TABLES.iter().filter(sampled).map(Self)
    }

    /// The name of the table.
    pub fn table(self) -> &'static str {
        self.0.name
    }

    /// Its columns, in the order in which they are copied.
    pub fn columns(self) -> Vec<&'static str> {
        self.0.columns.iter().map(|(name, _)| *name).collect()
    }

    fn query(self) -> String {
        let values: Vec<_> =
            self.0.columns.iter().map(|(name, mask)| mask.sql(&format!("{}.{name}", self.0.name))).collect();
        let chosen = match self.0.rows {
            Rows::OfUser(column) => format!(
                "JOIN unnest(current_setting('devdata.users')::uuid[]) AS chosen (id) ON chosen.id = {}.{column}",
                self.0.name
            ),
            Rows::All | Rows::None => String::new(),
        };
        format!("SELECT {} FROM public.{} {chosen}", values.join(", "), self.0.name)
    }
}

impl<'c> Snapshot<'c> {
    /// Takes a snapshot, with the key of the masks and the hash that replaces every password hash.
    ///
    /// # Errors
    ///
    /// [`Error::MayWrite`], [`Error::Unknown`], or [`Error::Schema`] when the schema is not this version's.
    pub async fn take(conn: &'c mut PgConnection, key: &Key, password_hash: &str) -> Result<Self, Error> {
        let mut transaction = crate::store::begin_snapshot(conn).await?;
        let role = sqlx::query!(
            r#"SELECT rolname::text AS "name!",
                   rolsuper OR has_schema_privilege('public', 'CREATE') OR EXISTS (
                       SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'S')
                           AND CASE relkind WHEN 'S' THEN has_sequence_privilege(oid, 'USAGE, UPDATE')
                               ELSE has_table_privilege(oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
                                   OR has_any_column_privilege(oid, 'INSERT, UPDATE') END
                   ) AS "may_write!"
               FROM pg_roles WHERE rolname = current_user"#
        )
        .fetch_one(&mut *transaction)
        .await?;
        if role.may_write {
            return Err(Error::MayWrite(role.name));
        }
        migrations::require_current(&mut transaction).await?;
        masks::check(&mut transaction).await?;
        key.set(&mut transaction, password_hash).await?;
        Ok(Self(transaction))
    }

    /// The snapshot's name, with which another connection sees the same data.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn name(&mut self) -> Result<String, Error> {
        let name = sqlx::query_scalar!(r#"SELECT pg_export_snapshot() AS "name!""#);
        Ok(name.fetch_one(&mut *self.0).await?)
    }

    /// Chooses users, and returns how many.
    ///
    /// # Errors
    ///
    /// When the condition is not valid SQL; [`Error::OfRows`] when it fails on some user; or when the database fails.
    pub async fn choose(&mut self, wanted: &Wanted<'_>) -> Result<usize, Error> {
        // One statement, and prepared, so the condition can only be part of a query.
        let sql = format!(
            "SELECT id FROM public.users WHERE ({}\n) ORDER BY md5(id::text), id LIMIT $1",
            wanted.condition.unwrap_or("true")
        );
        // An error in the statement itself is reported before it has read a row.
        (&mut *self.0).prepare(AssertSqlSafe(sql.clone()).into_sql_str()).await?;
        #[expect(clippy::disallowed_methods, reason = "the condition comes from the command line")]
        let ids = sqlx::query_scalar(AssertSqlSafe(sql)).bind(wanted.count).fetch_all(&mut *self.0).await;
        let ids: Vec<Uuid> = ids.map_err(without_values)?;
        sqlx::query_scalar!("SELECT set_config('devdata.users', ($1::uuid[])::text, true)", &ids)
            .fetch_one(&mut *self.0)
            .await?;
        Ok(ids.len())
    }

    /// Copies what belongs to the chosen users, masked, as `COPY` writes it, and returns how many rows.
    ///
    /// # Errors
    ///
    /// Those of `write`, or when the database fails.
    pub async fn copy<E: From<Error>>(
        &mut self,
        part: Part,
        mut write: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<u64, E> {
        let statement = format!("COPY ({}) TO STDOUT", part.query());
        let mut stream = pin!(self.0.copy_out_raw(&statement).await.map_err(without_values)?);
        let mut rows = 0;
        while let Some(lines) = poll_fn(|context| stream.as_mut().poll_next(context)).await {
            let lines = lines.map_err(without_values)?;
            // COPY writes a line break in a value as `\n`.
            rows += lines.iter().filter(|&&byte| byte == b'\n').count() as u64;
            write(&lines)?;
        }
        Ok(rows)
    }
}
