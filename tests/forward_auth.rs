//! Forward auth: a proxy that asks `/auth/verify` lets the right users through and nobody else, whatever the client
//! sends. The route is tested by itself first, over the router and on a socket. Then the real nginx, Traefik and Envoy
//! stand in front of an application, with the configurations from `docs/forward-auth.md`.
//!
//! nginx is found as tests/nginx.rs describes, Traefik and Envoy through `GATEPASS_TEST_TRAEFIK` and
//! `GATEPASS_TEST_ENVOY`, which `make test` sets (`scripts/test-proxy`). If one is missing, its test fails in CI;
//! elsewhere it reports that it has not run.

use std::{
    fs,
    net::{self, SocketAddr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use aws_lc_rs::digest;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, Method, StatusCode},
};
use gatepass::http::Limits;
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    app::{Answer, App, START, Served},
    nginx::Nginx,
    not_tested::named_by,
    process::until,
};

const IDENTITY: [&str; 5] =
    ["x-auth-subject", "x-auth-user", "x-auth-roles", "x-auth-session", "x-auth-expires"];

/// Longer than anything here takes, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two users with roles and one without.
struct Users {
    alice: Value,
    editor: Value,
    admin: Value,
}

impl Users {
    async fn new(app: &App) -> Self {
        app.register("alice").await;
        let editor = app.register("editor").await;
        app.sql("UPDATE users SET roles = '{billing:read,editor}' WHERE id = $1::uuid", &editor["id"]).await;
        Self {
            alice: app.login("alice").await,
            editor: app.login("editor").await,
            admin: app.login_admin("root").await,
        }
    }
}

#[track_caller]
fn assert_passes(answer: &Answer, login: &Value) {
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.body);
    assert_eq!(answer.body, "");
    for name in ["set-cookie", "location", "content-type", "access-control-allow-origin", "vary"] {
        assert!(!answer.headers.contains_key(name), "{answer:?}");
    }
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_identity(&answer.headers, login);
}

/// Asserts that all five fields are there, once each, and describe this login, made at [`START`].
#[track_caller]
fn assert_identity(headers: &HeaderMap, login: &Value) {
    let roles: Vec<_> =
        login["user"]["roles"].as_array().unwrap().iter().map(|role| role.as_str().unwrap()).collect();
    let expires = (START.unix_timestamp() + 15 * 60).to_string();
    let expected = [
        login["user"]["id"].as_str().unwrap(),
        login["user"]["username"].as_str().unwrap(),
        &roles.join(","),
        login["session_id"].as_str().unwrap(),
        &expires,
    ];
    for (name, expected) in IDENTITY.into_iter().zip(expected) {
        let values: Vec<_> = headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        // Some proxies leave out a field whose value is empty.
        assert!(values == [expected] || (values.is_empty() && expected.is_empty()), "{name}: {headers:?}");
    }
}

#[tokio::test]
async fn a_request_of_any_method_passes_only_with_a_good_token() {
    let app = App::with(&[("ALLOWED_ORIGINS", "https://app.example")]).await;
    let users = Users::new(&app).await;
    let addresses = ["/auth/verify", "/auth/verify/", "/auth/verify/a", "/auth/verify//a/../b%2F%00?x=%ff&y"];
    for method in [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get",
        "X-!",
    ] {
        let method: Method = method.parse().unwrap();
        for address in addresses {
            // Like a preflight, from a page that may call gatepass itself.
            let request = || {
                app.request(method.clone(), address)
                    .header("origin", "https://app.example")
                    .header("access-control-request-method", "POST")
                    .header("cookie", "session=1")
            };
            assert_passes(&request().bearer(&users.alice).send().await, &users.alice);

            let answer = request().send().await;
            assert_eq!(answer.header("www-authenticate"), "Bearer", "{method} {address}");
            assert_eq!(answer.header("access-control-allow-origin"), "");
            assert_eq!(answer.status.as_u16(), 401, "{method} {address}");
            if method == Method::HEAD {
                continue;
            }
            answer.expect_problem(401, "missing_token");
            let answer = request().token("garbage").send().await;
            assert!(answer.header("www-authenticate").contains("invalid_token"), "{method} {address}");
            answer.expect_problem(401, "invalid_token");
        }
    }
    for other in ["/auth", "/auth/", "/auth/verifyx", "/auth/verify%2Fa"] {
        app.get(other).bearer(&users.alice).send().await.expect_problem(404, "not_found");
    }
    app.clock.advance(time::Duration::minutes(15));
    let late = app.get("/auth/verify").bearer(&users.alice).send().await;
    late.expect_problem(401, "token_expired");
}

