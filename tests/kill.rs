//! A replica is killed with `kill -9` at the worst moment. If it had committed a renewal and not answered it, the
//! client asks another replica again, and the session continues. A session that it had ended stays ended, whoever heard
//! of it.
//!
//! The tests do not wait for that moment but bring it about: a test holds the session's row until the replica waits for
//! it, stops the replica (`SIGSTOP`), releases the row so that Postgres commits, and kills the replica before it can
//! answer.

use serde_json::{Value, json};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::task::JoinSet;

use crate::{
    app::{KEY, PASSWORD, database},
    process::{Home, Process, Signal, until},
};

/// A database for replicas, and the test's own connections to it.
struct Fleet {
    home: Home,
    database_url: String,
    db: PgPool,
    http: reqwest::Client,
}

impl Fleet {
    /// With a first replica, and alice.
    async fn new() -> (Self, Process) {
        let database_url = database().await;
        let db = PgPoolOptions::new().max_connections(4).connect(&database_url).await.unwrap();
        let fleet = Self { home: Home::new(), database_url, db, http: reqwest::Client::new() };
        let one = fleet.start().await;
        let alice = json!({ "username": "alice", "email": "alice@example.com", "password": PASSWORD });
        assert_eq!(one.post("/users", &alice).await.0, 201);
        (fleet, one)
    }

    async fn start(&self) -> Process {
        self.home.serve(&[("DB_SOURCE", &self.database_url), ("TOKEN_SYMMETRIC_KEY", KEY)]).await
    }

    async fn generation(&self) -> i32 {
        sqlx::query_scalar("SELECT refresh_generation FROM sessions").fetch_one(&self.db).await.unwrap()
    }

    async fn is_ended(&self, login: &Value) -> bool {
        sqlx::query_scalar("SELECT ended_at IS NOT NULL FROM sessions WHERE id = $1::uuid")
            .bind(login["session_id"].as_str())
            .fetch_one(&self.db)
            .await
            .unwrap()
    }

    /// Whether a statement that contains this text waits for a lock.
    async fn is_waiting(&self, statement: &str) -> bool {
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock' AND strpos(query, $1) > 0)",
        )
        .bind(statement)
        .fetch_one(&self.db)
        .await
        .unwrap()
    }

    /// Kills `replica` after `request` is committed and before it is answered. The request makes the replica run
    /// `statement`, and `is_done` tells whether that is committed.
    async fn kill_before_the_answer(
        &self,
        replica: Process,
        request: reqwest::RequestBuilder,
        statement: &str,
        is_done: impl AsyncFnMut() -> bool,
    ) {
        let mut hold = self.db.begin().await.unwrap();
        sqlx::query("SELECT FROM sessions FOR UPDATE").execute(&mut *hold).await.unwrap();
        let answer = tokio::spawn(request.send());
        until("the replica waits for the row", async || self.is_waiting(statement).await).await;
        replica.signal(Signal::STOP);
        until("it has stopped", async || replica.is_stopped()).await;
        hold.rollback().await.unwrap();
        until("Postgres has committed", is_done).await;
        let ended = replica.stop(Signal::KILL).await;
        assert_eq!(ended.code, None);
        assert!(answer.await.unwrap().is_err(), "the client was answered");
    }
}

async fn log_in(replica: &Process) -> Value {
    let (status, login) =
        replica.post("/users/login", &json!({ "username": "alice", "password": PASSWORD })).await;
    assert_eq!(status, 200, "{login}");
    login
}

fn refresh_token(tokens: &Value) -> Value {
    json!({ "refresh_token": tokens["refresh_token"] })
}

async fn renew(replica: &Process, tokens: &Value) -> (u16, Value) {
    replica.post("/tokens/renew_access", &refresh_token(tokens)).await
}

/// The status, and the code if it is a problem.
async fn me(replica: &Process, tokens: &Value) -> (u16, Value) {
    let (status, mut body) = replica.get_as(tokens["access_token"].as_str().unwrap(), "/users/me").await;
    (status, body["code"].take())
}

