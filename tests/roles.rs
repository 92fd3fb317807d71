//! The roles of the database:
//!
//! - Each may do with each table exactly what was decided, which is found by trying.
//! - `gatepass db setup` makes them as a master user who is not a superuser, on a new database and on one that a single
//!   role has made.
//! - The service gets by with what its role may do, and its role cannot change the past of the history.
//! - The role that only looks sees no secret and nobody's name.
//! - Nothing that somebody has planted in the schema, or granted to others, outlives the setup.
//!
//! In every other test, too, the service of [`App`] is `gatepass_app`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgConnectOptions};
use tokio::sync::{Mutex, MutexGuard};

use crate::{
    app::{App, KEY, PASSWORD, admin, as_role, database, empty_database},
    postgres::Server,
    process::{Ended, Home, Signal},
};

const OWNER: &str = "gatepass_owner";
const APP: &str = "gatepass_app";
const READONLY: &str = "gatepass_readonly";

/// Roles belong to the whole server, so only one test at a time sets them up.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    let guard = ALONE.lock().await;
    // This sets them up, too.
    database().await;
    guard
}

async fn connect(url: &str, role: &str) -> PgConnection {
    PgConnection::connect(&as_role(url, role)).await.unwrap()
}

/// Runs a statement; the error is the SQLSTATE.
async fn outcome(conn: &mut PgConnection, sql: &str) -> Result<(), String> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await;
    done.map(drop).map_err(|error| error.as_database_error().unwrap().code().unwrap().into_owned())
}

/// The same, rolled back.
async fn attempt(conn: &mut PgConnection, sql: &str) -> Result<(), String> {
    let mut transaction = conn.begin().await.unwrap();
    let done = outcome(&mut transaction, sql).await;
    transaction.rollback().await.unwrap();
    done
}

/// Whether a role may do that. A violated constraint counts as yes, since the statement got as far as that.
async fn may(conn: &mut PgConnection, sql: &str) -> bool {
    attempt(conn, sql).await.map_or_else(|code| code.starts_with("23"), |()| true)
}

async fn rows(conn: &mut PgConnection, sql: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(conn).await.unwrap()
}