#[tokio::test]
async fn one_of_the_roles_is_needed() {
    let app = App::new().await;
    let Users { alice, editor, admin } = Users::new(&app).await;
    // Whether alice, editor and admin pass.
    for (demand, passing) in [
        ("?role=admin", [false, false, true]),
        ("?role=editor", [false, true, false]),
        ("?role=admin&role=editor", [false, true, true]),
        ("?role=billing%3Aread", [false, true, false]),
        ("?role=nobody", [false; 3]),
        ("?role=", [false; 3]),
        ("?role=*", [false; 3]),
        ("?role=admin,editor", [false; 3]),
        ("?page=2", [true; 3]),
        // The operator's query and the client's in one.
        ("?role=admin&page=2", [false; 3]),
        ("?role=admin&uri=/x?role=editor", [false; 3]),
        ("?role=admin/x&role=editor", [false; 3]),
    ] {
        for address in [format!("/auth/verify{demand}"), format!("/auth/verify/x/role=admin{demand}")] {
            for (login, passes) in [&alice, &editor, &admin].into_iter().zip(passing) {
                let answer = app.post(&address).bearer(login).send().await;
                if passes {
                    assert_passes(&answer, login);
                } else {
                    assert!(IDENTITY.iter().all(|name| answer.header(name).is_empty()), "{address}");
                    answer.expect_problem(403, "forbidden");
                }
            }
            app.get(&address).send().await.expect_problem(401, "missing_token");
        }
    }
    // A parameter that was meant to be `role` must not let everybody in. On a path below, it is the client's own.
    for demand in ["?roles=admin", "?Role=admin", "?role[]=admin", "?role%20=admin", "?page=2&Roles=admin"] {
        for login in [&alice, &editor, &admin] {
            let answer = app.get(&format!("/auth/verify{demand}")).bearer(login).send().await;
            let problem = answer.expect_problem(403, "forbidden");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("`roles`") && detail.contains("`?role=admin`"), "{detail}");
            let answer = app.get(&format!("/auth/verify/x{demand}")).bearer(login).send().await;
            assert_passes(&answer, login);
        }
    }
    // When the path names the roles, the client's part has no say.
    for (address, passing) in [
        ("/auth/verify/role=admin", [false, false, true]),
        ("/auth/verify/role=admin/", [false, false, true]),
        ("/auth/verify/role=admin//x?role=editor", [false, false, true]),
        ("/auth/verify/role=admin//role=editor/", [false, false, true]),
        ("/auth/verify/role=admin//../role=*/", [false, false, true]),
        ("/auth/verify/role=admin&role=editor//x", [false, true, true]),
        ("/auth/verify/role=*//x?role=admin", [true; 3]),
        ("/auth/verify/role=//x", [false; 3]),
        ("/auth/verify/role=admin*//x", [false; 3]),
    ] {
        for (login, passes) in [&alice, &editor, &admin].into_iter().zip(passing) {
            let answer = app.get(address).bearer(login).send().await;
            assert_eq!(answer.status.as_u16(), if passes { 200 } else { 403 }, "{address}");
        }
    }
}

