//! HTTP: the only room that uses axum. Each resource has its own file, and `layers` wraps every route.

mod admin;
mod body;
mod cause;
mod client_address;
mod client_auth;
mod docs;
mod external_users;
mod form;
mod forward_auth;
mod frames;
mod health;
mod history;
mod json;
mod layers;
mod openapi;
mod ops;
mod patience;
mod personal;
mod pieces;
mod places;
mod problem;
mod query;
mod request_id;
mod revocations;
pub mod server;
mod sessions;
mod signals;
mod streams;
mod tokens;
mod users;
mod well_known;

use std::{
    collections::HashSet,
    ops::Deref,
    sync::{Arc, Mutex, Once, OnceLock},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::Request,
    http::HeaderMap,
    response::IntoResponse,
    routing::{Route, any},
};
use ipnet::IpNet;
use tokio::sync::watch;
use tower::{ServiceBuilder, layer::layer_fn, service_fn};
use utoipa_axum::{router::UtoipaMethodRouter, routes};

use self::layers::Area;
pub use self::{
    client_address::client_address, history::ChangeBody, openapi::document, ops::router as ops_router,
    places::Places, problem::Problem, request_id::RequestId, server::Phase, users::UserBody,
};
use crate::{
    account::{Accounts, Activity, CleanUp, Clients, History},
    bearer::{BearerLayer, Refusal, bearer_token},
    clock::Clock,
    keys::Keys,
    metrics::{Metrics, PoolWatch},
    revocation::{Feed, Publisher},
    token::{Claims, Rejection, Sighting},
};

/// The largest request body, in bytes: 64 KiB.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// How long each part of a request may take, and how much clients may make the service hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the start of a connection, or the first byte of another request on it, until the header fields are here.
    pub header_read: Duration,
    /// How long a connection may be idle after a request. Longer than proxies and clients keep idle connections: by
    /// default 60 s for an ALB and nginx, 90 s for programs that use Go's client (Traefik) or reqwest. While few places
    /// for connections are free, [`Limits::header_read`] applies instead.
    pub idle: Duration,
    /// How long the body may take to arrive.
    pub body_read: Duration,
    /// From the header fields to the response, not counting the time that a request may wait for new revocations.
    pub handler: Duration,
    /// How long the old system (`LEGACY_LOGIN_URL`) may take to say whether it has a user. With such a system, every
    /// refused login takes a fifth longer than this.
    pub legacy_login: Duration,
    /// How long a client may take nothing of a response that is ready for it. Over HTTP/1 this holds on Linux only:
    /// other systems wait for such a client.
    pub stalled_write: Duration,
    /// From when no more connections are accepted until requests in flight are cut off. Kubernetes' grace period, by
    /// default 30 s, begins before the signal and covers the whole shutdown.
    pub drain: Duration,
    /// How many connections may be open at once, provided the system allows the process that many open files. Each
    /// request over HTTP/2 counts as one more.
    pub connections: usize,
    /// How many requests with more than 8 KiB, and a body, may be arriving at once.
    pub large_requests: usize,
    /// How many blocks of header fields in more than one frame of HTTP/2 may be arriving at once.
    pub http2_blocks: usize,
    /// How many pieces of 8 KiB the open connections over HTTP/2 may have sent in all, of which one counts for at most
    /// 214, or for 1498 if it has sent header fields in more than one frame. When few are left, clients that take some
    /// are told to go elsewhere, and connect again.
    pub http2_pieces: usize,
    /// How many more pieces there may be, of clients that have found none of those and were told to go elsewhere.
    pub http2_reserve: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_read: Duration::from_secs(10),
            idle: Duration::from_secs(100),
            body_read: Duration::from_secs(8),
            handler: Duration::from_secs(10),
            legacy_login: Duration::from_millis(2500),
            stalled_write: Duration::from_secs(30),
            drain: Duration::from_secs(15),
            connections: 10_000,
            large_requests: 200,
            http2_blocks: 200,
            http2_pieces: 9_000,
            http2_reserve: 3_000,
        }
    }
}

