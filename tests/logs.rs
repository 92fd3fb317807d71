//! The real binary, with every log level turned on, logs each request of a whole story in one line and never logs a
//! secret. Nor is there a secret in the spans that it sends to a collector meanwhile.

use std::{collections::BTreeSet, process::Stdio, time::Duration};

use axum::{body::Body, http::Request};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    sync::mpsc,
    time::timeout,
};

use crate::{
    app::{App, KEY, PASSWORD, database},
    process::Home,
    traces::Collector,
};

/// Longer than the binary takes for anything here, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

const DATABASE_PASSWORD: &str = "database-password-5f3a";
const OLDER_KEY: &str = "k4.local.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
const WRONG_PASSWORD: &str = "wrong-sardine-lagoon-4";

/// The binary, serving, and what it has logged so far.
struct Service {
    child: Child,
    stderr: mpsc::UnboundedReceiver<String>,
    said: Vec<String>,
    address: String,
}

impl Service {
    async fn start(database_url: &str, more: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let separator = if database_url.contains('?') { '&' } else { '?' };
        let mut child = Command::new(env!("CARGO_BIN_EXE_gatepass"))
            .arg("serve")
            .env_clear()
            .current_dir(directory.path())
            .env("DB_SOURCE", format!("{database_url}{separator}password={DATABASE_PASSWORD}"))
            .env("HTTP_SERVER_ADDRESS", "127.0.0.1:0")
            .env("LOG_FORMAT", "json")
            .env("TOKEN_SYMMETRIC_KEY", KEY)
            .env("TOKEN_SYMMETRIC_KEYS_ACCEPTED", OLDER_KEY)
            .env("ARGON2_MEMORY_KIB", "8")
            .env("ARGON2_ITERATIONS", "1")
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, mut stderr) = mpsc::unbounded_channel();
        // Read all the time, since a process that writes to a full pipe blocks.
        tokio::spawn(async move {
            while let Some(line) = lines.next_line().await.unwrap() {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut said = Vec::new();
        let address = loop {
            let line = timeout(PATIENCE, stderr.recv()).await.unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended: {said:#?}"));
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            said.push(line);
            if event["message"] == "serving" {
                break event["address"].as_str().unwrap().to_owned();
            }
        };
        Self { child, stderr, said, address }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Stops it and returns everything that it logged.
    async fn stop(mut self) -> Vec<String> {
        let pid = Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        while let Some(line) = timeout(PATIENCE, self.stderr.recv()).await.unwrap() {
            self.said.push(line);
        }
        let status = timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
        self.said
    }
}

/// One step of the story: the request, its id, and the status of its answer.
struct Step {
    id: String,
    method: &'static str,
    path: String,
    route: &'static str,
    token: Option<String>,
    client: Option<(String, String)>,
    media_type: &'static str,
    body: Option<String>,
    status: u16,
}

fn step(method: &'static str, path: &str, status: u16) -> Step {
    let route = match path.split('?').next().unwrap() {
        "/users" => "/users",
        "/users/login" => "/users/login",
        "/users/me" => "/users/me",
        "/users/logout" => "/users/logout",
        "/sessions" => "/sessions",
        "/tokens/introspect" => "/tokens/introspect",
        "/tokens/revoke" => "/tokens/revoke",
        "/tokens/renew_access" => "/tokens/renew_access",
        "/healthz" => "/healthz",
        admin if admin.starts_with("/admin/users/") => "/admin/users/{id}",
        _ => "-",
    };
    Step {
        id: String::new(),
        method,
        path: path.into(),
        route,
        token: None,
        client: None,
        media_type: "application/json",
        body: None,
        status,
    }
}

impl Step {
    fn json(self, body: &Value) -> Self {
        Self { body: Some(body.to_string()), ..self }
    }

    fn form(self, token: &str) -> Self {
        let media_type = "application/x-www-form-urlencoded";
        Self { media_type, body: Some(format!("token={token}")), ..self }
    }

    fn client(self, id: &str, secret: &str) -> Self {
        Self { client: Some((id.into(), secret.into())), ..self }
    }

    fn text(self, body: &str) -> Self {
        Self { body: Some(body.into()), ..self }
    }

    fn token(self, token: &str) -> Self {
        Self { token: Some(token.into()), ..self }
    }
}

#[tokio::test]
async fn everything_is_logged_except_secrets() {
    let app = App::new().await;
    let collector = Collector::start().await;
    let settings = [("RUST_LOG", "trace"), ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.endpoint)];
    let service = Service::start(&app.database_url, &settings).await;
    let http = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
    let mut told: Vec<Step> = Vec::new();
    let mut tell = async |mut step: Step| -> Value {
        step.id = format!("story-{}", told.len());
        let mut request = http
            .request(step.method.parse().unwrap(), service.url(&step.path))
            .header("x-request-id", &step.id)
            .header("x-forwarded-for", "203.0.113.77");
        if let Some(token) = &step.token {
            request = request.bearer_auth(token);
        }
        if let Some((id, secret)) = &step.client {
            request = request.basic_auth(id, Some(secret));
        }
        if let Some(body) = &step.body {
            request = request.header("content-type", step.media_type).body(body.clone());
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), step.status, "{} {}", step.method, step.path);
        told.push(step);
        let body = response.bytes().await.unwrap();
        if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() }
    };

    let alice = json!({
        "username": "alice", "email": "alice.liddell@secret.example", "password": PASSWORD, "full_name": "Alice Pleasance",
    });
    let credentials = |name: &str, password: &str| json!({"username": name, "password": password});
    let user = tell(step("POST", "/users", 201).json(&alice)).await;
    tell(step("POST", "/users", 409).json(&alice)).await;
    let mut again = alice.clone();
    again["username"] = "carol".into();
    tell(step("POST", "/users", 409).json(&again)).await;
    tell(step("POST", "/users/login", 401).json(&credentials("alice", WRONG_PASSWORD))).await;
    tell(step("POST", "/users/login", 401).json(&credentials("nobody@secret.example", PASSWORD))).await;
    // The password in the place of the username, as happens.
    tell(step("POST", "/users/login", 401).json(&credentials(PASSWORD, PASSWORD))).await;
    let login =
        tell(step("POST", "/users/login", 200).json(&credentials("alice.liddell@secret.example", PASSWORD)))
            .await;
    let access = login["access_token"].as_str().unwrap();
    let refresh = login["refresh_token"].as_str().unwrap();
    tell(step("GET", "/users/me", 200).token(access)).await;
    tell(
        step("PATCH", "/users/me", 200).token(access).json(&json!({"email": "liddell.alice@secret.example"})),
    )
    .await;
    tell(
        step("PATCH", "/users/me", 422).token(access).json(&json!({"email": "liddell alice@secret.example"})),
    )
    .await;
    let own = format!("/admin/users/{}", user["id"].as_str().unwrap());
    tell(step("GET", &own, 403).token(access)).await;
    tell(step("GET", "/users/me", 401)).await;
    tell(step("GET", "/users/me", 401).token(&access[..access.len() - 1])).await;
    tell(step("GET", "/users/me", 401).token(refresh)).await;
    // Tokens where none belongs.
    tell(step("GET", &format!("/users/me?access_token={access}"), 401)).await;
    tell(step("GET", &format!("/nope/{refresh}"), 404)).await;
    // Invalid bodies that hold a secret.
    let mut weak = alice.clone();
    weak["password"] = "alice.liddell1".into();
    tell(step("POST", "/users", 422).json(&weak)).await;
    for (body, status) in [
        (json!(PASSWORD).to_string(), 422),
        (json!([PASSWORD]).to_string(), 422),
        (json!({"username": "alice", "password": [PASSWORD]}).to_string(), 422),
        (json!({"username": {"password": PASSWORD}, "password": PASSWORD}).to_string(), 422),
        (format!("{{\"username\":\"alice\",\"password\":\"{PASSWORD}\",}}"), 400),
        (format!("{{\"username\":\"alice\",\"password\":\"{PASSWORD}"), 400),
        (format!("username=alice&password={PASSWORD}"), 400),
    ] {
        tell(step("POST", "/users/login", status).text(&body)).await;
    }
    // Introspection and revocation: with a client's credentials, with wrong ones, and in malformed requests.
    let (id, secret) = app.client("orders").await;
    for token in [access, refresh, PASSWORD] {
        tell(step("POST", "/tokens/introspect", 200).client(&id, &secret).form(token)).await;
        tell(step("POST", "/tokens/introspect", 401).client(&id, WRONG_PASSWORD).form(token)).await;
        tell(step("POST", "/tokens/introspect", 401).client(&secret, &id).form(token)).await;
        let twice = format!("{token}&token={token}");
        tell(step("POST", "/tokens/introspect", 400).client(&id, &secret).form(&twice)).await;
        tell(step("POST", "/tokens/introspect", 400).client(&id, &secret).form(&format!("{token}%"))).await;
        tell(step("POST", "/tokens/introspect", 415).client(&id, &secret).text(token)).await;
        tell(step("POST", "/tokens/revoke", 401).client(&id, WRONG_PASSWORD).form(token)).await;
    }
    tell(step("POST", "/tokens/revoke", 200).form(refresh)).await;
    // A refresh token that somebody has copied.
    let copied = tell(step("POST", "/users/login", 200).json(&credentials("alice", PASSWORD))).await;
    let renew = |tokens: &Value, status| {
        step("POST", "/tokens/renew_access", status).json(&json!({"refresh_token": tokens["refresh_token"]}))
    };
    let renewed = tell(renew(&copied, 200)).await;
    let renewed = tell(renew(&renewed, 200)).await;
    tell(renew(&copied, 401)).await;
    tell(step("GET", "/healthz", 200)).await;
    tell(step("DELETE", "/users/me", 405).token(access)).await;
    // An administrator, and sessions that end.
    sqlx::raw_sql("UPDATE users SET roles = '{admin}'").execute(&app.db).await.unwrap();
    let root = tell(step("POST", "/users/login", 200).json(&credentials("alice", PASSWORD))).await;
    let access_of_root = root["access_token"].as_str().unwrap();
    let change = json!({"roles": ["admin", "support"], "disabled": false});
    tell(step("PATCH", &own, 200).token(access_of_root).json(&change)).await;
    let root = tell(renew(&root, 200)).await;
    tell(step("POST", "/users/login", 200).json(&credentials("alice", PASSWORD))).await;
    let access_of_root = root["access_token"].as_str().unwrap();
    tell(step("DELETE", "/sessions", 204).token(access_of_root)).await;
    tell(step("POST", "/users/logout", 204).token(access_of_root)).await;

    // And over HTTP/2, whose library has logs of its own.
    let stream = TokioIo::new(TcpStream::connect(&service.address).await.unwrap());
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let request = |id: &str, path: &str| {
        Request::builder()
            .uri(service.url(path))
            .header("x-request-id", id)
            .header("content-type", "application/json")
    };
    let body = credentials("alice", PASSWORD).to_string();
    let second = request("h2-0", "/users/login").method("POST").body(Body::from(body)).unwrap();
    let response = client.send_request(second).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    let second: Value = serde_json::from_slice(&body).unwrap();
    let authorization = format!("Bearer {}", second["access_token"].as_str().unwrap());
    let me = request("h2-1", "/users/me").header("authorization", authorization).body(Body::empty()).unwrap();
    assert_eq!(client.send_request(me).await.unwrap().status().as_u16(), 200);

    let hash: String =
        sqlx::query_scalar("SELECT password_hash FROM users").fetch_one(&app.db).await.unwrap();
    drop(client);
    drop(http);
    let said = service.stop().await;

    // Each request in one line.
    let events: Vec<Value> = said.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let answered: Vec<_> = events.iter().filter(|event| event["message"] == "answered").collect();
    let over_http_2 = [("h2-0", "POST", "/users/login", 200), ("h2-1", "GET", "/users/me", 200)];
    let expected =
        told.iter().map(|step| (&*step.id, step.method, step.route, step.status)).chain(over_http_2);
    let expected: Vec<_> = expected.collect();
    assert_eq!(answered.len(), expected.len());
    for (event, (id, method, route, status)) in answered.iter().zip(expected) {
        assert_eq!(event["request_id"], id, "{event}");
        assert_eq!(event["method"], method, "{event}");
        assert_eq!(event["route"], route, "{event}");
        assert_eq!(event["status"], status, "{event}");
        assert_eq!(event["level"], "INFO", "{event}");
        assert!(event["latency_ms"].as_f64().unwrap() > 0.0, "{event}");
        assert_eq!(event["code"].is_string(), status >= 400, "{event}");
        event["timestamp"].as_str().unwrap();
    }
    // The theft is logged with everything there is to go by.
    let theft = "a refresh token was used again: session ended";
    let theft = events.iter().find(|event| event["message"] == theft).expect("a warning");
    assert_eq!(theft["level"], "WARN", "{theft}");
    assert_eq!(theft["session_id"], copied["session_id"], "{theft}");
    assert_eq!(theft["user_id"], user["id"], "{theft}");
    assert_eq!((theft["presented"].as_i64(), theft["present"].as_i64()), (Some(0), Some(2)), "{theft}");
    for address in ["client_ip", "last_client_ip"] {
        assert_eq!(theft[address], "127.0.0.1", "{theft}");
    }
    // Changes are logged in the words that requests have for them.
    let changed = events.iter().find(|event| event["message"] == "user changed").expect("a change");
    assert_eq!(
        (&changed["roles"], &changed["disabled"]),
        (&"admin,support".into(), &false.into()),
        "{changed}"
    );
    let ends = events.iter().filter(|event| event["message"] == "sessions ended");
    let ends: Vec<_> = ends.map(|end| [&end["reason"], &end["session_id"], &end["kept"]]).collect();
    let (revoked, logout, nobody) = (&"revoked".into(), &"logout".into(), &Value::Null);
    let [first, last] = [&login, &root].map(|tokens| &tokens["session_id"]);
    assert_eq!(ends, [[revoked, first, nobody], [revoked, nobody, last], [logout, last, nobody]]);
    // Events within a request carry its id, too.
    let statements = events.iter().filter(|event| event["target"] == "sqlx::query");
    assert!(statements.filter(|event| event["request_id"].is_string()).count() > 10);
    let targets: BTreeSet<_> =
        events.iter().map(|event| event["target"].as_str().unwrap_or_default()).collect();
    assert!(targets.iter().any(|target| target.starts_with("h2::")), "everything is turned on: {targets:?}");

    // None of these secrets is anywhere in the log.
    let mut secrets: BTreeSet<String> = [
        PASSWORD,
        WRONG_PASSWORD,
        "alice.liddell1",
        DATABASE_PASSWORD,
        "secret.example",
        "Pleasance",
        access,
        refresh,
        second["access_token"].as_str().unwrap(),
        second["refresh_token"].as_str().unwrap(),
        copied["refresh_token"].as_str().unwrap(),
        renewed["refresh_token"].as_str().unwrap(),
        renewed["access_token"].as_str().unwrap(),
        &hash,
        &secret,
        &secret[4..20],
        &STANDARD.encode(format!("{id}:{secret}")),
        &STANDARD.encode(format!("{secret}:{id}")),
    ]
    .map(String::from)
    .into();
    for token in
        [access, second["access_token"].as_str().unwrap(), refresh, second["refresh_token"].as_str().unwrap()]
    {
        // Not even a part of a token.
        let body = token.strip_prefix("v4.local.").or_else(|| token.strip_prefix("gpr_")).unwrap();
        secrets.insert(body[..16].to_owned());
    }
    for key in [KEY, OLDER_KEY] {
        secrets.insert(key.strip_prefix("k4.local.").unwrap()[..20].to_owned());
    }
    secrets.extend(hash.rsplit('$').take(2).map(String::from));
    for line in &said {
        for secret in &secrets {
            assert!(!line.contains(&**secret), "{secret} in {line}");
        }
    }

    // Nor is one in the spans, which also say nothing about where requests came from, or where they went beyond their
    // routes.
    let sent = collector.sent();
    for told in ["/users/login", "INSERT", "hash a password", "story-3"] {
        assert!(sent.contains(told), "{told} in no span");
    }
    let not_for_spans = ["203.0.113.77", "127.0.0.1", "/nope", "access_token=", "alice"];
    for secret in secrets.iter().map(String::as_str).chain(not_for_spans) {
        assert!(!sent.contains(secret), "{secret} in a span");
    }
}

#[tokio::test]
async fn internal_errors_are_logged_with_their_cause_and_request_id() {
    let app = App::new().await;
    let service = Service::start(&app.database_url, &[]).await;
    // A log that is limited to errors has the id, too.
    let quiet = Service::start(&app.database_url, &[("RUST_LOG", "error,gatepass::cli=info")]).await;
    // A fault in the schema, such as no release makes.
    sqlx::raw_sql("ALTER TABLE users RENAME COLUMN roles TO rolls").execute(&app.db).await.unwrap();
    let credentials = json!({"username": "alice", "password": PASSWORD});
    let request = reqwest::Client::new().post(service.url("/users/login")).header("x-request-id", "a-fault");
    let response = request.json(&credentials).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 500);
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["code"], "internal_error");
    assert_eq!(problem["request_id"], "a-fault");
    assert!(!problem.to_string().contains("column"), "{problem}");
    let request = reqwest::Client::new().post(quiet.url("/users/login")).header("x-request-id", "at-night");
    assert_eq!(request.json(&credentials).send().await.unwrap().status().as_u16(), 500);
    let away = "CREATE TABLE away AS SELECT * FROM _sqlx_migrations WHERE version = 1;
                DELETE FROM _sqlx_migrations WHERE version = 1";
    let back = "INSERT INTO _sqlx_migrations SELECT * FROM away";
    for (change, status) in [("SELECT", 200), (away, 503), (back, 200)] {
        sqlx::raw_sql(change).execute(&app.db).await.unwrap();
        for _ in 0..3 {
            assert_eq!(reqwest::get(service.url("/readyz")).await.unwrap().status().as_u16(), status);
        }
    }

    let said = service.stop().await;
    let events: Vec<Value> = said.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let fault = events.iter().find(|event| event["level"] == "ERROR").unwrap();
    assert_eq!(fault["request_id"], "a-fault", "{fault}");
    assert!(fault["cause"].as_str().unwrap().contains("column \"roles\""), "{fault}");
    // Of the probes, what has changed.
    let probes = events.iter().filter(|event| event["route"] == "/readyz" && event["message"] != "answered");
    let told: Vec<_> = probes.map(|event| (&event["level"], &event["message"], &event["reasons"])).collect();
    let unready = (&"WARN".into(), &"not ready".into(), &"schema: 1 migration(s) pending".into());
    assert_eq!(told, [unready, (&"INFO".into(), &"ready again".into(), &Value::Null)]);

    let said = quiet.stop().await;
    let mut events = said.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let fault = events.find(|event| event["level"] == "ERROR").unwrap();
    assert_eq!(fault["request_id"], "at-night", "{fault}");
}

