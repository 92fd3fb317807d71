//! Replicas behind nginx are replaced one after the other under load, and no request fails, whatever its method. When
//! one is killed, only the requests that it was answering fail. A request that may have been carried out, and must not
//! be carried out twice, is not sent again. The configuration of nginx is the one in docs/rolling-updates.md.
//!
//! `make drill` runs more rounds.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};
use tokio::{io::AsyncReadExt, net::TcpListener, task::JoinSet, time::sleep};

use crate::{
    app::{KEY, PASSWORD, database},
    nginx::Nginx,
    process::{Home, Port, Process, Signal, is_drill, until},
};

const REPLICAS: usize = 3;
const CLIENTS: usize = 6;

/// Three replicas on one database, behind nginx.
struct Fleet {
    home: Home,
    settings: Vec<(&'static str, String)>,
    /// Kept reserved while a replica is away.
    ports: Vec<Port>,
    replicas: Vec<Process>,
    nginx: Nginx,
}

impl Fleet {
    async fn new(what_for: &str, settings: &[(&'static str, &str)]) -> Option<Self> {
        let ports: Vec<_> = (0..REPLICAS).map(|_| Port::reserve()).collect();
        let nginx = start_nginx(what_for, ports.iter().map(Port::address)).await?;
        let url = database().await;
        let mut settings: Vec<_> =
            settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        settings.extend([
            ("DB_SOURCE", url),
            ("TOKEN_SYMMETRIC_KEY", KEY.to_owned()),
            ("TRUSTED_PROXIES", "127.0.0.1".to_owned()),
        ]);
        let mut fleet = Self { home: Home::new(), settings, ports, replicas: Vec::new(), nginx };
        for i in 0..REPLICAS {
            let replica = fleet.start(i).await;
            fleet.replicas.push(replica);
        }
        Some(fleet)
    }

    async fn start(&self, i: usize) -> Process {
        let address = self.ports[i].address().to_string();
        let mut settings: Vec<_> =
            self.settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        settings.push(("HTTP_SERVER_ADDRESS", &address));
        let replica = self.home.serve(&settings).await;
        assert_eq!(replica.get("/readyz").await.0, 200);
        replica
    }

    /// Ends a replica with `end`, and starts another in its place.
    async fn restart(&mut self, i: usize, end: impl AsyncFnOnce(Process)) {
        // Wait until each has a share of the load: nginx has noticed that the last one is back, and has two others to
        // turn to.
        until("all are asked", async || self.replicas.iter().all(|replica| answered(replica) >= 20)).await;
        let gone = self.replicas.remove(i);
        end(gone).await;
        let replica = self.start(i).await;
        self.replicas.insert(i, replica);
    }

    /// Queries the database.
    async fn rows(&self, query: &'static str) -> Vec<sqlx::postgres::PgRow> {
        let (_, url) = self.settings.iter().find(|(name, _)| *name == "DB_SOURCE").unwrap();
        let mut conn = PgConnection::connect(url).await.unwrap();
        sqlx::query(query).fetch_all(&mut conn).await.unwrap()
    }
}

/// How many requests it has answered, without our own that ask whether it is ready.
fn answered(replica: &Process) -> usize {
    let log = replica.stderr();
    log.lines().filter(|line| line.contains("answered") && !line.contains("readyz")).count()
}

/// With the configuration of the page, in front of the replicas at these addresses.
async fn start_nginx(what_for: &str, replicas: impl Iterator<Item = SocketAddr>) -> Option<Nginx> {
    Nginx::start(what_for, |listen| {
        let mut site = documented().replace("listen 80;", listen);
        for (i, address) in replicas.enumerate() {
            site = site.replace(&format!("gatepass-{}:8080", i + 1), &address.to_string());
        }
        assert!(!site.contains("8080") && site.contains(listen), "{site}");
        site
    })
    .await
}

fn documented() -> String {
    let page = include_str!("../docs/rolling-updates.md");
    let (_, rest) = page.split_once("```nginx\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

/// The users of the service. Clones share their counts.
#[derive(Clone)]
struct Clients {
    http: reqwest::Client,
    failures: Arc<Mutex<Vec<String>>>,
    requests: Arc<AtomicUsize>,
    done: Arc<AtomicBool>,
}

impl Clients {
    fn new(socket: &Path) -> Self {
        let http = reqwest::Client::builder().unix_socket(socket).timeout(Duration::from_secs(20)).build();
        Self { http: http.unwrap(), failures: Arc::default(), requests: Arc::default(), done: Arc::default() }
    }

    /// The body, if the answer has this status; anything else counts as a failure.
    async fn ask(&self, request: reqwest::RequestBuilder, status: u16) -> Option<Value> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (http, request) = request.build_split();
        let request = request.unwrap();
        let asked = format!("{} {}", request.method(), request.url().path());
        let failure = match http.execute(request).await {
            Ok(answer) if answer.status() == status => match answer.bytes().await {
                Ok(body) => return Some(serde_json::from_slice(&body).unwrap_or_default()),
                Err(error) => format!("{error:?}"),
            },
            Ok(answer) => {
                let status = answer.status();
                format!("{status} {}", answer.text().await.unwrap_or_default())
            }
            Err(error) => format!("{error:?}"),
        };
        self.failures.lock().unwrap().push(format!("{asked}: {failure}"));
        None
    }

    fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.http.post(format!("http://gatepass{path}")).json(body)
    }

    async fn register(&self, name: &str) {
        let body = json!({ "username": name, "email": format!("{name}@example.com"), "password": PASSWORD });
        self.ask(self.post("/users", &body), 201).await.unwrap();
    }

    async fn log_in(&self, name: &str) -> Option<Value> {
        self.ask(self.post("/users/login", &json!({ "username": name, "password": PASSWORD })), 200).await
    }

    async fn renew(&self, tokens: &Value) -> Option<Value> {
        let body = json!({ "refresh_token": tokens["refresh_token"] });
        self.ask(self.post("/tokens/renew_access", &body), 200).await
    }

    async fn me(&self, tokens: &Value) -> Option<Value> {
        let token = tokens["access_token"].as_str().unwrap();
        self.ask(self.http.get("http://gatepass/users/me").bearer_auth(token), 200).await
    }

    async fn log_out(&self, tokens: &Value) -> Option<Value> {
        let token = tokens["access_token"].as_str().unwrap();
        self.ask(self.http.post("http://gatepass/users/logout").bearer_auth(token), 204).await
    }

    fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }
}

fn rounds() -> usize {
    if is_drill() { 6 } else { 1 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_replaced_one_by_one_and_no_request_fails() {
    let production = [
        ("ENVIRONMENT", "production"),
        // OWASP's smallest parameters.
        ("ARGON2_MEMORY_KIB", "7168"),
        ("ARGON2_ITERATIONS", "5"),
    ];
    let Some(mut fleet) = Fleet::new("rolling updates behind nginx", &production).await else { return };
    let clients = Clients::new(&fleet.nginx.socket());
    let mut load = JoinSet::new();
    for i in 0..CLIENTS {
        let clients = clients.clone();
        load.spawn(async move {
            let name = format!("user{i}");
            clients.register(&name).await;
            while !clients.done.load(Ordering::Relaxed) {
                let Some(mut tokens) = clients.log_in(&name).await else { continue };
                for _ in 0..10 {
                    clients.me(&tokens).await;
                    if let Some(next) = clients.renew(&tokens).await {
                        tokens = next;
                    }
                    sleep(Duration::from_millis(5)).await;
                }
                clients.log_out(&tokens).await;
            }
        });
    }
    for i in (0..REPLICAS).cycle().take(rounds() * REPLICAS) {
        let requests = clients.requests.clone();
        fleet
            .restart(i, async |replica| {
                let before = answered(&replica);
                replica.signal(Signal::TERM);
                until("it leaves", async || replica.stderr().contains("finishing requests in flight")).await;
                // Asked directly, it says that it should be sent no more requests, but it still serves.
                let (status, body) = replica.get("/readyz").await;
                assert_eq!((status, &body["reasons"]), (503, &json!(["stopping"])));
                sleep(Duration::from_secs(1)).await;
                assert!(answered(&replica) > before, "it is still asked");
                let ended = replica.end().await.expect(0);
                assert!(
                    ended.stderr.contains("stopped") && !ended.stderr.contains("cut off"),
                    "{}",
                    ended.stderr
                );
            })
            .await;
        println!(
            "rolling update: replica {i} replaced, {} requests so far",
            requests.load(Ordering::Relaxed)
        );
    }
    until("all are asked again", async || fleet.replicas.iter().all(|replica| answered(replica) >= 5)).await;
    clients.done.store(true, Ordering::Relaxed);
    load.join_all().await;
    let (requests, failures) = (clients.requests.load(Ordering::Relaxed), clients.failures());
    println!("rolling update: {requests} requests, {} failures", failures.len());
    assert!(failures.is_empty(), "{failures:#?}\n{}", fleet.nginx.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_a_replica_fails_only_its_requests_in_flight() {
    let Some(mut fleet) = Fleet::new("a kill behind nginx", &[]).await else { return };
    let clients = Clients::new(&fleet.nginx.socket());
    let mut load = JoinSet::new();
    let logged_in = Arc::new(AtomicUsize::new(0));
    for i in 0..CLIENTS {
        let (clients, logged_in) = (clients.clone(), logged_in.clone());
        load.spawn(async move {
            let name = format!("user{i}");
            clients.register(&name).await;
            let mut tokens = clients.log_in(&name).await.unwrap();
            logged_in.fetch_add(1, Ordering::Relaxed);
            let (mut renewals, mut failed) = (0, 0);
            while !clients.done.load(Ordering::Relaxed) {
                failed += usize::from(clients.me(&tokens).await.is_none());
                match clients.renew(&tokens).await {
                    Some(next) => {
                        tokens = next;
                        renewals += 1;
                    }
                    // Renew again with the same token, as a client does whose answer was lost.
                    None => failed += 1,
                }
                sleep(Duration::from_millis(2)).await;
            }
            (tokens["session_id"].as_str().unwrap().to_owned(), renewals, failed)
        });
    }
    until("all are logged in", async || logged_in.load(Ordering::Relaxed) == CLIENTS).await;
    let kills = rounds() * REPLICAS;
    for i in (0..REPLICAS).cycle().take(kills) {
        fleet
            .restart(i, async |replica| {
                assert_eq!(replica.stop(Signal::KILL).await.code, None);
                // The others have to do without it for a while.
                sleep(Duration::from_millis(500)).await;
            })
            .await;
    }
    until("all are asked again", async || fleet.replicas.iter().all(|replica| answered(replica) >= 5)).await;
    clients.done.store(true, Ordering::Relaxed);
    let clients_ends = load.join_all().await;
    let (requests, failures) = (clients.requests.load(Ordering::Relaxed), clients.failures());
    println!("kill behind nginx: {requests} requests, {} failures over {kills} kills", failures.len());
    // No client has more than one request in flight.
    for (_, _, failed) in &clients_ends {
        assert!(*failed <= kills, "{failures:#?}\n{}", fleet.nginx.log());
    }
    assert!(failures.iter().all(|failure| failure.contains(": 502 ")), "{failures:#?}");

    // Nor is a session lost, ended or doubled: each is in the generation that its client knows.
    let rows = fleet.rows("SELECT id::text, refresh_generation, ended_at IS NULL FROM sessions").await;
    assert_eq!(rows.len(), CLIENTS);
    for (session, renewals, _) in clients_ends {
        let row = rows.iter().find(|row| row.get::<String, _>(0) == session).unwrap();
        assert_eq!((row.get::<i32, _>(1), row.get::<bool, _>(2)), (renewals, true), "{failures:#?}");
    }
}

/// Replicas that die on every request, so nobody knows whether they have carried it out.
#[tokio::test]
async fn nginx_retries_only_idempotent_requests() {
    let asked = Arc::new(AtomicUsize::new(0));
    let (mut addresses, mut replicas) = (Vec::new(), JoinSet::new());
    for _ in 0..REPLICAS {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        let asked = asked.clone();
        replicas.spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                if connection.read(&mut [0; 4096]).await.unwrap() > 0 {
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    for (method, path, times) in [
        ("GET", "/users/me", REPLICAS),
        ("DELETE", "/sessions", REPLICAS),
        ("PUT", "/users/me/password", 1),
        ("PATCH", "/users/me", 1),
        ("POST", "/users/login", 1),
    ] {
        // A new nginx each time, which takes no replica for dead yet.
        let Some(nginx) = start_nginx("requests without an answer", addresses.iter().copied()).await else {
            return;
        };
        asked.store(0, Ordering::Relaxed);
        let http = reqwest::Client::builder().unix_socket(nginx.socket()).build().unwrap();
        let request = http.request(method.parse().unwrap(), format!("http://gatepass{path}")).body("{}");
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 502, "{method} {path}");
        assert_eq!(asked.load(Ordering::Relaxed), times, "{method} {path}\n{}", nginx.log());
    }
}
