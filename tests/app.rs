//! The test harness. An [`App`] is the real router over a real, migrated database of its own, with a clock that the
//! test moves. A test reads as a story of requests:
//!
//! ```ignore
//! let app = App::new().await;
//! app.register("alice").await;
//! let alice = app.login("alice").await;
//! app.get("/users/me").bearer(&alice).send().await.expect(200);
//! ```

use std::{
    env,
    error::Error,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header},
    routing::get,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use gatepass::{
    account::Clients,
    bearer::BearerLayer,
    cli::serve::{self, Pools},
    clock::Clock,
    config::{self, Settings, Sources},
    http::{self, Limits, Phase, Places, server},
    keys, random,
    store::{
        Source, migrations,
        roles::{self, Login, Sharing},
    },
    token::SymmetricKey,
};
use http_body_util::BodyExt;
use reqwest::Url;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, postgres::PgConnectOptions};
use time::{OffsetDateTime, macros::datetime};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{OnceCell, watch},
    task::JoinHandle,
    time::timeout,
};
use tower::ServiceExt;

use crate::process::until;

/// The time at which every test begins.
pub const START: OffsetDateTime = datetime!(2026-01-02 03:04:05.678901 UTC);

/// A password that every rule accepts.
pub const PASSWORD: &str = "secret-horse-battery-9";

/// The key of every test's service.
pub const KEY: &str = "k4.local.JKRqVqvl6j0UzdkslLRA1Gd4T1wYqbfVgBJcAZ9vWxM";

/// Longer than the service takes to stop, unless it hangs.
const STOP_PATIENCE: Duration = Duration::from_secs(8);

/// The service of one test.
pub struct App {
    pub clock: Clock,
    /// The test's own connections, with every privilege; the service connects as `gatepass_app`.
    pub db: PgPool,
    /// The database's URL, for a binary or for a connection that the test opens itself.
    pub database_url: String,
    pub router: Router,
    app: http::App,
    pools: Pools,
}

