//! With `LEGACY_LOGIN_URL`, users are taken over from the old system at their first login. The service asks it only
//! about users who are unknown here or were imported without a password, and takes no answer about anybody else than
//! the user it asked for. While the old system fails, the service stops asking it, and no answer reveals who is unknown
//! here.

use std::{
    collections::BTreeSet,
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Method, Response, StatusCode},
    routing::any,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use gatepass::{
    clock::Clock,
    http::{Limits, Phase, Places, server},
    tls::{Files, Tls},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::sleep};

use crate::{
    app::{App, KEY, PASSWORD, database},
    certificate::{Authority, pem},
    process::{Home, Signal},
    traces::Collector,
};

const WRONG: &str = "wrong-sardine-lagoon-4";

/// A question that the old system was asked.
#[derive(Clone)]
pub struct Asked {
    method: Method,
    headers: HeaderMap,
    body: Value,
}

/// The old system. It accepts [`PASSWORD`] for every name that a test has given it a user for.
pub struct OldSystem {
    address: String,
    scheme: &'static str,
    state: Arc<Mutex<There>>,
    _phase: watch::Sender<Phase>,
}

#[derive(Default)]
struct There {
    /// The users that it answers with 200, by what was typed, in lower case.
    users: Vec<(String, Value)>,
    /// Its answers that do not depend on the password: name, status and body. It never answers a status of 0.
    replies: Vec<(String, u16, String)>,
    asked: Vec<Asked>,
    takes: Duration,
}

impl OldSystem {
    /// On this machine, without TLS.
    pub async fn start() -> Self {
        Self::serve(None).await
    }

    /// With a certificate for localhost from this authority.
    async fn with_tls(authority: &Authority) -> Self {
        let now = Clock::system().now();
        let issued = authority.issue_at(now);
        let dir = TempDir::new().unwrap();
        let files = Files { certificate: dir.path().join("tls.crt"), key: dir.path().join("tls.key") };
        fs::write(&files.certificate, issued.certificate_pem()).unwrap();
        fs::write(&files.key, issued.key_pem()).unwrap();
        Self::serve(Some(Tls::open(files, now).unwrap())).await
    }

    async fn serve(tls: Option<Tls>) -> Self {
        let state = Arc::<Mutex<There>>::default();
        let router = Router::new().route("/login", any(answer)).with_state(state.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (phase, says) = watch::channel(Phase::Serving);
        tokio::spawn(server::serve(listener, router, tls, Places::new(Limits::default()), says));
        Self { address, scheme, state, _phase: phase }
    }

    pub fn url(&self) -> String {
        format!("{}://{}/login", self.scheme, self.address)
    }

    /// From now on it takes this long to answer.
    pub fn takes(&self, time: Duration) {
        self.state.lock().unwrap().takes = time;
    }

    /// What it has been asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.state.lock().unwrap().asked.clone()
    }

    /// Whom it has been asked about.
    fn asked_about(&self) -> Vec<String> {
        self.asked().iter().map(|asked| asked.body["username"].as_str().unwrap().to_owned()).collect()
    }

    /// Whoever logs in under this name is this user.
    fn knows_as(&self, typed: &str, user: Value) {
        self.state.lock().unwrap().users.push((typed.to_owned(), user));
    }

    /// A user of whom it says only what it must: the username and the address.
    fn knows(&self, username: &str) {
        self.knows_as(username, json!({"username": username, "email": format!("{username}@example.com")}));
    }

    /// Whoever logs in under this name gets this answer.
    fn replies(&self, typed: &str, status: u16, body: &str) {
        self.state.lock().unwrap().replies.push((typed.to_owned(), status, body.to_owned()));
    }
}

async fn answer(State(there): State<Arc<Mutex<There>>>, request: axum::extract::Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let question: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (reply, takes) = {
        let mut there = there.lock().unwrap();
        let typed = question["username"].as_str().unwrap_or_default().to_lowercase();
        let is_right = question["password"] == PASSWORD;
        there.asked.push(Asked { method: parts.method, headers: parts.headers, body: question });
        let reply = there.replies.iter().find(|(name, ..)| *name == typed);
        let reply = reply.map(|(_, status, body)| (*status, body.clone()));
        let user = there.users.iter().find(|(name, _)| is_right && *name == typed);
        let user = user.map(|(_, user)| (200, user.to_string()));
        (reply.or(user).unwrap_or((401, "{}".to_owned())), there.takes)
    };
    sleep(takes).await;
    let (status, body) = reply;
    if status == 0 {
        std::future::pending::<()>().await;
    }
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("location", "/elsewhere".parse().unwrap());
    response
}

