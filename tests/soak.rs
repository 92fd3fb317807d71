//! Mixed traffic over three replicas, for as long as you like, while replicas and Postgres are killed, stopped and
//! restarted, keys rotate, users are imported and sessions are cleaned up.
//!
//! - Each client keeps a [`record`] of what it did and was told. No answer contradicts it, and every error was caused
//!   by what was done to the service ([`fleet`]).
//! - In the end the database agrees with the records ([`invariants`]): no session is lost and none has come back.
//! - Memory stays flat, in a run that is long enough to tell; the short form is not.
//!
//! `make test` runs a short form, `make soak` ten minutes (`SOAK_MINUTES`). Each run prints its seed; with `SOAK_SEED`
//! the clients throw the same dice again, and do the same for as long as they get the same answers.

mod chaos;
mod clients;
mod fleet;
mod invariants;
mod record;

use std::{
    env,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use gatepass::{
    random,
    store::{
        migrations,
        roles::{self, Login, Sharing},
    },
};
use serde_json::json;
use sqlx::postgres::PgPoolOptions;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use self::{
    chaos::{FAULTS, Fault, Form, operate, rage, run, verify_history},
    clients::{ADMIN, Dice, Story, User, any_seed},
    fleet::{Fleet, REPLICAS, Replica},
    record::Rules,
};
use crate::{
    app::{KEY, PASSWORD, as_role},
    not_tested::not_tested,
    postgres::Server,
    process::Home,
};

const SHORT: Form = Form {
    lasts: Duration::ZERO,
    clients: 6,
    pause: (200, 700),
    faults: &[Fault::Kill, Fault::CrashPostgres, Fault::Stop, Fault::CutConnections],
    // One second is promised, but all the other tests run at the same time.
    lag: time::Duration::seconds(4),
};

/// A replica's memory is judged if it ran for this many seconds, of which the first `WARM_UP` do not count.
const JUDGED_FROM: usize = 150;
const WARM_UP: usize = 45;
/// How much more memory the last third may take than the first. A heap is never quite still, but varies by a fifth of
/// that.
const GROWTH: usize = 1 << 20;

/// The durations that the replicas are set to, and how soon they hear of a revocation.
const RULES: Rules = Rules {
    reuse_interval: time::Duration::seconds(4),
    refresh_token: time::Duration::seconds(40),
    session: time::Duration::seconds(180),
    access_token: time::Duration::seconds(15),
    retention: time::Duration::seconds(20),
    lag: time::Duration::seconds(1),
};

async fn fleet(seed: u64, rules: Rules) -> Fleet {
    let server = Server::new("listen_addresses = ''", |_| {}).await;
    let url = server.socket_url();
    let db = PgPoolOptions::new().max_connections(3).connect(&url).await.unwrap();
    let mut conn = db.acquire().await.unwrap();
    migrations::up(&mut conn, None).await.unwrap();
    roles::set_up(&mut conn, Login::Otherwise, Sharing::Allowed, &mut random::system()).await.unwrap();
    invariants::keep_journal(&mut conn).await;
    let seconds = |duration: time::Duration| format!("{}s", duration.whole_seconds());
    let format = ["v4.public", "jwt"][Dice::new(seed, 997).below(2)];
    let settings = vec![
        ("DB_SOURCE", as_role(&url, roles::APP)),
        ("TOKEN_SYMMETRIC_KEY", KEY.to_owned()),
        ("TOKEN_FORMAT", format.to_owned()),
        ("KEY_ROTATION_INTERVAL", "10s".to_owned()),
        ("REFRESH_REUSE_INTERVAL", seconds(rules.reuse_interval)),
        ("REFRESH_TOKEN_DURATION", seconds(rules.refresh_token)),
        ("SESSION_DURATION", seconds(rules.session)),
        ("ACCESS_TOKEN_DURATION", seconds(rules.access_token)),
        ("SESSION_RETENTION", seconds(rules.retention)),
        ("REVOCATION_MAX_STALENESS", "3s".to_owned()),
    ];
    drop(conn);
    let fleet = Fleet::new(Home::new(), server, db, settings, rules);
    tokio::join!(fleet.start(0), fleet.start(1), fleet.start(2));
    fleet
}

async fn make_admin(fleet: &Fleet) {
    let body = json!({ "username": ADMIN, "email": "root@example.com", "password": PASSWORD });
    let replica = fleet.replica(0).unwrap();
    let http = reqwest::Client::new();
    let register = |http: &reqwest::Client, url: &str| http.post(format!("{url}/users")).json(&body);
    let answer = fleet.ask(&replica, &http, &register, None).await.unwrap();
    assert!(matches!(answer.said, record::Said::Done(_)), "{answer:?}");
    sqlx::query("UPDATE users SET roles = '{admin}'").execute(&fleet.db).await.unwrap();
}

/// From the environment; an empty one counts as unset.
fn setting(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

async fn soak(form: Form) {
    let seed = setting("SOAK_SEED").map_or_else(any_seed, |seed| seed.parse().unwrap());
    println!("soak: SOAK_SEED={seed}, {form:?}");
    let began = Instant::now();
    let fleet = Arc::new(fleet(seed, Rules { lag: form.lag, ..RULES }).await);
    make_admin(&fleet).await;

    let mut stories = JoinSet::new();
    for number in 0..form.clients {
        stories.spawn(Story::new(fleet.clone(), seed, number).play());
    }
    let progress = tokio::spawn({
        let fleet = fleet.clone();
        async move {
            for second in 1.. {
                sleep(Duration::from_secs(1)).await;
                fleet.weigh();
                if second % 10 == 0 {
                    println!("soak: {}", report(&fleet, began));
                }
            }
        }
    });
    let mut operator = tokio::spawn({
        let fleet = fleet.clone();
        async move { operate(&fleet, form.pause, seed).await }
    });
    let failed = |fault: String| -> ! { panic!("SOAK_SEED={seed}, {}\n{fault}", report(&fleet, began)) };
    // Whoever finds a fault ends the soak.
    tokio::select! {
        () = rage(&fleet, form, seed) => {}
        Some(ended) = stories.join_next() => failed(ended.unwrap().err().unwrap()),
        ended = &mut operator => failed(ended.unwrap().err().unwrap()),
    }
    fleet.is_over.store(true, Relaxed);
    let stories: Result<Vec<_>, _> = stories.join_all().await.into_iter().collect();
    let stories = stories.unwrap_or_else(|fault| failed(fault));
    let imported = operator.await.unwrap().unwrap_or_else(|fault| failed(fault));
    println!("soak: {}", report(&fleet, began));

    // From here on nothing is done to the fleet, and everything is heard.
    sleep(Duration::from_secs(2)).await;
    let ends: JoinSet<_> = stories.into_iter().map(Story::finish).collect();
    let stories: Result<Vec<_>, _> = ends.join_all().await.into_iter().collect();
    let stories = stories.unwrap_or_else(|fault| failed(fault));
    let users: Vec<&User> = stories.iter().flat_map(Story::users).collect();
    let strangers: Vec<_> =
        imported.into_iter().filter(|name| users.iter().all(|user| user.name != *name)).collect();
    progress.abort();
    run(&fleet, &["history", "seal"]).await.unwrap();
    fleet.stop().await;
    run(&fleet, &["history", "seal"]).await.unwrap();
    let history = verify_history(&fleet).await.unwrap().unwrap();
    assert_eq!(history["unsealed"], 0, "{history}");
    let checked = invariants::check(&fleet.db, &users, &strangers, RULES.retention).await;
    checked.unwrap_or_else(|broken| failed(broken));
    let judged = fleet.former.lock().unwrap().iter().filter(|replica| judge_memory(replica)).count();
    // The short form never runs for long enough.
    if judged == 0 && !form.lasts.is_zero() {
        let why = format!("no replica was there for {JUDGED_FROM} s: let SOAK_MINUTES be 5 or more");
        not_tested("that the memory of replicas stays flat", &why);
    }
    let sessions: usize = users.iter().map(|user| user.sessions.len()).sum();
    println!(
        "soak: all is as the records say: {} users, {} of them there, {sessions} sessions, {} imported; history {history}",
        users.len(),
        users.iter().filter(|user| user.is_there).count(),
        strangers.len(),
    );
}

/// One line: what has been done, and what came of it.
fn report(fleet: &Fleet, began: Instant) -> String {
    let counts: Vec<_> = fleet.counted().iter().map(|(what, count)| format!("{count} {what}")).collect();
    let memory: Vec<_> = (0..REPLICAS)
        .map(|place| {
            let replica = fleet.replica(place);
            let bytes = replica.and_then(|replica| replica.memory.lock().unwrap().last().copied());
            bytes.map_or("–".to_owned(), |bytes| (bytes >> 20).to_string())
        })
        .collect();
    format!(
        "{} s: {} requests; {}; {} MiB",
        began.elapsed().as_secs(),
        fleet.requests.load(Relaxed),
        counts.join(", "),
        memory.join(" "),
    )
}

/// Whether the replica ran for long enough to be judged.
fn judge_memory(replica: &Replica) -> bool {
    let memory = replica.memory.lock().unwrap();
    let Some((first, last)) = thirds(&memory) else { return false };
    println!(
        "soak: replica {} after {} s: {} KiB in the first third, {} KiB in the last",
        replica.place,
        memory.len(),
        first >> 10,
        last >> 10
    );
    assert!(!grows(first, last), "memory grows: from {first} to {last} bytes");
    true
}

/// The medians of the first and the last third after the warm-up; `None` for a replica that did not run for long
/// enough.
fn thirds(memory: &[usize]) -> Option<(usize, usize)> {
    if memory.len() < JUDGED_FROM {
        return None;
    }
    let memory = &memory[WARM_UP..];
    let third = memory.len() / 3;
    let median = |part: &[usize]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part[part.len() / 2]
    };
    Some((median(&memory[..third]), median(&memory[memory.len() - third..])))
}

fn grows(first: usize, last: usize) -> bool {
    last > first + GROWTH
}

#[test]
fn a_leak_of_a_kilobyte_per_request_is_told_from_noise() {
    // A replica gets some twenty requests a second. The first one is left alone for three quarters of a soak.
    let leaks = |bytes: usize| {
        let memory: Vec<_> =
            (0..225).map(|second| (45 << 20) + second * 20 * bytes + ((second % 7) << 16)).collect();
        thirds(&memory).map(|(first, last)| grows(first, last))
    };
    assert_eq!((leaks(1024), leaks(0)), (Some(true), Some(false)));
    assert_eq!(thirds(&[45 << 20; JUDGED_FROM - 1]), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_neither_lose_nor_revive_a_session() {
    let form = setting("SOAK_MINUTES").map_or(SHORT, |minutes| Form {
        lasts: Duration::from_secs_f64(minutes.parse::<f64>().unwrap() * 60.0),
        clients: 12,
        pause: (3000, 15_000),
        faults: FAULTS,
        lag: RULES.lag,
    });
    soak(form).await;
}
