//! How the service behaves towards everything around it: browsers, load balancers, slow clients, a database that is
//! gone, more load than it can bear, and the order to stop.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::{Method, Request},
};
use gatepass::{
    http::{Limits, Phase},
    store::migrations,
};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tower::ServiceExt;
use uuid::Uuid;

use crate::{
    app::{self, Answer, App, PASSWORD, Served, Story},
    process,
};

/// Longer than anything here takes, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(8);

/// One request for every kind of answer there is.
async fn every_kind(app: &App) -> Vec<(u16, Story)> {
    app.register("alice").await;
    let alice = app.login("alice").await;
    let login = |password: &str| json!({"username": "alice", "password": password});
    let carol = json!({"username": "carol", "email": "carol@example.com", "password": PASSWORD});
    vec![
        (200, app.get("/healthz")),
        (200, app.get("/readyz")),
        (200, app.get("/openapi.json")),
        (200, app.get("/docs")),
        (200, app.get("/docs/start.js")),
        (200, app.get("/users/me").bearer(&alice)),
        (200, app.request(Method::HEAD, "/users/me").bearer(&alice)),
        (200, app.post("/users/login").json(&login(PASSWORD))),
        (201, app.post("/users").json(&carol)),
        (409, app.post("/users").json(&carol)),
        (400, app.post("/users").header("content-type", "application/json").body("{")),
        (401, app.get("/users/me")),
        (401, app.get("/users/me").token("garbage")),
        (401, app.post("/users/login").json(&login("wrong"))),
        (403, app.get("/admin/users/abc").bearer(&alice)),
        (404, app.get("/nope")),
        (404, app.get("/docs/nope.js")),
        (405, app.post("/users/me")),
        (
            413,
            app.post("/users").header("content-type", "application/json").header("content-length", "70000"),
        ),
        (415, app.post("/users").body("{}")),
        (422, app.post("/users").json(&json!({}))),
    ]
}

fn preflight(app: &App, path: &str, origin: &str, method: &str) -> Story {
    app.request(Method::OPTIONS, path)
        .header("origin", origin)
        .header("access-control-request-method", method)
        .header("access-control-request-headers", "authorization,content-type")
}

#[tokio::test]
async fn every_response_carries_the_requests_id() {
    let app = App::new().await;
    for (i, (status, story)) in every_kind(&app).await.into_iter().enumerate() {
        let id = format!("test-{i}");
        let answer = story.header("x-request-id", &*id).send().await;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
        assert_eq!(answer.header("x-request-id"), id);
        assert_eq!(answer.headers.get_all("x-request-id").iter().count(), 1);
    }
    let answer =
        preflight(&app, "/users", "https://app.example", "POST").header("x-request-id", "a").send().await;
    assert_eq!(answer.header("x-request-id"), "a");

    let long = "x".repeat(128);
    for sane in
        ["a", "Root=1-67891233-abcdef012345678912345678", "019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e", &long]
    {
        let answer = app.get("/nope").header("x-request-id", sane).send().await;
        assert_eq!(answer.header("x-request-id"), sane);
        answer.expect_problem(404, "not_found");
    }
    let mut made = std::collections::BTreeSet::new();
    let too_long = "x".repeat(129);
    for odd in ["", "a b", "<script>", "\"", "a\tb", "é", "${jndi:ldap://example.com}", &too_long] {
        let answer = app.get("/nope").header("x-request-id", odd.as_bytes()).send().await;
        let id: Uuid = answer.header("x-request-id").parse().unwrap();
        assert_eq!(id.get_version_num(), 7);
        assert!(made.insert(id), "an id made twice");
        answer.expect_problem(404, "not_found");
    }
    let twice = app.get("/healthz").header("x-request-id", "a").header("x-request-id", "b").send().await;
    twice.header("x-request-id").parse::<Uuid>().unwrap();
}

#[tokio::test]
async fn every_response_tells_browsers_what_they_may_do_with_it() {
    let app = App::with(&[("ALLOWED_ORIGINS", "https://app.example")]).await;
    let mut stories = every_kind(&app).await;
    stories.push((200, preflight(&app, "/users", "https://app.example", "POST")));
    for (status, story) in stories {
        let answer = story.send().await;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.header(name), value, "{answer:?}");
        }
        let policy = answer.header("content-security-policy");
        for directive in ["default-src 'none'", "frame-ancestors 'none'"] {
            assert!(policy.contains(directive), "{answer:?}");
        }
        assert_eq!(answer.headers.get_all("content-security-policy").iter().count(), 1);
        // The description is the same for everyone; everything else may hold a token or personal data.
        let is_public = answer.status.is_success()
            && (answer.body.contains("SwaggerUIBundle")
                || answer.header("content-type").starts_with("text/html")
                || answer.body.contains("\"openapi\""));
        let cache = if is_public { "public, max-age=300" } else { "no-store" };
        assert_eq!(answer.header("cache-control"), cache, "{answer:?}");
        assert_eq!(answer.header("set-cookie"), "");
        assert_eq!(answer.header("server"), "");
    }
}