async fn app(old: &OldSystem) -> App {
    App::with(&[("LEGACY_LOGIN_URL", &old.url())]).await
}

async fn outcome(app: &App, outcome: &str) -> u64 {
    let start = format!("gatepass_legacy_logins_total{{outcome=\"{outcome}\"}} ");
    let scrape = app.scrape().await;
    scrape.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
}

async fn is_breaker_open(app: &App) -> bool {
    app.scrape().await.lines().any(|line| line == "gatepass_legacy_breaker_open 1")
}

async fn count(app: &App, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&app.db).await.unwrap()
}

#[tokio::test]
async fn a_user_of_the_old_system_is_taken_over_at_the_first_login() {
    let old = OldSystem::start().await;
    let typed = "cafe\u{301}-horse-battery";
    old.replies(
        "alice",
        200,
        &json!({
            "external_id": "17",
            "username": "Alice",
            "email": "alice@example.com",
            "full_name": "Alice Liddell",
            "roles": ["support"],
            "is_email_verified": true,
            "created_at": "2019-05-06T07:08:09Z",
            "password_hash": "a hash of no kind that is known",
        })
        .to_string(),
    );
    let url = old.url().replace("://", "://gate%40pass:p%3Ass@") + "?tenant=1";
    let app = App::with(&[("LEGACY_LOGIN_URL", &url), ("REGISTRATION", "closed")]).await;
    let body = json!({ "username": "ALICE", "password": typed });
    let request = app.post("/users/login").header("x-request-id", "first-login").json(&body);
    let login = request.send().await.expect(200);
    for (field, expected) in [
        ("username", json!("Alice")),
        ("email", json!("alice@example.com")),
        ("full_name", json!("Alice Liddell")),
        ("roles", json!(["support"])),
        ("is_email_verified", json!(true)),
        ("disabled", json!(false)),
        ("created_at", json!("2019-05-06T07:08:09Z")),
    ] {
        assert_eq!(login["user"][field], expected, "{field}");
    }
    app.get("/users/me").bearer(&login).send().await.expect(200);

    let [asked] = &old.asked()[..] else { panic!("asked more than once") };
    assert_eq!(asked.method, Method::POST);
    // As it was typed: the old system may not normalise.
    assert_eq!(asked.body, body);
    for (name, expected) in [
        ("accept", "application/json"),
        ("content-type", "application/json"),
        ("user-agent", concat!("gatepass/", env!("CARGO_PKG_VERSION"))),
        ("x-request-id", "first-login"),
        ("authorization", &format!("Basic {}", STANDARD.encode("gate@pass:p:ss"))),
    ] {
        assert_eq!(asked.headers[name], expected, "{name}");
    }
    // Tracing is off.
    assert!(!asked.headers.contains_key("traceparent"));

    // The old system would refuse now, but it is not asked any more.
    old.state.lock().unwrap().replies.clear();
    app.try_login("alice", "caf\u{e9}-horse-battery").await.expect(200);
    app.try_login("alice@example.com", typed).await.expect(200);
    assert_eq!(old.asked().len(), 1);
    assert_eq!(outcome(&app, "taken_over").await, 1);

    let (operation, actor, request_id): (String, String, String) = sqlx::query_as(
        "SELECT operation, actor, request_id FROM history WHERE table_name = 'users' ORDER BY id LIMIT 1",
    )
    .fetch_one(&app.db)
    .await
    .unwrap();
    assert_eq!([&*operation, &actor, &request_id], ["INSERT", "service", "first-login"]);
    let hashes = "SELECT count(*) FROM users WHERE password_hash LIKE '$argon2id$%' AND external_id = '17'";
    assert_eq!(count(&app, hashes).await, 1);
}

