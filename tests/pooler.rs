//! The service behind pgbouncer: Debian 12's, which is 1.18, and one that keeps prepared statements (1.21 or later).
//!
//! In session mode both work, with nothing special in pgbouncer's configuration. In transaction mode the newer one
//! works; with the older one, or in a mode other than the one that `DB_POOLER` names, the service does not start, and
//! says why.
//!
//! `GATEPASS_TEST_PGBOUNCER` and `GATEPASS_TEST_PGBOUNCER_PREPARED` name the programs; `make test` sets them
//! (`scripts/test-pgbouncer`). Without one of them its tests fail in CI, and elsewhere report that they have not run.

use std::{
    fs,
    time::{Duration, Instant},
};

use gatepass::store::{
    Source,
    pooler::{self, Sharing},
};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;
use tokio::{net::TcpStream, process::Child, task::JoinSet};

use crate::{
    app::{KEY, PASSWORD, database},
    not_tested::named_by,
    postgres::{command, directory, other_user, write},
    process::{Home, Port, Process, Signal, allowed, make_program, until},
};

const DEBIAN: &str = "GATEPASS_TEST_PGBOUNCER";
const PREPARED: &str = "GATEPASS_TEST_PGBOUNCER_PREPARED";

/// A pgbouncer in front of the database of one test.
struct Pgbouncer {
    port: Port,
    database: String,
    direct: String,
    _child: Child,
    _dir: TempDir,
}

impl Pgbouncer {
    /// Starts the one that `variable` names, with these settings. `None` if it is not available.
    async fn start(variable: &str, settings: &str) -> Option<Self> {
        let program = named_by(variable, "the service behind pgbouncer")?;
        let direct = database().await;
        let server: PgConnectOptions = direct.parse().unwrap();
        let database = server.get_database().unwrap().to_owned();
        let (dir, port) = (directory(), Port::reserve());
        // The user it runs as may have no access to the build directory.
        let copy = dir.path().join("pgbouncer");
        make_program(&copy, &fs::read(program).unwrap());
        if let Some((user, group)) = other_user() {
            std::os::unix::fs::chown(&copy, Some(user), Some(group)).unwrap();
        }
        let config = dir.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={} port={} user={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = any\n{settings}\n",
            server.get_socket().unwrap().display(),
            server.get_port(),
            server.get_username(),
            port.address().port(),
        );
        write(&config, &text);
        let child = command(&copy).arg(&config).spawn().unwrap();
        until("pgbouncer is up", async || TcpStream::connect(port.address()).await.is_ok()).await;
        Some(Self { port, database, direct, _child: child, _dir: dir })
    }

    fn url(&self) -> String {
        format!("postgres://gatepass@{}/{}", self.port.address(), self.database)
    }

    fn source(&self) -> Source {
        Source::new(&self.url().into()).unwrap()
    }

    fn environment<'a>(&'a self, url: &'a str, mode: &'a str) -> [(&'a str, &'a str); 4] {
        [
            ("DB_SOURCE", url),
            ("MIGRATION_DB_SOURCE", &self.direct),
            ("DB_POOLER", mode),
            ("TOKEN_SYMMETRIC_KEY", KEY),
        ]
    }

    /// Runs a whole story through it, with two replicas.
    async fn serves(&self, mode: &str) {
        let (home, url) = (Home::new(), self.url());
        let one = home.serve(&self.environment(&url, mode)).await;
        let other = home.serve(&self.environment(&url, mode)).await;
        let alice = json!({ "username": "alice", "email": "alice@example.com", "password": PASSWORD });
        assert_eq!(one.post("/users", &alice).await.0, 201);

        // Many at once, so that each is now and then given a server connection that another has used.
        let mut sessions = JoinSet::new();
        for replica in [one.address(), other.address()] {
            for _ in 0..12 {
                sessions.spawn(session(replica.clone()));
            }
        }
        let sessions = sessions.join_all().await;

        let logout = reqwest::Client::new().post(one.url("/users/logout"));
        let answer = logout.bearer_auth(sessions[0]["access_token"].as_str().unwrap()).send().await.unwrap();
        assert_eq!(answer.status(), 204);
        let revoked = Instant::now();
        until("the other replica has heard", async || me(&other, &sessions[0]).await == 401).await;
        assert!(revoked.elapsed() < allowed(Duration::from_secs(1)), "{:?}", revoked.elapsed());
        assert_eq!(me(&other, &sessions[1]).await, 200);
        for replica in [one, other] {
            let ended = replica.stop(Signal::TERM).await.expect(0);
            assert!(!ended.stderr.contains("ERROR"), "{}", ended.stderr);
        }
    }

    /// Checks that the service does not start, and says this.
    async fn is_refused(&self, mode: &str, parts: &[&str]) {
        let (home, url) = (Home::new(), self.url());
        let ended = home.start(&self.environment(&url, mode)).end().await.expect(1);
        for part in parts {
            assert!(ended.stderr.contains(part), "{part:?} is not in:\n{}", ended.stderr);
        }
    }

    async fn listeners(&self) -> i64 {
        let mut conn = PgConnection::connect(&self.direct).await.unwrap();
        let listeners = "SELECT count(*) FROM pg_stat_activity
                         WHERE datname = current_database() AND query LIKE 'LISTEN%'";
        sqlx::query_scalar(listeners).fetch_one(&mut conn).await.unwrap()
    }
}

