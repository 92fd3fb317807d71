//! HTTP: the only room with axum. One file for each resource; around every route is what `layers` has.

mod admin;
mod body;
mod cause;
mod client_address;
mod client_auth;
mod docs;
mod external_users;
mod form;
mod forward_auth;
mod health;
mod history;
mod json;
mod layers;
mod openapi;
mod ops;
mod patience;
mod personal;
mod problem;
mod query;
mod request_id;
mod revocations;
pub mod server;
mod sessions;
mod streams;
mod tokens;
mod users;
mod well_known;

use std::{
    ops::Deref,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::Request,
    routing::{Route, any},
};
use ipnet::IpNet;
use tokio::sync::watch;
use tower::{ServiceBuilder, layer::layer_fn, service_fn};
use utoipa_axum::{router::UtoipaMethodRouter, routes};

use self::layers::Area;
pub use self::{
    client_address::client_address, history::ChangeBody, openapi::document, ops::router as ops_router,
    problem::Problem, request_id::RequestId, server::Phase, users::UserBody,
};
use crate::{
    account::{Accounts, Activity, CleanUp, Clients, History},
    bearer::{BearerLayer, Refusal},
    clock::Clock,
    keys::Keys,
    metrics::{Metrics, PoolWatch},
    revocation::{Feed, Publisher},
};

/// The largest request body, in bytes: 64 KiB.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// How long each part of a request may take, and how many clients may be there.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the connection, or the first byte of another request on it, until the header fields are there.
    pub header_read: Duration,
    /// How long a connection may be idle after a request. Longer than proxies and clients keep theirs: 60 s by
    /// default an ALB and nginx, 90 s what is made with Go (Traefik) or reqwest. While few places are free it is
    /// [`Limits::header_read`].
    pub idle: Duration,
    /// Until the body is there.
    pub body_read: Duration,
    /// From the header fields to the response, not counting the time for which a request may wait for news.
    pub handler: Duration,
    /// How long the old system may take to say whether it has a user (`LEGACY_LOGIN_URL`). Where there is one, every
    /// refused login takes a fifth longer than that.
    pub legacy_login: Duration,
    /// How long a client may leave an answer lying without taking any of it. Over HTTP/1 on Linux alone: elsewhere such a
    /// client is waited for.
    pub stalled_write: Duration,
    /// From when no more connections are taken until requests in flight are cut off. Kubernetes grants 30 s by default,
    /// from before the signal until the end.
    pub drain: Duration,
    /// How many connections may be open at once, if the system lets the process have as many files.
    pub connections: usize,
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
        }
    }
}

/// What the service is made of, as far as requests need it.
#[derive(Clone, Debug)]
pub struct App(Arc<Parts>);

/// The parts of an [`App`].
#[derive(Debug)]
pub struct Parts {
    /// The use cases.
    pub accounts: Accounts,
    /// Who may ask about tokens.
    pub clients: Clients,
    /// The keys that access tokens are made and checked with.
    pub keys: Keys,
    /// What is seen of sessions.
    pub activity: Activity,
    /// What was revoked.
    pub feed: Feed,
    /// What was revoked, for services that verify by themselves.
    pub publisher: Publisher,
    /// Deletes what has had its time.
    pub clean_up: CleanUp,
    /// What was changed, by whom.
    pub history: History,
    /// What is counted.
    pub metrics: Metrics,
    /// How the pools of connections to the database are used.
    pub pools: PoolWatch,
    /// Where clients find the service, as `scheme://host[:port]` and a path that may be empty; if it is known.
    pub public_url: Option<String>,
    /// The OpenAPI document, once somebody has asked for it.
    pub description: OnceLock<Bytes>,
    /// Where time comes from.
    pub clock: Clock,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Which web pages may call, as `scheme://host[:port]`.
    pub allowed_origins: Vec<String>,
    /// How long each part of a request may take.
    pub limits: Limits,
    /// Whether the service is going down.
    pub phase: watch::Sender<Phase>,
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    /// Shares the parts between requests.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// From now on `/readyz` says no, so that a load balancer sends nothing more; what comes is served.
    pub fn leave(&self) {
        self.phase.send_replace(Phase::Leaving);
    }

    /// From now on no connection is taken, and nobody is kept waiting.
    pub fn stop(&self) {
        self.phase.send_replace(Phase::Closing);
    }

    /// Tells when the service is going down.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    fn public_url(&self) -> Option<&str> {
        self.public_url.as_deref()
    }

    /// The OpenAPI document.
    fn description(&self) -> Bytes {
        let min_length = self.accounts.password_min_length();
        self.description.get_or_init(|| openapi::document_where(min_length).into()).clone()
    }

    fn is_stopping(&self) -> bool {
        *self.phase.borrow() != Phase::Serving
    }

    /// Waits until nobody is kept waiting any more.
    async fn stopped(&self) {
        // The sender is in our own hands, so that waiting does not fail.
        let _ = self.phase().wait_for(|phase| *phase == Phase::Closing).await;
    }
}

/// Makes a route with its documentation.
type Documented = fn() -> UtoipaMethodRouter<App>;

/// Every route but those below. A handler that is in none of the three is not documented, nor served, but for the files of
/// the documentation's page ([`docs::assets`]).
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

/// The routes that proxies ask. OpenAPI has no word for "any method": the document shows `GET`, the router takes all.
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

/// What serves these. The documentation of each is dropped as soon as it has told the path: all of it at once would be a
/// megabyte, of which the allocator gives nothing back.
fn serving(routes: &[Documented]) -> Router<App> {
    routes.iter().fold(Router::new(), |router, route| {
        let (_, documented, methods) = route();
        documented.paths.keys().fold(router, |router, path| router.route(path, methods.clone()))
    })
}

/// The whole service.
pub fn router(app: App) -> Router {
    let metrics = app.metrics.clone();
    let refuse = move |refusal: Refusal| {
        metrics.bearer_refused(refusal.code());
        axum::response::IntoResponse::into_response(Problem::from(refusal))
    };
    let bearer = BearerLayer::new(app.keys.verifier())
        .with_revocations(app.feed.revocations().clone())
        .with_clock(app.clock.clone())
        .with_answer(refuse);

    let noting = app.clone();
    let bearer = ServiceBuilder::new()
        // Claims, or a refusal.
        .layer(bearer)
        // After it: only what was accepted is noted and counted.
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
        // With nothing below.
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