#[tokio::test]
async fn identity_headers_sent_by_the_client_are_not_returned() {
    let app = App::new().await;
    let Users { alice, .. } = Users::new(&app).await;
    let mut request = app.get("/auth/verify").bearer(&alice);
    for name in IDENTITY {
        request = request.header(name, "admin");
    }
    assert_passes(&request.header("x-auth-anything", "admin").send().await, &alice);
    let refused = app.get("/auth/verify").header("x-auth-user", "admin").send().await;
    assert!(IDENTITY.iter().all(|name| refused.header(name).is_empty()), "{refused:?}");
}

#[tokio::test]
async fn the_request_body_is_never_read_whatever_its_size() {
    let app = App::new().await;
    let Users { alice, .. } = Users::new(&app).await;
    let unreadable =
        || Body::new(Full::<Bytes>::from("x").map_frame(|_| -> Frame<Bytes> { panic!("the body was read") }));
    for address in ["/auth/verify", "/auth/verify/x"] {
        let request = || app.post(address).bearer(&alice).body(unreadable());
        assert_passes(&request().send().await, &alice);
        for length in ["1048576", "18446744073709551615", "-1", "many"] {
            assert_passes(&request().header("content-length", length).send().await, &alice);
        }
    }
}

#[tokio::test]
async fn an_unsent_body_does_not_delay_the_answer() {
    let app = App::new().await;
    let Users { alice, .. } = Users::new(&app).await;
    let gatepass = app.serve(Limits::default()).await;
    let token = alice["access_token"].as_str().unwrap();
    let head = |more: &str| {
        format!("POST /auth/verify HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n{more}\r\n")
    };
    // A body that is declared and never sent.
    for more in ["Content-Length: 1048576\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut stream = gatepass.send(&head(more)).await;
        let answer = read_head(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{more}: {answer}");
    }
    // A client that asks whether to send its body is not told to.
    let mut stream = gatepass.send(&head("Content-Length: 1048576\r\nExpect: 100-continue\r\n")).await;
    let answer = read_head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // After a small body, or none, the next request uses the same connection.
    let mut stream = TcpStream::connect(gatepass.address).await.unwrap();
    for (more, body) in [("Content-Length: 4\r\n", "body"), ("Content-Length: 0\r\n", ""), ("", "")] {
        stream.write_all(format!("{}{body}", head(more)).as_bytes()).await.unwrap();
        let answer = read_head(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("connection: close"), "{answer}");
    }
    // A large body that is sent all the same costs the connection, not the answer.
    let mut stream = gatepass.send(&head("Content-Length: 1048576\r\n")).await;
    stream.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    gatepass.stop().await;
}

/// The head of an answer without a body.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let byte = timeout(PATIENCE, stream.read_u8()).await.expect("hangs");
        answer.push(byte.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&answer))));
    }
    String::from_utf8(answer).unwrap()
}

/// The application behind the proxy. It keeps what arrived, and answers with a digest of the body; at `/download`, with
/// a large body.
struct Application {
    address: SocketAddr,
    arrived: Arc<Mutex<Vec<(Method, String, HeaderMap)>>>,
}

const MUCH: &[u8] = &[b'x'; 1_000_000];

/// The length and the SHA-256 of a body.
///
/// It keeps the answer to a large upload short. Go's server begins to send an answer of more than 2 KB at once, and
/// then drains the rest of the request itself. That races with Go's client, which reads once more to see the end, and
/// the answer breaks off (golang/go#40747). This happens behind Traefik, however late the application answers.
fn in_short(body: &[u8]) -> String {
    format!("{} {:?}", body.len(), digest::digest(&digest::SHA256, body))
}