/// For development: no cookie is involved, so a page gets no more than its visitor gives it.
#[tokio::test]
async fn any_page_may_call_if_any_origin_is_allowed() {
    let app = App::with(&[("ALLOWED_ORIGINS", "*")]).await;
    for origin in ["https://app.example", "null"] {
        let answer = app.get("/healthz").header("origin", origin).send().await;
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        assert_eq!(answer.header("access-control-allow-credentials"), "");
        let preflight = app.request(Method::OPTIONS, "/users/login").header("origin", origin);
        let preflight = preflight.header("access-control-request-method", "POST").send().await;
        assert_eq!(preflight.header("access-control-allow-origin"), "*");
    }
}

#[tokio::test]
async fn only_pages_of_the_allowed_origins_may_call() {
    let ours = ["https://app.example", "http://localhost:3000"];
    let app = App::with(&[("ALLOWED_ORIGINS", "https://app.example,http://localhost:3000")]).await;
    let others = [
        "https://evil.example",
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil.example",
        "https://xapp.example",
        "https://APP.example",
        "null",
        "*",
        "",
    ];
    let check = |origin: &str, answer: &Answer| {
        let allowed = answer.header("access-control-allow-origin");
        assert_eq!(allowed, if ours.contains(&origin) { origin } else { "" }, "{origin:?}: {answer:?}");
        assert_eq!(answer.header("access-control-allow-credentials"), "");
        // Otherwise a cache would give one origin's answer to another.
        assert!(answer.header("vary").to_lowercase().contains("origin"), "{answer:?}");
        for (name, value) in &answer.headers {
            assert!(!name.as_str().starts_with("access-control-") || value != "*", "{answer:?}");
        }
    };

    // One origin for each kind of answer, ours and the others in turn.
    let mut origins = ours.iter().chain(&others).cycle();
    for (status, story) in every_kind(&app).await {
        let origin = origins.next().unwrap();
        let answer = story.header("origin", *origin).send().await;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
        check(origin, &answer);
    }
    for origin in ours.iter().chain(&others) {
        check(origin, &app.get("/healthz").header("origin", *origin).send().await);
        // A page may read what went wrong, and when to try again.
        let answer = app.get("/users/me").header("origin", *origin).send().await;
        check(origin, &answer);
        let exposed = answer.header("access-control-expose-headers").to_lowercase();
        if ours.contains(origin) {
            for name in ["x-request-id", "retry-after", "www-authenticate", "location"] {
                assert!(exposed.contains(name), "{exposed}");
            }
        }
    }

    let document: Value = serde_json::from_str(&gatepass::http::document()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        // A preflight there is meant for the application behind the proxy: see tests/forward_auth.rs.
        if path.starts_with("/auth/verify") {
            continue;
        }
        let methods =
            ["get", "post", "put", "patch", "delete"].into_iter().filter(|method| item.get(method).is_some());
        for method in methods.map(str::to_uppercase) {
            for origin in ours.iter().chain(&others) {
                let answer = preflight(&app, path, origin, &method).send().await;
                assert_eq!(answer.status.as_u16(), 200, "{method} {path}");
                check(origin, &answer);
                if ours.contains(origin) {
                    assert!(answer.header("access-control-allow-methods").contains(&method), "{answer:?}");
                    let headers = answer.header("access-control-allow-headers").to_lowercase();
                    assert!(
                        headers.contains("authorization") && headers.contains("content-type"),
                        "{headers}"
                    );
                }
            }
        }
    }

    // No page may call when no origin is configured.
    let app = App::new().await;
    let answer = app.get("/healthz").header("origin", "https://app.example").send().await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
}

/// Ends every connection to this app's database, and waits until they have ended.
async fn cut(app: &App) {
    let name = database_name(app);
    app::admin(&format!(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'"
    ))
    .await;
}

