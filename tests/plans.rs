//! No request reads a whole table. Every query of the service has a plan that uses an index, in a database with as many
//! users, sessions and rows of the history as a large one, and with their statistics; and what functions and triggers
//! do for a request uses indexes, too.
//!
//! The queries are those of `.sqlx`, so none can be forgotten. `make test` plans them for fifty thousand users, for
//! which the planner already decides as it does for more; `make drill` plans them for a million, and prints the
//! estimates.

use std::{fs, path::Path};

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use time::Duration;

use crate::{
    app::{App, PASSWORD},
    process::{is_drill, until},
};

/// Tables that stay small, however many users there are.
const SMALL: [&str; 4] = ["_sqlx_migrations", "clients", "imports", "signing_keys"];
/// Tables with more rows than this must not be read from one end to the other.
const MANY: i64 = 1_000;

/// Queries that may read whole tables, found by words that only they contain. No request runs them: `gatepass history
/// verify` compares all of the history with all of its seals, `gatepass import --compare` all imported users with a
/// file, `gatepass devdata` makes or masks every row, and `gatepass db setup` looks at the whole server.
const WHOLE: [&str; 11] = [
    "FROM history_seals WHERE number > $1",
    "WHERE NOT id <@ (SELECT coalesce(range_agg(range)",
    "WHERE NOT EXISTS (SELECT FROM history WHERE history.id = history_unsealed.id)",
    r#"SELECT count(*) AS "count!" FROM history_unsealed"#,
    r#"SELECT person AS "person!""#,
    "tgname IN ('users_history', 'sessions_history_begun')",
    "INSERT INTO history_unsealed (id) SELECT id FROM history",
    r#"SELECT EXISTS (SELECT FROM users) AS "users!""#,
    "(SELECT date_trunc('month', min(created_at)) FROM users)",
    "FROM pg_shdepend AS dependency",
    "WHERE id > $1 AND external_id IS NOT NULL ORDER BY id",
];
/// What a plan may cost in the planner's units, in which reading a page in sequence costs 1. A page of the history,
/// from a large one, costs about a thousand: a hundred rows, with the personal part of each looked up by its id.
const COST: f64 = 1_200.0;

