//! What the real binary sends to a collector: a span for each request, in the trace of the proxy that called, with the
//! steps of a login below it. A caller cannot decide what is recorded, a stranger cannot even choose the trace, and a
//! collector that does not answer holds nobody up.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, http::header::CONTENT_TYPE, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::net::TcpListener;

use crate::{
    app::{PASSWORD, database},
    process::{Home, Process, Signal},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
/// The tests' own address, as if it were a proxy's.
const PROXY: (&str, &str) = ("TRUSTED_PROXIES", "127.0.0.1");

/// An OTLP collector, and what it has been sent.
pub struct Collector {
    pub endpoint: String,
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    pub async fn start() -> Self {
        let requests = Arc::default();
        let router = Router::new().route("/v1/traces", post(collect)).with_state(Arc::clone(&requests));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { endpoint, requests }
    }

    /// Every span that it was sent.
    pub fn spans(&self) -> Vec<Span> {
        let requests = self.requests.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }

    /// Everything that it was sent, as text to search.
    pub fn sent(&self) -> String {
        format!("{:?}", self.requests.lock().unwrap())
    }
}

async fn collect(
    State(requests): State<Arc<Mutex<Vec<ExportTraceServiceRequest>>>>,
    headers: axum::http::HeaderMap,
    body: Bytes,
) {
    assert_eq!(headers[CONTENT_TYPE], "application/x-protobuf");
    requests.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
}

/// The attributes as text.
fn attributes(attributes: &[KeyValue]) -> HashMap<&str, String> {
    let text = |value: &KeyValue| match value.value.as_ref().unwrap().value.as_ref().unwrap() {
        Any::StringValue(text) => text.clone(),
        Any::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.as_str(), text(attribute))).collect()
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn serve(home: &Home, database_url: &str, more: &[(&str, &str)]) -> Process {
    let settings = [("DB_SOURCE", database_url), ("LOG_FORMAT", "json")];
    home.serve(&[&settings[..], more].concat()).await
}

async fn log_in(service: &Process, traceparent: &str, password: &str) -> u16 {
    let request = reqwest::Client::new().post(service.url("/users/login")).header("traceparent", traceparent);
    let body = json!({"username": "alice", "password": password});
    request.header("x-request-id", "a-login").json(&body).send().await.unwrap().status().as_u16()
}

async fn register(service: &Process) {
    let alice = json!({"username": "alice", "email": "alice@example.com", "password": PASSWORD});
    let response = reqwest::Client::new().post(service.url("/users")).json(&alice).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 201);
}

