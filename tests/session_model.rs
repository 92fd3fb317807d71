//! Whatever happens to a user's sessions, on whichever of two replicas and in whatever order, every renewal and every
//! request gets the answer that a small model of sessions predicts.
//!
//! The model knows no SQL and no feed, only the rules. When a story goes otherwise, its shortest form is printed, step
//! by step. `make test` runs the same stories each time, `make drill` new ones and many more.

use std::{
    collections::BTreeSet,
    fmt::{self, Write},
};

use axum::http::Method;
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngSeed, TestError, TestRunner},
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::runtime::Runtime;

use crate::{
    app::{Answer, App, PASSWORD},
    process::is_drill,
};

const REUSE_INTERVAL: Duration = Duration::seconds(10);
const ACCESS_TOKEN: Duration = Duration::minutes(15);
const REFRESH_TOKEN: Duration = Duration::hours(1);
const SESSION: Duration = Duration::hours(3);
const SETTINGS: [(&str, &str); 4] = [
    ("REFRESH_REUSE_INTERVAL", "10s"),
    ("ACCESS_TOKEN_DURATION", "15m"),
    ("REFRESH_TOKEN_DURATION", "1h"),
    ("SESSION_DURATION", "3h"),
];
/// In seconds: just before, at and after the durations in the settings.
const LEAPS: [i64; 9] = [1, 8, 9, 10, 300, 899, 900, 3600, 10_800];
const ROLES: [&str; 2] = ["{}", "{editor}"];
const PASSWORDS: [&str; 2] = [PASSWORD, "another-horse-battery-10"];

/// One of those that exist at that time, counted from the newest.
type Pick = u8;

/// An access token: its session, and its place among that session's tokens.
#[derive(Clone, Copy, Debug)]
struct Bearer(Pick, Pick);

/// What somebody does.
#[derive(Clone, Copy, Debug)]
enum Act {
    LogIn,
    /// With the refresh token from that many renewals ago.
    Renew(Pick, Pick),
    Use(Bearer),
    /// The replica writes down what it has seen.
    Flush,
    LogOut(Bearer),
    EndOne(Bearer, Pick),
    EndOthers(Bearer),
    EndAll(Bearer),
    ChangePassword(Bearer),
    /// With the refresh token from that many renewals ago (RFC 7009).
    Revoke(Pick, Pick),
    Disable,
    Enable,
    SetRoles(usize),
    Wait(i64),
}

/// What somebody does, and on which replica.
#[derive(Clone, Copy, Debug)]
struct Step(Act, usize);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pick = || prop_oneof![5 => Just(0), 3 => Just(1), 1 => Just(2)];
    let bearer = move || (pick(), pick()).prop_map(|(session, token)| Bearer(session, token));
    let age = || prop_oneof![12 => Just(0), 8 => Just(1), 1 => Just(2)];
    let act = prop_oneof![
        2 => Just(Act::LogIn),
        18 => (pick(), age()).prop_map(|(session, age)| Act::Renew(session, age)),
        12 => bearer().prop_map(Act::Use),
        6 => Just(Act::Flush),
        1 => bearer().prop_map(Act::LogOut),
        1 => (bearer(), pick()).prop_map(|(bearer, which)| Act::EndOne(bearer, which)),
        1 => bearer().prop_map(Act::EndOthers),
        1 => bearer().prop_map(Act::EndAll),
        1 => bearer().prop_map(Act::ChangePassword),
        1 => (pick(), age()).prop_map(|(session, age)| Act::Revoke(session, age)),
        1 => Just(Act::Disable),
        2 => Just(Act::Enable),
        3 => (0..ROLES.len()).prop_map(Act::SetRoles),
        9 => proptest::sample::select(&LEAPS[..]).prop_map(Act::Wait),
    ];
    vec((act, 0..2_usize).prop_map(|(act, replica)| Step(act, replica)), 1..60)
}

/// What the model knows of a session.
#[derive(Debug)]
struct Session {
    id: String,
    /// By generation; the last is the current one.
    refresh_tokens: Vec<String>,
    access_tokens: Vec<AccessToken>,
    renewed_at: OffsetDateTime,
    /// Whether a replica has written down that it saw a token of the current generation.
    is_confirmed: bool,
    idle_end: OffsetDateTime,
    end: OffsetDateTime,
    /// The code that a renewal gets, once somebody has ended the session.
    ended: Option<&'static str>,
}

