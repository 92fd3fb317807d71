//! Sixty-four callers do something with one session at the same moment, on two replicas: renewals of one token, mixed
//! with requests for a lost answer, replays of older tokens, logouts, and a user who is disabled. Whoever comes first,
//! no session is lost and none comes back.
//!
//! The clients keep a record of their answers; in the database a trigger keeps one of every change. In the end both
//! have to agree with what is there ([`INVARIANTS`]). `make test` runs thirty rounds, `make drill` a thousand.
//!
//! Then calls meet two at a time, in an order that the test forces ([`MEETINGS`]). And in a deadlock, made by hand, a
//! caller who was to end sessions and had to give way ends them all the same.

use std::{collections::BTreeSet, sync::Arc};

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::task::JoinSet;

use crate::{
    app::{Answer, App, KEY, PASSWORD},
    process::{Home, is_drill, until},
};

const CALLERS: usize = 64;

/// Queries that must find nothing. `held` is the clients' record.
const INVARIANTS: [(&str, &str); 9] = [
    (
        "a session was changed after its end",
        "SELECT (was).id FROM journal WHERE (was).ended_at IS NOT NULL
             AND ((was).ended_at, (was).end_reason, (was).refresh_generation, (was).access_expires_at)
             IS DISTINCT FROM
                 ((became).ended_at, (became).end_reason, (became).refresh_generation, (became).access_expires_at)",
    ),
    (
        "a generation was left out, or came back",
        "SELECT (was).id FROM journal
         WHERE (became).refresh_generation - (was).refresh_generation NOT IN (0, 1)",
    ),
    (
        "a generation is no longer confirmed",
        "SELECT (was).id FROM journal
         WHERE (was).is_confirmed AND NOT (became).is_confirmed
             AND (was).refresh_generation = (became).refresh_generation",
    ),
    (
        "a session is there that nobody has, or is gone",
        "SELECT coalesce(id, session_id) FROM sessions FULL JOIN held ON id = session_id
         WHERE id IS NULL OR session_id IS NULL",
    ),
    (
        "the generation is not the number of renewals that came off",
        "SELECT id FROM sessions JOIN held ON id = session_id WHERE refresh_generation <> renewals",
    ),
    (
        "a session was lost, or its client does not know why it is over",
        "SELECT id FROM sessions JOIN held ON id = session_id
         WHERE code IS DISTINCT FROM CASE
             WHEN end_reason = 'refresh_token_reused' THEN end_reason
             WHEN end_reason IS NOT NULL THEN 'session_revoked'
         END",
    ),
    (
        "a session outlives its end by an access token that the row does not know",
        "SELECT id FROM sessions JOIN held ON id = session_id
         WHERE sessions.access_expires_at < held.access_expires_at",
    ),
    (
        "a session has ended and its tokens are not revoked for as long as they live, or it has not and they are",
        "SELECT sessions.id FROM sessions JOIN held ON id = session_id
         WHERE (SELECT array_agg(expires_at >= held.access_expires_at) FROM revocations
                WHERE revocations.session_id = sessions.id)
             IS DISTINCT FROM CASE WHEN ended_at IS NOT NULL THEN ARRAY[true] END",
    ),
    (
        "a session ended more than once",
        "SELECT (was).id FROM journal WHERE (was).ended_at IS NULL AND (became).ended_at IS NOT NULL
         GROUP BY 1 HAVING count(*) > 1",
    ),
];

/// What one of the callers does.
#[derive(Clone, Copy, Debug)]
enum Call {
    /// With the refresh token from that many generations ago.
    Renew(usize),
    Use,
    Flush,
    LogOut,
    /// From another session of the same user.
    EndOthers,
    Disable,
}

/// All ask again for a lost answer, except for some who log out.
const LOST_ANSWER_AND_LOGOUT: [Call; CALLERS] = {
    let mut calls = [Call::Renew(1); CALLERS];
    calls[0] = Call::LogOut;
    calls[1] = Call::LogOut;
    calls
};

