//! A statistical test that the time of an answer tells nobody whether a user exists, or why a login failed.
//!
//! The cases take turns in a random order, so whatever else the machine does affects all of them alike, and are
//! compared by rank (Mann–Whitney): how often does an answer of one case take longer than one of another? One time in
//! two if they take the same, nearly always if one of them skips a hash or computes one more.
//!
//! What this can show: a step that some cases skip, and that takes more than a few percent of the whole. What it cannot
//! show: that there is no difference of microseconds. There may be one, since a row that is found is read, and one that
//! is not found is not. Behind a hash of tens of milliseconds and a network, it takes thousands of samples to see that,
//! and the throttle lets nobody take so many.
//!
//! `make test` takes a few samples; with `GATEPASS_DRILL=full` there are so many that the bounds are close.

use std::time::{Duration, Instant};

use gatepass::{http::Limits, random};
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    app::{App, PASSWORD},
    legacy_login::OldSystem,
    process::is_drill,
};

const WRONG: &str = "wrong-horse-battery-9";

/// How many samples to take of each case, and how far from one half a comparison may be. For n samples each of equal
/// cases its standard deviation is `sqrt((2n + 1) / (12 n²))`: 0.075 for 30 and 0.018 for 500. The bounds are more than
/// five standard deviations away.
fn effort() -> (usize, f64) {
    if is_drill() { (500, 0.15) } else { (30, 0.4) }
}