#[derive(Debug)]
struct AccessToken {
    text: String,
    generation: usize,
    roles: usize,
    end: OffsetDateTime,
}

/// A user and their sessions.
#[derive(Debug, Default)]
struct Model {
    sessions: Vec<Session>,
    is_disabled: bool,
    roles: usize,
    password: usize,
    /// For each replica, the session and generation of every token that it has seen and not yet written down.
    seen: [BTreeSet<(usize, usize)>; 2],
}

/// The outcome of a renewal.
#[derive(Debug, PartialEq, Eq)]
enum Renewal {
    Next,
    SameAgain,
    Refused(&'static str),
}

impl Session {
    /// Whether there is anything left to end.
    fn is_alive(&self, now: OffsetDateTime) -> bool {
        self.ended.is_none()
            && (now < self.idle_end || self.access_tokens.iter().any(|token| now < token.end))
    }

    fn end(&mut self, now: OffsetDateTime) {
        if self.is_alive(now) {
            self.ended = Some("session_revoked");
        }
    }

    fn renewal(&self, age: usize, now: OffsetDateTime) -> Renewal {
        match self.ended {
            Some(code) => Renewal::Refused(code),
            None if now >= self.idle_end => Renewal::Refused("session_expired"),
            None if age == 0 => Renewal::Next,
            None if age == 1 && (now < self.renewed_at + REUSE_INTERVAL || !self.is_confirmed) => {
                Renewal::SameAgain
            }
            None => Renewal::Refused("refresh_token_reused"),
        }
    }
}

impl Model {
    /// The session that is meant.
    fn session(&self, pick: Pick) -> usize {
        self.sessions.len() - 1 - usize::from(pick) % self.sessions.len()
    }

    /// The session and the access token that are meant.
    fn bearer(&self, Bearer(session, token): Bearer) -> (usize, usize) {
        let session = self.session(session);
        let count = self.sessions[session].access_tokens.len();
        (session, count - 1 - usize::from(token) % count)
    }

    /// How many renewals ago the refresh token that is meant was made; no more than there were.
    fn age(&self, session: usize, pick: Pick) -> usize {
        usize::from(pick).min(self.sessions[session].refresh_tokens.len() - 1)
    }

    /// Why a request with an access token is refused. If it is not, `replica` has seen the token.
    fn admit(
        &mut self,
        replica: usize,
        (session, token): (usize, usize),
        now: OffsetDateTime,
    ) -> Result<(), &'static str> {
        let Session { access_tokens, ended, .. } = &self.sessions[session];
        let token = &access_tokens[token];
        if now >= token.end {
            Err("token_expired")
        } else if ended.is_some() {
            Err("session_revoked")
        } else if token.roles != self.roles {
            Err("token_outdated")
        } else {
            self.seen[replica].insert((session, token.generation));
            Ok(())
        }
    }

    fn flush(&mut self, replica: usize) {
        for (session, generation) in std::mem::take(&mut self.seen[replica]) {
            let session = &mut self.sessions[session];
            session.is_confirmed |= generation + 1 == session.refresh_tokens.len();
        }
    }
}

/// Whole seconds, as tokens have them.
fn seconds(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(0).unwrap()
}

/// The user of one story, and what has happened to them.
struct Story<'a> {
    replicas: &'a [App; 2],
    user_id: Value,
    username: String,
    model: Model,
    told: String,
}

/// The error says what was predicted and what happened instead.
type Outcome = Result<(), String>;