/// Makes `$1` users, five sessions for each, and what those leave behind. The triggers stay silent.
const LOAD: [&str; 8] = [
    "INSERT INTO users
         (id, username, email, roles, is_email_verified, disabled, password_changed_at, created_at, updated_at)
     SELECT ('01940000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'user' || n, 'user' || n || '@example.com',
         CASE WHEN n % 1000 = 1 THEN '{auditor}' ELSE '{}' END::text[], false, false, now(), now(), now()
     FROM generate_series(1, $1) AS n",
    "INSERT INTO sessions
         (id, user_id, refresh_generation, refresh_salt, user_agent, client_ip, created_at, last_used_at, renewed_at,
          is_confirmed, refresh_expires_at, expires_at, access_expires_at, ended_at, end_reason)
     SELECT ('01940000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid,
         ('01940000-0000-7000-8000-' || lpad(to_hex(1 + n % $1), 12, '0'))::uuid, n % 10, sha256(int8send(n)), 'curl/8',
         '192.0.2.1', now(), now(), now(), n % 2 = 0, now() + interval '1 day', now() + interval '30 days',
         now() + interval '15 minutes', CASE WHEN n % 4 = 0 THEN now() END, CASE WHEN n % 4 = 0 THEN 'logout' END
     FROM generate_series(1, $1 * 5) AS n",
    "INSERT INTO revocations (session_id, expires_at)
     SELECT ('01940000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid, now() + n * interval '1 second'
     FROM generate_series(1, $1) AS n",
    "INSERT INTO login_attempts SELECT substr(sha256(int8send(n)), 1, 16), now(), now() + n * interval '1 second'
     FROM generate_series(1, $1) AS n",
    "INSERT INTO history (table_name, operation, row_id, user_id, changed_data, changed_at, database_user)
     SELECT CASE WHEN n % 10 = 0 THEN 'users' ELSE 'sessions' END, 'INSERT', n::text,
         ('01940000-0000-7000-8000-' || lpad(to_hex(1 + n % $1), 12, '0'))::uuid, '{}', now(), 'gatepass'
     FROM generate_series(1, $1 * 2) AS n",
    "INSERT INTO history_personal
     SELECT n, ('01940000-0000-7000-8000-' || lpad(to_hex(1 + n % $1), 12, '0'))::uuid, gen_random_uuid(), '{}'
     FROM generate_series(1, $1) AS n",
    "INSERT INTO history_unsealed SELECT $1 * 2 - n FROM generate_series(0, $1 / 20) AS n",
    "INSERT INTO history_seals
     SELECT n, int8multirange(int8range(n * 10, n * 10 + 10)), sha256(int8send(n)), sha256(int8send(n)),
         sha256(int8send(n)), now()
     FROM generate_series(1, $1 / 10) AS n",
];

/// A query of the service, and the types of its parameters.
struct Query {
    text: String,
    parameters: Vec<String>,
}

fn queries() -> Vec<Query> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let files = fs::read_dir(directory).unwrap();
    let described = files
        .map(|file| -> Value { serde_json::from_slice(&fs::read(file.unwrap().path()).unwrap()).unwrap() });
    described
        .map(|query| {
            let parameters = query["describe"]["parameters"]["Left"].as_array().unwrap();
            let parameters = parameters.iter().map(|name| name.as_str().unwrap().to_owned()).collect();
            Query { text: query["query"].as_str().unwrap().to_owned(), parameters }
        })
        .collect()
}

/// An ordinary value of a type; for text that is a snapshot, a snapshot.
fn value(name: &str, query: &str) -> String {
    if let Some(name) = name.strip_suffix("Array") {
        let type_name = name.to_lowercase();
        return format!("ARRAY[{}]::{type_name}[]", value(name, query));
    }
    match name {
        "Bool" => "true",
        "Bytea" => "substr(sha256(int8send(7)), 1, 16)",
        "Float8" => "60",
        "Inet" => "'192.0.2.1'",
        "Int4" | "Int8" => "100",
        "Interval" => "interval '90 seconds'",
        "Text" if query.contains("pg_snapshot") => "pg_current_snapshot()::text",
        "Name" | "Text" => "'user77'",
        "Timestamptz" => "now()",
        "Uuid" => "'01940000-0000-7000-8000-00000000004d'",
        _ => panic!("{name}: no value for {query}"),
    }
    .to_owned()
}

/// The plans of a query: the one for its first execution on a connection, and the one that Postgres has settled on
/// after several, which is the generic plan if that seems no more expensive.
async fn plans(conn: &mut PgConnection, query: &Query) -> [Value; 2] {
    let values: Vec<_> = query.parameters.iter().map(|name| value(name, &query.text)).collect();
    let arguments = if values.is_empty() { String::new() } else { format!("({})", values.join(", ")) };
    let text = &query.text;
    let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE query{arguments};");
    let sql = format!("PREPARE query AS {text}; {}", explain.repeat(ASKED));
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut *conn).await;
    let rows = rows.unwrap_or_else(|error| panic!("{text}: {error}"));
    sqlx::raw_sql("DEALLOCATE query").execute(&mut *conn).await.unwrap();
    [0, ASKED - 1].map(|number| rows[number].get::<Value, _>(0)[0]["Plan"].take())
}

/// Postgres plans five times for the actual values before it considers a generic plan.
const ASKED: usize = 8;

/// The nodes of a plan that read one of the `large` tables from one end to the other.
fn whole_tables(node: &Value, large: &[String], is_limited: bool) -> Vec<String> {
    let kind = node["Node Type"].as_str().unwrap();
    let is_limited = is_limited || kind == "Limit";
    let table = node["Relation Name"].as_str().filter(|name| large.iter().any(|large| large == name));
    let is_whole = match kind {
        "Seq Scan" => true,
        // In the order of an index, without a bound at either end.
        "Index Scan" | "Index Only Scan" => node.get("Index Cond").is_none() && !is_limited,
        _ => false,
    };
    let mut found: Vec<_> =
        table.filter(|_| is_whole).map(|table| format!("{kind} on {table}")).into_iter().collect();
    for child in node["Plans"].as_array().into_iter().flatten() {
        // The input of a sort or a hash is read to its end.
        let is_limited = is_limited && !["Sort", "Hash", "Aggregate"].contains(&kind);
        found.extend(whole_tables(child, large, is_limited));
    }
    found
}

/// Fills the database with that many users, and returns the names of its large tables.
async fn load(app: &App, users: i64) -> Vec<String> {
    // A connection without the service's statement timeout: a million users take a while.
    let mut conn = PgConnection::connect(&app.database_url).await.unwrap();
    sqlx::raw_sql("SET session_replication_role = replica").execute(&mut conn).await.unwrap();
    for statement in LOAD {
        sqlx::query(statement).bind(users).execute(&mut conn).await.unwrap();
    }
    sqlx::raw_sql("ANALYZE").execute(&mut conn).await.unwrap();
    let forgotten: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
             AND relname <> ALL($1) AND reltuples <= $2",
    )
    .bind(SMALL)
    .bind(MANY)
    .fetch_all(&mut conn)
    .await
    .unwrap();
    assert_eq!(forgotten, [""; 0], "fill them here, or say that they stay small");
    let large = "SELECT relname::text FROM pg_class
                 WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND reltuples > $1";
    sqlx::query_scalar(large).bind(MANY).fetch_all(&mut conn).await.unwrap()
}

/// How many rows sequential scans have read, by table, and how many index scans have.
async fn read(app: &App) -> (Vec<(String, i64)>, i64) {
    let mut conn = PgConnection::connect(&app.database_url).await.unwrap();
    let tables = "SELECT relname::text, seq_tup_read FROM pg_stat_user_tables ORDER BY relname";
    let tables = sqlx::query_as(tables).fetch_all(&mut conn).await.unwrap();
    let indexes = "SELECT sum(idx_tup_fetch)::bigint FROM pg_stat_user_tables";
    (tables, sqlx::query_scalar(indexes).fetch_one(&mut conn).await.unwrap())
}

