//! Migrating up and down again leads to the same schema, any number of processes may migrate at once, and the schema is
//! documented, named and indexed, and enforces its rules by itself.

use std::{collections::BTreeSet, fs, path::Path};

use gatepass::store::migrations::{self, State};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};
use tokio::time;

use crate::{
    app::{database, empty_database, postgres_program},
    process::until,
};

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

/// A column of text, from every row.
async fn rows(conn: &mut PgConnection, sql: &'static str) -> Vec<String> {
    sqlx::query_scalar(sql).fetch_all(conn).await.unwrap()
}

/// The whole schema as `pg_dump` writes it.
fn schema(url: &str) -> String {
    let output = postgres_program("pg_dump", url).arg("--schema-only").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // These lines hold a random word.
    let lines =
        text.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The files in `migrations` whose names end in `end`, without that ending.
fn files(end: &str) -> BTreeSet<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let names = fs::read_dir(directory).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(end).map(str::to_owned)).collect()
}

#[test]
fn every_migration_has_a_number_and_a_way_back() {
    let (up, down) = (files(".up.sql"), files(".down.sql"));
    assert_eq!(up, down);
    assert_eq!(files("").len(), up.len() + down.len(), "nothing else is there");
    for (index, name) in up.iter().enumerate() {
        assert!(name.starts_with(&format!("{:06}_", index + 1)), "{name}: the numbers have a gap");
    }
}

/// One that locks two of them deadlocks with a query that joins these. Validation waits for nobody who reads or writes.
#[test]
fn a_migration_locks_one_table_that_requests_use() {
    const TABLES: [&str; 4] = ["users", "sessions", "revocations", "login_attempts"];

    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    // The others are older than this rule.
    for name in files(".sql").into_iter().filter(|name| &**name > "000026") {
        let sql = fs::read_to_string(directory.join(format!("{name}.sql"))).unwrap();
        let locked: BTreeSet<_> = sql
            .split(';')
            .filter_map(|statement| {
                let words: Vec<_> = statement.split_whitespace().collect();
                let after = |word: &str| words.iter().skip_while(|is| **is != word).nth(1).copied();
                let locks = !words.contains(&"VALIDATE");
                let on = if words.contains(&"TRIGGER") { after("ON") } else { after("TABLE") };
                on.filter(|table| locks && TABLES.contains(table))
            })
            .collect();
        assert!(locked.len() <= 1, "{name} locks {locked:?}");
    }
}

/// The first migration that could say so is the one that introduces the function.
#[test]
fn a_destructive_migration_declares_the_oldest_supported_schema() {
    const WORD: &str = "FUNCTION oldest_schema_served()";

    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    for name in files(".up.sql").into_iter().skip_while(|name| !name.ends_with("_oldest_served")) {
        let text = fs::read_to_string(directory.join(format!("{name}.up.sql"))).unwrap();
        let takes =
            ["DROP TABLE", "DROP COLUMN", "DROP FUNCTION", "RENAME"].iter().any(|it| text.contains(it));
        assert!(!takes || text.contains(WORD), "{name}: docs/migrations.md, Contract");
    }
}

#[tokio::test]
async fn every_migration_can_be_undone_and_applied_again() {
    let url = empty_database().await;
    let mut conn = connect(&url).await;
    let all = files(".up.sql").len();
    assert!(migrations::status(&mut conn).await.unwrap().iter().all(|status| status.state == State::Pending));

    // The schema after none, one, two, … of the migrations. After none, sqlx's own table is already there, as it has
    // been made once.
    migrations::up(&mut conn, Some(1)).await.unwrap();
    migrations::down(&mut conn, 1).await.unwrap();
    let mut schemas = vec![schema(&url)];
    for step in 1..=all {
        let applied = migrations::up(&mut conn, Some(1)).await.unwrap().applied;
        assert_eq!(applied.iter().map(|status| status.version).collect::<Vec<_>>(), [step as i64]);
        assert!(matches!(applied[0].state, State::Applied) && applied[0].applied_at.is_some());
        schemas.push(schema(&url));
    }
    assert!(migrations::up(&mut conn, None).await.unwrap().applied.is_empty());
    migrations::check(&mut conn).await.unwrap();

    for step in (0..all).rev() {
        let undone = migrations::down(&mut conn, 1).await.unwrap();
        assert_eq!(undone.iter().map(|status| status.version).collect::<Vec<_>>(), [step as i64 + 1]);
        assert_eq!(schema(&url), schemas[step], "down to {step} leaves something or takes too much");
        assert!(
            matches!(migrations::check(&mut conn).await, Err(migrations::Error::Pending(n)) if n == all - step)
        );
    }
    assert!(migrations::down(&mut conn, 1).await.unwrap().is_empty());

    // All at once, and for every N exactly N of them undone.
    for n in 0..=all {
        migrations::up(&mut conn, None).await.unwrap();
        assert_eq!(schema(&url), schemas[all]);
        assert_eq!(migrations::down(&mut conn, n).await.unwrap().len(), n);
        assert_eq!(schema(&url), schemas[all - n], "{n} down");
    }
    migrations::up(&mut conn, None).await.unwrap();
    assert_eq!(migrations::down(&mut conn, all + 10).await.unwrap().len(), all, "no more than there are");
    let left = rows(
        &mut conn,
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
         UNION ALL SELECT typname::text FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype IN ('d', 'e')
         UNION ALL SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    );
    assert_eq!(left.await, ["_sqlx_migrations"]);
}

