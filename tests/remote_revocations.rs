//! A service that follows the revocations of a running gatepass refuses what is revoked within a second, whatever its
//! keys are. It knows everything before it accepts anybody. When gatepass is gone for too long, it refuses everybody,
//! and later recovers by itself, with everything that was revoked in the meantime.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use gatepass::{
    bearer::{BearerLayer, DocumentError, RemoteError, RemoteKeys, Source, follow_revocations},
    clock::Clock,
    http::{Limits, Phase, Places, server},
    token::{Claims, Party, Rejection, Revocations, SymmetricKey, Verifier},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tower::ServiceExt;
use uuid::Uuid;

use crate::{
    app::{App, KEY, START},
    process::{Port, allowed, until},
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A gatepass on a port of its own, which it keeps.
struct Gatepass {
    app: App,
    port: Port,
    client: (Uuid, String),
    running: Option<(watch::Sender<Phase>, JoinHandle<bool>)>,
}

impl Gatepass {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let app = App::with(settings).await;
        // Services use the real time.
        app.clock.shift(Clock::system().now() - START);
        app.register("alice").await;
        let (id, secret) = app.client("orders").await;
        let client = (id.parse().unwrap(), secret);
        let mut gatepass = Self { app, port: Port::reserve(), client, running: None };
        gatepass.run().await;
        gatepass
    }

    async fn run(&mut self) {
        let listener = TcpListener::bind(self.port.address()).await.unwrap();
        let (phase, says) = watch::channel(Phase::Serving);
        let limits = Limits { drain: Duration::from_millis(10), ..Limits::default() };
        let serving = server::serve(listener, self.app.router.clone(), None, Places::new(limits), says);
        self.running = Some((phase, tokio::spawn(serving)));
    }

    /// From now on nothing listens there; requests that wait are cut off.
    async fn vanish(&mut self) {
        let (phase, serving) = self.running.take().unwrap();
        phase.send(Phase::Closing).unwrap();
        serving.await.unwrap();
    }

    fn base(&self) -> String {
        format!("http://{}", self.port.address())
    }

    async fn follow(&self, max_staleness: Duration) -> Arc<Revocations> {
        let (id, secret) = &self.client;
        follow_revocations(&self.base(), *id, &**secret, max_staleness).await.unwrap()
    }

    /// The verifier of a service that was given the shared key.
    fn verifier(&self) -> Verifier {
        Verifier::new([KEY.parse::<SymmetricKey>().unwrap()], party())
    }

    fn claims(&self, login: &Value) -> Arc<Claims> {
        self.verifier().verify(login["access_token"].as_str().unwrap(), self.app.clock.now()).unwrap()
    }

    async fn log_out(&self, login: &Value) {
        self.app.post("/users/logout").bearer(login).send().await.expect(204);
    }
}

fn party() -> Party {
    Party { issuer: "gatepass".into(), audience: "gatepass".into() }
}

/// Another service.
struct Service(Router);

impl Service {
    fn new(keys: impl Into<Source>, revocations: &Arc<Revocations>) -> Self {
        let layer = BearerLayer::new(keys).with_revocations(revocations.clone());
        Self(Router::new().route("/", get(async || "")).layer(layer))
    }

    /// The status and code of its answer.
    async fn ask(&self, login: &Value) -> (u16, String) {
        let token = login["access_token"].as_str().unwrap();
        let request = Request::get("/").header(header::AUTHORIZATION, format!("Bearer {token}"));
        let response = self.0.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        (status, problem["code"].as_str().unwrap_or_default().to_owned())
    }
}

fn accepted() -> (u16, String) {
    (200, String::new())
}

fn refused(code: &str) -> (u16, String) {
    (401, code.to_owned())
}