#[tokio::test]
async fn no_request_reads_a_whole_table() {
    let app = App::new().await;
    let large = load(&app, if is_drill() { 1_000_000 } else { 50_000 }).await;

    let mut conn = PgConnection::connect(&app.database_url).await.unwrap();
    let queries = queries();
    assert!(queries.len() >= 60, "{} queries", queries.len());
    for words in WHOLE {
        assert_eq!(queries.iter().filter(|query| query.text.contains(words)).count(), 1, "{words}");
    }
    let is_asked = |query: &&Query| {
        !query.text.starts_with("SET ") && !WHOLE.iter().any(|words| query.text.contains(words))
    };
    let mut faults = Vec::new();
    for query in queries.iter().filter(is_asked) {
        for plan in plans(&mut conn, query).await {
            let (found, cost) = (whole_tables(&plan, &large, false), plan["Total Cost"].as_f64().unwrap());
            if !found.is_empty() || cost >= COST {
                faults.push(format!("cost {cost}, {found:?}: {}", query.text));
            }
            if is_drill() {
                let words: Vec<_> = query.text.split_whitespace().collect();
                println!("cost {cost:>8}: {:.100}", words.join(" "));
            }
        }
    }

    assert!(faults.is_empty(), "{}", faults.join("\n\n"));

    // Functions and triggers show no plan, so count the rows that a day's requests read.
    let before = read(&app).await;
    requests(&app).await;
    app.lose_database().await;
    app.db.close().await;
    until("what was counted is told", async || {
        let own = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'gatepass'";
        sqlx::query_scalar::<_, i64>(own).fetch_one(&mut conn).await.unwrap() == 0
    })
    .await;
    let after = read(&app).await;
    assert!(after.1 - before.1 > 50, "{} rows by an index: were they counted?", after.1 - before.1);
    for (table, rows) in after.0 {
        let rows = rows - before.0.iter().find(|(name, _)| *name == table).unwrap().1;
        assert!(
            rows < MANY || !large.contains(&table),
            "{rows} rows of {table} were read one after the other"
        );
    }
}

/// One request of every kind that changes something, for a few users among all the others.
async fn requests(app: &App) {
    let root = app.login_admin("root").await;
    let client = app.client("orders").await;
    for username in ["alice", "bob", "carol"] {
        app.register(username).await;
    }
    app.try_login("alice", "wrong-horse-battery-9").await.expect_problem(401, "invalid_credentials");
    let login = app.login("alice").await;
    let renewed = app.renew(&login).await.expect(200);
    for path in ["/users/me", "/sessions", "/users/me/history", "/users/me/export"] {
        app.get(path).bearer(&renewed).send().await.expect(200);
    }
    app.state().activity.flush().await.unwrap();
    app.clock.advance(Duration::minutes(1));
    app.renew(&login).await.expect_problem(401, "refresh_token_reused");

    let login = app.login("alice").await;
    app.patch("/users/me").bearer(&login).json(&json!({ "full_name": "Alice" })).send().await.expect(200);
    let new = "another-horse-battery-10";
    let passwords = json!({ "current_password": PASSWORD, "new_password": new });
    let request = app.request(Method::PUT, "/users/me/password").bearer(&login).json(&passwords);
    request.send().await.expect(204);
    for path in ["/sessions", "/sessions?all=true"] {
        app.request(Method::DELETE, path).bearer(&login).send().await.expect(204);
    }
    let gone = app.login("carol").await;
    let delete = app.post("/users/me/delete").bearer(&gone).json(&json!({ "password": PASSWORD }));
    delete.send().await.expect(204);

    let login = app.login("bob").await;
    let token = [("token", login["access_token"].as_str().unwrap())];
    app.post("/tokens/introspect").client(&client).form(&token).send().await.expect(200);
    let bob = format!("/admin/users/{}", login["user"]["id"].as_str().unwrap());
    app.get("/admin/users?query=user77").bearer(&root).send().await.expect(200);
    app.get("/admin/history?table=users").bearer(&root).send().await.expect(200);
    let put = app.request(Method::PUT, "/admin/users/by-external-id/17").bearer(&root);
    let dora = json!({ "username": "dora", "email": "dora@example.com" });
    put.json(&dora).send().await.expect(201);
    for change in [json!({ "roles": ["admin"] }), json!({ "roles": [] }), json!({ "disabled": true })] {
        app.patch(&bob).bearer(&root).json(&change).send().await.expect(200);
    }
    app.request(Method::DELETE, &bob).bearer(&root).send().await.expect(204);
    app.post("/tokens/revoke")
        .form(&[("token", root["refresh_token"].as_str().unwrap())])
        .send()
        .await
        .expect(200);
    app.get("/revocations").client(&client).send().await.expect(200);
}
