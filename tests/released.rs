//! While a release migrates, replicas of the release before it keep serving. So the queries of that release have to
//! work on the schema of this one:
//!
//! - Each takes and returns the same types, and can be planned, as the service's role where that role may run it.
//! - No row that one writes lacks a column that is now required.
//! - No column is null in which that release never saw null.
//!
//! `released.json` holds the queries of the last release; `make release-queries` writes it when there is a new one.
//! Until the first is out, it describes the release in the making.

use std::{collections::BTreeMap, env, fs, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{
    AssertSqlSafe, Column, Connection, Either, Executor, PgConnection, SqlSafeStr, Statement, TypeInfo,
};

use crate::app::database;

/// What a release needs from the schema.
#[derive(Debug, Serialize, Deserialize)]
struct Release {
    version: String,
    queries: BTreeMap<String, Query>,
    /// By `table.column`.
    columns: BTreeMap<String, Demands>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Query {
    #[serde(flatten)]
    types: Types,
    /// Whether the service's role may run it. Some queries belong to commands that run as the owner or the master user.
    as_app: bool,
}

/// The types of a query.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Types {
    parameters: Vec<String>,
    /// Name and type.
    columns: Vec<(String, String)>,
}

/// What a column requires.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, sqlx::FromRow)]
struct Demands {
    /// Nobody reads null from it.
    not_null: bool,
    /// Every insert has to name it.
    given: bool,
}

async fn types(conn: &mut PgConnection, query: &str) -> Result<Types, sqlx::Error> {
    // A statement that was prepared before the schema changed still describes the schema of then.
    conn.clear_cached_statements().await?;
    let statement = conn.prepare(AssertSqlSafe(query).into_sql_str()).await?;
    let Some(Either::Left(parameters)) = statement.parameters() else { panic!("Postgres knows its types") };
    let parameters = parameters.iter().map(|of| of.name().to_owned()).collect();
    let columns = statement.columns().iter();
    let columns = columns.map(|of| (of.name().to_owned(), of.type_info().name().to_owned())).collect();
    Ok(Types { parameters, columns })
}

/// Plans a query, as the service's role or as ourselves. Only here does Postgres check whether the role may do what the
/// query does, and whether a key matches what `ON CONFLICT` names.
async fn plan(conn: &mut PgConnection, query: &str, types: &Types, as_app: bool) -> Result<(), sqlx::Error> {
    let role = if as_app { "gatepass_app" } else { "NONE" };
    let parameters = vec!["NULL"; types.parameters.len()].join(", ");
    let parameters = if parameters.is_empty() { parameters } else { format!("({parameters})") };
    // The generic plan: a plan for these parameters could rely on null finding nothing.
    let sql = format!(
        "SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL ROLE {role};
         PREPARE released AS {query}; EXPLAIN EXECUTE released{parameters}"
    );
    let mut transaction = conn.begin().await?;
    let planned = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await;
    transaction.rollback().await?;
    // A rollback does not undo PREPARE. This deallocates sqlx's statements, too, but `types` makes the connection
    // forget them.
    sqlx::raw_sql("DEALLOCATE ALL").execute(conn).await?;
    planned.map(drop)
}

async fn columns(conn: &mut PgConnection) -> BTreeMap<String, Demands> {
    let all = "
        SELECT relname || '.' || attname, attnotnull, attnotnull AND NOT atthasdef AND attidentity = ''
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
            AND attnum > 0 AND NOT attisdropped AND relname <> '_sqlx_migrations'";
    let all: Vec<(String, bool, bool)> = sqlx::query_as(all).fetch_all(conn).await.unwrap();
    all.into_iter().map(|(name, not_null, given)| (name, Demands { not_null, given })).collect()
}

/// Where the schema fails `release`.
async fn failures(conn: &mut PgConnection, release: &Release) -> Vec<String> {
    let mut failures = Vec::new();
    let is_known = |table: &str| release.columns.keys().any(|column| column.split('.').next() == Some(table));
    for (column, now) in columns(conn).await {
        match release.columns.get(&column) {
            Some(then) if then.not_null && !now.not_null => failures.push(format!("{column} may be null")),
            Some(then) if !then.given && now.given => failures.push(format!("{column} has to be given")),
            None if now.given && is_known(column.split('.').next().unwrap()) => {
                failures.push(format!("{column} is new, and has to be given"));
            }
            _ => {}
        }
    }
    for (query, then) in &release.queries {
        match types(conn, query).await {
            Err(error) => failures.push(format!("{error}: {query}")),
            Ok(now) if now != then.types => failures.push(format!("{then:?} has become {now:?}: {query}")),
            Ok(types) => {
                let planned = plan(conn, query, &types, then.as_app).await;
                failures.extend(planned.err().map(|error| format!("{error}: {query}")));
            }
        }
    }
    failures
}

fn path(name: &str) -> String {
    format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))
}