#[tokio::test]
async fn the_largest_possible_step_count_migrates_all_the_way() {
    let mut conn = connect(&database().await).await;
    let all = files(".up.sql").len();
    assert_eq!(migrations::down(&mut conn, usize::MAX).await.unwrap().len(), all);
    assert_eq!(migrations::up(&mut conn, Some(usize::MAX)).await.unwrap().applied.len(), all);
    assert!(migrations::down(&mut conn, 0).await.unwrap().is_empty());
    assert!(migrations::up(&mut conn, Some(0)).await.unwrap().applied.is_empty());
}

#[tokio::test]
async fn eight_at_once_apply_each_migration_once() {
    let url = empty_database().await;
    let up = async || migrations::up(&mut connect(&url).await, None).await.unwrap().applied;
    let (a, b, c, d, e, f, g, h) = tokio::join!(up(), up(), up(), up(), up(), up(), up(), up());
    let mut applied: Vec<_> =
        [a, b, c, d, e, f, g, h].iter().flatten().map(|status| status.version).collect();
    applied.sort_unstable();
    let all = files(".up.sql").len() as i64;
    assert_eq!(applied, (1..=all).collect::<Vec<_>>());
    let mut conn = connect(&url).await;
    migrations::check(&mut conn).await.unwrap();
    let locks = rows(
        &mut conn,
        "SELECT mode FROM pg_locks WHERE locktype = 'advisory' AND database =
         (SELECT oid FROM pg_database WHERE datname = current_database())",
    );
    assert!(locks.await.is_empty(), "the lock is given back");
}

#[tokio::test]
async fn every_table_and_column_says_what_it_is() {
    let mut conn = connect(&database().await).await;
    let silent = "
        SELECT class.relname || coalesce('.' || attname, '')
        FROM pg_class AS class
        CROSS JOIN LATERAL (
            SELECT 0 AS attnum, NULL::text AS attname
            UNION ALL SELECT attnum, attname::text FROM pg_attribute
            WHERE attrelid = class.oid AND attnum > 0 AND NOT attisdropped
        ) AS thing
        LEFT JOIN pg_description AS about
            ON about.classoid = 'pg_class'::regclass AND about.objoid = class.oid AND about.objsubid = attnum
        WHERE class.relnamespace = 'public'::regnamespace AND class.relkind IN ('r', 'p', 'v', 'm')
            AND class.relname <> '_sqlx_migrations' AND NOT class.relispartition AND coalesce(length(trim(about.description)), 0) = 0";
    assert_eq!(rows(&mut conn, silent).await, [""; 0]);
    let tables = "SELECT count(*)::text FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> '_sqlx_migrations'";
    assert!(rows(&mut conn, tables).await[0].parse::<u32>().unwrap() >= 2);
}

#[tokio::test]
async fn every_constraint_was_given_its_name() {
    let mut conn = connect(&database().await).await;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let sql: String = files(".up.sql")
        .iter()
        .map(|name| fs::read_to_string(directory.join(format!("{name}.up.sql"))).unwrap())
        .collect();
    let words: Vec<_> = sql.split_whitespace().collect();
    // From Postgres 18 on, NOT NULL is a constraint with a generated name; a violation of it needs no name.
    let constraints = "SELECT conrelid::regclass || ' ' || conname FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conrelid <> 0 AND contype <> 'n'
            AND conrelid <> '_sqlx_migrations'::regclass
            AND NOT (SELECT relispartition FROM pg_class WHERE oid = conrelid)";
    for constraint in rows(&mut conn, constraints).await {
        let (table, name) = constraint.split_once(' ').unwrap();
        let given = words.windows(2).any(|pair| pair == ["CONSTRAINT", name]);
        assert!(given, "{table}: {name} is a name that Postgres made up");
        assert!(name.starts_with(&format!("{table}_")), "{table}: {name} does not say whose it is");
    }
}

#[tokio::test]
async fn every_foreign_key_has_an_index_and_an_explicit_delete_rule() {
    let mut conn = connect(&database().await).await;
    let bare = "SELECT conname::text FROM pg_constraint
        WHERE contype = 'f' AND NOT EXISTS (
            SELECT FROM pg_index
            WHERE indrelid = conrelid AND indpred IS NULL
                AND (indkey::int2[])[0:cardinality(conkey) - 1] @> conkey)";
    assert_eq!(rows(&mut conn, bare).await, [""; 0], "a delete would read the whole table");
    // 'a' is NO ACTION, the default.
    let unchosen = "SELECT conname::text FROM pg_constraint WHERE contype = 'f' AND confdeltype = 'a'";
    assert_eq!(rows(&mut conn, unchosen).await, [""; 0]);
    let all = "SELECT conname::text FROM pg_constraint WHERE contype = 'f'";
    assert!(!rows(&mut conn, all).await.is_empty());
}