impl Application {
    async fn new() -> Self {
        type Arrived = Arc<Mutex<Vec<(Method, String, HeaderMap)>>>;
        let arrived = Arrived::default();
        let answer = async |State(arrived): State<Arrived>, request: Request| {
            let (parts, body) = request.into_parts();
            // The whole body is read before the answer begins: Traefik does not pass on both at once.
            let body = body.collect().await.unwrap().to_bytes();
            let answer: Bytes = if parts.uri == "/download" { MUCH.into() } else { in_short(&body).into() };
            arrived.lock().unwrap().push((parts.method, parts.uri.to_string(), parts.headers));
            answer
        };
        let router =
            Router::new().fallback(answer).layer(DefaultBodyLimit::disable()).with_state(arrived.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { address, arrived }
    }

    /// What has arrived since the last call.
    fn take(&self) -> Vec<(Method, String, HeaderMap)> {
        std::mem::take(&mut *self.arrived.lock().unwrap())
    }
}

/// Everything that a proxy must do, asked of one that listens on the Unix socket at `socket` and answers with the
/// status `gone` when gatepass does not answer.
async fn story(socket: &Path, app: &App, gatepass: Served, application: &Application, gone: u16) {
    let Users { alice, editor, admin } = Users::new(app).await;
    let client = reqwest::Client::builder().unix_socket(socket).build().unwrap();
    // Forget the requests that checked whether the proxy was up.
    application.take();
    let request = |method: Method, path: &str| client.request(method, format!("http://app.example{path}"));
    let bearer = |request: reqwest::RequestBuilder, login: &Value| {
        request.bearer_auth(login["access_token"].as_str().unwrap())
    };

    // Without a token nothing reaches the application, and the client is told how to authenticate.
    for path in ["/", "/x?role=admin", "/admin/", "/_gatepass", "/auth/verify"] {
        for method in [Method::GET, Method::POST, Method::DELETE, Method::OPTIONS] {
            let answer = request(method.clone(), path)
                .header("origin", "https://app.example")
                .header("access-control-request-method", "POST")
                .send()
                .await
                .unwrap();
            if path == "/_gatepass" && answer.status() == 404 {
                continue; // nginx's own location, which only nginx may request
            }
            assert_eq!(answer.status().as_u16(), 401, "{method} {path}");
            assert_eq!(answer.headers()["www-authenticate"], "Bearer", "{method} {path}");
        }
    }
    let answer = request(Method::GET, "/").bearer_auth("garbage").send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 401);
    assert!(answer.headers()["www-authenticate"].to_str().unwrap().contains("invalid_token"));
    assert!(application.take().is_empty());