#[tokio::test]
async fn a_proxy_that_nobody_named_is_logged_once() {
    let app = App::new().await;
    let unnamed = Service::start(&app.database_url, &[]).await;
    let another = Service::start(&app.database_url, &[("TRUSTED_PROXIES", "10.0.0.1")]).await;
    let http = reqwest::Client::new();
    let log_in = async |service: &Service, forwarded: Option<&str>| {
        let request = http.post(service.url("/users/login"));
        let request = match forwarded {
            Some(client) => request.header("x-forwarded-for", client),
            None => request,
        };
        let request = request.json(&json!({"username": "alice", "password": WRONG_PASSWORD}));
        assert_eq!(request.send().await.unwrap().status().as_u16(), 401);
    };
    log_in(&unnamed, None).await;
    for client in ["203.0.113.77", "203.0.113.78"] {
        log_in(&unnamed, Some(client)).await;
        log_in(&another, Some(client)).await;
    }

    let said = unnamed.stop().await;
    let warnings: Vec<_> = said.iter().filter(|line| line.contains("TRUSTED_PROXIES")).collect();
    let [warning] = warnings[..] else { panic!("{said:#?}") };
    let warning: Value = serde_json::from_str(warning).unwrap();
    assert_eq!(warning["level"], "WARN", "{warning}");
    assert!(!said.iter().any(|line| line.contains("203.0.113")), "{said:#?}");
    // The first request came without a proxy. The warning belongs to the second.
    let logins = said.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let logins: Vec<_> = logins.filter(|line| line["message"] == "answered").collect();
    assert_eq!(warning["request_id"], logins[1]["request_id"], "{said:#?}");
    // Where proxies are named, others are strangers, whose word counts for nothing.
    let said = another.stop().await;
    assert!(!said.iter().any(|line| line.contains("X-Forwarded-For")), "{said:#?}");
}

#[tokio::test]
async fn a_failed_start_is_logged_like_anything_else() {
    let nowhere = database().await.replace("/test_", "/nowhere_");
    let start = async |format| {
        let settings = [("DB_SOURCE", &*nowhere), ("TOKEN_SYMMETRIC_KEY", KEY), ("LOG_FORMAT", format)];
        Home::new().start(&settings).end().await.expect(1).stderr
    };
    let said = start("json").await;
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let errors: Vec<_> = lines.iter().filter(|line| line["level"] == "ERROR").collect();
    let [error] = errors[..] else { panic!("{said}") };
    let why = error["error"].as_str().unwrap();
    assert!(why.contains("it does not exist; create it") && why.contains("\"nowhere_"), "{why}");

    let said = start("pretty").await;
    assert!(said.contains("gatepass: the database at ") && said.contains("\n  because: "), "{said}");
    assert!(!said.contains("ERROR"), "{said}");
}