#[tokio::test]
async fn all_refusals_are_alike_and_only_unknown_users_are_asked_about() {
    let old = OldSystem::start().await;
    let app = app(&old).await;
    app.register("known").await;
    let gone = app.register("locked-out").await;
    app.sql(
        "UPDATE users SET disabled = true, password_hash = NULL, external_id = '1' WHERE id = $1::uuid",
        &gone["id"],
    )
    .await;
    let bare = app.register("no-password").await;
    app.sql("UPDATE users SET password_hash = NULL WHERE id = $1::uuid", &bare["id"]).await;
    // All of these are users there, with this password.
    for name in ["known", "locked-out", "no-password", "in-time", "ab"] {
        old.knows(name);
    }
    let user = |username: &str, more: Value| {
        let mut user = json!({ "username": username, "email": format!("{username}@example.org") });
        user.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        user
    };
    old.knows_as("another", user("somebody-else", json!({})));
    old.knows_as("another@example.com", user("another", json!({})));
    old.knows_as("made-up", user("made up", json!({})));
    old.knows_as("root", user("root", json!({"roles": ["admin"]})));
    old.knows_as("misspelt", user("misspelt", json!({"is_disabled": true})));
    old.knows_as("broken", user("broken", json!({"email": "nowhere"})));
    old.knows_as("disabled", user("disabled", json!({"disabled": true})));
    old.knows_as("with-her-address", user("with-her-address", json!({"email": "KNOWN@example.com"})));
    old.knows_as("with-her-id", user("with-her-id", json!({"external_id": "1"})));
    old.replies("forbidden", 403, "");
    old.replies("missing", 404, "");

    let long = "x".repeat(257);
    // Username, password, and the outcome that is counted; `None` where the old system is not asked.
    let cases = [
        ("known", WRONG, None),
        ("known@example.com", WRONG, None),
        ("locked-out", PASSWORD, None),
        ("no-password", PASSWORD, None),
        ("a b", PASSWORD, None),
        ("ab", PASSWORD, None),
        ("nobody@a_b.example", PASSWORD, None),
        ("in-time", "", None),
        ("in-time", &long, None),
        ("in-time", WRONG, Some("refused")),
        ("nobody", PASSWORD, Some("refused")),
        ("nobody@example.com", PASSWORD, Some("refused")),
        ("forbidden", PASSWORD, Some("refused")),
        ("missing", PASSWORD, Some("refused")),
        ("disabled", PASSWORD, Some("refused")),
        ("another", PASSWORD, Some("failed")),
        ("another@example.com", PASSWORD, Some("failed")),
        ("made-up", PASSWORD, Some("failed")),
        ("root", PASSWORD, Some("failed")),
        ("misspelt", PASSWORD, Some("failed")),
        ("broken", PASSWORD, Some("failed")),
        ("with-her-address", PASSWORD, Some("failed")),
        ("with-her-id", PASSWORD, Some("failed")),
    ];
    let users = count(&app, "SELECT count(*) FROM users").await;
    let answers = cases.iter().map(|(username, password, _)| app.try_login(username, password));
    let problems = JoinSet::from_iter(answers).join_all().await.into_iter().map(|answer| {
        let mut problem = answer.expect_problem(401, "invalid_credentials");
        problem["request_id"].take();
        problem.to_string()
    });
    assert_eq!(problems.collect::<BTreeSet<_>>().len(), 1);
    assert_eq!(count(&app, "SELECT count(*) FROM users").await, users);
    let asked: BTreeSet<_> = old.asked_about().into_iter().collect();
    let expected: BTreeSet<_> =
        cases.iter().filter(|(.., outcome)| outcome.is_some()).map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(asked, expected);
    for name in ["refused", "failed"] {
        let expected = cases.iter().filter(|(.., outcome)| *outcome == Some(name)).count() as u64;
        assert_eq!(outcome(&app, name).await, expected, "{name}");
    }
    // None of this counts as the old system being down.
    assert!(!is_breaker_open(&app).await);
    app.try_login("in-time", PASSWORD).await.expect(200);
}