fn database_name(app: &App) -> String {
    let options: PgConnectOptions = app.database_url.parse().unwrap();
    options.get_database().unwrap().to_owned()
}

#[tokio::test]
async fn clients_do_not_notice_when_the_database_drops_connections() {
    let app = App::new().await;
    app.register("alice").await;
    for _ in 0..3 {
        cut(&app).await;
        app.login("alice").await;
    }
}

#[tokio::test]
async fn the_service_reports_a_lost_database_and_recovers_with_it() {
    let app = App::new().await;
    let root = app.login_admin("root").await;
    let client = app.client("orders").await;
    app.get("/readyz").send().await.expect(200);

    let name = database_name(&app);
    app::admin(&format!(r#"ALTER DATABASE "{name}" ALLOW_CONNECTIONS false"#)).await;
    cut(&app).await;
    let login = json!({"username": "root", "password": PASSWORD});
    let carol = json!({"username": "carol", "email": "carol@example.com", "password": PASSWORD});
    let problem = app.get("/readyz").send().await.expect_problem(503, "not_ready");
    assert_eq!(problem["reasons"], json!(["database: not reachable"]));
    // The service is alive, and whatever needs no database still works.
    app.get("/healthz").send().await.expect(200);
    app.get("/openapi.json").send().await.expect(200);
    app.get("/users/me").send().await.expect_problem(401, "missing_token");
    app.post("/users").json(&json!({})).send().await.expect_problem(422, "validation_failed");
    for story in [
        app.post("/users/login").json(&login),
        app.post("/users").json(&carol),
        app.get("/users/me").bearer(&root),
        app.patch("/users/me").bearer(&root).json(&json!({"full_name": "Root"})),
        app.get("/admin/users/019aa3f0-5b7c-7c3e-9d0a-3f2a1b4c5d6e").bearer(&root),
        app.post("/tokens/introspect").client(&client).form(&[("token", "x")]),
        app.post("/tokens/revoke").client(&client).form(&[("token", "x")]),
        app.post("/tokens/revoke").form(&[("token", root["access_token"].as_str().unwrap())]),
        app.post("/tokens/revoke").form(&[("token", root["refresh_token"].as_str().unwrap())]),
    ] {
        let answer = story.send().await;
        assert_eq!(answer.header("retry-after"), "1", "{}", answer.body);
        let problem = answer.expect_problem(503, "database_unavailable");
        assert!(!problem.to_string().contains(&name), "the cause is for the log alone: {problem}");
    }

    app::admin(&format!(r#"ALTER DATABASE "{name}" ALLOW_CONNECTIONS true"#)).await;
    app.get("/readyz").send().await.expect(200);
    app.login("root").await;
}

#[tokio::test]
async fn readiness_needs_a_current_schema_and_no_stop_signal() {
    let app = App::new().await;
    assert_eq!(app.get("/readyz").send().await.expect(200), json!({"status": "ready"}));
    let mut conn = app.db.acquire().await.unwrap();
    migrations::down(&mut conn, 1).await.unwrap();
    let problem = app.get("/readyz").send().await.expect_problem(503, "not_ready");
    assert_eq!(problem["reasons"], json!(["schema: 1 migration(s) pending"]));
    // Whoever applies the migration, no replica needs a restart.
    migrations::up(&mut conn, None).await.unwrap();
    app.get("/readyz").send().await.expect(200);
    migrations::down(&mut conn, 1).await.unwrap();
    app.state().stop();
    let answer = app.get("/readyz").send().await;
    // As the OpenAPI document says.
    assert_ne!(answer.header("retry-after"), "");
    let problem = answer.expect_problem(503, "not_ready");
    assert_eq!(problem["reasons"], json!(["stopping", "schema: 1 migration(s) pending"]));
    assert_eq!(app.get("/healthz").send().await.expect(200), json!({"status": "ok"}));
}

#[tokio::test]
async fn more_logins_than_can_be_served_are_turned_away_at_once() {
    let app = App::with(&[
        ("PASSWORD_HASH_THREADS", "1"),
        ("PASSWORD_HASH_QUEUE", "1"),
        ("ARGON2_MEMORY_KIB", "19456"),
        ("ARGON2_ITERATIONS", "8"),
    ])
    .await;
    // With a name that nobody can have, so that all of them ask for a hash before the first is computed.
    let mut crowd = JoinSet::new();
    for _ in 0..8 {
        crowd.spawn(app.try_login("a b", PASSWORD));
    }
    let answers = crowd.join_all().await;
    let (served, turned_away): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status.as_u16() == 401);
    // One more may wait for the first one's hash; it is turned away, too, if that takes seconds among all the other
    // tests.
    assert!(!served.is_empty() && turned_away.len() >= 2, "{} {}", served.len(), turned_away.len());
    for answer in turned_away {
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
        answer.expect_problem(503, "overloaded");
    }
    app.try_login("a b", PASSWORD).await.expect_problem(401, "invalid_credentials");
}

#[tokio::test]
async fn a_handler_that_hangs_is_given_up() {
    // Longer than a registration takes on a busy machine.
    let limits = Limits { handler: Duration::from_millis(1500), ..Limits::default() };
    let app = App::with_limits(&[], limits).await;
    app.register("alice").await;
    let alice = app.login("alice").await;
    let mut lock = app.db.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let answer = app.get("/users/me").bearer(&alice).send().await;
    assert_eq!(answer.header("retry-after"), "1");
    answer.expect_problem(503, "timeout");
    lock.rollback().await.unwrap();
    app.get("/users/me").bearer(&alice).send().await.expect(200);
}

/// Everything that arrives until the other side closes the connection.
async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    match timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection stays open") {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8(bytes).unwrap(),
    }
}

/// Reads until `end` has arrived.
async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let mut bytes = [0; 1024];
    while !text.contains(end) {
        let length = timeout(PATIENCE, stream.read(&mut bytes)).await.expect("no answer").unwrap();
        assert_ne!(length, 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
    }
    text
}

#[tokio::test]
async fn a_client_that_dribbles_or_idles_loses_its_connection() {
    let (header_read, idle) = (Duration::from_millis(200), Duration::from_millis(400));
    let limits = Limits { header_read, idle, ..Limits::default() };
    let app = App::with_limits(&[], limits).await;
    let served = app.serve(limits).await;
    let mut all = JoinSet::new();
    for (start, answers) in [
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nX-Slow: ", 0),
        ("GET /heal", 0),
        ("POST", 0),
        // One answer, and then no further request.
        ("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 1),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /healthz HTTP/1.1\r\n", 1),
        // Nothing at all.
        ("", 0),
        // The beginning of an HTTP/2 preface.
        ("PRI", 0),
        ("PRI * HTTP/2.0\r\n\r\nS", 0),
    ] {
        let stream = served.send(start).await;
        all.spawn(async move {
            let mut bytes = Vec::new();
            let mut stream = stream;
            let closed = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.is_ok();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            (start, closed && text.matches("HTTP/1.1 200").count() == answers, text)
        });
    }
    let bad: Vec<_> = all.join_all().await.into_iter().filter(|(_, good, _)| !good).collect();
    assert!(bad.is_empty(), "not closed in time, or not answered: {bad:#?}");
    assert!(served.stop().await);
}

#[tokio::test]
async fn a_connection_that_is_idle_makes_room_when_places_are_few() {
    let app = App::new().await;
    let limits = Limits { header_read: Duration::from_millis(200), connections: 4, ..Limits::default() };
    let served = app.serve(limits).await;
    let mut idle = Vec::new();
    // The last ones are only accepted once the first have been closed.
    for _ in 0..8 {
        let mut stream = served.send(HEALTH).await;
        until(&mut stream, "{\"status\":\"ok\"}").await;
        idle.push(stream);
    }
    assert!(served.stop().await);
}

/// A body of which nothing is ever sent.
struct Unsent;

impl hyper::body::Body for Unsent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

/// Otherwise a thousand connections, each with as many requests as it may have, would take the memory of ten thousand.
#[tokio::test]
async fn a_request_over_http_2_takes_a_place_as_a_connection_does() {
    let long = Duration::from_mins(5);
    let limits = Limits { connections: 20, body_read: long, handler: long, ..Limits::default() };
    let app = App::with_limits(&[], limits).await;
    let served = app.serve(limits).await;
    let stream = TokioIo::new(TcpStream::connect(served.address).await.unwrap());
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let health = || Request::get("http://localhost/healthz").body(Body::empty()).unwrap();
    // The connection has one place, and the next connection another. Their bodies never arrive.
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let login =
                Request::post("http://localhost/users/login").header("content-type", "application/json");
            client.send_request(login.body(Body::new(Unsent)).unwrap())
        })
        .collect();
    let refused = client.send_request(health()).await.unwrap();
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    let problem = refused.into_body().collect().await.unwrap().to_bytes();
    let problem: Value = serde_json::from_slice(&problem).unwrap();
    assert_eq!(problem["code"], "overloaded");
    // The last places are for connections.
    let idle = TcpStream::connect(served.address).await.unwrap();
    let mut another = served.send(HEALTH).await;
    until(&mut another, "{\"status\":\"ok\"}").await;
    // Once the requests are given up, there is room again.
    drop(waiting);
    let answered = async {
        while client.send_request(health()).await.unwrap().status().as_u16() != 200 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, answered).await.unwrap();
    drop((client, idle, another));
    assert!(served.stop().await);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_body_that_does_not_arrive_times_out() {
    let limits = Limits { body_read: Duration::from_millis(200), ..Limits::default() };
    let app = App::with_limits(&[], limits).await;
    let served = app.serve(limits).await;
    for body in [
        "Content-Length: 100\r\n\r\n",
        "Content-Length: 100\r\n\r\n{\"username\":",
        "Transfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    ] {
        let head = "POST /users/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n";
        let answer = rest(served.send(&format!("{head}{body}")).await).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{body:?}: {answer}");
        assert!(
            answer.contains("application/problem+json") && answer.contains("request_timeout"),
            "{answer}"
        );
    }
    assert!(served.stop().await);
}

