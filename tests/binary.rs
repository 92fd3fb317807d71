//! The real binary as a supervisor sees it: how it starts, what it refuses to start with, how it stops, and that any
//! number of replicas may start at once.

use std::{fs, net::TcpListener, time::Instant};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Mutex,
};

use crate::{
    app::{KEY, PASSWORD, database, empty_database},
    process::{ANY_PORT, Home, Port, Process, QUICK, Signal, until},
};

/// A key that production accepts; [`KEY`] is too regular for it.
const PRODUCTION_KEY: &str = "4f1c9e0b7a2d86355be0c83f19d7a64e";

/// The result of a `SELECT count(*)`.
async fn count(url: &str, sql: &'static str) -> i64 {
    let mut conn = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut conn).await.unwrap()
}

async fn execute(url: &str, sql: &'static str) {
    let mut conn = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut conn).await.unwrap();
}

async fn register(service: &Process, username: &str) {
    let body = json!({
        "username": username, "email": format!("{username}@example.com"), "password": PASSWORD,
    });
    let (status, body) = service.post("/users", &body).await;
    assert_eq!(status, 201, "{body}");
}

#[tokio::test]
async fn development_prints_the_address_and_commands_that_work() {
    let home = Home::new();
    let service = home.serve(&[("DB_SOURCE", &database().await), ("TOKEN_SYMMETRIC_KEY", KEY)]).await;
    assert_eq!(service.get("/healthz").await, (200, json!({"status": "ok"})));
    assert_eq!(service.get("/readyz").await, (200, json!({"status": "ready"})));

    let welcome = service.stdout();
    assert!(welcome.contains(&format!("gatepass is ready at {} ", service.url("/docs"))), "{welcome}");
    assert!(!welcome.contains("other machines"), "{welcome}");
    // Runs the commands that the welcome suggests.
    let mut token = String::new();
    for (path, status) in [("/users", 201), ("/users/login", 200)] {
        let (_, command) = welcome.split_once(&format!("curl {} ", service.url(path))).unwrap();
        let body: Value = serde_json::from_str(command.split('\'').nth(3).unwrap()).unwrap();
        let (answered, answer) = service.post(path, &body).await;
        assert_eq!(answered, status, "{answer}");
        token = answer["access_token"].as_str().unwrap_or_default().to_owned();
    }
    assert!(welcome.contains(&format!("curl {} ", service.url("/users/me"))), "{welcome}");
    assert_eq!(service.get_as(&token, "/users/me").await.1["username"], "alice");

    let ended = service.stop(Signal::TERM).await.expect(0);
    assert!(!ended.stderr.contains(KEY) && !ended.stderr.contains(PASSWORD), "{}", ended.stderr);
    assert!(!home.path(".gatepass").exists(), "nothing is made that the settings name");
}

#[tokio::test]
async fn development_says_how_to_create_a_user_where_registration_is_closed() {
    let home = Home::new();
    let settings =
        [("DB_SOURCE", &*database().await), ("TOKEN_SYMMETRIC_KEY", KEY), ("REGISTRATION", "closed")];
    let service = home.serve(&settings).await;
    let welcome = service.stdout();
    assert!(!welcome.contains(&format!("curl {} ", service.url("/users"))), "{welcome}");
    let (_, command) = welcome.split_once("\n  gatepass ").unwrap();
    let command = format!("{} --password-stdin", command.lines().next().unwrap());
    let command: Vec<_> = command.split(' ').collect();
    home.gatepass(&command).envs(&settings).stdin(PASSWORD).run().await.expect(0);
    let login = json!({ "username": "alice", "password": PASSWORD });
    assert_eq!(service.post("/users/login", &login).await.0, 200);
    service.stop(Signal::TERM).await.expect(0);
}

#[tokio::test]
async fn development_says_that_other_machines_can_reach_it() {
    let home = Home::new();
    let settings = [("DB_SOURCE", &*database().await), ("HTTP_SERVER_ADDRESS", "0.0.0.0:0")];
    let service = home.serve(&settings).await;
    let address = service.address();
    let (_, port) = address.rsplit_once(':').unwrap();
    let welcome = service.stdout();
    let narrower = format!("other machines can reach it, too; HTTP_SERVER_ADDRESS=127.0.0.1:{port}");
    for said in [&*format!("http://localhost:{port}/docs "), &*narrower] {
        assert!(welcome.contains(said), "{said:?} is not in {welcome}");
    }
    service.stop(Signal::TERM).await.expect(0);
}