impl App {
    /// With the settings that make tests quick, and no others.
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With further settings, named as in `app.env`.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        Self::with_limits(settings, Limits::default()).await
    }

    /// With further settings and other limits.
    pub async fn with_limits(more: &[(&str, &str)], limits: Limits) -> Self {
        Self::start(database().await, KEY, Clock::fixed(START), more, limits).await.unwrap()
    }

    /// Over a database that already exists.
    pub async fn over(database_url: String, more: &[(&str, &str)]) -> Self {
        Self::start(database_url, KEY, Clock::fixed(START), more, Limits::default()).await.unwrap()
    }

    /// Another replica: the same database, clock and key.
    pub async fn replica(&self, more: &[(&str, &str)]) -> Self {
        self.replica_with_key(KEY, more).await
    }

    /// Another replica, whose key has been changed.
    pub async fn replica_with_key(&self, key: &str, more: &[(&str, &str)]) -> Self {
        self.try_replica(key, self.clock.clone(), more).await.unwrap()
    }

    /// Another replica with its own key and clock, or the reason that it does not start.
    pub async fn try_replica(
        &self,
        key: &str,
        clock: Clock,
        more: &[(&str, &str)],
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Self::start(self.database_url.clone(), key, clock, more, Limits::default()).await
    }

    async fn start(
        database_url: String,
        key: &str,
        clock: Clock,
        more: &[(&str, &str)],
        limits: Limits,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let key: SymmetricKey = key.parse().unwrap();
        let db = PgPool::connect_lazy(&database_url).unwrap();
        let pools = pools(&database_url);
        let app = serve::app(&settings(more), &key, pools.clone(), clock.clone(), limits).await?;
        app.feed.hear().await?;
        Ok(Self { clock, db, database_url, router: http::router(app.clone()), app, pools })
    }

    /// Registers `username`, makes them an administrator and logs them in.
    pub async fn login_admin(&self, username: &str) -> Value {
        let user = self.register(username).await;
        self.sql("UPDATE users SET roles = '{admin}' WHERE id = $1::uuid", &user["id"]).await;
        self.login(username).await
    }

    /// A pool on the same database, for a part of the service that the test calls directly.
    pub fn pool(&self) -> gatepass::store::PgPool {
        Source::new(&self.database_url.clone().into()).unwrap().pool(2)
    }

    /// Takes the database away from the service.
    pub async fn lose_database(&self) {
        self.pools.requests.close().await;
    }

    /// Runs a statement with an id (of a user, a session, …) as its `$1`.
    pub async fn sql(&self, statement: &'static str, id: &Value) {
        sqlx::query(statement).bind(id.as_str().unwrap()).execute(&self.db).await.unwrap();
    }

    /// The metrics, as operators scrape them.
    pub async fn scrape(&self) -> String {
        self.scrape_as("*/*").await
    }

    /// The metrics, for a scraper that sends this `Accept`.
    pub async fn scrape_as(&self, accept: &str) -> String {
        let answer = self.operators(Method::GET, "/metrics").header("accept", accept).send().await;
        assert_eq!(answer.status, StatusCode::OK);
        answer.body
    }

    /// A request to a route that only operators can reach.
    pub fn operators(&self, method: Method, path: &str) -> Story {
        Story { router: http::ops_router(self.app.clone()), ..self.request(method, path) }
    }

    /// The state behind the router, as `serve` has it.
    pub fn state(&self) -> &http::App {
        &self.app
    }

    /// Registers `username` with [`PASSWORD`] and an address at example.com.
    pub async fn register(&self, username: &str) -> Value {
        let body = json!({
            "username": username,
            "email": format!("{username}@example.com"),
            "password": PASSWORD,
        });
        self.post("/users").json(&body).send().await.expect(201)
    }

    /// Logs `username` in with [`PASSWORD`], and returns the whole answer.
    pub async fn login(&self, username: &str) -> Value {
        self.try_login(username, PASSWORD).await.expect(200)
    }

    /// Tries to log in.
    pub fn try_login(&self, username: &str, password: &str) -> impl Future<Output = Answer> + Send + use<> {
        self.post("/users/login").json(&json!({ "username": username, "password": password })).send()
    }

    /// Renews the session of these tokens, or tries to.
    pub fn renew(&self, tokens: &Value) -> impl Future<Output = Answer> + Send + use<> {
        self.post("/tokens/renew_access").json(&json!({ "refresh_token": tokens["refresh_token"] })).send()
    }

    /// Creates an introspection client, and returns its `client_id` and `client_secret`.
    pub async fn client(&self, name: &str) -> (String, String) {
        let clients = Clients::new(self.pool());
        let (client, secret) = clients.create(name, self.clock.now(), &mut random::system()).await.unwrap();
        (client.id.to_string(), secret.expose().to_owned())
    }

    /// What a service answers to this login's access token when all it has of this replica is what the replica holds in
    /// memory: its keys and its revocations. The answer is 200, or the refusal's status and code.
    pub async fn knock(&self, login: &Value) -> (u16, String) {
        let answer = self.door(login).send().await;
        let problem: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        let code = problem["code"].as_str().unwrap_or_default();
        (answer.status.as_u16(), code.to_owned())
    }

    /// The request that [`knock`](Self::knock) makes.
    pub fn door(&self, login: &Value) -> Story {
        let layer = BearerLayer::new(self.app.keys.verifier())
            .with_revocations(self.app.feed.revocations().clone())
            .with_clock(self.clock.clone());
        let router = Router::new().route("/", get(async || "")).layer(layer);
        Story { router, ..self.get("/").bearer(login) }
    }

    /// Reads the feed of revocations, as a replica does twice a second.
    pub async fn hear(&self) {
        self.app.feed.hear().await.unwrap();
    }

    /// Reads the keys, and rotates them if that is due, as a replica does twice a second. Here, what is wrong with a
    /// single key is an error.
    pub async fn refresh_keys(&self) -> Result<(), keys::Error> {
        let (keys, now) = (&self.app.keys, self.clock.now());
        let faults = keys.read(now).await?;
        keys.rotate_when_due(now).await?;
        faults.into_iter().next().map_or(Ok(()), Err)
    }

    /// Serves it on a port of its own, within `limits`.
    pub async fn serve(&self, limits: Limits) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (phase, says) = watch::channel(Phase::Serving);
        let done =
            tokio::spawn(server::serve(listener, self.router.clone(), None, Places::new(limits), says));
        Served { address, phase, done }
    }

    pub fn get(&self, path: &str) -> Story {
        self.request(Method::GET, path)
    }

    pub fn post(&self, path: &str) -> Story {
        self.request(Method::POST, path)
    }

    pub fn patch(&self, path: &str) -> Story {
        self.request(Method::PATCH, path)
    }

    pub fn request(&self, method: Method, path: &str) -> Story {
        let mut request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([192, 0, 2, 1], 4711))));
        Story { router: self.router.clone(), request }
    }
}

