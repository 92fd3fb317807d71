//! A restored copy of a database is masked where it is.

use std::time::Duration;

use sqlx::Row;
use tokio::time::sleep;

use super::{
    Error,
    masks::{self, Key, Mask, Rows, TABLES},
    run, without_values,
};
use crate::store::{
    PgConnection,
    migrations::{self, Schema},
    roles,
};

/// A row of nobody for each table that is emptied. Statistics outlive the rows that they quote, and of an empty table
/// `ANALYZE` makes none: only those of another row take their place.
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

/// How long to wait at most before a table is written anew once more; it doubles each time, to a minute in all.
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);

/// Masks every row, in one transaction, and then writes the tables anew, so that nothing of what was there before is left in
/// their files. Returns how many users there are.
///
/// The history's seals go, since they are of what was there before. So do keys, clients, revocations and what is known of
/// failed logins: they are secrets of the service that this is a copy of.
///
/// # Errors
///
/// [`Error::NotMarked`] unless a row of `devdata.copy` says that the database is a copy, and that it is at `place`;
/// [`Error::InUse`] when somebody else is connected, [`Error::Prepared`] when a transaction outlived who began it;
/// [`Error::Unknown`], [`Error::Schema`]. Then nothing has changed. After [`Error::StillSeen`] all rows are masked.
pub async fn mask(
    conn: &mut PgConnection,
    place: &str,
    key: &Key,
    password_hash: &str,
) -> Result<u64, Error> {
    require_marker(&mut *conn, place).await?;
    let others = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"#
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
    if let Schema::Newer(version) = migrations::check(&mut *conn).await? {
        return Err(migrations::Error::Newer(version).into());
    }
    masks::check(&mut *conn).await?;
    roles::become_owner(&mut *conn).await?;
    let mut transaction = crate::store::begin_alone(conn).await?;
    key.set(&mut transaction, password_hash).await?;
    let emptied: Vec<_> =
        TABLES.iter().filter(|table| table.rows == Rows::None).map(|table| table.name).collect();
    // With the triggers off, or they would write down what was there before.
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
    transaction.commit().await?;
    for table in TABLES.iter().filter(|table| table.columns.iter().any(|(_, mask)| *mask != Mask::Keep)) {
        rewrite(&mut *conn, table.name).await?;
    }
    roles::be_oneself(conn).await?;
    Ok(users)
}

/// Writes a table anew, without its dead rows, and makes its statistics, which quote values.
///
/// `VACUUM FULL` keeps what somebody may still see: an autovacuum that had begun before, or, wherever in the server it
/// wants to go, a connection that is being made. Not everybody may look at their snapshots. But `ANALYZE` counts dead rows,
/// and all were updated, so that each page that it looks at would have some. What is in the way goes away soon, or, like the
/// slot of a replica that is no more, never.
async fn rewrite(conn: &mut PgConnection, table: &'static str) -> Result<(), Error> {
    let mut patience = Duration::from_millis(100);
    loop {
        run(&mut *conn, &format!("VACUUM (FULL, ANALYZE) {table}")).await?;
        let dead = sqlx::query_scalar!(
            r#"SELECT coalesce(sum(n_dead_tup), 0) > 0 AS "dead!" FROM pg_stat_user_tables
               WHERE relid = to_regclass($1)
                  OR relid IN (SELECT relid FROM pg_partition_tree(to_regclass($1)))"#,
            table,
        );
        if !dead.fetch_one(&mut *conn).await? {
            return Ok(());
        }
        if patience > LONGEST_PATIENCE {
            let seen_by = who_sees(&mut *conn).await?;
            return Err(Error::StillSeen { table, seen_by });
        }
        sleep(patience).await;
        patience *= 2;
    }
}

/// Whose snapshots keep rows of this database, as far as one may know.
async fn who_sees(conn: &mut PgConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT coalesce(string_agg(who, ', '), 'nobody') AS "who!" FROM (
               SELECT 'the replication slot ' || slot_name AS who FROM pg_replication_slots WHERE xmin IS NOT NULL
               UNION ALL
               SELECT 'the prepared transaction ' || gid FROM pg_prepared_xacts WHERE database = current_database()
               UNION ALL
               SELECT 'process ' || pid || coalesce(', ' || backend_type, '') FROM pg_stat_activity
               WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()
                 AND (datname = current_database() OR backend_type = 'walsender')
           ) AS holders"#
    )
    .fetch_one(conn)
    .await
}

/// A marker says where the copy is, so that a copy of a marked copy, at another place, is not marked.
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