/// A row that every rule accepts: the columns, and their values in SQL.
fn good_row(table: &str) -> Vec<(&'static str, &'static str)> {
    let now = "'2026-01-02 03:04:05Z'";
    match table {
        "users" => vec![
            ("id", "'01940000-0000-7000-8000-000000000002'"),
            ("username", "'bob'"),
            ("email", "'bob@example.com'"),
            ("full_name", "'Bob'"),
            ("password_hash", "'$argon2id$…'"),
            ("roles", "'{billing:read,support}'"),
            ("is_email_verified", "false"),
            ("disabled", "false"),
            ("password_changed_at", now),
            ("created_at", now),
            ("updated_at", now),
            ("external_id", "'17'"),
        ],
        "sessions" => vec![
            ("id", "'01940000-0000-7000-8000-000000000012'"),
            ("user_id", "'01940000-0000-7000-8000-000000000001'"),
            ("refresh_generation", "0"),
            ("refresh_salt", "decode(repeat('00', 32), 'hex')"),
            ("user_agent", "'curl/8'"),
            ("client_ip", "'192.0.2.1'"),
            ("created_at", now),
            ("last_used_at", now),
            ("renewed_at", now),
            ("is_confirmed", "false"),
            ("ended_at", now),
            ("end_reason", "'logout'"),
            ("refresh_expires_at", "'2026-01-03 03:04:05Z'"),
            ("expires_at", "'2026-02-01 03:04:05Z'"),
            ("access_expires_at", "'2026-01-02 03:19:05Z'"),
        ],
        "revocations" => vec![
            ("session_id", "'01940000-0000-7000-8000-000000000012'"),
            ("user_id", "NULL"),
            ("roles", "NULL"),
            ("expires_at", "'2026-01-02 03:19:05Z'"),
        ],
        "signing_keys" => vec![
            ("id", "repeat('k', 43)"),
            ("format", "'v4.public'"),
            ("public_key", "'k4.public.…'"),
            ("wrapped_key", "decode('01', 'hex')"),
            ("wrapped_by", "'k4.lid.' || repeat('a', 44)"),
            ("token_seconds", "900"),
            ("published_at", now),
            ("activated_at", now),
            ("retired_at", "NULL"),
            ("verifies_until", "NULL"),
        ],
        "clients" => vec![
            ("id", "'01940000-0000-7000-8000-000000000022'"),
            ("name", "'orders'"),
            ("secret_hash", "decode(repeat('00', 32), 'hex')"),
            ("created_at", now),
        ],
        "login_attempts" => {
            vec![("key", "decode(repeat('00', 16), 'hex')"), ("free_at", now), ("expires_at", now)]
        }
        "imports" => vec![
            ("source_hash", "decode(repeat('00', 32), 'hex')"),
            ("source_name", "'/tmp/users.jsonl'"),
            ("created", "1"),
            ("updated", "2"),
            ("unchanged", "3"),
            ("rejected", "4"),
            ("rejects_bytes", "5"),
            ("started_at", now),
            ("updated_at", now),
        ],
        "history" => vec![
            ("table_name", "'users'"),
            ("operation", "'UPDATE'"),
            ("row_id", "'01940000-0000-7000-8000-000000000001'"),
            ("user_id", "'01940000-0000-7000-8000-000000000001'"),
            ("changed_data", "'{}'"),
            ("personal_hash", "decode(repeat('00', 32), 'hex')"),
            ("changed_at", now),
            ("actor", "'service'"),
            ("request_id", "'a'"),
            ("database_user", "'postgres'"),
        ],
        "history_seals" => vec![
            ("number", "1"),
            ("ids", "'{[1,3),[4,5)}'"),
            ("row_hashes", "decode(repeat('00', 96), 'hex')"),
            ("rows_hash", "decode(repeat('00', 32), 'hex')"),
            ("hash", "decode(repeat('00', 32), 'hex')"),
            ("sealed_at", now),
        ],
        _ => unreachable!(),
    }
}

/// The statement that inserts a good row with other values in some columns.
fn insert(table: &str, other: &[(&str, &str)]) -> String {
    let row = good_row(table);
    assert!(other.iter().all(|(column, _)| row.iter().any(|(known, _)| known == column)), "{other:?}");
    let values: Vec<_> = row
        .iter()
        .map(|(column, value)| {
            other.iter().find(|(name, _)| name == column).map_or(*value, |(_, value)| value)
        })
        .collect();
    let columns: Vec<_> = row.iter().map(|(column, _)| *column).collect();
    format!("INSERT INTO {table} ({}) VALUES ({})", columns.join(", "), values.join(", "))
}

/// Runs a statement and rolls it back. The error is the constraint that it violated, or else the message.
async fn attempt(conn: &mut PgConnection, sql: &str) -> Result<(), String> {
    let mut transaction = conn.begin().await.unwrap();
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await;
    transaction.rollback().await.unwrap();
    done.map(drop).map_err(|error| match error.as_database_error() {
        Some(error) => error.constraint().unwrap_or(error.message()).to_owned(),
        None => error.to_string(),
    })
}

/// A database with a user whose `username` is Alice and whose `email` is Élise@Example.com.
async fn with_alice() -> PgConnection {
    let mut conn = connect(&database().await).await;
    let alice = insert(
        "users",
        &[
            ("id", "'01940000-0000-7000-8000-000000000001'"),
            ("username", "'Alice'"),
            ("email", "'Élise@Example.com'"),
            ("external_id", "'alice'"),
        ],
    );
    sqlx::raw_sql(AssertSqlSafe(alice)).execute(&mut conn).await.unwrap();
    conn
}

