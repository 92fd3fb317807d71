//! Masks a restored copy of a database in place.

use sqlx::Row;

use super::{
    Error,
    masks::{self, Key, Mask, Rows, TABLES},
    run, without_values,
};
use crate::store::{PgConnection, migrations, roles};

/// A row about nobody for each table that is emptied. Statistics outlive the rows that they quote, and `ANALYZE`
/// gathers none from an empty table: only the statistics of another row replace them.
const STAND_INS: [&str; 7] = [
    "clients (id, name, secret_hash, created_at)
     VALUES ('00000000-0000-7000-8000-000000000000', 'x', sha256(''), now())",
    "history_seals (number, ids, rows_hash, hash, sealed_at)
     VALUES (1, '{[1,2)}', sha256(''), sha256(''), now())",
    "history_unsealed (id) VALUES (1)",
    "imports (source_hash, source_name, created, updated, unchanged, rejected, rejects_bytes, started_at, updated_at)
     VALUES (sha256(''), '', 0, 0, 0, 0, 0, now(), now())",
    "login_attempts (key, free_at, expires_at) VALUES (decode(md5(''), 'hex'), now(), now())",
    "revocations (session_id, expires_at) VALUES ('00000000-0000-7000-8000-000000000000', now())",
    "signing_keys (id, format, public_key, token_seconds, published_at, retired_at, verifies_until)
     VALUES (repeat('x', 43), 'v4.public', 'x', 1, now(), now(), now())",
];

/// For each masked table, a column that no view or trigger refers to, and an expression with the column's own value,
/// though Postgres cannot tell that it is.
const UNCHANGED: [(&str, &str); 4] = [
    ("users", "administered_at TYPE timestamptz USING administered_at + interval '0'"),
    ("sessions", "refresh_salt TYPE bytea USING refresh_salt || ''"),
    ("history", "personal_hash TYPE bytea USING personal_hash || ''"),
    ("history_personal", "salt TYPE uuid USING salt::text::uuid"),
];

/// Masks every row and rewrites the tables, so that nothing of their former contents is left in their files, in one
/// transaction. Returns how many users there are.
///
/// `VACUUM FULL` would not do: it takes along the old rows that somebody may still see. That may be an autovacuum that
/// had begun before, a connection that is being opened anywhere on the server, or the slot of a replica that no longer
/// exists. A table whose column gets another type is copied as this transaction sees it, whoever else is there.
///
/// The history's seals are deleted, since they cover what was there before. So are keys, clients, revocations and the
/// records of failed logins: they are secrets of the service that this is a copy of.
///
/// # Errors
///
/// * [`Error::NotMarked`] unless a row of `devdata.copy` says that the database is a copy, and that it is at `place`.
/// * [`Error::InUse`] when somebody else is connected.
/// * [`Error::Prepared`] when a prepared transaction is left.
/// * [`Error::Unknown`], [`Error::Schema`].
///
/// Nothing has changed then.
pub async fn mask(
    conn: &mut PgConnection,
    place: &str,
    key: &Key,
    password_hash: &str,
) -> Result<u64, Error> {
    require_marker(&mut *conn, place).await?;
    // By the user and not by `backend_type`, which a role without the rights of the session's role cannot see.
    // Postgres's own processes have no user.
    let others = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid() AND usesysid IS NOT NULL"#
    );
    let others = others.fetch_one(&mut *conn).await?;
    if others > 0 {
        return Err(Error::InUse(others));
    }
    let prepared = sqlx::query_scalar!(
        r#"SELECT gid AS "gid!" FROM pg_prepared_xacts WHERE database = current_database()"#
    );
    if let Some(prepared) = prepared.fetch_optional(&mut *conn).await? {
        return Err(Error::Prepared(prepared));
    }
    migrations::require_current(&mut *conn).await?;
    masks::check(&mut *conn).await?;
    roles::become_owner(&mut *conn).await?;
    let mut transaction = crate::store::begin_alone(conn).await?;
    key.set(&mut transaction, password_hash).await?;
    let emptied: Vec<_> =
        TABLES.iter().filter(|table| table.rows == Rows::None).map(|table| table.name).collect();
    // With the triggers off: they would record what was there before.
    for table in ["users", "sessions", "clients", "signing_keys"] {
        run(&mut transaction, &format!("ALTER TABLE {table} DISABLE TRIGGER USER")).await?;
    }
    let truncate = format!("TRUNCATE {}", emptied.join(", "));
    run(&mut transaction, &truncate).await?;
    for row in STAND_INS {
        run(&mut transaction, &format!("INSERT INTO {row}")).await?;
    }
    run(&mut transaction, &format!("ANALYZE {}", emptied.join(", "))).await?;
    run(&mut transaction, &truncate).await?;
    let mut users = 0;
    for table in TABLES {
        let set: Vec<_> = table
            .columns
            .iter()
            .filter(|(_, mask)| *mask != Mask::Keep)
            .map(|(column, mask)| format!("{column} = {}", mask.sql(&format!("{}.{column}", table.name))))
            .collect();
        if set.is_empty() {
            continue;
        }
        let sql = format!("UPDATE {} SET {}", table.name, set.join(", "));
        let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *transaction).await;
        let done = done.map_err(without_values)?;
        if table.name == "users" {
            users = done.rows_affected();
        }
    }
    sqlx::query!("INSERT INTO history_unsealed (id) SELECT id FROM history")
        .execute(&mut *transaction)
        .await?;
    for table in ["users", "sessions", "clients", "signing_keys"] {
        run(&mut transaction, &format!("ALTER TABLE {table} ENABLE TRIGGER USER")).await?;
    }
    for (table, column) in UNCHANGED {
        run(&mut transaction, &format!("ALTER TABLE {table} ALTER {column}; ANALYZE {table}")).await?;
    }
    transaction.commit().await?;
    roles::be_oneself(conn).await?;
    Ok(users)
}

/// Makes sure that the copy is marked. The marker says where it is, so a copy of a marked copy, at another place, is
/// not marked.
async fn require_marker(conn: &mut PgConnection, place: &str) -> Result<(), Error> {
    let exists = sqlx::query_scalar!(r#"SELECT to_regclass('devdata.copy') IS NOT NULL AS "exists!""#);
    let mut is_marked = false;
    if exists.fetch_one(&mut *conn).await? {
        #[expect(
            clippy::disallowed_methods,
            reason = "no migration makes the table: whoever restores a copy does"
        )]
        let row = sqlx::query("SELECT EXISTS (SELECT FROM devdata.copy WHERE place = $1)");
        is_marked = row.bind(place).fetch_one(conn).await?.try_get(0)?;
    }
    if is_marked { Ok(()) } else { Err(Error::NotMarked(place.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_that_is_masked_is_written_anew() {
        let masked = TABLES.iter().filter(|table| table.columns.iter().any(|(_, mask)| *mask != Mask::Keep));
        let masked: Vec<_> = masked.map(|table| table.name).collect();
        assert_eq!(masked, UNCHANGED.map(|(table, _)| table));
    }
}