/// The parts of the service that requests need.
#[derive(Clone, Debug)]
pub struct App(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    phase: watch::Sender<Phase>,
    /// The OpenAPI document, once it has been requested.
    description: OnceLock<Bytes>,
    /// Why `/readyz` has found the service not ready since it was last ready, as it logged it.
    unready: Mutex<HashSet<String>>,
    /// Done when the log has been told that there seems to be a proxy that is not trusted.
    unnamed_proxy: Once,
}

/// The parts of an [`App`].
#[derive(Debug)]
pub struct Parts {
    /// The use cases.
    pub accounts: Accounts,
    /// The clients that may ask about tokens.
    pub clients: Clients,
    /// The keys that issue and verify access tokens.
    pub keys: Keys,
    /// The sightings of sessions: when each was last used.
    pub activity: Activity,
    /// The revocations that this replica knows.
    pub feed: Feed,
    /// The same for services that verify tokens themselves.
    pub publisher: Publisher,
    /// Deletes rows that nobody needs any more.
    pub clean_up: CleanUp,
    /// What was changed, and by whom.
    pub history: History,
    /// The service's metrics.
    pub metrics: Metrics,
    /// How the database connection pools are used.
    pub pools: PoolWatch,
    /// Where clients reach the service, if known: `scheme://host[:port]` and a path, which may be empty.
    pub public_url: Option<String>,
    /// Where time comes from.
    pub clock: Clock,
    /// The proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// The origins whose pages may call the service, as `scheme://host[:port]`, or `*`.
    pub allowed_origins: Vec<String>,
    /// Room for connections and what arrives on them, and the limits that say how much.
    pub places: Arc<Places>,
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0.parts
    }
}

impl App {
    /// Shares the parts between requests.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            parts,
            phase: watch::Sender::new(Phase::Serving),
            description: OnceLock::new(),
            unready: Mutex::default(),
            unnamed_proxy: Once::new(),
        }))
    }

    /// From now on `/readyz` reports not ready, so that load balancers send nothing more; what still comes is served.
    pub fn leave(&self) {
        self.0.phase.send_replace(Phase::Leaving);
    }

    /// From now on no connection is accepted, and no request waits for news.
    pub fn stop(&self) {
        self.0.phase.send_replace(Phase::Closing);
    }

    /// Tells when the service is shutting down.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    fn public_url(&self) -> Option<&str> {
        self.public_url.as_deref()
    }

    /// The answer to a request whose access token is refused.
    fn refused(&self, refusal: Refusal) -> Problem {
        self.metrics.bearer_refused(refusal.code());
        Problem::from(refusal)
    }

    /// Checks the access token of a request once more. The layer did when the header fields had arrived; meanwhile the
    /// session may have ended, or the user may have lost a role.
    fn check_again(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let check = |token| Ok(self.sight(token)?);
        bearer_token(headers).and_then(check).map(drop).map_err(|refusal| self.refused(refusal))
    }

    /// The claims of an access token that this service accepts now, and whether it has accepted the token before.
    fn sight(&self, token: &str) -> Result<(Arc<Claims>, Sighting), Rejection> {
        let at = self.clock.elapsed();
        let not_revoked = |claims: &Claims| self.feed.revocations().check(claims, at);
        self.keys.verifier().sight(token, self.clock.now(), at, not_revoked)
    }

    /// The OpenAPI document.
    fn description(&self) -> Bytes {
        let min_length = self.accounts.password_min_length();
        self.0.description.get_or_init(|| openapi::document_where(min_length).into()).clone()
    }

    fn is_stopping(&self) -> bool {
        *self.0.phase.borrow() != Phase::Serving
    }

    /// Waits until no request may wait for news any more.
    async fn stopped(&self) {
        // `self` holds the sender, so the wait cannot fail.
        let _ = self.phase().wait_for(|phase| *phase == Phase::Closing).await;
    }
}

