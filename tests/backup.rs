//! A dump that is taken while the service is serving, restored into an empty server, is the whole service again: users
//! log in, tokens keep working, ended sessions stay ended, and the history verifies and continues. What happened after
//! the dump is undone; docs/backup.md says what to do about that. All of it runs under the database roles, which own
//! and may do what they did before.

use std::{fs, path::Path};

use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};
use tokio::process::Command;

use crate::{
    app::{KEY, PASSWORD, as_role, database, postgres_program},
    process::{Ended, Home, Process, Signal, until},
};

const OWNER: &str = "gatepass_owner";
const APP: &str = "gatepass_app";

/// A service on one database, and its command line.
struct Site<'a> {
    home: &'a Home,
    service: Process,
    database_url: &'a str,
    http: reqwest::Client,
}

/// What the database does not hold: the root key and the pepper.
fn environment(database_url: &str) -> [(&str, &str); 5] {
    [
        ("DB_SOURCE", database_url),
        ("MIGRATE_ON_START", "false"),
        ("TOKEN_FORMAT", "v4.public"),
        ("TOKEN_SYMMETRIC_KEY", KEY),
        ("PASSWORD_PEPPER", "1:MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="),
    ]
}

impl<'a> Site<'a> {
    async fn open(home: &'a Home, database_url: &'a str) -> Self {
        let service = home.serve(&environment(database_url)).await;
        Self { home, service, database_url, http: reqwest::Client::new() }
    }

    async fn gatepass(&self, args: &[&str]) -> Ended {
        let invocation = self.home.gatepass(args).envs(&crate::process::QUICK);
        invocation.envs(&environment(self.database_url)).stdin(&format!("{PASSWORD}\n")).run().await
    }

    async fn log_in(&self, username: &str) -> Value {
        let credentials = json!({ "username": username, "password": PASSWORD });
        let (status, login) = self.service.post("/users/login", &credentials).await;
        assert_eq!(status, 200, "{login}");
        login
    }

    async fn log_out(&self, login: &Value) {
        let request = self.http.post(self.service.url("/users/logout"));
        let answer = request.bearer_auth(text(&login["access_token"])).send().await.unwrap();
        assert_eq!(answer.status(), 204);
    }

    /// Uses the refresh token: the answer, or the problem's code.
    async fn renew(&self, login: &Value) -> Result<Value, String> {
        let body = json!({ "refresh_token": login["refresh_token"] });
        let (status, answer) = self.service.post("/tokens/renew_access", &body).await;
        if status == 200 { Ok(answer) } else { Err(text(&answer["code"]).to_owned()) }
    }

    /// Uses the access token: "ok", or the problem's code.
    async fn knock(&self, login: &Value) -> String {
        let (status, answer) = self.service.get_as(text(&login["access_token"]), "/users/me").await;
        if status == 200 { "ok".to_owned() } else { text(&answer["code"]).to_owned() }
    }

    /// Whether introspection tells `client` that this access token is active.
    async fn introspect(&self, client: &Value, login: &Value) -> bool {
        let request = self.http.post(self.service.url("/tokens/introspect"));
        let request = request.basic_auth(text(&client["client_id"]), Some(text(&client["client_secret"])));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let answer = request.body(format!("token={}", text(&login["access_token"]))).send().await.unwrap();
        answer.json::<Value>().await.unwrap()["active"] == json!(true)
    }

    /// Seals the history, and returns the new head.
    async fn seal(&self) -> String {
        text(&self.gatepass(&["history", "seal", "--json"]).await.json()["head"]["hash"]).to_owned()
    }