/// The service, listening on a port.
pub struct Served {
    pub address: SocketAddr,
    pub phase: watch::Sender<Phase>,
    /// Whether all requests were finished.
    pub done: JoinHandle<bool>,
}

impl Served {
    /// A connection on which these bytes have been sent.
    pub async fn send(&self, bytes: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream
    }

    /// Stops it, and returns whether all requests were finished.
    pub async fn stop(self) -> bool {
        self.phase.send(Phase::Closing).unwrap();
        timeout(STOP_PATIENCE, self.done).await.unwrap().unwrap()
    }
}

/// Settings for a test: development, with password hashes that cost nothing.
pub fn settings(more: &[(&str, &str)]) -> Settings {
    let mut environment = vec![
        ("ARGON2_MEMORY_KIB", "8"),
        ("ARGON2_ITERATIONS", "1"),
        ("ARGON2_PARALLELISM", "1"),
        ("PASSWORD_HASH_THREADS", "2"),
        // Every request comes from one address.
        ("LOGIN_ATTEMPTS_PER_ACCOUNT", "100000/15m"),
        ("LOGIN_ATTEMPTS_PER_IP", "100000/15m"),
        // In a test nothing reads the feed in the background, and the clock leaps.
        ("REVOCATION_MAX_STALENESS", "365d"),
    ];
    environment.extend_from_slice(more);
    // There is no app.env there.
    let working_dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    config::load(Sources { working_dir, config_file: None, environment, cores: 2 }).unwrap().settings
}

/// The service's pools, with no more privileges than in production.
fn pools(database_url: &str) -> Pools {
    let db = Source::new(&as_role(database_url, roles::APP).into()).unwrap().pool(8);
    Pools { requests: db.clone(), background: db.clone(), feed: db.clone(), keys: db }
}

/// The URL of the same database for another role.
pub fn as_role(database_url: &str, role: &str) -> String {
    use sqlx::ConnectOptions;

    let options: PgConnectOptions = database_url.parse().unwrap();
    options.username(role).to_url_lossy().to_string()
}

