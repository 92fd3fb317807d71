//! What is counted, for Prometheus: the names, their labels, and the text of a scrape (OpenMetrics 1.0).
//!
//! [`Metrics`] is handed to whoever counts something; there is no global registry, so that services in one process, as in
//! tests, count apart. What can be looked up when somebody asks is not counted along the way: whoever answers a scrape sets
//! it then.
//!
//! `prometheus-client` and not the `metrics` facade with its exporter: that has one recorder for the whole process, and
//! brings second versions of several crates.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::token::RevocationCount;

/// The media type of [`Metrics::scrape`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    method: &'static str,
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// Counts. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    requests: Family<Request, Counter>,
    request_seconds: Family<Route, Histogram, fn() -> Histogram>,
    logins: Family<Outcome, Counter>,
    renewals: Family<Outcome, Counter>,
    revocations: Family<Kind, Gauge>,
    revocation_silence: Gauge<f64, AtomicU64>,
}

/// What becomes of a renewal, as its counter's label says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewalOutcome {
    /// The session went to its next generation.
    Rotated,
    /// A lost answer was given again.
    Repeated,
    /// A refresh token was used again by somebody who should not have it: the session ended.
    Reused,
    /// The session had ended before.
    Ended,
    /// The session had expired.
    Expired,
    /// No refresh token of a session that there is.
    Invalid,
}

impl RenewalOutcome {
    fn label(self) -> &'static str {
        match self {
            Self::Rotated => "rotated",
            Self::Repeated => "repeated",
            Self::Reused => "reused",
            Self::Ended => "ended",
            Self::Expired => "expired",
            Self::Invalid => "invalid",
        }
    }
}

/// What becomes of a login, as its counter's label says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginOutcome {
    /// A session began.
    Succeeded,
    /// The name or the password was not right, or the user is disabled.
    Refused,
    /// Too many had failed before.
    Throttled,
    /// There were more than could be served.
    Overloaded,
}

impl LoginOutcome {
    fn label(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Refused => "refused",
            Self::Throttled => "throttled",
            Self::Overloaded => "overloaded",
        }
    }
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let inner = Inner {
            registry: Registry::with_prefix("gatepass"),
            requests: Family::default(),
            // 0.5 ms to 8 s, each bucket twice as wide as the one before.
            request_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.0005, 2.0, 15))
            }),
            logins: Family::default(),
            renewals: Family::default(),
            revocations: Family::default(),
            revocation_silence: Gauge::default(),
        };
        Self(Arc::new(inner.registered()))
    }

    /// A request was answered.
    pub fn request(&self, method: &'static str, route: &str, status: u16, latency: Duration) {
        let route = route.to_owned();
        self.0.requests.get_or_create(&Request { method, route: route.clone(), status }).inc();
        self.0.request_seconds.get_or_create(&Route { method, route }).observe(latency.as_secs_f64());
    }

    /// A login came to its end.
    pub fn login(&self, outcome: LoginOutcome) {
        self.0.logins.get_or_create(&Outcome { outcome: outcome.label() }).inc();
    }

    /// A renewal came to its end.
    pub fn renewal(&self, outcome: RenewalOutcome) {
        self.0.renewals.get_or_create(&Outcome { outcome: outcome.label() }).inc();
    }

    /// What is held of revocations, and for how long nothing has been read.
    pub fn set_revocations(&self, count: RevocationCount, silence: Duration) {
        let RevocationCount { sessions, users, session_bytes: _ } = count;
        for (kind, held) in [("session", sessions), ("user", users)] {
            let held = i64::try_from(held).unwrap_or(i64::MAX);
            self.0.revocations.get_or_create(&Kind { kind }).set(held);
        }
        self.0.revocation_silence.set(silence.as_secs_f64());
    }

    /// All of it as text, of [`MEDIA_TYPE`].
    pub fn scrape(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.0.registry).expect("a String takes any text");
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Inner {
    /// With every name in the registry.
    fn registered(mut self) -> Self {
        let Self { registry, requests, request_seconds, logins, renewals, revocations, revocation_silence } =
            &mut self;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The program that runs", build);
        registry.register(
            "http_requests",
            "Requests answered, by method, route and status",
            requests.clone(),
        );
        let about = "From the header fields of a request to its answer";
        registry.register_with_unit("http_request_duration", about, Unit::Seconds, request_seconds.clone());
        registry.register("logins", "Logins, by what became of them", logins.clone());
        let about = "Renewals, by what became of them; reused: a copied refresh token has ended its session";
        registry.register("renewals", about, renewals.clone());
        let about = "Revocations held in memory: sessions that have ended, users whose roles have changed";
        registry.register("revocations", about, revocations.clone());
        let about =
            "Since the revocations were last read; beyond REVOCATION_MAX_STALENESS no token is accepted";
        registry.register_with_unit("revocation_silence", about, Unit::Seconds, revocation_silence.clone());
        self
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_has_what_was_counted() {
        let metrics = Metrics::new();
        metrics.request("GET", "/users/me", 200, Duration::from_millis(3));
        metrics.renewal(RenewalOutcome::Reused);
        metrics.renewal(RenewalOutcome::Reused);
        metrics.login(LoginOutcome::Refused);
        let count = RevocationCount { sessions: 7, users: 1, session_bytes: 0 };
        metrics.set_revocations(count, Duration::from_millis(250));
        let text = metrics.scrape();
        for line in [
            concat!("gatepass_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            r#"gatepass_http_requests_total{method="GET",route="/users/me",status="200"} 1"#,
            r#"gatepass_http_request_duration_seconds_bucket{le="0.004",method="GET",route="/users/me"} 1"#,
            r#"gatepass_renewals_total{outcome="reused"} 2"#,
            r#"gatepass_logins_total{outcome="refused"} 1"#,
            r#"gatepass_revocations{kind="session"} 7"#,
            "gatepass_revocation_silence_seconds 0.25",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
