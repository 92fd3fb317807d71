//! The metrics for Prometheus: their names, their labels, and the text of a scrape. docs/metrics.md lists them.
//!
//! [`Metrics`] is handed to whoever counts something. There is no global registry, so several services in one process,
//! as in tests, count separately. What can be looked up during a scrape is not counted along the way: whoever answers
//! the scrape passes it to [`Metrics::scrape`] then.
//!
//! No label has a value that a client makes up. Every value that an outcome may have is there from the beginning, at
//! zero, so that an alert that waits for a first failure sees it.
//!
//! Why `prometheus-client` and not the `metrics` facade with its exporter: the facade has one recorder for the whole
//! process, and brings second versions of several crates.

mod process;
mod text;

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicU64},
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
    registry::{Metric, Registry, Unit},
};
use time::OffsetDateTime;

pub use self::text::Exposition;
use crate::token::RevocationCount;

/// A family of counters or gauges by one label.
macro_rules! label {
    ($set:ident { $label:ident }) => {
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $set {
            $label: &'static str,
        }
    };
}

label!(Outcome { outcome });
label!(Kind { kind });
label!(Attempt { attempt });
label!(Cache { cache });
label!(Code { code });
label!(State { state });
label!(PoolName { pool });

/// For a metric that has one series or none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoLabels {}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    route: Arc<str>,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    method: &'static str,
    route: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Connections {
    pool: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabels {
    format: String,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Version {
    version: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

/// The metrics. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    /// The routes requested so far, so that a request allocates nothing for its labels.
    routes: RwLock<HashSet<Arc<str>>>,
    series: Series,
    process: process::Series,
    /// Held by the scrape in progress.
    scrape: Mutex<()>,
}

struct Series {
    requests: Family<Request, Counter>,
    request_seconds: Family<Route, Histogram, fn() -> Histogram>,
    requests_in_flight: Gauge,
    places: Family<Kind, Gauge>,
    places_max: Family<Kind, Gauge>,
    bearer_remembered: Counter,
    bearer_verified: Counter,
    bearer_refused: Family<Code, Counter>,
    verified_tokens: Gauge,
    logins: Family<Outcome, Counter>,
    renewals: Family<Outcome, Counter>,
    throttled: Family<Attempt, Counter>,
    hash_jobs: Family<State, Gauge>,
    hash_jobs_max: Gauge,
    hash_wait_seconds: Histogram,
    hash_seconds: Histogram,
    legacy_logins: Family<Outcome, Counter>,
    legacy_breaker_open: Gauge,
    database_tokens: Family<Outcome, Counter>,
    revocations: Family<Kind, Gauge>,
    revocation_silence: Seconds,
    revocation_max_silence: Seconds,
    revocation_lag: Histogram,
    connections: Family<Connections, Gauge>,
    connections_max: Family<PoolName, Gauge>,
    keys: Family<KeyLabels, Gauge>,
    key_since: Family<KeyLabels, Gauge>,
    key_silence: Family<NoLabels, Seconds>,
    key_rotation_interval: Seconds,
    certificate_expiry: Family<NoLabels, Gauge>,
    certificate_reload: Family<NoLabels, Gauge>,
}

/// Declares the labels of an outcome: each value with its text.
macro_rules! outcomes {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            const ALL: &[Self] = &[$(Self::$variant),+];

            const fn label(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

outcomes! {
    /// The outcome of a renewal.
    RenewalOutcome {
        /// The session went to its next generation.
        Rotated = "rotated",
        /// A lost answer was sent again.
        Repeated = "repeated",
        /// A refresh token was used again by somebody who should not have it, or is ahead of a database that was
        /// restored to an earlier state: the session ended.
        Reused = "reused",
        /// The session had ended before.
        Ended = "ended",
        /// The session had expired.
        Expired = "expired",
        /// Not a refresh token of an existing session.
        Invalid = "invalid",
    }
}

outcomes! {
    /// The outcome of a login.
    LoginOutcome {
        /// A session began.
        Succeeded = "succeeded",
        /// The name or the password was not right, or the user is disabled.
        Refused = "refused",
        /// Too many had failed before.
        Throttled = "throttled",
        /// There were more logins than could be served.
        Overloaded = "overloaded",
        /// A fault in the service, or no database.
        Failed = "failed",
    }
}

outcomes! {
    /// The outcome of a login about which the old system should be asked.
    LegacyOutcome {
        /// The user is one of ours from now on.
        TakenOver = "taken_over",
        /// The old system has no such user with this password, or has disabled them.
        Refused = "refused",
        /// The old system did not answer, or its answer cannot be used.
        Failed = "failed",
        /// The old system has too much to do, or has not answered lately.
        NotAsked = "not_asked",
    }
}

outcomes! {
    /// What kind of attempt is refused after too many failures.
    ThrottledAttempt {
        /// A login, or a confirmation of the password.
        Login = "login",
        /// A registration.
        Registration = "registration",
        /// A renewal.
        Renewal = "renewal",
        /// A client's credentials.
        Client = "client",
    }
}

outcomes! {
    /// What came of a token for logging in to the database.
    DatabaseTokenOutcome {
        /// It could be made.
        Made = "made",
        /// It could not: the database will soon refuse new connections.
        Failed = "failed",
    }
}

/// The state of things while a scrape is answered.
#[derive(Debug, Default)]
pub struct Observation {
    /// How many verified tokens are remembered.
    pub verified_tokens: u64,
    /// Password hashes that are waiting or being computed, and how many there may be of both together.
    pub hash_jobs: HashJobs,
    /// How many revocations are held in memory.
    pub revocations: RevocationCount,
    /// How long no revocations have been read.
    pub revocation_silence: Duration,
    /// How long that may be.
    pub revocation_max_silence: Duration,
    /// Places for what clients make the service hold.
    pub places: Vec<PlaceUse>,
    /// The pools of connections.
    pub pools: Vec<PoolUse>,
    /// The keys that issue and verify tokens.
    pub keys: Vec<KeyAge>,
    /// How long the published keys have not been read; `None` if no format has any.
    pub key_silence: Option<Duration>,
    /// How long a published key signs.
    pub key_rotation_interval: Duration,
}

/// Password hashes under way.
#[derive(Clone, Copy, Debug, Default)]
pub struct HashJobs {
    /// Waiting for a thread.
    pub queued: usize,
    /// Being computed.
    pub running: usize,
    /// How many there may be of both together.
    pub max: usize,
}

/// Places of one kind for what clients make the service hold.
#[derive(Clone, Copy, Debug)]
pub struct PlaceUse {
    /// What they are for.
    pub kind: &'static str,
    /// How many are taken.
    pub taken: usize,
    /// How many there are.
    pub max: usize,
}

/// A pool of connections to the database.
#[derive(Clone, Copy, Debug)]
pub struct PoolUse {
    /// What its connections are for.
    pub pool: &'static str,
    /// How many are in use.
    pub used: u32,
    /// How many are open and free.
    pub idle: u32,
    /// How many there may be.
    pub max: u32,
}

/// Reports the current state of the connection pools, without the metrics having to know what pools are.
#[derive(Clone)]
pub struct PoolWatch(Arc<dyn Fn() -> Vec<PoolUse> + Send + Sync>);

impl PoolWatch {
    /// Watches the pools that `look` reports.
    pub fn new(look: impl Fn() -> Vec<PoolUse> + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }

    /// The current state.
    pub fn look(&self) -> Vec<PoolUse> {
        (self.0)()
    }
}

impl fmt::Debug for PoolWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PoolWatch").field(&self.look()).finish()
    }
}

/// Keys of one format that have the same status.
#[derive(Clone, Debug)]
pub struct KeyAge {
    /// The format of their tokens.
    pub format: String,
    /// What they do: `shared`, `next`, `active`, `retiring`, `accepted` (active, of a format that no new token has) or
    /// `unreadable` (nothing).
    pub status: &'static str,
    /// How many there are.
    pub count: usize,
    /// Since when the oldest of them has this status, in seconds since 1970; shared and accepted keys have no date.
    pub since: Option<i64>,
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let series = Series::new(registry.sub_registry_with_prefix("gatepass"));
        let process = process::Series::new(registry.sub_registry_with_prefix("process"));
        Self(Arc::new(Inner {
            registry,
            routes: RwLock::default(),
            series,
            process,
            scrape: Mutex::default(),
        }))
    }

    /// A request has arrived.
    pub fn request_begins(&self) {
        self.0.series.requests_in_flight.inc();
    }

    /// A request that [has arrived](Self::request_begins) was answered. `route` is one of those in the code.
    pub fn request_ends(&self, method: &'static str, route: &str, status: u16, latency: Duration) {
        let route = self.route(route);
        let series = &self.0.series;
        series.requests_in_flight.dec();
        series.requests.get_or_create(&Request { method, route: route.clone(), status }).inc();
        series.request_seconds.get_or_create(&Route { method, route }).observe(latency.as_secs_f64());
    }

    fn route(&self, route: &str) -> Arc<str> {
        // Nothing panics while it is locked.
        let known = self.0.routes.read().unwrap_or_else(PoisonError::into_inner).get(route).cloned();
        known.unwrap_or_else(|| {
            let route: Arc<str> = route.into();
            self.0.routes.write().unwrap_or_else(PoisonError::into_inner).insert(route.clone());
            route
        })
    }

    /// A bearer token was accepted: remembered, or verified for the first time here.
    pub fn bearer_accepted(&self, was_remembered: bool) {
        let Series { bearer_remembered, bearer_verified, .. } = &self.0.series;
        if was_remembered { bearer_remembered } else { bearer_verified }.inc();
    }

    /// A request was refused for its bearer token, or for having none; `code` is the problem's.
    pub fn bearer_refused(&self, code: &'static str) {
        self.0.series.bearer_refused.get_or_create(&Code { code }).inc();
    }

    /// A login has ended.
    pub fn login(&self, outcome: LoginOutcome) {
        self.0.series.logins.get_or_create(&Outcome { outcome: outcome.label() }).inc();
    }

    /// A renewal has ended.
    pub fn renewal(&self, outcome: RenewalOutcome) {
        self.0.series.renewals.get_or_create(&Outcome { outcome: outcome.label() }).inc();
    }

    /// A login about which the old system should be asked has ended.
    pub fn legacy_login(&self, outcome: LegacyOutcome) {
        self.0.series.legacy_logins.get_or_create(&Outcome { outcome: outcome.label() }).inc();
    }

    /// Whether the old system is left alone because it does not answer.
    pub fn set_legacy_breaker_open(&self, is_open: bool) {
        self.0.series.legacy_breaker_open.set(is_open.into());
    }

    /// An attempt was refused because too many had failed before.
    pub fn throttled(&self, attempt: ThrottledAttempt) {
        self.0.series.throttled.get_or_create(&Attempt { attempt: attempt.label() }).inc();
    }

    /// A token for logging in to the database was wanted.
    pub fn database_token(&self, outcome: DatabaseTokenOutcome) {
        self.0.series.database_tokens.get_or_create(&Outcome { outcome: outcome.label() }).inc();
    }

    /// A password hash was computed.
    pub fn password_hash(&self, waited: Duration, took: Duration) {
        self.0.series.hash_wait_seconds.observe(waited.as_secs_f64());
        self.0.series.hash_seconds.observe(took.as_secs_f64());
    }

    /// Revocations have arrived that were committed at most this long ago.
    pub fn revocations_heard(&self, lag: Duration) {
        self.0.series.revocation_lag.observe(lag.as_secs_f64());
    }

    /// When the certificate in use expires. Without TLS this is never called, and the scrape has no such line.
    pub fn set_certificate_expiry(&self, at: OffsetDateTime) {
        self.0.series.certificate_expiry.get_or_create(&NoLabels {}).set(at.unix_timestamp());
    }

    /// Whether the certificate in use is the one in the files.
    pub fn set_certificate_reloaded(&self, is_current: bool) {
        self.0.series.certificate_reload.get_or_create(&NoLabels {}).set(is_current.into());
    }

    /// All metrics as text, with the state of things.
    pub fn scrape(&self, observation: &Observation, exposition: Exposition) -> String {
        // One at a time: in between, series are missing that are about to come back.
        let _alone = self.0.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.series.observe(observation);
        self.0.process.observe();
        let mut text = String::new();
        encode(&mut text, &self.0.registry).expect("a String takes any text");
        exposition.of_openmetrics(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes metrics and registers them. The scrape has them in this order.
struct Registrar<'a>(&'a mut Registry);

impl Registrar<'_> {
    /// A metric that starts at zero.
    fn add<M: Metric + Clone + Default>(&mut self, name: &str, about: &str) -> M {
        let metric = M::default();
        self.0.register(name, about, metric.clone());
        metric
    }

    /// A metric with a unit, with which its name ends.
    fn add_in<M: Metric + Clone>(&mut self, unit: Unit, name: &str, about: &str, metric: M) -> M {
        self.0.register_with_unit(name, about, unit, metric.clone());
        metric
    }

    /// A duration or a point in time.
    fn add_seconds<M: Metric + Clone + Default>(&mut self, name: &str, about: &str) -> M {
        self.add_in(Unit::Seconds, name, about, M::default())
    }
}

impl Series {
    fn new(registry: &mut Registry) -> Self {
        let build = Info::new(Version { version: env!("CARGO_PKG_VERSION") });
        registry.register("build", "The version of the running program", build);
        let mut registrar = Registrar(registry);
        let bearer_accepted: Family<Cache, Counter> = registrar
            .add("bearer_accepted", "Bearer tokens accepted: remembered (hit), or verified in full (miss)");
        let series = Self {
            requests: registrar.add("http_requests", "Requests answered, by method, route and status"),
            request_seconds: registrar.add_in(
                Unit::Seconds,
                "http_request_duration",
                "From the header fields of a request to its answer",
                Family::new_with_constructor(latencies),
            ),
            requests_in_flight: registrar.add("http_requests_in_flight", "Requests being answered"),
            places: registrar.add(
                "http_places",
                "Places that are taken: by connections and requests over HTTP/2 (connection), by requests with more \
                 than 8 KiB that arrive (large_request), by heads over HTTP/2 that arrive in more than one frame \
                 (http2_block), by each 8 KiB that open connections over HTTP/2 have sent (http2_piece)",
            ),
            places_max: registrar.add("http_places_max", "Maximum number of places, by kind"),
            bearer_remembered: bearer_accepted.get_or_create_owned(&Cache { cache: "hit" }),
            bearer_verified: bearer_accepted.get_or_create_owned(&Cache { cache: "miss" }),
            bearer_refused: registrar.add(
                "bearer_refused",
                "Requests refused because their bearer token was missing or not accepted, by the code of the answer",
            ),
            verified_tokens: registrar.add("verified_tokens", "Verified tokens that are remembered"),
            logins: registrar.add("logins", "Logins, by outcome"),
            renewals: registrar.add(
                "renewals",
                "Renewals, by outcome; reused: the refresh token had been used before, or is ahead of the database, \
                 and its session was ended",
            ),
            legacy_logins: registrar.add(
                "legacy_logins",
                "Logins of users unknown here, with LEGACY_LOGIN_URL, by outcome",
            ),
            legacy_breaker_open: registrar.add(
                "legacy_breaker_open",
                "1 while the old system at LEGACY_LOGIN_URL is not asked, because it does not answer",
            ),
            database_tokens: registrar
                .add("database_tokens", "IAM tokens for the database, by whether they could be made"),
            throttled: registrar
                .add("throttled", "Attempts refused because too many had failed before, by kind"),
            hash_jobs: registrar.add(
                "password_hash_jobs",
                "Password hashes waiting for a thread (queued) or being computed (running)",
            ),
            hash_jobs_max: registrar.add(
                "password_hash_jobs_max",
                "Maximum number of password hashes queued or running at once; a request that needs one more is \
                 answered with 503",
            ),
            hash_wait_seconds: registrar.add_in(
                Unit::Seconds,
                "password_hash_wait",
                "How long password hashes waited for a thread",
                latencies(),
            ),
            hash_seconds: registrar.add_in(
                Unit::Seconds,
                "password_hash_duration",
                "How long password hashes took, without the wait",
                latencies(),
            ),
            revocations: registrar.add(
                "revocations",
                "Revocations held in memory: sessions that have ended, users whose roles have changed",
            ),
            revocation_silence: registrar.add_seconds(
                "revocation_silence",
                "How long ago revocations were last read; beyond the maximum no bearer token is accepted",
            ),
            revocation_max_silence: registrar
                .add_seconds("revocation_silence_max", "The setting REVOCATION_MAX_STALENESS"),
            revocation_lag: registrar.add_in(
                Unit::Seconds,
                "revocation_lag",
                "Upper bound on the time from the commit of a revocation until this replica knew of it",
                latencies(),
            ),
            connections: registrar.add(
                "db_connections",
                "Connections to the database, by pool and by whether they are in use (used) or free (idle)",
            ),
            connections_max: registrar
                .add("db_connections_max", "Maximum number of connections to the database, by pool"),
            keys: registrar.add(
                "token_keys",
                "Keys that issue or verify tokens, by token format and key status",
            ),
            key_since: registrar.add_seconds(
                "token_key_since_timestamp",
                "When the oldest key of this format and status got that status, in Unix time",
            ),
            key_silence: registrar.add_seconds(
                "token_key_silence",
                "How long ago the signing keys were last read; beyond REVOCATION_MAX_STALENESS no token of a \
                 published format is accepted or issued; present only with such a format",
            ),
            key_rotation_interval: registrar.add_seconds("key_rotation_interval", "The setting KEY_ROTATION_INTERVAL"),
            certificate_expiry: registrar.add_seconds(
                "tls_certificate_expiry_timestamp",
                "When the certificate in use expires, in Unix time; present only with TLS_CERT_FILE",
            ),
            certificate_reload: registrar.add(
                "tls_certificate_last_reload_successful",
                "1 while the certificate in use is the one in TLS_CERT_FILE, 0 after a new one was refused; \
                 present only with TLS_CERT_FILE",
            ),
        };
        for outcome in LoginOutcome::ALL {
            drop(series.logins.get_or_create(&Outcome { outcome: outcome.label() }));
        }
        for outcome in RenewalOutcome::ALL {
            drop(series.renewals.get_or_create(&Outcome { outcome: outcome.label() }));
        }
        for outcome in LegacyOutcome::ALL {
            drop(series.legacy_logins.get_or_create(&Outcome { outcome: outcome.label() }));
        }
        for outcome in DatabaseTokenOutcome::ALL {
            drop(series.database_tokens.get_or_create(&Outcome { outcome: outcome.label() }));
        }
        for attempt in ThrottledAttempt::ALL {
            drop(series.throttled.get_or_create(&Attempt { attempt: attempt.label() }));
        }
        series
    }

    fn observe(&self, observation: &Observation) {
        self.verified_tokens.set(number(observation.verified_tokens));
        let HashJobs { queued, running, max } = observation.hash_jobs;
        for (state, jobs) in [("queued", queued), ("running", running)] {
            self.hash_jobs.get_or_create(&State { state }).set(number(jobs));
        }
        self.hash_jobs_max.set(number(max));
        let RevocationCount { sessions, users, session_bytes: _ } = observation.revocations;
        for (kind, held) in [("session", sessions), ("user", users)] {
            self.revocations.get_or_create(&Kind { kind }).set(number(held));
        }
        self.revocation_silence.set(observation.revocation_silence.as_secs_f64());
        self.revocation_max_silence.set(observation.revocation_max_silence.as_secs_f64());
        for &PlaceUse { kind, taken, max } in &observation.places {
            self.places.get_or_create(&Kind { kind }).set(number(taken));
            self.places_max.get_or_create(&Kind { kind }).set(number(max));
        }
        for &PoolUse { pool, used, idle, max } in &observation.pools {
            for (state, count) in [("used", used), ("idle", idle)] {
                self.connections.get_or_create(&Connections { pool, state }).set(count.into());
            }
            self.connections_max.get_or_create(&PoolName { pool }).set(max.into());
        }
        // Keys move from one status to the next, so old labels must go.
        self.keys.clear();
        self.key_since.clear();
        for KeyAge { format, status, count, since } in &observation.keys {
            let labels = KeyLabels { format: format.clone(), status };
            self.keys.get_or_create(&labels).set(number(*count));
            if let Some(since) = since {
                self.key_since.get_or_create(&labels).set(*since);
            }
        }
        if let Some(silence) = observation.key_silence {
            self.key_silence.get_or_create(&NoLabels {}).set(silence.as_secs_f64());
        }
        self.key_rotation_interval.set(observation.key_rotation_interval.as_secs_f64());
    }
}

/// 0.5 ms to 8 s, each bucket twice as wide as the one before.
fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 15))
}