#[tokio::test]
async fn a_body_that_is_declared_too_large_is_refused_before_it_is_sent() {
    let app = App::new().await;
    let served = app.serve(Limits::default()).await;
    let head =
        "POST /users HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 65537\r\n\r\n";
    let answer = rest(served.send(head).await).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"), "{answer}");
    assert!(served.stop().await);
}

/// Otherwise ten thousand connections, each with a body that never ends, would take more memory than a pod has.
#[tokio::test]
async fn large_requests_that_never_arrive_keep_out_large_requests_only() {
    let long = Duration::from_mins(5);
    let limits = Limits { large_requests: 1, body_read: long, handler: long, ..Limits::default() };
    let app = App::with_limits(&[], limits).await;
    app.register("alice").await;
    let served = app.serve(limits).await;
    let login = |cookie: usize, username: &str| {
        let body = json!({"username": username, "password": PASSWORD}).to_string();
        let fields = format!("Cookie: {}\r\nContent-Type: application/json", "a".repeat(cookie));
        let length = body.len();
        let head = format!("POST /users/login HTTP/1.1\r\nHost: a\r\n{fields}\r\nContent-Length: {length}");
        format!("{head}\r\nConnection: close\r\n\r\n{body}")
    };
    let taken_places_become = async |taken: usize| {
        let line = format!("gatepass_http_places{{kind=\"large_request\"}} {taken}\n");
        while !app.scrape().await.contains(&line) {
            tokio::task::yield_now().await;
        }
    };
    let (head, body) = (login(9000, "nobody"), login(0, &"a".repeat(9000)));
    for large in [&head, &body] {
        let unfinished = served.send(&large[..large.len() - 1]).await;
        timeout(PATIENCE, taken_places_become(1)).await.unwrap();
        for large in [&head, &body] {
            let answer = rest(served.send(large).await).await;
            assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1"), "{answer}");
            assert!(answer.contains("\"code\":\"overloaded\""), "{answer}");
        }
        let answer = rest(served.send(&login(0, "alice")).await).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        drop(unfinished);
        timeout(PATIENCE, taken_places_become(0)).await.unwrap();
        let answer = rest(served.send(&head).await).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    }
    assert!(served.stop().await);
}

