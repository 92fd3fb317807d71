//! Data for developers. The same seed makes the same rows, which the service accepts as its own. Nothing that people
//! wrote about themselves can be found in a sample, or in a masked copy, down to its files. Everything that belongs to
//! a user comes along with them, and fits together.

use std::{env, fs, os::unix::fs::PermissionsExt, path::Path};

use aws_lc_rs::digest;
use serde_json::json;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};

use crate::{
    app::{
        App, KEY, PASSWORD, admin, as_role, database, empty_database, nobody_is_connected, postgres_program,
    },
    process::{Ended, Home, QUICK, Signal, make_program},
};

const MADE_UP: &str = "made-up-for-developers";

async fn gatepass(home: &Home, url: &str, args: &[&str]) -> Ended {
    home.gatepass(args).envs(&QUICK).env("DB_SOURCE", url).env("TOKEN_SYMMETRIC_KEY", KEY).run().await
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

/// The query's rows, each as text.
async fn rows(url: &str, sql: &str) -> Vec<String> {
    let sql = format!("SELECT row::text FROM ({sql}) AS row");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut connect(url).await).await.unwrap()
}

async fn number(url: &str, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connect(url).await).await.unwrap()
}

const SEED: [&str; 4] = ["devdata", "seed", "--users", "300"];

#[tokio::test]
async fn the_same_seed_makes_the_same_rows() {
    let home = Home::new();
    let (first, second, other) = (database().await, database().await, database().await);
    for (url, seed) in [(&first, "7"), (&second, "7"), (&other, "8")] {
        gatepass(&home, url, &[&SEED[..], &["--seed", seed]].concat()).await.expect(0);
    }
    for table in ["users", "sessions", "history", "history_personal", "history_unsealed"] {
        let all = format!("SELECT * FROM {table} ORDER BY 1");
        let made = rows(&first, &all).await;
        assert!(made.len() >= 250, "{table}: {}", made.len());
        assert!(made == rows(&second, &all).await, "{table} differs");
        // history_unsealed holds only row numbers, which are the same for any seed.
        assert!(table == "history_unsealed" || made != rows(&other, &all).await, "{table} is the same");
    }
    // Every address is one that is reserved for documentation.
    let elsewhere = "SELECT count(*) FROM sessions WHERE NOT client_ip <<= ANY (
        '{192.0.2.0/24,198.51.100.0/24,203.0.113.0/24,2001:db8::/32}'::inet[])";
    assert_eq!(number(&first, elsewhere).await, 0);
    let elsewhere = r"SELECT count(*) FROM users WHERE email !~ '@example\.(com|net|org)$'";
    assert_eq!(number(&first, elsewhere).await, 0);
}

#[tokio::test]
async fn seeded_users_log_in_and_their_history_is_what_triggers_would_have_written() {
    let home = Home::new();
    let url = database().await;
    let made = gatepass(&home, &url, &[&SEED[..], &["--json"]].concat()).await.expect(0).json();
    assert_eq!(made["users"], 300);
    gatepass(&home, &url, &["history", "seal"]).await.expect(0);
    let verified = gatepass(&home, &url, &["history", "verify", "--json"]).await.expect(0).json();
    assert_eq!(verified["rows"], made["history"]);

    for (table, condition) in [("sessions", "ended_at IS NULL"), ("users", "NOT disabled AND roles = '{}'")] {
        let id: String = text(&url, &format!("SELECT id::text FROM {table} WHERE {condition} LIMIT 1")).await;
        let told = format!(
            "SELECT changed_data, (SELECT changed_data FROM history_personal WHERE history_id = history.id)
             FROM history WHERE operation = 'INSERT' AND row_id = '{id}' ORDER BY id DESC LIMIT 1"
        );
        let seeded = rows(&url, &told).await;
        let columns = text(
            &url,
            &format!(
                "SELECT string_agg(column_name, ', ') FROM information_schema.columns
                 WHERE table_name = '{table}' AND table_schema = 'public' AND is_generated = 'NEVER'"
            ),
        )
        .await;
        let again = format!(
            "CREATE TEMP TABLE kept_{table} AS SELECT {columns} FROM {table} WHERE id = '{id}';
             DELETE FROM {table} WHERE id = '{id}';
             INSERT INTO {table} ({columns}) SELECT {columns} FROM kept_{table}"
        );
        sqlx::raw_sql(AssertSqlSafe(again)).execute(&mut connect(&url).await).await.unwrap();
        assert_eq!(seeded, rows(&url, &told).await);
    }

    let service = home.serve(&[("DB_SOURCE", &url), ("TOKEN_SYMMETRIC_KEY", KEY)]).await;
    for username in ["admin", &username_of(&url, "NOT disabled").await] {
        let body = json!({ "username": username, "password": MADE_UP });
        let (status, answer) = service.post("/users/login", &body).await;
        assert_eq!(status, 200, "{answer}");
    }
    let body = json!({ "username": username_of(&url, "disabled").await, "password": MADE_UP });
    assert_eq!(service.post("/users/login", &body).await.0, 401);
    service.stop(Signal::TERM).await.expect(0);
}