/// Every table and view with its columns, including partitions and sqlx's own table.
async fn relations(url: &str) -> BTreeMap<String, Vec<String>> {
    let mut conn = PgConnection::connect(url).await.unwrap();
    let columns: Vec<(String, String)> = sqlx::query_as(
        "SELECT nspname || '.' || relname, attname::text
         FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace JOIN pg_attribute ON attrelid = pg_class.oid
         WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND relkind IN ('r', 'p', 'v', 'm', 'f')
             AND attnum > 0 AND NOT attisdropped
         ORDER BY 1, attnum",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap();
    let mut all = BTreeMap::<_, Vec<_>>::new();
    for (relation, column) in columns {
        all.entry(relation).or_default().push(column);
    }
    all
}

/// What the role of `conn` may do with a relation, found by trying: `SELECT INSERT UPDATE(a, b) DELETE`, or nothing.
async fn rights(conn: &mut PgConnection, relation: &str, columns: &[String]) -> String {
    let mut found = Vec::new();
    for verb in ["SELECT", "INSERT", "UPDATE"] {
        let mut these = Vec::new();
        for column in columns {
            let sql = match verb {
                "SELECT" => format!("SELECT {column} FROM {relation} WHERE false"),
                "INSERT" => format!("INSERT INTO {relation} ({column}) VALUES (DEFAULT)"),
                _ => format!("UPDATE {relation} SET {column} = DEFAULT WHERE false"),
            };
            if may(&mut *conn, &sql).await {
                these.push(column.as_str());
            }
        }
        if these.len() == columns.len() {
            found.push(verb.to_owned());
        } else if !these.is_empty() {
            found.push(format!("{verb}({})", these.join(", ")));
        }
    }
    for (verb, sql) in [
        ("DELETE", format!("DELETE FROM {relation} WHERE false")),
        ("TRUNCATE", format!("TRUNCATE {relation} CASCADE")),
        (
            "TRIGGER",
            format!(
                "CREATE TRIGGER mine BEFORE UPDATE ON {relation} EXECUTE FUNCTION suppress_redundant_updates_trigger()"
            ),
        ),
        ("ALTER", format!("ALTER TABLE {relation} ADD COLUMN mine text")),
        ("COMMENT", format!("COMMENT ON TABLE {relation} IS 'mine'")),
        ("SWITCH OFF", format!("ALTER TABLE {relation} DISABLE TRIGGER ALL")),
        ("DROP", format!("DROP TABLE {relation} CASCADE")),
        ("DROP VIEW", format!("DROP VIEW {relation}")),
        ("OWN", format!("ALTER TABLE {relation} OWNER TO CURRENT_USER")),
    ] {
        if may(&mut *conn, &sql).await {
            found.push(verb.to_owned());
        }
    }
    found.join(" ")
}

/// These lists leave out what a role may do nothing with, such as partitions of the history.
#[tokio::test]
async fn each_role_has_exactly_the_decided_rights_on_each_table() {
    let url = database().await;
    let relations = relations(&url).await;
    assert!(relations.keys().any(|name| name.starts_with("public.history_2")), "{relations:?}");
    for (role, decided) in [
        (
            APP,
            &[
                ("public._sqlx_migrations", "SELECT(version, description, installed_on, checksum)"),
                ("public.clients", "SELECT INSERT DELETE"),
                ("public.history", "SELECT"),
                ("public.history_personal", "SELECT"),
                ("public.history_seals", "SELECT INSERT"),
                ("public.history_unsealed", "SELECT DELETE"),
                (
                    "public.imports",
                    "SELECT INSERT UPDATE(created, updated, unchanged, rejected, rejects_bytes, updated_at) DELETE",
                ),
                ("public.login_attempts", "SELECT INSERT UPDATE(free_at, expires_at, known_for) DELETE"),
                (
                    "public.revocations",
                    "SELECT INSERT(session_id, user_id, roles, expires_at) UPDATE(expires_at) DELETE",
                ),
                (
                    "public.sessions",
                    "SELECT INSERT UPDATE(refresh_generation, user_agent, client_ip, last_used_at, refresh_expires_at, \
                     renewed_at, is_confirmed, ended_at, end_reason, access_expires_at) DELETE",
                ),
                (
                    "public.signing_keys",
                    "SELECT INSERT UPDATE(wrapped_key, wrapped_by, token_seconds, activated_at, retired_at, \
                     verifies_until)",
                ),
                (
                    "public.users",
                    "SELECT INSERT UPDATE(email, full_name, password_hash, roles, is_email_verified, disabled, \
                     password_changed_at, updated_at, administered_at) DELETE",
                ),
            ][..],
        ),
        (
            READONLY,
            &[
                ("masked.clients", "SELECT"),
                ("masked.history", "SELECT"),
                ("masked.history_seals", "SELECT"),
                ("masked.revocations", "SELECT"),
                ("masked.sessions", "SELECT"),
                ("masked.signing_keys", "SELECT"),
                ("masked.users", "SELECT"),
            ],
        ),
    ] {
        let mut conn = connect(&url, role).await;
        sqlx::raw_sql("SET default_transaction_read_only = off").execute(&mut conn).await.unwrap();
        let mut found = Vec::new();
        for (relation, columns) in &relations {
            let rights = rights(&mut conn, relation, columns).await;
            if !rights.is_empty() {
                found.push((relation.as_str(), rights));
            }
        }
        let found: Vec<_> = found.iter().map(|(name, rights)| (*name, rights.as_str())).collect();
        assert_eq!(found, decided, "{role}");
    }
}

/// For each table that a migration adds, somebody has to decide who may do what with it.
#[tokio::test]
async fn every_table_has_decided_rights_and_no_decision_lacks_its_table() {
    use gatepass::store::roles::{FUNCTIONS, INNER_FUNCTIONS, Privileges, TABLES};

    let url = database().await;
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let tables = rows(
        &mut conn,
        "SELECT relname::text FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1",
    );
    let tables = tables.await;
    let mut decided: Vec<_> = TABLES.iter().map(|table| table.name).collect();
    decided.sort_unstable();
    assert_eq!(tables, decided, "src/store/roles/mod.rs must say for each table who may do what");
    let functions = rows(
        &mut conn,
        "SELECT replace(replace(oid::regprocedure::text, 'timestamp with time zone', 'timestamptz'), ',', ', ')
         FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1",
    );
    let functions = functions.await;
    let mut decided = [FUNCTIONS, INNER_FUNCTIONS].concat();
    decided.sort_unstable();
    assert_eq!(functions, decided);
    let views = rows(
        &mut conn,
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'masked'::regnamespace ORDER BY 1",
    );
    let views = views.await;
    let mut decided: Vec<_> = TABLES.iter().filter(|table| table.masked).map(|table| table.name).collect();
    decided.sort_unstable();
    assert_eq!(views, decided);
    let barriers = "SELECT relname::text FROM pg_class
        WHERE relnamespace = 'masked'::regnamespace AND NOT coalesce('security_barrier=true' = ANY (reloptions)
            OR 'security_barrier' = ANY (reloptions), false)";
    assert_eq!(rows(&mut conn, barriers).await, [""; 0]);
    for (role, wanted) in [(APP, Privileges::of_app()), (READONLY, Privileges::of_readonly())] {
        assert_eq!(Privileges::held(&mut conn, role).await.unwrap(), wanted, "{role}");
    }
    let owners = "SELECT DISTINCT pg_get_userbyid(owner)::text FROM (
            SELECT relowner FROM pg_class WHERE relnamespace IN ('public'::regnamespace, 'masked'::regnamespace)
            UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            UNION ALL SELECT nspowner FROM pg_namespace WHERE nspname IN ('public', 'masked')
        ) AS object (owner)";
    assert_eq!(rows(&mut conn, owners).await, [OWNER]);
}

#[tokio::test]
async fn nobody_but_the_owner_changes_the_schema() {
    let url = database().await;
    for (role, allowed) in [(APP, false), (READONLY, false), (OWNER, true)] {
        let mut conn = connect(&url, role).await;
        sqlx::raw_sql("SET default_transaction_read_only = off").execute(&mut conn).await.unwrap();
        for sql in [
            "CREATE TABLE public.mine (id int)",
            "CREATE TABLE masked.mine (id int)",
            "CREATE VIEW masked.mine AS SELECT 1",
            "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE INDEX mine ON public.users (full_name)",
            "COMMENT ON SCHEMA masked IS 'mine'",
            "ALTER FUNCTION public.record_change() SECURITY INVOKER",
            "ALTER FUNCTION public.drop_history(timestamptz) RESET ALL",
            "DROP TRIGGER users_history ON public.users",
            "SELECT public.write_history('users', 'UPDATE', NULL, '{}', '{}', '{}', '{}')",
        ] {
            assert_eq!(may(&mut conn, sql).await, allowed, "{role}: {sql}");
        }
        // Nor does that role have power over the server. Some of these statements fail in any transaction.
        for sql in [
            "CREATE ROLE mine",
            "CREATE DATABASE mine",
            "ALTER ROLE gatepass_readonly SUPERUSER",
            "ALTER SYSTEM SET log_statement = 'all'",
            "SET session_replication_role = replica",
            "SET ROLE postgres",
            "SELECT rolpassword FROM pg_authid",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT pg_read_file('PG_VERSION')",
        ] {
            assert_eq!(outcome(&mut conn, sql).await, Err("42501".to_owned()), "{role}: {sql}");
        }
        for other in [OWNER, APP, READONLY] {
            let can = attempt(&mut conn, &format!("SET ROLE {other}")).await.is_ok();
            assert_eq!(can, other == role, "{role}: {other}");
        }
    }
}