    // With a token everything arrives, under the user's identity and not under one that the client claims.
    for login in [&alice, &editor, &admin] {
        for (method, path) in [
            (Method::GET, "/"),
            (Method::POST, "/x/y?role=admin&page=2"),
            (Method::DELETE, "/x%20y"),
            (Method::OPTIONS, "/role=admin/x"),
        ] {
            let mut request = bearer(request(method.clone(), path), login);
            for name in IDENTITY {
                request = request.header(name, "admin").header(name, "root").header(name.to_uppercase(), "x");
            }
            let answer = request.body(MUCH).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 200, "{method} {path}");
            assert_eq!(answer.text().await.unwrap(), in_short(MUCH));
            let [(arrived, at, headers)] = &application.take()[..] else { panic!("not one") };
            assert_eq!((arrived, &**at), (&method, path));
            assert_identity(headers, login);
            assert!(!headers.contains_key("authorization"), "{headers:?}");
        }
    }
    let answer = bearer(request(Method::GET, "/download"), &alice).send().await.unwrap();
    assert!(answer.bytes().await.unwrap() == MUCH);
    application.take();

    // Roles, and a client that tries to choose them.
    for (login, status) in [(&alice, 403), (&editor, 403), (&admin, 200)] {
        for path in ["/admin/", "/admin/x?role=editor", "/admin/role=*/?role=*", "/admin/?&role=editor"] {
            let answer = bearer(request(Method::POST, path), login).body("body").send().await.unwrap();
            assert_eq!(answer.status().as_u16(), status, "{path}");
        }
    }
    for (_, path, headers) in application.take() {
        assert!(path.starts_with("/admin/"), "{path}");
        assert_identity(&headers, &admin);
    }

    // The same, however the path is written.
    for path in ["//admin/", "/admin//x", "/%61dmin/", "/x/../admin/", "/./admin/x", "/x/%2e%2e/admin/"] {
        for (login, passes) in [(&alice, false), (&admin, true)] {
            let status = raw(socket, login, path, "").await;
            assert_eq!(status, if passes { 200 } else { 403 }, "{path}");
        }
    }
    application.take();

    // Fields whose names some applications read as ours, or that the client declares to be hop-by-hop.
    for more in [
        "X_Auth_User: root\r\n",
        "X-Auth_User: root\r\n",
        "X.Auth.User: root\r\n",
        "X-Auth~User: root\r\n",
        "Connection: x-auth-subject, X-Auth-Roles\r\n",
    ] {
        for (path, is_open) in [("/", false), ("/public/", true)] {
            let status = raw(socket, &editor, path, more).await;
            let arrived = application.take();
            assert_eq!(status == 200, arrived.len() == 1, "{more}: {status}");
            for (_, _, headers) in arrived {
                if !is_open {
                    assert_identity(&headers, &editor);
                }
                assert!(headers.values().all(|value| value != "root"), "{headers:?}");
            }
        }
    }

    // A WebSocket's handshake is a request like any other.
    for protocol in ["websocket", "WebSocket"] {
        let handshake =
            format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\nSec-WebSocket-Version: 13\r\n");
        assert_eq!(raw(socket, &alice, "/admin/", &handshake).await, 403);
        assert_eq!(raw(socket, &alice, "/", &handshake).await, 200);
        let [(_, _, headers)] = &application.take()[..] else { panic!("not one") };
        assert!(headers["upgrade"].as_bytes().eq_ignore_ascii_case(b"websocket"), "{headers:?}");
        assert!(headers["connection"].as_bytes().eq_ignore_ascii_case(b"upgrade"), "{headers:?}");
        assert_identity(headers, &alice);
    }

    // No other upgrade arrives. Nobody would check the requests on a connection that has become HTTP/2.
    for protocols in TO_HTTP2 {
        for path in ["/", "/public/"] {
            let status = raw(socket, &alice, path, &to_http2(protocols)).await;
            // A proxy may refuse to choose, but must serve a client that offers HTTP/2 to every server.
            assert!(status == 200 || protocols.contains("websocket"), "{protocols}: {status}");
            let arrived = application.take();
            assert_eq!(status == 200, arrived.len() == 1, "{protocols}: {status}");
            assert!(arrived.iter().all(|(_, _, headers)| !headers.contains_key("upgrade")), "{arrived:?}");
        }
    }

    // Where gatepass is not asked, no request carries an identity.
    let mut open = bearer(request(Method::GET, "/public/"), &alice);
    for name in IDENTITY {
        open = open.header(name, "admin");
    }
    assert_eq!(open.send().await.unwrap().status().as_u16(), 200);
    let [(_, _, headers)] = &application.take()[..] else { panic!("not one") };
    assert!(IDENTITY.iter().all(|name| !headers.contains_key(*name)), "{headers:?}");

    // If gatepass is gone, or cannot tell, nobody gets in.
    let address = gatepass.address;
    gatepass.stop().await;
    let closed = async |status: u16| {
        for path in ["/", "/admin/"] {
            let answer = bearer(request(Method::GET, path), &admin).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), status, "{path}");
        }
        assert!(application.take().is_empty());
    };
    closed(gone).await;
    let listener = TcpListener::bind(address).await.unwrap();
    let at_a_loss = Router::new().fallback(async || StatusCode::SERVICE_UNAVAILABLE);
    tokio::spawn(async { axum::serve(listener, at_a_loss).await });
    closed(503).await;
    // Routes for which gatepass is not asked keep working.
    assert_eq!(request(Method::GET, "/public/").send().await.unwrap().status().as_u16(), 200);
}