#[tokio::test]
async fn a_signal_to_stop_lets_a_login_in_flight_finish() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let home = Home::new();
        let url = database().await;
        let mut service = home.serve(&[("DB_SOURCE", &url), ("TOKEN_SYMMETRIC_KEY", KEY)]).await;
        // Leaves an idle connection behind, which must not delay the stop either.
        register(&service, "alice").await;

        let mut holder = PgConnection::connect(&url).await.unwrap();
        let mut hold = holder.begin().await.unwrap();
        sqlx::raw_sql("LOCK TABLE users").execute(&mut *hold).await.unwrap();
        let body = json!({"username": "alice", "password": PASSWORD});
        let login = tokio::spawn(reqwest::Client::new().post(service.url("/users/login")).json(&body).send());
        until("the login waits for the table", async || {
            let waiting = "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = 'gatepass' AND wait_event_type = 'Lock'";
            count(&url, waiting).await > 0
        })
        .await;

        service.signal(signal);
        service.logged(&format!("{name}: finishing requests in flight")).await;
        hold.rollback().await.unwrap();
        let answer = login.await.unwrap().unwrap();
        assert_eq!(answer.status(), 200, "{name}");
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["user"]["username"], "alice", "{name}");
        let ended = service.end().await.expect(0);
        assert!(ended.stderr.contains("stopped"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("cut off"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn a_stop_takes_leave_of_the_database_on_every_connection() {
    let home = Home::new();
    let url = database().await;
    let settings = [
        ("DB_SOURCE", &*url),
        ("TOKEN_SYMMETRIC_KEY", KEY),
        ("TOKEN_FORMAT", "v4.public"),
        // No connection that waits for notifications: that one is cut off.
        ("DB_POOLER", "transaction"),
        ("MIGRATION_DB_SOURCE", &url),
    ];
    let service = home.serve(&settings).await;
    register(&service, "alice").await;
    // One connection for all that is asked here: each that is dropped counts as abandoned, too.
    let observer = Mutex::new(PgConnection::connect(&url).await.unwrap());
    let ask = async |sql: &'static str| {
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut *observer.lock().await).await.unwrap()
    };
    let connections = "SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'gatepass'";
    let abandoned = "SELECT sessions_abandoned FROM pg_stat_database WHERE datname = current_database()";
    until("every pool has a connection", async || ask(connections).await >= 4).await;
    let before = ask(abandoned).await;
    service.stop(Signal::TERM).await.expect(0);
    until("no connection is left", async || ask(connections).await == 0).await;
    assert_eq!(ask(abandoned).await, before);
}

#[tokio::test]
async fn a_login_whose_password_is_being_hashed_at_the_signal_is_answered() {
    let home = Home::new();
    let url = database().await;
    let costly = [("ARGON2_MEMORY_KIB", "19456"), ("ARGON2_ITERATIONS", "4"), ("PASSWORD_HASH_THREADS", "1")];
    let service =
        home.serve(&[&costly[..], &[("DB_SOURCE", &url), ("TOKEN_SYMMETRIC_KEY", KEY)]].concat()).await;
    register(&service, "alice").await;
    let body = json!({"username": "alice", "password": PASSWORD});
    let login = tokio::spawn(reqwest::Client::new().post(service.url("/users/login")).json(&body).send());
    // Once the user has been looked up and the connection is idle again, the password is being hashed. (If this machine
    // is slow to look, the hash may be done already.)
    until("the user has been looked up", async || {
        let looked_up = "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'gatepass' AND state = 'idle'
               AND (query LIKE 'SELECT%password_hash%' OR query LIKE '%INTO sessions%')";
        count(&url, looked_up).await > 0
    })
    .await;
    service.signal(Signal::TERM);
    assert_eq!(login.await.unwrap().unwrap().status(), 200);
    service.end().await.expect(0);
}

#[tokio::test]
async fn a_taken_port_ends_the_start_at_once() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = home.gatepass(&["serve"]).env("HTTP_SERVER_ADDRESS", &address).run().await;
    run.fails(1, &[&format!("HTTP_SERVER_ADDRESS={address}: cannot listen there")]);
    assert!(!home.path(".gatepass").exists(), "no database of our own was made first");
}

