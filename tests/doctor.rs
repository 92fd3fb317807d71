//! `gatepass doctor` finds what is wrong: each test causes a fault, which is reported with what to do about it.
//! Findings about keys and the root key are tested in tests/key_commands.rs.

use std::{fs, os::unix::fs::PermissionsExt};

use gatepass::clock::Clock;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream, UnixStream},
};

use crate::{
    app::{App, KEY, PASSWORD, admin, as_role, database},
    certificate::{Authority, Issued, pem},
    not_tested::{are_root, cannot_be_tested},
    process::{ANY_PORT, Ended, Home, QUICK, Signal, until},
};

async fn doctor_says(home: &Home, args: &[&str], settings: &[(&str, &str)]) -> Ended {
    let ended = home.gatepass(args).env("TOKEN_SYMMETRIC_KEY", KEY).envs(settings).run().await;
    for output in [&ended.stdout, &ended.stderr] {
        assert!(!output.contains(KEY) && !output.contains("panicked"), "{output}");
    }
    ended
}

/// What `doctor` finds in `area`: the exit code, and each finding's level with its message and advice.
async fn findings(area: &str, settings: &[(&str, &str)]) -> (Option<i32>, Vec<(String, String)>) {
    let ended = doctor_says(&Home::new(), &["doctor", "--json"], settings).await;
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["ok"], ended.code == Some(0), "{report:#}");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = report["findings"].as_array().unwrap().iter().filter(|finding| finding["area"] == area);
    let all = all.map(|found| {
        (text(&found["level"]), format!("{} -> {}", text(&found["message"]), text(&found["advice"])))
    });
    (ended.code, all.collect())
}

/// Asserts the exit code, and that a finding of this level contains all of these parts.
async fn finds(area: &str, settings: &[(&str, &str)], code: i32, level: &str, parts: &[&str]) {
    let (ended, found) = findings(area, settings).await;
    assert_eq!(ended, Some(code), "{found:#?}");
    let is_there = found.iter().any(|(is, text)| is == level && parts.iter().all(|part| text.contains(part)));
    assert!(is_there, "no {level} of {area} with {parts:?} in {found:#?}");
}