#[tokio::test]
async fn invalid_http_is_answered_with_an_error_and_closed() {
    let app = App::new().await;
    let served = app.serve(Limits::default()).await;
    let many = (0..101).map(|i| format!("X-{i}: a\r\n")).collect::<String>();
    let long = "a".repeat(70_000);
    for (text, status) in [
        ("GARBAGE\r\n\r\n", "400"),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nBad Name: a\r\n\r\n", "400"),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "400"),
        (&format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{many}\r\n"), "431"),
        (&format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), "431"),
    ] {
        let answer = rest(served.send(text).await).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{:.60}: {answer}", text);
    }
    assert!(served.stop().await);
}

#[tokio::test]
async fn a_connection_serves_many_requests_in_order() {
    let app = App::new().await;
    let served = app.serve(Limits::default()).await;
    let paths = ["/healthz", "/nope", "/readyz", "/users/me", "/healthz"];
    let pipelined: String = paths
        .iter()
        .enumerate()
        .map(|(i, path)| {
            let close = if i + 1 == paths.len() { "Connection: close\r\n" } else { "" };
            format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: n{i}\r\n{close}\r\n")
        })
        .collect();
    let answers = rest(served.send(&pipelined).await).await;
    let statuses: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "404", "200", "401", "200"]);
    let ids: Vec<_> = answers.split("x-request-id: ").skip(1).map(|answer| &answer[..2]).collect();
    assert_eq!(ids, ["n0", "n1", "n2", "n3", "n4"]);
    assert!(served.stop().await);
}