#[tokio::test]
async fn seeded_and_masked_users_log_in_to_a_service_with_a_pepper() {
    let home = Home::new();
    let url = database().await;
    let pepper = [("PASSWORD_PEPPER", "1:cGVwcGVyIHR3byBpcyB0aGVzZSAzMiBieXRlcyBvZiA=")];
    let run = async |args: &[&str]| {
        let command = home.gatepass(args).envs(&QUICK).envs(&pepper).env("DB_SOURCE", &url);
        command.env("TOKEN_SYMMETRIC_KEY", KEY).run().await
    };
    let log_in = async |username: &str| {
        let settings = [("DB_SOURCE", &*url), ("TOKEN_SYMMETRIC_KEY", KEY), pepper[0]];
        let service = home.serve(&settings).await;
        let body = json!({ "username": username, "password": MADE_UP });
        let (status, answer) = service.post("/users/login", &body).await;
        assert_eq!(status, 200, "{answer}");
        service.stop(Signal::TERM).await.expect(0);
        let hash = format!("SELECT password_hash FROM users WHERE username = '{username}'");
        assert!(text(&url, &hash).await.contains(",keyid=MQ$"));
    };
    let seeded = run(&["devdata", "seed", "--users", "3"]).await.expect(0);
    assert!(seeded.stdout.contains("log in as admin: everybody's password is"), "{}", seeded.stdout);
    assert!(seeded.stdout.contains(MADE_UP) && seeded.stderr.contains("sessions have expired"), "{seeded:?}");
    log_in("admin").await;

    // Masking replaces every hash in a copy with that of the one password, whatever the old one was made with.
    let mask = ["devdata", "mask", "--only", "*test_*", "--this-is-a-copy"];
    admin_of(&url, "CREATE SCHEMA devdata; CREATE TABLE devdata.copy (place text)").await;
    let place = run(&mask).await.stderr;
    let place = place.split("says that ").nth(1).unwrap().split(" is a copy").next().unwrap();
    admin_of(&url, &format!("INSERT INTO devdata.copy VALUES ('{place}')")).await;
    nobody_is_connected(&url).await;
    run(&mask).await.expect(0);
    log_in(&username_of(&url, "NOT disabled AND password_hash IS NOT NULL").await).await;
}

async fn username_of(url: &str, condition: &str) -> String {
    text(url, &format!("SELECT username FROM users WHERE {condition} ORDER BY id DESC LIMIT 1")).await
}

async fn text(url: &str, sql: &str) -> String {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connect(url).await).await.unwrap()
}

#[tokio::test]
async fn no_data_is_seeded_in_production_or_beside_real_rows() {
    let home = Home::new();
    let url = database().await;
    let args = ["user", "create", "alice", "--email", "alice@example.org", "--password-stdin"];
    let alice = home.gatepass(&args).envs(&QUICK).env("DB_SOURCE", &url).env("TOKEN_SYMMETRIC_KEY", KEY);
    alice.stdin(&format!("{PASSWORD}\n")).run().await.expect(0);
    gatepass(&home, &url, &SEED).await.fails(1, &["not empty", "users"]);
    let empty = database().await;
    let production = home
        .gatepass(&SEED)
        .env("ENVIRONMENT", "production")
        .env("DB_SOURCE", &empty)
        .env("TOKEN_SYMMETRIC_KEY", KEY);
    production.run().await.fails(1, &["ENVIRONMENT=production"]);
    assert_eq!(number(&empty, "SELECT count(*) FROM users").await, 0);
}

/// What a person has written about themselves, none of which may be found in a sample.
struct Person {
    username: &'static str,
    email: &'static str,
    full_name: &'static str,
    address: &'static str,
}