/// Creates a database for one test, with the whole schema and the roles, and returns its URL.
pub async fn database() -> String {
    static TEMPLATE: OnceCell<()> = OnceCell::const_new();
    TEMPLATE
        .get_or_init(async || {
            let name = template();
            admin(&format!(r#"CREATE DATABASE "{name}""#)).await;
            set_up(&url_of(&name)).await;
        })
        .await;
    let url = new_database(&format!(r#"TEMPLATE "{}""#, template())).await;
    // Privileges on a database are not copied from its template.
    let options: PgConnectOptions = url.parse().unwrap();
    admin(&format!(r#"GRANT CREATE ON DATABASE "{}" TO {}"#, options.get_database().unwrap(), roles::OWNER))
        .await;
    url
}

/// Creates the whole schema and the roles in an empty database.
pub async fn set_up(database_url: &str) {
    let mut conn = PgConnection::connect(database_url).await.unwrap();
    migrations::up(&mut conn, None).await.unwrap();
    let mut rng = random::system();
    roles::set_up(&mut conn, Login::Otherwise, Sharing::Allowed, &mut rng).await.unwrap();
    conn.close().await.unwrap();
}

/// Creates an empty database for one test, and returns its URL.
pub async fn empty_database() -> String {
    new_database("").await
}

async fn new_database(options: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    admin(&format!(r#"CREATE DATABASE "{name}" {options}"#)).await;
    url_of(&name)
}

fn template() -> String {
    format!("template_{}", std::process::id())
}

/// Waits until nobody is connected to a database. The server takes a moment to notice clients that have just hung up.
pub async fn nobody_is_connected(database_url: &str) {
    let options: PgConnectOptions = database_url.parse().unwrap();
    let mut conn = PgConnection::connect(&server_url()).await.unwrap();
    until("nobody is connected", async || {
        let nobody = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity
                                         WHERE datname = $1 AND backend_type = 'client backend')";
        sqlx::query_scalar(nobody).bind(options.get_database()).fetch_one(&mut conn).await.unwrap()
    })
    .await;
}

/// Runs SQL on the server, outside every test's database.
pub async fn admin(sql: &str) {
    let mut conn = PgConnection::connect(&server_url()).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

fn server_url() -> String {
    env::var("DATABASE_URL")
        .expect("tests need a Postgres: run `make test`, or `scripts/with-postgres cargo test`")
}

/// A Postgres client program, such as `pg_dump`, with arguments that point it at the database at `url`.
pub fn postgres_program(name: &str, url: &str) -> Command {
    let ensure = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/ensure-postgres");
    let bin = Command::new(ensure).arg("--print-bindir").output().unwrap();
    let program = Path::new(String::from_utf8(bin.stdout).unwrap().trim()).join(name);
    let options: PgConnectOptions = url.parse().unwrap();
    let mut command = Command::new(if program.exists() { &program } else { Path::new(name) });
    command.arg("--host").arg(options.get_socket().map_or(Path::new(options.get_host()), |socket| socket));
    command.args(["--port", &options.get_port().to_string(), "--username", options.get_username()]);
    command.args(["--dbname", options.get_database().unwrap()]);
    command
}

/// The URL of the database `name` on this run's server.
fn url_of(name: &str) -> String {
    use sqlx::ConnectOptions;

    let options: PgConnectOptions = server_url().parse().unwrap();
    options.database(name).to_url_lossy().to_string()
}

/// A request being built.
pub struct Story {
    router: Router,
    request: Request<Body>,
}

impl Story {
    pub fn header(mut self, name: &str, value: impl TryInto<HeaderValue, Error: std::fmt::Debug>) -> Self {
        let name = header::HeaderName::try_from(name).unwrap();
        self.request.headers_mut().append(name, value.try_into().unwrap());
        self
    }

    /// With the access token from the answer to a login.
    pub fn bearer(self, login: &Value) -> Self {
        let token = login["access_token"].as_str().unwrap().to_owned();
        self.token(&token)
    }

    pub fn token(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    /// With the credentials of a client.
    pub fn client(self, (id, secret): &(String, String)) -> Self {
        self.header("authorization", format!("Basic {}", STANDARD.encode(format!("{id}:{secret}"))))
    }

    pub fn form(self, parameters: &[(&str, &str)]) -> Self {
        let body = serde_urlencoded::to_string(parameters).unwrap();
        self.header("content-type", "application/x-www-form-urlencoded").body(body)
    }

    pub fn body(mut self, body: impl Into<Body>) -> Self {
        *self.request.body_mut() = body.into();
        self
    }

    /// As if the connection came from `peer`.
    pub fn peer(mut self, peer: &str) -> Self {
        self.request.extensions_mut().insert(ConnectInfo(SocketAddr::new(peer.parse().unwrap(), 4711)));
        self
    }

    pub async fn send(self) -> Answer {
        let response = self.router.oneshot(self.request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }
}

/// The response to a request.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// Asserts the status, and returns the JSON body; `null` if it is empty.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        if self.body.is_empty() { Value::Null } else { serde_json::from_str(&self.body).unwrap() }
    }

    /// Asserts that the answer is a problem document with this status and code, and with everything that all of them
    /// have; returns the document.
    #[track_caller]
    pub fn expect_problem(self, status: u16, code: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.body);
        let request_id = self.header("x-request-id").to_owned();
        let problem: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["request_id"], request_id, "{problem}");
        for member in ["type", "title", "detail"] {
            assert!(problem[member].is_string(), "{problem}");
        }
        problem
    }

    /// Where `Location` leads a client that asked for `path`. Asserts that it leads to the same place when a proxy
    /// serves gatepass below a path prefix.
    #[track_caller]
    pub fn location(&self, path: &str) -> String {
        let leads = |base: &str| {
            let asked: Url = format!("https://example.com{base}{path}").parse().unwrap();
            asked.join(self.header("location")).unwrap().path().to_owned()
        };
        let location = leads("");
        assert_eq!(leads("/auth"), format!("/auth{location}"));
        location
    }

    /// A header field's value; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}
