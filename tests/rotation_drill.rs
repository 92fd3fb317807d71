//! The rotation drill: two replicas under a steady load of logins and checks, while keys rotate on schedule and the
//! root key is replaced in two rollouts. No request is refused, either by a replica or by a service that knows only the
//! published documents.
//!
//! `make test` runs a short form of it, `make drill` ten rotations.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use gatepass::{
    clock::Clock,
    keys,
    store::{PgPool, Source},
    token::{KeyStatus, Party, SymmetricKey, Verifier, read_jwks, read_paserks},
};
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, RwLock},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    app::{App, KEY, PASSWORD},
    process::{Home, Process, Signal, is_drill, until},
};

const NEW_KEY: &str = "b3b4a1b2c3d4e5f60718293a4b5c6d7e";

/// Longer than a key signs.
const TOKEN_LIFE: &str = "30s";
/// How long until a token is checked a second time: still within its life, when its key may no longer sign.
const LATER: Duration = Duration::from_secs(4);
/// How many clients log in all the time.
const CLIENTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(60);

struct Form {
    format: &'static [(&'static str, &'static str)],
    interval: &'static str,
    rotations: usize,
}

/// What somebody else's service knows: the published documents, for as long as they may be cached.
struct Outsider {
    verifier: Verifier,
    good_until: Mutex<Option<Instant>>,
    fetched: AtomicU64,
}

impl Outsider {
    fn new() -> Self {
        let party = Party { issuer: "gatepass".into(), audience: "gatepass".into() };
        let verifier = Verifier::new(Vec::<SymmetricKey>::new(), party);
        Self { verifier, good_until: Mutex::new(None), fetched: AtomicU64::new(0) }
    }

    async fn check(&self, fleet: &Fleet, token: &str) {
        let mut good_until = self.good_until.lock().await;
        if good_until.is_none_or(|until| until <= Instant::now()) {
            let asked = Instant::now();
            let (jwks, max_age) = fleet.document("/.well-known/jwks.json").await;
            let (paserks, _) = fleet.document("/.well-known/paserk.json").await;
            let keys = [read_jwks(&jwks).unwrap(), read_paserks(&paserks).unwrap()].concat();
            assert!(!keys.is_empty());
            self.verifier.set_keys(keys);
            *good_until = Some(asked + max_age);
            self.fetched.fetch_add(1, Relaxed);
        }
        let checked = self.verifier.verify(token, Clock::system().now());
        checked.unwrap_or_else(|error| panic!("the documents do not verify {token}: {error:?}"));
    }
}

/// The replicas, as a load balancer sees them: `None` while one restarts.
struct Fleet {
    home: [Home; 2],
    environment: Vec<(&'static str, String)>,
    /// Every request holds the lock of its replica, so a replica is only stopped when it has nothing to do.
    replicas: [RwLock<Option<Process>>; 2],
    http: reqwest::Client,
    next: AtomicU64,
    logins: AtomicU64,
    checks: AtomicU64,
    is_over: AtomicBool,
}

impl Fleet {
    async fn start(&self, replica: usize, more: &[(&str, &str)]) {
        let environment: Vec<_> =
            self.environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let process = self.home[replica].serve(&[&environment, more].concat()).await;
        *self.replicas[replica].write().await = Some(process);
    }

    async fn stop(&self, replica: usize) {
        let process = self.replicas[replica].write().await.take().unwrap();
        process.stop(Signal::TERM).await.expect(0);
    }

    /// From whichever replica is there.
    async fn document(&self, path: &str) -> (Vec<u8>, Duration) {
        for replica in &self.replicas {
            if let Some(process) = &*replica.read().await {
                let answer = self.http.get(process.url(path)).send().await.unwrap();
                assert_eq!(answer.status(), 200);
                let caching = answer.headers()["cache-control"].to_str().unwrap();
                let max_age = caching.split_once("max-age=").unwrap().1.parse().unwrap();
                return (answer.bytes().await.unwrap().to_vec(), Duration::from_secs(max_age));
            }
        }
        panic!("no replica is there")
    }

    async fn log_in(&self) -> String {
        loop {
            let turn = self.next.fetch_add(1, Relaxed) % 2;
            let replica = self.replicas[usize::from(turn == 1)].read().await;
            let Some(process) = &*replica else { continue };
            let login = json!({"username": "alice", "password": PASSWORD});
            let answer = self.http.post(process.url("/users/login")).json(&login).send().await.unwrap();
            let status = answer.status();
            let body: Value = answer.json().await.unwrap();
            assert_eq!(status, 200, "{body}");
            self.logins.fetch_add(1, Relaxed);
            return body["access_token"].as_str().unwrap().to_owned();
        }
    }