#[tokio::test]
async fn a_logged_out_session_is_refused_within_a_second() {
    for settings in [&[][..], &[("TOKEN_FORMAT", "v4.public")], &[("TOKEN_FORMAT", "jwt")]] {
        let gatepass = Gatepass::start(settings).await;
        let app = &gatepass.app;
        let before = app.login("alice").await;
        gatepass.log_out(&before).await;
        let revocations = gatepass.follow(MINUTE).await;
        let service = if settings.is_empty() {
            Service::new(gatepass.verifier(), &revocations)
        } else {
            Service::new(RemoteKeys::connect(&gatepass.base(), party()).await.unwrap(), &revocations)
        };
        // Earlier revocations are known from the beginning.
        assert_eq!(service.ask(&before).await, refused("session_revoked"));

        let kept = app.login("alice").await;
        for _ in 0..5 {
            let gone = app.login("alice").await;
            assert_eq!(service.ask(&gone).await, accepted());
            gatepass.log_out(&gone).await;
            let began = Instant::now();
            until("it is refused", async || service.ask(&gone).await != accepted()).await;
            println!("from the logout to the refusal elsewhere: {:?}", began.elapsed());
            assert!(began.elapsed() < allowed(SECOND), "{:?}", began.elapsed());
            assert_eq!(service.ask(&gone).await, refused("session_revoked"));
        }
        assert_eq!(service.ask(&kept).await, accepted());

        for (roles, refused) in [("{support}", true), ("{auditor}", true), ("{}", false)] {
            let set = "UPDATE users SET roles = $2::text[] WHERE id = $1::uuid";
            let user_id = kept["user"]["id"].as_str().unwrap();
            sqlx::query(set).bind(user_id).bind(roles).execute(&app.db).await.unwrap();
            app.hear().await;
            let expected = if refused { (401, "token_outdated".to_owned()) } else { accepted() };
            until("it is known", async || service.ask(&kept).await == expected).await;
        }
    }
}

#[tokio::test]
async fn revocations_on_several_pages_are_loaded_completely() {
    let gatepass = Gatepass::start(&[]).await;
    let flood = "INSERT INTO revocations (session_id, expires_at)
                 SELECT gen_random_uuid(), now() + interval '15 minutes' FROM generate_series(1, 12000)";
    sqlx::query(flood).execute(&gatepass.app.db).await.unwrap();
    let revocations = gatepass.follow(MINUTE).await;
    assert_eq!(revocations.count().sessions, 12_000);
    sqlx::query(flood).execute(&gatepass.app.db).await.unwrap();
    gatepass.app.hear().await;
    until("all are there", async || revocations.count().sessions == 24_000).await;
}

#[tokio::test]
async fn an_outage_of_gatepass_stops_acceptance_but_loses_no_revocation() {
    let mut gatepass = Gatepass::start(&[]).await;
    let revocations = gatepass.follow(MINUTE).await;
    let service = Service::new(gatepass.verifier(), &revocations);
    let (kept, gone) = (gatepass.app.login("alice").await, gatepass.app.login("alice").await);
    gatepass.vanish().await;
    gatepass.log_out(&gone).await;

    // What the service knows stays good for its maximum staleness, and no longer.
    assert_eq!(service.ask(&kept).await, accepted());
    let claims = gatepass.claims(&kept);
    let elapsed = || Clock::system().elapsed();
    assert_eq!(revocations.check(&claims, elapsed() + MINUTE / 2), Ok(()));
    assert_eq!(revocations.check(&claims, elapsed() + 2 * MINUTE), Err(Rejection::RevocationsUnknown));

    gatepass.run().await;
    let began = Instant::now();
    until("it hears again", async || service.ask(&gone).await != accepted()).await;
    println!("gatepass back, heard again after {:?}", began.elapsed());
    assert_eq!(service.ask(&gone).await, refused("session_revoked"));
    assert_eq!(service.ask(&kept).await, accepted());
}

#[tokio::test]
async fn a_service_that_went_stale_comes_back_by_itself() {
    let mut gatepass = Gatepass::start(&[]).await;
    let revocations = gatepass.follow(SECOND).await;
    let service = Service::new(gatepass.verifier(), &revocations);
    let kept = gatepass.app.login("alice").await;
    gatepass.vanish().await;
    until("it is stale", async || service.ask(&kept).await == (503, "revocations_stale".to_owned())).await;
    gatepass.run().await;
    until("it is back", async || service.ask(&kept).await == accepted()).await;
}

#[tokio::test]
async fn a_client_that_is_deleted_hears_nothing_more() {
    let gatepass = Gatepass::start(&[]).await;
    let revocations = gatepass.follow(SECOND).await;
    let service = Service::new(gatepass.verifier(), &revocations);
    let kept = gatepass.app.login("alice").await;
    sqlx::query("DELETE FROM clients").execute(&gatepass.app.db).await.unwrap();
    until("it is stale", async || service.ask(&kept).await == (503, "revocations_stale".to_owned())).await;
}

/// Something that answers `/revocations`.
#[derive(Clone)]
struct Somebody {
    answer: Arc<Mutex<(StatusCode, String)>>,
    asked: Arc<AtomicUsize>,
    questions: Arc<Mutex<Vec<String>>>,
}

