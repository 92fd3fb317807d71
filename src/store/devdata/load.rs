//! Loads a sample into an empty database: tables, rows, and only then constraints, indexes and triggers, so that
//! Postgres checks everything once.

use sqlx::{Postgres, Transaction};

use super::{Error, run, sample::Part};
use crate::store::{PgConnection, migrations, roles};

/// A database that is being loaded, in one transaction.
pub struct Loading<'c>(Transaction<'c, Postgres>);

impl<'c> Loading<'c> {
    /// Begins to load; where there are roles, as the owner of the schema.
    ///
    /// # Errors
    ///
    /// [`Error::NotEmpty`] when the database has anything in it.
    pub async fn begin(conn: &'c mut PgConnection) -> Result<Self, Error> {
        roles::become_owner(&mut *conn).await?;
        let mut transaction = crate::store::begin_alone(conn).await?;
        let something = sqlx::query_scalar!(
            r#"SELECT nspname || '.' || relname AS "name!" FROM pg_class
               JOIN pg_namespace ON pg_namespace.oid = relnamespace
               WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND NOT EXISTS (
                   SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e'
               ) LIMIT 1"#
        )
        .fetch_optional(&mut *transaction)
        .await?;
        match something {
            Some(name) => Err(Error::NotEmpty(name)),
            None => Ok(Self(transaction)),
        }
    }

    /// Runs a part of a schema as `pg_dump` wrote it.
    ///
    /// # Errors
    ///
    /// When the database refuses it.
    pub async fn schema(&mut self, sql: &str) -> Result<(), Error> {
        // Left out: what is for psql, the schema that every database has, and a setting of pg_dump 17 that older
        // servers do not know.
        let is_ours = |line: &&str| {
            !line.starts_with("\\restrict")
                && !line.starts_with("\\unrestrict")
                && !["CREATE SCHEMA public;", "SET transaction_timeout = 0;"].contains(line)
        };
        let sql: Vec<_> = sql.lines().filter(is_ours).collect();
        run(&mut self.0, &sql.join("\n")).await?;
        // pg_dump writes all names in full, and empties the search path.
        run(&mut self.0, "RESET search_path").await?;
        Ok(())
    }

    /// Adds rows as `COPY` wrote them, and returns how many. `read` supplies them piece by piece, and nothing at the
    /// end.
    ///
    /// # Errors
    ///
    /// Those of `read`; or when the database refuses a row.
    pub async fn copy<E: From<Error>>(
        &mut self,
        part: Part,
        mut read: impl FnMut() -> Result<Vec<u8>, E>,
    ) -> Result<u64, E> {
        let statement = format!("COPY public.{} ({}) FROM STDIN", part.table(), part.columns().join(", "));
        #[expect(clippy::disallowed_methods, reason = "on a command's own connection")]
        let mut copy = self.0.copy_in_raw(&statement).await.map_err(Error::from)?;
        loop {
            let lines = read()?;
            if lines.is_empty() {
                return Ok(copy.finish().await.map_err(Error::from)?);
            }
            copy.send(lines).await.map_err(Error::from)?;
        }
    }

    /// Sets the sequences, marks the history as waiting for seals, gives the roles their rights, if there are any, has
    /// Postgres gather statistics, makes sure that every constraint holds, and commits.
    ///
    /// # Errors
    ///
    /// When the database fails, or when its schema then is not this version's.
    pub async fn finish(mut self) -> Result<(), Error> {
        sqlx::query!("INSERT INTO history_unsealed (id) SELECT id FROM history")
            .execute(&mut *self.0)
            .await?;
        let sequences = sqlx::query!(
            r#"SELECT objid::regclass::text AS "name!", refobjid::regclass::text AS "table!", quote_ident(attname) AS "column!"
               FROM pg_depend JOIN pg_class ON pg_class.oid = objid AND relkind = 'S'
               JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
               WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i')
                   AND relnamespace = 'public'::regnamespace"#
        )
        .fetch_all(&mut *self.0)
        .await?;
        for sequence in sequences {
            let sql = format!(
                "SELECT setval('{}', max({column})) FROM {} HAVING max({column}) IS NOT NULL",
                sequence.name.replace('\'', "''"),
                sequence.table,
                column = sequence.column,
            );
            run(&mut self.0, &sql).await?;
        }
        let unchecked = sqlx::query_scalar!(
            r#"SELECT conname::text AS "name!" FROM pg_constraint WHERE NOT convalidated LIMIT 1"#
        );
        if let Some(name) = unchecked.fetch_optional(&mut *self.0).await? {
            return Err(Error::NotValidated(name));
        }
        migrations::require_current(&mut self.0).await?;
        settle(&mut self.0).await?;
        self.0.commit().await?;
        Ok(())
    }
}

/// Where there are roles, gives them their rights to what was loaded; then has Postgres gather statistics.
async fn settle(conn: &mut PgConnection) -> Result<(), Error> {
    if roles::become_owner(conn).await? {
        roles::grant(conn).await?;
    }
    // The tables are named, since Postgres warns of each one that it has to skip, and most roles may not analyze its
    // own.
    let tables = sqlx::query_scalar!(
        r#"SELECT string_agg(pg_class.oid::regclass::text, ', ') AS "tables!" FROM pg_class
           JOIN pg_namespace ON pg_namespace.oid = relnamespace
           WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND relkind IN ('r', 'p') AND NOT relispartition"#
    )
    .fetch_one(&mut *conn)
    .await?;
    run(conn, &format!("ANALYZE {tables}")).await?;
    roles::be_oneself(conn).await?;
    Ok(())
}
