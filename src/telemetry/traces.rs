//! Traces: the steps of a request and how long each took, sent to a collector by OTLP over HTTP with protobuf.
//!
//! Each request has a span that follows OpenTelemetry's conventions for HTTP servers. Below it are the spans of its
//! steps, and one for each SQL statement, made from what sqlx logs. No span holds a client's path, query, body or
//! address. Of the header fields, spans hold only the ids that are made to be passed on: `x-request-id` and
//! `traceparent`. Of a statement, they hold the text, which has placeholders where the data goes.
//!
//! A request from one of our own proxies continues its caller's trace (W3C Trace Context, `traceparent`). Any other
//! gets a trace of its own, with a link to its caller's: otherwise a client that sent the same trace id with every
//! request would make one endless trace of them. Chance decides whether a request is recorded, in the share that the
//! operator has set. Nothing that the caller sends has a say in it: neither its flag nor its trace id, on which
//! OpenTelemetry's own sampler relies. `tracestate` is not taken over: it would carry a stranger's text into other
//! people's tools.
//!
//! Spans are sent from a thread of their own, out of a queue of bounded length. If the collector is slow or dead, spans
//! are lost, and nothing else waits.
//!
//! HTTP rather than gRPC: every collector accepts both, and reqwest, which is here already with its TLS, sends HTTP;
//! gRPC would bring tonic and a second HTTP client. The other environment variables of OpenTelemetry's SDK apply as
//! well, such as `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_BSP_MAX_QUEUE_SIZE`.

use std::{fmt, time::Duration};

use http::{HeaderMap, HeaderValue};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator},
    time,
    trace::{Link, Span as _, SpanKind, TraceContextExt, TraceId, Tracer, TracerProvider},
};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    resource::EnvResourceDetector,
    trace::{
        IdGenerator, RandomIdGenerator, Sampler, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample,
    },
};
use tracing::{
    Event, Level, Metadata, Span, Subscriber, field, field::Visit, info_span, level_filters::LevelFilter,
};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::filter_fn, layer, registry::LookupSpan};

use super::REQUEST;

const TRACEPARENT: &str = "traceparent";
/// How long sending the last spans may take at shutdown.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);
/// The target under which sqlx logs statements.
const STATEMENTS: &str = "sqlx::query";

/// Sends spans to a collector.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

/// Spans cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("OTEL_EXPORTER_OTLP_ENDPOINT: traces cannot be sent")]
pub struct NoExporter(#[from] ExporterBuildError);

impl Traces {
    /// Sends the traces of a `share` of all requests, 0 to 1, to the collector at `endpoint`, to which `/v1/traces` is
    /// appended. Whether there is a collector shows only later, in the log.
    ///
    /// # Errors
    ///
    /// When no HTTP client can be made for it, or the SDK's environment variables cannot be read.
    pub fn new(endpoint: &str, share: f64) -> Result<Self, NoExporter> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .build()?;
        let resource = Resource::builder_empty()
            .with_service_name("gatepass")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_detector(Box::new(EnvResourceDetector::new()));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .with_sampler(Share(share));
        Ok(Self(provider.build()))
    }

    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let tracer = self.0.tracer("gatepass");
        let spans = tracing_opentelemetry::layer()
            .with_tracer(tracer.clone())
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(is_traced).with_max_level_hint(LevelFilter::INFO));
        let is_statement = |metadata: &Metadata<'_>| !metadata.is_span() && metadata.target() == STATEMENTS;
        let statements =
            Statements(tracer).with_filter(filter_fn(is_statement).with_max_level_hint(LevelFilter::DEBUG));
        spans.and_then(statements)
    }

    /// Sends the remaining spans, for a second at most.
    pub async fn finish(self) {
        let finish = move || self.0.shutdown_with_timeout(FLUSH_PATIENCE);
        match tokio::task::spawn_blocking(finish).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans could not be sent"),
            Err(error) => tracing::warn!(%error, "the last spans could not be sent"),
        }
    }
}

/// Records this share of the requests, chosen by chance, each with everything below it.
#[derive(Clone, Debug)]
struct Share(f64);

impl ShouldSample for Share {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        _: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let is_below = parent
            .map(|parent| parent.span().span_context().clone())
            .is_some_and(|it| it.is_valid() && !it.is_remote());
        let sampler = if is_below {
            Sampler::ParentBased(Box::new(Sampler::AlwaysOff))
        } else {
            Sampler::TraceIdRatioBased(self.0)
        };
        // An id of our own: the caller may have chosen the trace's id so that it is recorded, or is not.
        let chance = RandomIdGenerator::default().new_trace_id();
        sampler.should_sample(parent, chance, name, kind, attributes, links)
    }
}

/// Our own spans, except those for the log. No events: what is logged may name people.
fn is_traced(metadata: &Metadata<'_>) -> bool {
    metadata.is_span()
        && *metadata.level() <= Level::INFO
        && metadata.target().starts_with("gatepass")
        && metadata.name() != REQUEST
}

/// The span of a request to the service.
#[derive(Debug)]
pub struct ServerSpan {
    /// Disabled when there are no traces.
    span: Span,
    trace_id: Option<String>,
}