#[tokio::test]
async fn the_tables_accept_valid_values() {
    let mut conn = with_alice().await;
    for (table, column, value) in [
        ("users", "username", "'abc'"),
        ("users", "username", "repeat('x', 64)"),
        ("users", "username", "'A.b_c-9'"),
        ("users", "email", "'elise@example.com'"),
        ("users", "email", "'ü@exämple.de'"),
        ("users", "email", "repeat('a', 64) || '@' || repeat('b', 189)"),
        ("users", "full_name", "NULL"),
        ("users", "external_id", "NULL"),
        ("users", "external_id", "repeat('é', 256)"),
        ("users", "external_id", "'Alice'"),
        ("users", "full_name", "repeat('é', 256)"),
        ("users", "password_hash", "NULL"),
        ("users", "roles", "'{}'"),
        ("users", "roles", "ARRAY(SELECT 'r' || n FROM generate_series(1, 32) AS n)"),
        ("users", "roles", "ARRAY[rpad('r', 64, 'r'), 'a:b.c_d-9']"),
        ("sessions", "user_agent", "NULL"),
        ("sessions", "user_agent", "repeat('é', 512)"),
        ("sessions", "client_ip", "NULL"),
        ("sessions", "client_ip", "'2001:db8::1'"),
        ("sessions", "refresh_expires_at", "'2026-02-01 03:04:05Z'"),
        ("revocations", "expires_at", "'2026-02-01 03:04:05Z'"),
        ("signing_keys", "id", "repeat('k', 64)"),
        ("signing_keys", "id", "'k4.pid.' || repeat('-', 22) || repeat('_', 22)"),
        ("signing_keys", "format", "'jwt:EdDSA'"),
        ("signing_keys", "format", "'jwt:ES256'"),
        ("signing_keys", "format", "'jwt:RS256'"),
        ("signing_keys", "format", "'jwt:PS256'"),
        ("signing_keys", "public_key", "repeat('x', 4096)"),
        ("signing_keys", "wrapped_key", "decode(repeat('00', 8192), 'hex')"),
        ("signing_keys", "token_seconds", "1"),
        ("signing_keys", "activated_at", "NULL"),
        ("clients", "name", "'7'"),
        ("clients", "name", "'Orders.api_v2-eu'"),
        ("clients", "name", "repeat('x', 32)"),
        ("login_attempts", "free_at", "'2026-01-02 03:04:04Z'"),
        ("login_attempts", "expires_at", "'2026-04-02 03:04:05Z'"),
        ("history", "operation", "'TRUNCATE'"),
        ("history", "operation", "'DROP'"),
        ("history", "changed_at", "'1999-01-02 03:04:05Z'"),
        ("history_seals", "row_hashes", "NULL"),
    ] {
        assert_eq!(
            attempt(&mut conn, &insert(table, &[(column, value)])).await,
            Ok(()),
            "{column} = {value}"
        );
    }
}

