//! The embedded Postgres: `gatepass serve` in an empty directory, without a single setting, is a service with a
//! database. It stops the server that it started, and loses nothing when it is killed. This holds for root and for an
//! ordinary user.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    app::PASSWORD,
    not_tested::are_root,
    process::{Home, Process, QUICK, Signal, allowed, is_root, until},
};

/// How long a start may take: the first, which creates the database, and every other.
const FIRST_START: Duration = Duration::from_secs(2);
const START: Duration = Duration::from_secs(1);

const ALICE: &str = "alice@example.com";

/// Logs alice in, and returns her access token.
async fn log_in(service: &Process) -> String {
    let body = json!({"username": "alice", "password": PASSWORD});
    let (status, login) = service.post("/users/login", &body).await;
    assert_eq!(status, 200, "{login}");
    login["access_token"].as_str().unwrap().to_owned()
}

/// Registers alice and logs her in, and returns her access token.
async fn register_and_log_in(service: &Process) -> String {
    let body = json!({"username": "alice", "email": ALICE, "password": PASSWORD});
    let (status, user) = service.post("/users", &body).await;
    assert_eq!(status, 201, "{user}");
    log_in(service).await
}

#[track_caller]
fn assert_gone(home: &Home) {
    let left = home.processes();
    assert!(left.is_empty(), "{left:#?}");
}

/// The process id of the server that runs on the data.
fn postgres(home: &Home) -> String {
    let file = fs::read_to_string(home.path(".gatepass/postgres/postmaster.pid")).unwrap();
    file.lines().next().unwrap().to_owned()
}

fn mode(home: &Home, name: &str) -> u32 {
    fs::metadata(home.path(name)).unwrap().mode() & 0o777
}

async fn usernames(home: &Home) -> Vec<String> {
    let users = home.gatepass(&["user", "list", "--json"]).envs(&QUICK).run().await.json();
    let users: Vec<Value> = serde_json::from_value(users).unwrap();
    users.iter().map(|user| user["username"].as_str().unwrap().to_owned()).collect()
}

/// From the first start to the last.
async fn story(whose: &str, home: Home) {
    let before = Instant::now();
    let service = home.serve(&[]).await;
    let first = before.elapsed();
    let (status, ready) = service.get("/readyz").await;
    assert_eq!((status, &ready["status"]), (200, &json!("ready")));

    // Nobody else may read what it made; if it ran as root, the server's user may pass through the directory.
    let others = if is_root() && whose != "nobody" { 0o067 } else { 0o077 };
    assert_eq!(mode(&home, ".gatepass") & others, 0, "{:o}", mode(&home, ".gatepass"));
    assert_eq!(mode(&home, ".gatepass/token_symmetric_key"), 0o600);
    assert_eq!(mode(&home, ".gatepass/postgres.log"), 0o600);
    let welcome = service.stdout();
    let data = fs::canonicalize(home.path(".gatepass/postgres")).unwrap();
    assert!(welcome.contains(&format!("Data     {}", data.display())), "{welcome}");
    assert_eq!(home.path(".gatepass/postgres").is_symlink(), whose.ends_with("closed directory"));
    let key = fs::read_to_string(home.path(".gatepass/token_symmetric_key")).unwrap();
    let key = key.trim();
    assert!(key.starts_with("k4.local."));

    let token = register_and_log_in(&service).await;
    assert_eq!(service.get_as(&token, "/users/me").await.1["email"], ALICE);

    // The command line, while the service runs, is a guest and stops nothing.
    assert_eq!(usernames(&home).await, ["alice"]);
    let running = postgres(&home);
    // So is a second service.
    let second = home.serve(&[]).await;
    assert_ne!(second.address(), service.address());
    assert_eq!(second.get_as(&token, "/users/me").await.1["email"], ALICE);
    log_in(&second).await;
    second.stop(Signal::TERM).await.expect(0);
    assert_eq!(postgres(&home), running);
    log_in(&service).await;

    let before = Instant::now();
    let ended = service.stop(Signal::TERM).await.expect(0);
    let stop = before.elapsed();
    assert!(!ended.stderr.contains(key) && !ended.stdout.contains(key));
    let (_, end) = ended.stderr.split_once("SIGTERM").expect("a line about the signal");
    assert!(!end.contains("WARN") && !end.contains("ERROR"), "{end}");
    assert_gone(&home);

    // The command line, while nothing runs, starts the server for itself and stops it.
    assert_eq!(usernames(&home).await, ["alice"]);
    assert_gone(&home);

    let before = Instant::now();
    let service = home.serve(&[]).await;
    let again = before.elapsed();
    assert_eq!(service.get_as(&token, "/users/me").await.1["email"], ALICE, "the old token, the old user");
    log_in(&service).await;

    // A service that is killed cannot stop its server. The next start takes that over, and stops it in the end.
    let running = postgres(&home);
    let ended = service.stop(Signal::KILL).await;
    assert_eq!(ended.code, None);
    assert!(!home.processes().is_empty(), "the server is an orphan");
    let mut service = home.serve(&[]).await;
    service.logged("taking over the Postgres").await;
    assert_eq!(postgres(&home), running);
    assert_eq!(service.get_as(&token, "/users/me").await.0, 200);
    service.stop(Signal::INT).await.expect(0);
    assert_gone(&home);
    assert!(first <= allowed(FIRST_START), "the first start took {first:.1?}");
    assert!(again <= allowed(START), "a start took {again:.1?}");
    println!("embedded default as {whose}: up in {first:.1?}, again in {again:.1?}, down in {stop:.1?}");
}

