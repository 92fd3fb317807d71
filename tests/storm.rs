//! A login storm, many times what the password pool can do, on a real process. Whoever is not served is told so at
//! once, and when to come again; nobody waits for long, memory stays where it was, and bearer checks hardly notice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::StatusCode;
use serde_json::json;

use crate::{
    app::{App, KEY, PASSWORD},
    process::{Home, Process, is_drill},
};

/// How many try to log in at the same time; two are served and four may wait.
const CALLERS: usize = 60;
/// How many bearer checks are measured, in peace and in the storm.
const CHECKS: usize = 500;

const SETTINGS: &[(&str, &str)] = &[
    ("TOKEN_SYMMETRIC_KEY", KEY),
    ("ARGON2_MEMORY_KIB", "19456"),
    ("ARGON2_ITERATIONS", "2"),
    ("PASSWORD_HASH_THREADS", "2"),
    ("PASSWORD_HASH_QUEUE", "4"),
    // This tests the pool, not the throttle.
    ("LOGIN_ATTEMPTS_PER_ACCOUNT", "1000000/15m"),
    ("LOGIN_ATTEMPTS_PER_IP", "1000000/15m"),
];

/// The outcome of one attempt.
struct Attempt {
    status: StatusCode,
    retry_after: Option<u64>,
    took: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_logins_is_refused_in_order_and_hurts_nobody_else() {
    let app = App::new().await;
    app.register("alice").await;
    let home = Home::new();
    let service = home.serve(&[SETTINGS, &[("DB_SOURCE", &app.database_url)]].concat()).await;
    let (status, login) =
        service.post("/users/login", &json!({"username": "alice", "password": PASSWORD})).await;
    assert_eq!(status, 200, "{login}");
    let token = login["access_token"].as_str().unwrap();

    checks(&service, token).await;
    let idle = checks(&service, token).await;
    let memory = peak_memory(&service);

    let is_over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| tokio::spawn(insist(service.url("/users/login"), number, Arc::clone(&is_over))))
        .collect();
    // Taking it out of the load balancer now would leave the storm to the others.
    let healthy = async {
        while !is_over.load(Ordering::Relaxed) {
            for path in ["/healthz", "/readyz"] {
                let (status, body) = service.get(path).await;
                assert_eq!(status, 200, "{path}: {body}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let checked = async {
        let storm = checks(&service, token).await;
        is_over.store(true, Ordering::Relaxed);
        storm
    };
    let (storm, ()) = tokio::join!(checked, healthy);
    let mut attempts = Vec::new();
    for caller in callers {
        attempts.extend(caller.await.unwrap());
    }

    let count = |status| attempts.iter().filter(|attempt| attempt.status == status).count();
    let (served, refused) = (count(StatusCode::UNAUTHORIZED), count(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(served + refused, attempts.len(), "nothing but 401 and 503");
    assert!(served > 0 && refused > served, "{served} served, {refused} refused: no storm");
    for attempt in &attempts {
        let is_refused = attempt.status == StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(attempt.retry_after.is_some_and(|seconds| (1..=10).contains(&seconds)), is_refused);
    }
    let longest = attempts.iter().map(|attempt| attempt.took).max().unwrap();
    if let (Some(before), Some(after)) = (memory, peak_memory(&service)) {
        // Room for the connections and requests of sixty callers; if each hash had memory of its own, that would be 19
        // MiB each.
        assert!(after < before + 40 * 1024, "{before} KiB before, {after} KiB after");
    }
    let ratio = storm.as_secs_f64() / idle.as_secs_f64();
    println!(
        "{served} served, {refused} refused, longest {longest:?}; bearer checks {idle:?}, then {storm:?}: {ratio:.1}"
    );
    // With all the other tests running, the cores are never idle. Then the time called "idle" says little, and the
    // hashing threads, whose priority is lower than that of all others, may wait for seconds.
    if is_drill() {
        // At most six hashes come before it, and each takes a hundredth of this.
        assert!(longest < Duration::from_secs(10), "{longest:?}");
        assert!(ratio < 5.0, "bearer checks take {storm:?} in a storm, {idle:?} without");
    }
}

/// Tries to log in again and again, like somebody who ignores `Retry-After`.
async fn insist(url: String, number: usize, is_over: Arc<AtomicBool>) -> Vec<Attempt> {
    let client = reqwest::Client::new();
    let mut attempts = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        // One caller in three names a user who exists.
        let username = if number.is_multiple_of(3) { "alice" } else { "nobody" };
        let body = json!({"username": username, "password": "wrong-horse-battery-9"});
        let start = Instant::now();
        let answer = client.post(&url).json(&body).send().await.unwrap();
        attempts.push(Attempt {
            status: answer.status(),
            retry_after: answer
                .headers()
                .get("retry-after")
                .map(|value| value.to_str().unwrap().parse().unwrap()),
            took: start.elapsed(),
        });
        // Slow enough that the callers do not take up the cores themselves.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    attempts
}

/// The median time of a bearer check.
async fn checks(service: &Process, token: &str) -> Duration {
    let mut times = Vec::new();
    for _ in 0..CHECKS {
        let start = Instant::now();
        let (status, body) = service.get_as(token, "/users/me").await;
        times.push(start.elapsed());
        assert_eq!(status, 200, "{body}");
    }
    times.sort();
    times[CHECKS / 2]
}

/// The peak memory of the process, in KiB; only Linux can tell.
fn peak_memory(service: &Process) -> Option<u64> {
    let path = format!("/proc/{}/status", service.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(path).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