    /// On both replicas, if they are there, and against the documents.
    async fn check(&self, token: &str, outsider: &Outsider, when: &str) {
        for (i, replica) in self.replicas.iter().enumerate() {
            let replica = replica.read().await;
            let Some(process) = &*replica else { continue };
            let answer = self.http.get(process.url("/users/me")).bearer_auth(token).send().await.unwrap();
            let status = answer.status();
            assert_eq!(status, 200, "replica {i}, {when}: {}", answer.text().await.unwrap());
            self.checks.fetch_add(1, Relaxed);
        }
        outsider.check(self, token).await;
    }
}

async fn client(fleet: Arc<Fleet>, outsider: Arc<Outsider>) {
    let mut later = JoinSet::new();
    while !fleet.is_over.load(Relaxed) {
        let token = fleet.log_in().await;
        let made = Instant::now();
        fleet.check(&token, &outsider, "at once").await;
        let (fleet, outsider) = (fleet.clone(), outsider.clone());
        later.spawn(async move {
            sleep_until(made + LATER).await;
            fleet.check(&token, &outsider, "later").await;
        });
        while let Some(done) = later.try_join_next() {
            done.unwrap();
        }
        sleep(PAUSE).await;
    }
    later.join_all().await;
}

/// How many keys have stopped signing.
async fn rotations(db: &PgPool) -> usize {
    let keys = keys::list(db).await.unwrap().keys;
    keys.iter().filter(|(key, _)| key.retired_at.is_some()).count()
}

async fn drill(form: Form) {
    let began = Instant::now();
    // This makes the database, and alice.
    let app = App::new().await;
    app.register("alice").await;
    let db = Source::new(&app.database_url.clone().into()).unwrap().pool(2);

    let mut environment = vec![
        ("DB_SOURCE", app.database_url.clone()),
        ("KEY_ROTATION_INTERVAL", form.interval.to_owned()),
        ("ACCESS_TOKEN_DURATION", TOKEN_LIFE.to_owned()),
        ("RUST_LOG", "gatepass=info".to_owned()),
    ];
    environment.extend(form.format.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let fleet = Arc::new(Fleet {
        home: [Home::new(), Home::new()],
        environment,
        replicas: [RwLock::new(None), RwLock::new(None)],
        http: reqwest::Client::new(),
        next: AtomicU64::new(0),
        logins: AtomicU64::new(0),
        checks: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
    });
    let before = [("TOKEN_SYMMETRIC_KEY", KEY)];
    tokio::join!(fleet.start(0, &before), fleet.start(1, &before));
    let outsider = Arc::new(Outsider::new());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(client(fleet.clone(), outsider.clone()));
    }

    let operator = async {
        until("the first rotation", async || rotations(&db).await >= 1).await;
        for roots in [
            [("TOKEN_SYMMETRIC_KEY", KEY), ("TOKEN_SYMMETRIC_KEYS_ACCEPTED", NEW_KEY)],
            [("TOKEN_SYMMETRIC_KEY", NEW_KEY), ("TOKEN_SYMMETRIC_KEYS_ACCEPTED", KEY)],
        ] {
            for replica in 0..2 {
                fleet.stop(replica).await;
                fleet.start(replica, &roots).await;
            }
        }
        let left = form.rotations.saturating_sub(rotations(&db).await);
        for _ in 0..=left {
            // Each rotation has a minute.
            let so_far = rotations(&db).await;
            if so_far >= form.rotations {
                break;
            }
            until("the next rotation", async || rotations(&db).await > so_far).await;
        }
    };
    tokio::select! {
        () = operator => {}
        Some(ended) = clients.join_next() => panic!("a client gave up: {ended:?}"),
    }
    fleet.is_over.store(true, Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }

    let ring = keys::list(&db).await.unwrap().keys;
    let now = Clock::system().now();
    let mut statuses = HashMap::new();
    for (key, root) in &ring {
        let status = key.status(now);
        *statuses.entry(status).or_insert(0) += 1;
        let new = NEW_KEY.parse::<SymmetricKey>().unwrap().id();
        assert!(root.as_ref().is_none_or(|root| *root == new), "{} is under {root:?}", key.id());
    }
    assert_eq!(
        (statuses[&Some(KeyStatus::Active)], statuses[&Some(KeyStatus::Next)]),
        (1, 1),
        "{statuses:?}"
    );
    let rotations = rotations(&db).await;
    assert!(rotations >= form.rotations, "{rotations}");
    // Each key signed for its time, and was published before it began to.
    let mut signed: Vec<_> = ring.iter().filter_map(|(key, _)| Some((key.activated_at?, key))).collect();
    signed.sort_by_key(|(since, _)| *since);
    for pair in signed.windows(2) {
        assert_eq!(pair[0].1.retired_at, Some(pair[1].0), "one takes over from the other");
        assert!(
            pair[1].0 - pair[1].1.published_at >= time::Duration::SECOND
                || pair[0].1.published_at == pair[0].0
        );
    }
    let (logins, checks) = (fleet.logins.load(Relaxed), fleet.checks.load(Relaxed));
    println!(
        "rotation drill: {rotations} rotations and a root change in {:.1?}: {logins} logins and {checks} checks, \
         none refused; documents fetched {} times",
        began.elapsed(),
        outsider.fetched.load(Relaxed),
    );
    assert!(checks > logins && logins > 0);
    tokio::join!(fleet.stop(0), fleet.stop(1));
}

#[tokio::test]
async fn keys_and_the_root_key_are_replaced_under_load_and_no_request_is_refused() {
    if is_drill() {
        for format in
            [&[("TOKEN_FORMAT", "v4.public")][..], &[("TOKEN_FORMAT", "jwt"), ("JWT_ALGORITHM", "ES256")]]
        {
            drill(Form { format, interval: "4s", rotations: 10 }).await;
        }
    } else {
        drill(Form { format: &[("TOKEN_FORMAT", "v4.public")], interval: "3s", rotations: 3 }).await;
    }
}