impl Somebody {
    async fn start(answer: (StatusCode, String)) -> (Self, String) {
        let somebody =
            Self { answer: Arc::new(Mutex::new(answer)), asked: Arc::default(), questions: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let state = somebody.clone();
        let answer = async move |headers: HeaderMap, request: Request<Body>| {
            assert!(headers[header::AUTHORIZATION].to_str().unwrap().starts_with("Basic "));
            state.asked.fetch_add(1, Ordering::SeqCst);
            state.questions.lock().unwrap().push(request.uri().query().unwrap_or_default().to_owned());
            let (status, body) = state.answer.lock().unwrap().clone();
            // Where a redirect would lead.
            (status, [(header::LOCATION, "/revocations")], body).into_response()
        };
        let router = Router::new().route("/revocations", get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (somebody, base)
    }

    fn answers(&self, status: StatusCode, body: impl ToString) {
        *self.answer.lock().unwrap() = (status, body.to_string());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn asked_again(&self) {
        let before = self.asked();
        until("it is asked again", async || self.asked() > before).await;
    }
}

fn nothing(next: &str) -> Value {
    json!({ "revocations": [], "next": next, "more": false })
}

async fn follow(base: &str, max_staleness: Duration) -> Result<Arc<Revocations>, RemoteError> {
    follow_revocations(base, Uuid::from_u128(7), "gps_secret", max_staleness).await
}

#[tokio::test]
async fn following_fails_unless_the_first_load_is_complete() {
    let gatepass = Gatepass::start(&[]).await;
    let (id, secret) = &gatepass.client;
    for (id, secret) in [(*id, "gps_wrong"), (Uuid::from_u128(7), secret)] {
        let error = follow_revocations(&gatepass.base(), id, secret, MINUTE).await.unwrap_err();
        let RemoteError::Document { url, reason: DocumentError::Status(StatusCode::UNAUTHORIZED) } = &error
        else {
            panic!("{error}")
        };
        assert_eq!(*url, format!("{}/revocations", gatepass.base()));
        assert!(!format!("{error:?}").contains(secret));
    }
    // A secret is never sent unencrypted.
    let error = follow("http://auth.example.com", MINUTE).await.unwrap_err();
    assert!(matches!(error, RemoteError::Address), "{error}");

    let (somebody, base) = Somebody::start((StatusCode::OK, String::new())).await;
    let session = |expires_at: &str| json!({ "session_id": Uuid::from_u128(1), "expires_at": expires_at });
    for (status, body) in [
        (StatusCode::OK, String::new()),
        (StatusCode::OK, "<!doctype html><title>Welcome to nginx!</title>".into()),
        (StatusCode::OK, "{}".into()),
        (StatusCode::OK, json!({ "revocations": [], "next": "x" }).to_string()),
        (StatusCode::OK, json!({ "revocations": [session("soon")], "next": "x", "more": false }).to_string()),
        // A revocation of a kind that this version does not know.
        (
            StatusCode::OK,
            json!({ "revocations": [{ "key_id": "x" }], "next": "x", "more": false }).to_string(),
        ),
        (StatusCode::OK, nothing(&"x".repeat(16 << 20)).to_string()),
        (StatusCode::NO_CONTENT, String::new()),
        (StatusCode::FOUND, nothing("x").to_string()),
        (StatusCode::SERVICE_UNAVAILABLE, nothing("x").to_string()),
    ] {
        somebody.answers(status, &body);
        let asked = somebody.asked();
        let error = follow(&base, MINUTE).await.unwrap_err();
        let what = format!("{status} {body:.60}");
        let RemoteError::Document { reason, .. } = error else { panic!("{what}") };
        match reason {
            DocumentError::Status(found) => assert_eq!(found, status, "{what}"),
            DocumentError::TooLong { limit } => assert!(body.len() > limit, "{what}"),
            DocumentError::NoRevocations(_) => assert_eq!(status, StatusCode::OK, "{what}"),
            reason => panic!("{what}: {reason}"),
        }
        assert_eq!(somebody.asked(), asked + 1, "{what}");
    }
}

#[tokio::test]
async fn after_an_invalid_answer_nothing_is_forgotten_and_the_request_repeated() {
    let ended = json!({ "session_id": Uuid::from_u128(1), "expires_at": "2999-01-01T00:00:00Z" });
    let first = json!({ "revocations": [ended], "next": "first", "more": false });
    let (somebody, base) = Somebody::start((StatusCode::OK, first.to_string())).await;
    let revocations = follow(&base, MINUTE).await.unwrap();
    let last = || somebody.questions.lock().unwrap().last().unwrap().clone();
    for (status, body) in [
        (StatusCode::BAD_GATEWAY, "later".to_owned()),
        (StatusCode::OK, "{}".to_owned()),
        (StatusCode::UNAUTHORIZED, nothing("other").to_string()),
    ] {
        somebody.answers(status, body);
        somebody.asked_again().await;
        // It does not wait now.
        until("it is asked for the same", async || last() == "wait=0&since=first").await;
        assert_eq!(revocations.count().sessions, 1);
    }
    somebody.answers(StatusCode::OK, nothing("second"));
    until("it goes on", async || last() == "wait=15&since=second").await;
    // When gatepass does not accept the cursor, it is asked for everything.
    somebody.answers(StatusCode::UNPROCESSABLE_ENTITY, "");
    until("it begins anew", async || last() == "wait=0").await;
    assert_eq!(revocations.count().sessions, 1);
}

#[tokio::test]
async fn reset_roles_take_effect_once_the_last_page_is_read() {
    let (alice, bob) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let user = |id: Uuid, roles: &[&str], change: i64| {
        let expires_at = "2999-01-01T00:00:00Z";
        json!({ "user_id": id, "roles": roles, "change": change, "expires_at": expires_at })
    };
    let page = |users: &[Value], next: &str, more: bool, reset: bool| json!({ "revocations": users, "next": next, "more": more, "reset": reset });
    let known = page(&[user(alice, &[], 41), user(bob, &["admin"], 42)], "known", false, true);
    let (somebody, base) = Somebody::start((StatusCode::OK, known.to_string())).await;
    let revocations = follow(&base, MINUTE).await.unwrap();
    // For tokens of alice and bob that carry the role admin.
    let checks = || {
        [alice, bob].map(|user_id| {
            let claims = Claims {
                issuer: "gatepass".into(),
                user_id,
                audience: "gatepass".into(),
                issued_at: START,
                not_before: START,
                expires_at: START + MINUTE,
                token_id: Uuid::from_u128(3),
                session_id: Uuid::from_u128(4),
                username: "somebody".into(),
                roles: vec!["admin".into()],
            };
            revocations.check(&claims, Clock::system().elapsed())
        })
    };
    let before = [Err(Rejection::RolesChanged), Ok(())];
    assert_eq!(checks(), before);

    let last = || somebody.questions.lock().unwrap().last().unwrap().clone();
    somebody.answers(StatusCode::OK, page(&[user(bob, &[], 1)], "first", true, true));
    until("it goes on", async || last() == "wait=0&since=first").await;
    assert_eq!(checks(), before);
    somebody.answers(StatusCode::BAD_GATEWAY, "later");
    for _ in 0..2 {
        somebody.asked_again().await;
        assert_eq!(checks(), before);
    }
    somebody.answers(StatusCode::OK, page(&[user(alice, &[], 2)], "second", false, false));
    until("all is told", async || last() == "wait=15&since=second").await;
    assert_eq!(checks(), [Err(Rejection::RolesChanged), Err(Rejection::RolesChanged)]);
    // From now on the new numbers count.
    somebody.answers(StatusCode::OK, page(&[user(bob, &["admin"], 3)], "third", false, false));
    until("there is more", async || last() == "wait=15&since=third").await;
    assert_eq!(checks(), before);
}

#[tokio::test]
async fn a_gatepass_that_never_waits_is_not_flooded() {
    let (somebody, base) = Somebody::start((StatusCode::OK, nothing("x").to_string())).await;
    let _revocations = follow(&base, MINUTE).await.unwrap();
    let began = Instant::now();
    until("it is asked ten times", async || somebody.asked() >= 10).await;
    assert!(began.elapsed() >= Duration::from_millis(9 * 200 - 200), "{:?}", began.elapsed());
}

#[tokio::test]
async fn following_ends_with_the_last_service_that_needs_it() {
    let (somebody, base) = Somebody::start((StatusCode::OK, nothing("x").to_string())).await;
    let revocations = follow(&base, MINUTE).await.unwrap();
    let service = Service::new(Verifier::new([KEY.parse::<SymmetricKey>().unwrap()], party()), &revocations);
    drop(revocations);
    somebody.asked_again().await;
    drop(service);
    // One request may be on its way; after a pause in which several more would have come, there is none.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let asked = somebody.asked();
    tokio::time::sleep(SECOND).await;
    assert_eq!(somebody.asked(), asked);
}