async fn execute(url: &str, statement: &str) {
    let mut conn = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

fn now() -> OffsetDateTime {
    Clock::system().now()
}

#[tokio::test]
async fn each_check_has_a_line_and_the_exit_code_tells_of_problems() {
    let url = as_role(&database().await, "gatepass_app");
    let settings = [("DB_SOURCE", &*url)];
    let home = Home::new();
    let ended = doctor_says(&home, &["doctor"], &settings).await.expect(0);
    assert_eq!(ended.stderr, "");
    let areas: Vec<_> = ended
        .stdout
        .lines()
        .map(|line| {
            let area = line.split_whitespace().nth(1).unwrap();
            // Where there is something to do, not all is well. A machine may have time for more expensive hashes.
            assert!(line.starts_with("ok  ") || area == "password", "{line}");
            assert_eq!(line.starts_with("ok  "), !line.contains(" -> "), "{line}");
            area
        })
        .collect();
    let all = [
        "settings", "password", "tls", "ops", "files", "database", "clock", "schema", "roles", "keys",
        "triggers", "feed", "history", "password",
    ];
    assert_eq!(areas, all);
    // No colours where there is no terminal.
    assert!(!ended.stdout.contains('\x1b'), "{}", ended.stdout);

    let ended = doctor_says(&home, &["doctor"], &[("DB_SOURCE", "x"), ("LOG_FORMAT", "y")]).await.expect(1);
    assert!(ended.stderr.contains("there are 2 problems"), "{}", ended.stderr);
    let help = doctor_says(&home, &["doctor", "--help"], &[]).await.expect(0).stdout;
    for said in ["Exit code: 0 when there is no problem", "--json", "changes nothing"] {
        assert!(help.contains(said), "{help}");
    }
}

/// A directory for a certificate and its key, and the settings that name them.
struct Place {
    dir: TempDir,
    settings: Vec<(&'static str, String)>,
}

impl Place {
    fn new(url: &str) -> Self {
        let dir = TempDir::with_prefix("gatepass-tls-").unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let settings = vec![
            ("DB_SOURCE", url.to_owned()),
            ("TLS_CERT_FILE", path("tls.crt")),
            ("TLS_KEY_FILE", path("tls.key")),
        ];
        Self { dir, settings }
    }

    fn put(&self, chain: &str, key: &str) {
        fs::write(self.dir.path().join("tls.crt"), chain).unwrap();
        fs::write(self.dir.path().join("tls.key"), key).unwrap();
        self.open(0o600);
    }

    fn open(&self, mode: u32) {
        fs::set_permissions(self.dir.path().join("tls.key"), fs::Permissions::from_mode(mode)).unwrap();
    }

    async fn finds(&self, more: &[(&str, &str)], code: i32, level: &str, parts: &[&str]) {
        let mut settings: Vec<_> = self.settings.iter().map(|(name, value)| (*name, &**value)).collect();
        settings.extend(more);
        finds("tls", &settings, code, level, parts).await;
    }
}

#[tokio::test]
async fn the_certificate() {
    let url = database().await;
    let place = Place::new(&url);
    let root = Authority::new("root", now());
    let middle = root.below("middle", now());
    let [middle_pem, root_pem] = [&middle, &root].map(|authority| pem("CERTIFICATE", &authority.certificate));
    let good = middle.issue_at(now());
    let chain = |issued: &Issued| format!("{}{middle_pem}", issued.certificate_pem());

    place.put(&chain(&good), &good.key_pem());
    place.finds(&[], 0, "ok", &["valid until", "88 days"]).await;
    let issuer = |name: &'static str| [("TOKEN_ISSUER", name)];
    place.finds(&issuer("https://localhost"), 0, "ok", &[]).await;
    place.finds(&issuer("https://127.0.0.1:8443"), 0, "ok", &[]).await;
    let elsewhere = issuer("https://auth.example.com");
    place.finds(&elsewhere, 0, "warning", &["not for auth.example.com", "get one with that name"]).await;
    place.open(0o604);
    place.finds(&[], 0, "warning", &["every user of this machine may read", "chmod o-r"]).await;

    let soon = middle.issue(now() - Duration::days(80), now() + Duration::days(10) + Duration::HOUR);
    place.put(&chain(&soon), &soon.key_pem());
    place.finds(&[], 0, "warning", &["expires in 10 days", "renew it"]).await;
    let swapped = format!("{}{root_pem}{middle_pem}", good.certificate_pem());
    place.put(&swapped, &good.key_pem());
    place.finds(&[], 0, "warning", &["not in order", "put the service's own first"]).await;
    place.put(&good.certificate_pem(), &good.key_pem());
    place.finds(&[], 0, "note", &["holds one certificate", "use the full chain"]).await;
    place.put(&root_pem, &root.key_pem());
    place.finds(&[], 0, "note", &["signed by itself"]).await;

    let expired = middle.issue(now() - Duration::days(90), now() - Duration::HOUR);
    place.put(&chain(&expired), &expired.key_pem());
    place.finds(&[], 1, "problem", &["TLS_CERT_FILE=", "has expired", "keeps the certificate it has"]).await;
    place.put(&chain(&good), &expired.key_pem());
    place.finds(&[], 1, "problem", &["TLS_KEY_FILE=", "not the key"]).await;
    fs::remove_file(place.dir.path().join("tls.key")).unwrap();
    place.finds(&[], 1, "problem", &["TLS_KEY_FILE=", "cannot be read"]).await;
    let half = [("DB_SOURCE", &*url), ("TLS_CERT_FILE", "/x")];
    finds("settings", &half, 1, "problem", &["TLS_KEY_FILE", "set both"]).await;
    // Without a certificate, production gets a reminder.
    let production = [("DB_SOURCE", &*url), ("ENVIRONMENT", "production")];
    let advice = "put a proxy in front that speaks TLS and name it in TRUSTED_PROXIES, or set TLS_CERT_FILE";
    finds("tls", &production, 0, "note", &["plain HTTP", advice]).await;
    let named = [("DB_SOURCE", &*url), ("ENVIRONMENT", "production"), ("TRUSTED_PROXIES", "10.0.0.1")];
    finds("tls", &named, 0, "note", &["put a proxy in front that speaks TLS, or set TLS_CERT_FILE"]).await;
}

#[tokio::test]
async fn anybody_may_register_in_production() {
    let url = database().await;
    let production = [("DB_SOURCE", &*url), ("ENVIRONMENT", "production")];
    finds("settings", &production, 0, "note", &["anybody can register", "REGISTRATION=closed"]).await;
    let closed = [production[0], production[1], ("REGISTRATION", "closed")];
    for settings in [&closed[..], &production[..1]] {
        let (_, found) = findings("settings", settings).await;
        assert!(!found.iter().any(|(_, text)| text.contains("register")), "{found:?}");
    }
}

#[tokio::test]
async fn a_misspelled_variable_of_the_environment() {
    let url = database().await;
    let settings = [("DB_SOURCE", &*url), ("REGISTRATON", "closed-hunter2")];
    finds("settings", &settings, 0, "warning", &["REGISTRATON", "did you mean REGISTRATION?"]).await;
    let home = Home::new();
    let config = home.gatepass(&["config"]).envs(&settings).run().await.expect(0);
    let service = home.serve(&settings).await;
    let served = service.stop(Signal::TERM).await.expect(0).stderr;
    for said in [config.stderr, served] {
        assert_eq!(said.matches("did you mean REGISTRATION?").count(), 1, "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn the_development_postgres_needs_no_roles() {
    let home = Home::new();
    home.gatepass(&["user", "list"]).run().await.expect(0);
    let ended = home.gatepass(&["doctor"]).run().await.expect(0);
    let roles = ended.stdout.lines().find(|line| line.contains(" roles ")).unwrap();
    assert!(roles.starts_with("ok ") && !ended.stdout.contains("db setup"), "{}", ended.stdout);
}

#[tokio::test]
async fn metrics_that_others_can_read() {
    let url = database().await;
    let open = [("DB_SOURCE", &*url), ("OPS_SERVER_ADDRESS", "0.0.0.0:9090")];
    finds("ops", &open, 0, "note", &["whoever can connect", "nobody but Prometheus"]).await;
}

/// A URL of the database whose address does not look like this machine's own; connections to it are passed on.
async fn from_afar(url: &str) -> String {
    let options: PgConnectOptions = url.parse().unwrap();
    let socket = options.get_socket().unwrap().join(format!(".s.PGSQL.{}", options.get_port()));
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut server: UnixStream = UnixStream::connect(&socket).await.unwrap();
            tokio::spawn(async move { copy_bidirectional::<TcpStream, _>(&mut stream, &mut server).await });
        }
    });
    let (user, database) = (options.get_username(), options.get_database().unwrap());
    format!("postgres://{user}:x@0.0.0.0:{port}/{database}?sslmode=prefer")
}

#[tokio::test]
async fn an_unencrypted_remote_database_is_reported() {
    let far = from_afar(&database().await).await;
    let parts = ["not encrypted, and leaves this machine", "sslmode=verify-full"];
    finds("database", &[("DB_SOURCE", &far)], 0, "note", &parts).await;
    let production = [("DB_SOURCE", &*far), ("ENVIRONMENT", "production")];
    finds("database", &production, 0, "warning", &parts).await;
}

/// A database in which the test's own functions replace those of Postgres.
async fn with_functions(functions: &str) -> String {
    let url = database().await;
    execute(&url, &format!("CREATE SCHEMA ours; {functions}")).await;
    format!("{url}&options[search_path]=ours,public,pg_catalog")
}

#[tokio::test]
async fn clocks_that_differ() {
    for (seconds, which) in [(5, "behind"), (-5, "ahead of")] {
        let url = with_functions(&format!(
            "CREATE FUNCTION ours.now() RETURNS timestamptz LANGUAGE sql AS
             $$ SELECT pg_catalog.clock_timestamp() + interval '{seconds} s' $$"
        ))
        .await;
        let parts = [&*format!("s {which} the database's"), "NTP", "REFRESH_REUSE_INTERVAL"];
        finds("clock", &[("DB_SOURCE", &url)], 0, "warning", &parts).await;
    }
}

#[tokio::test]
async fn a_service_warns_when_its_clock_is_far_ahead_of_the_databases() {
    for (seconds, warns) in [(-60, true), (5, false)] {
        let url = with_functions(&format!(
            "CREATE FUNCTION ours.now() RETURNS timestamptz LANGUAGE sql AS
             $$ SELECT pg_catalog.clock_timestamp() + interval '{seconds} s' $$"
        ))
        .await;
        let home = Home::new();
        let service = home.serve(&[("DB_SOURCE", &url), ("TOKEN_SYMMETRIC_KEY", KEY)]).await;
        let said = service.stop(Signal::TERM).await.expect(0).stderr;
        assert_eq!(said.contains("s ahead of the database's"), warns, "{said}");
    }
}

#[tokio::test]
async fn whoever_keeps_the_service_waiting_for_a_lock_is_reported() {
    // Makes it seem as if the wait had lasted a while.
    let url = with_functions(
        "CREATE FUNCTION ours.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
         $$ SELECT pg_catalog.clock_timestamp() + interval '7 s' $$;
         GRANT USAGE ON SCHEMA ours TO PUBLIC",
    )
    .await;
    // `as_role` loses the search path.
    let app = format!("{}&options[search_path]=ours,public,pg_catalog", as_role(&url, "gatepass_app"));
    let mut holder = PgConnection::connect(&format!("{url}&application_name=report")).await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
    // Within its transaction, the holder would see the same activity again and again.
    let mut watcher = PgConnection::connect(&url).await.unwrap();
    let change = (url, "ALTER TABLE users ALTER full_name SET DEFAULT 'nobody'");
    let login = (app.clone(), "SELECT FROM users");
    // The holder blocks the service itself, or blocks someone else, whom the service has to wait for.
    for (held, others) in
        [("BEGIN; LOCK TABLE users", vec![login.clone()]), ("BEGIN; SELECT FROM users", vec![change, login])]
    {
        sqlx::raw_sql(held).execute(&mut holder).await.unwrap();
        let mut waiting = Vec::new();
        for (at, statement) in others {
            waiting.push(tokio::spawn(async move { execute(&at, statement).await }));
            until("a statement waits", async || {
                let count = "SELECT count(*) FROM pg_stat_activity
                             WHERE datname = current_database() AND wait_event_type = 'Lock'";
                let count: i64 = sqlx::query_scalar(count).fetch_one(&mut watcher).await.unwrap();
                count == waiting.len() as i64
            })
            .await;
        }
        let (code, found) = findings("database", &[("DB_SOURCE", &app)]).await;
        assert_eq!(code, Some(1));
        let told: Vec<_> = found.iter().filter(|(_, text)| text.contains("waiting for a lock")).collect();
        let [(level, text)] = &told[..] else { panic!("{found:#?}") };
        assert_eq!(level, "problem");
        let whose = format!("the session {pid} of ");
        let advice = format!("pg_terminate_backend({pid})");
        for part in ["1 statement(s) of the service have been waiting", &whose, "(report)", &advice] {
            assert!(text.contains(part), "{text}");
        }
        sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
        for waiting in waiting {
            waiting.await.unwrap();
        }
    }
}

#[tokio::test]
async fn notifications_that_do_not_come_through() {
    let url = with_functions(
        "CREATE FUNCTION ours.pg_notify(text, text) RETURNS void LANGUAGE sql AS $$ SELECT $$",
    )
    .await;
    finds("feed", &[("DB_SOURCE", &url)], 0, "warning", &["no notification", "bypass the pooler"]).await;
}

#[tokio::test]
async fn a_history_that_nobody_seals() {
    let url = database().await;
    let settings = [("DB_SOURCE", &*url)];
    let home = Home::new();
    let create =
        home.gatepass(&["client", "create", "orders"]).env("TOKEN_SYMMETRIC_KEY", KEY).envs(&settings);
    create.run().await.expect(0);
    // The change has only just been made.
    finds("history", &settings, 0, "ok", &["sealed"]).await;
    execute(&url, "UPDATE history SET changed_at = now() - interval '6 minutes'").await;
    finds("history", &settings, 0, "warning", &["changes have been waiting", "gatepass history seal"]).await;
    home.gatepass(&["history", "seal"]).env("TOKEN_SYMMETRIC_KEY", KEY).envs(&settings).run().await.expect(0);
    finds("history", &settings, 0, "ok", &["sealed"]).await;
}

#[tokio::test]
async fn changes_deleted_before_sealing_are_reported_beside_those_still_waiting() {
    let url = database().await;
    let settings = [("DB_SOURCE", &*url)];
    let home = Home::new();
    let gatepass = async |args: &[&str]| doctor_says(&home, args, &settings).await.expect(0);
    for client in ["orders", "billing"] {
        gatepass(&["client", "create", client]).await;
    }
    execute(&url, "DELETE FROM history WHERE id = (SELECT min(id) FROM history)").await;
    execute(&url, "UPDATE history SET changed_at = now() - interval '6 minutes'").await;
    let (_, found) = findings("history", &settings).await;
    let [(gone, gone_text), (waits, waits_text)] = &found[..] else { panic!("{found:?}") };
    assert!(
        gone == "warning" && gone_text.contains("gone") && gone_text.contains("history verify"),
        "{found:?}"
    );
    assert!(waits == "warning" && waits_text.contains("changes have been waiting"), "{found:?}");
    gatepass(&["history", "seal"]).await;
    let (_, found) = findings("history", &settings).await;
    assert!(
        matches!(&found[..], [(level, text)] if level == "warning" && text.contains("gone")),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_history_that_is_allowed_to_have_gaps_is_reported() {
    let url = database().await;
    let options: PgConnectOptions = url.parse().unwrap();
    let name = options.get_database().unwrap();
    // The role that only serves may know this.
    let app = as_role(&url, "gatepass_app");
    let settings = [("DB_SOURCE", &*app)];
    let alter = |what: &str| format!(r#"ALTER DATABASE "{name}" {what} gatepass.history"#);
    admin(&format!("{} = 'lenient'", alter("SET"))).await;
    let parts = ["gatepass.history is lenient", &*format!("ALTER DATABASE {name} RESET gatepass.history")];
    finds("history", &settings, 0, "warning", &parts).await;
    admin(&alter("RESET")).await;
    // A setting of the session alone does not count.
    let session = format!("{url}&options[gatepass.history]=lenient");
    finds("history", &[("DB_SOURCE", &session)], 0, "ok", &["sealed"]).await;

    let triggers =
        [("users", "users_history"), ("sessions", "sessions_history_begun"), ("clients", "clients_history")];
    let switch = async |how: &str| {
        for (table, trigger) in triggers {
            execute(&url, &format!("ALTER TABLE {table} {how} TRIGGER {trigger}")).await;
        }
    };
    switch("DISABLE").await;
    let statements = triggers.map(|(table, trigger)| format!("ALTER TABLE {table} ENABLE TRIGGER {trigger}"));
    finds("history", &settings, 0, "warning", &["are disabled", &statements.join("; ")]).await;
    switch("ENABLE").await;
    finds("history", &settings, 0, "ok", &["sealed"]).await;
}

/// The service cannot report this itself where not even warnings are logged.
#[tokio::test]
async fn a_log_without_the_heads_of_the_seals() {
    let url = database().await;
    for (filter, level, part) in [
        ("off", "warning", "Add `gatepass::account::seals=info`"),
        ("error", "warning", "Add `gatepass::account::seals=info`"),
        ("warn,gatepass::http=info", "warning", "Add `gatepass::account::seals=info`"),
        ("error,gatepass::account::seals=info", "ok", "sealed"),
        ("info", "ok", "sealed"),
        ("debug", "ok", "sealed"),
    ] {
        finds("history", &[("DB_SOURCE", &*url), ("RUST_LOG", filter)], 0, level, &[part]).await;
    }
}

#[tokio::test]
async fn a_database_that_is_unreachable_or_of_another_version_is_reported() {
    finds("database", &[("DB_SOURCE", "postgres://x@127.0.0.1:1/x")], 1, "problem", &["check host and port"])
        .await;
    let url = database().await;
    let missing = url.replace("/test_", "/no_test_");
    finds("database", &[("DB_SOURCE", &missing)], 1, "problem", &["create it"]).await;
    execute(
        &url,
        r"INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
          VALUES (999999, 'from tomorrow', true, '\x00', 0)",
    )
    .await;
    finds("schema", &[("DB_SOURCE", &url)], 0, "note", &["999999", "of a later release"]).await;
    execute(&url, "DELETE FROM _sqlx_migrations WHERE version IN (SELECT version FROM _sqlx_migrations WHERE version < 999999 ORDER BY version DESC LIMIT 2)")
        .await;
    finds("schema", &[("DB_SOURCE", &url)], 1, "problem", &["999999", "a newer version has migrated"]).await;
    execute(&url, "DELETE FROM _sqlx_migrations WHERE version = 999999").await;
    let by_hand = [("DB_SOURCE", &*url), ("MIGRATE_ON_START", "false")];
    finds("schema", &by_hand, 1, "problem", &["`gatepass migrate up`"]).await;
    let waiting = ["migrations are waiting", "not ready until one is restarted"];
    finds("schema", &[("DB_SOURCE", &url)], 0, "note", &waiting).await;
}

/// A Postgres provider may do that when the disk is full.
#[tokio::test]
async fn a_database_that_takes_no_writes() {
    let url = database().await;
    let options: PgConnectOptions = url.parse().unwrap();
    let alter = async |what: &str| {
        admin(&format!(r#"ALTER DATABASE "{}" {what}"#, options.get_database().unwrap())).await;
    };
    let settings = [("DB_SOURCE", &*url), ("TOKEN_SYMMETRIC_KEY", KEY)];
    let alice = json!({ "username": "alice", "email": "alice@example.com", "password": PASSWORD });

    alter("SET default_transaction_read_only = on").await;
    let parts = ["takes no writes", "is its disk full?", "RESET it"];
    finds("database", &settings, 1, "problem", &parts).await;
    let home = Home::new();
    let service = home.serve(&settings).await;
    let (status, not_ready) = service.get("/readyz").await;
    assert_eq!((status, &not_ready["reasons"]), (503, &json!(["database: takes no writes"])));
    assert_eq!(service.post("/users", &alice).await.0, 503);

    // As soon as the database takes writes again, so does the service.
    alter("RESET default_transaction_read_only").await;
    assert_eq!(service.post("/users", &alice).await.0, 201);
    assert_eq!(service.get("/readyz").await.0, 200);
    finds("database", &settings, 0, "ok", &["is there"]).await;
    let log = service.stop(Signal::TERM).await.expect(0).stderr;
    assert!(log.contains("read-only transaction") && !log.contains("cannot be reached"), "{log}");
}

#[tokio::test]
async fn a_database_with_no_connection_left() {
    let url = database().await;
    let options: PgConnectOptions = url.parse().unwrap();
    admin(&format!(r#"ALTER DATABASE "{}" CONNECTION LIMIT 0"#, options.get_database().unwrap())).await;
    let service = as_role(&url, "gatepass_app");
    let parts = ["pg_stat_activity", "max_connections", "too many connections"];
    finds("database", &[("DB_SOURCE", &service)], 1, "problem", &parts).await;
}

#[tokio::test]
async fn migrations_that_the_service_may_not_apply() {
    let url = database().await;
    let [service, owner] = ["gatepass_app", "gatepass_owner"].map(|role| as_role(&url, role));
    execute(&url, "DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)")
        .await;
    let alone = [("DB_SOURCE", &*service), ("TOKEN_SYMMETRIC_KEY", KEY)];
    let said =
        "gatepass_app may not change the schema, which belongs to gatepass_owner: set MIGRATION_DB_SOURCE";
    finds("schema", &alone, 1, "problem", &[said]).await;
    Home::new().start(&alone).end().await.fails(1, &[said]);
    let with_owner = [("DB_SOURCE", &*service), ("MIGRATION_DB_SOURCE", &owner)];
    finds("schema", &with_owner, 0, "note", &["migrations are waiting"]).await;
}

/// Neither the schema nor any migration is missing: the service's role may not see them.
#[tokio::test]
async fn rights_that_the_service_has_lost() {
    let url = database().await;
    let [service, owner] = ["gatepass_app", "gatepass_owner"].map(|role| as_role(&url, role));
    let (alone, with_owner) =
        ([("DB_SOURCE", &*service)], [("DB_SOURCE", &*service), ("MIGRATION_DB_SOURCE", &owner)]);
    let home = Home::new();
    let mut running = home.serve(&[alone[0], ("TOKEN_SYMMETRIC_KEY", KEY)]).await;
    for (revoked, shown) in
        [("USAGE ON SCHEMA public", "USAGE on public"), ("SELECT ON _sqlx_migrations", "_sqlx_migrations")]
    {
        execute(&url, &format!("REVOKE {revoked} FROM gatepass_app, PUBLIC")).await;
        let lacks = format!("gatepass_app may not see which migrations were applied: it lacks {revoked}");
        let (status, not_ready) = running.get("/readyz").await;
        assert_eq!(
            (status, &not_ready["reasons"][0]),
            (503, &json!("schema: the applied migrations cannot be read"))
        );
        running.logged(&lacks).await;
        finds("schema", &alone, 1, "problem", &[&lacks, "`gatepass migrate up` as gatepass_owner"]).await;
        Home::new().gatepass(&["migrate", "up"]).envs(&alone).run().await.fails(1, &[&lacks]);
        // The owner sees it all the same.
        finds("schema", &with_owner, 1, "ok", &["current"]).await;
        finds("roles", &with_owner, 1, "problem", &[shown, "gatepass db setup"]).await;
        Home::new().gatepass(&["migrate", "up"]).envs(&with_owner).run().await.expect(0);
        finds("roles", &alone, 0, "ok", &["may do what the service has to, and nothing else"]).await;
        until("it is ready by itself", async || running.get("/readyz").await.0 == 200).await;
    }
}

#[tokio::test]
async fn triggers_that_do_not_fire_are_reported() {
    let url = database().await;
    let settings = [("DB_SOURCE", &*url)];
    finds("triggers", &settings, 0, "ok", &["all there"]).await;
    execute(
        &url,
        "ALTER TABLE sessions DISABLE TRIGGER sessions_ended;
         ALTER TABLE users ENABLE REPLICA TRIGGER users_disabled",
    )
    .await;
    let harm = "disabled or gone: users_disabled, sessions_ended. What they see to is not done";
    let mend = "as the owner: ALTER TABLE users ENABLE TRIGGER users_disabled; \
                ALTER TABLE sessions ENABLE TRIGGER sessions_ended";
    finds("triggers", &settings, 1, "problem", &[harm, mend]).await;
    finds("history", &settings, 1, "ok", &["sealed"]).await;
    let home = Home::new();
    let mut service = home.serve(&settings).await;
    service.logged(harm).await;

    execute(
        &url,
        "ALTER TABLE sessions ENABLE TRIGGER sessions_ended; ALTER TABLE users DISABLE TRIGGER ALL;
         ALTER TABLE users ENABLE TRIGGER USER",
    )
    .await;
    let cascade = ["sessions_user_id_fkey", "ALTER TABLE users ENABLE TRIGGER ALL"];
    finds("triggers", &settings, 1, "problem", &cascade).await;
    execute(&url, cascade[1]).await;

    // Each of them is missed, and comes back as it was.
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let mut all = async || -> Vec<(String, String, String)> {
        let all = sqlx::query_as(
            "SELECT tgrelid::regclass::text, tgname::text, pg_get_triggerdef(oid)
             FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2",
        );
        all.fetch_all(&mut conn).await.unwrap()
    };
    let before = all().await;
    for (table, name, _) in &before {
        execute(&url, &format!("DROP TRIGGER {name} ON {table}")).await;
    }
    for (area, code, level) in [("triggers", 1, "problem"), ("history", 0, "warning")] {
        let (ended, found) = findings(area, &settings).await;
        let (found, text) = found.iter().find(|(_, text)| text.contains("gone")).unwrap();
        assert_eq!((ended, &**found), (Some(code), level), "{text}");
        execute(&url, text.split_once("as the owner: ").unwrap().1).await;
    }
    assert_eq!(all().await, before);
}

#[tokio::test]
async fn revocations_that_cannot_be_read() {
    let app = App::new().await;
    app.register("alice").await;
    let settings = [("DB_SOURCE", &*app.database_url)];
    let unreadable = "INSERT INTO revocations (user_id, roles, expires_at)
                      SELECT id, '{NULL}', now() + interval '1 hour' FROM users";
    execute(&app.database_url, unreadable).await;
    finds("feed", &settings, 1, "problem", &["unexpected null"]).await;
}

/// As a bulk load leaves it, which wants no triggers: sessions would end without telling the replicas.
#[tokio::test]
async fn a_database_on_which_no_trigger_fires() {
    let url = database().await;
    let settings = [("DB_SOURCE", &*url)];
    let running = Home::new();
    let running = running.serve(&settings).await;
    let options: PgConnectOptions = url.parse().unwrap();
    let name = options.get_database().unwrap();
    execute(&url, &format!(r#"ALTER DATABASE "{name}" SET session_replication_role = replica"#)).await;
    let said = ["session_replication_role is replica: no trigger fires", "RESET it where it is set"];
    finds("database", &settings, 1, "problem", &said).await;
    Home::new().start(&settings).end().await.fails(1, &said);
    Home::new().gatepass(&["user", "disable", "alice"]).envs(&settings).run().await.fails(1, &said);
    // Connections that are there already are as they were.
    assert_eq!(running.get("/readyz").await.0, 200);
}

/// With a policy, rows are hidden without an error, by default: nobody would have been revoked.
#[tokio::test]
async fn rows_that_a_policy_hides() {
    let url = database().await;
    let service = as_role(&url, "gatepass_app");
    let settings = [("DB_SOURCE", &*service), ("TOKEN_SYMMETRIC_KEY", KEY)];
    execute(&url, "ALTER TABLE revocations ENABLE ROW LEVEL SECURITY").await;
    let said = ["row-level security hides rows", "DISABLE ROW LEVEL SECURITY on revocations"];
    for pooler in ["session", "transaction"] {
        let settings = [settings[0], settings[1], ("DB_POOLER", pooler), ("MIGRATE_ON_START", "false")];
        finds("database", &settings, 1, "problem", &said).await;
        Home::new().start(&settings).end().await.fails(1, &said);
    }
}

/// At a login it looks like a wrong password.
#[tokio::test]
async fn a_pepper_that_the_setting_has_lost() {
    let url = as_role(&database().await, "gatepass_app");
    let home = Home::new();
    let [one, two] = ["1", "2"].map(|name| format!("{name}:cGVwcGVyIHR3byBpcyB0aGVzZSAzMiBieXRlcyBvZiA="));
    let bare = [("DB_SOURCE", &*url)];
    finds("password", &bare, 0, "ok", &["no password hash is stored yet"]).await;
    for (name, pepper) in [("alice", "none"), ("bob", &*one), ("carol", &*one), ("dave", &*two)] {
        let args = ["user", "create", name, "--email", &format!("{name}@example.com"), "--password-stdin"];
        let settings = [bare[0], ("TOKEN_SYMMETRIC_KEY", KEY), ("PASSWORD_PEPPER", pepper)];
        home.gatepass(&args).envs(&QUICK).envs(&settings).stdin(PASSWORD).run().await.expect(0);
    }
    execute(&url, "UPDATE users SET password_hash = NULL, updated_at = now() WHERE username = 'alice'").await;

    let both = format!("{two},{one}");
    let parts = ["nothing wrong with the 3 stored hashes"];
    finds("password", &[bare[0], ("PASSWORD_PEPPER", &both)], 0, "ok", &parts).await;
    let parts = ["2 of the 3", "PASSWORD_PEPPER does not hold: 1 (keyid=MQ).", "-> put it back"];
    finds("password", &[bare[0], ("PASSWORD_PEPPER", &two)], 1, "problem", &parts).await;
    finds("password", &bare, 1, "problem", &["3 of the 3", "1 (keyid=MQ), 2 (keyid=Mg)."]).await;

    // One that nobody can read for another reason is that user's trouble alone.
    execute(
        &url,
        "UPDATE users SET password_hash = '$argon2id$', updated_at = now() WHERE username = 'dave'",
    )
    .await;
    let parts = ["malformed: 1 of the 3 looked at", "of the user 0", "gatepass user set-password"];
    finds("password", &[bare[0], ("PASSWORD_PEPPER", &both)], 0, "warning", &parts).await;
}

/// However many users there are, a few are looked at: those who came first and those who came last.
#[tokio::test]
async fn only_some_hashes_are_looked_at() {
    let url = database().await;
    let settings = [("DB_SOURCE", &*url)];
    execute(
        &url,
        "INSERT INTO users
             (id, username, email, password_hash, roles, is_email_verified, disabled, password_changed_at, created_at,
              updated_at)
         SELECT ('01940000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'user' || n, 'user' || n || '@example.com',
             '$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo', '{}', false, false, now(), now(), now()
         FROM generate_series(1, 1500) AS n",
    )
    .await;
    let lost = async |n: u32| {
        let change = "password_hash = replace(password_hash, 'p=1$', 'p=1,keyid=MQ$'), updated_at = now()";
        execute(&url, &format!("UPDATE users SET {change} WHERE username = 'user{n}'")).await;
    };
    lost(700).await;
    finds("password", &settings, 0, "ok", &["1000 stored hashes"]).await;
    lost(500).await;
    finds("password", &settings, 1, "problem", &["1 of the 1000"]).await;
    lost(1001).await;
    finds("password", &settings, 1, "problem", &["2 of the 1000"]).await;
}

/// The findings about the database in a place where there is none yet.
fn about_a_new_database(ended: &Ended) -> Vec<(Value, String)> {
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let all = report["findings"].as_array().unwrap().iter().filter(|finding| finding["area"] == "database");
    all.map(|found| (found["level"].clone(), found["message"].as_str().unwrap().to_owned())).collect()
}

#[tokio::test]
async fn a_place_in_which_the_service_cannot_make_its_database() {
    let key = [("TOKEN_SYMMETRIC_KEY", KEY)];
    let home = Home::of_nobody().unwrap_or_else(Home::new);
    let doctor = async || home.gatepass(&["doctor", "--json"]).envs(&key).run().await;
    let found = about_a_new_database(&doctor().await.expect(0));
    assert!(found.len() == 1 && found[0].0 == "note" && found[0].1.contains("none yet"), "{found:?}");

    let mode = |mode| fs::set_permissions(home.path(""), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o555);
    let found = about_a_new_database(&doctor().await.expect(1));
    let keyless =
        home.gatepass(&["doctor"]).env("DB_SOURCE", "postgres://x@127.0.0.1:1/x").run().await.expect(1);
    home.start(&key).end().await.fails(1, &["Permission denied", "DB_SOURCE"]);
    let both = "set TOKEN_SYMMETRIC_KEY and DB_SOURCE to do without it";
    home.start(&[]).end().await.fails(1, &["Permission denied", both]);
    mode(0o755);
    assert!(keyless.stdout.contains("or set TOKEN_SYMMETRIC_KEY"), "{}", keyless.stdout);
    let [(level, said)] = &found[..] else { panic!("{found:?}") };
    assert_eq!(level, "problem");
    assert!(said.contains("Permission denied") && said.contains("DB_SOURCE"), "{said}");
}

#[tokio::test]
async fn a_machine_without_the_programs_of_a_postgres_server() {
    const WHAT: &str = "doctor without Postgres programs";

    if !are_root(WHAT) {
        return;
    }
    // Hides them from this command alone.
    let hide = "mount -t tmpfs none /usr/lib/postgresql";
    let home = Home::new();
    let run = async |what: &str| {
        let script = format!(r#"exec unshare -m sh -c '{hide} && exec "$0" {what}' "$0""#);
        home.shell(&script).env("TOKEN_SYMMETRIC_KEY", KEY).envs(&ANY_PORT).run().await
    };
    if home.shell(&format!("unshare -m sh -c '{hide} && ! command -v postgres'")).run().await.code != Some(0)
    {
        cannot_be_tested(WHAT, &format!("`{hide}` fails, or there are others"));
        return;
    }
    let found = about_a_new_database(&run("doctor --json").await.expect(1));
    let [(level, said)] = &found[..] else { panic!("{found:?}") };
    assert_eq!(level, "problem");
    assert!(said.contains("no Postgres server programs"), "{said}");
    run("serve").await.fails(1, &[said]);
}

#[tokio::test]
async fn read_only_commands_create_no_key() {
    let (home, url) = (Home::new(), database().await);
    let doctor = home.gatepass(&["doctor"]).env("DB_SOURCE", &url).run().await.expect(0);
    let note = "TOKEN_SYMMETRIC_KEY is not set: `gatepass serve` makes a key";
    assert!(doctor.stdout.contains(note), "{}", doctor.stdout);
    let inspect = home.gatepass(&["token", "inspect", "v4.local.AAAA"]).env("DB_SOURCE", &url).run().await;
    assert!(inspect.code == Some(1) && inspect.stderr.contains("there is no key yet"), "{inspect:?}");
    assert!(!home.path(".gatepass").exists());
}