impl ServerSpan {
    /// A span for a request. `route` is as written in the code; `None` if the request is for no route of ours. The span
    /// is in the trace that `headers` names if the caller `is_ours`, and otherwise in a new one.
    pub fn begin(
        request_id: &str,
        method: &'static str,
        route: Option<&str>,
        headers: &HeaderMap,
        is_ours: bool,
    ) -> Self {
        let span = info_span!(
            parent: None,
            "server",
            otel.kind = "server",
            otel.name = field::Empty,
            otel.status_code = field::Empty,
            http.request.method = method,
            http.route = route,
            http.response.status_code = field::Empty,
            error.r#type = field::Empty,
            request_id,
        );
        if span.is_disabled() {
            return Self { span, trace_id: None };
        }
        match route {
            Some(route) => span.record("otel.name", format!("{method} {route}")),
            None => span.record("otel.name", method),
        };
        let caller = TraceContextPropagator::new().extract_with_context(&Context::new(), &Caller(headers));
        if !is_ours {
            span.add_link(caller.span().span_context().clone());
        } else if let Err(error) = span.set_parent(caller) {
            tracing::debug!(%error, "a request could not join its caller's trace");
        }
        // All zeros if nobody collects traces.
        let trace_id = Some(span.context().span().span_context().trace_id());
        let trace_id = trace_id.filter(|id| *id != TraceId::INVALID).map(|id| id.to_string());
        Self { span, trace_id }
    }

    /// The trace's id, in hexadecimal; `None` when there are no traces.
    pub fn id(&self) -> Option<&str> {
        self.trace_id.as_deref()
    }

    /// The span that the request's steps go below.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The request was answered; `code` is the problem's. Only a fault of ours counts as an error of this span.
    pub fn answered(&self, status: u16, code: Option<&str>) {
        self.span.record("http.response.status_code", status);
        if status >= 500 {
            self.span.record("otel.status_code", "error");
            self.span.record("error.type", code.unwrap_or("500"));
        }
    }
}

/// The `traceparent` for a request that is made to serve the current one; `None` when there are no traces.
pub fn traceparent() -> Option<HeaderValue> {
    struct Field(Option<HeaderValue>);

    impl Injector for Field {
        fn set(&mut self, key: &str, value: String) {
            if key == TRACEPARENT {
                self.0 = HeaderValue::try_from(value).ok();
            }
        }
    }

    let mut field = Field(None);
    TraceContextPropagator::new().inject_context(&Context::current(), &mut field);
    field.0
}

/// What is taken over from a caller: one `traceparent`.
struct Caller<'a>(&'a HeaderMap);

impl Extractor for Caller<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let mut fields = self.0.get_all(TRACEPARENT).iter();
        let field = fields.next().filter(|_| key == TRACEPARENT && fields.next().is_none())?;
        field.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

/// Makes a span of each statement that sqlx logs, below the step that it belongs to. Statements that belong to no
/// request are not traced.
struct Statements(SdkTracer);

impl<S: Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let parent = Context::current();
        if !parent.span().span_context().is_sampled() {
            return;
        }
        let mut statement = Statement::default();
        event.record(&mut statement);
        let operation = statement.summary.split_whitespace().next().unwrap_or("SQL").to_owned();
        // A short statement has only the summary.
        let text =
            if statement.text.is_empty() { statement.summary } else { statement.text.trim().to_owned() };
        let ended_at = time::now();
        let span = self
            .0
            .span_builder(operation.clone())
            .with_kind(SpanKind::Client)
            .with_start_time(ended_at - statement.elapsed)
            .with_attributes([
                KeyValue::new("db.system.name", "postgresql"),
                KeyValue::new("db.operation.name", operation),
                KeyValue::new("db.query.text", text),
            ]);
        span.start_with_context(&self.0, &parent).end_with_timestamp(ended_at);
    }
}

#[derive(Default)]
struct Statement {
    summary: String,
    text: String,
    elapsed: Duration,
}

impl Visit for Statement {
    fn record_str(&mut self, field: &field::Field, value: &str) {
        match field.name() {
            "summary" => self.summary = value.to_owned(),
            "db.statement" => self.text = value.to_owned(),
            _ => {}
        }
    }

    fn record_f64(&mut self, field: &field::Field, value: f64) {
        if field.name() == "elapsed_secs" {
            self.elapsed = Duration::try_from_secs_f64(value).unwrap_or_default();
        }
    }

    fn record_debug(&mut self, _: &field::Field, _: &dyn fmt::Debug) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn caller(fields: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(TRACEPARENT, HeaderValue::from_str(field).unwrap());
        }
        headers.append("tracestate", HeaderValue::from_static("them=their-text"));
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Caller(&headers));
        let span = context.span().span_context().clone();
        assert_eq!(span.trace_state().header(), "");
        span.trace_id().to_string()
    }

    #[test]
    fn only_a_single_valid_traceparent_is_adopted() {
        for fields in [&format!("00-{TRACE}-b7ad6b7169203331-01"), &format!("00-{TRACE}-b7ad6b7169203331-00")]
        {
            assert_eq!(caller(&[fields]), TRACE);
        }
        let good = format!("00-{TRACE}-b7ad6b7169203331-01");
        let nobody = "0".repeat(32);
        for fields in [
            &[][..],
            &["", "00"],
            &[&good, &good],
            &[&format!("ff-{TRACE}-b7ad6b7169203331-01")],
            &[&format!("00-{nobody}-b7ad6b7169203331-01")],
            &[&format!("00-{TRACE}-0000000000000000-01")],
            &[&format!("00-{}-b7ad6b7169203331-01", TRACE.to_uppercase())],
            &[&format!("{good}-more")],
            &["../../etc/passwd"],
        ] {
            assert_eq!(caller(fields), nobody, "{fields:?}");
        }
    }
}
