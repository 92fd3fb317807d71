//! The primary is lost and a standby takes its place behind the same address. The service recovers by itself within
//! 15 s, whichever way the server was lost. If it was killed, its connections end at once. If it vanished with its
//! machine, they hang: no end, no error and no answer, even to statements that are under way on every connection of the
//! pool.
//!
//! The standby is synchronous, so nothing is lost that was answered: sessions continue, and what was revoked a moment
//! before stays revoked. With an asynchronous standby the last changes may be gone, as they may for any program.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::Connection;
use tokio::{net::TcpListener, task::JoinSet, time::sleep};

use crate::{
    app::{KEY, PASSWORD},
    postgres::{Address, Server, directory, self_signed},
    process::{Home, Port, Process, Signal, allowed, until},
};

/// The promised time to recover.
const BACK_WITHIN: Duration = Duration::from_secs(15);

struct Story {
    primary: Server,
    standby: Server,
    address: Address,
    service: Process,
    _home: Home,
    /// Sessions of alice: one that continues, and one that was ended a moment before.
    kept: Value,
    ended: Value,
}

impl Story {
    async fn begin() -> Self {
        // TLS is the harder case: even closing a connection waits for an answer.
        let dir = directory();
        self_signed(dir.path(), "server").await;
        let primary = Server::encrypted(dir.path()).await;
        let standby = primary.standby().await;
        let address = Address::of(&primary).await;
        let home = Home::new();
        let url = format!("{}?sslmode=require", address.url());
        let service = home.serve(&[("DB_SOURCE", &url), ("TOKEN_SYMMETRIC_KEY", KEY)]).await;
        let alice = json!({ "username": "alice", "email": "alice@example.com", "password": PASSWORD });
        assert_eq!(service.post("/users", &alice).await.0, 201);
        let (kept, ended) = (log_in(&service).await.unwrap(), log_in(&service).await.unwrap());
        let logout = reqwest::Client::new().post(service.url("/users/logout"));
        let answer = logout.bearer_auth(token(&ended)).send().await.unwrap();
        assert_eq!(answer.status(), 204);
        Self { primary, standby, address, service, _home: home, kept, ended }
    }

    /// What must hold after the failover, which began at `lost`.
    async fn end(self, lost: Instant) {
        let Self { standby, service, kept, ended, .. } = &self;
        while log_in(service).await.is_none() {
            assert!(lost.elapsed() < allowed(BACK_WITHIN), "{}\n{}", service.stderr(), standby.log());
            sleep(Duration::from_millis(100)).await;
        }
        let back = lost.elapsed();
        assert!(back < allowed(BACK_WITHIN), "{back:?}");

        assert_eq!(me(service, kept).await, (200, Value::Null));
        assert_eq!(me(service, ended).await, (401, json!("session_revoked")));
        let renewal = json!({ "refresh_token": ended["refresh_token"] });
        assert_eq!(service.post("/tokens/renew_access", &renewal).await.0, 401);
        let renewal = json!({ "refresh_token": kept["refresh_token"] });
        let (status, renewed) = service.post("/tokens/renew_access", &renewal).await;
        assert_eq!(status, 200, "{renewed}");

        // The feed continues with the new server, whose snapshots mean something else.
        until("the feed is back", async || service.get("/readyz").await.0 == 200).await;
        let feed = lost.elapsed();
        assert!(feed < allowed(BACK_WITHIN), "{feed:?}");
        let mut conn = standby.connect().await;
        sqlx::query("DELETE FROM sessions WHERE id = $1::uuid")
            .bind(kept["session_id"].as_str())
            .execute(&mut conn)
            .await
            .unwrap();
        let revoked = Instant::now();
        until("it is heard", async || me(service, &renewed).await.1 == json!("session_revoked")).await;
        assert!(revoked.elapsed() < allowed(Duration::from_secs(1)), "{:?}", revoked.elapsed());
        until("it listens again", async || {
            let listening = "SELECT EXISTS (SELECT FROM pg_stat_activity
                                            WHERE application_name = 'gatepass' AND query LIKE 'LISTEN%')";
            sqlx::query_scalar(listening).fetch_one(&mut conn).await.unwrap()
        })
        .await;
        println!(
            "failover: logins after {back:.1?}, the feed after {feed:.1?}, listens after {:.1?}",
            lost.elapsed()
        );
        self.service.stop(Signal::TERM).await.expect(0);
    }
}

async fn log_in(service: &Process) -> Option<Value> {
    let login = json!({ "username": "alice", "password": PASSWORD });
    let (status, answer) = service.post("/users/login", &login).await;
    match status {
        200 => Some(answer),
        503 => None,
        other => panic!("{other} {answer}"),
    }
}

fn token(login: &Value) -> &str {
    login["access_token"].as_str().unwrap()
}