#[tokio::test]
async fn http_2_is_spoken_with_prior_knowledge() {
    let app = App::new().await;
    app.register("alice").await;
    let served = app.serve(Limits::default()).await;
    let stream = TokioIo::new(TcpStream::connect(served.address).await.unwrap());
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let login = Request::post("http://localhost/users/login")
        .header("content-type", "application/json")
        .body(Body::from(json!({"username": "alice", "password": PASSWORD}).to_string()))
        .unwrap();
    let response = client.send_request(login).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let login: Value =
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    let me = Request::get("http://localhost/users/me")
        .header("authorization", format!("Bearer {}", login["access_token"].as_str().unwrap()))
        .body(Body::empty())
        .unwrap();
    assert_eq!(client.send_request(me).await.unwrap().status().as_u16(), 200);
    // As many header fields as over HTTP/1, however small HPACK makes them.
    for (fields, status) in [(100, 200), (101, 431), (1500, 431)] {
        let mut request = Request::get("http://localhost/healthz").body(Body::empty()).unwrap();
        for _ in 0..fields {
            request.headers_mut().append("age", "".parse().unwrap());
        }
        assert_eq!(client.send_request(request).await.unwrap().status().as_u16(), status, "{fields}");
    }
    // As large fields as over HTTP/1, although they take more than one frame.
    for (length, status) in [(8192, 401), (31_000, 401), (33_000, 431)] {
        let authorization = format!("Bearer {}", "a".repeat(length));
        let me = Request::get("http://localhost/users/me").header("authorization", authorization);
        let response = client.send_request(me.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{length}");
    }
    // An idle connection does not hold up the end.
    assert!(served.stop().await);
    connection.await.unwrap().unwrap();
}

/// A login whose head has arrived and whose handler waits for the body; and that body.
async fn begin_login(served: &Served) -> (TcpStream, String) {
    let body = json!({"username": "alice", "password": PASSWORD}).to_string();
    let head = format!(
        "POST /users/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Expect: 100-continue\r\n\r\n",
        body.len()
    );
    let mut stream = served.send(&head).await;
    // This is sent when the handler asks for the body.
    assert_eq!(until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    (stream, body)
}

#[tokio::test]
async fn a_stopping_service_finishes_requests_in_flight_and_accepts_no_more() {
    let app = App::new().await;
    app.register("alice").await;
    let served = app.serve(Limits::default()).await;
    let idle = {
        let mut stream = served.send("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
        until(&mut stream, "{\"status\":\"ok\"}").await;
        stream
    };
    let (mut stream, body) = begin_login(&served).await;
    let Served { address, phase, done } = served;
    phase.send(Phase::Closing).unwrap();
    // A connection without a request in flight is closed at once.
    assert_eq!(rest(idle).await, "");
    // No new connection is accepted.
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert!(!done.is_finished());

    stream.write_all(body.as_bytes()).await.unwrap();
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("access_token"), "{answer}");
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    assert!(timeout(PATIENCE, done).await.unwrap().unwrap(), "all were finished");
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn a_leaving_service_still_serves_clients_and_asks_them_to_disconnect() {
    let app = App::new().await;
    let served = app.serve(Limits::default()).await;
    let mut kept = served.send(HEALTH).await;
    assert!(!until(&mut kept, "{\"status\":\"ok\"}").await.contains("connection: close"));
    let (mut idle, mut silent) = (served.send(HEALTH).await, served.send(HEALTH).await);
    until(&mut idle, "{\"status\":\"ok\"}").await;
    until(&mut silent, "{\"status\":\"ok\"}").await;
    let http_2 = TokioIo::new(TcpStream::connect(served.address).await.unwrap());
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), http_2).await.unwrap();
    let connection = tokio::spawn(connection);
    let ask = || Request::get("http://localhost/healthz").body(Body::empty()).unwrap();
    client.send_request(ask()).await.unwrap();
    let mut early = TcpStream::connect(served.address).await.unwrap();

    served.phase.send(Phase::Leaving).unwrap();
    // A kept connection and a new one each get an answer, and with it the request to close.
    kept.write_all(HEALTH.as_bytes()).await.unwrap();
    for stream in [kept, served.send(HEALTH).await] {
        let answer = rest(stream).await;
        assert!(answer.contains("\r\nconnection: close\r\n") && answer.contains("ok"), "{answer}");
    }
    // HTTP/2 connections get GOAWAY, old and new.
    timeout(PATIENCE, connection).await.unwrap().unwrap().unwrap();
    let http_2 = TokioIo::new(TcpStream::connect(served.address).await.unwrap());
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), http_2).await.unwrap();
    let connection = tokio::spawn(connection);
    let response = client.send_request(ask()).await.unwrap();
    assert!(response.status().is_success() && !response.headers().contains_key("connection"));
    drop(response);
    timeout(PATIENCE, connection).await.unwrap().unwrap().unwrap();
    // Idle connections are left alone, as a request may be on its way.
    idle.write_all(HEALTH.as_bytes()).await.unwrap();
    assert!(rest(idle).await.contains("connection: close"));

    served.phase.send(Phase::Closing).unwrap();
    // A connection that has carried a request is closed at once; one that has not is given a moment to send its first.
    assert_eq!(rest(silent).await, "");
    early.write_all(HEALTH.as_bytes()).await.unwrap();
    assert!(rest(early).await.contains("connection: close"));
    assert!(timeout(PATIENCE, served.done).await.unwrap().unwrap());
}