#[tokio::test]
async fn an_old_system_that_fails_is_left_alone_for_a_while_and_then_tried_once() {
    let old = OldSystem::start().await;
    let limits = Limits { legacy_login: Duration::from_millis(1500), ..Limits::default() };
    let app = App::with_limits(&[("LEGACY_LOGIN_URL", &old.url())], limits).await;
    old.knows("alice");
    let user = json!({"username": "huge", "email": "huge@example.com", "full_name": "x".repeat(70_000)});
    let faults = [
        ("silent", 0, String::new()),
        ("busy", 429, String::new()),
        ("moved", 307, String::new()),
        ("page", 200, "<p>Welcome!".to_owned()),
        ("huge", 200, user.to_string()),
    ];
    // Answers that a client could provoke by what it sends.
    let mistakes = [400, 405, 413, 415, 422, 451].map(|status| (format!("mistake-{status}"), status));
    for (name, status) in &mistakes {
        old.replies(name, *status, "");
    }
    for (name, status, body) in &faults {
        old.replies(name, *status, body);
    }
    for answer in
        JoinSet::from_iter(mistakes.iter().map(|(name, _)| app.try_login(name, PASSWORD))).join_all().await
    {
        answer.expect_problem(401, "invalid_credentials");
    }
    assert!(!is_breaker_open(&app).await);

    for answer in
        JoinSet::from_iter(faults.iter().map(|(name, ..)| app.try_login(name, PASSWORD))).join_all().await
    {
        answer.expect_problem(401, "invalid_credentials");
    }
    assert!(is_breaker_open(&app).await);
    let failed = mistakes.len() + faults.len();
    assert_eq!((outcome(&app, "failed").await, old.asked().len()), (failed as u64, failed));

    // A user whom the old system does know is not looked up there either.
    app.clock.advance(time::Duration::seconds(29));
    app.try_login("alice", PASSWORD).await.expect_problem(401, "invalid_credentials");
    assert_eq!((outcome(&app, "not_asked").await, old.asked().len()), (1, failed));

    app.clock.advance(time::Duration::seconds(1));
    let both = [("page", PASSWORD), ("moved", PASSWORD)];
    for answer in
        JoinSet::from_iter(both.map(|(name, password)| app.try_login(name, password))).join_all().await
    {
        answer.expect_problem(401, "invalid_credentials");
    }
    assert_eq!(old.asked().len(), failed + 1);
    assert!(is_breaker_open(&app).await);

    app.clock.advance(time::Duration::seconds(30));
    app.try_login("alice", PASSWORD).await.expect(200);
    assert!(!is_breaker_open(&app).await);
}

#[tokio::test]
async fn the_old_system_is_asked_no_more_often_than_it_can_bear() {
    let old = OldSystem::start().await;
    let limits = Limits { legacy_login: Duration::from_millis(1500), ..Limits::default() };
    let app = App::with_limits(&[("LEGACY_LOGIN_URL", &old.url())], limits).await;
    let names: Vec<_> = (0..22).map(|i| format!("user{i}")).collect();
    for name in &names {
        old.knows(name);
    }
    for name in &names[..20] {
        app.try_login(name, PASSWORD).await.expect(200);
    }
    app.try_login(&names[20], PASSWORD).await.expect_problem(401, "invalid_credentials");
    app.clock.advance(time::Duration::milliseconds(100));
    app.try_login(&names[20], PASSWORD).await.expect(200);
    assert_eq!((outcome(&app, "taken_over").await, outcome(&app, "not_asked").await), (21, 1));
    assert_eq!(old.asked().len(), 21);

    // Nor with more requests at once than it bears.
    app.clock.advance(time::Duration::minutes(1));
    old.takes(Duration::from_secs(60));
    for answer in
        JoinSet::from_iter((0..17).map(|i| app.try_login(if i == 0 { "a-name" } else { "b-name" }, WRONG)))
            .join_all()
            .await
    {
        answer.expect_problem(401, "invalid_credentials");
    }
    assert_eq!((outcome(&app, "failed").await, outcome(&app, "not_asked").await), (16, 2));
}