#[tokio::test]
async fn every_constraint_applies_to_manual_writes() {
    let mut conn = with_alice().await;
    let v4 = "'6f1c7c1e-7a5c-4f3e-9d0a-3f2a1b4c5d6e'";
    let now = "'2026-01-02 03:04:05Z'";
    let cases: &[(&str, &str, &str, &str)] = &[
        ("users", "id", v4, "users_id_uuidv7"),
        ("users", "id", "'01940000-0000-7000-8000-000000000001'", "users_pkey"),
        ("users", "username", "''", "users_username_shape"),
        ("users", "username", "'ab'", "users_username_shape"),
        ("users", "username", "repeat('x', 65)", "users_username_shape"),
        ("users", "username", "'a b c'", "users_username_shape"),
        ("users", "username", "'ålice'", "users_username_shape"),
        ("users", "username", "'alice@example.com'", "users_username_shape"),
        ("users", "username", r"E'alice\n'", "users_username_shape"),
        ("users", "username", "'Alice'", "users_username_key"),
        ("users", "username", "'aLICE'", "users_username_key"),
        ("users", "email", "''", "users_email_shape"),
        ("users", "email", "'alice'", "users_email_shape"),
        ("users", "email", "'@example.com'", "users_email_shape"),
        ("users", "email", "'alice@'", "users_email_shape"),
        ("users", "email", "'a b@example.com'", "users_email_shape"),
        ("users", "email", r"E'alice@example.com\n'", "users_email_shape"),
        ("users", "email", r"E'al\u0001ice@example.com'", "users_email_shape"),
        ("users", "email", "repeat('a', 64) || '@' || repeat('b', 190)", "users_email_shape"),
        ("users", "email", "repeat('é', 124) || '@b.com'", "ok"),
        ("users", "email", "repeat('é', 125) || '@b.com'", "users_email_shape"),
        ("users", "email", "'Élise@Example.com'", "users_email_key"),
        ("users", "email", "'ÉLISE@EXAMPLE.COM'", "users_email_key"),
        ("users", "email", "'élise@example.com'", "users_email_key"),
        ("users", "email", r"E'E\u0301lise@example.com'", "users_email_key"),
        ("users", "full_name", "''", "users_full_name_shape"),
        ("users", "full_name", "repeat('é', 257)", "users_full_name_shape"),
        ("users", "full_name", r"E'a\tb'", "users_full_name_shape"),
        ("users", "full_name", r"E'a\u001bb'", "users_full_name_shape"),
        ("users", "full_name", r"E'a\u007fb'", "users_full_name_shape"),
        ("users", "full_name", r"E'a\u0085b'", "users_full_name_shape"),
        ("users", "password_hash", "''", "users_password_hash_shape"),
        ("users", "password_hash", "repeat('x', 1025)", "users_password_hash_shape"),
        ("users", "roles", "ARRAY['Admin']", "users_roles_shape"),
        ("users", "roles", "ARRAY['1st']", "users_roles_shape"),
        ("users", "roles", "ARRAY['a b']", "users_roles_shape"),
        ("users", "roles", "ARRAY['']", "users_roles_shape"),
        ("users", "roles", "ARRAY['admin', '']", "users_roles_shape"),
        ("users", "roles", "ARRAY['admin,support']", "users_roles_shape"),
        ("users", "roles", r"ARRAY[E'admin\n']", "users_roles_shape"),
        ("users", "roles", "ARRAY['admin', NULL]", "users_roles_shape"),
        ("users", "roles", "ARRAY[rpad('r', 65, 'r')]", "users_roles_shape"),
        ("users", "roles", "ARRAY(SELECT 'r' || n FROM generate_series(1, 33) AS n)", "users_roles_shape"),
        ("sessions", "id", v4, "sessions_id_uuidv7"),
        ("sessions", "user_id", "'01940000-0000-7000-8000-000000000009'", "sessions_user_id_fkey"),
        ("sessions", "refresh_generation", "-1", "sessions_refresh_generation_positive"),
        ("sessions", "refresh_salt", "decode(repeat('00', 31), 'hex')", "sessions_refresh_salt_length"),
        ("sessions", "refresh_salt", "decode(repeat('00', 33), 'hex')", "sessions_refresh_salt_length"),
        ("sessions", "user_agent", "''", "sessions_user_agent_length"),
        ("sessions", "user_agent", "repeat('x', 513)", "sessions_user_agent_length"),
        ("sessions", "client_ip", "'192.0.2.0/24'", "sessions_client_ip_host"),
        ("sessions", "client_ip", "'2001:db8::/32'", "sessions_client_ip_host"),
        // A /32 is a single host in IPv4, but not in IPv6.
        ("sessions", "client_ip", "'2001:db8::1/32'", "sessions_client_ip_host"),
        ("sessions", "refresh_expires_at", "'2026-02-01 03:04:06Z'", "sessions_times_ordered"),
        ("sessions", "refresh_expires_at", "'2026-01-02 03:04:05Z'", "sessions_times_ordered"),
        ("sessions", "expires_at", "'2026-01-02 04:04:05Z'", "sessions_times_ordered"),
        ("sessions", "end_reason", "'boredom'", "sessions_end_reason_known"),
        ("sessions", "end_reason", "NULL", "sessions_end_has_reason"),
        ("sessions", "ended_at", "NULL", "sessions_end_has_reason"),
        ("sessions", "access_expires_at", "'2026-02-01 03:04:06Z'", "sessions_access_within_session"),
        ("users", "created_at", "'-infinity'", "users_times_in_range"),
        ("users", "updated_at", "'infinity'", "users_times_in_range"),
        ("users", "password_changed_at", "'1969-12-31 23:59:59Z'", "users_times_in_range"),
        ("users", "updated_at", "'9000-01-01 00:00Z'", "users_times_in_range"),
        ("sessions", "created_at", "'-infinity'", "sessions_times_in_range"),
        ("users", "roles", "'[0:0]={admin}'", "users_roles_from_one"),
        ("sessions", "expires_at", "'infinity'", "sessions_times_in_range"),
        ("sessions", "expires_at", "'9000-01-01 00:00Z'", "sessions_times_in_range"),
        ("sessions", "access_expires_at", "'1969-12-31 23:59:59Z'", "sessions_times_in_range"),
        ("sessions", "last_used_at", "'infinity'", "sessions_times_in_range"),
        ("sessions", "renewed_at", "'9000-01-01 00:00Z'", "sessions_times_in_range"),
        ("sessions", "ended_at", "'infinity'", "sessions_times_in_range"),
        ("revocations", "expires_at", "'infinity'", "revocations_times_in_range"),
        ("clients", "created_at", "'infinity'", "clients_times_in_range"),
        ("revocations", "session_id", "NULL", "revocations_session_or_user"),
        ("revocations", "roles", "'{}'", "revocations_roles_of_user"),
        ("signing_keys", "id", "repeat('k', 42)", "signing_keys_id_shape"),
        ("signing_keys", "id", "repeat('k', 65)", "signing_keys_id_shape"),
        ("signing_keys", "id", "repeat('k', 43) || '='", "signing_keys_id_shape"),
        ("signing_keys", "id", r"repeat('k', 43) || E'\n'", "signing_keys_id_shape"),
        ("signing_keys", "format", "''", "signing_keys_format_known"),
        ("signing_keys", "format", "'v4.local'", "signing_keys_format_known"),
        ("signing_keys", "format", "'jwt:HS256'", "signing_keys_format_known"),
        ("signing_keys", "format", "'jwt:none'", "signing_keys_format_known"),
        ("signing_keys", "format", "'jwt:es256'", "signing_keys_format_known"),
        ("signing_keys", "public_key", "''", "signing_keys_public_key_length"),
        ("signing_keys", "public_key", "repeat('x', 4097)", "signing_keys_public_key_length"),
        ("signing_keys", "wrapped_key", "''", "signing_keys_wrapped_key_length"),
        (
            "signing_keys",
            "wrapped_key",
            "decode(repeat('00', 8193), 'hex')",
            "signing_keys_wrapped_key_length",
        ),
        ("signing_keys", "wrapped_by", "''", "signing_keys_wrapped_by_shape"),
        ("signing_keys", "wrapped_by", "'k4.lid.' || repeat('a', 43)", "signing_keys_wrapped_by_shape"),
        ("signing_keys", "wrapped_by", "'k4.pid.' || repeat('a', 44)", "signing_keys_wrapped_by_shape"),
        (
            "signing_keys",
            "wrapped_by",
            r"'k4.lid.' || repeat('a', 44) || E'\n'",
            "signing_keys_wrapped_by_shape",
        ),
        ("signing_keys", "token_seconds", "0", "signing_keys_token_seconds_positive"),
        ("signing_keys", "token_seconds", "-1", "signing_keys_token_seconds_positive"),
        // Without its private part a key cannot sign, and neither column of that part is of use alone.
        ("signing_keys", "wrapped_key", "NULL", "signing_keys_private_until_retired"),
        ("signing_keys", "wrapped_by", "NULL", "signing_keys_private_until_retired"),
        ("signing_keys", "verifies_until", now, "signing_keys_verifies_after_retirement"),
        ("signing_keys", "published_at", "'infinity'", "signing_keys_times_in_range"),
        ("signing_keys", "published_at", "'-infinity'", "signing_keys_times_in_range"),
        ("signing_keys", "activated_at", "'9999-12-31 24:00Z'", "signing_keys_times_in_range"),
        ("clients", "id", v4, "clients_id_uuidv7"),
        ("clients", "name", "''", "clients_name_shape"),
        ("clients", "name", "repeat('x', 33)", "clients_name_shape"),
        ("clients", "name", "'01940000-0000-7000-8000-000000000022'", "clients_name_shape"),
        ("clients", "name", "'-orders'", "clients_name_shape"),
        ("clients", "name", "'orders api'", "clients_name_shape"),
        ("clients", "name", "'örders'", "clients_name_shape"),
        ("clients", "name", r"E'orders\n'", "clients_name_shape"),
        ("clients", "secret_hash", "decode(repeat('00', 31), 'hex')", "clients_secret_hash_length"),
        ("clients", "secret_hash", "decode(repeat('00', 33), 'hex')", "clients_secret_hash_length"),
        ("clients", "secret_hash", "''", "clients_secret_hash_length"),
        ("users", "external_id", "''", "users_external_id_shape"),
        ("users", "external_id", "repeat('x', 257)", "users_external_id_shape"),
        ("users", "external_id", r"E'a\nb'", "users_external_id_shape"),
        ("users", "external_id", "'alice'", "users_external_id_key"),
        ("imports", "source_hash", "decode(repeat('00', 31), 'hex')", "imports_source_hash_length"),
        ("imports", "created", "-1", "imports_counts_not_negative"),
        ("imports", "updated", "-1", "imports_counts_not_negative"),
        ("imports", "unchanged", "-1", "imports_counts_not_negative"),
        ("imports", "rejected", "-1", "imports_counts_not_negative"),
        ("imports", "rejects_bytes", "-1", "imports_counts_not_negative"),
        ("login_attempts", "key", "decode(repeat('00', 15), 'hex')", "login_attempts_key_length"),
        ("login_attempts", "key", "decode(repeat('00', 17), 'hex')", "login_attempts_key_length"),
        ("login_attempts", "key", "''", "login_attempts_key_length"),
        ("login_attempts", "free_at", "'2026-01-02 03:04:06Z'", "login_attempts_expires_when_free"),
        ("login_attempts", "expires_at", "'2026-01-02 03:04:04Z'", "login_attempts_expires_when_free"),
        ("history", "operation", "'SELECT'", "history_operation_known"),
        ("history", "personal_hash", "decode(repeat('00', 31), 'hex')", "history_personal_hash_length"),
        ("history_seals", "number", "0", "history_seals_number_positive"),
        ("history_seals", "ids", "'{}'", "history_seals_ids_not_empty"),
        ("history_seals", "row_hashes", "decode(repeat('00', 33), 'hex')", "history_seals_row_hashes_length"),
        ("history_seals", "rows_hash", "decode(repeat('00', 31), 'hex')", "history_seals_rows_hash_length"),
        ("history_seals", "hash", "decode(repeat('00', 33), 'hex')", "history_seals_hash_length"),
    ];
    let mut missed = Vec::new();
    for (table, column, value, constraint) in cases {
        let got = attempt(&mut conn, &insert(table, &[(column, value)])).await;
        let got = got.err().unwrap_or_else(|| "ok".to_owned());
        if got != *constraint {
            missed.push(format!("{table}.{column} = {value}: {constraint} expected, got {got}"));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");

    // Postgres accepts no NUL in text, whatever the rules.
    for column in ["username", "email", "full_name"] {
        let refused = attempt(&mut conn, &insert("users", &[(column, "'abc' || chr(0)")])).await.unwrap_err();
        assert!(refused.contains("null character"), "{column}: {refused}");
    }
    // The rules hold for updates, too.
    for (change, constraint) in [
        ("username = 'ab'", "users_username_shape"),
        ("email = 'alice'", "users_email_shape"),
        ("full_name = E'a\\nb'", "users_full_name_shape"),
        ("roles = '{Admin}'", "users_roles_shape"),
    ] {
        let refused = attempt(&mut conn, &format!("UPDATE users SET {change}")).await;
        assert_eq!(refused, Err(constraint.to_owned()), "{change}");
    }
    // Only what is optional may be null.
    for (table, optional) in [
        ("users", &["full_name", "password_hash", "external_id"][..]),
        ("sessions", &["user_agent", "client_ip", "ended_at", "end_reason"]),
        ("signing_keys", &["wrapped_key", "wrapped_by", "activated_at", "retired_at", "verifies_until"]),
        ("clients", &[]),
        ("login_attempts", &[]),
        ("imports", &[]),
        ("history", &["row_id", "user_id", "personal_hash", "actor", "request_id"]),
        ("history_seals", &["row_hashes"]),
    ] {
        for (column, _) in good_row(table).iter().filter(|(column, _)| !optional.contains(column)) {
            let refused = attempt(&mut conn, &insert(table, &[(column, "NULL")])).await.unwrap_err();
            assert!(refused.contains("null value") || refused.contains("not_null"), "{column}: {refused}");
        }
    }
}

#[tokio::test]
async fn a_retired_signing_key_has_an_end_and_nothing_private() {
    let mut conn = connect(&database().await).await;
    let (now, later, before) = ("'2026-01-02 03:04:05Z'", "'2026-01-02 03:04:06Z'", "'2026-01-02 03:04:04Z'");
    let gone = [("wrapped_key", "NULL"), ("wrapped_by", "NULL"), ("retired_at", now)];
    let with = |more: &[(&'static str, &'static str)]| [&gone[..], more].concat();
    for (row, expected) in [
        (with(&[("verifies_until", later)]), "ok"),
        // At once, even if the key never signed.
        (with(&[("verifies_until", now)]), "ok"),
        (with(&[("verifies_until", now), ("activated_at", "NULL")]), "ok"),
        (with(&[]), "signing_keys_verifies_after_retirement"),
        (with(&[("verifies_until", before)]), "signing_keys_verifies_after_retirement"),
        (
            vec![("wrapped_key", "NULL"), ("retired_at", now), ("verifies_until", now)],
            "signing_keys_private_until_retired",
        ),
        (
            vec![("wrapped_by", "NULL"), ("retired_at", now), ("verifies_until", now)],
            "signing_keys_private_until_retired",
        ),
        (vec![("retired_at", now), ("verifies_until", now)], "signing_keys_private_until_retired"),
    ] {
        let got = attempt(&mut conn, &insert("signing_keys", &row)).await;
        assert_eq!(got.err().as_deref().unwrap_or("ok"), expected, "{row:?}");
    }
}

#[tokio::test]
async fn each_format_has_at_most_one_active_and_one_next_signing_key() {
    let mut conn = connect(&database().await).await;
    let next = [("id", "repeat('n', 43)"), ("activated_at", "NULL")];
    for row in [insert("signing_keys", &[]), insert("signing_keys", &next)] {
        sqlx::raw_sql(AssertSqlSafe(row)).execute(&mut conn).await.unwrap();
    }
    for (row, expected) in [
        (vec![], "signing_keys_pkey"),
        (vec![("id", "repeat('o', 43)")], "signing_keys_active_key"),
        (vec![("id", "repeat('o', 43)"), ("activated_at", "NULL")], "signing_keys_next_key"),
        (vec![("id", "repeat('o', 43)"), ("format", "'jwt:EdDSA'")], "ok"),
    ] {
        let got = attempt(&mut conn, &insert("signing_keys", &row)).await;
        assert_eq!(got.err().as_deref().unwrap_or("ok"), expected, "{row:?}");
    }
}

#[tokio::test]
async fn client_ids_and_names_are_unique() {
    let mut conn = connect(&database().await).await;
    sqlx::raw_sql(AssertSqlSafe(insert("clients", &[]))).execute(&mut conn).await.unwrap();
    let other_id = ("id", "'01940000-0000-7000-8000-000000000023'");
    for (row, expected) in [
        (vec![("name", "'billing'")], "clients_pkey"),
        (vec![other_id], "clients_name_key"),
        (vec![other_id, ("name", "'billing'")], "ok"),
        (vec![other_id, ("name", "'Orders'")], "ok"),
    ] {
        let got = attempt(&mut conn, &insert("clients", &row)).await;
        assert_eq!(got.err().as_deref().unwrap_or("ok"), expected, "{row:?}");
    }
}

/// A long transaction reads a table, a migration waits to change it, and readers who come later do not have to wait
/// until the migration has had its turn.
#[tokio::test]
async fn a_migration_that_waits_for_a_table_lets_others_through() {
    let url = database().await;
    let (mut reader, mut other, mut migrating) =
        (connect(&url).await, connect(&url).await, connect(&url).await);
    let mut long = reader.begin().await.unwrap();
    sqlx::query("SELECT FROM sessions").execute(&mut *long).await.unwrap();
    let readers = async {
        let waiting = "SELECT count(*)::text FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while rows(&mut other, waiting).await == ["0"] {
            tokio::task::yield_now().await;
        }
        // Queues behind the migration, and gets through when the migration gives up for now.
        rows(&mut other, "SELECT count(*)::text FROM sessions").await;
        long.commit().await.unwrap();
    };
    let (undone, ()) = tokio::join!(migrations::down(&mut migrating, usize::MAX), readers);
    assert!(!undone.unwrap().is_empty());
    assert_eq!(rows(&mut migrating, "SHOW lock_timeout").await, ["0"]);
}

/// A table, and the index made from the recipe in docs/migrations.md.
fn with_an_index() -> Migrator {
    let (_, recipe) = include_str!("../docs/migrations.md").split_once("```sql\n").unwrap();
    let (recipe, _) = recipe.split_once("```").unwrap();
    let migration = |version, kind, sql: &'static str| {
        Migration::new(version, "test".into(), kind, sql.into_sql_str(), sql.starts_with("-- no-transaction"))
    };
    let drop = "-- no-transaction\nDROP INDEX CONCURRENTLY IF EXISTS users_created_at_idx";
    let mut migrator = Migrator::with_migrations(vec![
        migration(1, MigrationType::ReversibleUp, "CREATE TABLE users (created_at timestamptz)"),
        migration(1, MigrationType::ReversibleDown, "DROP TABLE users"),
        migration(2, MigrationType::ReversibleUp, recipe),
        migration(2, MigrationType::ReversibleDown, drop),
    ]);
    migrator.set_locking(false);
    migrator
}