#[tokio::test]
async fn a_login_is_recorded_as_a_tree_of_spans_in_the_trace_of_the_proxy() {
    let collector = Collector::start().await;
    let home = Home::new();
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.endpoint),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        PROXY,
    ];
    let service = serve(&home, &database().await, &settings).await;
    register(&service).await;
    // The caller asks not to be recorded, which is not for the caller to decide.
    assert_eq!(log_in(&service, &format!("00-{TRACE}-{CALLER}-00"), PASSWORD).await, 200);
    let log = service.stop(Signal::TERM).await.expect(0).stderr;

    let spans = collector.spans();
    let of_login: Vec<_> = spans.iter().filter(|span| hex(&span.trace_id) == TRACE).collect();
    let one = |name: &str| {
        let mut found = of_login.iter().filter(|span| span.name == name);
        let span = found.next().unwrap_or_else(|| panic!("no {name}: {of_login:#?}"));
        assert!(found.next().is_none(), "two of {name}");
        *span
    };
    let server = one("POST /users/login");
    assert_eq!(hex(&server.parent_span_id), CALLER);
    assert_eq!(server.kind(), SpanKind::Server);
    let told = attributes(&server.attributes);
    assert_eq!(told["http.request.method"], "POST");
    assert_eq!(told["http.route"], "/users/login");
    assert_eq!(told["http.response.status_code"], "200");
    assert_eq!(told["request_id"], "a-login");

    for step in ["throttle", "wait for a hashing thread", "hash a password", "SELECT", "WITH"] {
        let of_step = of_login.iter().filter(|span| span.name == step);
        // The throttle's SELECT is below the throttle's span.
        let steps: Vec<_> = of_step.filter(|span| span.parent_span_id == server.span_id).collect();
        assert!(!steps.is_empty() || step == "SELECT", "{step}: {of_login:#?}");
        for span in steps {
            assert!(span.start_time_unix_nano >= server.start_time_unix_nano, "{span:?}");
            assert!(span.end_time_unix_nano <= server.end_time_unix_nano + 1_000_000, "{span:?}");
        }
    }
    // A statement has its text, with placeholders.
    let statements: Vec<_> = of_login.iter().filter(|span| span.kind() == SpanKind::Client).collect();
    assert!(statements.len() == 2, "{statements:#?}");
    for statement in &statements {
        let told = attributes(&statement.attributes);
        assert_eq!(told["db.system.name"], "postgresql");
        assert_eq!(told["db.operation.name"], statement.name);
        assert!(told["db.query.text"].starts_with(&statement.name), "{told:?}");
        let ids = of_login.iter().map(|span| &span.span_id);
        assert!(ids.clone().any(|id| *id == statement.parent_span_id), "{statement:?}");
    }
    let below_throttle = statements.iter().filter(|span| span.parent_span_id == one("throttle").span_id);
    assert_eq!(below_throttle.count(), 1);

    // A request without a trace gets one of its own.
    let register = spans.iter().find(|span| span.name == "POST /users").unwrap();
    assert_eq!(register.parent_span_id, [0; 0]);
    assert_ne!(hex(&register.trace_id), TRACE);
    // Background work is in no trace.
    for span in &spans {
        assert!(!span.parent_span_id.is_empty() || span.kind() == SpanKind::Server, "{span:?}");
    }

    let requests = collector.requests.lock().unwrap();
    let told = attributes(&requests[0].resource_spans[0].resource.as_ref().unwrap().attributes);
    assert_eq!(told["service.name"], "gatepass");
    assert_eq!(told["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(told["deployment.environment.name"], "test");

    // The log and the trace refer to each other.
    let events = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_login: Vec<_> = events.filter(|event| event["request_id"] == "a-login").collect();
    assert!(of_login.iter().any(|event| event["message"] == "answered" && event["trace_id"] == TRACE));
    assert!(of_login.iter().any(|event| event["message"] == "logged in" && event["trace_id"] == TRACE));
}

#[tokio::test]
async fn a_strangers_request_is_a_trace_of_its_own() {
    let collector = Collector::start().await;
    let home = Home::new();
    let settings =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.endpoint), ("TRUSTED_PROXIES", "192.0.2.0/24")];
    let service = serve(&home, &database().await, &settings).await;
    register(&service).await;
    for _ in 0..2 {
        assert_eq!(log_in(&service, &format!("00-{TRACE}-{CALLER}-01"), PASSWORD).await, 200);
    }
    let log = service.stop(Signal::TERM).await.expect(0).stderr;

    let spans = collector.spans();
    let logins: Vec<_> = spans.iter().filter(|span| span.name == "POST /users/login").collect();
    let [first, second] = logins[..] else { panic!("{logins:#?}") };
    assert_ne!(first.trace_id, second.trace_id);
    for login in [first, second] {
        assert_ne!(hex(&login.trace_id), TRACE);
        assert_eq!(login.parent_span_id, [0; 0]);
        let [link] = &login.links[..] else { panic!("{login:#?}") };
        assert_eq!((&*hex(&link.trace_id), &*hex(&link.span_id)), (TRACE, CALLER));
        assert!(log.contains(&format!(r#""trace_id":"{}""#, hex(&login.trace_id))));
        assert!(spans.iter().any(|span| span.parent_span_id == login.span_id && span.name == "throttle"));
    }
    let register = spans.iter().find(|span| span.name == "POST /users").unwrap();
    assert_eq!(register.links, []);
}

/// A sampler that goes by the trace's id always records one of these two, and never the other.
#[tokio::test]
async fn sampling_is_random_and_independent_of_the_trace_id() {
    const REQUESTS: usize = 60;
    let ids = ["00000000000000000000000000000001", "ffffffffffffffffffffffffffffffff"];
    let collector = Collector::start().await;
    let home = Home::new();
    let settings =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.endpoint), ("OTEL_TRACES_SAMPLER_ARG", "0.5"), PROXY];
    let service = serve(&home, &database().await, &settings).await;
    let client = reqwest::Client::new();
    for _ in 0..REQUESTS {
        for id in ids {
            let request =
                client.get(service.url("/readyz")).header("traceparent", format!("00-{id}-{CALLER}-01"));
            assert_eq!(request.send().await.unwrap().status().as_u16(), 200);
        }
    }
    service.stop(Signal::TERM).await.expect(0);

    let spans = collector.spans();
    for id in ids {
        let of_trace: Vec<&Span> = spans.iter().filter(|span| hex(&span.trace_id) == id).collect();
        let (servers, below): (Vec<&Span>, Vec<&Span>) =
            of_trace.iter().partition(|span| span.kind() == SpanKind::Server);
        // The probability of all, or of none, is 2⁻⁶⁰.
        assert!((1..REQUESTS).contains(&servers.len()), "{id}: {}", servers.len());
        // A request is recorded as a whole or not at all.
        assert!(!below.is_empty());
        for span in below {
            assert!(of_trace.iter().any(|parent| parent.span_id == span.parent_span_id), "{span:?}");
        }
    }
}