/// The status of a `GET` whose path and header fields are sent as they are.
async fn raw(socket: &Path, login: &Value, path: &str, more: &str) -> u16 {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let token = login["access_token"].as_str().unwrap();
    let head =
        format!("GET {path} HTTP/1.1\r\nHost: app.example\r\nAuthorization: Bearer {token}\r\n{more}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    head.strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .unwrap_or_else(|| panic!("{head}"))
}

/// What a client may write in `Upgrade` to get HTTP/2 without TLS. The last one sends the field twice.
const TO_HTTP2: [&str; 6] =
    ["h2c", "H2C", "h2c, websocket", "websocket, h2c", "websocket,H2C", "h2c\r\nUpgrade: websocket"];

/// The header fields of a request to continue in HTTP/2.
fn to_http2(protocols: &str) -> String {
    format!(
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocols}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    )
}

/// The code block of `docs/forward-auth.md` in this language that begins with this line.
fn documented(language: &str, beginning: &str) -> String {
    let page = include_str!("../docs/forward-auth.md");
    let (_, rest) = page.split_once(&format!("\n```{language}\n{beginning}\n")).unwrap();
    format!("{beginning}\n{}", rest.split_once("```").unwrap().0)
}

/// Replaces every `from` with `to`; there must be at least one.
fn replace(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no {from:?} in:\n{text}");
    text.replace(from, to)
}

/// Starts a proxy, and waits until a request through `socket` reaches the application on a route that is open to all.
async fn start(command: &mut Command, stdin: Stdio, socket: &Path, log: &Path) -> Running {
    let client = reqwest::Client::builder().unix_socket(socket).build().unwrap();
    let log_file = fs::File::create(log).unwrap();
    let mut child = command
        .stdin(stdin)
        .stdout(log_file.try_clone().unwrap())
        .stderr(log_file)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    until("the proxy serves", async || {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?}: {}", fs::read_to_string(log).unwrap());
        let answer = client.get("http://app.example/public/").send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    Running { _child: child, log: log.to_owned() }
}

/// A proxy that runs until this is dropped, which prints its log if the test fails.
struct Running {
    _child: Child,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

#[tokio::test]
async fn behind_nginx() {
    let app = App::new().await;
    let gatepass = app.serve(Limits::default()).await;
    let application = Application::new().await;
    let nginx = Nginx::start("forward auth by nginx", |listen| {
        let mut site = documented("nginx", "upstream gatepass {");
        site = replace(&site, "gatepass:8080", &gatepass.address.to_string());
        site = replace(&site, "app:3000", &application.address.to_string());
        replace(&site, "listen 80;", listen)
    });
    let Some(nginx) = nginx.await else { return };
    story(&nginx.socket(), &app, gatepass, &application, 503).await;
}

#[tokio::test]
async fn the_snippet_for_ingress_nginx_refuses_every_upgrade_but_websocket() {
    let application = Application::new().await;
    let nginx = Nginx::start("the snippet for ingress-nginx", |listen| {
        let values = documented("yaml", "controller:");
        let (_, snippet) = values.split_once("server-snippet: |\n").unwrap();
        // What ingress-nginx itself writes about upgrades.
        format!(
            "map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
             server {{
                 {listen}
                 {snippet}
                 location / {{
                     proxy_pass http://{};
                     proxy_http_version 1.1;
                     proxy_set_header Upgrade $http_upgrade;
                     proxy_set_header Connection $connection_upgrade;
                 }}
             }}",
            application.address
        )
    });
    let Some(nginx) = nginx.await else { return };
    let anyone = json!({ "access_token": "" });
    for upgrade in ["", "Upgrade: websocket\r\n", "Upgrade: WebSocket\r\n"] {
        assert_eq!(raw(&nginx.socket(), &anyone, "/", upgrade).await, 200, "{upgrade}");
    }
    application.take();
    for protocols in TO_HTTP2 {
        assert_eq!(raw(&nginx.socket(), &anyone, "/", &to_http2(protocols)).await, 400, "{protocols}");
    }
    assert!(application.take().is_empty());
}

#[tokio::test]
async fn behind_traefik() {
    let Some(traefik) = named_by("GATEPASS_TEST_TRAEFIK", "forward auth by Traefik") else { return };
    let app = App::new().await;
    let gatepass = app.serve(Limits::default()).await;
    let application = Application::new().await;
    let dir = TempDir::with_prefix("gatepass-traefik-").unwrap();
    let path = dir.path().to_str().unwrap();

    let mut entry = documented("yaml", "entryPoints:");
    entry = replace(&entry, "/etc/traefik", path);
    entry.push_str("global: { checkNewVersion: false }\n");
    let file = dir.path().join("traefik.yaml");
    fs::write(&file, entry).unwrap();
    let mut routes = documented("yaml", "http:");
    routes = replace(&routes, "gatepass:8080", &gatepass.address.to_string());
    routes = replace(&routes, "app:3000", &application.address.to_string());
    routes = replace(&routes, "app.example.com", "app.example");
    fs::write(dir.path().join("app.yaml"), routes).unwrap();

    // Traefik cannot listen on a Unix socket. It accepts a TCP socket as systemd passes one: as file descriptor 3 of
    // the process whose id is in the environment.
    let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = dir.path().join("socket");
    pass_on(&socket, listener.local_addr().unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", r#"LISTEN_PID=$$ exec "$0" --configFile="$1" 3<&0"#]).arg(traefik).arg(file);
    command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "web");
    let listener = OwnedFd::from(listener).into();
    let _running = start(&mut command, listener, &socket, &dir.path().join("log")).await;
    story(&socket, &app, gatepass, &application, 500).await;
}

/// Forwards connections to the Unix socket at `socket` to `address`.
fn pass_on(socket: &Path, address: SocketAddr) {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut proxy = TcpStream::connect(address).await?;
                copy_bidirectional(&mut client, &mut proxy).await
            });
        }
    });
}