/// What is special about each round; all other callers renew with the current token.
const ROUNDS: [&[Call]; 12] = {
    use Call::{Disable, EndOthers, Flush, LogOut, Renew, Use};
    [
        &[],
        &[Renew(1); CALLERS],
        &[Use, Use, Flush, Flush, Use, Use, Flush, Flush, Use, Use, Use, Use],
        &[LogOut; 4],
        &LOST_ANSWER_AND_LOGOUT,
        &[Use, Flush, Use, Flush],
        &[Renew(2), Renew(2), Renew(2), Renew(2)],
        &[],
        &[Renew(1); 3],
        &[EndOthers, EndOthers, Use, Flush],
        &[Renew(2), LogOut, Renew(2), LogOut, Renew(2), LogOut],
        &[Disable],
    ]
};

/// A session as its client knows it.
struct Held {
    id: String,
    /// By generation; the last is the current one.
    refresh_tokens: Vec<String>,
    access_token: Value,
    access_expires_at: OffsetDateTime,
    /// The code that a renewal gets since the session is over.
    code: Option<String>,
}

impl Held {
    fn new(login: &Value) -> Self {
        let mut held = Self {
            id: text(login, "session_id"),
            refresh_tokens: vec![text(login, "refresh_token")],
            access_token: Value::Null,
            access_expires_at: OffsetDateTime::UNIX_EPOCH,
            code: None,
        };
        held.take(login);
        held
    }

    fn take(&mut self, tokens: &Value) {
        let end = OffsetDateTime::parse(&text(tokens, "access_token_expires_at"), &Rfc3339).unwrap();
        self.access_expires_at = self.access_expires_at.max(end);
        self.access_token = tokens.clone();
    }

    fn generation(&self) -> usize {
        self.refresh_tokens.len() - 1
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap().to_owned()
}

fn code(answer: &Answer) -> String {
    text(&serde_json::from_str(&answer.body).unwrap(), "code")
}

async fn renew(app: &App, refresh_token: &str) -> Answer {
    app.post("/tokens/renew_access").json(&json!({ "refresh_token": refresh_token })).send().await
}

/// Makes one caller's request, and returns its answer, if there is one.
async fn call(
    app: Arc<App>,
    call: Call,
    token: String,
    access_token: Value,
    user_id: Value,
) -> Option<Answer> {
    match call {
        Call::Renew(_) => Some(renew(&app, &token).await),
        Call::Use => Some(app.get("/users/me").bearer(&access_token).send().await),
        Call::LogOut => Some(app.post("/users/logout").bearer(&access_token).send().await),
        Call::EndOthers => Some(app.request(Method::DELETE, "/sessions").bearer(&access_token).send().await),
        Call::Flush => {
            app.state().activity.flush().await.unwrap();
            None
        }
        Call::Disable => {
            app.sql("UPDATE users SET disabled = true WHERE id = $1::uuid", &user_id).await;
            None
        }
    }
}

struct Race {
    replicas: [Arc<App>; 2],
    user_id: Value,
    past: Vec<Held>,
    present: Held,
    /// How many requests were answered.
    answered: usize,
}

impl Race {
    async fn new() -> Self {
        let app = App::new().await;
        let other = app.replica(&[]).await;
        for statement in [
            "CREATE TABLE journal AS SELECT sessions AS was, sessions AS became FROM sessions WITH NO DATA",
            "CREATE FUNCTION keep_journal() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
             'BEGIN INSERT INTO journal VALUES (OLD, NEW); RETURN NULL; END'",
            "CREATE TRIGGER journal AFTER UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION keep_journal()",
        ] {
            sqlx::query(statement).execute(&app.db).await.unwrap();
        }
        let user_id = app.register("alice").await["id"].clone();
        let present = Held::new(&app.login("alice").await);
        let replicas = [Arc::new(app), Arc::new(other)];
        Self { replicas, user_id, past: Vec::new(), present, answered: 0 }
    }

    async fn log_in(&mut self) {
        let login = self.replicas[0].login("alice").await;
        self.past.push(std::mem::replace(&mut self.present, Held::new(&login)));
    }

