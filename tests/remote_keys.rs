//! A service that follows the keys of a running gatepass accepts tokens of new keys at once and none of retired ones,
//! asks no more often than it may, whatever tokens it is sent, and keeps its keys through every failure of gatepass.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use gatepass::{
    bearer::{BearerLayer, DocumentError, RemoteError, RemoteKeys},
    clock::Clock,
    token::{
        Claims, Issuer, KeyPair, KeyPairFormat, KeyStatus, Lifetime, Party, SignatureAlgorithm, SigningKey,
        Subject, SymmetricKey, jwks, paserks,
    },
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time,
};
use tower::{Layer, Service as _, ServiceExt};
use uuid::Uuid;

use crate::{
    app::{App, START},
    process::Port,
};

const FORMATS: [KeyPairFormat; 3] = [
    KeyPairFormat::V4Public,
    KeyPairFormat::Jwt(SignatureAlgorithm::EdDsa),
    KeyPairFormat::Jwt(SignatureAlgorithm::Es256),
];
/// Longer than any test: nothing is fetched on schedule.
const LONG: &str = "public, max-age=3600";

/// What a gatepass answers, at both its addresses, in place of its keys.
#[derive(Clone)]
struct Wrong {
    status: StatusCode,
    location: Option<&'static str>,
    body: String,
}

fn wrong(status: StatusCode, body: impl Into<String>) -> Wrong {
    Wrong { status, location: None, body: body.into() }
}

struct Published {
    keys: Mutex<Vec<Arc<KeyPair>>>,
    cache_control: Mutex<&'static str>,
    wrong: Mutex<Option<Wrong>>,
    /// While this is true, nobody gets an answer.
    is_hanging: watch::Sender<bool>,
    /// How often the first document has been requested.
    fetches: watch::Sender<usize>,
    not_modified: AtomicUsize,
}

/// The published side of a gatepass, on a port of its own, which it keeps.
struct Gatepass {
    published: Arc<Published>,
    port: Port,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Gatepass {
    async fn start(keys: &[&Arc<KeyPair>]) -> Self {
        let published = Published {
            keys: Mutex::default(),
            cache_control: Mutex::new(LONG),
            wrong: Mutex::default(),
            is_hanging: watch::Sender::new(false),
            fetches: watch::Sender::new(0),
            not_modified: AtomicUsize::new(0),
        };
        let mut gatepass = Self { published: Arc::new(published), port: Port::reserve(), running: None };
        gatepass.publish(keys);
        gatepass.run().await;
        gatepass
    }

    async fn run(&mut self) {
        let listener = TcpListener::bind(self.port.address()).await.unwrap();
        let router = Router::new()
            .route("/.well-known/{document}", get(document))
            .route("/elsewhere", get(async || paserks([(any_key().public_key(), KeyStatus::Active)])))
            .with_state(self.published.clone());
        let (stop, stopped) = oneshot::channel();
        let server = axum::serve(listener, router).with_graceful_shutdown(async { stopped.await.unwrap() });
        self.running = Some((stop, tokio::spawn(async { server.await.unwrap() })));
    }

    /// From now on connections are refused.
    async fn stop(&mut self) {
        let (stop, server) = self.running.take().unwrap();
        stop.send(()).unwrap();
        server.await.unwrap();
    }

    fn publish(&self, keys: &[&Arc<KeyPair>]) {
        *self.published.keys.lock().unwrap() = keys.iter().map(|key| Arc::clone(key)).collect();
    }

    fn cache_control(&self, value: &'static str) {
        *self.published.cache_control.lock().unwrap() = value;
    }

    fn wrong(&self, wrong: impl Into<Option<Wrong>>) {
        *self.published.wrong.lock().unwrap() = wrong.into();
    }

    fn hang(&self, hangs: bool) {
        self.published.is_hanging.send_replace(hangs);
    }

    fn fetches(&self) -> usize {
        *self.published.fetches.borrow()
    }

    async fn fetched(&self, times: usize) {
        let mut fetches = self.published.fetches.subscribe();
        let fetched = fetches.wait_for(|fetches| *fetches >= times);
        time::timeout(Duration::from_secs(30), fetched).await.expect("it is fetched").unwrap();
    }

    fn url(&self) -> String {
        format!("http://{}", self.port.address())
    }

    async fn connect(&self) -> Result<RemoteKeys, RemoteError> {
        RemoteKeys::connect(&self.url(), party()).await
    }

    /// Another service that follows its keys.
    async fn service(&self) -> Service {
        Service::new(self.connect().await.unwrap())
    }
}

async fn document(
    State(published): State<Arc<Published>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    if name == "jwks.json" {
        published.fetches.send_modify(|fetches| *fetches += 1);
    }
    published.is_hanging.subscribe().wait_for(|hangs| !hangs).await.unwrap();
    if let Some(wrong) = published.wrong.lock().unwrap().clone() {
        let location = wrong.location.map(|location| [(header::LOCATION, location)]);
        return (wrong.status, location, wrong.body).into_response();
    }
    let keys = published.keys.lock().unwrap().clone();
    let keys = keys.iter().map(|key| key.public_key());
    let body = match &*name {
        "jwks.json" => jwks(keys),
        "paserk.json" => paserks(keys.map(|key| (key, KeyStatus::Active))),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    let etag = format!("\"{:x}\"", hasher.finish());
    let fields = [
        (header::CACHE_CONTROL, (*published.cache_control.lock().unwrap()).to_owned()),
        (header::ETAG, etag),
    ];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|etag| *etag == fields[1].1) {
        published.not_modified.fetch_add(1, Ordering::SeqCst);
        return (StatusCode::NOT_MODIFIED, fields).into_response();
    }
    (fields, body).into_response()
}

#[derive(Clone)]
struct Service(Router);

impl Service {
    fn new(keys: RemoteKeys) -> Self {
        let hello = async |Extension(claims): Extension<Arc<Claims>>| claims.username.clone();
        let layer = BearerLayer::new(keys).with_clock(Clock::fixed(START));
        Self(Router::new().route("/hello", get(hello)).layer(layer))
    }