/// The indexes, and whether they are valid.
async fn indexes(conn: &mut PgConnection) -> Vec<String> {
    let indexes =
        "SELECT indexrelid::regclass || ' ' || indisvalid FROM pg_index WHERE indrelid = 'users'::regclass";
    rows(conn, indexes).await
}

/// Waits until the migration has waited `time` for a lock, and returns the pid of its backend.
async fn waiting_for(conn: &mut PgConnection, time: &str) -> i32 {
    let waiting = format!(
        "SELECT max(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND wait_event_type = 'Lock' AND query_start < clock_timestamp() - interval '{time}'"
    );
    let mut pid = None;
    until("the migration waits", async || {
        pid = sqlx::query_scalar(AssertSqlSafe(&*waiting)).fetch_one(&mut *conn).await.unwrap();
        pid.is_some()
    })
    .await;
    pid.unwrap()
}

#[tokio::test]
async fn an_index_waits_for_older_transactions_for_as_long_as_they_take() {
    let url = empty_database().await;
    let (mut reader, mut other, mut migrating) =
        (connect(&url).await, connect(&url).await, connect(&url).await);
    let migrator = with_an_index();
    migrations::up_with(&migrator, &mut migrating, Some(1)).await.unwrap();
    let mut long = reader.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    sqlx::query("SELECT FROM pg_class").execute(&mut *long).await.unwrap();
    let release = async {
        // By then a migration in a transaction would have given up.
        waiting_for(&mut other, "3 seconds").await;
        sqlx::query("INSERT INTO users VALUES (now())").execute(&mut other).await.unwrap();
        long.commit().await.unwrap();
    };
    let (applied, ()) = tokio::join!(migrations::up_with(&migrator, &mut migrating, None), release);
    assert_eq!(applied.unwrap().applied.iter().map(|status| status.version).collect::<Vec<_>>(), [2]);
    assert_eq!(indexes(&mut migrating).await, ["users_created_at_idx true"]);

    let mut long = reader.begin().await.unwrap();
    sqlx::query("SELECT FROM users").execute(&mut *long).await.unwrap();
    let release = async {
        waiting_for(&mut other, "3 seconds").await;
        long.commit().await.unwrap();
    };
    let (undone, ()) = tokio::join!(migrations::down_with(&migrator, &mut migrating, 1), release);
    assert_eq!(undone.unwrap().len(), 1);
    assert_eq!(indexes(&mut migrating).await, [""; 0]);
}

