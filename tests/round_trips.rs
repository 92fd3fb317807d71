//! How often a request waits for Postgres: each round trip, on a network, takes longer than most statements. They are
//! counted on the wire, between the service and the server, so nothing is forgotten: what the pool asks, what begins
//! and ends a transaction, what is prepared.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinSet,
    time::timeout,
};

use crate::{
    app::{App, PASSWORD, Story, database},
    process::{Home, QUICK},
};

/// The URL at which the service finds its database, and the number of round trips there.
struct Wire {
    url: String,
    asked: Arc<AtomicUsize>,
}

impl Wire {
    async fn new() -> Self {
        let direct: PgConnectOptions = database().await.parse().unwrap();
        let socket = direct.get_socket().unwrap().join(format!(".s.PGSQL.{}", direct.get_port()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = format!(
            "postgres://{}@127.0.0.1:{port}/{}?sslmode=disable",
            direct.get_username(),
            direct.get_database().unwrap()
        );
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(relay(stream, socket.clone(), count.clone()));
            }
        });
        Self { url, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// Forwards everything, and counts the messages that Postgres answers with ReadyForQuery: Sync and Query.
async fn relay(client: TcpStream, socket: PathBuf, asked: Arc<AtomicUsize>) {
    let server = UnixStream::connect(socket).await.unwrap();
    let (mut from_server, mut to_server) = server.into_split();
    let (mut from_client, mut to_client) = client.into_split();
    tokio::spawn(async move { copy(&mut from_server, &mut to_client).await });
    // The startup message has no type.
    let mut kind = 0;
    loop {
        let Ok(length) = from_client.read_u32().await else { return };
        let mut message = vec![0; length as usize - 4];
        from_client.read_exact(&mut message).await.unwrap();
        if matches!(kind, b'S' | b'Q') {
            asked.fetch_add(1, Ordering::SeqCst);
        }
        let mut whole: Vec<u8> = (kind != 0).then_some(kind).into_iter().collect();
        whole.extend(length.to_be_bytes());
        whole.extend(message);
        to_server.write_all(&whole).await.unwrap();
        let Ok(next) = from_client.read_u8().await else { return };
        kind = next;
    }
}

impl Wire {
    /// The number of round trips of a request, once its statements are prepared. It is the minimum of several, because
    /// on a busy machine so much time may pass between two requests that a connection has to prove that it is alive.
    async fn fewest(&self, status: u16, mut request: impl FnMut(Value) -> Story) -> usize {
        let (mut fewest, mut answer) = (usize::MAX, Value::Null);
        for _ in 0..6 {
            let before = self.asked();
            answer = request(answer).send().await.expect(status);
            fewest = fewest.min(self.asked() - before);
        }
        fewest
    }
}

#[tokio::test]
async fn each_request_makes_no_more_database_round_trips_than_needed() {
    let wire = Wire::new().await;
    let app = App::over(wire.url.clone(), &[]).await;
    app.register("alice").await;
    let root = app.login_admin("root").await;
    let alice = app.login("alice").await;

    let login = |username: &str, password: &str| {
        app.post("/users/login").json(&json!({ "username": username, "password": password }))
    };
    // One takes the throttle's places and reads the user; the other begins the session and forgives.
    for username in ["alice", "ALICE@example.com"] {
        assert_eq!(wire.fewest(200, |_| login(username, PASSWORD)).await, 2, "{username}");
    }
    for username in ["alice", "nobody", "no name at all"] {
        assert_eq!(wire.fewest(401, |_| login(username, "wrong-horse-battery-9")).await, 1, "{username}");
    }

    // One reads what the token is checked against; the other renews the session. In a single one, anybody with the
    // session's id could renew it.
    let renewal = |last: Value| {
        let tokens = if last.is_null() { &alice } else { &last };
        app.post("/tokens/renew_access").json(&json!({ "refresh_token": tokens["refresh_token"] }))
    };
    assert_eq!(wire.fewest(200, renewal).await, 2);

    let mut found = Vec::new();
    let expected = [
        ("/healthz", 0),
        ("/auth/verify", 0),
        // Whether the database accepts writes, whether there is a schema, and which one.
        ("/readyz", 3),
        ("/users/me", 1),
        ("/sessions", 1),
        ("/users/me/history", 1),
        // Whether they are an administrator now; then a query that is planned for its parameters, which takes a
        // transaction.
        ("/admin/users", 4),
        ("/admin/users?query=ali", 5),
    ];
    for (path, _) in expected {
        found.push((path, wire.fewest(200, |_| app.get(path).bearer(&root)).await));
    }
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_login_refused_by_a_full_hash_queue_makes_no_round_trip() {
    let slow = [
        ("PASSWORD_HASH_THREADS", "1"),
        ("PASSWORD_HASH_QUEUE", "1"),
        ("ARGON2_MEMORY_KIB", "19456"),
        ("ARGON2_ITERATIONS", "64"),
    ];
    let wire = Wire::new().await;
    let app = App::over(wire.url.clone(), &slow).await;
    let login = || app.try_login("nobody", PASSWORD);
    // One login is being hashed, and one waits.
    let mut crowd = JoinSet::new();
    for _ in 0..8 {
        crowd.spawn(login());
    }
    for _ in 0..6 {
        crowd.join_next().await.unwrap().unwrap().expect_problem(503, "overloaded");
    }
    let before = wire.asked();
    for _ in 0..10 {
        login().await.expect_problem(503, "overloaded");
    }
    assert_eq!(wire.asked(), before);
}

#[tokio::test]
async fn reading_the_key_ring_takes_one_round_trip() {
    let wire = Wire::new().await;
    let app = App::over(wire.url.clone(), &[("TOKEN_FORMAT", "v4.public")]).await;
    let mut fewest = usize::MAX;
    for _ in 0..3 {
        let before = wire.asked();
        // The first reading is at once, the second after half a second.
        let following = app.state().keys.follow();
        timeout(Duration::from_millis(400), following).await.unwrap_err();
        let asked = wire.asked() - before;
        // With none, the server has not answered yet.
        if asked > 0 {
            fewest = fewest.min(asked);
        }
    }
    assert_eq!(fewest, 1);
}

/// Each further round trip would prolong the locks on the rows that the import changes, held until the end of the
/// thousand.
#[tokio::test]
async fn importing_a_thousand_users_takes_as_many_round_trips_as_ten() {
    let wire = Wire::new().await;
    let home = Home::new();
    // Every second user gets another password.
    let user = |i: usize, year: usize| {
        let of = if i.is_multiple_of(2) { 2020 } else { year };
        json!({
            "external_id": format!("x-{i}"), "username": format!("user{i}"),
            "email": format!("user{i}@in{year}.example.com"), "updated_at": format!("{year}-01-01T00:00:00Z"),
            "password_hash": format!("$2b$08$qZ9e3.J/1Zf8ZpAUCuK3He{of}dxTCio0r6MwOVn4oc4G3Z6Pj8C2"),
        })
    };
    let import = async |count: usize, year: usize| {
        let lines = (0..count).map(|i| format!("{}\n", user(i, year)));
        home.write("users.jsonl", &lines.collect::<String>());
        let before = wire.asked();
        let import = home.gatepass(&["import", "users.jsonl", "--json"]).envs(&QUICK);
        let done = import.env("DB_SOURCE", &wire.url).run().await.expect(0).json();
        let changed = if year == 2020 { "created" } else { "updated" };
        assert_eq!(done[changed], count, "{done}");
        wire.asked() - before
    };
    import(1_000, 2020).await;
    let ten = import(10, 2021).await;
    assert_eq!(import(1_000, 2022).await, ten);
}