const PEOPLE: [Person; 3] = [
    Person {
        username: "Zaphod.Beeblebrox",
        email: "Zaphod@heart-of-gold.test",
        full_name: "Zaphod Beeblebrox",
        address: "203.0.113.42",
    },
    Person {
        username: "trillian77",
        email: "tricia@mcmillan.test",
        full_name: "Tricia Mc'Millan",
        address: "2001:db8:42::77",
    },
    Person {
        username: "slartibartfast",
        email: "fjorde@magrathea.test",
        full_name: "Slartibartfast, of Magrathea\\tricks",
        address: "198.51.100.142",
    },
];
/// A database role.
const OPERATOR: &str = "lunkwill_fook";
const EXTERNAL_ID: &str = "dolphin|so-long";
const AGENT: &str = "Sirius-Cybernetics/42.0 (Happy Vertical)";

/// A service's database after some time of use. People registered, logged in three times, changed something and logged
/// out; an operator disabled one of them; and someone with a database role recorded a user's id in another system, as
/// an import does.
async fn lived_in() -> App {
    let app = App::new().await;
    for person in &PEOPLE {
        let body = json!({
            "username": person.username, "email": person.email, "full_name": person.full_name, "password": PASSWORD,
        });
        app.post("/users").peer(person.address).json(&body).send().await.expect(201);
        for _ in 0..2 {
            let body = json!({ "username": person.email, "password": PASSWORD });
            let login = app.post("/users/login").peer(person.address).header("user-agent", AGENT).json(&body);
            let login = login.header("x-request-id", "asked-by-marvin").send().await.expect(200);
            app.get("/users/me").bearer(&login).send().await.expect(200);
            app.clock.advance(time::Duration::seconds(1));
        }
        let login = app.post("/users/login").peer(person.address).json(&json!({
            "username": person.username, "password": PASSWORD,
        }));
        let login = login.send().await.expect(200);
        let change = json!({ "full_name": format!("{} II", person.full_name) });
        app.patch("/users/me").bearer(&login).json(&change).send().await.expect(200);
        app.post("/users/logout").bearer(&login).send().await.expect(204);
    }
    let home = Home::new();
    let disable = home.gatepass(&["user", "disable", PEOPLE[2].username]).envs(&QUICK);
    let disable = disable.env("DB_SOURCE", &app.database_url).env("TOKEN_SYMMETRIC_KEY", KEY);
    disable.env("USER", "arthur-dent").run().await.expect(0);
    static ROLE: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    let role =
        format!("CREATE ROLE {OPERATOR} LOGIN; GRANT pg_read_all_data, pg_write_all_data TO {OPERATOR}");
    ROLE.get_or_init(|| admin(&role)).await;
    let name = text(&app.database_url, "SELECT current_database()::text").await;
    admin(&format!(r#"GRANT CONNECT ON DATABASE "{name}" TO {OPERATOR}"#)).await;
    let found =
        format!("UPDATE users SET external_id = '{EXTERNAL_ID}' WHERE username = '{}'", PEOPLE[1].username);
    admin_of(&as_role(&app.database_url, OPERATOR), &found).await;
    app
}

/// Rows that masking deletes, with text in them that must not be found.
const SECRETS_OF_THE_SERVICE: &str = "
    INSERT INTO clients (id, name, secret_hash, created_at)
        SELECT ('00000000-0000-7000-8000-00000000000' || n)::uuid, 'magrathea-' || n, sha256(n::text::bytea), now()
        FROM generate_series(1, 5) AS n;
    INSERT INTO imports (
        source_hash, source_name, created, updated, unchanged, rejected, rejects_bytes, started_at, updated_at
    ) SELECT sha256(n::text::bytea), '/home/magrathea/' || n, n, n, n, n, n, now(), now() FROM generate_series(1, 5) AS n;
    INSERT INTO login_attempts (key, free_at, expires_at)
        SELECT decode(md5(n::text), 'hex'), now(), now() FROM generate_series(1, 5) AS n;
    INSERT INTO revocations (session_id, expires_at)
        SELECT ('00000000-0000-7000-8000-00000000000' || n)::uuid, now() FROM generate_series(1, 5) AS n;
    INSERT INTO signing_keys (
        id, format, public_key, wrapped_key, wrapped_by, token_seconds, published_at, activated_at
    ) SELECT repeat('x', 42) || n, (ARRAY['jwt:EdDSA', 'jwt:ES256', 'jwt:RS256'])[n], 'magrathea-' || n,
        sha256(n::text::bytea), 'k4.lid.' || repeat('x', 43) || n, 60, now(), now() FROM generate_series(1, 3) AS n;
";

/// What must not be found, in any letter case, whole or in part.
async fn secrets(url: &str) -> Vec<String> {
    let mut all = vec![
        "beeblebrox".into(),
        "heart-of-gold".into(),
        "mcmillan".into(),
        "mc'millan".into(),
        "magrathea".into(),
        "sirius".into(),
        "arthur".into(),
        "marvin".into(),
        "lunkwill".into(),
        "dolphin".into(),
    ];
    for person in &PEOPLE {
        all.extend([person.username, person.email, person.full_name, person.address].map(str::to_lowercase));
    }
    // The database's own secrets: hashes and salts.
    all.extend(rows_of(url, "SELECT password_hash FROM users").await);
    all.extend(rows_of(url, "SELECT encode(refresh_salt, 'hex') FROM sessions").await);
    all.extend(rows_of(url, "SELECT salt::text FROM history_personal").await);
    all.extend(
        rows_of(url, "SELECT encode(personal_hash, 'hex') FROM history WHERE personal_hash IS NOT NULL")
            .await,
    );
    all
}

async fn rows_of(url: &str, sql: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(&mut connect(url).await).await.unwrap()
}

/// A dump of a database.
fn dumped(url: &str) -> String {
    let output = postgres_program("pg_dump", url).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn find(secrets: &[String], text: &str, place: &str) {
    let text = text.to_lowercase();
    for secret in secrets {
        assert!(!text.contains(secret.as_str()), "{secret} is in {place}");
    }
}

/// A role that can only read, as in docs/devdata.md.
async fn sampler(url: &str) -> String {
    static ROLE: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    ROLE.get_or_init(|| {
        admin("CREATE ROLE gatepass_sampler LOGIN; GRANT pg_read_all_data TO gatepass_sampler")
    })
    .await;
    let name = text(url, "SELECT current_database()::text").await;
    admin(&format!(r#"GRANT CONNECT ON DATABASE "{name}" TO gatepass_sampler"#)).await;
    as_role(url, "gatepass_sampler")
}

/// For each table in a sample, how many rows belong to users who meet the condition.
async fn counts(url: &str, condition: &str) -> Vec<i64> {
    let mut counts = Vec::new();
    for (table, column) in
        [("users", "id"), ("sessions", "user_id"), ("history", "user_id"), ("history_personal", "user_id")]
    {
        let sql = format!(
            "SELECT count(*) FROM {table} WHERE {column} IN (SELECT id FROM users WHERE {condition})"
        );
        counts.push(number(url, &sql).await);
    }
    counts
}

/// Replaces something in a sample's file, and its checksum in the manifest, as if it had been written that way.
fn edit_sample(directory: &Path, name: &str, old: &str, new: &str) {
    let sha256 = |text: &str| {
        let digest = digest::digest(&digest::SHA256, text.as_bytes());
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    let (before, manifest) = (read(name), read("manifest.json"));
    let after = before.replace(old, new);
    assert_ne!(before, after);
    fs::write(directory.join(name), &after).unwrap();
    fs::write(directory.join("manifest.json"), manifest.replace(&sha256(&before), &sha256(&after))).unwrap();
}

#[tokio::test]
async fn a_sample_is_complete_holds_no_unmasked_value_and_can_be_loaded() {
    let app = lived_in().await;
    let home = Home::new();
    let directory = home.path("sample");
    let from = sampler(&app.database_url).await;
    let args = ["devdata", "sample", "--from", &from, "--users", "100", directory.to_str().unwrap()];
    home.gatepass(&args).envs(&QUICK).run().await.expect(0);

    let secrets = secrets(&app.database_url).await;
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    for file in fs::read_dir(&directory).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{path:?}");
        find(&secrets, &fs::read_to_string(&path).unwrap(), path.to_str().unwrap());
    }

    // pg_dump 17 writes this, whatever the server's version.
    let line = "SET lock_timeout = 0;\n";
    for name in ["schema.sql", "constraints.sql"] {
        edit_sample(&directory, name, line, &format!("{line}SET transaction_timeout = 0;\n"));
    }
    let copy = empty_database().await;
    let load = ["devdata", "load", directory.to_str().unwrap()];
    gatepass(&home, &copy, &load).await.expect(0);
    assert_eq!(counts(&app.database_url, "true").await, counts(&copy, "true").await);
    // The same rows, and the same keys between them.
    for sql in [
        "SELECT id, roles, disabled, created_at FROM users ORDER BY id",
        "SELECT id, user_id, refresh_generation, ended_at, end_reason, expires_at FROM sessions ORDER BY id",
        "SELECT id, table_name, operation, row_id, user_id, changed_at FROM history WHERE user_id IS NOT NULL ORDER BY id",
        "SELECT history_id, user_id FROM history_personal ORDER BY 1",
        // Without parentheses: a constraint that has been dumped and loaded has different ones.
        "SELECT conrelid::regclass::text, conname, translate(pg_get_constraintdef(oid), '()', ''), convalidated
         FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2",
        "SELECT tgrelid::regclass::text, tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2",
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
        "SELECT version, checksum FROM _sqlx_migrations ORDER BY 1",
    ] {
        assert_eq!(rows(&app.database_url, sql).await, rows(&copy, sql).await, "{sql}");
    }
    // The same person has the same mask in the table and in the history.
    let joined = "SELECT count(*) FROM history_personal JOIN users ON users.id = user_id
        WHERE history_personal.changed_data -> 'after' ->> 'username' = username";
    assert_eq!(number(&copy, joined).await, 3);
    find(&secrets, &dumped(&copy), "the loaded database");

    // The service accepts it: the schema is current, the history continues, and everyone has the one password.
    gatepass(&home, &copy, &["history", "seal"]).await.expect(0);
    let verified = gatepass(&home, &copy, &["history", "verify", "--json"]).await.json();
    assert_eq!(verified["rows"], number(&copy, "SELECT count(*) FROM history").await);
    let service = home.serve(&[("DB_SOURCE", &copy), ("TOKEN_SYMMETRIC_KEY", KEY)]).await;
    let body = json!({ "username": username_of(&copy, "NOT disabled").await, "password": MADE_UP });
    assert_eq!(service.post("/users/login", &body).await.0, 200);
    service.stop(Signal::TERM).await.expect(0);

    gatepass(&home, &copy, &load).await.fails(1, &["not empty"]);
    // A sample that is not as it was written is not loaded.
    let users = directory.join("users.copy");
    fs::write(&users, fs::read_to_string(&users).unwrap().replace("example.com", "example.org")).unwrap();
    let empty = empty_database().await;
    gatepass(&home, &empty, &load).await.fails(1, &["users.copy", "damaged"]);
    assert_eq!(number(&empty, "SELECT count(*) FROM pg_class WHERE relname = 'users'").await, 0);
}

#[tokio::test]
async fn a_sample_has_the_requested_users_and_the_same_key_masks_them_alike() {
    let home = Home::new();
    let source = database().await;
    gatepass(&home, &source, &SEED).await.expect(0);
    let from = sampler(&source).await;
    let key = home.write("key", "0123456789abcdef0123456789abcdef\n");
    let sample = async |name: &str, more: &[&str]| {
        let args = [&["devdata", "sample", "--from", &from][..], more, &[name]].concat();
        home.gatepass(&args).envs(&QUICK).run().await.expect(0);
        fs::read_to_string(home.path(name).join("users.copy")).unwrap()
    };
    let some = sample("some", &["--users", "40", "--mask-key", &key]).await;
    assert_eq!(some.lines().count(), 40);
    assert_eq!(some, sample("again", &["--users", "40", "--mask-key", &key]).await);
    assert_ne!(some, sample("other", &["--users", "40"]).await);
    let condition = "disabled";
    let disabled = sample("disabled", &["--where", condition]).await;
    // The newest pg_dump is used, even one that was installed without a server.
    fs::create_dir(home.path("client")).unwrap();
    let client = "#!/bin/sh\ntest \"$1\" = --version && echo 'pg_dump (PostgreSQL) 99.1' || { echo I am 99 >&2; exit 1; }";
    make_program(&home.path("client/pg_dump"), client.as_bytes());
    let path = format!("{}:{}", home.path("client").display(), env::var("PATH").unwrap());
    let args = ["devdata", "sample", "--from", &from, "--users", "1", "by-99"];
    home.gatepass(&args).envs(&QUICK).env("PATH", &path).run().await.fails(1, &["pg_dump failed: I am 99"]);
    let copy = empty_database().await;
    // A role that owns the database and nothing else, and so may not analyse Postgres's own tables.
    let name = text(&copy, "SELECT current_database()::text").await;
    admin(&format!(r#"CREATE ROLE "{name}_owner" LOGIN; ALTER DATABASE "{name}" OWNER TO "{name}_owner""#))
        .await;
    let owner = as_role(&copy, &format!("{name}_owner"));
    let loaded = gatepass(&home, &owner, &["devdata", "load", "disabled"]).await.expect(0);
    assert!(!loaded.stderr.contains("skipping"), "{}", loaded.stderr);
    let analysed = "SELECT count(*) FROM pg_stats WHERE tablename = 'users' AND attname = 'id'";
    assert_eq!(number(&copy, analysed).await, 1);
    assert_eq!(counts(&source, condition).await, counts(&copy, "true").await);
    assert_eq!(disabled.lines().count() as i64, number(&copy, "SELECT count(*) FROM users").await);

    let bad = async |from: &str, condition: &str, parts: &[&str]| {
        let args = ["devdata", "sample", "--from", from, "--where", condition, "bad"];
        home.gatepass(&args).envs(&QUICK).run().await.fails(1, parts);
    };
    bad(&from, "true); DELETE FROM users; --", &["syntax error"]).await;
    bad(&from, "username = 'nobody'", &["no user matches"]).await;
    // An error about a row would quote the row.
    admin_of(&source, "UPDATE users SET username = 'clearboss' WHERE username = 'admin'").await;
    for (condition, code) in [("username::integer = 1", "22P02"), ("username::regclass IS NOT NULL", "42P01")]
    {
        let condition = format!("CASE username WHEN 'clearboss' THEN {condition} END");
        let args = ["devdata", "sample", "--from", &from, "--where", &condition, "bad"];
        let ended = home.gatepass(&args).envs(&QUICK).run().await;
        let told = ended.fails(1, &[&format!("SQLSTATE {code}")]).stderr;
        assert!(!told.contains("clearboss"), "{told}");
    }
    bad(&from, "set_config('transaction_read_only', 'off', false) = 'off' AND false", &[]).await;
    for role in ["gatepass_app", "gatepass_owner"] {
        bad(&as_role(&source, role), "true", &[role, "can write"]).await;
    }
    bad(&source, "true", &["can write"]).await;
    // A column that gatepass does not know.
    admin_of(&source, "ALTER TABLE users ADD COLUMN shoe_size integer").await;
    bad(&from, "true", &["public.users.shoe_size"]).await;
}

async fn admin_of(url: &str, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connect(url).await).await.unwrap();
}

#[tokio::test]
async fn a_copy_is_masked_in_place_and_nothing_is_left_in_its_files() {
    let app = lived_in().await;
    admin_of(&app.database_url, SECRETS_OF_THE_SERVICE).await;
    let secrets = secrets(&app.database_url).await;
    for known in [
        format!("SELECT count(*) FROM users WHERE external_id = '{EXTERNAL_ID}'"),
        format!(
            "SELECT count(*) FROM history_personal WHERE changed_data -> 'after' ->> 'external_id' = '{EXTERNAL_ID}'"
        ),
        format!("SELECT count(*) FROM history WHERE database_user = '{OPERATOR}'"),
    ] {
        assert_eq!(number(&app.database_url, &known).await, 1, "{known}");
    }
    let before = counts(&app.database_url, "true").await;
    let home = Home::new();
    gatepass(&home, &app.database_url, &["history", "seal"]).await.expect(0);
    // A copy, like a restored snapshot.
    let name = text(&app.database_url, "SELECT current_database()::text").await;
    let others =
        format!("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'");
    admin(&others).await;
    admin(&format!(r#"CREATE DATABASE "{name}_copy" TEMPLATE "{name}""#)).await;
    let options: PgConnectOptions = app.database_url.parse().unwrap();
    let copy = options.database(&format!("{name}_copy")).to_url_lossy().to_string();
    let mask = ["devdata", "mask", "--only", "*_copy", "--this-is-a-copy"];

    gatepass(&home, &copy, &["devdata", "mask", "--only", "*_copy"]).await.fails(2, &["--this-is-a-copy"]);
    gatepass(&home, &copy, &["devdata", "mask", "--only", "*", "--this-is-a-copy"])
        .await
        .fails(2, &["three"]);
    gatepass(&home, &app.database_url, &mask).await.fails(1, &["--only"]);
    gatepass(&home, &copy, &mask).await.fails(1, &["devdata.copy"]);
    admin_of(&copy, "ANALYZE").await;
    let quoted =
        rows(&copy, "SELECT tablename FROM pg_stats WHERE histogram_bounds::text LIKE '%magrathea%'").await;
    assert!(
        ["(clients)", "(imports)", "(signing_keys)"]
            .iter()
            .all(|table| quoted.iter().any(|row| row == table))
    );
    let marker = "CREATE SCHEMA devdata; CREATE TABLE devdata.copy (place text)";
    admin_of(&copy, &format!("{marker}; INSERT INTO devdata.copy VALUES ('elsewhere:5432/{name}_copy')"))
        .await;
    gatepass(&home, &copy, &mask).await.fails(1, &["devdata.copy"]);
    let place = gatepass(&home, &copy, &mask).await.stderr;
    let place = place.split("says that ").nth(1).unwrap().split(" is a copy").next().unwrap();
    admin_of(&copy, &format!("INSERT INTO devdata.copy VALUES ('{place}')")).await;
    // The owner cannot see what another role's connection does, but it counts all the same.
    let copy_of_owner = as_role(&copy, "gatepass_owner");
    admin_of(
        &copy,
        "GRANT USAGE ON SCHEMA devdata TO gatepass_owner; GRANT SELECT ON devdata.copy TO gatepass_owner",
    )
    .await;
    nobody_is_connected(&copy).await;
    let somebody = connect(&as_role(&copy, "gatepass_app")).await;
    gatepass(&home, &copy_of_owner, &mask).await.fails(1, &["1 other session(s)"]);
    somebody.close().await.unwrap();
    let prepared = format!("forgotten-{name}");
    admin_of(&copy, &format!("BEGIN; SELECT txid_current(); PREPARE TRANSACTION '{prepared}'")).await;
    nobody_is_connected(&copy).await;
    gatepass(&home, &copy, &mask).await.fails(1, &[&prepared, "ROLLBACK PREPARED"]);
    admin_of(&copy, &format!("ROLLBACK PREPARED '{prepared}'")).await;
    let production = home.gatepass(&mask).env("ENVIRONMENT", "production").env("DB_SOURCE", &copy);
    production.env("TOKEN_SYMMETRIC_KEY", KEY).run().await.fails(1, &["ENVIRONMENT=production"]);

    nobody_is_connected(&copy).await;
    gatepass(&home, &copy_of_owner, &mask).await.expect(0);
    assert_eq!(before, counts(&copy, "true").await);
    let dump = dumped(&copy);
    assert!(dump.contains("user_"), "{dump}");
    find(&secrets, &dump, "the masked database");
    // The statistics that Postgres keeps on values.
    let statistics = rows(&copy, "SELECT * FROM pg_stats WHERE schemaname = 'public'").await;
    find(&secrets, &statistics.join("\n"), "the statistics");
    // No emptied table keeps a single value there. The query looks at every table, so a later one is not forgotten.
    let left = "SELECT tablename, attname FROM pg_stats
            JOIN pg_class ON relname = tablename AND relnamespace = 'public'::regnamespace
        WHERE schemaname = 'public' AND reltuples < 1
            AND (histogram_bounds IS NOT NULL OR most_common_vals IS NOT NULL OR most_common_elems IS NOT NULL)";
    assert_eq!(rows(&copy, left).await, [""; 0]);
    // The contents of the files, dead rows included.
    admin_of(&copy, "CHECKPOINT").await;
    let files = "SELECT relname || ': ' || encode(pg_read_binary_file(pg_relation_filepath(oid)), 'escape')
        FROM pg_class WHERE relkind IN ('r', 'i', 't') AND relnamespace = 'public'::regnamespace
            AND pg_relation_filepath(oid) IS NOT NULL";
    for file in rows_of(&copy, files).await {
        let (relation, bytes) = file.split_once(": ").unwrap();
        find(&secrets, bytes, &format!("the file of {relation}"));
    }
    gatepass(&home, &copy, &["history", "seal"]).await.expect(0);
    let verified = gatepass(&home, &copy, &["history", "verify", "--json"]).await.json();
    assert_eq!(verified["rows"], number(&copy, "SELECT count(*) FROM history").await);
    // The original is as it was.
    let untouched = format!("SELECT count(*) FROM users WHERE username = '{}'", PEOPLE[0].username);
    assert_eq!(number(&app.database_url, &untouched).await, 1);
}