/// How often one of `a` is larger than one of `b`; a tie counts half.
fn how_often_larger(a: &[f64], b: &[f64]) -> f64 {
    let score = |a: &f64, b: &f64| {
        if a > b {
            1.0
        } else if a == b {
            0.5
        } else {
            0.0
        }
    };
    let sum: f64 = a.iter().flat_map(|a| b.iter().map(move |b| score(a, b))).sum();
    sum / (a.len() * b.len()) as f64
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The seconds that each case took, in every round. The cases take turns.
async fn measure(cases: usize, samples: usize, mut answer: impl AsyncFnMut(usize, usize)) -> Vec<Vec<f64>> {
    let mut times = vec![Vec::with_capacity(samples); cases];
    // The first round warms up and does not count.
    for sample in 0..=samples {
        let mut order: Vec<usize> = (0..cases).collect();
        order.sort_by_cached_key(|_| random::bytes::<8>(&mut random::system()));
        for case in order {
            let began = Instant::now();
            answer(case, sample).await;
            if sample > 0 {
                times[case].push(began.elapsed().as_secs_f64());
            }
        }
    }
    times
}

#[track_caller]
fn assert_alike(names: &[&str], times: &[Vec<f64>], bound: f64) {
    for (name, times_of) in names.iter().zip(times).skip(1) {
        let often = how_often_larger(times_of, &times[0]);
        println!(
            "{name}: longer than {:?} {often:.3} of the time; medians {:.3} and {:.3} ms",
            names[0],
            median(times_of) * 1e3,
            median(&times[0]) * 1e3
        );
        assert!((often - 0.5).abs() < bound, "{name:?} against {:?}: {often}", names[0]);
    }
}

/// A hash at its real cost, on one thread.
const HASH: [(&str, &str); 3] =
    [("ARGON2_MEMORY_KIB", "19456"), ("ARGON2_ITERATIONS", "2"), ("PASSWORD_HASH_THREADS", "1")];

async fn users(app: &App) {
    app.register("alice").await;
    let bob = app.register("bob").await;
    app.sql("UPDATE users SET disabled = true WHERE id = $1::uuid", &bob["id"]).await;
    let carol = app.register("carol").await;
    app.sql("UPDATE users SET password_hash = NULL WHERE id = $1::uuid", &carol["id"]).await;
}

#[tokio::test]
async fn a_failed_login_takes_equally_long_whatever_the_reason() {
    let app = App::with(&HASH).await;
    users(&app).await;
    let long = "x".repeat(1000);
    let cases = [
        ("a wrong password", "alice", WRONG),
        ("an unknown user", "nobody", PASSWORD),
        ("an unknown address", "nobody@example.com", PASSWORD),
        ("a name that nobody can have", "b c", PASSWORD),
        ("a disabled user", "bob", PASSWORD),
        ("a user without a password", "carol", PASSWORD),
        ("a password that is too long", "alice", &long),
    ];
    let (samples, bound) = effort();
    let times = measure(cases.len(), samples, async |case, _| {
        let (_, username, password) = cases[case];
        app.try_login(username, password).await.expect_problem(401, "invalid_credentials");
    });
    assert_alike(&cases.map(|(name, ..)| name), &times.await, bound);
}

/// Our own hash takes microseconds here, so that only waiting makes the cases alike.
#[tokio::test]
async fn a_failed_login_takes_equally_long_with_an_expensive_foreign_hash() {
    let app = App::new().await;
    users(&app).await;
    let dora = app.register("dora").await;
    let bcrypt = "UPDATE users SET password_hash = \
        '$2b$08$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW' WHERE id = $1::uuid";
    app.sql(bcrypt, &dora["id"]).await;
    let cases = [
        ("a user with bcrypt", "dora", WRONG),
        ("a wrong password", "alice", WRONG),
        ("an unknown user", "nobody", PASSWORD),
        ("a disabled user", "bob", PASSWORD),
    ];
    app.try_login("dora", WRONG).await.expect_problem(401, "invalid_credentials");
    let (samples, bound) = effort();
    let times = measure(cases.len(), samples, async |case, _| {
        let (_, username, password) = cases[case];
        app.try_login(username, password).await.expect_problem(401, "invalid_credentials");
    });
    assert_alike(&cases.map(|(name, ..)| name), &times.await, bound);
}

/// Only waiting makes these alike. They run all at once, since all of them wait.
#[tokio::test]
async fn asking_the_old_system_does_not_show_in_the_time_of_a_failed_login() {
    let old = OldSystem::start().await;
    old.takes(Duration::from_millis(40));
    let limits = Limits { legacy_login: Duration::from_millis(100), ..Limits::default() };
    let app = App::with_limits(&[("LEGACY_LOGIN_URL", &old.url())], limits).await;
    users(&app).await;
    let cases = [
        ("a wrong password", "alice", WRONG),
        ("an unknown user", "nobody", PASSWORD),
        ("an unknown address", "nobody@example.com", PASSWORD),
        ("a disabled user", "bob", PASSWORD),
        ("a user without a password", "carol", PASSWORD),
    ];
    let (samples, bound) = effort();
    let mut times = vec![Vec::new(); cases.len()];
    for _ in 0..samples {
        let mut order: Vec<usize> = (0..cases.len()).collect();
        order.sort_by_cached_key(|_| random::bytes::<8>(&mut random::system()));
        let logins = order.iter().map(|&case| {
            let (_, username, password) = cases[case];
            let body = json!({ "username": username, "password": password });
            let login = app.post("/users/login").json(&body);
            async move {
                let began = Instant::now();
                login.send().await.expect_problem(401, "invalid_credentials");
                (case, began.elapsed().as_secs_f64())
            }
        });
        for (case, took) in JoinSet::from_iter(logins).join_all().await {
            assert!(took >= 0.12, "{took}");
            times[case].push(took);
        }
        app.clock.advance(time::Duration::minutes(1));
    }
    assert!(old.asked().len() >= samples);
    assert_alike(&cases.map(|(name, ..)| name), &times, bound);
}

#[tokio::test]
async fn a_throttled_login_takes_equally_long_for_every_user() {
    let app = App::with(&[&HASH[..], &[("LOGIN_ATTEMPTS_PER_ACCOUNT", "1/365d")]].concat()).await;
    users(&app).await;
    let cases = [
        ("a user", "alice", PASSWORD),
        ("an unknown user", "nobody", PASSWORD),
        ("a disabled user", "bob", PASSWORD),
        ("a user without a password", "carol", PASSWORD),
    ];
    for (_, username, _) in cases {
        app.try_login(username, WRONG).await.expect_problem(401, "invalid_credentials");
    }
    let (samples, bound) = effort();
    let times = measure(cases.len(), samples, async |case, _| {
        let (_, username, password) = cases[case];
        app.try_login(username, password).await.expect_problem(429, "too_many_attempts");
    });
    assert_alike(&cases.map(|(name, ..)| name), &times.await, bound);
}

/// The instrument itself: one of these is answered without a hash, which shows at once.
#[tokio::test]
async fn the_measurement_detects_a_skipped_hash() {
    let app = App::with(&[&HASH[..], &[("LOGIN_ATTEMPTS_PER_ACCOUNT", "1/365d")]].concat()).await;
    app.try_login("alice", WRONG).await.expect_problem(401, "invalid_credentials");
    let times = measure(2, 30, async |case, sample| match case {
        0 => drop(
            app.try_login(&format!("nobody{sample}"), WRONG).await.expect_problem(401, "invalid_credentials"),
        ),
        _ => drop(app.try_login("alice", WRONG).await.expect_problem(429, "too_many_attempts")),
    });
    let times = times.await;
    assert!(how_often_larger(&times[0], &times[1]) > 0.95, "{times:?}");
}

/// The answer tells that a name is taken. Nothing else tells which of the two it was, or whose.
#[tokio::test]
async fn a_registration_takes_equally_long_whatever_is_taken() {
    let app = App::with(&HASH).await;
    users(&app).await;
    let names =
        ["a new user", "a username that is taken", "an address that is taken", "both", "a disabled user's"];
    let (samples, bound) = effort();
    let times = measure(names.len(), samples, async |case, sample| {
        let (username, email, status) = match case {
            0 => (format!("user{sample}"), format!("user{sample}@example.com"), 201),
            1 => ("alice".to_owned(), format!("new{sample}@example.com"), 409),
            2 => (format!("new{sample}"), "alice@example.com".to_owned(), 409),
            3 => ("alice".to_owned(), "alice@example.com".to_owned(), 409),
            _ => ("bob".to_owned(), format!("new{sample}@example.com"), 409),
        };
        let body = json!({ "username": username, "email": email, "password": PASSWORD });
        app.post("/users").json(&body).send().await.expect(status);
    });
    assert_alike(&names, &times.await, bound);
}

#[tokio::test]
async fn a_failed_renewal_takes_equally_long_whichever_session_it_names() {
    let app = App::new().await;
    app.register("alice").await;
    let login = app.login("alice").await;
    let real = login["refresh_token"].as_str().unwrap();
    let other = |at: usize| {
        let letter = if real.as_bytes()[at] == b'B' { "C" } else { "B" };
        format!("{}{letter}{}", &real[..at], &real[at + 1..])
    };
    // The 16 bytes of the id end with the 26th letter, the generation with the 31st.
    let tokens = [other(20), other(40)];
    let (samples, bound) = effort();
    let times = measure(tokens.len(), samples, async |case, _| {
        let body = json!({ "refresh_token": tokens[case] });
        let answer = app.post("/tokens/renew_access").json(&body).send().await;
        answer.expect_problem(401, "invalid_refresh_token");
    });
    assert_alike(&["no session", "a session, and a wrong MAC"], &times.await, bound);
}