impl Story<'_> {
    fn now(&self) -> OffsetDateTime {
        self.replicas[0].clock.now()
    }

    fn tell(&mut self, what: impl fmt::Display) {
        write!(self.told, "\n  {what}").unwrap();
    }

    async fn step(&mut self, Step(act, on): Step) -> Outcome {
        let now = self.now();
        let app = &self.replicas[on];
        if self.model.sessions.is_empty() && !matches!(act, Act::LogIn) {
            return Ok(());
        }
        match act {
            Act::LogIn => self.log_in(on).await?,
            Act::Renew(session, age) => self.renew(on, session, age).await?,
            Act::Use(bearer) => {
                let (told, token) = self.with(on, "uses", bearer);
                self.check(told, 200, app.get("/users/me").token(&token).send().await)?;
            }
            Act::Flush => {
                self.tell(format_args!("replica {on} writes down what it has seen"));
                app.state().activity.flush().await.unwrap();
                self.model.flush(on);
            }
            Act::LogOut(bearer) => {
                let (told, token) = self.with(on, "logs out with", bearer);
                self.check(told, 204, app.post("/users/logout").token(&token).send().await)?;
                if told.is_ok() {
                    let (session, _) = self.model.bearer(bearer);
                    self.model.sessions[session].end(now);
                }
            }
            Act::EndOne(bearer, which) => {
                let which = self.model.session(which);
                let (told, token) = self.with(on, &format!("ends session {which} with"), bearer);
                let path = format!("/sessions/{}", self.model.sessions[which].id);
                let is_alive = self.model.sessions[which].is_alive(now);
                let told = told.and_then(|()| is_alive.then_some(()).ok_or("not_found"));
                self.check(told, 204, app.request(Method::DELETE, &path).token(&token).send().await)?;
                if told.is_ok() {
                    self.model.sessions[which].end(now);
                }
            }
            Act::EndOthers(bearer) => self.end_many(on, bearer, "others").await?,
            Act::EndAll(bearer) => self.end_many(on, bearer, "all").await?,
            Act::ChangePassword(bearer) => self.end_many(on, bearer, "password").await?,
            Act::Revoke(session, age) => {
                let session = self.model.session(session);
                let age = self.model.age(session, age);
                self.tell(format_args!("session {session} is revoked with refresh token -{age} on {on}"));
                let known = &mut self.model.sessions[session];
                let token = known.refresh_tokens[known.refresh_tokens.len() - 1 - age].clone();
                known.end(now);
                let answer = app.post("/tokens/revoke").form(&[("token", &token)]).send().await;
                self.check(Ok(()), 200, answer)?;
            }
            Act::Disable => {
                self.tell("the user is disabled");
                app.sql("UPDATE users SET disabled = true WHERE id = $1::uuid", &self.user_id).await;
                if !self.model.is_disabled {
                    self.model.is_disabled = true;
                    for session in &mut self.model.sessions {
                        session.ended.get_or_insert("session_revoked");
                    }
                }
            }
            Act::Enable => {
                self.tell("the user is enabled");
                app.sql("UPDATE users SET disabled = false WHERE id = $1::uuid", &self.user_id).await;
                self.model.is_disabled = false;
            }
            Act::SetRoles(roles) => {
                self.tell(format_args!("the user's roles are {}", ROLES[roles]));
                sqlx::query("UPDATE users SET roles = $2::text[] WHERE id = $1::uuid")
                    .bind(self.user_id.as_str())
                    .bind(ROLES[roles])
                    .execute(&app.db)
                    .await
                    .unwrap();
                self.model.roles = roles;
            }
            Act::Wait(seconds) => {
                self.tell(format_args!("{seconds} s go by"));
                app.clock.advance(Duration::seconds(seconds));
            }
        }
        // The replica that did it knows already. What was done by hand is news to both.
        let is_by_hand = matches!(act, Act::Disable | Act::Enable | Act::SetRoles(_));
        for (i, replica) in self.replicas.iter().enumerate() {
            if i != on || is_by_hand {
                replica.state().feed.hear().await.unwrap();
            }
        }
        Ok(())
    }

    /// What should become of a request with an access token, and the token.
    fn with(&mut self, on: usize, does: &str, bearer: Bearer) -> (Result<(), &'static str>, String) {
        let (session, token) = self.model.bearer(bearer);
        let AccessToken { text, generation, .. } = &self.model.sessions[session].access_tokens[token];
        let text = text.clone();
        let told =
            format!("{does} access token {token}, of generation {generation}, of session {session} on {on}");
        self.tell(told);
        let now = self.now();
        (self.model.admit(on, (session, token), now), text)
    }

    async fn log_in(&mut self, on: usize) -> Outcome {
        let (now, begun) = (self.now(), seconds(self.now()));
        self.tell(format_args!("logs in on {on}, as session {}", self.model.sessions.len()));
        let body = json!({ "username": self.username, "password": PASSWORDS[self.model.password] });
        let answer = self.replicas[on].post("/users/login").json(&body).send().await;
        let told = if self.model.is_disabled { Err("invalid_credentials") } else { Ok(()) };
        let Some(tokens) = self.check(told, 200, answer)? else { return Ok(()) };
        let (idle_end, end) = (begun + REFRESH_TOKEN, begun + SESSION);
        self.model.sessions.push(Session {
            id: text(&tokens["session_id"]),
            refresh_tokens: vec![text(&tokens["refresh_token"])],
            access_tokens: Vec::new(),
            renewed_at: now,
            is_confirmed: false,
            idle_end,
            end,
            ended: None,
        });
        self.take(self.model.sessions.len() - 1, &tokens)
    }

    async fn renew(&mut self, on: usize, session: Pick, age: Pick) -> Outcome {
        let now = self.now();
        let session = self.model.session(session);
        let age = self.model.age(session, age);
        let generation = self.model.sessions[session].refresh_tokens.len() - 1 - age;
        self.tell(format_args!(
            "renews session {session} with refresh token -{age}, of generation {generation}, on {on}"
        ));
        let body = json!({ "refresh_token": self.model.sessions[session].refresh_tokens[generation] });
        let answer = self.replicas[on].post("/tokens/renew_access").json(&body).send().await;
        let known = &self.model.sessions[session];
        if known.renewal(age, now) == Renewal::SameAgain && now >= known.renewed_at + REUSE_INTERVAL {
            // Before a replica takes an answer for lost, it writes down what it has seen.
            self.model.flush(on);
        }
        let known = &mut self.model.sessions[session];
        let renewal = known.renewal(age, now);
        let told = match renewal {
            Renewal::Refused(code) => {
                if code == "refresh_token_reused" {
                    known.ended = Some(code);
                }
                Err(code)
            }
            _ => Ok(()),
        };
        let Some(tokens) = self.check(told, 200, answer)? else { return Ok(()) };
        let known = &mut self.model.sessions[session];
        let token = text(&tokens["refresh_token"]);
        let is_new = !known.refresh_tokens.contains(&token);
        if is_new != (renewal == Renewal::Next) || !is_new && Some(&token) != known.refresh_tokens.last() {
            return Err(format!("{renewal:?} was foretold, and the refresh token is another"));
        }
        if is_new {
            known.refresh_tokens.push(token);
            known.renewed_at = now;
            known.is_confirmed = false;
            known.idle_end = (seconds(now) + REFRESH_TOKEN).min(known.end);
        }
        self.take(session, &tokens)
    }

    /// Records the access token of an answer, and checks the answer's times.
    fn take(&mut self, session: usize, tokens: &Value) -> Outcome {
        let now = self.now();
        let (roles, known) = (self.model.roles, &mut self.model.sessions[session]);
        let end = (seconds(now) + ACCESS_TOKEN).min(known.end);
        known.access_tokens.push(AccessToken {
            text: text(&tokens["access_token"]),
            generation: known.refresh_tokens.len() - 1,
            roles,
            end,
        });
        for (name, told) in [("access_token_expires_at", end), ("refresh_token_expires_at", known.idle_end)] {
            let got = OffsetDateTime::parse(tokens[name].as_str().unwrap(), &Rfc3339).unwrap();
            if got != told {
                return Err(format!("{name} {told} was foretold, and is {got}"));
            }
        }
        Ok(())
    }

    async fn end_many(&mut self, on: usize, bearer: Bearer, which: &str) -> Outcome {
        let app = &self.replicas[on];
        let now = self.now();
        let (told, token) = self.with(on, &format!("ends sessions ({which}) with"), bearer);
        let delete = |path| app.request(Method::DELETE, path);
        let other = 1 - self.model.password;
        let request = match which {
            "password" => {
                let body = json!({
                    "current_password": PASSWORDS[self.model.password],
                    "new_password": PASSWORDS[other],
                });
                app.request(Method::PUT, "/users/me/password").json(&body)
            }
            "others" => delete("/sessions"),
            _ => delete("/sessions?all=true"),
        };
        self.check(told, 204, request.token(&token).send().await)?;
        if told.is_ok() {
            let (own, _) = self.model.bearer(bearer);
            for (session, known) in self.model.sessions.iter_mut().enumerate() {
                if session != own || which == "all" {
                    known.end(now);
                }
            }
            if which == "password" {
                self.model.password = other;
            }
        }
        Ok(())
    }

    /// Checks that the answer is as predicted: `status`, or a refusal with this code. Returns the body of a success.
    fn check(
        &mut self,
        told: Result<(), &'static str>,
        status: u16,
        answer: Answer,
    ) -> Result<Option<Value>, String> {
        let body = serde_json::from_str(&answer.body).unwrap_or(Value::Null);
        let code = if answer.status.is_success() { "" } else { body["code"].as_str().unwrap_or("?") };
        let foretold = match told {
            Ok(()) => (status, ""),
            Err("not_found") => (404, "not_found"),
            Err(code) => (401, code),
        };
        let got = (answer.status.as_u16(), code);
        write!(self.told, ": {} {}", got.0, got.1).unwrap();
        if got != foretold {
            return Err(format!("{} {} was foretold", foretold.0, foretold.1));
        }
        Ok(told.is_ok().then_some(body))
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// Plays a story with a user of its own.
async fn play(replicas: &[App; 2], number: u32, steps: &[Step]) -> Outcome {
    let username = format!("user{number}");
    let user = replicas[0].register(&username).await;
    let model = Model::default();
    let mut story = Story { replicas, user_id: user["id"].clone(), username, model, told: String::new() };
    let mut outcome = story.step(Step(Act::LogIn, 0)).await;
    for step in steps {
        if outcome.is_err() {
            break;
        }
        outcome = story.step(*step).await;
    }
    // Nothing of this story is left for the next one to write.
    for replica in replicas {
        replica.state().activity.flush().await.unwrap();
    }
    outcome.map_err(|error| format!("{}\n  but {error}", story.told))
}

/// Two replicas, and the runtime that they run on.
fn service() -> (Runtime, [App; 2]) {
    let runtime = Runtime::new().unwrap();
    let replicas = runtime.block_on(async {
        let app = App::with(&SETTINGS).await;
        let other = app.replica(&SETTINGS).await;
        [app, other]
    });
    (runtime, replicas)
}

#[test]
fn stories_that_once_failed_now_match_the_model() {
    use Act::{Flush, LogIn, Renew, Revoke, SetRoles, Use, Wait};

    let newest = Bearer(0, 0);
    let former = Bearer(0, 1);
    let stories: [&[Act]; 3] = [
        // The roles change while nobody is logged in; the next login gets tokens that are good.
        &[SetRoles(1), Revoke(0, 0), SetRoles(0), LogIn, Use(newest)],
        // A sighting of a former generation does not hide one of the current generation.
        &[Renew(0, 0), Use(newest), Use(former), Flush, Wait(10), Renew(0, 1)],
        // A token that is first seen while it is outdated confirms its generation once it is accepted.
        &[Renew(0, 0), SetRoles(1), Use(newest), SetRoles(0), Use(newest), Flush, Wait(10), Renew(0, 1)],
    ];
    let (runtime, replicas) = service();
    for (number, story) in (0..).zip(stories) {
        let steps: Vec<_> = story.iter().map(|act| Step(*act, 0)).collect();
        runtime.block_on(play(&replicas, number, &steps)).unwrap_or_else(|story| panic!("{story}"));
    }
}

#[test]
fn random_stories_of_sessions_match_the_model() {
    let config = if is_drill() {
        Config { cases: 2000, failure_persistence: None, ..Config::default() }
    } else {
        Config { cases: 60, rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..Config::default() }
    };
    let (runtime, replicas) = service();
    let number = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(config);
    let result = runner.run(&steps(), |steps| {
        number.set(number.get() + 1);
        runtime.block_on(play(&replicas, number.get(), &steps)).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(story, _)) => panic!("a story goes otherwise:{story}"),
        Err(error) => panic!("{error}"),
    }
}