    /// All call at once.
    async fn round(&mut self, number: usize, others: &[Call]) {
        let asks_again = others.iter().any(|call| matches!(call, Call::Renew(1)));
        // A replay needs an older token; asking again needs an answer that was just lost.
        let needed = if asks_again { 1 } else { 2 };
        for _ in self.present.generation()..needed {
            self.race(number, &[]).await;
        }
        if asks_again {
            self.race(number, &[]).await;
            // Still within the reuse interval, and enough for the next access token to expire later.
            self.replicas[0].clock.advance(Duration::seconds(5));
        }
        self.race(number, others).await;
        self.settle(number).await;
        if self.present.code.is_some() {
            self.log_in().await;
        }
        self.replicas[0].clock.advance(Duration::seconds([0, 1, 7, 11, 60][number % 5]));
    }

    async fn race(&mut self, number: usize, others: &[Call]) {
        let generation = self.present.generation();
        let other_session = match others {
            [Call::EndOthers, ..] => Some(self.replicas[0].login("alice").await),
            _ => None,
        };
        let mut calls = JoinSet::new();
        for i in 0..CALLERS {
            // In another order each time: an odd step reaches every place once.
            let place = (i * (2 * number + 1) + number) % CALLERS;
            let what = others.get(place).copied().unwrap_or(Call::Renew(0));
            let token = match what {
                Call::Renew(age) => self.present.refresh_tokens[generation - age].clone(),
                _ => String::new(),
            };
            let access_token = match (what, &other_session) {
                (Call::EndOthers, Some(login)) => login.clone(),
                _ => self.present.access_token.clone(),
            };
            let answer = call(self.replicas[i % 2].clone(), what, token, access_token, self.user_id.clone());
            calls.spawn(async move { (what, answer.await) });
        }
        let mut codes = BTreeSet::new();
        let mut ended = others.iter().any(|call| matches!(call, Call::Disable));
        while let Some(done) = calls.join_next().await {
            let (what, Some(answer)) = done.unwrap() else { continue };
            self.answered += 1;
            let status = answer.status.as_u16();
            let told = format!("round {number}, {what:?}: {status} {}", answer.body);
            match (what, status) {
                (Call::Renew(age), 200) => {
                    let tokens: Value = serde_json::from_str(&answer.body).unwrap();
                    let successor = text(&tokens, "refresh_token");
                    match self.present.refresh_tokens.get(generation - age + 1) {
                        Some(known) => assert_eq!(*known, successor, "{told}"),
                        None => self.present.refresh_tokens.push(successor),
                    }
                    self.present.take(&tokens);
                }
                (Call::Renew(_), 401) => {
                    codes.insert(code(&answer));
                }
                (Call::Use, 200) => {}
                (Call::LogOut | Call::EndOthers, 204) => ended = true,
                // Somebody else ended it first.
                (Call::Use | Call::LogOut, 401) => assert_eq!(code(&answer), "session_revoked", "{told}"),
                _ => panic!("{told}"),
            }
        }
        if let Some(login) = other_session {
            // The session that ended the others stays alive until here.
            self.replicas[1].post("/users/logout").bearer(&login).send().await.expect(204);
            let mut held = Held::new(&login);
            held.code = Some("session_revoked".to_owned());
            self.past.push(held);
        }
        assert!(codes.len() <= 1, "round {number}: it ended in {codes:?}");
        self.present.code = codes.pop_first();
        if ended && self.present.code.is_none() {
            // All renewals came before the end.
            self.present.code = Some("session_revoked".to_owned());
        }
        self.expect_end(number, others, ended);
    }

    /// Checks that the session has ended if somebody ended it, and for no other reason.
    fn expect_end(&self, number: usize, others: &[Call], was_told: bool) {
        let is_replayed = others.iter().any(|call| matches!(call, Call::Renew(2)));
        // A caller who asks again, and is overtaken by a renewal, presents a token from two renewals ago.
        let may_be_replayed = others.iter().any(|call| matches!(call, Call::Renew(1)));
        match self.present.code.as_deref() {
            None => assert!(!is_replayed && !was_told, "round {number}: the session goes on"),
            Some("refresh_token_reused") => assert!(is_replayed || may_be_replayed, "round {number}"),
            Some("session_revoked") => assert!(was_told, "round {number}"),
            Some(code) => panic!("round {number}: {code}"),
        }
    }