async fn last_release(conn: &mut PgConnection) -> Release {
    let path = path("tests/released.json");
    if env::var_os("RECORD_RELEASE").is_some() {
        let mut queries = BTreeMap::new();
        for file in fs::read_dir(self::path(".sqlx")).unwrap() {
            let query: Value = serde_json::from_slice(&fs::read(file.unwrap().path()).unwrap()).unwrap();
            let query = query["query"].as_str().unwrap();
            let types = types(conn, query).await.unwrap();
            let as_app = plan(conn, query, &types, true).await.is_ok();
            queries.insert(query.to_owned(), Query { types, as_app });
        }
        let release =
            Release { version: env!("CARGO_PKG_VERSION").to_owned(), queries, columns: columns(conn).await };
        fs::write(&path, serde_json::to_string_pretty(&release).unwrap() + "\n").unwrap();
    }
    serde_json::from_str(&fs::read_to_string(Path::new(&path)).unwrap()).unwrap()
}

#[tokio::test]
async fn this_schema_answers_every_query_of_the_previous_release() {
    let mut conn = PgConnection::connect(&database().await).await.unwrap();
    let release = last_release(&mut conn).await;
    let failures = failures(&mut conn, &release).await;
    assert!(failures.is_empty(), "{} would fail:\n{}", release.version, failures.join("\n"));

    let changelog = fs::read_to_string(path("CHANGELOG.md")).unwrap();
    let versions = changelog.lines().filter_map(|line| line.strip_prefix("## [")?.split(']').next());
    let last = versions.into_iter().find(|version| *version != "Unreleased");
    assert_eq!(
        last.unwrap_or(&release.version),
        release.version,
        "a new release: run `make release-queries`"
    );
}

#[tokio::test]
async fn a_migration_that_breaks_the_previous_release_is_detected() {
    let mut conn = PgConnection::connect(&database().await).await.unwrap();
    let release = last_release(&mut conn).await;
    // Views depend on the columns that they show. A migration that changes such a column makes the views anew.
    sqlx::raw_sql("DROP SCHEMA IF EXISTS masked CASCADE").execute(&mut conn).await.unwrap();
    for (migration, is_found) in [
        // Migrations that expand the schema.
        ("ALTER TABLE users ADD COLUMN phone text", false),
        ("ALTER TABLE users ADD COLUMN logins bigint NOT NULL DEFAULT 0", false),
        ("ALTER TABLE users ALTER COLUMN full_name SET DEFAULT 'nobody'", false),
        ("CREATE TABLE devices (id uuid PRIMARY KEY, name text NOT NULL)", false),
        ("CREATE INDEX users_created_at_idx ON users (created_at)", false),
        // Migrations that remove or change something.
        ("ALTER TABLE users DROP COLUMN full_name", true),
        ("ALTER TABLE users RENAME COLUMN full_name TO name", true),
        ("ALTER TABLE clients RENAME TO services", true),
        ("ALTER TABLE sessions ALTER COLUMN refresh_generation TYPE bigint", true),
        ("ALTER TABLE users ALTER COLUMN username DROP NOT NULL", true),
        ("ALTER TABLE users ALTER COLUMN full_name SET NOT NULL", true),
        ("ALTER TABLE users ADD COLUMN phone text NOT NULL", true),
        ("ALTER TABLE revocations ALTER COLUMN xid DROP DEFAULT", true),
        ("ALTER FUNCTION prepare_history() RENAME TO make_history", true),
        ("DROP FUNCTION caused_by(text, text)", true),
        // What is still there, but no longer allowed or no longer found.
        ("REVOKE UPDATE (client_ip) ON sessions FROM gatepass_app", true),
        ("REVOKE EXECUTE ON FUNCTION caused_by(text, text) FROM gatepass_app", true),
        (
            "ALTER TABLE login_attempts DROP CONSTRAINT login_attempts_pkey;
             ALTER TABLE login_attempts ADD UNIQUE (key, expires_at)",
            true,
        ),
    ] {
        let mut transaction = conn.begin().await.unwrap();
        sqlx::raw_sql(migration).execute(&mut *transaction).await.unwrap();
        let found = failures(&mut transaction, &release).await;
        // If there are several, the later ones may only say that the transaction is aborted.
        assert_eq!(!found.is_empty(), is_found, "{migration}: {:?}", found.first());
        transaction.rollback().await.unwrap();
    }
}
