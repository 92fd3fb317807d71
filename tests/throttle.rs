//! The throttle: anyone who fails too often waits exactly as long as they are told, whichever replica they ask, and
//! whether or not the user exists. The owner gets in from a device that has logged in before. What the throttle stores
//! is little, and reveals no names.

use std::sync::Arc;

use gatepass::{
    account::KNOWN_FOR,
    store::login_attempts::{self, Bucket, Device, Forgiveness, PasswordOf, Places},
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use time::Duration;
use tokio::{sync::Barrier, task::JoinSet};

use crate::{
    app::{Answer, App, KEY, PASSWORD},
    process::{Home, QUICK},
};

const WRONG: &str = "wrong-horse-battery-9";

/// The address that the harness sends its requests from.
const HERE: &str = "192.0.2.1";

async fn log_in_from(app: &App, ip: &str, username: &str, password: &str) -> Answer {
    let body = json!({ "username": username, "password": password });
    app.post("/users/login").header("x-request-id", "one-and-the-same").peer(ip).json(&body).send().await
}

async fn log_in(app: &App, username: &str, password: &str) -> Answer {
    log_in_from(app, HERE, username, password).await
}

/// A refusal that says to wait for so many seconds.
#[track_caller]
fn expect_wait(answer: Answer, seconds: u32) {
    assert_eq!(answer.header("retry-after"), seconds.to_string(), "{}", answer.body);
    answer.expect_problem(429, "too_many_attempts");
}

/// Fails until refused; returns how many attempts got through.
async fn failures_until_refused(app: &App, ip: &str, username: &str) -> usize {
    let mut failures = 0;
    loop {
        let answer = log_in_from(app, ip, username, WRONG).await;
        if answer.status == 429 {
            return failures;
        }
        answer.expect_problem(401, "invalid_credentials");
        failures += 1;
    }
}

/// With the default rates.
async fn app() -> App {
    App::with(&DEFAULTS).await
}

const DEFAULTS: [(&str, &str); 2] =
    [("LOGIN_ATTEMPTS_PER_ACCOUNT", "10/15m"), ("LOGIN_ATTEMPTS_PER_IP", "100/15m")];

#[tokio::test]
async fn waiting_as_long_as_told_suffices_and_no_less_does() {
    let app = app().await;
    app.register("alice").await;
    let second = Duration::seconds(1);
    assert_eq!(failures_until_refused(&app, HERE, "alice").await, 10);
    // A refused attempt makes nobody wait longer, and the right password is refused like any other.
    for _ in 0..3 {
        expect_wait(log_in(&app, "alice", WRONG).await, 90);
        expect_wait(log_in(&app, "alice", PASSWORD).await, 90);
    }
    app.clock.advance(second * 0.3);
    expect_wait(log_in(&app, "alice", PASSWORD).await, 90);
    app.clock.advance(second * 88.7);
    expect_wait(log_in(&app, "alice", PASSWORD).await, 1);
    app.clock.advance(second - Duration::microseconds(1));
    expect_wait(log_in(&app, "alice", PASSWORD).await, 1);
    app.clock.advance(Duration::microseconds(1));
    log_in(&app, "alice", WRONG).await.expect_problem(401, "invalid_credentials");
    expect_wait(log_in(&app, "alice", PASSWORD).await, 90);
    app.clock.advance(second * 90);
    log_in(&app, "alice", PASSWORD).await.expect(200);
    // After a time without attempts, all places are free again.
    assert_eq!(failures_until_refused(&app, "192.0.2.2", "alice").await, 10);
    app.clock.advance(Duration::minutes(15) - second);
    assert_eq!(failures_until_refused(&app, "192.0.2.2", "alice").await, 9);
    app.clock.advance(Duration::minutes(15) * 4);
    assert_eq!(failures_until_refused(&app, "192.0.2.2", "alice").await, 10);
    // An address has 100 places.
    app.clock.advance(Duration::minutes(15));
    for n in 0..100 {
        let answer = log_in_from(&app, "192.0.2.3", &format!("user{n}"), WRONG).await;
        answer.expect_problem(401, "invalid_credentials");
    }
    expect_wait(log_in_from(&app, "192.0.2.3", "another", WRONG).await, 9);
    app.clock.advance(second * 8);
    expect_wait(log_in_from(&app, "192.0.2.3", "alice", PASSWORD).await, 1);
    app.clock.advance(second);
    log_in_from(&app, "192.0.2.3", "alice", PASSWORD).await.expect(200);
}

#[tokio::test]
async fn a_name_that_nobody_has_is_refused_like_any_other() {
    let app = app().await;
    app.register("alice").await;
    let bob = app.register("bob").await;
    app.sql("UPDATE users SET disabled = true WHERE id = $1::uuid", &bob["id"]).await;
    let carol = app.register("carol").await;
    app.sql("UPDATE users SET password_hash = NULL WHERE id = $1::uuid", &carol["id"]).await;
    let long = "x".repeat(1000);
    // Each is tried more often than there are places, in any letter case, from many addresses.
    let names: [&[&str]; 9] = [
        &["alice", "ALICE", "Alice"],
        &["alice@example.com", "Alice@EXAMPLE.com"],
        &["bob"],
        &["carol"],
        &["nobody", "NOBODY", "Nobody"],
        &["nobody@example.com", "Nobody@EXAMPLE.com"],
        &["\u{e9}lise@example.com", "E\u{301}LISE@example.com"],
        &["", ""],
        &[&long, "no\0body"],
    ];
    let mut all = Vec::new();
    for (n, names) in names.iter().enumerate().take(8) {
        let mut answers = Vec::new();
        for i in 0..13 {
            let ip = format!("198.51.{n}.{i}");
            answers.push(log_in_from(&app, &ip, names[i % names.len()], WRONG).await);
            app.clock.advance(Duration::seconds(1));
        }
        all.push(answers);
    }
    for answers in &all {
        for (one, other) in answers.iter().zip(&all[0]) {
            assert_eq!((one.status, &one.body, &one.headers), (other.status, &other.body, &other.headers));
        }
    }
    for answer in &all[0][..10] {
        answer.clone().expect_problem(401, "invalid_credentials");
    }
    // Nine seconds have passed since the first attempt, and each refusal comes a second later than the one before.
    for (answer, wait) in all[0][10..].iter().zip([80, 79, 78]) {
        expect_wait(answer.clone(), wait);
    }
    // Two spellings of one address share their places.
    let body = json!({ "username": "jose", "email": "jos\u{e9}@example.com", "password": PASSWORD });
    app.post("/users").json(&body).send().await.expect(201);
    let spellings = ["jos\u{e9}@example.com", "Jose\u{301}@example.com"];
    for i in 0..10 {
        let answer = log_in_from(&app, "203.0.113.2", spellings[i % 2], WRONG).await;
        answer.expect_problem(401, "invalid_credentials");
    }
    for name in spellings {
        let answer = log_in_from(&app, "203.0.113.2", name, WRONG).await;
        answer.expect_problem(429, "too_many_attempts");
    }
    // Names that nobody can have are limited like others.
    for name in names[8] {
        assert_eq!(failures_until_refused(&app, "203.0.113.1", name).await, 10);
    }
}

/// A single count for both names would reveal that they belong to one user.
#[tokio::test]
async fn a_users_two_names_are_throttled_separately() {
    let app = app().await;
    app.register("alice").await;
    for name in ["alice", "nobody"] {
        assert_eq!(failures_until_refused(&app, "198.51.100.1", name).await, 10);
        let address = format!("{name}@example.com");
        assert_eq!(failures_until_refused(&app, "198.51.100.2", &address).await, 10);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_attempts_get_through_only_up_to_the_limit() {
    for (per_account, per_ip, admitted) in
        [("10/15m", "1000/15m", 10), ("1000/15m", "10/15m", 10), ("1/15m", "1/15m", 1), ("7/1h", "5/1h", 5)]
    {
        let rates = [("LOGIN_ATTEMPTS_PER_ACCOUNT", per_account), ("LOGIN_ATTEMPTS_PER_IP", per_ip)];
        let app = App::with(&rates).await;
        let replicas = [app.replica(&rates).await, app.replica(&rates).await];
        app.register("alice").await;
        // First when there is no row to lock yet; then for the one free place, again and again.
        for expected in [admitted, 1, 1] {
            let mut crowd = JoinSet::new();
            for i in 0..64 {
                crowd.spawn(replicas[i % 2].try_login("alice", WRONG));
            }
            let mut through = 0;
            for answer in crowd.join_all().await {
                match answer.status.as_u16() {
                    401 => through += 1,
                    _ => drop(answer.expect_problem(429, "too_many_attempts")),
                }
            }
            assert_eq!(through, expected, "{per_account} {per_ip}");
            // The wait ends exactly when one more is let in.
            let wait = log_in(&replicas[0], "alice", WRONG).await;
            let seconds: i64 = wait.header("retry-after").parse().unwrap();
            wait.expect_problem(429, "too_many_attempts");
            app.clock.advance(Duration::seconds(seconds - 1));
            log_in(&replicas[1], "alice", WRONG).await.expect_problem(429, "too_many_attempts");
            app.clock.advance(Duration::seconds(1));
        }
    }
}

/// Each login makes the device known, and some find it known already; they must not get in each other's way.
#[tokio::test]
async fn many_first_logins_at_once_all_succeed() {
    let rates = [("LOGIN_ATTEMPTS_PER_ACCOUNT", "1000/1m"), ("LOGIN_ATTEMPTS_PER_IP", "1000/1m")];
    let app = App::with(&rates).await;
    let replicas = [app.replica(&rates).await, app.replica(&rates).await];
    for name in ["alice", "bob", "carol"] {
        app.register(name).await;
        let mut crowd = JoinSet::new();
        for i in 0..24 {
            crowd.spawn(replicas[i % 2].try_login(name, PASSWORD));
        }
        for answer in crowd.join_all().await {
            answer.expect(200);
        }
    }
}

/// However many log in at once, for the first time or not, whether they fail or succeed, there is no deadlock. Postgres
/// would find one after a second, and make one of them begin again.
#[tokio::test]
async fn taking_and_forgiving_attempts_never_deadlock() {
    let app = App::new().await;
    let now = app.clock.now();
    let alice = app.register("alice").await;
    let alice = alice["id"].as_str().unwrap().parse().unwrap();
    // She has her password since now.
    let password = PasswordOf { user_id: alice, changed_at: now };
    let bucket = |key| {
        let spacing = std::time::Duration::from_millis(1);
        Bucket { key, spacing, span: spacing * 1_000_000 }
    };
    let together = Arc::new(Barrier::new(16));
    let mut crowd = JoinSet::new();
    for n in 0..16 {
        let mut conn = PgConnection::connect(&app.database_url).await.unwrap();
        let together = together.clone();
        conn.execute("SET deadlock_timeout = '10ms'").await.unwrap();
        crowd.spawn(async move {
            for round in 0..30 {
                together.wait().await;
                // A user has two names, and a device for each. Their keys and the address's sort differently each time.
                let key = |what: u128| {
                    what.wrapping_mul(2 * round + 1).wrapping_mul(u128::MAX / 5 * 2 + 7).to_be_bytes()
                };
                let device = |what| [key(what), key(what)].concat().try_into().unwrap();
                let (address, names, devices) = (key(1), [key(2), key(3)], [device(4), device(5)]);
                let name = n % 2;
                let places = Places {
                    buckets: vec![bucket(names[name]), bucket(address)],
                    device: Some(Device { account: names[name], device: devices[name] }),
                };
                login_attempts::take(&mut conn, &places, Some("alice"), now).await.unwrap();
                let forgiveness = Forgiveness {
                    address: Some(bucket(address)),
                    accounts: names.to_vec(),
                    devices: devices.to_vec(),
                    known_until: Some(now + KNOWN_FOR),
                };
                if n % 3 == 0 {
                    login_attempts::give_back(&mut conn, &places.buckets).await.unwrap();
                } else {
                    login_attempts::forgive(&mut conn, &forgiveness, password, now).await.unwrap();
                }
            }
        });
    }
    crowd.join_all().await;
}

#[tokio::test]
async fn a_success_forgives_the_account_and_not_the_address() {
    let app = App::with(&[("LOGIN_ATTEMPTS_PER_ACCOUNT", "3/15m"), ("LOGIN_ATTEMPTS_PER_IP", "5/15m")]).await;
    app.register("alice").await;
    for name in ["alice", "alice", "alice@example.com", "alice@example.com"] {
        log_in(&app, name, WRONG).await.expect_problem(401, "invalid_credentials");
    }
    // A success takes no place, however many there are. It frees those of both names, whichever was used.
    for _ in 0..20 {
        log_in(&app, "alice", PASSWORD).await.expect(200);
    }
    assert_eq!(failures_until_refused(&app, "192.0.2.2", "alice").await, 3);
    assert_eq!(failures_until_refused(&app, "192.0.2.3", "ALICE@example.com").await, 3);
    // The owner has logged in from here before, so what they do now frees no places for others.
    log_in(&app, "alice", PASSWORD).await.expect(200);
    assert_eq!(failures_until_refused(&app, "192.0.2.2", "alice").await, 0);
    assert_eq!(failures_until_refused(&app, "192.0.2.3", "alice@example.com").await, 0);
    // Four of the five places of this address are taken.
    assert_eq!(failures_until_refused(&app, HERE, "nobody").await, 1);
    let wait = log_in(&app, "alice", PASSWORD).await;
    expect_wait(wait, 180);
}

#[tokio::test]
async fn a_device_that_has_logged_in_before_gets_in_while_others_hammer() {
    let app = app().await;
    app.register("alice").await;
    let home = "2001:db8:1:2::7";
    log_in_from(&app, home, "Alice", PASSWORD).await.expect(200);
    for round in 0..3 {
        for attacker in 0..3 {
            failures_until_refused(&app, &format!("198.51.100.{attacker}"), "alice").await;
            failures_until_refused(&app, &format!("198.51.100.{attacker}"), "alice@example.com").await;
        }
        // From elsewhere the owner is refused. At home, by either name, from any address of that network, they may even
        // err.
        log_in_from(&app, "203.0.113.5", "alice", PASSWORD).await.expect_problem(429, "too_many_attempts");
        log_in_from(&app, "2001:db8:1:3::7", "alice", PASSWORD)
            .await
            .expect_problem(429, "too_many_attempts");
        for _ in 0..9 {
            log_in_from(&app, home, "alice", WRONG).await.expect_problem(401, "invalid_credentials");
        }
        let alice = log_in_from(&app, "2001:db8:1:2:ffff::9", "alice", PASSWORD).await.expect(200);
        failures_until_refused(&app, "198.51.100.9", "alice").await;
        log_in_from(&app, home, "alice@example.com", PASSWORD).await.expect(200);
        // And whoever has a session does not need to log in.
        let body = json!({ "refresh_token": alice["refresh_token"] });
        app.post("/tokens/renew_access").peer("203.0.113.5").json(&body).send().await.expect(200);
        app.clock.advance(KNOWN_FOR - Duration::seconds(1 + round));
    }
    // A device has as many places as an account, and no more: an attacker next to the owner is limited, too.
    failures_until_refused(&app, "198.51.100.1", "alice").await;
    assert_eq!(failures_until_refused(&app, home, "alice").await, 10);
    app.clock.advance(Duration::seconds(90));
    log_in_from(&app, home, "alice", PASSWORD).await.expect(200);
    // A device that is known for one user is not known for another.
    app.register("bob").await;
    failures_until_refused(&app, "198.51.100.1", "bob").await;
    log_in_from(&app, home, "bob", PASSWORD).await.expect_problem(429, "too_many_attempts");

    app.clock.advance(KNOWN_FOR);
    failures_until_refused(&app, "198.51.100.1", "alice").await;
    log_in_from(&app, home, "alice", PASSWORD).await.expect_problem(429, "too_many_attempts");
}

/// Whoever had the password once may have logged in from any number of networks.
#[tokio::test]
async fn a_device_is_known_for_one_user_and_one_password() {
    let app = app().await;
    let (home, office) = ("192.0.2.7", "192.0.2.8");
    let mut attacker = 0;
    let mut is_known = async |ip: &str, name: &str, password: &str| {
        attacker += 1;
        failures_until_refused(&app, &format!("198.51.100.{attacker}"), name).await;
        let answer = log_in_from(&app, ip, name, password).await;
        if answer.status != 200 {
            answer.clone().expect_problem(429, "too_many_attempts");
        }
        app.clock.advance(Duration::minutes(15));
        answer.status == 200
    };
    app.register("alice").await;
    for ip in [home, office] {
        log_in_from(&app, ip, "alice", PASSWORD).await.expect(200);
        assert!(is_known(ip, "alice@example.com", PASSWORD).await);
    }
    // The device on which the user changes the password stays known, and no other.
    let (second, third) = ("another-horse-battery-10", "a-third-horse-battery-11");
    let alice = log_in_from(&app, home, "alice", PASSWORD).await.expect(200);
    let body = json!({ "current_password": PASSWORD, "new_password": second });
    let change = app.request("PUT".parse().unwrap(), "/users/me/password").bearer(&alice).peer(home);
    change.json(&body).send().await.expect(204);
    assert!(!is_known(office, "alice", second).await);
    for name in ["alice", "alice@example.com"] {
        assert!(is_known(home, name, second).await);
    }
    log_in_from(&app, office, "alice", second).await.expect(200);
    assert!(is_known(office, "alice", second).await);
    // An operator sets one.
    let settings = [("DB_SOURCE", &*app.database_url), ("TOKEN_SYMMETRIC_KEY", KEY)];
    let set = ["user", "set-password", "alice", "--password-stdin"];
    Home::new().gatepass(&set).envs(&QUICK).envs(&settings).stdin(third).run().await.expect(0);
    for ip in [home, office] {
        assert!(!is_known(ip, "alice", third).await);
    }
    // Another user gets the name, or the address.
    log_in_from(&app, home, "alice", third).await.expect(200);
    assert!(is_known(home, "alice", third).await);
    let alice = log_in_from(&app, home, "alice", third).await.expect(200);
    app.post("/users/me/delete")
        .bearer(&alice)
        .peer(home)
        .json(&json!({ "password": third }))
        .send()
        .await
        .expect(204);
    app.register("alice").await;
    for name in ["alice", "alice@example.com"] {
        assert!(!is_known(home, name, PASSWORD).await);
    }
    let move_to = async |user: &Value, email: &str| {
        app.patch("/users/me").bearer(user).json(&json!({ "email": email })).send().await.expect(200);
    };
    let alice = log_in_from(&app, home, "alice", PASSWORD).await.expect(200);
    move_to(&alice, "alice2@example.com").await;
    app.register("bob").await;
    let bob = log_in_from(&app, "192.0.2.9", "bob", PASSWORD).await.expect(200);
    move_to(&bob, "alice@example.com").await;
    assert!(!is_known(home, "alice@example.com", PASSWORD).await);
}

#[tokio::test]
async fn an_operator_lets_somebody_in_who_is_locked_out() {
    let app = app().await;
    app.register("alice").await;
    app.register("bob").await;
    for command in [&["user", "set-password", "alice", "--password-stdin"][..], &["user", "enable", "alice"]]
    {
        for name in ["alice", "alice@example.com", "bob"] {
            failures_until_refused(&app, "198.51.100.1", name).await;
            log_in(&app, name, PASSWORD).await.expect_problem(429, "too_many_attempts");
        }
        let settings = [("DB_SOURCE", &*app.database_url), ("TOKEN_SYMMETRIC_KEY", KEY)];
        let home = Home::new();
        home.gatepass(command).envs(&QUICK).envs(&settings).stdin(PASSWORD).run().await.expect(0);
        for name in ["alice", "alice@example.com"] {
            log_in_from(&app, "203.0.113.5", name, WRONG).await.expect_problem(401, "invalid_credentials");
        }
        log_in(&app, "bob", PASSWORD).await.expect_problem(429, "too_many_attempts");
        app.clock.advance(Duration::minutes(15));
    }
}

#[tokio::test]
async fn throttling_uses_the_real_address_grouped_by_customer() {
    let rates = [("LOGIN_ATTEMPTS_PER_IP", "4/15m"), ("TRUSTED_PROXIES", "10.0.0.0/8")];
    let app = App::with(&rates).await;
    let try_from = async |peer: &str, forwarded: Option<&str>, n: usize| {
        let body = json!({ "username": format!("user{n}"), "password": WRONG });
        let request = app.post("/users/login").peer(peer).json(&body);
        let request = match forwarded {
            Some(forwarded) => request.header("x-forwarded-for", forwarded),
            None => request,
        };
        request.send().await.status.as_u16()
    };
    // A customer has a whole /64, and an IPv4 address may come in two forms.
    for (n, ip) in
        ["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:0:8000::", "2001:db8::1"].iter().enumerate()
    {
        assert_eq!(try_from(ip, None, n).await, 401);
    }
    assert_eq!(try_from("2001:db8::dead:beef", None, 9).await, 429);
    assert_eq!(try_from("2001:db8:0:1::1", None, 9).await, 401);
    for (n, ip) in ["192.0.2.7", "::ffff:192.0.2.7", "192.0.2.7", "::ffff:192.0.2.7"].iter().enumerate() {
        assert_eq!(try_from(ip, None, n).await, 401);
    }
    assert_eq!(try_from("192.0.2.7", None, 9).await, 429);
    assert_eq!(try_from("192.0.2.8", None, 9).await, 401);
    // A client that makes up addresses is known by its own.
    for n in 0..4 {
        assert_eq!(try_from("198.51.100.1", Some(&format!("203.0.113.{n}")), n).await, 401);
    }
    assert_eq!(try_from("198.51.100.1", Some("203.0.113.9"), 9).await, 429);
    for n in 0..4 {
        assert_eq!(try_from("10.0.0.1", Some(&format!("203.0.113.{n}, 198.51.100.2")), n).await, 401);
    }
    assert_eq!(try_from("10.0.0.2", Some("198.51.100.2"), 9).await, 429);
    // The next client behind the same proxy is somebody else.
    assert_eq!(try_from("10.0.0.2", Some("198.51.100.3"), 9).await, 401);
}

#[tokio::test]
async fn confirming_a_password_is_throttled_like_a_login() {
    let app = app().await;
    app.register("alice").await;
    let alice = log_in_from(&app, "203.0.113.5", "alice", PASSWORD).await.expect(200);
    let change = |ip: &str, current: &str, new: &str| {
        let body = json!({ "current_password": current, "new_password": new });
        app.request("PUT".parse().unwrap(), "/users/me/password").bearer(&alice).peer(ip).json(&body).send()
    };
    let delete = |ip: &str, password: &str| {
        app.post("/users/me/delete").bearer(&alice).peer(ip).json(&json!({ "password": password })).send()
    };
    // A thief of the access token, somewhere else.
    let thief = "198.51.100.1";
    for _ in 0..5 {
        change(thief, WRONG, "another-horse-battery-10").await.expect_problem(401, "invalid_credentials");
        delete(thief, WRONG).await.expect_problem(401, "invalid_credentials");
    }
    expect_wait(change(thief, PASSWORD, "another-horse-battery-10").await, 90);
    expect_wait(delete(thief, PASSWORD).await, 90);
    expect_wait(log_in_from(&app, thief, "alice", PASSWORD).await, 90);
    expect_wait(log_in_from(&app, "198.51.100.2", "ALICE", PASSWORD).await, 90);
    // The owner, from where they logged in. A new password that is refused is not a failure, and the right current one
    // forgives what happened there.
    let home = "203.0.113.5";
    for _ in 0..3 {
        for _ in 0..9 {
            change(home, WRONG, "another-horse-battery-10").await.expect_problem(401, "invalid_credentials");
        }
        let problem = change(home, PASSWORD, "short").await.expect_problem(422, "validation_failed");
        assert_eq!(problem["errors"][0]["field"], "new_password");
    }
    expect_wait(log_in_from(&app, thief, "alice", PASSWORD).await, 90);
    change(home, PASSWORD, "another-horse-battery-10").await.expect(204);
    delete(home, "another-horse-battery-10").await.expect(204);
}

#[tokio::test]
async fn a_new_address_brings_no_new_guesses() {
    let app = App::with(&[&DEFAULTS[..], &[("ACCESS_TOKEN_DURATION", "1h")]].concat()).await;
    app.register("alice").await;
    let alice = log_in_from(&app, "203.0.113.5", "alice", PASSWORD).await.expect(200);
    let rename = async |email: &str| {
        app.patch("/users/me").bearer(&alice).json(&json!({ "email": email })).send().await.expect(200)
    };
    // A thief of the access token, whom no address limits. The first guesses are the ones that every name has.
    let guesses = async |email: &str, from: u8| {
        failures_until_refused(&app, &format!("198.51.100.{from}"), email).await
    };
    assert_eq!(guesses("alice@example.com", 1).await, 10);
    for n in 2..20 {
        let email = format!("alice{n}@example.com");
        rename(&email).await;
        assert_eq!(guesses(&email, n).await, 0, "{email}");
    }
    // Waiting between two changes brings no more than waiting does.
    app.clock.advance(Duration::minutes(15));
    rename("alice@example.com").await;
    assert_eq!(guesses("alice@example.com", 1).await, 10);
    rename("ALICE@example.com").await;
    app.clock.advance(Duration::seconds(90));
    rename("alice2@example.com").await;
    assert_eq!(guesses("alice2@example.com", 1).await, 1);
    rename("alice@example.com").await;
    assert_eq!(guesses("alice@example.com", 1).await, 0);
    // The owner gets in by the name that stays.
    log_in_from(&app, "203.0.113.6", "alice", PASSWORD).await.expect(200);
}

#[tokio::test]
async fn trying_many_taken_names_is_throttled() {
    let rates = [("LOGIN_ATTEMPTS_PER_IP", "4/15m")];
    let app = App::with(&rates).await;
    let replica = app.replica(&rates).await;
    let register = |app: &App, ip: &str, username: &str, email: &str| {
        let body = json!({ "username": username, "email": email, "password": PASSWORD });
        app.post("/users").peer(ip).json(&body).send()
    };
    // There is no limit on new names, and what breaks a rule does not count.
    for n in 0..10 {
        let name = format!("user{n}");
        register(&app, HERE, &name, &format!("{name}@example.com")).await.expect(201);
        register(&app, HERE, "a", &format!("{name}@example.com"))
            .await
            .expect_problem(422, "validation_failed");
    }
    for n in 0..2 {
        let answer = register(&app, HERE, &format!("user{n}"), "new@example.com").await;
        answer.expect_problem(409, "username_taken");
        let answer = register(&replica, HERE, "new", &format!("user{n}@example.com")).await;
        answer.expect_problem(409, "email_taken");
    }
    for app in [&app, &replica] {
        expect_wait(register(app, HERE, "user3", "new@example.com").await, 225);
        expect_wait(register(app, HERE, "new", "new@example.com").await, 225);
    }
    // Nobody else has to wait, and nothing else is refused.
    register(&app, "192.0.2.2", "user3", "new@example.com").await.expect_problem(409, "username_taken");
    log_in(&app, "user3", PASSWORD).await.expect(200);
    app.clock.advance(Duration::seconds(224));
    expect_wait(register(&app, HERE, "new", "new@example.com").await, 1);
    app.clock.advance(Duration::seconds(1));
    register(&app, HERE, "new", "new@example.com").await.expect(201);
}

#[tokio::test]
async fn trying_many_taken_email_addresses_is_throttled() {
    let app = App::with(&[("LOGIN_ATTEMPTS_PER_IP", "4/15m")]).await;
    for name in ["alice", "bob"] {
        app.register(name).await;
    }
    let alice = app.login("alice").await;
    let change = |body: Value| app.patch("/users/me").bearer(&alice).json(&body).send();
    // An address that nobody has counts as little as an invalid one.
    for n in 0..10 {
        change(json!({ "email": format!("alice{n}@example.com") })).await.expect(200);
        change(json!({ "email": "alice" })).await.expect_problem(422, "validation_failed");
    }
    for _ in 0..4 {
        change(json!({ "email": "bob@example.com" })).await.expect_problem(409, "email_taken");
    }
    expect_wait(change(json!({ "email": "bob@example.com" })).await, 225);
    expect_wait(change(json!({ "email": "new@example.com" })).await, 225);
    change(json!({ "full_name": "Alice" })).await.expect(200);
}

#[tokio::test]
async fn only_renewals_with_an_invalid_refresh_token_are_throttled() {
    let rates = [("LOGIN_ATTEMPTS_PER_IP", "4/15m")];
    let app = App::with(&rates).await;
    let replica = app.replica(&rates).await;
    app.register("alice").await;
    let mut alice = app.login("alice").await;
    let renew = |app: &App, token: &Value| {
        app.post("/tokens/renew_access").json(&json!({ "refresh_token": token })).send()
    };
    let real = alice["refresh_token"].as_str().unwrap();
    let last = if real.ends_with('A') { 'E' } else { 'A' };
    let forged = format!("{}{last}", &real[..real.len() - 1]);
    for token in [json!("nonsense"), json!(forged), json!(""), json!(alice["access_token"])] {
        renew(&app, &token).await.expect_problem(401, "invalid_refresh_token");
    }
    for app in [&app, &replica] {
        expect_wait(renew(app, &json!("nonsense")).await, 225);
        expect_wait(renew(app, &json!(forged)).await, 225);
        // A good token from the same address.
        alice = renew(app, &alice["refresh_token"]).await.expect(200);
    }
    app.clock.advance(Duration::seconds(225));
    renew(&app, &json!("nonsense")).await.expect_problem(401, "invalid_refresh_token");
    log_in(&app, "alice", PASSWORD).await.expect(200);
}

/// A replica whose clock is ahead, or this one before its clock was set back.
#[tokio::test]
async fn a_clock_that_is_ahead_locks_nobody_out() {
    let app = app().await;
    for name in ["alice", "bob", "carol"] {
        app.register(name).await;
    }
    let ahead = Duration::hours(1);
    app.clock.shift(ahead);
    log_in(&app, "alice", PASSWORD).await.expect(200);
    assert_eq!(failures_until_refused(&app, HERE, "bob").await, 10);
    app.clock.shift(-ahead);
    for name in ["alice", "carol"] {
        log_in(&app, name, PASSWORD).await.expect(200);
    }
    // What was counted by that clock is ignored here; what is counted from now on is not.
    assert_eq!(failures_until_refused(&app, HERE, "bob").await, 10);
    expect_wait(log_in(&app, "bob", PASSWORD).await, 90);
    // Nor does a clock that is right again forget anything.
    app.clock.shift(Duration::seconds(-20));
    expect_wait(log_in(&app, "bob", PASSWORD).await, 110);
}

#[tokio::test]
async fn guessing_a_client_secret_is_throttled_but_not_the_client() {
    let rates = [("LOGIN_ATTEMPTS_PER_IP", "4/15m")];
    let app = App::with(&rates).await;
    let replica = app.replica(&rates).await;
    let orders = app.client("orders").await;
    let ask = |app: &App, path: &str, client: &(String, String)| {
        app.post(path).client(client).form(&[("token", "nonsense")]).send()
    };
    let wrong = (orders.0.clone(), format!("{}x", orders.1));
    let nobody = ("019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e".to_owned(), orders.1.clone());
    for client in [&wrong, &nobody] {
        for path in ["/tokens/introspect", "/tokens/revoke"] {
            ask(&app, path, client).await.expect_problem(401, "invalid_client");
        }
    }
    for app in [&app, &replica] {
        for client in [&wrong, &nobody] {
            expect_wait(ask(app, "/tokens/introspect", client).await, 225);
            expect_wait(ask(app, "/tokens/revoke", client).await, 225);
        }
        // The client itself, from the same address, with the same id.
        ask(app, "/tokens/introspect", &orders).await.expect(200);
        // A request without credentials is not a guess.
        let answer = app.post("/tokens/introspect").form(&[("token", "nonsense")]).send().await;
        answer.expect_problem(401, "invalid_client");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_login_that_was_never_tried_is_no_failure() {
    let crowded = [
        ("LOGIN_ATTEMPTS_PER_ACCOUNT", "40/15m"),
        ("PASSWORD_HASH_THREADS", "1"),
        ("PASSWORD_HASH_QUEUE", "1"),
        ("ARGON2_MEMORY_KIB", "19456"),
    ];
    let app = App::with(&crowded).await;
    app.register("alice").await;
    app.login("alice").await;
    assert_eq!(failures_until_refused(&app, "198.51.100.1", "alice").await, 40);
    let mut crowd = JoinSet::new();
    for n in 0..32 {
        // Half of them from a known device, half with a name that nobody has tried.
        let username = if n % 2 == 0 { "alice" } else { "alice@example.com" };
        let body = json!({ "username": username, "password": PASSWORD });
        let peer = if n % 2 == 0 { HERE } else { "192.0.2.2" };
        crowd.spawn(app.post("/users/login").peer(peer).json(&body).send());
    }
    let statuses: Vec<_> = crowd.join_all().await.iter().map(|answer| answer.status.as_u16()).collect();
    assert!(statuses.contains(&503), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    assert_eq!(failures_until_refused(&app, HERE, "alice").await, 40);
    assert_eq!(failures_until_refused(&app, "192.0.2.3", "alice@example.com").await, 40);
}

/// A place that is given back goes to where it was taken from.
#[tokio::test]
async fn a_place_given_back_by_a_known_device_is_not_free_for_others() {
    let rates = [("LOGIN_ATTEMPTS_PER_ACCOUNT", "3/15m")];
    let app = App::with(&rates).await;
    app.register("alice").await;
    app.login("alice").await;
    assert_eq!(failures_until_refused(&app, "198.51.100.1", "alice").await, 3);
    // From here on the database fails in the middle of each login.
    sqlx::raw_sql("ALTER TABLE sessions RENAME TO sessions_away").execute(&app.db).await.unwrap();
    for _ in 0..10 {
        log_in(&app, "alice", PASSWORD).await.expect_problem(500, "internal_error");
    }
    expect_wait(log_in_from(&app, "198.51.100.1", "alice", PASSWORD).await, 300);
    assert_eq!(failures_until_refused(&app, HERE, "alice").await, 3);
}

#[tokio::test]
async fn the_attempts_table_holds_no_names_and_drops_expired_rows() {
    let app = app().await;
    app.register("alice").await;
    log_in_from(&app, "198.51.100.77", "alice", PASSWORD).await.expect(200);
    for name in ["alice", "alice@example.com", "nobody"] {
        log_in_from(&app, "2001:db8::77", name, WRONG).await.expect_problem(401, "invalid_credentials");
    }
    let rows: Vec<String> =
        sqlx::query_scalar("SELECT encode(key, 'hex') || login_attempts::text FROM login_attempts")
            .fetch_all(&app.db)
            .await
            .unwrap();
    // One address that registered and two that logged in, three names, and two devices for the login.
    assert_eq!(rows.len(), 8);
    let user: String =
        sqlx::query_scalar("SELECT replace(id::text, '-', '') FROM users").fetch_one(&app.db).await.unwrap();
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    for clear in ["alice", "nobody", "example", "198.51", "2001:db8"] {
        let hidden = [clear.to_owned(), hex(clear)];
        assert!(
            !rows.iter().any(|row| hidden.iter().any(|hidden| row.contains(hidden))),
            "{clear}: {rows:#?}"
        );
    }
    for clear in [user.as_str(), "c633644d", "20010db8"] {
        assert!(!rows.iter().any(|row| row.contains(clear)), "{clear}: {rows:#?}");
    }

    // Ten thousand made-up names, each tried once.
    let mut conn = app.db.acquire().await.unwrap();
    for n in 0..10_000_u128 {
        let spacing = std::time::Duration::from_secs(90);
        let bucket = Bucket { key: (n << 64).to_be_bytes(), spacing, span: spacing * 10 };
        let places = Places { buckets: vec![bucket], device: None };
        let taken = login_attempts::take(&mut conn, &places, None, app.clock.now()).await.unwrap();
        assert_eq!(taken.again_at, None);
    }
    let count = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM login_attempts").fetch_one(&app.db).await.unwrap()
    };
    let clean = async || app.state().clean_up.run(app.clock.now()).await.unwrap().login_attempts;
    assert_eq!(count().await, 10_008);
    assert_eq!(clean().await, 0);
    app.clock.advance(Duration::seconds(90));
    assert_eq!(clean().await, 3, "the addresses; names count to this very moment");
    app.clock.advance(Duration::microseconds(1));
    assert_eq!(clean().await, 10_003);
    assert_eq!(count().await, 2, "what is known of devices stays");
    app.clock.advance(KNOWN_FOR);
    assert_eq!(clean().await, 2);
}

/// How many pages of the database an attempt touches.
async fn pages(conn: &mut PgConnection, key: i64) -> i64 {
    let attempt = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)
        SELECT FROM attempt_login(
            now(), ARRAY[int8send($1) || int8send(0), int8send($1) || int8send(1)], '{90s,90s}', '{15m,15m}',
            int8send($1) || int8send(0), int8send($1) || int8send(2) || int8send(0) || int8send(0), 'nobody'
        )";
    let plan: Value = sqlx::query_scalar(attempt).bind(key).fetch_one(conn).await.unwrap();
    let count = |what: &str| plan[0]["Plan"][what].as_i64().unwrap();
    count("Shared Hit Blocks") + count("Shared Read Blocks")
}

/// How often one of the code's queries reads the table of users.
async fn lookups(conn: &mut PgConnection, query: &str, values: &str) -> i64 {
    // Since the connection last told the server.
    let count = "SELECT coalesce(seq_scan, 0) + coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables WHERE relname = 'users'";
    let sql = format!(
        "PREPARE query AS {query}; BEGIN; {count}; EXECUTE query({values}); {count}; COMMIT; DEALLOCATE query"
    );
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(conn).await.unwrap();
    rows[2].get::<i64, _>(0) - rows[0].get::<i64, _>(0)
}

/// Whoever is refused may ask again and again. If a user were looked up, the time it takes would say which names exist.
#[tokio::test]
async fn a_refusal_looks_up_no_user() {
    let app = App::new().await;
    app.register("alice").await;
    let mut conn = app.db.acquire().await.unwrap();
    let conn = &mut *conn;
    // Somebody has logged in on the first device, and not on the second.
    let rows = "INSERT INTO login_attempts (key, free_at, expires_at, known_for) VALUES
                    (decode(repeat('01', 16), 'hex'), now(), now() + interval '1 day', sha256('')),
                    (decode(repeat('02', 16), 'hex'), now(), now() + interval '1 day', NULL)";
    sqlx::query(rows).execute(&mut *conn).await.unwrap();

    let login = crate::admin::queries(&["attempt_login", "username"]);
    let other = crate::admin::queries(&["attempt_login"]).into_iter().filter(|it| !login.contains(it));
    let attempts = login.iter().map(|it| (it.clone(), ", NULL")).chain(other.map(|it| (it, "")));
    let attempts: Vec<_> = attempts.collect();
    assert_eq!((login.len(), attempts.len()), (1, 2), "{attempts:#?}");
    for ((query, end), account) in attempts.iter().zip([70, 80]) {
        let mut attempt = async |device: &str, name: &str| {
            let values = format!(
                "now(), ARRAY[decode(repeat('{account}', 16), 'hex')], '{{15m}}', '{{15m}}', NULL,
                 decode(repeat('{device}', 32), 'hex'), '{name}'{end}"
            );
            lookups(conn, query, &values).await
        };
        // The only place of the account is taken here.
        assert!(attempt("03", "nobody").await > 0);
        for name in ["alice", "nobody"] {
            // Neither is one looked up to find out whether the device is known, unless somebody has logged in there.
            assert!(attempt("01", name).await > 0);
            assert_eq!(attempt("02", name).await, 0);
            assert_eq!(attempt("03", name).await, 0);
        }
    }
}

#[tokio::test]
async fn what_an_attempt_costs_does_not_grow_with_the_table() {
    let app = App::new().await;
    let mut conn = app.db.acquire().await.unwrap();
    // These plans are made while the table is nearly empty, and the planner knows that.
    for key in 0..3 {
        pages(&mut conn, key).await;
    }
    sqlx::query("ANALYZE login_attempts").execute(&mut *conn).await.unwrap();
    for key in 10..20 {
        pages(&mut conn, key).await;
    }
    let many = "INSERT INTO login_attempts
                SELECT substr(sha256(int8send(n)), 1, 16), now(), now() + interval '1 day' FROM generate_series(1, 50000) AS n";
    sqlx::query(many).execute(&mut *conn).await.unwrap();
    let touched = pages(&mut conn, 20).await;
    assert!(touched < 60, "{touched}");
}

#[tokio::test]
async fn nobody_waits_until_an_attempt_is_on_the_disk() {
    let app = App::new().await;
    let mut conn = app.db.acquire().await.unwrap();
    let setting = async |conn: &mut PgConnection| -> String {
        sqlx::query_scalar("SELECT current_setting('synchronous_commit')").fetch_one(conn).await.unwrap()
    };
    sqlx::query("SET synchronous_commit = on").execute(&mut *conn).await.unwrap();
    let mut transaction = conn.begin().await.unwrap();
    pages(&mut transaction, 1).await;
    assert_eq!(setting(&mut transaction).await, "off");
    transaction.commit().await.unwrap();
    assert_eq!(setting(&mut conn).await, "on", "for what the connection does next");
}