#[tokio::test]
async fn a_committed_unanswered_renewal_is_given_again_by_another_replica() {
    let (fleet, one) = Fleet::new().await;
    let other = fleet.start().await;
    let login = log_in(&one).await;
    let request = fleet.http.post(one.url("/tokens/renew_access")).json(&refresh_token(&login));
    fleet
        .kill_before_the_answer(one, request, "SET refresh_generation", async || {
            fleet.generation().await == 1
        })
        .await;

    let (status, renewed) = renew(&other, &login).await;
    assert_eq!(status, 200, "{renewed}");
    assert_eq!(renewed["session_id"], login["session_id"]);
    assert_eq!(fleet.generation().await, 1, "the same successor, not another");
    assert_eq!(me(&other, &renewed).await.0, 200);
    // The session continues, even on a replica that was not there.
    let third = fleet.start().await;
    let (status, next) = renew(&third, &renewed).await;
    assert_eq!(status, 200, "{next}");
    assert_eq!(fleet.generation().await, 2);
    assert_eq!(me(&other, &next).await.0, 200);
}

#[tokio::test]
async fn a_logout_that_was_committed_and_not_answered_holds() {
    let (fleet, one) = Fleet::new().await;
    let other = fleet.start().await;
    let login = log_in(&one).await;
    let request =
        fleet.http.post(one.url("/users/logout")).bearer_auth(login["access_token"].as_str().unwrap());
    fleet.kill_before_the_answer(one, request, "SET ended_at", async || fleet.is_ended(&login).await).await;

    let revoked = (401, json!("session_revoked"));
    // The other replica hears of it, and a new one has heard of it before it serves.
    until("the other replica has heard", async || me(&other, &login).await == revoked).await;
    let third = fleet.start().await;
    assert_eq!(me(&third, &login).await, revoked);
    for replica in [&other, &third] {
        let (status, body) = renew(replica, &login).await;
        assert_eq!((status, &body["code"]), (401, &json!("session_revoked")));
    }
}

#[tokio::test]
async fn logouts_cut_short_by_a_kill_each_happened_completely_or_not_at_all() {
    let (fleet, one) = Fleet::new().await;
    let mut logins = Vec::new();
    for _ in 0..48 {
        logins.push(log_in(&one).await);
    }
    let mut logouts = JoinSet::new();
    for (i, login) in logins.iter().enumerate() {
        let token = login["access_token"].as_str().unwrap();
        let request = fleet.http.post(one.url("/users/logout")).bearer_auth(token);
        logouts.spawn(async move { (i, request.send().await) });
    }
    let mut one = Some(one);
    let mut told = Vec::new();
    while let Some(answer) = logouts.join_next().await {
        let (i, Ok(answer)) = answer.unwrap() else { continue };
        assert_eq!(answer.status(), 204);
        told.push(i);
        if told.len() == 8 {
            one.take().unwrap().stop(Signal::KILL).await;
        }
    }
    assert!(told.len() >= 8);

    // Postgres finishes what it had been sent, and only then finds that nobody is there.
    until("the killed replica's connections are gone", async || {
        sqlx::query_scalar(
            "SELECT NOT EXISTS (SELECT FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'gatepass')",
        )
        .fetch_one(&fleet.db)
        .await
        .unwrap()
    })
    .await;
    let again = fleet.start().await;
    let mut ended = 0;
    for (i, login) in logins.iter().enumerate() {
        let is_ended = fleet.is_ended(login).await;
        assert!(is_ended || !told.contains(&i), "a logout that was answered is undone");
        let expected = if is_ended { (401, json!("session_revoked")) } else { (200, Value::Null) };
        assert_eq!(me(&again, login).await, expected);
        ended += usize::from(is_ended);
        let (status, body) = renew(&again, login).await;
        assert_eq!((status, body["code"].clone()), expected);
    }
    let unrevoked: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM sessions
         WHERE (ended_at IS NOT NULL) <> EXISTS (SELECT FROM revocations WHERE session_id = sessions.id)",
    )
    .fetch_one(&fleet.db)
    .await
    .unwrap();
    assert_eq!(unrevoked, 0);
    println!("kill: of 48 logouts {ended} have happened, {} were answered", told.len());
}