#[tokio::test]
async fn the_service_cannot_change_what_the_history_says() {
    let app = App::new().await;
    let alice = app.register("alice").await;
    app.login("alice").await;
    let mut postgres = PgConnection::connect(&app.database_url).await.unwrap();
    let history = "SELECT history::text FROM history ORDER BY id";
    let before = rows(&mut postgres, history).await;
    assert!(before.len() >= 2, "{before:?}");

    let mut conn = connect(&app.database_url, APP).await;
    let name = &rows(&mut postgres, "SELECT current_database()::text").await[0];
    let partition = rows(&mut postgres, "SELECT tableoid::regclass::text FROM history LIMIT 1").await;
    for sql in [
        "UPDATE history SET actor = 'mallory'",
        "DELETE FROM history",
        "TRUNCATE history",
        "INSERT INTO history (table_name, operation, changed_data, changed_at, database_user)
         VALUES ('users', 'UPDATE', '{}', now(), 'mallory')",
        "UPDATE history_personal SET changed_data = '{}'",
        "DELETE FROM history_personal",
        "UPDATE history_seals SET hash = rows_hash",
        "DELETE FROM history_seals",
        "INSERT INTO history_unsealed VALUES (1)",
        "SELECT nextval('history_id_seq')",
        "SELECT setval('history_id_seq', 1)",
        "ALTER TABLE users DISABLE TRIGGER users_history",
        "ALTER TABLE history DETACH PARTITION history_default",
        "SET session_replication_role = replica",
        &format!(r#"ALTER DATABASE "{name}" SET gatepass.history = 'lenient'"#),
        "ALTER ROLE gatepass_app SET gatepass.history = 'lenient'",
        &format!("DELETE FROM {}", partition[0]),
        &format!("DROP TABLE {}", partition[0]),
    ] {
        assert!(attempt(&mut conn, sql).await.is_err(), "{sql}");
    }
    // Nobody drops a month that is not over yet.
    let dropped: Option<String> =
        sqlx::query_scalar("SELECT drop_history('infinity')").fetch_one(&mut conn).await.unwrap();
    assert_eq!(dropped, None);
    assert_eq!(rows(&mut postgres, history).await, before);

    // A session cannot relax the history by a setting of its own.
    sqlx::raw_sql("SET gatepass.history = 'lenient'").execute(&mut conn).await.unwrap();
    sqlx::raw_sql(
        "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
         CREATE TRIGGER broken BEFORE INSERT ON history FOR EACH ROW EXECUTE FUNCTION broken()",
    )
    .execute(&mut postgres)
    .await
    .unwrap();
    let refused = attempt(&mut conn, "UPDATE users SET full_name = 'Mallory'").await;
    assert_eq!(refused, Err("P0001".to_owned()));
    assert_eq!(rows(&mut postgres, history).await, before);
    assert_eq!(alice["username"], "alice");
}

#[tokio::test]
async fn the_read_only_role_sees_no_secrets_and_no_names() {
    let app = App::with(&[("TOKEN_FORMAT", "v4.public"), ("TOKEN_ISSUER", "https://id.example.com")]).await;
    let body = json!({
        "username": "Wilhelmina", "email": "mina@harker.example", "password": PASSWORD, "full_name": "Mina Murray",
    });
    app.post("/users").json(&body).send().await.expect(201);
    let login = json!({ "username": "wilhelmina", "password": PASSWORD });
    let login = app.post("/users/login").json(&login).header("user-agent", "whitby/1897").peer("192.0.2.77");
    let login = login.send().await.expect(200);
    app.patch("/users/me")
        .bearer(&login)
        .json(&json!({ "full_name": "Mina Harker" }))
        .send()
        .await
        .expect(200);
    app.client("orders").await;

    let mut postgres = PgConnection::connect(&app.database_url).await.unwrap();
    let mut secrets = rows(
        &mut postgres,
        "SELECT password_hash FROM users UNION ALL SELECT encode(secret_hash, 'hex') FROM clients
         UNION ALL SELECT encode(refresh_salt, 'hex') FROM sessions
         UNION ALL SELECT encode(wrapped_key, 'hex') FROM signing_keys
         UNION ALL SELECT encode(personal_hash, 'hex') FROM history WHERE personal_hash IS NOT NULL
         UNION ALL SELECT salt::text FROM history_personal UNION ALL SELECT encode(key, 'hex') FROM login_attempts",
    )
    .await;
    assert!(secrets.len() >= 7, "{secrets:?}");
    secrets.extend(["wilhelmina", "mina@", "harker", "murray", "whitby", "192.0.2.77"].map(str::to_owned));

    let mut conn = connect(&app.database_url, READONLY).await;
    let mut seen = String::new();
    for view in relations(&app.database_url).await.keys().filter(|name| name.starts_with("masked.")) {
        let rows = rows(&mut conn, &format!("SELECT view::text FROM {view} AS view")).await;
        seen.push_str(&format!("{view}\n{}\n", rows.join("\n").to_lowercase()));
    }
    for secret in secrets {
        assert!(!seen.contains(&secret.to_lowercase()), "{secret} is in\n{seen}");
    }
    for known in ["w***", "m***", "192.0.2.0/24", "orders"] {
        assert!(seen.contains(known), "{known} is not in\n{seen}");
    }
    // Nor by a condition that reveals what it is asked about: a security barrier keeps it from rows that are not masked
    // yet.
    let plan = rows(&mut conn, "EXPLAIN SELECT FROM masked.users WHERE username LIKE 'w%'").await;
    assert!(plan[0].contains("Subquery Scan"), "{plan:?}");
}

/// A master user like that of RDS: it can make roles and owns the database, and is not a superuser.
async fn master(url: &str) -> String {
    let master = master_who_made_no_roles(url).await;
    for ours in [OWNER, APP, READONLY] {
        as_if_made_by(&user_of(&master), ours).await;
    }
    master
}

async fn master_who_made_no_roles(url: &str) -> String {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let role = format!("master_{number}");
    admin(&format!("CREATE ROLE {role} LOGIN CREATEROLE CREATEDB")).await;
    let options: PgConnectOptions = url.parse().unwrap();
    admin(&format!(r#"ALTER DATABASE "{}" OWNER TO {role}"#, options.get_database().unwrap())).await;
    as_role(url, &role)
}

/// From Postgres 16 on, a role that can make roles administers only those that it made, and others made these.
async fn as_if_made_by(master: &str, role: &str) {
    admin(&format!(
        "DO $$ BEGIN IF current_setting('server_version_num')::int >= 160000 THEN
             EXECUTE 'GRANT {role} TO {master} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE';
         END IF; END $$"
    ))
    .await;
}

fn user_of(url: &str) -> String {
    url.parse::<PgConnectOptions>().unwrap().get_username().to_owned()
}

/// All test databases have the same roles.
async fn set_up(home: &Home, url: &str, master: &str, args: &[&str]) -> Ended {
    let command = home.gatepass(&[&["db", "setup", "--share-roles"], args].concat());
    command.env("DB_SOURCE", url).env("MASTER_DB_SOURCE", master).run().await
}

/// The steps of `db setup --json` that changed something.
fn changed(done: &Value) -> Vec<&str> {
    let steps = done["steps"].as_array().unwrap().iter();
    steps.filter(|step| step["changed"] == true).map(|step| step["what"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_master_user_sets_up_the_owner_migrates_and_the_service_serves() {
    let guard = alone().await;
    let (home, url) = (Home::new(), empty_database().await);
    let (app, owner, master) = (as_role(&url, APP), as_role(&url, OWNER), master(&url).await);

    let done = set_up(&home, &app, &master, &["--json"]).await.json();
    let all = changed(&done);
    assert!(
        all.iter().any(|step| step.contains("only these roles, their members and the owner connect")),
        "{done}"
    );
    assert!(all.iter().any(|step| step.contains("gatepass_owner owns the schema")), "{done}");
    // The second time, nothing is left to do.
    let again = set_up(&home, &app, &master, &["--json"]).await.json();
    assert_eq!((changed(&again), &again["passwords"]), (vec![], &json!({})));
    drop(guard);

    let with_owner = [("DB_SOURCE", app.as_str()), ("MIGRATION_DB_SOURCE", owner.as_str())];
    // The service's role alone cannot migrate, and the error says who can.
    let parts = ["gatepass_app may not change the schema", "MIGRATION_DB_SOURCE"];
    home.gatepass(&["migrate", "up"]).env("DB_SOURCE", &app).run().await.fails(1, &parts);
    let refused = home.start(&[("DB_SOURCE", &app)]).end().await;
    assert!(refused.code == Some(1) && refused.stderr.contains(parts[0]), "{refused:?}");

    let service = home.serve(&with_owner).await;
    let user = json!({ "username": "alice", "email": "alice@example.com", "password": PASSWORD });
    assert_eq!(service.post("/users", &user).await.0, 201);
    let login = json!({ "username": "alice", "password": PASSWORD });
    let (status, login) = service.post("/users/login", &login).await;
    assert_eq!(status, 200, "{login}");
    let renew = json!({ "refresh_token": login["refresh_token"] });
    assert_eq!(service.post("/tokens/renew_access", &renew).await.0, 200);
    assert_eq!(service.get_as(login["access_token"].as_str().unwrap(), "/users/me").await.0, 200);
    assert_eq!(service.get("/readyz").await.0, 200);
    let mut postgres = PgConnection::connect(&url).await.unwrap();
    let connected = rows(
        &mut postgres,
        "SELECT DISTINCT usename::text FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'gatepass'",
    );
    assert_eq!(connected.await, [APP], "nothing that serves stays logged in as the owner");
    for args in [
        &["user", "set-role", "alice", "support"][..],
        &["client", "create", "orders"],
        &["history", "seal"],
        &["history", "verify"],
        &["key", "list"],
        &["user", "delete", "alice", "--yes"],
    ] {
        let done = home.gatepass(args).env("DB_SOURCE", &app).run().await;
        assert!(!done.stderr.contains("permission denied"), "{args:?}: {}", done.stderr);
    }
    let ended = service.stop(Signal::TERM).await.expect(0);
    assert!(!ended.stderr.contains("permission denied"), "{}", ended.stderr);
    let who = "SELECT DISTINCT database_user FROM history";
    assert_eq!(rows(&mut postgres, who).await, [APP]);

    // A member of the owner migrates as the owner.
    let with_master = [("DB_SOURCE", app.as_str()), ("MIGRATION_DB_SOURCE", master.as_str())];
    home.gatepass(&["migrate", "down", "100"]).envs(&with_master).run().await.expect(0);
    home.gatepass(&["migrate", "up"]).envs(&with_master).run().await.expect(0);
    let owners = "SELECT DISTINCT pg_get_userbyid(relowner)::text FROM pg_class
        WHERE relnamespace IN ('public'::regnamespace, 'masked'::regnamespace)";
    assert_eq!(rows(&mut postgres, owners).await, [OWNER]);
    // When the schema is current, the service can find that out by itself.
    let service = home.serve(&[("DB_SOURCE", &app)]).await;
    service.stop(Signal::TERM).await.expect(0);

    for sql in ["CREATE TEMP TABLE users (id int)", "CREATE SCHEMA gatepass_app"] {
        assert!(
            attempt(&mut connect(&url, APP).await, sql).await.is_err(),
            "{sql}: it would come before the tables in the search path"
        );
    }
    // Others cannot connect.
    admin("DO $$ BEGIN CREATE ROLE stranger LOGIN; EXCEPTION WHEN duplicate_object THEN END $$").await;
    assert!(PgConnection::connect(&as_role(&url, "stranger")).await.is_err());
}

#[tokio::test]
async fn a_single_role_database_can_be_split_without_stopping_its_service() {
    let guard = alone().await;
    let (home, url) = (Home::new(), empty_database().await);
    let master = master(&url).await;
    admin("DO $$ BEGIN CREATE ROLE single LOGIN; EXCEPTION WHEN duplicate_object THEN END $$").await;
    let mut postgres = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!(
        r#"GRANT ALL ON SCHEMA public TO single; GRANT ALL ON DATABASE "{}" TO single"#,
        rows(&mut postgres, "SELECT current_database()::text").await[0]
    )))
    .execute(&mut postgres)
    .await
    .unwrap();
    as_if_made_by(&user_of(&master), "single").await;
    let single = as_role(&url, "single");
    home.gatepass(&["migrate", "up"]).env("DB_SOURCE", &single).run().await.expect(0);

    let service = home.serve(&[("DB_SOURCE", &single)]).await;
    let done = set_up(&home, &single, &master, &["--json"]).await.json();
    assert!(changed(&done).contains(&"single is a member of gatepass_owner"), "{done}");
    let again = set_up(&home, &single, &master, &["--json"]).await.json();
    assert_eq!(changed(&again), [""; 0]);
    drop(guard);
    let user = json!({ "username": "alice", "email": "alice@example.com", "password": PASSWORD });
    assert_eq!(service.post("/users", &user).await.0, 201, "it goes on meanwhile");
    service.stop(Signal::TERM).await.expect(0);

    let service = home.serve(&[("DB_SOURCE", &as_role(&url, APP))]).await;
    let login = json!({ "username": "alice", "password": PASSWORD });
    assert_eq!(service.post("/users/login", &login).await.0, 200);
    service.stop(Signal::TERM).await.expect(0);
    // To the letter the rights of a new database, which may be old enough to have other months.
    let rights = r"SELECT DISTINCT regexp_replace(relname, '\d{4}_\d{2}$', 'month') || ' ' || coalesce(relacl::text, '')
            || ' ' || coalesce(string_agg(attacl::text, ' ' ORDER BY attnum), '')
        FROM pg_class LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attacl IS NOT NULL
        WHERE relnamespace IN ('public'::regnamespace, 'masked'::regnamespace) AND relkind IN ('r', 'p', 'v', 'S')
        GROUP BY pg_class.oid, relname, relacl::text ORDER BY 1";
    let mut new = PgConnection::connect(&database().await).await.unwrap();
    assert_eq!(rows(&mut postgres, rights).await, rows(&mut new, rights).await);
}

/// An empty database, in whose schema `role`, new to this test, may make what it likes.
async fn database_of(role: &str) -> (String, PgConnection) {
    let url = empty_database().await;
    admin(&format!("CREATE ROLE {role} LOGIN")).await;
    let mut postgres = PgConnection::connect(&url).await.unwrap();
    execute(&mut postgres, &format!("GRANT ALL ON SCHEMA public TO {role}")).await;
    let name = &rows(&mut postgres, "SELECT current_database()::text").await[0];
    execute(&mut postgres, &format!(r#"GRANT ALL ON DATABASE "{name}" TO {role}"#)).await;
    (url, postgres)
}

async fn execute(conn: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.unwrap();
}

#[tokio::test]
async fn setup_refuses_planted_objects_and_revokes_foreign_grants() {
    let _guard = alone().await;
    let home = Home::new();
    let (url, mut postgres) = database_of("migrator").await;
    admin("CREATE ROLE mallory LOGIN").await;
    execute(&mut postgres, "GRANT ALL ON SCHEMA public TO mallory; CREATE SCHEMA lair AUTHORIZATION mallory")
        .await;
    let mut mallory = connect(&url, "mallory").await;
    let master = master(&url).await;
    for role in ["migrator", "mallory"] {
        as_if_made_by(&user_of(&master), role).await;
    }
    let app = as_role(&url, APP);

    // A function with one of our names, before the migrations have made ours.
    let prepare = "CREATE FUNCTION public.prepare_history() RETURNS integer LANGUAGE sql SECURITY DEFINER
        AS 'SELECT 1'; GRANT EXECUTE ON FUNCTION public.prepare_history() TO mallory";
    execute(&mut mallory, prepare).await;
    let parts = ["function public.prepare_history() of mallory"];
    set_up(&home, &app, &master, &[]).await.fails(1, &parts);
    execute(&mut mallory, "DROP FUNCTION public.prepare_history()").await;

    home.gatepass(&["migrate", "up"]).env("DB_SOURCE", &as_role(&url, "migrator")).run().await.expect(0);
    let mut migrator = connect(&url, "migrator").await;
    for (plant, parts, uproot) in [
        ("CREATE TABLE public.mine (id int)", "table public.mine of mallory", "DROP TABLE public.mine"),
        (
            "CREATE FUNCTION public.loot() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user::text';
             GRANT EXECUTE ON FUNCTION public.loot() TO mallory",
            "function public.loot() of mallory",
            "DROP FUNCTION public.loot()",
        ),
        ("CREATE TYPE public.mood AS ENUM ('bad')", "type public.mood of mallory", "DROP TYPE public.mood"),
        (
            "CREATE OPERATOR public.= (FUNCTION = pg_catalog.texteq, LEFTARG = text, RIGHTARG = text)",
            "operator public.=(pg_catalog.text,pg_catalog.text) of mallory",
            "DROP OPERATOR public.= (text, text)",
        ),
    ] {
        execute(&mut mallory, plant).await;
        set_up(&home, &app, &master, &[]).await.fails(1, &[parts, "SET SCHEMA"]);
        execute(&mut mallory, uproot).await;
    }
    execute(&mut migrator, "GRANT TRIGGER ON users TO mallory").await;
    let trigger = "CREATE FUNCTION lair.peep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER peep BEFORE UPDATE ON public.users FOR EACH ROW EXECUTE FUNCTION lair.peep()";
    execute(&mut mallory, trigger).await;
    set_up(&home, &app, &master, &[]).await.fails(1, &["trigger peep on public.users of mallory"]);
    execute(&mut migrator, "DROP TRIGGER peep ON users").await;
    // A table of the migrator's that no migration has made could be anything, and is refused, too.
    execute(&mut migrator, "CREATE TABLE notes (id int)").await;
    set_up(&home, &app, &master, &[]).await.fails(1, &["table public.notes of migrator"]);
    execute(&mut migrator, "DROP TABLE notes").await;

    let grants = "GRANT SELECT ON users TO mallory WITH GRANT OPTION; GRANT UPDATE (password_hash) ON users TO mallory;
        GRANT EXECUTE ON FUNCTION drop_history(timestamptz) TO mallory; GRANT ALL ON SEQUENCE history_id_seq TO mallory";
    execute(&mut migrator, grants).await;
    let done = set_up(&home, &app, &master, &["--json"]).await.json();
    // Members come from other tests, too, since the roles are the same.
    let members: Vec<_> =
        done["members"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(members.contains(&"migrator") && !members.contains(&"mallory"), "{members:?}");
    let rights = "SELECT count(*)::text FROM pg_shdepend JOIN pg_database ON pg_database.oid = dbid
        WHERE datname = current_database() AND refobjid = 'mallory'::regrole
            AND classid IN ('pg_class'::regclass, 'pg_proc'::regclass) AND deptype = 'a'";
    assert_eq!(rows(&mut postgres, rights).await, ["0"]);
    for sql in [
        "SELECT FROM public.users",
        "UPDATE public.users SET password_hash = NULL",
        "SELECT public.drop_history(now())",
        "SET ROLE gatepass_owner",
        "CREATE TABLE public.mine (id int)",
    ] {
        assert_eq!(attempt(&mut mallory, sql).await, Err("42501".to_owned()), "{sql}");
    }
    assert!(PgConnection::connect(&as_role(&url, "mallory")).await.is_err());
    let text = set_up(&home, &app, &master, &[]).await.expect(0).stdout;
    assert!(text.contains("any more: REVOKE gatepass_owner FROM \"migrator\"\n"), "{text}");
    admin("REVOKE gatepass_owner FROM migrator").await;
}

#[tokio::test]
async fn a_migration_is_applied_with_its_rights_and_lost_rights_are_restored() {
    let (home, url) = (Home::new(), database().await);
    let (app, owner) = (as_role(&url, APP), as_role(&url, OWNER));
    let with_owner = [("DB_SOURCE", app.as_str()), ("MIGRATION_DB_SOURCE", owner.as_str())];
    let mut postgres = PgConnection::connect(&url).await.unwrap();
    let granted = "SELECT relname || ' ' || coalesce(relacl::text, '') FROM pg_class
        WHERE relnamespace IN ('public'::regnamespace, 'masked'::regnamespace) AND relkind IN ('r', 'p', 'v', 'S')
        ORDER BY relname, relnamespace";
    let before = rows(&mut postgres, granted).await;

    // As if a process had died between a migration and its rights.
    let lose = "REVOKE ALL ON users, history_seals FROM gatepass_app; REVOKE ALL ON masked.users FROM gatepass_readonly;
        GRANT SELECT ON users TO pg_monitor";
    execute(&mut postgres, lose).await;
    let done = home.gatepass(&["migrate", "up"]).envs(&with_owner).run().await.expect(0);
    assert_eq!(done.stdout, "restored the rights of the roles\n");
    assert_eq!(rows(&mut postgres, granted).await, before);
    let done = home.gatepass(&["migrate", "up"]).envs(&with_owner).run().await.expect(0);
    assert_eq!(done.stdout, "nothing to do\n");
    execute(&mut postgres, lose).await;
    // The service's own role cannot restore them, and says so.
    let done = home.gatepass(&["migrate", "up"]).env("DB_SOURCE", &app).run().await.expect(0);
    assert!(done.stderr.contains("gatepass_app may not change that"), "{}", done.stderr);
    assert!(done.stdout.contains("could not be restored: run `gatepass db setup`\n"), "{}", done.stdout);
    let service = home.serve(&with_owner).await;
    let user = json!({ "username": "alice", "email": "alice@example.com", "password": PASSWORD });
    assert_eq!(service.post("/users", &user).await.0, 201);
    service.stop(Signal::TERM).await.expect(0);
    assert_eq!(rows(&mut postgres, granted).await, before);

    // A migration whose rights cannot be granted is not applied.
    home.gatepass(&["migrate", "down", "2"]).envs(&with_owner).run().await.expect(0);
    let status =
        async || home.gatepass(&["migrate", "status"]).envs(&with_owner).run().await.expect(0).stdout;
    let pending = status().await;
    execute(
        &mut postgres,
        "CREATE SCHEMA tests; CREATE FUNCTION tests.no() RETURNS event_trigger LANGUAGE plpgsql
         AS 'BEGIN RAISE EXCEPTION ''no''; END';
         CREATE EVENT TRIGGER no ON ddl_command_start WHEN TAG IN ('GRANT') EXECUTE FUNCTION tests.no()",
    )
    .await;
    home.gatepass(&["migrate", "up"]).envs(&with_owner).run().await.expect(1);
    assert_eq!(status().await, pending);
    execute(&mut postgres, "DROP EVENT TRIGGER no").await;
    home.gatepass(&["migrate", "up"]).envs(&with_owner).run().await.expect(0);
    assert_eq!(rows(&mut postgres, granted).await, before);
}

#[tokio::test]
async fn a_role_that_cannot_create_schemas_is_told_how_to_migrate() {
    let (home, url) = (Home::new(), empty_database().await);
    admin("CREATE ROLE narrow LOGIN").await;
    let mut postgres = PgConnection::connect(&url).await.unwrap();
    execute(&mut postgres, "GRANT ALL ON SCHEMA public TO narrow").await;
    let parts = ["narrow may not create schemas", "GRANT CREATE ON DATABASE", "gatepass db setup"];
    home.gatepass(&["migrate", "up"]).env("DB_SOURCE", &as_role(&url, "narrow")).run().await.fails(1, &parts);
}

#[tokio::test]
async fn setup_refuses_a_database_of_a_later_release() {
    let _guard = alone().await;
    let (home, url) = (Home::new(), database().await);
    let mut postgres = PgConnection::connect(&url).await.unwrap();
    execute(
        &mut postgres,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (999999, 'later', true, '', 0)",
    )
    .await;
    set_up(&home, &as_role(&url, APP), &url, &[]).await.fails(1, &["999999", "newer version"]);
}

/// On a server of its own, since a role's attributes hold for all databases.
#[tokio::test]
async fn the_roles_have_no_other_powers_and_belong_to_one_database() {
    let (home, server) = (Home::new(), Server::new("", |_| {}).await);
    let url = server.url();
    server
        .run(
            "CREATE ROLE gatepass_app CREATEROLE CREATEDB REPLICATION BYPASSRLS;
             CREATE ROLE gatepass_readonly LOGIN; GRANT pg_read_all_data, pg_signal_backend TO gatepass_readonly;
             CREATE ROLE master LOGIN CREATEROLE; ALTER DATABASE postgres OWNER TO master",
        )
        .await;
    server.run("CREATE DATABASE other").await;
    let setup = async |url: &str, master: &str, args: &[&str]| {
        let command = home.gatepass(&[&["db", "setup"], args].concat());
        command.env("DB_SOURCE", &as_role(url, APP)).env("MASTER_DB_SOURCE", master).run().await
    };
    // What a superuser granted, only a superuser can take away.
    let parts = ["gatepass_app is CREATEROLE, CREATEDB, REPLICATION, BYPASSRLS", "only a superuser"];
    setup(&url, &as_role(&url, "master"), &[]).await.fails(1, &parts);
    home.gatepass(&["migrate", "up"]).env("DB_SOURCE", &url).run().await.expect(0);
    let done = setup(&url, &url, &["--json"]).await.json();
    assert!(
        changed(&done)
            .contains(&"gatepass_readonly has no administrative attributes, and is a member of no role")
    );
    // The owner was made just now: of that role, nothing had been so already.
    for what in ["exists", "has no administrative attributes, and is a member of no role"] {
        assert!(changed(&done).contains(&format!("{OWNER} {what}").as_str()), "{done}");
    }
    assert!(!changed(&done).contains(&"gatepass_readonly exists"), "{done}");
    let mut postgres = server.connect().await;
    let mighty = "SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'gatepass\\_%'
        AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
            OR EXISTS (SELECT FROM pg_auth_members WHERE member = pg_roles.oid))";
    assert_eq!(rows(&mut postgres, mighty).await, [""; 0]);
    assert_eq!(changed(&setup(&url, &url, &["--json"]).await.json()), [""; 0]);

    let mut looker = connect(&url, READONLY).await;
    for setting in ["statement_timeout", "idle_in_transaction_session_timeout"] {
        assert_eq!(rows(&mut looker, &format!("SHOW {setting}")).await, ["1min"], "{setting}");
    }
    let limit = "SELECT rolconnlimit::text FROM pg_roles WHERE rolname = 'gatepass_readonly'";
    assert_eq!(rows(&mut postgres, limit).await, ["10"]);

    let other = url.replace("/postgres?", "/other?");
    setup(&other, &other, &["--new-passwords"])
        .await
        .fails(1, &["another database of this server (postgres)"]);
    let kept = "SELECT coalesce(rolpassword, '') FROM pg_authid
         WHERE rolname IN ('gatepass_owner', 'gatepass_app', 'gatepass_readonly') ORDER BY rolname";
    let passwords = rows(&mut postgres, kept).await;
    setup(&other, &other, &["--share-roles"]).await.expect(0);
    assert_eq!(rows(&mut postgres, kept).await, passwords);

    // A role that served before is named until somebody removes it from the owner's members.
    let doctor = async || {
        let doctor = home.gatepass(&["doctor"]).env("DB_SOURCE", &as_role(&url, APP));
        doctor.envs(&[("ENVIRONMENT", "production"), ("TOKEN_SYMMETRIC_KEY", KEY)]).run().await.stdout
    };
    assert!(!doctor().await.contains("is a member of"));
    server.run("CREATE ROLE former LOGIN; GRANT gatepass_owner TO former, master").await;
    let found = doctor().await;
    assert!(found.contains("former may log in and is a member of gatepass_owner"), "{found}");
    assert!(
        found.contains("REVOKE gatepass_owner FROM \"former\"") && !found.contains("master may"),
        "{found}"
    );
}

#[tokio::test]
async fn passwords_are_made_once_and_only_their_verifiers_are_stored() {
    let _guard = alone().await;
    let (home, url) = (Home::new(), empty_database().await);
    let app = as_role(&url, APP);
    let mut postgres = PgConnection::connect(&url).await.unwrap();
    let kept = "SELECT coalesce(rolpassword, '') FROM pg_authid
         WHERE rolname IN ('gatepass_owner', 'gatepass_app', 'gatepass_readonly') ORDER BY rolname";
    let made = set_up(&home, &app, &url, &["--json", "--new-passwords"]).await.json();
    let passwords: Vec<_> =
        [OWNER, APP, READONLY].map(|role| made["passwords"][role].as_str().unwrap().to_owned()).into();
    let first = rows(&mut postgres, kept).await;
    assert!(first.iter().all(|kept| kept.starts_with("SCRAM-SHA-256$4096:")), "{first:?}");
    assert!(passwords.iter().all(|password| password.len() == 32 && !first.concat().contains(password)));
    // It leaves the passwords alone unless it is asked to change them.
    let text = set_up(&home, &app, &url, &[]).await.expect(0);
    assert!(!text.stdout.contains("password") && !text.stdout.contains("done"), "{}", text.stdout);
    set_up(&home, &app, &url, &["--no-passwords"]).await.expect(0);
    assert_eq!(rows(&mut postgres, kept).await, first);
    let text = set_up(&home, &app, &url, &["--new-passwords"]).await.expect(0);
    assert!(text.stdout.contains("password  gatepass_app  "), "{}", text.stdout);
    assert!(text.stderr.contains("at once"), "{}", text.stderr);
    assert_ne!(rows(&mut postgres, kept).await, first);

    // With IAM, on RDS, nobody needs a password.
    set_up(&home, &app, &url, &["--iam"]).await.fails(1, &["rds_iam"]);
    admin("CREATE ROLE rds_iam").await;
    let done = set_up(&home, &app, &url, &["--iam", "--json"]).await.json();
    assert_eq!(done["passwords"], json!({}));
    let members =
        "SELECT member::regrole::text FROM pg_auth_members WHERE roleid = 'rds_iam'::regrole ORDER BY 1";
    assert_eq!(rows(&mut postgres, members).await, [APP, OWNER, READONLY]);
    assert_eq!(changed(&set_up(&home, &app, &url, &["--iam", "--json"]).await.json()), [""; 0]);
    admin("DROP ROLE rds_iam").await;
}

#[tokio::test]
async fn a_user_without_the_rights_for_setup_is_told_what_is_missing() {
    let _guard = alone().await;
    let (home, url, other) = (Home::new(), empty_database().await, empty_database().await);
    let app = as_role(&url, APP);
    set_up(&home, &app, &other, &[]).await.fails(1, &["MASTER_DB_SOURCE", "name the same"]);
    set_up(&home, &app, &app, &[]).await.fails(1, &["gatepass_app may not create roles", "MASTER_DB_SOURCE"]);
    // DB_SOURCE is used when MASTER_DB_SOURCE is not set.
    let parts = ["gatepass_app may not create roles"];
    home.gatepass(&["db", "setup"]).env("DB_SOURCE", &app).run().await.fails(1, &parts);
    let stranger = as_role(&other, &user_of(&master(&url).await));
    set_up(&home, &other, &stranger, &[]).await.fails(1, &["belongs to postgres"]);
    let heir = master_who_made_no_roles(&other).await;
    let mut conn = PgConnection::connect(&other).await.unwrap();
    let version: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::int")
        .fetch_one(&mut conn)
        .await
        .unwrap();
    let ended = set_up(&home, &other, &heir, &[]).await;
    if version < 160_000 {
        ended.expect(0);
    } else {
        let grant = format!(
            "GRANT gatepass_app, gatepass_owner, gatepass_readonly TO \"{}\" WITH ADMIN OPTION",
            user_of(&heir)
        );
        ended.fails(1, &["may not change the roles", &grant]);
    }
    set_up(&home, &app, &url, &["--iam", "--new-passwords"]).await.fails(2, &["--iam"]);
    home.gatepass(&["db"]).run().await.fails(2, &["setup"]);
    // Behind such a pooler, the migration lock would soon belong to somebody else.
    let pooled = home.gatepass(&["db", "setup"]).env("DB_SOURCE", &url).env("DB_POOLER", "transaction");
    let pooled = pooled.env("MIGRATE_ON_START", "false");
    pooled.run().await.fails(1, &["DB_POOLER=transaction", "MASTER_DB_SOURCE"]);
}

#[tokio::test]
async fn the_doctor_says_when_the_service_may_do_too_much_or_too_little() {
    let (home, url) = (Home::new(), database().await);
    let app = as_role(&url, APP);
    let finding = async |url: &str, environment: &[(&str, &str)]| {
        let doctor = home.gatepass(&["doctor", "--json"]).env("DB_SOURCE", url).envs(environment).run().await;
        let found: Value = serde_json::from_str(&doctor.stdout).unwrap();
        let all = found["findings"].as_array().unwrap().clone();
        let one = all.into_iter().find(|finding| finding["area"] == "roles").unwrap();
        let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
        (text("level"), text("message"), text("advice"))
    };
    let production = [("ENVIRONMENT", "production"), ("TOKEN_SYMMETRIC_KEY", KEY)];

    assert_eq!(finding(&app, &production).await.0, "ok");
    let (level, message, advice) = finding(&url, &[]).await;
    assert!(level == "note" && message.contains("superuser") && advice.contains("db setup"), "{message}");
    assert_eq!(finding(&url, &production).await.0, "warning");
    let (level, message, _) = finding(&as_role(&url, OWNER), &production).await;
    assert!(level == "warning" && message.contains("owns the tables"), "{message}");

    let mut postgres = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("GRANT TRUNCATE ON users TO gatepass_app").execute(&mut postgres).await.unwrap();
    let (level, message, _) = finding(&app, &production).await;
    assert!(level == "warning" && message.contains("TRUNCATE on public.users"), "{message}");
    sqlx::raw_sql("REVOKE DELETE ON clients FROM gatepass_app").execute(&mut postgres).await.unwrap();
    let (level, message, advice) = finding(&app, &[]).await;
    assert!(level == "problem" && message.contains("DELETE on public.clients"), "{message}");
    assert!(advice.contains("migrate up` as gatepass_owner, or `gatepass db setup"), "{advice}");
    let with_owner = [("DB_SOURCE", &*app), ("MIGRATION_DB_SOURCE", &*as_role(&url, OWNER))];
    home.gatepass(&["migrate", "up"]).envs(&with_owner).run().await.expect(0);
    assert_eq!(finding(&app, &production).await.0, "ok");
    // No migration gives rights to another role.
    let look = "GRANT USAGE ON SCHEMA public TO gatepass_readonly; GRANT SELECT ON _sqlx_migrations TO gatepass_readonly";
    execute(&mut postgres, look).await;
    let (level, message, advice) = finding(&as_role(&url, READONLY), &[]).await;
    assert!(level == "problem" && !advice.contains("migrate up"), "{message}: {advice}");
}