/// Makes a route with its documentation.
type Documented = fn() -> UtoipaMethodRouter<App>;

/// Every route except those below. A handler in none of the three lists is neither documented nor served. The one
/// exception is the files of the documentation page ([`docs::assets`]), which are served.
const ROUTES: &[Documented] = &[
    || routes!(users::register),
    || routes!(users::log_in),
    || routes!(tokens::renew),
    || routes!(tokens::introspect),
    || routes!(tokens::revoke),
    || routes!(revocations::list_revocations),
    || routes!(well_known::jwks),
    || routes!(well_known::paserks),
    || routes!(well_known::metadata),
    || routes!(health::alive),
    || routes!(health::ready),
    || routes!(docs::openapi_json),
    || routes!(docs::page),
];

/// The routes that take a bearer token.
const BEARER_ROUTES: &[Documented] = &[
    || routes!(users::log_out),
    || routes!(users::me, users::update_me),
    || routes!(users::change_password),
    || routes!(users::delete_me),
    || routes!(personal::export),
    || routes!(history::own_history),
    || routes!(sessions::list_sessions, sessions::end_others),
    || routes!(sessions::end),
    || routes!(admin::list_users),
    || routes!(admin::user, admin::update_user, admin::delete_user),
    || routes!(admin::end_sessions),
    || routes!(external_users::put),
    || routes!(history::whole_history),
];

/// The routes that proxies call. OpenAPI cannot express "any method": the document shows `GET`, the router accepts all.
const FORWARD_AUTH_ROUTES: &[Documented] = &[
    || {
        let (schemas, paths, _): UtoipaMethodRouter<App> = routes!(forward_auth::verify);
        (schemas, paths, any(forward_auth::verify))
    },
    || {
        let (schemas, paths, _): UtoipaMethodRouter<App> = routes!(forward_auth::verify_below);
        (schemas, paths, any(forward_auth::verify_below))
    },
];

/// A router for these routes. The documentation of each is dropped as soon as its path is known: all of it at once
/// would take a megabyte, which the allocator never returns to the system.
fn serving(routes: &[Documented]) -> Router<App> {
    routes.iter().fold(Router::new(), |router, route| {
        let (_, documented, methods) = route();
        documented.paths.keys().fold(router, |router, path| router.route(path, methods.clone()))
    })
}

/// The whole service.
pub fn router(app: App) -> Router {
    let refusing = app.clone();
    let refuse = move |refusal: Refusal| refusing.refused(refusal).into_response();
    let bearer = BearerLayer::new(app.keys.verifier())
        .with_revocations(app.feed.revocations().clone())
        .with_clock(app.clock.clone())
        .with_answer(refuse);

    let noting = app.clone();
    let bearer = ServiceBuilder::new()
        // Claims, or a refusal.
        .layer(bearer)
        // After it, so that only accepted tokens are noted and counted.
        .map_request(move |request: Request| {
            layers::note_sighting(&noting, &request);
            request
        });
    let around = |area: Area| {
        let app = app.clone();
        layer_fn(move |route: Route| {
            let (app, area) = (app.clone(), area.clone());
            service_fn(move |request| layers::around(app.clone(), area.clone(), request, route.clone()))
        })
    };

    let forward_auth = serving(FORWARD_AUTH_ROUTES)
        // With nothing below, which the wildcard does not match.
        .route("/auth/verify/", any(forward_auth::verify_below))
        .route_layer(bearer.clone());
    serving(ROUTES)
        .merge(serving(BEARER_ROUTES).route_layer(bearer))
        .merge(docs::assets())
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .layer(around(Area::Own(Arc::new(layers::cors_rules(&app.allowed_origins)))))
        .merge(forward_auth.layer(around(Area::ForwardAuth)))
        .with_state(app)
}