/// A gauge's value. No machine has a count that it cannot hold.
fn number(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
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
        metrics.request_begins();
        metrics.request_begins();
        metrics.request_ends("GET", "/users/me", 200, Duration::from_millis(3));
        metrics.renewal(RenewalOutcome::Reused);
        metrics.renewal(RenewalOutcome::Reused);
        metrics.login(LoginOutcome::Refused);
        metrics.revocations_heard(Duration::from_millis(20));
        let text = metrics.scrape(&Observation::default(), Exposition::OpenMetrics);
        for line in [
            concat!("gatepass_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            r#"gatepass_http_requests_total{method="GET",route="/users/me",status="200"} 1"#,
            r#"gatepass_http_request_duration_seconds_bucket{le="0.004",method="GET",route="/users/me"} 1"#,
            "gatepass_http_requests_in_flight 1",
            r#"gatepass_renewals_total{outcome="reused"} 2"#,
            r#"gatepass_renewals_total{outcome="ended"} 0"#,
            r#"gatepass_logins_total{outcome="refused"} 1"#,
            r#"gatepass_database_tokens_total{outcome="failed"} 0"#,
            r#"gatepass_revocation_lag_seconds_bucket{le="0.032"} 1"#,
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_key_is_counted_only_under_its_current_status() {
        let metrics = Metrics::new();
        let keys = |status| {
            let key = KeyAge { format: "v4.public".into(), status, count: 1, since: Some(1_767_323_045) };
            metrics
                .scrape(&Observation { keys: vec![key], ..Observation::default() }, Exposition::OpenMetrics)
        };
        let active = r#"gatepass_token_keys{format="v4.public",status="active"} 1"#;
        assert!(keys("active").contains(active));
        let text = keys("retiring");
        assert!(!text.contains(r#"status="active""#), "{text}");
        let since =
            r#"gatepass_token_key_since_timestamp_seconds{format="v4.public",status="retiring"} 1767323045"#;
        assert!(text.contains(since), "{text}");
    }
}