    /// What each replica says afterwards.
    async fn settle(&mut self, number: usize) {
        sqlx::query("UPDATE users SET disabled = false").execute(&self.replicas[0].db).await.unwrap();
        let Self { replicas, present, .. } = self;
        for app in replicas {
            app.state().feed.hear().await.unwrap();
            let answer = app.get("/users/me").bearer(&present.access_token).send().await;
            match &present.code {
                Some(told) => {
                    answer.expect_problem(401, "session_revoked");
                    for token in &present.refresh_tokens[present.generation() - 1..] {
                        renew(app, token).await.expect_problem(401, told);
                    }
                }
                None => {
                    answer.expect(200);
                    if number.is_multiple_of(2) {
                        app.state().activity.flush().await.unwrap();
                    }
                }
            }
        }
    }

    /// Loads the clients' record into the database, which compares.
    async fn check(mut self) {
        // No session is lost.
        if self.present.code.is_none() {
            let token = self.present.refresh_tokens.last().unwrap().clone();
            let tokens = renew(&self.replicas[1], &token).await.expect(200);
            self.present.refresh_tokens.push(text(&tokens, "refresh_token"));
            self.present.take(&tokens);
        }
        let db = &self.replicas[0].db;
        let table =
            "CREATE TABLE held (session_id uuid, renewals int, access_expires_at timestamptz, code text)";
        sqlx::query(table).execute(db).await.unwrap();
        let held: Vec<_> = self.past.iter().chain([&self.present]).collect();
        sqlx::query(
            "INSERT INTO held SELECT id::uuid, renewals, ends_at, code
             FROM unnest($1::text[], $2::int[], $3::timestamptz[], $4::text[]) AS held (id, renewals, ends_at, code)",
        )
        .bind(held.iter().map(|held| held.id.clone()).collect::<Vec<_>>())
        .bind(held.iter().map(|held| i32::try_from(held.generation()).unwrap()).collect::<Vec<_>>())
        .bind(held.iter().map(|held| held.access_expires_at).collect::<Vec<_>>())
        .bind(held.iter().map(|held| held.code.clone()).collect::<Vec<_>>())
        .execute(db)
        .await
        .unwrap();
        for (what, query) in INVARIANTS {
            let found = sqlx::query(AssertSqlSafe(query)).fetch_all(db).await.unwrap();
            let ids: Vec<uuid::Uuid> = found.iter().map(|row| row.get(0)).collect();
            assert!(ids.is_empty(), "{what}: {ids:?}");
        }
        println!("session races: {} sessions, {} answers", held.len(), self.answered);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_requests_neither_lose_nor_revive_a_session() {
    let mut race = Race::new().await;
    for number in 0..if is_drill() { 1000 } else { 30 } {
        race.round(number, ROUNDS[number % ROUNDS.len()]).await;
    }
    race.check().await;
}

/// Two calls that meet at a session's row, the first before the second: both have read the row before the first may
/// change it.
struct Meeting {
    calls: [Call; 2],
    /// Status, and the code of a problem.
    answers: [&'static str; 2],
    /// In the row afterwards.
    generation: i32,
    end_reason: Option<&'static str>,
}

const fn meeting(
    calls: [Call; 2],
    answers: [&'static str; 2],
    generation: i32,
    end_reason: Option<&'static str>,
) -> Meeting {
    Meeting { calls, answers, generation, end_reason }
}

/// The session is in generation 2, which is confirmed, and the reuse interval is over.
const MEETINGS: [Meeting; 13] = {
    use Call::{Disable, EndOthers, Flush, LogOut, Renew};
    const REVOKED: &str = "401 session_revoked";
    const REUSED: &str = "401 refresh_token_reused";
    [
        meeting([Renew(0), Renew(0)], ["200", "200"], 3, None),
        meeting([LogOut, Renew(0)], ["204", REVOKED], 2, Some("logout")),
        meeting([Renew(0), LogOut], ["200", "204"], 3, Some("logout")),
        meeting([EndOthers, Renew(0)], ["204", REVOKED], 2, Some("revoked")),
        meeting([Renew(0), EndOthers], ["200", "204"], 3, Some("revoked")),
        meeting([Disable, Renew(0)], ["", REVOKED], 2, Some("user_disabled")),
        meeting([Renew(0), Disable], ["200", ""], 3, Some("user_disabled")),
        meeting([Renew(1), Renew(0)], [REUSED, REUSED], 2, Some("refresh_token_reused")),
        meeting([Renew(0), Renew(1)], ["200", REUSED], 3, Some("refresh_token_reused")),
        meeting([Renew(1), LogOut], [REUSED, "204"], 2, Some("refresh_token_reused")),
        meeting([LogOut, Renew(1)], ["204", REVOKED], 2, Some("logout")),
        // A sighting of a generation confirms that one, not the one after it.
        meeting([Flush, Renew(0)], ["", "200"], 3, None),
        meeting([Renew(0), Flush], ["200", ""], 3, None),
    ]
};

/// How many connections wait for a lock.
async fn waiting(app: &App) -> i64 {
    sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    .fetch_one(&app.db)
    .await
    .unwrap()
}

async fn meet(replicas: &[Arc<App>; 2], user_id: &Value, meeting: &Meeting) {
    let [app, _] = replicas;
    let mut held = Held::new(&app.login("alice").await);
    for generation in 0..2 {
        let tokens = renew(app, &held.refresh_tokens[generation]).await.expect(200);
        held.refresh_tokens.push(text(&tokens, "refresh_token"));
        held.take(&tokens);
    }
    for replica in replicas {
        replica.get("/users/me").bearer(&held.access_token).send().await.expect(200);
        if !meeting.calls.iter().any(|call| matches!(call, Call::Flush)) {
            replica.state().activity.flush().await.unwrap();
        }
    }
    app.clock.advance(Duration::seconds(11));
    let other_session = app.login("alice").await;

    let mut hold = app.db.begin().await.unwrap();
    sqlx::query("SELECT FROM sessions WHERE id = $1::uuid FOR UPDATE")
        .bind(&held.id)
        .execute(&mut *hold)
        .await
        .unwrap();
    let mut under_way = Vec::new();
    for ((replica, what), others) in replicas.iter().zip(meeting.calls).zip(1..) {
        let (token, access_token) = match what {
            Call::Renew(age) => (held.refresh_tokens[2 - age].clone(), Value::Null),
            Call::EndOthers => (String::new(), other_session.clone()),
            _ => (String::new(), held.access_token.clone()),
        };
        let answer = call(replica.clone(), what, token, access_token, user_id.clone());
        under_way.push(tokio::spawn(answer));
        until("it waits", async || waiting(app).await == others).await;
    }
    hold.rollback().await.unwrap();

    let told = format!("{:?}", meeting.calls);
    let mut successors = BTreeSet::new();
    for (answer, expected) in under_way.into_iter().zip(meeting.answers) {
        let Some(answer) = answer.await.unwrap() else { continue };
        let status = answer.status.as_u16();
        let got = if status == 401 { format!("401 {}", code(&answer)) } else { status.to_string() };
        assert_eq!(got, expected, "{told}: {}", answer.body);
        if status == 200 {
            let tokens = answer.expect(200);
            successors.insert(text(&tokens, "refresh_token"));
            held.take(&tokens);
        }
    }
    assert!(successors.len() <= 1, "{told}");
    let row = sqlx::query(
        "SELECT refresh_generation, end_reason, is_confirmed,
                (SELECT count(*) FROM revocations WHERE session_id = sessions.id AND expires_at >= $2)
         FROM sessions WHERE id = $1::uuid",
    );
    let row = row.bind(&held.id).bind(held.access_expires_at).fetch_one(&app.db).await.unwrap();
    assert_eq!(row.get::<i32, _>(0), meeting.generation, "{told}");
    assert_eq!(row.get::<Option<&str>, _>(1), meeting.end_reason, "{told}");
    assert_eq!(row.get::<bool, _>(2), meeting.generation == 2, "{told}");
    assert_eq!(row.get::<i64, _>(3), i64::from(meeting.end_reason.is_some()), "{told}");
    sqlx::query("UPDATE users SET disabled = false").execute(&app.db).await.unwrap();
    for replica in replicas {
        replica.state().feed.hear().await.unwrap();
        let answer = replica.get("/users/me").bearer(&held.access_token).send().await;
        let expected = if meeting.end_reason.is_some() { 401 } else { 200 };
        assert_eq!(answer.status.as_u16(), expected, "{told}");
    }
}

#[tokio::test]
async fn the_second_of_two_concurrent_requests_sees_the_result_of_the_first() {
    let app = App::new().await;
    let other = app.replica(&[]).await;
    let user_id = app.register("alice").await["id"].clone();
    let replicas = [Arc::new(app), Arc::new(other)];
    for meeting in &MEETINGS {
        meet(&replicas, &user_id, meeting).await;
    }
}

/// The service locks the sessions that it ends in the order of their ids. A statement by hand that does otherwise
/// causes a deadlock. The service is the one to give way, since the other never looks for deadlocks, and then does its
/// work all the same.
async fn deadlock(name: &str, act: impl AsyncFnOnce(&App, &Value)) {
    let app = App::new().await;
    app.register("alice").await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(text(&app.login("alice").await, "session_id"));
    }
    ids.sort();
    let own = app.login("alice").await;

    let mut by_hand = PgConnection::connect(&app.database_url).await.unwrap();
    for statement in ["BEGIN", "SET LOCAL deadlock_timeout = '1h'"] {
        sqlx::raw_sql(statement).execute(&mut by_hand).await.unwrap();
    }
    let update = "UPDATE sessions SET user_agent = 'by hand' WHERE id = $1::uuid";
    sqlx::query(update).bind(&ids[1]).execute(&mut by_hand).await.unwrap();
    let in_between = async {
        until("the service waits", async || waiting(&app).await > 0).await;
        // This returns only when the service has let go, and not because the service was done: the other row is ours.
        sqlx::query(update).bind(&ids[0]).execute(&mut by_hand).await.unwrap();
        sqlx::raw_sql("COMMIT").execute(&mut by_hand).await.unwrap();
    };
    tokio::join!(act(&app, &own), in_between);

    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sessions WHERE ended_at IS NULL AND id = ANY ($1::uuid[])")
            .bind(&ids)
            .fetch_one(&app.db)
            .await
            .unwrap();
    assert_eq!(left, 0, "{name}");
    let revoked: i64 =
        sqlx::query_scalar("SELECT count(*) FROM revocations WHERE session_id = ANY ($1::uuid[])")
            .bind(&ids)
            .fetch_one(&app.db)
            .await
            .unwrap();
    assert_eq!(revoked, 2, "{name}: each once");
}

#[tokio::test]
async fn sessions_end_even_if_the_statement_ending_them_loses_a_deadlock() {
    let delete = deadlock("all sessions", async |app, own| {
        app.request(Method::DELETE, "/sessions?all=true").bearer(own).send().await.expect(204);
    });
    let password = deadlock("password change", async |app, own| {
        let body = json!({ "current_password": PASSWORD, "new_password": "another-horse-battery-10" });
        app.request(Method::PUT, "/users/me/password").bearer(own).json(&body).send().await.expect(204);
    });
    let account = deadlock("account deletion", async |app, own| {
        let body = json!({ "password": PASSWORD });
        app.post("/users/me/delete").bearer(own).json(&body).send().await.expect(204);
    });
    let disable = deadlock("user disable", async |app, _| {
        let home = Home::new();
        let command = home.gatepass(&["user", "disable", "alice"]);
        command.envs(&[("DB_SOURCE", &app.database_url), ("TOKEN_SYMMETRIC_KEY", KEY)]).run().await.expect(0);
    });
    tokio::join!(delete, password, account, disable);
}
