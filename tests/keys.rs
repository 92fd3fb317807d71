//! Signing keys in a fleet of replicas: every format works, a key ring is made once, keys rotate and retire, and root
//! keys and formats are replaced. Throughout, every replica accepts every token that it should.

use std::{collections::BTreeSet, ops::Range, sync::Arc, time::Instant};

use axum::http::Method;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use gatepass::{
    cli::serve::{self, Pools},
    clock::Clock,
    http::Limits,
    keys::{self, Error, Policy},
    random,
    store::{Cause, signing_keys},
    token::{
        Issuer, KeyPair, KeyStatus, Lifetime, Party, Rejection, SigningKey, Subject, SymmetricKey,
        WrappingKey,
        refresh::{Presented, RefreshKey},
        ring::Schedule,
    },
};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use time::Duration;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    app::{self, App, KEY, PASSWORD},
    process::{Home, Process, allowed, until},
};

const OTHER_KEY: &str = "b3b4a1b2c3d4e5f60718293a4b5c6d7e";
const FORMATS: [&str; 7] =
    ["v4.local", "v4.public", "jwt:EdDSA", "jwt:ES256", "jwt:RS256", "jwt:PS256", "jwt:HS256"];
const JWKS: &str = "/.well-known/jwks.json";
const PASERKS: &str = "/.well-known/paserk.json";
const METADATA: &str = "/.well-known/oauth-authorization-server";

type Setting = (&'static str, &'static str);

/// The settings for tokens of `format`.
fn tokens_of(format: &'static str) -> Vec<Setting> {
    match format.strip_prefix("jwt:") {
        Some(algorithm) => vec![("TOKEN_FORMAT", "jwt"), ("JWT_ALGORITHM", algorithm)],
        None => vec![("TOKEN_FORMAT", format)],
    }
}

fn tokens_of_and(format: &'static str, more: &[Setting]) -> Vec<Setting> {
    [&tokens_of(format), more].concat()
}

async fn passes(app: &App, login: &Value) {
    let me = app.get("/users/me").bearer(login).send().await.expect(200);
    assert_eq!(me["id"], login["user"]["id"]);
}

async fn is_refused(app: &App, login: &Value) {
    app.get("/users/me").bearer(login).send().await.expect_problem(401, "invalid_token");
}