#[tokio::test]
async fn a_signal_calls_off_the_wait_for_a_database() {
    // Connections to this port are refused.
    let reserved = Port::reserve();
    let url = format!("postgres://gatepass:hunter2@{}/gatepass", reserved.address());
    for signal in [Signal::TERM, Signal::INT] {
        let home = Home::new();
        let mut service = home.start(&[("DB_SOURCE", &url), ("TOKEN_SYMMETRIC_KEY", KEY)]);
        service.logged("waiting for the database, for up to 30 s").await;
        let before = Instant::now();
        let ended = service.stop(signal).await.expect(0);
        assert!(before.elapsed().as_secs() < 5, "it took {:?}", before.elapsed());
        assert!(ended.stderr.contains("start cancelled"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn a_database_that_refuses_us_ends_the_start_at_once() {
    let somewhere = database().await;
    let (server, _) = somewhere.split_once("/test_").unwrap();
    let (_, query) = somewhere.split_once('?').unwrap();
    let no_database = format!("{server}/no_such_database?{query}");
    let no_user = somewhere.replacen("postgres://", "postgres://nobody_here:hunter2@", 1);
    let no_user = match no_user.split_once("@postgres@") {
        // The URL already had a user, which goes.
        Some((ours, rest)) => format!("{ours}@{rest}"),
        None => no_user,
    };
    for (url, hint) in [
        (no_database, "it does not exist; create it (`createdb`) or correct DB_SOURCE"),
        (no_user, "check user and password in DB_SOURCE"),
        (server_that_knows_another_password().await, "check user and password in DB_SOURCE"),
    ] {
        let home = Home::new();
        let service = home.start(&[("DB_SOURCE", &url), ("TOKEN_SYMMETRIC_KEY", KEY)]);
        let before = Instant::now();
        let ended = service.end().await.fails(1, &["cannot be used", hint]);
        assert!(before.elapsed().as_secs() < 10, "{hint}: it took {:?}", before.elapsed());
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}

/// The URL of a server that refuses the password in it as Postgres refuses a wrong one. (Our own trusts everybody.)
async fn server_that_knows_another_password() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            // StartupMessage, then AuthenticationCleartextPassword.
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(b"R\0\0\0\x08\0\0\0\x03").await;
            // PasswordMessage, then ErrorResponse.
            let _ = stream.read(&mut buffer).await;
            let fields = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user \"gatepass\"\0\0";
            let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
            let _ = stream.write_all(&[b"E", &length[..], fields].concat()).await;
        }
    });
    format!("postgres://gatepass:hunter2@{address}/gatepass?sslmode=disable")
}

#[tokio::test]
async fn production_refuses_to_start_with_unsafe_settings_and_lists_them_all() {
    let weak = "hunter2-hunter2-hunter2-hunter2-";
    let url = database().await;
    for (environment, expected) in [
        (&[][..], &["2 problems", "DB_SOURCE (not set)", "TOKEN_SYMMETRIC_KEY (not set)"][..]),
        (
            &[("ALLOWED_ORIGINS", "*"), ("TOKEN_SYMMETRIC_KEY", weak)],
            &[
                "3 problems",
                "DB_SOURCE (not set)",
                "TOKEN_SYMMETRIC_KEY (environment)",
                "ALLOWED_ORIGINS (environment)",
            ],
        ),
        (
            &[("DB_SOURCE", &*url), ("TOKEN_SYMMETRIC_KEY", "12345678901234567890123456789012")],
            &["a problem", "TOKEN_SYMMETRIC_KEY (environment)", "everybody knows"],
        ),
        (
            &[("DB_SOURCE", &*url), ("TOKEN_SYMMETRIC_KEY", PRODUCTION_KEY), ("ALLOWED_ORIGINS", "*")],
            &["a problem", "ALLOWED_ORIGINS (environment)"],
        ),
        (
            &[
                ("DB_SOURCE", "postgres://u:hunter2/@h/d"),
                ("TOKEN_SYMMETRIC_KEY", PRODUCTION_KEY),
                ("ARGON2_MEMORY_KIB", "8"),
            ],
            &["2 problems", "DB_SOURCE (environment)", "ARGON2_MEMORY_KIB"],
        ),
    ] {
        let home = Home::new();
        let run = home.gatepass(&["serve"]).env("ENVIRONMENT", "production").envs(environment).run().await;
        let ended = run.fails(1, expected);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
        assert_eq!(fs::read_dir(home.path("")).unwrap().count(), 0, "nothing was begun");
    }
}

#[tokio::test]
async fn production_reads_its_secrets_from_files_and_generates_none() {
    let home = Home::new();
    let db = home.write("db", &format!("{}\n", empty_database().await));
    let key = home.write("key", &format!("{PRODUCTION_KEY}\n"));
    let environment = [
        ("ENVIRONMENT", "production"),
        ("HTTP_SERVER_ADDRESS", "127.0.0.1:0"),
        ("OPS_SERVER_ADDRESS", "127.0.0.1:0"),
        ("DB_SOURCE_FILE", &*db),
        ("TOKEN_SYMMETRIC_KEY_FILE", &*key),
    ];
    let service = home.gatepass(&["serve"]).envs(&environment).start().serving().await;
    register(&service, "alice").await;
    let body = json!({"username": "alice", "password": PASSWORD});
    let (status, login) = service.post("/users/login", &body).await;
    assert_eq!(status, 200, "{login}");
    // The token was made with that key: another service that has the key accepts it.
    let other = home.serve(&[("DB_SOURCE_FILE", &db), ("TOKEN_SYMMETRIC_KEY", PRODUCTION_KEY)]).await;
    let token = login["access_token"].as_str().unwrap();
    assert_eq!(other.get_as(token, "/users/me").await.0, 200);

    let ended = service.stop(Signal::TERM).await.expect(0);
    assert_eq!(ended.stdout, "", "no welcome where nobody reads it");
    for line in ended.stderr.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
    assert!(!ended.stderr.contains(PRODUCTION_KEY), "{}", ended.stderr);
    assert!(!home.path(".gatepass").exists());

    let run = home.gatepass(&["serve"]).envs(&environment).env("DB_SOURCE", "postgres://u:hunter2@h/d").run();
    let ended = run.await.fails(1, &["DB_SOURCE (", "both this and DB_SOURCE_FILE ("]);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
}

#[tokio::test]
async fn replicas_that_start_at_once_migrate_once() {
    for replicas in [2, 5] {
        let url = empty_database().await;
        let homes: Vec<_> = (0..replicas).map(|_| Home::new()).collect();
        let started: Vec<_> = homes
            .iter()
            .map(|home| home.start(&[("DB_SOURCE", &url), ("TOKEN_SYMMETRIC_KEY", KEY)]))
            .collect();
        let mut services = Vec::new();
        for service in started {
            services.push(service.serving().await);
        }
        for service in &services {
            assert_eq!(service.get("/readyz").await.0, 200);
        }
        let migrations = count(&url, "SELECT count(*) FROM _sqlx_migrations").await;
        let mut applied = Vec::new();
        for service in services {
            let ended = service.stop(Signal::TERM).await.expect(0);
            assert!(!ended.stderr.contains("skipping"), "{}", ended.stderr);
            let lines = ended.stderr.lines().filter_map(|line| line.split_once("applied migration "));
            applied.extend(lines.map(|(_, migration)| migration.to_owned()));
        }
        let times = applied.len();
        applied.sort();
        applied.dedup();
        assert_eq!((applied.len(), times), (migrations as usize, migrations as usize), "{applied:?}");
    }
}

#[tokio::test]
async fn a_release_starts_on_the_schema_of_the_next_so_that_an_update_can_be_undone() {
    let url = database().await;
    let tomorrow = r"INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                     VALUES (999999, 'from tomorrow', true, '\x00', 0)";
    execute(&url, tomorrow).await;
    let home = Home::new();
    let command = |args| home.gatepass(args).env("DB_SOURCE", &url).run();
    let environment = [("DB_SOURCE", &*url), ("TOKEN_SYMMETRIC_KEY", KEY)];
    for migrate in ["true", "false"] {
        let environment = [&environment[..], &[("MIGRATE_ON_START", migrate)]].concat();
        let service = home.serve(&environment).await;
        assert_eq!(service.get("/readyz").await.0, 200);
        let ended = service.stop(Signal::TERM).await.expect(0);
        assert!(ended.stderr.contains("at migration 999999, of a later release"), "{}", ended.stderr);
    }
    command(&["user", "list"]).await.expect(0);
    command(&["migrate", "up"]).await.fails(1, &["999999"]);
    command(&["migrate", "down"]).await.fails(1, &["999999"]);
    let status = command(&["migrate", "status"]).await.expect(0).stdout;
    let line = status.lines().last().unwrap();
    assert!(line.contains("999999  from tomorrow") && line.contains("UNKNOWN"), "{status}");

    // The schema says which releases it still serves; one that is too old does not start.
    let service = home.serve(&environment).await;
    let contract = "CREATE OR REPLACE FUNCTION oldest_schema_served() RETURNS bigint LANGUAGE sql AS 'SELECT 999998::bigint'";
    execute(&url, contract).await;
    let is_not_ready = async |why: &str| {
        let (status, body) = service.get("/readyz").await;
        assert_eq!((status, &body["reasons"]), (503, &json!([why])));
    };
    is_not_ready("schema: at migration 999999, for releases that know 999998: run a later release").await;
    let refused = ["serves releases that know migration 999998, which this one does not"];
    for migrate in ["true", "false"] {
        let environment = [&environment[..], &[("MIGRATE_ON_START", migrate)]].concat();
        home.start(&environment).end().await.fails(1, &refused);
    }
    command(&["db", "setup", "--share-roles"]).await.fails(1, &["999999"]);
    let doctor = command(&["doctor"]).await.expect(1).stdout;
    assert!(doctor.contains(refused[0]), "{doctor}");

    // Another release's schema is not ours to complete.
    execute(&url, "DELETE FROM _sqlx_migrations WHERE version = 1").await;
    is_not_ready("schema: at migration 999999 of another release, and some of this one's are missing").await;
    let refused = ["migration 999999, which this gatepass does not know", "a newer version has migrated"];
    home.start(&environment).end().await.fails(1, &refused);
    service.stop(Signal::TERM).await.expect(0);
}

#[tokio::test]
async fn a_migration_changed_after_it_was_applied_is_refused() {
    let url = database().await;
    execute(&url, r"UPDATE _sqlx_migrations SET checksum = '\x00' WHERE version = 1").await;
    let home = Home::new();
    let ended = home.start(&[("DB_SOURCE", &url), ("TOKEN_SYMMETRIC_KEY", KEY)]).end().await;
    ended.fails(1, &["migration 000001 was changed after it was applied"]);
    let status = home.gatepass(&["migrate", "status"]).env("DB_SOURCE", &url).run().await.expect(0).stdout;
    assert!(status.lines().next().unwrap().contains("CHANGED"), "{status}");
}

#[tokio::test]
async fn a_service_that_may_not_migrate_says_which_command_does() {
    let url = empty_database().await;
    let home = Home::new();
    let environment = [("DB_SOURCE", &*url), ("TOKEN_SYMMETRIC_KEY", KEY), ("MIGRATE_ON_START", "false")];
    home.start(&environment).end().await.fails(1, &["lacks", "`gatepass migrate up`"]);
    assert_eq!(count(&url, "SELECT count(*) FROM pg_class WHERE relname = 'users'").await, 0);
    home.gatepass(&["migrate", "up"]).env("DB_SOURCE", &url).run().await.expect(0);
    let service = home.serve(&environment).await;
    assert_eq!(service.get("/readyz").await.0, 200);
}

#[tokio::test]
async fn health_asks_the_service_at_its_address() {
    let home = Home::new();
    let url = database().await;
    let service = home.serve(&[("DB_SOURCE", &url), ("TOKEN_SYMMETRIC_KEY", KEY)]).await;
    let address = service.address();
    let port = address.rsplit(':').next().unwrap();
    let everywhere = format!("0.0.0.0:{port}");
    let health = |args: &[&str], address: &str| {
        home.gatepass(&[&["health"], args].concat()).env("HTTP_SERVER_ADDRESS", address).run()
    };
    assert_eq!(health(&[], &address).await.json()["status"], "ok");
    assert_eq!(health(&[], &everywhere).await.json()["status"], "ok");
    assert_eq!(health(&["--ready"], &address).await.json()["status"], "ready");
    assert_eq!(health(&["--ready", "--address", &address], "127.0.0.1:1").await.json()["status"], "ready");

    // Alive but not ready: a migration is pending.
    execute(&url, "DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)")
        .await;
    health(&[], &address).await.expect(0);
    health(&["--ready"], &address).await.fails(1, &["/readyz says 503", "pending"]);

    service.stop(Signal::TERM).await.expect(0);
    health(&[], &address).await.fails(1, &["does not answer"]);
    health(&["--ready"], &address).await.fails(1, &["does not answer"]);
}

/// As `nohup` starts it. Only on Linux can this be seen without `unsafe`.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_hangup_that_was_ignored_at_the_start_stays_ignored() {
    let (home, url) = (Home::new(), database().await);
    let service = home.shell("trap '' HUP; exec \"$0\" serve").envs(&ANY_PORT).envs(&QUICK);
    let service = service.env("DB_SOURCE", &url).env("TOKEN_SYMMETRIC_KEY", KEY).start().serving().await;
    service.signal(Signal::HUP);
    register(&service, "alice").await;
    let log = service.stop(Signal::TERM).await.expect(0).stderr;
    assert!(log.contains("SIGTERM: finishing") && !log.contains("SIGHUP"), "{log}");
}
