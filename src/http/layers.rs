//! What wraps every route, in order: [`around`].

use std::{
    any::Any,
    convert::Infallible,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Response,
        header::{
            ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CACHE_CONTROL,
            CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ORIGIN, REFERRER_POLICY, VARY,
            X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
    },
    response::IntoResponse,
    routing::Route,
};
use http_body_util::Limited;
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::{Instrument, Span, error_span};

use super::{
    App, MAX_BODY_BYTES, Problem, client_address, problem, request_id::RequestId, revocations,
    server::NoPlace,
};
use crate::{
    metrics::Metrics,
    telemetry::{REQUEST, traces::ServerSpan},
    token::{Claims, Sighting},
};

/// Which kind of route a request is for.
#[derive(Clone)]
pub(super) enum Area {
    /// Our own, which pages of other origins may call under these rules.
    Own(Arc<CorsLayer>),
    /// A proxy asks about a request to another service: a preflight of that is not ours to answer, nor is the size of
    /// its body ours to limit.
    ForwardAuth,
}

/// Everything around a route: a request passes through it from top to bottom, its response from bottom to top.
///
/// One function rather than a stack of layers: for every request, each axum layer puts a copy of all that is below it
/// on the heap, which costs more than everything the layers do.
pub(super) async fn around(
    app: App,
    area: Area,
    mut request: Request,
    route: Route,
) -> Result<Response<Body>, Infallible> {
    // First, so that everything below has an id to log and to answer with.
    let id = RequestId::assign(&mut request, &app);
    // One log line for each request, whatever becomes of it below.
    let mut line = Line::begin(&app, &request, id.clone());
    let (steps, span) = (line.trace.span().clone(), line.span());
    let answer = async {
        match area {
            // Outside the problem documents: a page of an allowed origin may read what went wrong.
            Area::Own(rules) => {
                cors(&rules, request, |request| rendered(&app, &id, bounded(request), route)).await
            }
            Area::ForwardAuth => rendered(&app, &id, Ok(request), route).await,
        }
    };
    let mut response = answer.instrument(steps).instrument(span).await;
    // Outside CORS and the problem documents, so that those responses have the header fields too.
    security_headers(response.headers_mut());
    line.end(&response);
    id.answer(response.headers_mut());
    Ok(response)
}

/// No body is read beyond the limit, whether or not its length is declared. A body of undeclared length that no handler
/// reads is left alone: hyper takes a piece of it, or over HTTP/2 a window, and drops the rest once the answer is sent.
fn bounded(request: Request) -> Result<Request, Problem> {
    let declared =
        request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if declared.is_some_and(|length: usize| length > MAX_BODY_BYTES) {
        return Err(Problem::too_large());
    }
    if request.body().is_end_stream() {
        return Ok(request);
    }
    Ok(request.map(|body| Body::new(Limited::new(body, MAX_BODY_BYTES))))
}

/// The answer to a request; if that is an error, its problem document, whoever made it.
async fn rendered(
    app: &App,
    id: &RequestId,
    request: Result<Request, Problem>,
    route: Route,
) -> Response<Body> {
    let mut response = guarded(app, request, route).await.into_response();
    problem::render(&mut response, id);
    response
}

/// The route's answer, or why there is none.
async fn guarded(
    app: &App,
    request: Result<Request, Problem>,
    route: Route,
) -> Result<Response<Body>, Problem> {
    let request = request?;
    if request.extensions().get::<NoPlace>().is_some() {
        return Err(Problem::crowded("There are more requests than can be served at the moment."));
    }
    // A handler that hangs gives back its connection and its place.
    let wait = if request.uri().path() == revocations::PATH { revocations::MAX_WAIT } else { Duration::ZERO };
    let answer = timeout(app.places.limits.handler + wait, route.oneshot(request));
    // A panic in a handler is a 500 for that request and nothing more.
    match unwinding(answer).await {
        Ok(Ok(answer)) => Ok(answer.unwrap_or_else(|never| match never {})),
        Ok(Err(_)) => Err(Problem::timeout()),
        Err(panic) => Err(panicked(&*panic)),
    }
}

/// The output of `future`, or what it panicked with.
async fn unwinding<F: Future>(future: F) -> Result<F::Output, Box<dyn Any + Send>> {
    let mut future = pin!(future);
    // It is not polled again after a panic.
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// What is recorded of a request, as a log line, in the metrics and as a span: id, method, route, status, latency, and
/// the problem's code. Never a header, a query or a body: those hold secrets and personal data.
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
    fn begin(app: &App, request: &Request, id: RequestId) -> Self {
        let method = request.method().clone();
        let route = request.extensions().get::<MatchedPath>().cloned();
        let known_route = route.as_ref().map(MatchedPath::as_str);
        let peer = client_address::peer(request.extensions());
        let is_ours = peer.is_some_and(|peer| client_address::is_trusted(peer, &app.trusted_proxies));
        let trace = ServerSpan::begin(id.as_str(), known(&method), known_route, request.headers(), is_ours);
        let metrics = app.metrics.clone();
        metrics.request_begins();
        Self { id, method, route, began: Instant::now(), metrics, trace, is_written: false }
    }

    /// The fields of every line that is logged within the request. The span is at the highest level, so that every line
    /// that `RUST_LOG` lets through has them.
    fn span(&self) -> Span {
        error_span!(
            REQUEST,
            request_id = self.id.as_str(),
            method = self.method.as_str(),
            route = self.route(),
            trace_id = self.trace.id(),
        )
    }

    fn end(&mut self, response: &Response<Body>) {
        let code = response.extensions().get::<Problem>().map(Problem::code);
        self.write(response.status().as_u16(), code);
    }

    /// The route as written in the code, with nobody's id in it; any other path is the client's invention.
    fn route(&self) -> &str {
        self.route.as_ref().map_or("-", MatchedPath::as_str)
    }

    fn write(&mut self, status: u16, code: Option<&str>) {
        self.is_written = true;
        let (id, method, route) = (self.id.as_str(), self.method.as_str(), self.route());
        // To the microsecond.
        let latency = self.began.elapsed();
        self.metrics.request_ends(known(&self.method), route, status, latency);
        self.trace.answered(status, code);
        let latency_ms = (latency.as_secs_f64() * 1e6).round() / 1e3;
        let trace_id = self.trace.id();
        tracing::info!(request_id = id, trace_id, method, route, status, latency_ms, code, "answered");
    }
}