/// What anyone can read in a login's token: a JWT's header, a PASETO's footer.
fn head(login: &Value) -> Value {
    let token = login["access_token"].as_str().unwrap();
    let part = token.split('.').nth(if token.starts_with("v4.") { 3 } else { 0 }).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn kid(login: &Value) -> String {
    head(login)["kid"].as_str().unwrap().to_owned()
}

/// The ids of all keys in the documents.
async fn published(app: &App) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for path in [JWKS, PASERKS] {
        let document = app.get(path).send().await.expect(200);
        ids.extend(
            document["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()),
        );
    }
    ids
}

/// Every key in the table and its status by now, oldest first.
async fn table(app: &App) -> Vec<(String, Option<KeyStatus>)> {
    let now = app.clock.now();
    let keys = keys::list(&app.pool()).await.unwrap().keys;
    keys.iter().map(|(key, _)| (key.id().to_string(), key.status(now))).collect()
}

/// The one key that has this status.
async fn the(status: KeyStatus, app: &App) -> String {
    let keys = table(app).await;
    let mut ids = keys.iter().filter(|(_, what)| *what == Some(status));
    let (Some((id, _)), None) = (ids.next(), ids.next()) else { panic!("{status:?}: {keys:?}") };
    id.clone()
}

async fn refresh(app: &App) {
    app.refresh_keys().await.unwrap();
}

async fn rotate(app: &App) {
    app.state().keys.rotate(app.clock.now()).await.unwrap();
}

fn policy(key: &str, more: &[Setting]) -> Policy {
    let settings = app::settings(more);
    Policy {
        format: settings.format(),
        formats_accepted: settings.formats_accepted(),
        root: key.parse().unwrap(),
        roots_accepted: settings.token_symmetric_keys_accepted.clone(),
        party: Party { issuer: settings.token_issuer.clone(), audience: settings.token_audience.clone() },
        schedule: Schedule { interval: settings.key_rotation_interval },
        token_life: settings.access_token_duration,
        max_staleness: settings.revocation_max_staleness,
        cause: Cause::default(),
    }
}

/// `gatepass key retire ID --now`, with the clock of `app`.
async fn retire_now(app: &App, id: &str) {
    keys::retire(&policy(KEY, &[]), &app.pool(), id, true, app.clock.now()).await.unwrap();
}

/// The private key, as anyone with the root key and a copy of the table can obtain it.
async fn steal(app: &App, id: &str) -> Arc<KeyPair> {
    let keys = keys::list(&app.pool()).await.unwrap().keys;
    let (key, _) = keys.iter().find(|(key, _)| key.id().as_str() == id).unwrap();
    let mut conn = app.db.acquire().await.unwrap();
    let (wrapped, _) = signing_keys::wrapped(&mut conn, id).await.unwrap().unwrap();
    let root: SymmetricKey = KEY.parse().unwrap();
    Arc::new(WrappingKey::new(&root).unwrap(key.public.format(), key.id(), &wrapped).unwrap())
}

/// `login` with an access token that was forged with this key.
fn forge(app: &App, pair: &Arc<KeyPair>, login: &Value) -> Value {
    let id = |value: &Value| value.as_str().unwrap().parse::<Uuid>().unwrap();
    let party = Party { issuer: "gatepass".into(), audience: "gatepass".into() };
    let issuer = Issuer::new(SigningKey::Pair(pair.clone()), party);
    let subject = Subject {
        user_id: id(&login["user"]["id"]),
        session_id: id(&login["session_id"]),
        username: "alice".into(),
        roles: vec![],
    };
    let now = app.clock.now();
    let life = Lifetime { now, expires_at: now + Duration::minutes(15) };
    let token = issuer.issue(subject, random::uuid_v7(now, &mut random::system()), life).unwrap();
    let mut forged = login.clone();
    forged["access_token"] = token.expose().into();
    forged
}

#[tokio::test]
async fn every_format_works_from_the_start_to_a_protected_route() {
    for format in FORMATS {
        let app = App::with(&tokens_of(format)).await;
        app.register("alice").await;
        let alice = app.login("alice").await;
        passes(&app, &alice).await;

        let token = alice["access_token"].as_str().unwrap();
        let head = head(&alice);
        match format.strip_prefix("jwt:") {
            Some(algorithm) => {
                assert_eq!(token.split('.').count(), 3, "{token}");
                assert_eq!(head, json!({"alg": algorithm, "typ": "at+jwt", "kid": head["kid"]}));
            }
            None => {
                assert!(token.starts_with(&format!("{format}.")), "{token}");
                assert_eq!(head, json!({"kid": head["kid"]}));
            }
        }
        let is_shared = ["v4.local", "jwt:HS256"].contains(&format);
        assert_eq!(published(&app).await.contains(&kid(&alice)), !is_shared, "{format}");
        assert_eq!(table(&app).await.len(), if is_shared { 0 } else { 2 }, "{format}");

        // A token of the same format from another service, which has another root key and so other keys.
        let other = App::new().await.replica_with_key(OTHER_KEY, &tokens_of(format)).await;
        other.register("alice").await;
        is_refused(&app, &other.login("alice").await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn only_one_of_many_replicas_that_start_at_once_creates_the_key_ring() {
    for format in ["v4.public", "jwt:RS256"] {
        // With shared keys the ring stays as it is: empty.
        let app = Arc::new(App::new().await);
        app.register("alice").await;
        assert!(table(&app).await.is_empty());
        let mut starts = JoinSet::new();
        for _ in 0..8 {
            let app = app.clone();
            starts.spawn(async move { app.replica(&tokens_of(format)).await });
        }
        let replicas = starts.join_all().await;

        let (active, next) = (the(KeyStatus::Active, &app).await, the(KeyStatus::Next, &app).await);
        assert_eq!(table(&app).await.len(), 2);
        let mut logins = Vec::new();
        for replica in &replicas {
            assert_eq!(published(replica).await, BTreeSet::from([active.clone(), next.clone()]));
            let login = replica.login("alice").await;
            assert_eq!(kid(&login), active);
            logins.push(login);
        }
        for replica in &replicas {
            for login in &logins {
                passes(replica, login).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_rotate_once_on_schedule_and_no_token_is_refused() {
    for format in ["v4.public", "jwt:ES256"] {
        let settings = tokens_of_and(format, &[("KEY_ROTATION_INTERVAL", "1h")]);
        let app = App::with(&settings).await;
        let other = app.replica(&settings).await;
        app.register("alice").await;
        let mut rotated = app.clock.now();
        for round in 1..=5 {
            let (active, next) = (the(KeyStatus::Active, &app).await, the(KeyStatus::Next, &app).await);
            for replica in [&app, &other] {
                assert!(published(replica).await.is_superset(&[active.clone(), next.clone()].into()));
            }
            app.clock.advance(rotated + Duration::minutes(59) - app.clock.now());
            refresh(&app).await;
            assert_eq!(the(KeyStatus::Active, &app).await, active, "nothing is due yet");
            let old = app.login("alice").await;
            assert_eq!(kid(&old), active);

            app.clock.advance(Duration::minutes(1));
            rotated = app.clock.now();
            tokio::join!(refresh(&app), refresh(&other));
            // The replica that came second hears of it the next time.
            tokio::join!(refresh(&app), refresh(&other));
            assert_eq!(table(&app).await.len(), 2 + round, "one rotation, one new key");
            assert_eq!(the(KeyStatus::Active, &app).await, next);
            assert_eq!(the(KeyStatus::Retiring, &app).await, active);
            let private: Option<Vec<u8>> =
                sqlx::query_scalar("SELECT wrapped_key FROM signing_keys WHERE id = $1")
                    .bind(&active)
                    .fetch_one(&app.db)
                    .await
                    .unwrap();
            assert_eq!(private, None, "it signs no more, and so nobody can make it");

            for replica in [&app, &other] {
                assert_eq!(kid(&replica.login("alice").await), next);
                passes(replica, &old).await;
            }
            // The old key's last token was made at the rotation, and a replica may have been a minute late.
            app.clock.advance(Duration::minutes(14) - Duration::milliseconds(700));
            for replica in [&app, &other] {
                refresh(replica).await;
                passes(replica, &old).await;
            }
            app.clock.advance(Duration::minutes(2) + Duration::milliseconds(699));
            for replica in [&app, &other] {
                refresh(replica).await;
                assert!(published(replica).await.contains(&active));
                let me = replica.get("/users/me").bearer(&old).send().await;
                me.expect_problem(401, "token_expired");
            }
            app.clock.advance(Duration::milliseconds(1));
            for replica in [&app, &other] {
                refresh(replica).await;
                assert_eq!(published(replica).await, [next.clone(), the(KeyStatus::Next, &app).await].into());
            }
        }
    }
}

#[tokio::test]
async fn a_replica_unaware_of_a_rotation_accepts_and_makes_valid_tokens() {
    for format in ["v4.public", "jwt:PS256"] {
        let app = App::with(&tokens_of(format)).await;
        let late = app.replica(&tokens_of(format)).await;
        app.register("alice").await;
        let (active, next) = (the(KeyStatus::Active, &app).await, the(KeyStatus::Next, &app).await);
        rotate(&app).await;

        let new = app.login("alice").await;
        assert_eq!(kid(&new), next);
        let old = late.login("alice").await;
        assert_eq!(kid(&old), active);
        for replica in [&app, &late] {
            passes(replica, &new).await;
            passes(replica, &old).await;
        }
        refresh(&late).await;
        assert_eq!(kid(&late.login("alice").await), next);
        for replica in [&app, &late] {
            passes(replica, &old).await;
        }
    }
}

#[tokio::test]
async fn no_key_signs_before_everybody_can_know_it() {
    // The wait is as long as a document may be cached, plus the second that it takes a replica to hear.
    for (interval, wait) in [("30d", 61), ("20s", 6)] {
        let settings = tokens_of_and("v4.public", &[("KEY_ROTATION_INTERVAL", interval)]);
        let app = App::with(&settings).await;
        let other = app.replica(&settings).await;
        // The first two keys were published together.
        app.clock.advance(Duration::seconds(1));
        rotate(&app).await;
        let rotated = app.clock.now();
        for replica in [&app, &other, &app.replica(&settings).await] {
            for _ in 0..2 {
                let refused = replica.state().keys.rotate(app.clock.now()).await.unwrap_err();
                let Error::TooEarly(ready_at) = refused else { panic!("{refused}") };
                assert_eq!(ready_at, rotated + Duration::seconds(wait));
            }
        }
        let active = the(KeyStatus::Active, &app).await;
        let policy = policy(KEY, &settings);
        let refused = keys::retire(&policy, &app.pool(), &active, false, app.clock.now()).await.unwrap_err();
        assert!(matches!(refused, Error::TooEarly(_)), "{refused}");
        app.clock.advance(Duration::seconds(wait) - Duration::MICROSECOND);
        let refused = app.state().keys.rotate(app.clock.now()).await.unwrap_err();
        assert!(matches!(refused, Error::TooEarly(_)), "{refused}");
        assert_eq!(table(&app).await.len(), 3);
        app.clock.advance(Duration::MICROSECOND);
        rotate(&app).await;
        assert_eq!(table(&app).await.len(), 4);
    }
    let app = App::new().await;
    let refused = app.state().keys.rotate(app.clock.now()).await.unwrap_err();
    assert!(matches!(refused, Error::Shared(_)), "{refused}");

    // By a clock that is behind, the key that replaces a retired one looks older than the ring, but is not.
    let app = App::with(&tokens_of("v4.public")).await;
    let behind = Clock::fixed(app.clock.now() - Duration::minutes(5));
    let behind = app.try_replica(KEY, behind, &tokens_of("v4.public")).await.unwrap();
    retire_now(&behind, &the(KeyStatus::Next, &app).await).await;
    refresh(&behind).await;
    let refused = behind.state().keys.rotate(behind.clock.now()).await.unwrap_err();
    assert!(matches!(refused, Error::TooEarly(_)), "{refused}");
}

#[tokio::test]
async fn tokens_of_a_key_that_is_retired_at_once_are_refused_and_no_others() {
    for format in ["v4.public", "jwt:ES256"] {
        let settings = tokens_of(format);
        let app = App::with(&settings).await;
        let other = app.replica(&settings).await;
        app.register("alice").await;
        let alice = app.login("alice").await;

        // One key of every status, and all of them stolen.
        let retiring = steal(&app, &the(KeyStatus::Active, &app).await).await;
        let active = steal(&app, &the(KeyStatus::Next, &app).await).await;
        rotate(&app).await;
        refresh(&other).await;
        let next = steal(&app, &the(KeyStatus::Next, &app).await).await;
        let stolen = [next, active, retiring].map(|pair| (forge(&app, &pair, &alice), pair));
        for replica in [&app, &other] {
            passes(replica, &alice).await;
            for (forged, _) in &stolen {
                passes(replica, forged).await;
            }
        }

        for gone in 1..=stolen.len() {
            let id = stolen[gone - 1].1.id();
            retire_now(&app, id.as_str()).await;
            for replica in [&app, &other, &app.replica(&settings).await] {
                refresh(replica).await;
                for (i, (forged, pair)) in stolen.iter().enumerate() {
                    if i < gone {
                        is_refused(replica, forged).await;
                    } else {
                        passes(replica, forged).await;
                    }
                    assert_eq!(published(replica).await.contains(pair.id().as_str()), i >= gone);
                }
                let again = replica.login("alice").await;
                assert!(stolen[..gone].iter().all(|(_, pair)| pair.id().as_str() != kid(&again)));
                passes(&app, &again).await;
                passes(&other, &again).await;
            }
            let left: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM signing_keys WHERE id = $1 AND wrapped_key IS NOT NULL",
            )
            .bind(id.as_str())
            .fetch_one(&app.db)
            .await
            .unwrap();
            assert_eq!(left, 0);
            let twice =
                keys::retire(&policy(KEY, &settings), &app.pool(), id.as_str(), true, app.clock.now()).await;
            assert!(matches!(twice, Err(Error::NoSuchKey(_))), "{twice:?}");
        }
        is_refused(&app, &alice).await;
    }
}

#[tokio::test]
async fn a_wrong_clock_keeps_no_key_alive_that_was_retired_at_once() {
    for minutes in [-10, -2, 2, 10] {
        let settings = tokens_of("v4.public");
        let app = App::with(&settings).await;
        let clock = Clock::fixed(app.clock.now() + Duration::minutes(minutes));
        let skewed = app.try_replica(KEY, clock, &settings).await.unwrap();
        app.register("alice").await;
        for retired_by in [&app, &skewed] {
            // One token for each replica, which accepts it by its own clock.
            let logins = [(&app, app.login("alice").await), (&skewed, skewed.login("alice").await)];
            let id = the(KeyStatus::Active, &app).await;
            for (replica, login) in &logins {
                assert_eq!(kid(login), id);
                passes(replica, login).await;
            }
            retire_now(retired_by, &id).await;
            for (replica, login) in &logins {
                refresh(replica).await;
                is_refused(replica, login).await;
                assert!(!published(replica).await.contains(&id));
                passes(replica, &replica.login("alice").await).await;
            }
        }
    }
}

/// The time from the retirement of a token's key until both services refuse the token.
async fn time_to_refusal(
    services: &[Process; 2],
    db: &gatepass::store::PgPool,
    settings: &[Setting],
) -> std::time::Duration {
    let login = json!({"username": "alice", "password": PASSWORD});
    let (status, alice) = services[0].post("/users/login", &login).await;
    assert_eq!(status, 200, "{alice}");
    let token = alice["access_token"].as_str().unwrap();
    for service in services {
        assert_eq!(service.get_as(token, "/users/me").await.0, 200);
    }
    let policy = policy(KEY, settings);
    keys::retire(&policy, db, &kid(&alice), true, Clock::system().now()).await.unwrap();
    let retired = Instant::now();
    for service in services {
        until("the token is refused", async || service.get_as(token, "/users/me").await.0 == 401).await;
    }
    let took = retired.elapsed();
    for service in services {
        let (status, again) = service.post("/users/login", &login).await;
        assert_eq!(status, 200, "{again}");
        for other in services {
            assert_eq!(other.get_as(again["access_token"].as_str().unwrap(), "/users/me").await.0, 200);
        }
    }
    took
}

#[tokio::test]
async fn a_leaked_key_is_refused_by_running_services_within_a_second() {
    let settings = tokens_of("v4.public");
    let app = App::with(&settings).await;
    app.register("alice").await;
    let homes = [Home::new(), Home::new()];
    let environment =
        [&settings[..], &[("DB_SOURCE", &*app.database_url), ("TOKEN_SYMMETRIC_KEY", KEY)]].concat();
    let services = [homes[0].serve(&environment).await, homes[1].serve(&environment).await];
    let mut took = Vec::new();
    for _ in 0..5 {
        took.push(time_to_refusal(&services, &app.pool(), &settings).await);
    }
    println!("from the retirement to the refusal by both: {took:.3?}");
    // This holds each time. `src/keys` asserts at compile time that the ring is read often enough for one second; on a
    // machine under load, a measurement says no more.
    let bound = allowed(std::time::Duration::from_secs(1));
    assert!(took.iter().all(|took| *took < bound), "{took:?}");
}

/// The root keys of one replica: its own, and those that it accepts.
type Roots = (&'static str, &'static [Setting]);

#[tokio::test]
async fn the_root_key_is_replaced_in_two_rollouts_and_no_token_is_refused() {
    const BEFORE: Roots = (KEY, &[]);
    const FIRST: Roots = (KEY, &[("TOKEN_SYMMETRIC_KEYS_ACCEPTED", OTHER_KEY)]);
    const SECOND: Roots = (OTHER_KEY, &[("TOKEN_SYMMETRIC_KEYS_ACCEPTED", KEY)]);
    const DONE: Roots = (OTHER_KEY, &[]);
    const STATES: [[Roots; 2]; 7] = [
        [BEFORE, BEFORE],
        [FIRST, BEFORE],
        [FIRST, FIRST],
        [SECOND, FIRST],
        [SECOND, SECOND],
        // Once the former key's tokens have expired.
        [DONE, SECOND],
        [DONE, DONE],
    ];
    for format in ["v4.local", "jwt:HS256", "v4.public"] {
        let app = App::with(&tokens_of(format)).await;
        app.register("alice").await;
        let start =
            async |(key, accepted): Roots| app.replica_with_key(key, &tokens_of_and(format, accepted)).await;
        let mut logins: Vec<Value> = Vec::new();
        let mut before = [BEFORE, BEFORE];
        let mut replicas = [start(BEFORE).await, start(BEFORE).await];
        for state in STATES {
            if state.contains(&DONE) && !before.contains(&DONE) {
                app.clock.advance(Duration::minutes(15));
                logins.clear();
            }
            for (i, roots) in state.into_iter().enumerate() {
                if roots != before[i] {
                    replicas[i] = start(roots).await;
                }
            }
            before = state;
            // Any of them can stop and start again, in any state.
            for roots in state {
                let again = start(roots).await;
                logins.push(again.login("alice").await);
            }
            for replica in &replicas {
                refresh(replica).await;
                logins.push(replica.login("alice").await);
                if format == "v4.public" {
                    // The keys that each replica makes go into the ring for all.
                    app.clock.advance(Duration::seconds(61));
                    rotate(replica).await;
                    logins.push(replica.login("alice").await);
                }
            }
            for replica in &replicas {
                refresh(replica).await;
            }
            for replica in [&replicas[0], &replicas[1], &start(state[0]).await, &start(state[1]).await] {
                for login in &logins {
                    passes(replica, login).await;
                }
            }
            if state == [SECOND, SECOND] {
                let new = OTHER_KEY.parse::<SymmetricKey>().unwrap().id();
                let keys = keys::list(&app.pool()).await.unwrap().keys;
                assert!(
                    keys.iter().all(|(_, root)| root.as_ref().is_none_or(|root| *root == new)),
                    "{keys:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_service_does_not_start_if_its_root_key_opens_no_stored_key() {
    let app = App::with(&tokens_of("v4.public")).await;
    let before = table(&app).await;
    let start = async |accepted: &[Setting]| {
        let settings = tokens_of_and("v4.public", accepted);
        app.try_replica(OTHER_KEY, app.clock.clone(), &settings).await
    };
    let refused = start(&[]).await.err().unwrap().to_string();
    for part in
        ["TOKEN_SYMMETRIC_KEYS_ACCEPTED", &before[0].0, KEY.parse::<SymmetricKey>().unwrap().id().as_str()]
    {
        assert!(refused.contains(part), "{refused}");
    }
    assert!(!refused.contains(KEY) && !refused.contains(OTHER_KEY), "{refused}");
    assert_eq!(table(&app).await, before, "nothing is made in its place");
    // With shared keys there is nothing to open.
    app.replica_with_key(OTHER_KEY, &[]).await;
    start(&[("TOKEN_SYMMETRIC_KEYS_ACCEPTED", KEY)]).await.unwrap();
    // Now it is the former root key that opens nothing.
    let refused = app.try_replica(KEY, app.clock.clone(), &tokens_of("v4.public")).await.err().unwrap();
    assert!(refused.to_string().contains("TOKEN_SYMMETRIC_KEYS_ACCEPTED"), "{refused}");
}

#[tokio::test]
async fn keys_of_a_later_release_prevent_neither_starting_nor_key_management() {
    let settings = tokens_of("v4.public");
    let app = App::with(&settings).await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    // A rolling update has come this far.
    sqlx::raw_sql(
        "ALTER TABLE signing_keys DROP CONSTRAINT signing_keys_format_known;
         INSERT INTO signing_keys
         SELECT rpad('later', 43, '-'), 'jwt:ES384', '{}', wrapped_key, wrapped_by, token_seconds, published_at, activated_at
         FROM signing_keys WHERE activated_at IS NOT NULL",
    )
    .execute(&app.db)
    .await
    .unwrap();
    let later = format!("{:-<43}", "later");

    refresh(&app).await;
    passes(&app.replica(&settings).await, &alice).await;
    let accepted = tokens_of_and("v4.public", &[("TOKEN_SYMMETRIC_KEYS_ACCEPTED", KEY)]);
    let app = app.replica_with_key(OTHER_KEY, &accepted).await;
    passes(&app, &alice).await;

    let policy = policy(OTHER_KEY, &settings);
    keys::verifier(&policy, Some(&app.pool()), app.clock.now()).await.unwrap();
    assert!(keys::unopenable(&policy, &app.pool()).await.unwrap().is_empty());
    let stored = keys::list(&app.pool()).await.unwrap();
    assert_eq!(stored.keys.len(), 2);
    let [(row, Error::UnknownFormat { .. })] = &stored.unreadable[..] else { panic!("{stored:?}") };
    assert_eq!(row.id, later);
    assert_eq!(
        row.wrapped_by,
        Some(KEY.parse::<SymmetricKey>().unwrap().id().to_string()),
        "only who knows it can wrap it anew"
    );

    let retire = async |id: &str| keys::retire(&policy, &app.pool(), id, true, app.clock.now()).await;
    let refused = retire(&later).await.unwrap_err().to_string();
    assert!(refused.contains(&later) && refused.contains("jwt:ES384"), "{refused}");
    retire(&kid(&alice)).await.unwrap();
    refresh(&app).await;
    is_refused(&app, &alice).await;
    passes(&app, &app.login("alice").await).await;
}

#[tokio::test]
async fn a_replica_that_missed_a_rollout_still_hears_of_a_leaked_key() {
    let settings = tokens_of("v4.public");
    let app = App::with(&settings).await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    let leaked = kid(&alice);
    let ahead = tokens_of_and("v4.public", &[("TOKEN_SYMMETRIC_KEYS_ACCEPTED", KEY)]);
    let ahead = app.replica_with_key(OTHER_KEY, &ahead).await;
    // From here on there is a key that `app` cannot open.
    rotate(&ahead).await;
    for _ in 0..2 {
        let error = app.refresh_keys().await.unwrap_err();
        assert!(matches!(error, Error::ForeignRoot { .. }), "{error}");
        passes(&app, &alice).await;
        passes(&app, &ahead.login("alice").await).await;
        assert_eq!(published(&app).await, published(&ahead).await);
    }
    retire_now(&ahead, &leaked).await;
    app.refresh_keys().await.unwrap_err();
    is_refused(&app, &alice).await;
    passes(&app, &ahead.login("alice").await).await;

    // Now the key that signs is one that `app` cannot open. It makes no tokens, rather than some that may be refused,
    // and says so.
    app.clock.advance(Duration::minutes(2));
    rotate(&ahead).await;
    app.refresh_keys().await.unwrap_err();
    app.try_login("alice", PASSWORD).await.expect_problem(500, "internal_error");
    let not_ready = app.get("/readyz").send().await.expect_problem(503, "not_ready");
    assert_eq!(not_ready["reasons"], json!(["keys: the signing key cannot be opened"]));
    passes(&app, &ahead.login("alice").await).await;
}

/// Whether the refresh token of a login is still good for its session.
async fn is_logged_in(app: &App, login: &Value) -> bool {
    let presented = Presented::parse(login["refresh_token"].as_str().unwrap()).unwrap();
    let salt: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT refresh_salt FROM sessions WHERE id = $1::uuid AND refresh_generation = 0 AND refresh_expires_at > $2",
    )
    .bind(login["session_id"].as_str().unwrap())
    .bind(app.clock.now())
    .fetch_optional(&app.db)
    .await
    .unwrap();
    let key = RefreshKey::new(&KEY.parse().unwrap());
    salt.is_some_and(|salt| key.is_authentic(&presented, &salt.try_into().unwrap()))
}

/// Steps of one length around the formats end where they began; all six lengths together go every way between formats.
fn ways(lengths: Range<usize>) -> Vec<(&'static str, &'static str)> {
    let steps = lengths.flat_map(|length| (0..7).map(move |i| (i * length % 7, (i + 1) * length % 7)));
    steps.map(|(from, to)| (FORMATS[from], FORMATS[to])).collect()
}

#[tokio::test]
async fn every_format_can_follow_every_other_and_nobody_is_logged_out() {
    assert_eq!(ways(1..7).into_iter().collect::<BTreeSet<_>>().len(), 42);
    walk(ways(1..4)).await;
}

// There are so many steps that two tests take half of them each, side by side.
#[tokio::test]
async fn the_other_half_of_the_format_changes_log_nobody_out_either() {
    walk(ways(4..7)).await;
}

/// Goes all of these ways, each in three rollouts.
async fn walk(ways: Vec<(&'static str, &'static str)>) {
    let (began, count) = (Instant::now(), ways.len());
    let app = App::new().await;
    app.register("alice").await;
    let mut replicas = [app.replica(&[]).await, app.replica(&[]).await];
    let everybody = app.login("alice").await;
    let mut format = "v4.local";
    for (old, new) in ways {
        assert_eq!(format, old);
        let mut logins = vec![replicas[0].login("alice").await];
        for (makes, accepts) in [(old, Some(new)), (new, Some(old)), (new, None)] {
            let accepted = accepts.map(|format| ("TOKEN_FORMAT_ACCEPTED", format));
            let settings = tokens_of_and(makes, accepted.as_slice());
            if accepts.is_none() {
                // Until the last token of the old format has expired.
                app.clock.advance(Duration::minutes(15));
                for login in logins.drain(..) {
                    assert!(is_logged_in(&app, &login).await);
                }
            }
            // The second replica's last step is its first step to the next format.
            for i in if accepts.is_none() { 0..1 } else { 0..2 } {
                replicas[i] = app.replica(&settings).await;
                let (started, other) = (&replicas[i], &replicas[1 - i]);
                logins.push(other.login("alice").await);
                for login in &logins {
                    passes(started, login).await;
                }
                logins.push(started.login("alice").await);
                passes(other, logins.last().unwrap()).await;
            }
        }
        format = new;
        let token = replicas[0].login("alice").await["access_token"].as_str().unwrap().to_owned();
        let prefix = if new.starts_with("jwt:") { "eyJ" } else { new };
        assert!(token.starts_with(prefix), "{new}: {token}");
    }
    assert!(is_logged_in(&app, &everybody).await);
    println!("{count} ways between formats took {:.1?}", began.elapsed());
}

#[tokio::test]
async fn a_format_that_is_no_longer_accepted_is_refused() {
    let app = App::with(&tokens_of("jwt:ES256")).await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    for format in FORMATS.into_iter().filter(|format| *format != "jwt:ES256") {
        let moved = app.replica(&tokens_of(format)).await;
        is_refused(&moved, &alice).await;
        is_refused(&app, &moved.login("alice").await).await;
    }
}

#[tokio::test]
async fn the_documents_have_the_public_keys_and_nothing_private() {
    for format in FORMATS {
        let app = App::with(&tokens_of(format)).await;
        let (jwks, paserks) = (app.get(JWKS).send().await, app.get(PASERKS).send().await);
        assert_eq!(jwks.header("content-type"), "application/jwk-set+json");
        assert_eq!(paserks.header("content-type"), "application/json");
        let (jwks, paserks) = (jwks.expect(200), paserks.expect(200));
        let (jwks, paserks) = (jwks["keys"].as_array().unwrap(), paserks["keys"].as_array().unwrap());
        let expected = match format {
            "v4.local" | "jwt:HS256" => (0, 0),
            "v4.public" => (0, 2),
            _ => (2, 0),
        };
        assert_eq!((jwks.len(), paserks.len()), expected, "{format}");
        for key in jwks {
            let algorithm = format.strip_prefix("jwt:").unwrap();
            let mut members: Vec<_> = key.as_object().unwrap().keys().map(String::as_str).collect();
            members.sort_unstable();
            let (kind, expected) = match algorithm {
                "EdDSA" => ("OKP", &["alg", "crv", "kid", "kty", "use", "x"][..]),
                "ES256" => ("EC", &["alg", "crv", "kid", "kty", "use", "x", "y"][..]),
                _ => ("RSA", &["alg", "e", "kid", "kty", "n", "use"][..]),
            };
            // So there is no d, p, q, dp, dq, qi, oth or k.
            assert_eq!(members, expected);
            assert_eq!([&key["kty"], &key["alg"], &key["use"]], [kind, algorithm, "sig"]);
        }
        for key in paserks {
            let members: Vec<_> = key.as_object().unwrap().keys().collect();
            assert_eq!(members, ["kid", "paserk", "status"]);
            assert!(key["kid"].as_str().unwrap().starts_with("k4.pid."));
            assert!(key["paserk"].as_str().unwrap().starts_with("k4.public."));
        }
        if expected != (0, 0) {
            let both = [the(KeyStatus::Active, &app).await, the(KeyStatus::Next, &app).await];
            assert_eq!(published(&app).await, both.clone().into());
            for key in paserks {
                assert_eq!(key["status"], if key["kid"] == *both[0] { "active" } else { "next" });
            }
        }
    }
}

#[tokio::test]
async fn the_documents_may_be_cached_and_are_asked_for_again_by_their_etag() {
    for (interval, max_age) in [("30d", 60), ("20s", 5)] {
        let settings = tokens_of_and("v4.public", &[("KEY_ROTATION_INTERVAL", interval)]);
        let settings = [&settings[..], &[("TOKEN_FORMAT_ACCEPTED", "jwt:EdDSA")]].concat();
        let app = App::with(&settings).await;
        let other = app.replica(&settings).await;
        for path in [JWKS, PASERKS, METADATA] {
            let first = app.get(path).send().await;
            let etag = first.header("etag").to_owned();
            assert!(etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"'), "{etag}");
            assert_eq!(first.header("cache-control"), format!("public, max-age={max_age}"));
            let same = other.get(path).send().await;
            assert_eq!(
                (same.header("etag"), &same.body),
                (&*etag, &first.body),
                "one document for all replicas"
            );

            for (known, status) in [
                (etag.clone(), 304),
                (format!("W/{etag}"), 304),
                (format!("\"other\", {etag}"), 304),
                ("*".to_owned(), 304),
                ("\"other\"".to_owned(), 200),
                (etag.trim_matches('"').to_owned(), 200),
            ] {
                let answer = app.get(path).header("if-none-match", &*known).send().await;
                assert_eq!(answer.status, status, "{known}");
                assert_eq!(answer.header("etag"), etag);
                assert_eq!(answer.header("cache-control"), format!("public, max-age={max_age}"));
                assert_eq!(answer.body, if status == 304 { "" } else { &first.body });
            }
            let head = app.request(Method::HEAD, path).send().await;
            assert_eq!((head.status.as_u16(), head.header("etag"), &*head.body), (200, &*etag, ""));
            for method in [Method::POST, Method::PUT, Method::DELETE] {
                let answer = app.request(method, path).send().await;
                assert!(answer.header("allow").contains("GET"), "{:?}", answer.headers);
                answer.expect_problem(405, "method_not_allowed");
            }
        }
        let before = app.get(PASERKS).send().await;
        rotate(&app).await;
        let after = app.get(PASERKS).header("if-none-match", before.header("etag")).send().await;
        assert_eq!(after.status, 200);
        assert_ne!(after.header("etag"), before.header("etag"));
        assert_eq!(after.expect(200)["keys"].as_array().unwrap().len(), 3);
    }
}

#[tokio::test]
async fn the_metadata_says_where_everything_is() {
    for (issuer, here) in [
        ("gatepass", "http://localhost:8080"),
        ("https://auth.example.com", "https://auth.example.com"),
        ("https://auth.example.com/", "https://auth.example.com"),
        ("https://example.com/auth", "https://example.com/auth"),
        ("https://example.com/auth/", "https://example.com/auth"),
        ("http://localhost:3000", "http://localhost:3000"),
    ] {
        let app = App::with(&[("TOKEN_ISSUER", issuer)]).await;
        let answer = app.get(METADATA).send().await;
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(
            answer.expect(200),
            json!({
                "issuer": issuer,
                "jwks_uri": format!("{here}{JWKS}"),
                "paserks_uri": format!("{here}{PASERKS}"),
                "introspection_endpoint": format!("{here}/tokens/introspect"),
                "introspection_endpoint_auth_methods_supported": ["client_secret_basic"],
                "revocation_endpoint": format!("{here}/tokens/revoke"),
                "revocation_endpoint_auth_methods_supported": ["none", "client_secret_basic"],
                "response_types_supported": [],
                "grant_types_supported": [],
                "service_documentation": format!("{here}/docs"),
            })
        );
    }
}

#[tokio::test]
async fn production_has_no_metadata_unless_its_address_is_configured() {
    let production = [
        ("ENVIRONMENT", "production"),
        ("DB_SOURCE", "postgres://localhost/gatepass"),
        ("TOKEN_SYMMETRIC_KEY", app::KEY),
        ("ARGON2_MEMORY_KIB", "19456"),
        ("ARGON2_ITERATIONS", "2"),
    ];
    let app = App::with(&production).await;
    app.get(METADATA).send().await.expect_problem(404, "not_found");
    let app = App::with(&[&production[..], &[("TOKEN_ISSUER", "https://auth.example.com")]].concat()).await;
    let metadata = app.get(METADATA).send().await.expect(200);
    assert_eq!(metadata["jwks_uri"], format!("https://auth.example.com{JWKS}"));
}

#[tokio::test]
async fn a_replica_long_cut_off_from_its_keys_neither_trusts_nor_uses_them() {
    for format in ["v4.public", "jwt:ES256"] {
        let accepting = |format| {
            let accepted = [("TOKEN_FORMAT_ACCEPTED", "v4.local,v4.public,jwt:ES256,jwt:HS256")];
            tokens_of_and(format, &[&accepted[..], &[("REVOCATION_MAX_STALENESS", "60s")]].concat())
        };
        let app = App::with(&accepting(format)).await;
        app.register("alice").await;
        let alice = app.login("alice").await;
        // A service with another ring.
        let other = App::with(&tokens_of(format)).await;
        other.register("alice").await;
        let stranger = other.login("alice").await;
        // Replicas that make tokens with keys from the configuration, and also have the ring.
        let [local, hs256] =
            [app.replica(&accepting("v4.local")).await, app.replica(&accepting("jwt:HS256")).await];
        let shared = [local.login("alice").await, hs256.login("alice").await];
        let client = app.client("orders").await;
        let introspect = async |login: &Value| {
            let token = login["access_token"].as_str().unwrap();
            app.post("/tokens/introspect").client(&client).form(&[("token", token)]).send().await
        };

        let grant = async |statement: &'static str| sqlx::raw_sql(statement).execute(&app.db).await.unwrap();
        grant("REVOKE SELECT ON signing_keys FROM gatepass_app").await;
        app.clock.advance(Duration::seconds(60));
        app.refresh_keys().await.unwrap_err();
        app.get("/readyz").send().await.expect(200);
        passes(&app, &alice).await;
        is_refused(&app, &stranger).await;
        let late = app.login("alice").await;

        app.clock.advance(Duration::seconds(1));
        for replica in [&app, &local, &hs256] {
            replica.hear().await;
        }
        // No replica has to notice first, and setting the clock does not help.
        for hours in [0, -5] {
            app.clock.shift(Duration::hours(hours));
            for login in [&alice, &late, &stranger] {
                let answer = app.get("/users/me").bearer(login).send().await;
                assert_eq!(answer.header("retry-after"), "1");
                answer.expect_problem(503, "revocations_stale");
                introspect(login).await.expect_problem(503, "revocations_stale");
                let revoke = [("token", login["access_token"].as_str().unwrap())];
                app.post("/tokens/revoke")
                    .form(&revoke)
                    .send()
                    .await
                    .expect_problem(503, "revocations_stale");
            }
            let not_ready = app.get("/readyz").send().await.expect_problem(503, "not_ready");
            assert_eq!(not_ready["reasons"], json!(["keys: not read for 61 s"]));
        }
        app.clock.shift(Duration::hours(5));
        for login in &shared {
            passes(&app, login).await;
            assert_eq!(introspect(login).await.expect(200)["active"], true);
        }
        for replica in [&app, &local, &hs256] {
            replica.refresh_keys().await.unwrap_err();
        }
        let refused = app.try_login("alice", PASSWORD).await;
        assert!(!refused.header("retry-after").is_empty());
        refused.expect_problem(503, "database_unavailable");
        app.renew(&alice).await.expect_problem(503, "database_unavailable");
        // There is a key that signs, so nothing else is wrong.
        let not_ready = app.get("/readyz").send().await.expect_problem(503, "not_ready");
        assert_eq!(not_ready["reasons"], json!(["keys: not read for 61 s"]));
        let text = app.scrape().await;
        for line in ["gatepass_token_key_silence_seconds{} 61.0", "gatepass_revocation_silence_seconds 0.0"] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        for replica in [&local, &hs256] {
            passes(&app, &replica.login("alice").await).await;
        }

        grant("GRANT SELECT ON signing_keys TO gatepass_app").await;
        refresh(&app).await;
        app.get("/readyz").send().await.expect(200);
        for login in [&alice, &late, &app.login("alice").await] {
            passes(&app, login).await;
        }
        is_refused(&app, &stranger).await;
        app.renew(&alice).await.expect(200);
    }
    // Without a ring there is nothing to read.
    let app = App::with(&[("REVOCATION_MAX_STALENESS", "60s")]).await;
    app.register("alice").await;
    app.clock.advance(Duration::seconds(61));
    app.hear().await;
    refresh(&app).await;
    passes(&app, &app.login("alice").await).await;
    app.get("/readyz").send().await.expect(200);
    assert!(!app.scrape().await.contains("token_key_silence"));
}

/// Breaks the row of the one key that has this status, which should never occur; returns the key's id.
async fn break_the(status: KeyStatus, app: &App) -> String {
    let id = the(status, app).await;
    app.sql("UPDATE signing_keys SET public_key = 'x' WHERE id = $1", &json!(id)).await;
    id
}

#[tokio::test]
async fn an_unreadable_key_is_ignored_and_all_other_keys_still_work() {
    for broken in [KeyStatus::Retiring, KeyStatus::Next] {
        let settings = tokens_of_and("v4.public", &[("TOKEN_FORMAT_ACCEPTED", "jwt:EdDSA")]);
        let app = App::with(&tokens_of("v4.public")).await;
        app.register("alice").await;
        let old = app.login("alice").await;
        rotate(&app).await;
        let alice = app.login("alice").await;
        app.clock.advance(Duration::minutes(2));

        let id = break_the(broken, &app).await;
        for _ in 0..2 {
            let error = app.refresh_keys().await.unwrap_err();
            assert!(matches!(&error, Error::Unreadable { id: other, .. } if *other == id), "{error}");
        }
        let started = app.replica(&settings).await;
        for replica in [&app, &started] {
            assert!(!published(replica).await.contains(&id));
            let gauge = r#"gatepass_token_keys{format="v4.public",status="unreadable"} 1"#;
            assert!(replica.scrape().await.contains(gauge), "{}", replica.scrape().await);
            replica.get("/readyz").send().await.expect(200);
            passes(replica, &alice).await;
            passes(replica, &replica.login("alice").await).await;
            if broken == KeyStatus::Retiring {
                is_refused(replica, &old).await;
            } else {
                passes(replica, &old).await;
                let error = replica.state().keys.rotate(app.clock.now()).await.unwrap_err();
                assert!(error.to_string().contains(&format!("gatepass key retire {id}")), "{error}");
            }
        }

        // A key is not retired unless the key that follows can be read; but a leaked key goes at once.
        let leaked = kid(&alice);
        let policy = policy(KEY, &settings);
        if broken == KeyStatus::Next {
            let refused = keys::retire(&policy, &app.pool(), &leaked, false, app.clock.now()).await;
            assert!(
                matches!(&refused, Err(Error::Unreadable { id: other, .. }) if *other == id),
                "{refused:?}"
            );
        }
        retire_now(&app, &leaked).await;
        for replica in [&app, &started] {
            _ = replica.refresh_keys().await;
            is_refused(replica, &alice).await;
            assert!(![&leaked, &id].contains(&&kid(&replica.login("alice").await)));
        }
        if broken == KeyStatus::Retiring {
            keys::retire(&policy, &app.pool(), &id, false, app.clock.now()).await.unwrap();
        }
        let again = keys::retire(&policy, &app.pool(), &id, true, app.clock.now()).await;
        assert!(matches!(again, Err(Error::NoSuchKey(_))), "{again:?}");
        for replica in [&app, &started] {
            refresh(replica).await;
            assert!(!replica.scrape().await.contains("unreadable"));
        }
    }
}

#[tokio::test]
async fn no_token_is_made_until_an_unreadable_signing_key_is_retired() {
    let settings = tokens_of("v4.public");
    let app = App::with(&settings).await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    let id = break_the(KeyStatus::Active, &app).await;
    app.refresh_keys().await.unwrap_err();
    is_refused(&app, &alice).await;
    app.try_login("alice", PASSWORD).await.expect_problem(500, "internal_error");
    app.get("/readyz").send().await.expect_problem(503, "not_ready");
    let refused = app.try_replica(KEY, app.clock.clone(), &settings).await.err().unwrap().to_string();
    assert!(refused.contains(&format!("gatepass key retire {id} --now")), "{refused}");

    keys::retire(&policy(KEY, &settings), &app.pool(), &id, false, app.clock.now()).await.unwrap();
    for replica in [&app, &app.replica(&settings).await] {
        refresh(replica).await;
        passes(replica, &replica.login("alice").await).await;
        is_refused(replica, &alice).await;
        replica.get("/readyz").send().await.expect(200);
    }
}

/// Spoils the private part of the one key that has this status; returns the key's id.
async fn close_the(status: KeyStatus, app: &App) -> String {
    let id = the(status, app).await;
    let spoil = "UPDATE signing_keys SET wrapped_key = set_byte(wrapped_key, 40, 255 - get_byte(wrapped_key, 40)) WHERE id = $1";
    app.sql(spoil, &json!(id)).await;
    id
}

#[tokio::test]
async fn a_key_with_a_damaged_private_part_is_retired_and_no_token_is_refused() {
    let settings = tokens_of("v4.public");
    let app = App::with(&settings).await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    let id = close_the(KeyStatus::Active, &app).await;
    // The running replica has opened the key before; no other can.
    refresh(&app).await;
    let later = app.login("alice").await;
    assert_eq!(kid(&later), id);
    let refused = app.try_replica(KEY, app.clock.clone(), &settings).await.err().unwrap().to_string();
    let cure = format!("`gatepass key retire {id}`");
    assert!(refused.contains("cannot be opened") && refused.contains(&cure), "{refused}");
    assert!(published(&app).await.contains(&id) && !app.scrape().await.contains("unreadable"));

    keys::retire(&policy(KEY, &settings), &app.pool(), &id, false, app.clock.now()).await.unwrap();
    for replica in [&app, &app.replica(&settings).await] {
        refresh(replica).await;
        for login in [&alice, &later, &replica.login("alice").await] {
            passes(replica, login).await;
        }
    }
    assert_eq!(the(KeyStatus::Retiring, &app).await, id);
}

#[tokio::test]
async fn a_next_key_that_cannot_be_opened_prevents_no_start_and_never_signs() {
    let settings = tokens_of("v4.public");
    let app = App::with(&settings).await;
    app.register("alice").await;
    let id = close_the(KeyStatus::Next, &app).await;
    let started = app.replica(&settings).await;
    passes(&app, &started.login("alice").await).await;
    app.clock.advance(Duration::days(31));
    // The first has opened the key before; the other never could.
    for replica in [&app, &started] {
        let error = replica.refresh_keys().await.unwrap_err();
        assert!(matches!(&error, Error::Unopenable { id: other, .. } if *other == id), "{error}");
        let error = replica.state().keys.rotate(app.clock.now()).await.unwrap_err();
        assert!(error.to_string().contains(&format!("`gatepass key retire {id}`")), "{error}");
        assert_eq!(the(KeyStatus::Next, &app).await, id);
        passes(replica, &replica.login("alice").await).await;
    }
    keys::retire(&policy(KEY, &settings), &app.pool(), &id, false, app.clock.now()).await.unwrap();
    refresh(&started).await;
    assert_ne!(the(KeyStatus::Next, &started).await, id);
}

#[tokio::test]
async fn a_leaked_key_is_refused_even_if_all_other_connections_are_in_use() {
    let settings = tokens_of("v4.public");
    let app = App::with(&settings).await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    let pools = Pools { requests: app.pool(), background: app.pool(), feed: app.pool(), keys: app.pool() };
    let (settings, key) = (app::settings(&settings), KEY.parse().unwrap());
    let state =
        serve::app(&settings, &key, pools.clone(), app.clock.clone(), Limits::default()).await.unwrap();
    let mut held = Vec::new();
    for pool in [&pools.requests, &pools.background] {
        for _ in 0..pool.in_use().max {
            held.push(pool.acquire().await.unwrap());
        }
    }
    retire_now(&app, &kid(&alice)).await;
    assert!(state.keys.read(app.clock.now()).await.unwrap().is_empty());
    let verified = state.keys.verifier().verify(alice["access_token"].as_str().unwrap(), app.clock.now());
    assert_eq!(verified.unwrap_err(), Rejection::UnknownKey);
}

#[tokio::test]
async fn a_leaked_key_is_refused_while_a_rotation_waits() {
    let app = App::with(&tokens_of_and("v4.public", &[("KEY_ROTATION_INTERVAL", "10m")])).await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    rotate(&app).await;
    app.clock.advance(Duration::minutes(10));
    let mut hold = app.db.begin().await.unwrap();
    let lock = sqlx::query("SELECT FROM signing_keys WHERE id = $1 FOR UPDATE");
    lock.bind(the(KeyStatus::Active, &app).await).execute(&mut *hold).await.unwrap();

    let keys = app.state().keys.clone();
    let following = tokio::spawn(async move { keys.follow().await });
    // When the waiting statement began.
    let waits_since = async || {
        let waiting = "SELECT query_start::text FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        sqlx::query_scalar::<_, String>(waiting).fetch_optional(&app.db).await.unwrap()
    };
    until("the rotation waits", async || waits_since().await.is_some()).await;
    let since = waits_since().await;
    passes(&app, &alice).await;
    retire_now(&app, &kid(&alice)).await;
    until("the token is refused", async || app.get("/users/me").bearer(&alice).send().await.status == 401)
        .await;
    assert_eq!(waits_since().await, since, "it was given up first");
    hold.rollback().await.unwrap();
    until("it has rotated", async || table(&app).await.len() == 4).await;
    following.abort();
}

#[tokio::test]
async fn without_the_database_the_keys_stay_as_they_are() {
    let app = App::with(&tokens_of_and("v4.public", &[("KEY_ROTATION_INTERVAL", "1h")])).await;
    let root = app.login_admin("root").await;
    let documents = published(&app).await;
    app.clock.advance(Duration::minutes(55));
    let root_again = app.login("root").await;

    let options: PgConnectOptions = app.database_url.parse().unwrap();
    let name = options.get_database().unwrap();
    app::admin(&format!(r#"ALTER DATABASE "{name}" ALLOW_CONNECTIONS false"#)).await;
    app::admin(&format!(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
    ))
    .await;
    // Rotation is due, and has to wait.
    app.clock.advance(Duration::minutes(10));
    for _ in 0..2 {
        app.refresh_keys().await.unwrap_err();
        assert_eq!(published(&app).await, documents);
        // The first token passes its check, and the request fails on its way to the database.
        let path = "/admin/users/019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e";
        app.get(path).bearer(&root_again).send().await.expect_problem(503, "database_unavailable");
        app.get(path).bearer(&root).send().await.expect_problem(401, "token_expired");
    }

    app::admin(&format!(r#"ALTER DATABASE "{name}" ALLOW_CONNECTIONS true"#)).await;
    refresh(&app).await;
    assert_eq!(table(&app).await.len(), 3, "it has rotated");
    passes(&app, &root_again).await;
    let new = app.login("root").await;
    assert_ne!(kid(&new), kid(&root));
    passes(&app, &new).await;
}