#[tokio::test]
async fn an_index_whose_build_was_cancelled_does_not_count_as_built() {
    let url = empty_database().await;
    let (mut reader, mut other, mut migrating) =
        (connect(&url).await, connect(&url).await, connect(&url).await);
    let migrator = with_an_index();
    migrations::up_with(&migrator, &mut migrating, Some(1)).await.unwrap();
    let mut long = reader.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    sqlx::query("SELECT FROM pg_class").execute(&mut *long).await.unwrap();
    let cut = async {
        let pid = waiting_for(&mut other, "0").await;
        sqlx::query("SELECT pg_cancel_backend($1)").bind(pid).execute(&mut other).await.unwrap();
    };
    let (applied, ()) = tokio::join!(migrations::up_with(&migrator, &mut migrating, None), cut);
    let error = applied.unwrap_err();
    assert!(matches!(error, migrations::Error::Unfinished(_)), "{error}");
    long.commit().await.unwrap();
    assert_eq!(indexes(&mut migrating).await, ["users_created_at_idx false"]);

    for _ in 0..2 {
        let refused = migrations::up_with(&migrator, &mut migrating, None).await.unwrap_err().to_string();
        for part in [
            "public.users_created_at_idx is invalid",
            "`DROP INDEX CONCURRENTLY public.users_created_at_idx`",
            "MIGRATION_DB_SOURCE",
        ] {
            assert!(refused.contains(part), "{refused}");
        }
    }
    sqlx::raw_sql("DROP INDEX CONCURRENTLY public.users_created_at_idx").execute(&mut other).await.unwrap();
    assert_eq!(migrations::up_with(&migrator, &mut migrating, None).await.unwrap().applied.len(), 1);
    assert_eq!(indexes(&mut migrating).await, ["users_created_at_idx true"]);
}