/// The method if it is a known one. Any other is the client's invention, for which OpenTelemetry's word is `_OTHER`.
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

/// hyper dropped the request: 499, as nginx calls it. Nearly always the client has hung up; otherwise the service has
/// cut off the connection, and the log says so.
impl Drop for Line {
    fn drop(&mut self) {
        if !self.is_written {
            self.write(499, Some("client_gone"));
        }
    }
}

/// What a browser may do with a response: next to nothing, since nearly all are JSON.
const SECURITY: [(HeaderName, HeaderValue); 6] = [
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// Adds the fields that the handler has not set itself.
fn security_headers(headers: &mut HeaderMap) {
    // Room for all of them at once, and for the length and the request id.
    headers.reserve(SECURITY.len() + 2);
    for (name, value) in SECURITY {
        headers.entry(name).or_insert(value);
    }
}

/// What an answer varies on, and which of its header fields a page may read. In every answer, even if no page asks.
const VARIES: HeaderValue = HeaderValue::from_static("origin");
const EXPOSED: &str = "location,retry-after,www-authenticate,x-request-id";

/// Which pages may call: those of the allowed origins, or all if `*` is among them. Cookies play no part here, so
/// credentials stay off.
pub(super) fn cors_rules(allowed_origins: &[String]) -> CorsLayer {
    let origins = if allowed_origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(allowed_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let request_id = HeaderName::from_static("x-request-id");
    let exposed = EXPOSED.split(',').map(HeaderName::from_static);
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, request_id])
        .expose_headers(exposed.collect::<Vec<_>>())
        .max_age(Duration::from_secs(3600))
}

/// Applies the rules. tower-http answers every `OPTIONS` with 200, as if it were a preflight; only a real one, which
/// has both header fields (Fetch standard), may be answered in place of the route.
async fn cors<F: Future<Output = Response<Body>>>(
    rules: &CorsLayer,
    request: Request,
    next: impl FnOnce(Request) -> F,
) -> Response<Body> {
    let headers = request.headers();
    let is_preflight = headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if request.method() == Method::OPTIONS && !is_preflight {
        return next(request).await;
    }
    // No page asks: the CORS fields are then always the same, and making them costs as much as answering `/healthz`.
    if !headers.contains_key(ORIGIN) {
        let mut response = next(request).await;
        response.headers_mut().append(VARY, VARIES);
        response
            .headers_mut()
            .insert(ACCESS_CONTROL_EXPOSE_HEADERS, const { HeaderValue::from_static(EXPOSED) });
        return response;
    }
    let mut next = Some(next);
    let next = service_fn(|request| {
        let next = next.take().expect("a request is answered once");
        async { Ok::<_, Infallible>(next(request).await) }
    });
    rules.layer(next).oneshot(request).await.unwrap_or_else(|never| match never {})
}

#[derive(Debug, thiserror::Error)]
#[error("a handler panicked: {0}")]
struct Panicked(String);

/// A panic is our fault: 500, and its message goes to the log.
fn panicked(panic: &(dyn Any + Send)) -> Problem {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    Problem::fault(Panicked(text))
}

/// Counts an accepted token, and notes the sighting if the token has been used here for the first time.
pub(super) fn note_sighting(app: &App, request: &Request) {
    let extensions = request.extensions();
    if let (Some(Sighting::First), Some(claims)) = (extensions.get(), extensions.get::<Arc<Claims>>()) {
        app.metrics.bearer_accepted(false);
        app.activity.note(claims, app.clock.now());
    } else {
        app.metrics.bearer_accepted(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_without_origin_gets_the_headers_of_a_foreign_origin() {
        let rules = cors_rules(&["https://app.example".to_owned()]);
        let answer = async |origin: Option<&'static str>| {
            let mut request = Request::new(Body::empty());
            request.headers_mut().extend(origin.map(|origin| (ORIGIN, HeaderValue::from_static(origin))));
            cors(&rules, request, async |_| Response::new(Body::empty())).await.headers().clone()
        };
        let nobody = answer(None).await;
        assert_eq!(nobody.len(), 2);
        assert_eq!(nobody, answer(Some("https://evil.example")).await);
        assert_eq!(answer(Some("https://app.example")).await.len(), 3);
    }
}