/// The status, and the code if it is a problem.
async fn me(service: &Process, login: &Value) -> (u16, Value) {
    let (status, mut body) = service.get_as(token(login), "/users/me").await;
    (status, body["code"].take())
}

#[tokio::test]
async fn a_killed_primary_is_replaced() {
    let mut story = Story::begin().await;
    let lost = Instant::now();
    story.primary.kill().await;
    story.standby.promote().await;
    story.address.turn_to(&story.standby);
    story.end(lost).await;
}

#[tokio::test]
async fn a_primary_that_vanishes_without_a_word_is_replaced() {
    let story = Story::begin().await;
    // A statement on every connection for requests, and more requests that wait for one.
    let mut conn = story.primary.connect().await;
    let mut lock = conn.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let mut waiting = JoinSet::new();
    for _ in 0..8 {
        let request =
            reqwest::Client::new().get(story.service.url("/users/me")).bearer_auth(token(&story.kept));
        waiting.spawn(async move { request.send().await.unwrap().status().as_u16() });
    }
    let mut witness = story.primary.connect().await;
    until("every connection waits", async || {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'gatepass' AND wait_event_type = 'Lock'",
        )
        .fetch_one(&mut witness)
        .await
        .unwrap();
        waiting == 4
    })
    .await;
    let lost = Instant::now();
    story.address.cut();
    story.standby.promote().await;
    story.address.turn_to(&story.standby);
    story.end(lost).await;
    // Requests that waited were told to come again.
    assert!(waiting.join_all().await.iter().all(|status| *status == 503));
}

/// What `/readyz` says is for anybody. Whoever has the log can tell one failure from the next, though each may pass.
#[tokio::test]
async fn the_log_has_the_cause_of_an_outage() {
    let primary = Server::new("", |_| ()).await;
    let standby = primary.standby().await;
    let address = Address::of(&primary).await;
    let home = Home::new();
    // Nothing else becomes a reason meanwhile, which would be logged as well.
    let settings = [("TOKEN_SYMMETRIC_KEY", KEY), ("REVOCATION_MAX_STALENESS", "10m")];
    let service = home.serve(&[&settings[..], &[("DB_SOURCE", &address.url())]].concat()).await;
    let nobody = Port::reserve();
    // The kernel takes connections for it, and nothing answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for (port, reason, cause) in [
        (standby.port, "database: not reachable", "the server is a standby"),
        (nobody.address().port(), "database: not reachable", "error communicating with database"),
        (silent.local_addr().unwrap().port(), "database: no answer in time", ""),
    ] {
        address.turn_to_port(port);
        address.cut();
        until(reason, async || {
            let (_, body) = service.get("/readyz").await;
            let log = service.stderr();
            let mut told = log.lines().filter(|line| line.contains("not ready") && line.contains(reason));
            body["reasons"][0] == json!(reason) && told.any(|line| line.contains(cause))
        })
        .await;
    }
    address.turn_to(&primary);
    until("it is ready again", async || service.get("/readyz").await.0 == 200).await;
    service.stop(Signal::TERM).await.expect(0);
}

/// Requests hold every place of the pool while they try to connect. The probe then gets none, and still says why.
#[tokio::test]
async fn an_outage_with_traffic_has_one_reason_which_is_logged_once() {
    let primary = Server::new("", |_| ()).await;
    let address = Address::of(&primary).await;
    let home = Home::new();
    let settings = [("TOKEN_SYMMETRIC_KEY", KEY), ("REVOCATION_MAX_STALENESS", "10m")];
    let service = home.serve(&[&settings[..], &[("DB_SOURCE", &address.url())]].concat()).await;
    address.turn_to_port(Port::reserve().address().port());
    address.cut();
    let reasons = async || service.get("/readyz").await.1["reasons"].take();
    until("connections are refused", async || reasons().await == json!(["database: not reachable"])).await;

    let mut crowd = JoinSet::new();
    for _ in 0..16 {
        let login = reqwest::Client::new().post(service.url("/users/login"));
        let login = login.json(&json!({ "username": "alice", "password": PASSWORD }));
        crowd.spawn(async move { while login.try_clone().unwrap().send().await.is_ok() {} });
    }
    // The first of these may come before the crowd.
    for _ in 0..4 {
        assert_eq!(reasons().await, json!(["database: not reachable"]));
    }
    crowd.shutdown().await;
    address.turn_to(&primary);
    until("it is ready again", async || service.get("/readyz").await.0 == 200).await;
    let log = service.stop(Signal::TERM).await.expect(0).stderr;
    let told: Vec<_> =
        log.lines().filter_map(|line| line.split_once("not ready")).map(|(_, why)| why).collect();
    let kinds: HashSet<_> = told.iter().collect();
    assert_eq!(kinds.len(), told.len(), "{log}");
}