    async fn ask(&self, token: &str) -> StatusCode {
        let request = Request::get("/hello").header(header::AUTHORIZATION, format!("Bearer {token}"));
        self.0.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
    }

    async fn accepts<K: Clone + Into<SigningKey>>(&self, key: &K) -> bool {
        match self.ask(&token(key)).await {
            StatusCode::OK => true,
            StatusCode::UNAUTHORIZED => false,
            status => panic!("{status}"),
        }
    }
}

fn party() -> Party {
    Party { issuer: "https://auth.example.com".into(), audience: "gatepass".into() }
}

fn key(format: KeyPairFormat) -> Arc<KeyPair> {
    Arc::new(KeyPair::generate(format).unwrap())
}

fn any_key() -> Arc<KeyPair> {
    key(KeyPairFormat::V4Public)
}

/// A different token each time.
fn token<K: Clone + Into<SigningKey>>(key: &K) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let subject = Subject {
        user_id: Uuid::from_u128(1),
        session_id: Uuid::from_u128(2),
        username: "alice".into(),
        roles: vec![],
    };
    let token_id = Uuid::from_u128(COUNT.fetch_add(1, Ordering::SeqCst) as u128);
    let lifetime = Lifetime { now: START, expires_at: START + Duration::from_secs(900) };
    Issuer::new(key.clone(), party()).issue(subject, token_id, lifetime).unwrap().expose().to_owned()
}

/// Advances tokio's clock, which is paused for no longer than that: while paused, it would jump ahead at every wait for
/// the network.
async fn later(seconds: u64) {
    time::pause();
    time::advance(Duration::from_secs(seconds)).await;
    time::resume();
}

/// Waits for what another task is about to do.
async fn until(condition: impl AsyncFn() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    time::timeout(Duration::from_secs(30), holds).await.unwrap();
}

#[tokio::test]
async fn tokens_of_published_keys_pass_without_another_fetch() {
    let keys = FORMATS.map(key);
    let gatepass = Gatepass::start(&keys.each_ref()).await;
    let service = gatepass.service().await;
    later(20).await;
    for key in &keys {
        for _ in 0..10 {
            assert!(service.accepts(key).await, "{key:?}");
        }
    }
    // Nor do tokens that are refused for a reason other than their key.
    let forged = token(&keys[0]).replacen("v4.public.", "v4.public.AAAA", 1);
    assert_eq!(service.ask(&forged).await, StatusCode::UNAUTHORIZED);
    assert_eq!(service.ask("abc").await, StatusCode::UNAUTHORIZED);
    assert_eq!(gatepass.fetches(), 1);
}

#[tokio::test]
async fn tokens_of_a_real_gatepass_pass() {
    let party = Party { issuer: "gatepass".into(), audience: "gatepass".into() };
    for format in
        [&[("TOKEN_FORMAT", "v4.public")][..], &[("TOKEN_FORMAT", "jwt"), ("JWT_ALGORITHM", "PS256")]]
    {
        let app = App::with(format).await;
        app.register("alice").await;
        let login = app.login("alice").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let service = app.router.clone().into_make_service_with_connect_info::<SocketAddr>();
        let gatepass = tokio::spawn(async move { axum::serve(listener, service).await });

        let keys = RemoteKeys::connect(&base, party.clone()).await.unwrap();
        let claims = keys.verify(login["access_token"].as_str().unwrap(), START).unwrap();
        assert_eq!(claims.session_id.to_string(), login["session_id"].as_str().unwrap());
        gatepass.abort();
    }
}