/// The kernel stops completing handshakes before the listener closes, so no completed connection is reset.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn late_connections_are_refused_or_served_but_never_cut_off() {
    let app = App::new().await;
    let served = app.serve(Limits::default()).await;
    served.phase.send(Phase::Leaving).unwrap();
    let address = served.address;
    let answered = Arc::new(AtomicUsize::new(0));
    let mut crowd = JoinSet::new();
    for _ in 0..8 {
        let answered = answered.clone();
        crowd.spawn(async move {
            loop {
                match TcpStream::connect(address).await {
                    Ok(mut stream) => {
                        stream.write_all(HEALTH.as_bytes()).await.unwrap();
                        let answer = rest(stream).await;
                        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
                        return;
                    }
                }
            }
        });
    }
    process::until("they come and go", async || answered.load(Ordering::Relaxed) > 50).await;
    served.phase.send(Phase::Closing).unwrap();
    assert!(timeout(PATIENCE, served.done).await.unwrap().unwrap());
    timeout(PATIENCE, crowd.join_all()).await.unwrap();
}

#[tokio::test]
async fn a_hanging_request_delays_shutdown_only_up_to_the_limit() {
    let app = App::new().await;
    let limits = Limits { drain: Duration::from_millis(200), ..Limits::default() };
    let served = app.serve(limits).await;
    let (stream, _) = begin_login(&served).await;
    let began = Instant::now();
    assert!(!served.stop().await, "one was not finished");
    assert!(began.elapsed() >= limits.drain);
    // And it is cut off.
    assert_eq!(rest(stream).await, "");
}

/// The values of `attribute="…"`.
fn attributes<'a>(html: &'a str, attribute: &str) -> Vec<&'a str> {
    let mark = format!("{attribute}=\"");
    html.split(&*mark).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

#[tokio::test]
async fn the_documentation_page_loads_everything_from_here() {
    let app = App::new().await;
    let page = app.get("/docs").send().await;
    assert!(page.header("content-type").starts_with("text/html"));
    let policy = page.header("content-security-policy").to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"), "{policy}");
    assert!(!policy.contains("http:") && !policy.contains("https:") && !policy.contains('*'), "{policy}");
    assert!(!policy.contains("script-src 'self' 'unsafe"), "{policy}");
    assert!(
        !page.body.contains("<script>") && !page.body.contains(" onload="),
        "the policy forbids inline scripts"
    );

    let mut addresses = attributes(&page.body, "src");
    addresses.extend(attributes(&page.body, "href"));
    assert!(addresses.len() >= 4, "{addresses:?}");
    addresses.push("openapi.json");
    let mut own = page.body.clone();
    for address in addresses.iter().filter(|address| !address.starts_with('#')) {
        // Relative to the page, since a proxy may have put that below a path of its own.
        assert!(!address.starts_with(['/', '.']) && !address.contains(':'), "{address}");
        let request = Request::get(format!("/{address}")).body(Body::empty()).unwrap();
        let response = app.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), 200, "{address}");
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        let expected = match address.rsplit('.').next().unwrap() {
            "js" => "javascript",
            "css" => "text/css",
            "png" => "image/png",
            "json" => "application/json",
            _ => "",
        };
        assert!(kind.contains(expected), "{address}: {kind}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(!body.is_empty(), "{address}");
        if ["docs/start.js", "docs/style.css"].contains(address) {
            own.push_str(std::str::from_utf8(&body).unwrap());
        }
    }
    assert!(own.contains("\"openapi.json\""));
    for outside in ["http://", "https://", "\"/", "'/", "url(", "@import"] {
        assert!(!own.contains(outside), "{outside}");
    }
}