#[tokio::test]
async fn simultaneous_first_logins_create_one_user() {
    let old = OldSystem::start().await;
    old.knows("alice");
    old.takes(Duration::from_millis(50));
    let app = app(&old).await;
    let other = app.replica(&[("LEGACY_LOGIN_URL", &old.url())]).await;
    let logins = (0..8).map(|i| [&app, &other][i % 2].try_login("alice", PASSWORD));
    let ids: BTreeSet<_> = JoinSet::from_iter(logins)
        .join_all()
        .await
        .into_iter()
        .map(|answer| answer.expect(200)["user"]["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 1);
    assert!(old.asked().len() > 1, "no race");
    assert_eq!(count(&app, "SELECT count(*) FROM users").await, 1);
    assert_eq!(count(&app, "SELECT count(*) FROM sessions").await, 8);
}

#[tokio::test]
async fn a_user_imported_without_a_password_gets_that_of_the_old_system() {
    let old = OldSystem::start().await;
    let app = app(&old).await;
    let mut ids = Vec::new();
    for name in ["alice", "bob", "carol"] {
        let user = app.register(name).await;
        ids.push(user["id"].clone());
        app.sql("UPDATE users SET password_hash = NULL, roles = '{support}', external_id = username WHERE id = $1::uuid", &user["id"]).await;
    }
    let user = |name: &str, id: Value| json!({"username": name, "email": format!("{name}@example.net"), "roles": ["boss"], "external_id": id});
    old.knows_as("alice", user("alice", json!("alice")));
    // Another user with the same name, and one without an id.
    old.knows_as("bob", user("bob", json!("17")));
    old.knows_as("carol", user("carol", Value::Null));
    app.clock.advance(time::Duration::hours(1));
    let login = app.try_login("alice", PASSWORD).await.expect(200);
    assert_eq!(login["user"]["id"], ids[0]);
    assert_eq!(login["user"]["password_changed_at"], "2026-01-02T04:04:05.678901Z");
    // The rest is left to the import.
    assert_eq!(
        (&login["user"]["email"], &login["user"]["roles"]),
        (&json!("alice@example.com"), &json!(["support"]))
    );
    app.try_login("alice@example.com", PASSWORD).await.expect(200);
    for answer in JoinSet::from_iter(
        ["alice", "bob", "carol"]
            .map(|name| app.try_login(name, if name == "alice" { WRONG } else { PASSWORD })),
    )
    .join_all()
    .await
    {
        answer.expect_problem(401, "invalid_credentials");
    }
    let mut asked = old.asked_about();
    asked.sort();
    assert_eq!(asked, ["alice", "bob", "carol"]);
    assert_eq!(count(&app, "SELECT count(*) FROM users WHERE password_hash IS NOT NULL").await, 1);
}

/// Django accepts usernames that are invalid here, e-mail addresses above all.
#[tokio::test]
async fn an_invalid_username_is_replaced_in_the_same_way_as_in_an_import() {
    let old = OldSystem::start().await;
    let app = app(&old).await;
    let user =
        |id: &str, name: &str, email: &str| json!({"external_id": id, "username": name, "email": email});
    for (id, name, email, made) in [
        ("17", "alice@example.com", "alice@example.com", "alice-4523540f"),
        ("18", "a+b", "a+b@example.com", "a-b-4ec9599f"),
        ("19", "al", "al@example.com", "al-9400f1b2"),
    ] {
        old.knows_as(email, user(id, name, email));
        let login = app.try_login(email, PASSWORD).await.expect(200);
        assert_eq!(login["user"]["username"], made);
        assert_eq!(app.try_login(made, PASSWORD).await.expect(200)["user"]["id"], login["user"]["id"]);
    }

    // Users who were imported without a password keep their name, made up or not, whichever name they log in with.
    for (name, id) in [("bob-12345678", "20"), ("carol", "21"), ("dave", "22")] {
        let user = app.register(name).await;
        sqlx::query("UPDATE users SET password_hash = NULL, external_id = $2 WHERE id = $1::uuid")
            .bind(user["id"].as_str().unwrap())
            .bind(id)
            .execute(&app.db)
            .await
            .unwrap();
    }
    old.knows_as("bob-12345678@example.com", user("20", "bob b", "bob-12345678@example.com"));
    old.knows_as("carol", user("21", "carol c", "carol@example.com"));
    // In the old system this name belongs to somebody else.
    old.knows_as("dave", user("23", "dave d", "dave@example.com"));
    for (typed, name) in [("bob-12345678@example.com", "bob-12345678"), ("carol", "carol")] {
        assert_eq!(app.try_login(typed, PASSWORD).await.expect(200)["user"]["username"], name);
    }
    app.try_login("dave", PASSWORD).await.expect_problem(401, "invalid_credentials");
    assert_eq!((outcome(&app, "taken_over").await, outcome(&app, "failed").await), (5, 1));
}

#[tokio::test]
async fn the_throttle_comes_first() {
    let old = OldSystem::start().await;
    let url = old.url();
    let app = App::with(&[("LEGACY_LOGIN_URL", &url), ("LOGIN_ATTEMPTS_PER_ACCOUNT", "1/15m")]).await;
    app.try_login("nobody", WRONG).await.expect_problem(401, "invalid_credentials");
    app.try_login("NOBODY", WRONG).await.expect_problem(429, "too_many_attempts");
    assert_eq!(old.asked().len(), 1);
}

#[tokio::test]
async fn the_request_uses_tls_joins_the_trace_and_leaks_no_secret_to_the_log() {
    const SECRET: &str = "legacy-secret-7f31";
    let authority = Authority::new("ours", Clock::system().now());
    let old = OldSystem::with_tls(&authority).await;
    old.knows("alice");
    let collector = Collector::start().await;
    let home = Home::new();
    let url = format!("https://gatepass:{SECRET}@{}/login", old.address);
    let settings = [
        ("DB_SOURCE", &*database().await),
        ("LEGACY_LOGIN_URL_FILE", &*home.write("url", &url)),
        ("SSL_CERT_FILE", &*home.write("ca.pem", &pem("CERTIFICATE", &authority.certificate))),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.endpoint),
        ("RUST_LOG", "trace"),
        ("LOG_FORMAT", "json"),
    ];
    let service = home.serve(&settings).await;
    let typed = |password: &str| json!({ "username": "alice", "password": password });
    assert_eq!(service.post("/users/login", &typed(WRONG)).await.0, 401);
    assert_eq!(service.post("/users/login", &typed(PASSWORD)).await.0, 200);
    assert_eq!(service.post("/users/login", &typed(PASSWORD)).await.0, 200);
    let log = service.stop(Signal::TERM).await.expect(0).stderr;

    let asked = old.asked();
    assert_eq!(asked.len(), 2);
    let spans = collector.spans();
    let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for asked in &asked {
        assert_eq!(
            asked.headers["authorization"],
            format!("Basic {}", STANDARD.encode(format!("gatepass:{SECRET}")))
        );
        let traceparent = asked.headers["traceparent"].to_str().unwrap();
        let [version, trace, parent, flags] = traceparent.split('-').collect::<Vec<_>>()[..] else {
            panic!("{traceparent}")
        };
        assert_eq!((version, flags), ("00", "01"));
        let span = spans.iter().find(|span| hex(&span.span_id) == parent).unwrap();
        assert_eq!((&*span.name, &*hex(&span.trace_id)), ("ask the old system", trace));
        let login = spans.iter().find(|login| login.span_id == span.parent_span_id).unwrap();
        assert_eq!(login.name, "POST /users/login");
    }
    assert!(log.contains("taken over from the old system"), "{log}");
    let encoded = STANDARD.encode(format!("gatepass:{SECRET}"));
    for secret in [SECRET, &encoded, PASSWORD, WRONG] {
        assert!(!log.contains(secret), "{secret} is in the log");
        assert!(!collector.sent().contains(secret), "{secret} is in a span");
    }
}

#[tokio::test]
async fn an_impostor_of_the_old_system_receives_no_password() {
    let [ours, theirs] = ["ours", "theirs"].map(|name| Authority::new(name, Clock::system().now()));
    let (old, impostor) = (OldSystem::with_tls(&ours).await, OldSystem::with_tls(&theirs).await);
    impostor.knows("alice");
    let home = Home::new();
    let database = database().await;
    let ca = home.write("ca.pem", &pem("CERTIFICATE", &ours.certificate));
    let (right, wrong) = (old.url(), impostor.url());
    fn settings<'a>(database: &'a str, ca: &'a str, url: &'a str) -> [(&'static str, &'a str); 3] {
        [("DB_SOURCE", database), ("SSL_CERT_FILE", ca), ("LEGACY_LOGIN_URL", url)]
    }
    let service = home.serve(&settings(&database, &ca, &wrong)).await;
    let typed = json!({ "username": "alice", "password": PASSWORD });
    assert_eq!(service.post("/users/login", &typed).await.0, 401);
    let log = service.stop(Signal::TERM).await.expect(0).stderr;
    assert!(log.contains("the old system could not tell") && log.contains("certificate"), "{log}");
    assert_eq!(impostor.asked().len(), 0);

    // Nor does `doctor` send a password to find out.
    for (url, code, level, said) in [
        (&*right, 0, "ok", "the old system is there: 401"),
        (&*wrong, 1, "problem", "certificate"),
        ("https://localhost:1/login", 1, "problem", "check LEGACY_LOGIN_URL"),
    ] {
        let url = url.replace("://", "://gatepass:hunter2@");
        let doctor = home.gatepass(&["doctor", "--json"]).env("TOKEN_SYMMETRIC_KEY", KEY);
        let ended = doctor.envs(&settings(&database, &ca, &url)).run().await;
        assert_eq!(ended.code, Some(code), "{}", ended.stdout);
        assert!(!ended.stdout.contains("hunter2") && !ended.stderr.contains("hunter2"), "{}", ended.stdout);
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let finding = findings.iter().find(|finding| finding["area"] == "legacy").unwrap();
        assert_eq!(finding["level"], level);
        assert!(finding.to_string().contains(said), "{finding}");
    }
    let [asked] = &old.asked()[..] else { panic!("asked more than once") };
    assert_eq!((&asked.method, &asked.body), (&Method::OPTIONS, &Value::Null));
    assert!(!asked.headers.contains_key("authorization"));
}
