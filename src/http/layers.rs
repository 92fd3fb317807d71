//! The small layers around every route; [`super::router`] says in which order and why.

use std::{
    any::Any,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{ConnectInfo, MatchedPath, Request, State},
    http::{
        HeaderName, HeaderValue, Method, Response,
        header::{
            ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY,
            CONTENT_TYPE, LOCATION, ORIGIN, REFERRER_POLICY, RETRY_AFTER, WWW_AUTHENTICATE,
            X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
    },
    middleware::Next,
    response::IntoResponse,
};
use tower::{Layer, ServiceExt};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::{Instrument, info_span};

use super::{App, Problem, client_address, request_id::RequestId, revocations};
use crate::{
    metrics::Metrics,
    telemetry::{REQUEST, traces::ServerSpan},
    token::{Claims, Sighting},
};

/// One line for each request, one more in the counts, and a span: id, method, route, status, latency, and the problem's
/// code. Never a header, a query or a body: those hold secrets and personal data.
pub(super) async fn log(State(app): State<App>, request: Request, next: Next) -> Response<Body> {
    let id = request.extensions().get::<RequestId>().cloned().unwrap_or_default();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let known_route = route.as_ref().map(MatchedPath::as_str);
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let is_ours = peer.is_some_and(|peer| client_address::is_trusted(peer, app.trusted_proxies()));
    let trace = ServerSpan::begin(id.as_str(), known(&method), known_route, request.headers(), is_ours);
    let metrics = app.metrics().clone();
    metrics.request_begins();
    let mut line = Line { id, method, route, began: Instant::now(), metrics, trace, is_written: false };

    let span = info_span!(
        REQUEST,
        request_id = line.id.as_str(),
        method = %line.method,
        route = line.route(),
        trace_id = line.trace.id(),
    );
    let response = next.run(request).instrument(line.trace.span().clone()).instrument(span).await;

    let code = response.extensions().get::<Problem>().map(Problem::code);
    line.write(response.status().as_u16(), code);
    response
}

struct Line {
    id: RequestId,
    method: Method,
    route: Option<MatchedPath>,
    began: Instant,
    metrics: Metrics,
    trace: ServerSpan,
    is_written: bool,
}

impl Line {
    /// The route as it is written in the code, with no id of anybody; other paths are the client's own invention.
    fn route(&self) -> &str {
        self.route.as_ref().map_or("-", MatchedPath::as_str)
    }

    fn write(&mut self, status: u16, code: Option<&str>) {
        self.is_written = true;
        let (id, method, route) = (self.id.as_str(), &self.method, self.route());
        // To the microsecond.
        let latency = self.began.elapsed();
        self.metrics.request_ends(known(method), route, status, latency);
        self.trace.answered(status, code);
        let latency_ms = (latency.as_secs_f64() * 1e6).round() / 1e3;
        let trace_id = self.trace.id();
        tracing::info!(request_id = id, trace_id, %method, route, status, latency_ms, code, "answered");
    }
}

/// The method, of those that have a name: any other is the client's own invention (OpenTelemetry's word for them).
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

/// The client hung up, and hyper dropped the request: 499, as nginx calls it.
impl Drop for Line {
    fn drop(&mut self) {
        if !self.is_written {
            self.write(499, Some("client_gone"));
        }
    }
}

/// What a browser may do with a response: next to nothing, as nearly all are JSON. A handler that set a field keeps it.
pub(super) async fn security_headers(mut response: Response<Body>) -> Response<Body> {
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Which pages may call: those of the allowed origins. Cookies play no part here, so credentials stay off.
pub(super) fn cors_rules(allowed_origins: &[String]) -> CorsLayer {
    let origins = allowed_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    let request_id = HeaderName::from_static("x-request-id");
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, request_id.clone()])
        .expose_headers([LOCATION, RETRY_AFTER, WWW_AUTHENTICATE, request_id])
        .max_age(Duration::from_secs(3600))
}

/// Applies the rules. tower-http answers every `OPTIONS` with 200, as if it were a preflight; only a real one (Fetch
/// standard: it has both header fields) may be answered in a route's place.
pub(super) async fn cors(State(rules): State<CorsLayer>, request: Request, next: Next) -> Response<Body> {
    let headers = request.headers();
    let is_preflight = headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if request.method() == Method::OPTIONS && !is_preflight {
        return next.run(request).await;
    }
    rules.layer(next).oneshot(request).await.unwrap_or_else(|never| match never {})
}

/// Gives a handler up that takes longer than it may.
pub(super) async fn time_out(State(app): State<App>, request: Request, next: Next) -> Response<Body> {
    let wait = if request.uri().path() == revocations::PATH { revocations::MAX_WAIT } else { Duration::ZERO };
    match tokio::time::timeout(app.limits().handler + wait, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::timeout().into_response(),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a handler panicked: {0}")]
struct Panicked(String);

/// A panic is a fault of ours: 500, and the log has what it said.
#[expect(clippy::needless_pass_by_value, reason = "the signature that tower-http asks for")]
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Response<Body> {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    Problem::fault(Panicked(text)).into_response()
}

/// Counts a token that was accepted, and notes it when it has been used for the first time here.
pub(super) async fn note_sighting(State(app): State<App>, request: Request, next: Next) -> Response<Body> {
    let extensions = request.extensions();
    if let (Some(Sighting::First), Some(claims)) = (extensions.get(), extensions.get::<Arc<Claims>>()) {
        app.metrics().bearer_accepted(false);
        app.activity().note(claims, app.clock().now());
    } else {
        app.metrics().bearer_accepted(true);
    }
    next.run(request).await
}