#[tokio::test]
async fn behind_envoy() {
    for is_prefix in [false, true] {
        let Some(envoy) = named_by("GATEPASS_TEST_ENVOY", "forward auth by Envoy") else { return };
        let app = App::new().await;
        let gatepass = app.serve(Limits::default()).await;
        let application = Application::new().await;
        let dir = TempDir::with_prefix("gatepass-envoy-").unwrap();
        let path = dir.path().to_str().unwrap();

        let mut config = documented("yaml", "static_resources:");
        for (name, port, address) in
            [("gatepass", 8080, gatepass.address), ("app", 3000, application.address)]
        {
            let to = format!("address: 127.0.0.1, port_value: {}", address.port());
            config = replace(&config, &format!("address: {name}, port_value: {port}"), &to);
        }
        let listen = "{ socket_address: { address: 0.0.0.0, port_value: 80 } }";
        config = replace(&config, listen, &format!("{{ pipe: {{ path: {path}/socket }} }}"));
        if is_prefix {
            let prefix = "path_prefix: /auth/verify/role=admin/";
            config = replace(&config, "path_override: /auth/verify?role=admin", prefix);
            config = replace(&config, "path_override: /auth/verify\n", "path_prefix: /auth/verify/role=*/\n");
        }
        let file = dir.path().join("envoy.yaml");
        fs::write(&file, config).unwrap();
        let socket = dir.path().join("socket");
        let mut command = Command::new(envoy);
        command
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning", "-c"])
            .arg(file);
        let _running = start(&mut command, Stdio::null(), &socket, &dir.path().join("log")).await;
        story(&socket, &app, gatepass, &application, 503).await;
    }
}