/// Such as a Job that was given up: Postgres does not check whether the client is still there. Whoever migrates
/// meanwhile is told how to see what is running, and finds the index once it is built.
#[tokio::test]
async fn an_index_build_continues_after_its_client_has_gone() {
    let url = empty_database().await;
    let (mut reader, mut other, mut migrating, mut gone) =
        (connect(&url).await, connect(&url).await, connect(&url).await, connect(&url).await);
    let migrator = with_an_index();
    migrations::up_with(&migrator, &mut gone, Some(1)).await.unwrap();
    let mut long = reader.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    sqlx::query("SELECT FROM pg_class").execute(&mut *long).await.unwrap();
    let builder = tokio::select! {
        done = migrations::up_with(&migrator, &mut gone, None) => panic!("{done:?}"),
        pid = waiting_for(&mut other, "0") => pid,
    };
    drop(gone);

    // The paused clock skips the waits between attempts at the lock.
    time::pause();
    let refused = migrations::up_with(&migrator, &mut migrating, None).await.unwrap_err();
    time::resume();
    assert!(matches!(refused, migrations::Error::Locked), "{refused}");
    let refused = refused.to_string();
    let query = refused.split('`').find(|part| part.starts_with("SELECT pid")).unwrap();
    let found: Vec<(i32, String, String, String)> =
        sqlx::query_as(AssertSqlSafe(query)).fetch_all(&mut other).await.unwrap();
    let [(pid, state, phase, statement)] = &found[..] else { panic!("{found:?}") };
    assert_eq!((*pid, &**state), (builder, "active"));
    assert!(phase.starts_with("waiting for "), "{found:?}");
    assert!(statement.contains("CREATE INDEX CONCURRENTLY"), "{found:?}");

    long.commit().await.unwrap();
    assert_eq!(migrations::up_with(&migrator, &mut migrating, None).await.unwrap().applied.len(), 1);
    assert_eq!(indexes(&mut migrating).await, ["users_created_at_idx true"]);
}

#[tokio::test]
async fn deleting_a_user_deletes_the_sessions() {
    let mut conn = with_alice().await;
    sqlx::raw_sql(AssertSqlSafe(insert("sessions", &[]))).execute(&mut conn).await.unwrap();
    sqlx::raw_sql("DELETE FROM users").execute(&mut conn).await.unwrap();
    assert_eq!(rows(&mut conn, "SELECT id::text FROM sessions").await, [""; 0]);
}