#[tokio::test]
async fn a_server_fault_marks_its_span_as_an_error_and_a_client_error_does_not() {
    let collector = Collector::start().await;
    let home = Home::new();
    let database_url = database().await;
    let service = serve(&home, &database_url, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.endpoint)]).await;
    register(&service).await;
    assert_eq!(log_in(&service, "nonsense", "wrong-sardine-lagoon-4").await, 401);
    let mut conn = PgConnection::connect(&database_url).await.unwrap();
    sqlx::raw_sql("ALTER TABLE users RENAME COLUMN roles TO rolls").execute(&mut conn).await.unwrap();
    assert_eq!(log_in(&service, &format!("00-{TRACE}-{CALLER}-01"), PASSWORD).await, 500);
    service.stop(Signal::TERM).await.expect(0);

    let spans = collector.spans();
    let logins: Vec<_> = spans.iter().filter(|span| span.name == "POST /users/login").collect();
    let [refused, failed] = logins[..] else { panic!("{logins:#?}") };
    assert_eq!(refused.parent_span_id, [0; 0]);
    assert_eq!(refused.status.clone().unwrap_or_default().code(), StatusCode::Unset);
    assert_eq!(failed.status.clone().unwrap().code(), StatusCode::Error);
    assert_eq!(attributes(&failed.attributes)["error.type"], "internal_error");
}

#[tokio::test]
async fn a_sampling_share_of_zero_records_nothing_whatever_the_caller_asks() {
    let collector = Collector::start().await;
    let home = Home::new();
    let settings =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.endpoint), ("OTEL_TRACES_SAMPLER_ARG", "0"), PROXY];
    let service = serve(&home, &database().await, &settings).await;
    register(&service).await;
    assert_eq!(log_in(&service, &format!("00-{TRACE}-{CALLER}-01"), PASSWORD).await, 200);
    let log = service.stop(Signal::TERM).await.expect(0).stderr;
    assert_eq!(collector.spans(), []);
    // The log still names the caller's trace.
    assert!(log.contains(&format!(r#""trace_id":"{TRACE}""#)));
}

#[tokio::test]
async fn a_collector_that_does_not_answer_holds_nobody_up() {
    // Accepts connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let home = Home::new();
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "16"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8"),
    ];
    let service = serve(&home, &database().await, &settings).await;
    register(&service).await;
    // Many times more spans than the queue holds.
    for _ in 0..40 {
        assert_eq!(service.get("/healthz").await.0, 200);
    }
    assert_eq!(log_in(&service, "", PASSWORD).await, 200);
    // By itself, the exporter would wait for ten seconds.
    let began = Instant::now();
    service.stop(Signal::TERM).await.expect(0);
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}