/// Logs in, renews and lists the sessions, on the replica at `address`; returns the tokens.
async fn session(address: String) -> Value {
    let http = reqwest::Client::new();
    let login = json!({ "username": "alice", "password": PASSWORD });
    let answer = http.post(format!("http://{address}/users/login")).json(&login).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let login: Value = answer.json().await.unwrap();
    let renewal = json!({ "refresh_token": login["refresh_token"] });
    let answer =
        http.post(format!("http://{address}/tokens/renew_access")).json(&renewal).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let renewed: Value = answer.json().await.unwrap();
    let sessions = http.get(format!("http://{address}/sessions"));
    let answer = sessions.bearer_auth(renewed["access_token"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    renewed
}

async fn me(replica: &Process, tokens: &Value) -> u16 {
    replica.get_as(tokens["access_token"].as_str().unwrap(), "/users/me").await.0
}

#[tokio::test]
async fn session_pooling_works_as_without_a_pooler() {
    for program in [DEBIAN, PREPARED] {
        let Some(pgbouncer) = Pgbouncer::start(program, "pool_mode = session").await else { continue };
        assert_eq!(pooler::sharing(&pgbouncer.source()).await.unwrap(), Sharing::Session);
        // What is set on a connection applies at the server behind the pooler.
        let pool = pgbouncer.source().pool(1);
        for (setting, value) in [("statement_timeout", "8s"), ("idle_in_transaction_session_timeout", "15s")]
        {
            let found: String = sqlx::query_scalar("SELECT current_setting($1)")
                .bind(setting)
                .fetch_one(&mut *pool.acquire().await.unwrap())
                .await
                .unwrap();
            assert_eq!(found, value, "{setting}");
        }
        pool.close().await;
        pgbouncer.serves("session").await;
    }
}

#[tokio::test]
async fn transaction_pooling_works_if_prepared_statements_are_kept() {
    let settings = "pool_mode = transaction\nmax_prepared_statements = 200\ndefault_pool_size = 3";
    let Some(pgbouncer) = Pgbouncer::start(PREPARED, settings).await else { return };
    assert_eq!(pooler::sharing(&pgbouncer.source()).await.unwrap(), Sharing::Transaction);
    pgbouncer.serves("transaction").await;
    assert_eq!(pgbouncer.listeners().await, 0);
}

#[tokio::test]
async fn transaction_pooling_works_with_a_single_connection() {
    let settings = "pool_mode = transaction\nmax_prepared_statements = 200\ndefault_pool_size = 1";
    let Some(pgbouncer) = Pgbouncer::start(PREPARED, settings).await else { return };
    assert_eq!(pooler::sharing(&pgbouncer.source()).await.unwrap(), Sharing::Transaction);
    pgbouncer.serves("transaction").await;
}

#[tokio::test]
async fn transaction_pooling_without_prepared_statements_is_refused() {
    let transaction = "pool_mode = transaction";
    let off = "pool_mode = transaction\nmax_prepared_statements = 0";
    for (program, settings) in [(DEBIAN, transaction), (PREPARED, off)] {
        let Some(pgbouncer) = Pgbouncer::start(program, settings).await else { continue };
        assert_eq!(pooler::sharing(&pgbouncer.source()).await.unwrap(), Sharing::Unprepared);
        pgbouncer.is_refused("transaction", &["prepared statements", "1.21", "docs/database.md"]).await;
        pgbouncer.is_refused("session", &["DB_POOLER=transaction"]).await;
    }
}

#[tokio::test]
async fn a_mode_other_than_that_of_the_pooler_is_refused() {
    let settings = "pool_mode = transaction\nmax_prepared_statements = 200";
    let Some(pgbouncer) = Pgbouncer::start(PREPARED, settings).await else { return };
    pgbouncer.is_refused("session", &["DB_POOLER=transaction"]).await;
}

#[tokio::test]
async fn migrations_must_bypass_a_pooler_in_transaction_mode() {
    let (home, url) = (Home::new(), database().await);
    let environment =
        [("DB_SOURCE", url.as_str()), ("DB_POOLER", "transaction"), ("TOKEN_SYMMETRIC_KEY", KEY)];
    home.start(&environment).end().await.fails(1, &["MIGRATION_DB_SOURCE", "MIGRATE_ON_START=false"]);
    let by_hand = [("MIGRATE_ON_START", "false")];
    let up = home.gatepass(&["migrate", "up"]).envs(&environment).envs(&by_hand).run().await;
    up.fails(1, &["MIGRATION_DB_SOURCE", "pooler"]);
    // Looking does no harm.
    home.gatepass(&["migrate", "status"]).envs(&environment).envs(&by_hand).run().await.expect(0);
}

#[tokio::test]
async fn transaction_mode_without_a_pooler_is_reported() {
    let (home, url) = (Home::new(), database().await);
    let environment = [
        ("DB_SOURCE", url.as_str()),
        ("DB_POOLER", "transaction"),
        ("MIGRATION_DB_SOURCE", url.as_str()),
        ("TOKEN_SYMMETRIC_KEY", KEY),
    ];
    let service = home.serve(&environment).await;
    assert!(service.stderr().contains("no pooler in transaction mode is found"), "{}", service.stderr());
    service.stop(Signal::TERM).await.expect(0);
}