    async fn sessions(&self) -> i64 {
        let mut conn = PgConnection::connect(self.database_url).await.unwrap();
        sqlx::query_scalar("SELECT count(*) FROM sessions").fetch_one(&mut conn).await.unwrap()
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// A new Postgres server that nobody has used, and its URL. The server ends when the process is dropped.
async fn empty_server(home: &Home) -> (Process, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-postgres");
    let shell = home.program(&script).arg("sh").arg("-c").arg(r#"echo "$DATABASE_URL"; cat"#);
    let server = shell.start();
    until("the empty server is up", async || server.stdout().ends_with('\n')).await;
    let url = server.stdout().trim().to_owned();
    (server, url)
}

/// Dumps the database while the service is busy.
async fn dump(site: &Site<'_>, file: &str) {
    let mut pg_dump = postgres_program("pg_dump", &as_role(site.database_url, OWNER));
    pg_dump.args(["--format", "custom", "--file", file]);
    let mut pg_dump = Command::from(pg_dump).kill_on_drop(true).spawn().unwrap();
    let mut logins = 0;
    let busy = async {
        loop {
            let login = site.log_in("bob").await;
            site.renew(&login).await.unwrap();
            site.log_out(&login).await;
            logins += 1;
        }
    };
    let ended = tokio::select! {
        ended = pg_dump.wait() => ended.unwrap(),
        () = busy => unreachable!(),
    };
    assert!(ended.success(), "pg_dump: {ended}");
    println!("backup: {logins} logins, renewals and logouts while the database was dumped");
    assert!(logins > 0, "nothing went on while the database was dumped");
}

/// Asserts that the command which checks the nightly dump in `eks/` accepts a whole dump, and rejects one cut short.
async fn check(home: &Home, file: &str) {
    let job = include_str!("../eks/components/postgres/backup.yaml");
    let command = job.lines().map(str::trim).find(|line| line.starts_with("pg_restore")).unwrap();
    let program = postgres_program("pg_restore", "postgres:///x").get_program().to_str().unwrap().to_owned();
    let checked = async |file: &str| {
        let command = command.replace("pg_restore", &program).replace("/dump/gatepass.dump", file);
        home.program(Path::new("sh")).arg("-c").arg(&command).run().await
    };
    checked(file).await.expect(0);
    let whole = fs::read(file).unwrap();
    let part = home.path("part.dump");
    fs::write(&part, &whole[..whole.len() - 16]).unwrap();
    checked(part.to_str().unwrap()).await.fails(1, &["end of file"]);
}

/// Creates the roles and a database of the owner's on the server at `server_url`, and restores the dump into it.
/// Returns the superuser's URL for that database.
async fn restore(file: &str, server_url: &str) -> String {
    let mut conn = PgConnection::connect(server_url).await.unwrap();
    for sql in [
        "CREATE ROLE gatepass_owner LOGIN",
        "CREATE ROLE gatepass_app LOGIN",
        "CREATE ROLE gatepass_readonly LOGIN",
        "CREATE DATABASE gatepass OWNER gatepass_owner",
    ] {
        sqlx::raw_sql(sql).execute(&mut conn).await.unwrap();
    }
    let options: PgConnectOptions = server_url.parse().unwrap();
    let url = options.database("gatepass").to_url_lossy().to_string();
    let mut pg_restore = postgres_program("pg_restore", &as_role(&url, OWNER));
    pg_restore.args(["--exit-on-error", "--no-owner", file]);
    let ended = Command::from(pg_restore).status().await.unwrap();
    assert!(ended.success(), "pg_restore: {ended}");
    url
}

#[tokio::test]
async fn a_busy_service_is_restored_from_a_dump_to_an_empty_server() {
    let home = Home::new();
    let (database_url, file) = (as_role(&database().await, APP), home.path("gatepass.dump"));
    let file = file.to_str().unwrap();
    let site = Site::open(&home, &database_url).await;
    for username in ["alice", "bob", "root"] {
        let email = format!("{username}@example.com");
        let args = ["user", "create", username, "--email", &email, "--password-stdin"];
        site.gatepass(&args).await.expect(0);
    }
    site.gatepass(&["user", "set-role", "root", "admin"]).await.expect(0);
    let client = site.gatepass(&["client", "create", "orders", "--json"]).await.json();
    let root = site.log_in("root").await;
    let [used, renewed, ended] = [(); 3].map(|()| site.log_in("alice"));
    let (used, renewed, ended) = (used.await, renewed.await, ended.await);
    let successor = site.renew(&renewed).await.unwrap();
    assert_eq!(site.knock(&successor).await, "ok");
    site.log_out(&ended).await;
    let [ended_later, renewed_later] = [(); 2].map(|()| site.log_in("alice"));
    let (ended_later, renewed_later) = (ended_later.await, renewed_later.await);
    let head = site.seal().await;
    let sessions_before = site.sessions().await;

    dump(&site, file).await;
    check(&home, file).await;
    let sessions_after = site.sessions().await;
    site.log_out(&ended_later).await;
    let successor_later = site.renew(&renewed_later).await.unwrap();
    let begun_later = site.log_in("alice").await;
    let head_later = site.seal().await;
    site.service.stop(Signal::KILL).await;

    let (server, empty_url) = empty_server(&home).await;
    let master_url = restore(file, &empty_url).await;
    let restored_url = as_role(&master_url, APP);
    let doctor = home.gatepass(&["doctor"]).envs(&environment(&restored_url)).run().await.stdout;
    assert!(doctor.contains("the schema does not belong to gatepass_owner"), "{doctor}");
    let setup = home.gatepass(&["db", "setup"]).env("DB_SOURCE", &restored_url);
    let setup = setup.env("MASTER_DB_SOURCE", &master_url).run().await.expect(0).stdout;
    assert!(!setup.contains("password"), "{setup}");
    let mut postgres = PgConnection::connect(&master_url).await.unwrap();
    let owners: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT pg_get_userbyid(owner)::text FROM (
             SELECT relowner FROM pg_class WHERE relnamespace IN ('public'::regnamespace, 'masked'::regnamespace)
             UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'public'::regnamespace
             UNION ALL SELECT nspowner FROM pg_namespace WHERE nspname IN ('public', 'masked')
         ) AS object (owner)",
    )
    .fetch_all(&mut postgres)
    .await
    .unwrap();
    assert_eq!(owners, [OWNER]);
    let may_connect = "SELECT has_database_privilege('public', current_database(), 'CONNECT')";
    assert!(!sqlx::query_scalar::<_, bool>(may_connect).fetch_one(&mut postgres).await.unwrap());
    let site = Site::open(&home, &restored_url).await;
    let restored = site.sessions().await;
    assert!((sessions_before..=sessions_after).contains(&restored), "{restored}");
    let status = site.gatepass(&["migrate", "status"]).await.expect(0).stdout;
    assert!(status.lines().all(|line| line.contains("  applied  ")), "{status}");
    let doctor = site.gatepass(&["doctor"]).await.expect(0).stdout;
    assert!(!doctor.contains("does not belong"), "{doctor}");

    // Everyone carries on as if nothing had happened.
    let login = site.log_in("alice").await;
    for login in [&login, &used, &successor, &root] {
        assert_eq!(site.knock(login).await, "ok");
        assert!(site.introspect(&client, login).await);
    }
    assert_eq!(site.service.get_as(text(&root["access_token"]), "/admin/users").await.0, 200);
    assert_eq!(site.knock(&site.renew(&used).await.unwrap()).await, "ok");
    assert_eq!(site.knock(&site.renew(&successor).await.unwrap()).await, "ok");
    // Ended sessions stay ended, and a session that ends now is refused.
    for login in [&ended, &login] {
        if login["session_id"] != ended["session_id"] {
            site.log_out(login).await;
        }
        assert_eq!(site.knock(login).await, "session_revoked");
        assert_eq!(site.renew(login).await, Err("session_revoked".to_owned()));
        assert!(!site.introspect(&client, login).await);
    }
    // Reuse of a refresh token is detected as before.
    assert_eq!(site.renew(&renewed).await, Err("refresh_token_reused".to_owned()));
    // The history matches its seal, and continues.
    site.gatepass(&["history", "verify", "--head", &head]).await.expect(0);
    let next_head = site.seal().await;
    site.gatepass(&["history", "verify", "--head", &next_head]).await.expect(0);

    // Whatever came after the dump is gone. Verifying the history against a head from the log shows that.
    let verification = site.gatepass(&["history", "verify", "--head", &head_later]).await.expect(1);
    assert!(verification.stdout.contains("the chain was truncated"), "{}", verification.stdout);
    assert_eq!(site.knock(&ended_later).await, "ok", "it is alive again");
    assert_eq!(site.knock(&begun_later).await, "ok", "nobody knows of it, and so nobody can end it");
    assert_eq!(site.renew(&begun_later).await, Err("invalid_refresh_token".to_owned()));
    assert_eq!(site.renew(&successor_later).await, Err("refresh_token_reused".to_owned()));
    // What to do about it: end all sessions.
    let psql = postgres_program("psql", &as_role(&master_url, OWNER))
        .args(["-qc", "TRUNCATE sessions"])
        .status()
        .unwrap();
    assert!(psql.success());
    until("all sessions are over", async || site.knock(&ended_later).await == "session_revoked").await;
    for login in [&ended_later, &used, &root] {
        assert_eq!(site.knock(login).await, "session_revoked");
        assert_eq!(site.renew(login).await, Err("invalid_refresh_token".to_owned()));
    }
    site.service.stop(Signal::TERM).await.expect(0);
    server.end().await.expect(0);
}