#[tokio::test]
async fn it_works_as_the_current_user() {
    story(if is_root() { "root" } else { "a user" }, Home::new()).await;
}

#[tokio::test]
async fn it_works_as_an_ordinary_user_if_the_tests_run_as_root() {
    // Otherwise `it_works_as_the_current_user` is that test.
    if let Some(home) = Home::of_nobody() {
        story("nobody", home).await;
    }
}

#[tokio::test]
async fn it_works_as_root_in_a_directory_that_only_root_may_enter() {
    if are_root("the embedded default as root") {
        let home = Home::closed();
        story("root, in a closed directory", home).await;
    }
}

#[tokio::test]
async fn two_services_that_start_at_once_share_the_database_and_the_key() {
    let home = Home::new();
    let (one, two) = (home.start(&[]), home.start(&[]));
    let (one, two) = (one.serving().await, two.serving().await);
    let token = register_and_log_in(&one).await;
    assert_eq!(two.get_as(&token, "/users/me").await.1["email"], ALICE);
    one.signal(Signal::TERM);
    two.signal(Signal::TERM);
    one.end().await.expect(0);
    two.end().await.expect(0);
    assert_gone(&home);
}

#[tokio::test]
async fn a_signal_during_the_first_start_leaves_nothing_running() {
    let home = Home::new();
    let mut service = home.start(&[]);
    service.logged("creating a Postgres").await;
    service.stop(Signal::TERM).await.expect(0);
    // initdb was sent SIGKILL as the service ended. On a busy machine it may take a moment to go.
    until("initdb is gone", async || home.processes().is_empty()).await;
    // Nothing is left that the next start would trip over.
    let service = home.serve(&[]).await;
    assert_eq!(service.get("/readyz").await.0, 200);
    service.stop(Signal::TERM).await.expect(0);
    assert_gone(&home);
}

/// It does not matter which service started the Postgres.
#[tokio::test]
async fn a_service_keeps_running_when_an_earlier_one_ends() {
    let home = Home::new();
    let first = home.serve(&[]).await;
    let second = home.serve(&[]).await;
    let running = postgres(&home);
    first.stop(Signal::TERM).await.expect(0);
    assert_eq!(postgres(&home), running);
    register_and_log_in(&second).await;
    assert_eq!(usernames(&home).await, ["alice"]);
    assert_eq!(postgres(&home), running);
    second.stop(Signal::TERM).await.expect(0);
    assert_gone(&home);
}

#[tokio::test]
async fn the_command_line_can_use_the_database_without_a_service() {
    let home = Home::new();
    // The first command makes the database and says so, but not where programs read its output.
    let list = async || home.gatepass(&["user", "list", "--json"]).envs(&QUICK).run().await.expect(0);
    let first = list().await;
    assert_eq!((first.stdout.as_str(), first.stderr.lines().count()), ("[]\n", 1), "{first:?}");
    let dir = fs::canonicalize(home.path(".gatepass")).unwrap();
    for said in
        [&*format!("there was no database in {}", dir.display()), "empty", "gatepass serve", "DB_SOURCE"]
    {
        assert!(first.stderr.contains(said), "{said:?} is not in {}", first.stderr);
    }
    assert_eq!(list().await.stderr, "");
    let create = ["user", "create", "alice", "--email", ALICE, "--password-stdin"];
    home.gatepass(&create).envs(&QUICK).stdin(PASSWORD).run().await.expect(0);
    assert_gone(&home);
    let service = home.serve(&[]).await;
    log_in(&service).await;
    service.stop(Signal::TERM).await.expect(0);
}

#[tokio::test]
async fn a_second_service_on_the_same_port_does_not_disturb_the_first() {
    let home = Home::new();
    let service = home.serve(&[]).await;
    let second = home.start(&[("HTTP_SERVER_ADDRESS", &service.address())]).end().await;
    second.fails(1, &["HTTP_SERVER_ADDRESS"]);
    assert_eq!(service.get("/readyz").await.0, 200);
    service.stop(Signal::TERM).await.expect(0);
    assert_gone(&home);
}