#[tokio::test]
async fn a_new_key_costs_one_fetch_for_all_requests_that_need_it() {
    for format in FORMATS {
        let (old, new) = (key(format), key(format));
        let gatepass = Gatepass::start(&[&old]).await;
        let service = gatepass.service().await;
        gatepass.publish(&[&old, &new]);
        later(10).await;

        let requests: JoinSet<_> = (0..50)
            .map(|_| {
                let (service, new) = (service.clone(), new.clone());
                async move { service.accepts(&new).await }
            })
            .collect();
        assert_eq!(requests.join_all().await, [true; 50], "{format:?}");
        assert!(service.accepts(&old).await);
        assert_eq!(gatepass.fetches(), 2, "{format:?}");
    }
}

/// Panics unless it was polled for readiness before each call; a clone has to be polled anew.
#[derive(Default)]
struct Strict {
    is_ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl tower::Service<Request<Body>> for Strict {
    type Response = Response;
    type Error = Infallible;
    type Future = Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called before it was ready");
        assert!(request.extensions().get::<Arc<Claims>>().is_some());
        ready(Ok(StatusCode::OK.into_response()))
    }
}

#[tokio::test]
async fn a_request_that_waited_for_keys_calls_a_service_that_is_ready() {
    let (old, new) = (any_key(), any_key());
    let gatepass = Gatepass::start(&[&old]).await;
    let layer = BearerLayer::new(gatepass.connect().await.unwrap()).with_clock(Clock::fixed(START));
    let mut service = layer.layer(Strict::default());
    gatepass.publish(&[&new]);
    later(10).await;
    for _ in 0..3 {
        let request = Request::get("/").header(header::AUTHORIZATION, format!("Bearer {}", token(&new)));
        let request = request.body(Body::empty()).unwrap();
        let response = service.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
    assert_eq!(gatepass.fetches(), 2);
}

#[tokio::test]
async fn a_flood_of_unknown_keys_causes_one_fetch_per_ten_seconds() {
    let old = any_key();
    let gatepass = Gatepass::start(&[&old]).await;
    let service = gatepass.service().await;
    let made_up: Vec<_> = (0..20).map(|i| token(&key(FORMATS[i % 3]))).collect();
    let flood = async || {
        for token in made_up.iter().cycle().take(200) {
            assert_eq!(service.ask(token).await, StatusCode::UNAUTHORIZED);
        }
    };
    // `connect` fetched just now.
    flood().await;
    assert_eq!(gatepass.fetches(), 1);
    for fetches in 2..5 {
        later(10).await;
        flood().await;
        assert_eq!(gatepass.fetches(), fetches);
    }
    // These are refused at once, whatever gatepass does.
    gatepass.hang(true);
    flood().await;
    assert!(service.accepts(&old).await);

    // The rate is the same when fetches fail.
    gatepass.hang(false);
    gatepass.wrong(wrong(StatusCode::SERVICE_UNAVAILABLE, "later"));
    later(5).await;
    flood().await;
    assert_eq!(gatepass.fetches(), 4);
    later(5).await;
    flood().await;
    assert_eq!(gatepass.fetches(), 5);
}

#[tokio::test]
async fn while_gatepass_hangs_a_limited_number_of_requests_wait_briefly() {
    let (old, new) = (any_key(), any_key());
    let gatepass = Gatepass::start(&[&old]).await;
    let service = gatepass.service().await;
    gatepass.hang(true);
    later(10).await;

    let unknown = token(&any_key());
    let mut requests: JoinSet<_> = (0..1_050)
        .map(|_| {
            let (service, unknown) = (service.clone(), unknown.clone());
            async move { service.ask(&unknown).await }
        })
        .collect();
    for _ in 0..50 {
        assert_eq!(requests.join_next().await.unwrap().unwrap(), StatusCode::UNAUTHORIZED);
    }
    gatepass.fetched(2).await;
    assert!(requests.try_join_next().is_none(), "more than 50 were refused at once");
    assert!(service.accepts(&old).await, "a known key does not wait");

    later(3).await;
    assert_eq!(requests.join_all().await, [StatusCode::UNAUTHORIZED; 1_000]);
    // The fetch continues without them, and the next request waits for it.
    gatepass.publish(&[&new]);
    gatepass.hang(false);
    assert!(service.accepts(&new).await);
    assert_eq!(gatepass.fetches(), 2);
}

#[tokio::test]
async fn keys_survive_an_outage_of_gatepass_and_are_refreshed_afterwards() {
    let (old, new) = (any_key(), any_key());
    let mut gatepass = Gatepass::start(&[&old]).await;
    let service = gatepass.service().await;
    gatepass.stop().await;
    gatepass.publish(&[&new]);
    for _ in 0..20 {
        later(120).await;
        assert!(!service.accepts(&new).await);
        assert!(service.accepts(&old).await);
    }
    gatepass.run().await;
    // The longest pause between two attempts.
    later(60).await;
    gatepass.fetched(2).await;
    until(async || service.accepts(&new).await).await;
    assert!(!service.accepts(&old).await);
    assert_eq!(gatepass.fetches(), 2);
}

#[tokio::test]
async fn a_retired_key_is_refused_after_the_next_fetch() {
    for format in FORMATS {
        let (old, new) = (key(format), key(format));
        let gatepass = Gatepass::start(&[&old, &new]).await;
        gatepass.cache_control("max-age=60");
        let service = gatepass.service().await;
        let remembered = token(&old);
        assert_eq!(service.ask(&remembered).await, StatusCode::OK);

        gatepass.publish(&[&new]);
        assert_eq!(service.ask(&remembered).await, StatusCode::OK);
        later(60).await;
        until(async || service.ask(&remembered).await == StatusCode::UNAUTHORIZED).await;
        assert!(!service.accepts(&old).await);
        assert!(service.accepts(&new).await);
        assert_eq!(gatepass.fetches(), 2, "{format:?}");
    }
}

#[tokio::test]
async fn a_service_moves_with_gatepass_from_one_format_to_another() {
    let [paseto, jwt, _] = FORMATS.map(key);
    let gatepass = Gatepass::start(&[&paseto]).await;
    let service = gatepass.service().await;
    gatepass.publish(&[&jwt]);
    later(10).await;
    assert!(service.accepts(&jwt).await);
    assert!(!service.accepts(&paseto).await);
}

#[tokio::test]
async fn a_service_accepts_its_own_key_besides_published_ones() {
    let shared = SymmetricKey::from_bytes([7; 32]);
    let [old, new, _] = FORMATS.map(key);
    // It may start before any key is published.
    let gatepass = Gatepass::start(&[]).await;
    let keys = RemoteKeys::connect_with(&gatepass.url(), party(), [shared.clone()]).await.unwrap();
    let service = Service::new(keys);
    assert!(service.accepts(&shared).await);
    for published in [&[&old][..], &[&old, &new], &[&new]] {
        gatepass.publish(published);
        later(10).await;
        // A token of an unknown key makes it fetch.
        assert!(!service.accepts(&SymmetricKey::from_bytes([8; 32])).await);
        assert!(service.accepts(*published.last().unwrap()).await);
        assert!(service.accepts(&shared).await);
    }
    assert!(!service.accepts(&old).await);

    // When gatepass goes back to a shared key, the keys that it published are no longer good.
    gatepass.publish(&[]);
    later(10).await;
    assert!(!service.accepts(&old).await);
    assert!(!service.accepts(&new).await);
    assert!(service.accepts(&shared).await);
}

/// Everything that a gatepass should not answer.
fn wrongs() -> Vec<Wrong> {
    let keys = paserks([(any_key().public_key(), KeyStatus::Active)]);
    vec![
        wrong(StatusCode::OK, "<!doctype html><title>Welcome to nginx!</title>"),
        wrong(StatusCode::OK, ""),
        wrong(StatusCode::OK, "{}"),
        wrong(StatusCode::OK, r#"{"keys":[]}"#),
        wrong(StatusCode::OK, r#"{"keys":[{"kty":"oct","k":"AAAA","kid":"x"},{"paserk":"k4.local.x"}]}"#),
        wrong(StatusCode::OK, keys.clone() + &" ".repeat(256 * 1024)),
        wrong(StatusCode::SERVICE_UNAVAILABLE, keys.clone()),
        wrong(StatusCode::NO_CONTENT, ""),
        Wrong { location: Some("/elsewhere"), ..wrong(StatusCode::FOUND, keys) },
    ]
}

#[tokio::test]
async fn an_invalid_answer_does_not_discard_known_keys() {
    let (old, new) = (any_key(), any_key());
    let gatepass = Gatepass::start(&[&old]).await;
    let service = gatepass.service().await;
    for (fetches, wrong) in (2..).zip(wrongs()) {
        let name = format!("{} {:.40}", wrong.status, wrong.body);
        gatepass.wrong(wrong);
        later(10).await;
        // This waits for the fetch, which may be one of the retries after the last failure.
        assert!(!service.accepts(&new).await, "{name}");
        assert!(service.accepts(&old).await, "{name}");
        assert!(gatepass.fetches() >= fetches, "{name}");
    }
    gatepass.wrong(None);
    gatepass.publish(&[&new]);
    later(10).await;
    until(async || service.accepts(&new).await).await;
    assert!(!service.accepts(&old).await);
}

#[tokio::test]
async fn what_has_not_changed_is_not_sent_again() {
    let (old, new) = (any_key(), any_key());
    let gatepass = Gatepass::start(&[&old]).await;
    let service = gatepass.service().await;
    let not_modified = || gatepass.published.not_modified.load(Ordering::SeqCst);
    assert_eq!(not_modified(), 0);
    for fetches in 2..5 {
        later(10).await;
        assert!(!service.accepts(&new).await);
        assert!(service.accepts(&old).await);
        assert_eq!((gatepass.fetches(), not_modified()), (fetches, 2 * (fetches - 1)));
    }
    // The keys are PASERKs, so the other document is unchanged.
    gatepass.publish(&[&old, &new]);
    later(10).await;
    assert!(service.accepts(&new).await);
    assert!(service.accepts(&old).await);
    assert_eq!((gatepass.fetches(), not_modified()), (5, 7));
}

#[tokio::test]
async fn keys_are_fetched_again_when_their_max_age_is_over_and_not_before() {
    let old = any_key();
    let gatepass = Gatepass::start(&[&old]).await;
    gatepass.cache_control("public, max-age=300");
    let service = gatepass.service().await;
    for fetches in 1..4 {
        later(290).await;
        // Had a fetch begun, it would have arrived before this request or with it.
        let ours = reqwest::Client::builder().no_proxy().build().unwrap();
        ours.get(format!("{}/.well-known/paserk.json", gatepass.url())).send().await.unwrap();
        assert!(service.accepts(&old).await);
        assert_eq!(gatepass.fetches(), fetches);
        later(10).await;
        gatepass.fetched(fetches + 1).await;
        // When a token of an unknown key is refused, the fetch is over: the one that this token asks for is not allowed
        // yet, or is the same.
        assert!(!service.accepts(&any_key()).await);
        assert_eq!(gatepass.fetches(), fetches + 1);
    }
}

#[tokio::test]
async fn connecting_fails_without_keys() {
    let mut gatepass = Gatepass::start(&[&any_key()]).await;
    for wrong in wrongs() {
        let name = format!("{} {:.40}", wrong.status, wrong.body);
        let is_fine = wrong.status == StatusCode::OK;
        gatepass.wrong(wrong);
        match gatepass.connect().await.unwrap_err() {
            error @ RemoteError::NoKeys(_) => {
                let said = error.to_string();
                assert!(
                    is_fine && said.starts_with(&format!("{} publishes no keys", gatepass.url())),
                    "{name}: {said}"
                );
                assert!(said.contains("TOKEN_FORMAT=v4.public"), "{said}");
            }
            RemoteError::Document { url, reason } => {
                assert_eq!(url, format!("{}/.well-known/jwks.json", gatepass.url()));
                assert_eq!(matches!(reason, DocumentError::Status(_)), !is_fine, "{name}: {reason}");
            }
            error => panic!("{name}: {error}"),
        }
    }
    gatepass.stop().await;
    let error = gatepass.connect().await.unwrap_err();
    assert!(matches!(error, RemoteError::Document { reason: DocumentError::Transport(_), .. }), "{error}");
    // Plain HTTP is refused: on the way, somebody could change the keys.
    let error = RemoteKeys::connect("http://auth.example.com", party()).await.unwrap_err();
    assert!(matches!(error, RemoteError::Address), "{error}");
}

#[tokio::test]
async fn fetching_ends_with_the_last_service_that_needs_it() {
    let gatepass = Gatepass::start(&[&any_key()]).await;
    gatepass.cache_control("max-age=60");
    let service = gatepass.service().await;
    let clone = service.clone();
    drop(service);
    later(60).await;
    gatepass.fetched(2).await;
    drop(clone);
    for _ in 0..5 {
        later(60).await;
        let ours = reqwest::Client::builder().no_proxy().build().unwrap();
        ours.get(format!("{}/.well-known/paserk.json", gatepass.url())).send().await.unwrap();
    }
    assert_eq!(gatepass.fetches(), 2);
}