#[tokio::test]
async fn the_openapi_document_is_the_one_in_the_repository() {
    let committed = include_str!("../docs/openapi.json");
    assert_eq!(gatepass::http::document(), committed, "run: cargo run -- openapi > docs/openapi.json");
    let app = App::new().await;
    let answer = app.get("/openapi.json").send().await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.body, committed);
    // Relative to the document, so that an API below a path stays below it.
    let mut document: Value = serde_json::from_str(committed).unwrap();
    assert_eq!(document["servers"][0]["url"], ".");

    let strict = App::with(&[("PASSWORD_MIN_LENGTH", "15")]).await;
    for path in ["RegisterRequest/properties/password", "ChangePasswordRequest/properties/new_password"] {
        let min_length = document.pointer_mut(&format!("/components/schemas/{path}/minLength")).unwrap();
        assert_eq!(*min_length, 8);
        *min_length = 15.into();
    }
    assert_eq!(strict.get("/openapi.json").send().await.expect(200), document);
}

#[tokio::test]
async fn the_operations_server_also_sends_problems_and_request_ids() {
    let app = App::new().await;
    let get = |path| app.operators(Method::GET, path).header("x-request-id", "a");
    assert_eq!(get("/metrics").send().await.header("x-request-id"), "a");
    let nowhere = get("/users/me").send().await.expect_problem(404, "not_found");
    assert_eq!(nowhere["request_id"], "a");
    let answer = app.operators(Method::POST, "/metrics").send().await;
    assert_eq!(answer.header("allow"), "GET,HEAD");
    answer.expect_problem(405, "method_not_allowed");
}

/// RFC 9110, section 8.6.
#[tokio::test]
async fn responses_without_content_have_no_content_length() {
    let app = App::new().await;
    app.register("alice").await;
    let served = app.serve(Limits::default()).await;
    let stream = TokioIo::new(TcpStream::connect(served.address).await.unwrap());
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let connection = tokio::spawn(connection);
    for (path, status, length) in [
        ("/healthz", 200, Some("15")),
        ("/auth/verify", 200, Some("0")),
        ("/.well-known/jwks.json", 304, None),
        ("/users/logout", 204, None),
    ] {
        let alice = app.login("alice").await;
        let token = format!("Bearer {}", alice["access_token"].as_str().unwrap());
        let method = if status == 204 { Method::POST } else { Method::GET };
        let request = Request::builder()
            .method(method.clone())
            .uri(format!("http://localhost{path}"))
            .header("authorization", &token)
            .header("if-none-match", "*")
            .body(Body::empty())
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{path}");
        let found = response.headers().get("content-length").map(|length| length.to_str().unwrap());
        assert_eq!(found, length, "{path}");

        let alice = app.login("alice").await;
        let token = alice["access_token"].as_str().unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nIf-None-Match: *\r\n\
             Connection: close\r\n\r\n"
        );
        let answer = rest(served.send(&request).await).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let found = answer.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        assert_eq!(found, length, "{answer}");
    }
    assert!(served.stop().await);
    connection.await.unwrap().unwrap();
}

/// Asks for far more than the system's buffers hold, and reads none of it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_that_does_not_read_loses_its_connection() {
    let app = App::new().await;
    let limits = Limits {
        stalled_write: Duration::from_millis(300),
        drain: Duration::from_secs(30),
        ..Limits::default()
    };
    let served = app.serve(limits).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(served.address).await.unwrap();
    let asked = "GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: a\r\n\r\n".repeat(50);
    stream.write_all(asked.as_bytes()).await.unwrap();
    // The first bytes of the first answer show that it has begun.
    stream.readable().await.unwrap();
    assert!(served.stop().await, "it was waited for until the end of the drain");
}
