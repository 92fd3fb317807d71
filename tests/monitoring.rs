//! The service and its monitoring agree: Prometheus can read a scrape, the dashboard and the alert rules ask only for
//! metrics and label values that exist, each alert has its section in the runbook, and docs/metrics.md lists what a
//! scrape contains.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use time::Duration;

use crate::{
    app::{App, START},
    not_tested::named_by,
};

/// Metrics of other programs, by the program that exports them.
const FOREIGN: &[(&str, &[&str])] = &[
    ("postgres_exporter", &["pg_stat_database_numbackends", "pg_settings_max_connections"]),
    ("kubelet", &["kubelet_volume_stats_used_bytes", "kubelet_volume_stats_capacity_bytes"]),
    ("YACE, for CloudWatch", &["aws_rds_free_storage_space_average"]),
    ("cert-manager", &["certmanager_certificate_expiration_timestamp_seconds"]),
    ("blackbox_exporter", &["probe_ssl_earliest_cert_expiry"]),
    ("kube-state-metrics", &["kube_cronjob_status_last_successful_time", "kube_cronjob_created"]),
];

/// Words of PromQL that are not metrics.
const PROMQL: &[&str] = &[
    "absent",
    "and",
    "by",
    "changes",
    "count",
    "group_left",
    "histogram_quantile",
    "increase",
    "max",
    "min",
    "offset",
    "on",
    "or",
    "rate",
    "scalar",
    "sum",
    "time",
    "unless",
    "vector",
];

fn file(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn rules() -> String {
    file("eks/components/monitoring/rules.yaml")
}

/// A story in which everything that has a counter happens.
async fn story() -> App {
    let settings = [
        ("TOKEN_FORMAT", "v4.public"),
        ("TOKEN_FORMAT_ACCEPTED", "v4.local"),
        ("LOGIN_ATTEMPTS_PER_IP", "3/15m"),
    ];
    let app = App::with(&settings).await;
    app.register("alice").await;
    let login = app.login("alice").await;
    for _ in 0..2 {
        app.get("/users/me").bearer(&login).send().await.expect(200);
    }
    app.get("/users/me").send().await.expect_problem(401, "missing_token");
    let forged = json!({"access_token": "v4.public.AAAA"});
    app.get("/users/me").bearer(&forged).send().await.expect_problem(401, "invalid_token");
    app.get("/nobody/knows/this").send().await.expect_problem(404, "not_found");
    for status in [401, 401, 401, 429] {
        assert_eq!(app.try_login("alice", "wrong-sardine-lagoon-4").await.status.as_u16(), status);
    }
    app.renew(&login).await.expect(200);
    app.post("/users/logout").bearer(&login).send().await.expect(204);
    app.get("/users/me").bearer(&login).send().await.expect_problem(401, "session_revoked");
    app.hear().await;
    // The row of a key that has signed no longer holds that key.
    let keys = &app.state().keys;
    keys.rotate(app.clock.now()).await.unwrap();
    let spoil = "UPDATE signing_keys SET public_key = 'x' WHERE retired_at IS NOT NULL";
    sqlx::raw_sql(spoil).execute(&app.db).await.unwrap();
    app.refresh_keys().await.unwrap_err();
    // The metrics of TLS_CERT_FILE, which tests/certificate.rs tests.
    let metrics = &app.state().metrics;
    metrics.set_certificate_expiry(START + Duration::days(90));
    metrics.set_certificate_reloaded(true);
    app
}

/// What a scrape says about its metrics, and the names and labels of its samples.
struct Scrape {
    /// Type and meaning, by name.
    metrics: BTreeMap<String, (String, String)>,
    /// Labels and their values, by the sample's name.
    samples: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

impl Scrape {
    /// Parses the Prometheus text format, version 0.0.4.
    fn parse(text: &str) -> Self {
        let mut scrape = Self { metrics: BTreeMap::new(), samples: BTreeMap::new() };
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, about) = rest.split_once(' ').unwrap();
                scrape.metrics.insert(name.into(), (String::new(), about.trim_end_matches('.').into()));
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                scrape.metrics.get_mut(name).unwrap().0 = kind.into();
            } else {
                let (series, _value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                let known = scrape.samples.entry(name.into()).or_default();
                for label in labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty()) {
                    let (label, value) = label.split_once("=\"").unwrap();
                    known.entry(label.into()).or_default().insert(value.trim_end_matches('"').into());
                }
            }
        }
        scrape
    }

    async fn of(app: &App) -> Self {
        Self::parse(&app.scrape().await)
    }
}

#[tokio::test]
async fn promtool_finds_nothing_wrong_with_a_scrape() {
    let Some(promtool) = named_by("GATEPASS_TEST_PROMTOOL", "that promtool reads a scrape") else { return };
    let scrape = story().await.scrape().await;
    let mut promtool = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(scrape.as_bytes()).unwrap();
    let found = promtool.wait_with_output().unwrap();
    let said = String::from_utf8([found.stdout, found.stderr].concat()).unwrap();
    assert!(found.status.success() && said.is_empty(), "{}\n{said}\n{scrape}", found.status);
}

#[tokio::test]
async fn openmetrics_is_served_on_request() {
    let app = story().await;
    let text = app.scrape_as("application/openmetrics-text; version=1.0.0; charset=utf-8").await;
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(text.contains("# TYPE gatepass_http_requests counter\n"), "{text}");
}

#[tokio::test]
async fn a_scrape_says_how_things_stand() {
    let app = story().await;
    app.clock.advance(Duration::seconds(7));
    let text = app.scrape().await;
    for line in [
        r#"gatepass_bearer_accepted_total{cache="miss"} 1"#,
        r#"gatepass_bearer_accepted_total{cache="hit"} 2"#,
        r#"gatepass_bearer_refused_total{code="missing_token"} 1"#,
        r#"gatepass_bearer_refused_total{code="invalid_token"} 1"#,
        r#"gatepass_bearer_refused_total{code="session_revoked"} 1"#,
        r#"gatepass_logins_total{outcome="refused"} 3"#,
        r#"gatepass_logins_total{outcome="throttled"} 1"#,
        r#"gatepass_logins_total{outcome="failed"} 0"#,
        r#"gatepass_throttled_total{attempt="login"} 1"#,
        r#"gatepass_http_requests_total{method="GET",route="-",status="404"} 1"#,
        "gatepass_http_requests_in_flight 0",
        r#"gatepass_http_places{kind="connection"} 0"#,
        r#"gatepass_http_places_max{kind="connection"} 10000"#,
        // One for the registration's hash, one for the check of its password, which runs on the same threads, and four
        // for logins.
        "gatepass_password_hash_wait_seconds_count 6",
        "gatepass_password_hash_duration_seconds_count 6",
        r#"gatepass_password_hash_jobs{state="queued"} 0"#,
        "gatepass_password_hash_jobs_max 130",
        "gatepass_revocation_silence_seconds 7.0",
        "gatepass_revocation_silence_max_seconds 31536000.0",
        "gatepass_revocation_lag_seconds_count 1",
        r#"gatepass_db_connections_max{pool="requests"} 8"#,
        r#"gatepass_token_keys{format="v4.local",status="shared"} 1"#,
        r#"gatepass_token_keys{format="v4.public",status="active"} 1"#,
        r#"gatepass_token_keys{format="v4.public",status="next"} 1"#,
        r#"gatepass_token_keys{format="v4.public",status="unreadable"} 1"#,
        "gatepass_token_key_silence_seconds{} 7.0",
        r#"gatepass_token_key_since_timestamp_seconds{format="v4.public",status="active"} 1767323045"#,
        "gatepass_key_rotation_interval_seconds 2592000.0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

/// Keys of a format that new tokens do not use are never rotated, and the alert for an overdue rotation looks at
/// `active`.
#[tokio::test]
async fn a_key_of_an_accepted_format_is_not_active() {
    let app = App::with(&[("TOKEN_FORMAT", "v4.local"), ("TOKEN_FORMAT_ACCEPTED", "v4.public")]).await;
    app.clock.advance(Duration::days(90));
    let text = app.scrape().await;
    for line in [
        r#"gatepass_token_keys{format="v4.local",status="shared"} 1"#,
        r#"gatepass_token_keys{format="v4.public",status="accepted"} 1"#,
        r#"gatepass_token_keys{format="v4.public",status="next"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains(r#"status="active""#), "{text}");
}

/// What a PromQL expression asks for.
#[derive(Default)]
struct Asked {
    metrics: BTreeSet<String>,
    /// Metric, label and value; for a pattern, each of its alternatives.
    values: BTreeSet<(String, String, String)>,
}

impl Asked {
    fn by(expr: &str) -> Self {
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let mut asked = Self::default();
        let mut plain = String::new();
        // The expression without its label matchers and ranges.
        let mut rest = expr;
        while let Some(at) = rest.find(['{', '[']) {
            plain += &rest[..at];
            let metric = plain.rsplit(|c| !is_word(c)).next().unwrap();
            if rest.as_bytes()[at] == b'{' {
                rest = asked.labels(metric, &rest[at + 1..]);
            } else {
                rest = rest[at..].split_once(']').unwrap().1;
            }
        }
        plain += rest;
        // Without the label lists of `by` and the like.
        for keyword in ["by (", "on ("] {
            while let Some(at) = plain.find(keyword) {
                let end = at + plain[at..].find(')').unwrap();
                plain.replace_range(at..=end, " ");
            }
        }
        for word in plain.split(|c| !is_word(c)) {
            // Neither words of up to two characters nor numbers and durations are metrics.
            if word.len() > 2 && !word.starts_with(|c: char| c.is_ascii_digit()) && !PROMQL.contains(&word) {
                asked.metrics.insert(word.to_owned());
            }
        }
        asked
    }

    /// Parses the label matchers up to the closing brace, and returns what follows it.
    fn labels<'a>(&mut self, metric: &str, mut rest: &'a str) -> &'a str {
        loop {
            rest = rest.trim_start_matches([' ', ',']);
            if let Some(behind) = rest.strip_prefix('}') {
                return behind;
            }
            let (label, matcher) = rest.split_at(rest.find(['=', '!']).unwrap());
            let (operator, behind) = matcher.split_once('"').unwrap();
            let (value, behind) = behind.split_once('"').unwrap();
            rest = behind;
            let values = if operator.ends_with('~') { value.split('|').collect() } else { vec![value] };
            self.values
                .extend(values.into_iter().map(|value| (metric.into(), label.trim().into(), value.into())));
        }
    }
}

/// The labels that Prometheus adds to everything it scrapes.
const OF_PROMETHEUS: &[&str] = &["job", "namespace", "instance"];

/// Whether a value matches an alternative of a pattern, in which only `.` is special.
fn is_like(pattern: &str, value: &str) -> bool {
    value.len() == pattern.len() && pattern.bytes().zip(value.bytes()).all(|(p, v)| p == b'.' || p == v)
}

/// The expressions of the rules, and the names of those that are recorded.
fn rule_expressions() -> (Vec<String>, BTreeSet<String>) {
    let (rules, mut expressions, mut recorded) = (rules(), Vec::new(), BTreeSet::new());
    let mut lines = rules.lines().peekable();
    while let Some(line) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim().trim_start_matches("- ");
        if let Some(name) = line.strip_prefix("record: ") {
            recorded.insert(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("expr: ") {
            let mut expr = rest.trim_start_matches(">-").to_owned();
            // Lines that are indented deeper continue the expression.
            while let Some(next) = lines.next_if(|next| next.len() - next.trim_start().len() > indent) {
                expr = format!("{expr} {}", next.trim());
            }
            expressions.push(expr);
        }
    }
    (expressions, recorded)
}

fn dashboard_expressions(json: &Value) -> Vec<String> {
    match json {
        Value::Object(members) => {
            let own = members.get("expr").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(members.values().flat_map(dashboard_expressions)).collect()
        }
        Value::Array(items) => items.iter().flat_map(dashboard_expressions).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn the_dashboard_and_the_rules_use_only_existing_metrics_and_values() {
    let mut scrape = Scrape::of(&story().await).await;
    let by_openapi: Value = serde_json::from_str(&file("docs/openapi.json")).unwrap();
    // The story does not ask for every route, nor get every answer that a route can give.
    let requests = scrape.samples.get_mut("gatepass_http_requests_total").unwrap();
    for (route, methods) in by_openapi["paths"].as_object().unwrap() {
        requests.get_mut("route").unwrap().insert(route.clone());
        let methods = methods.as_object().unwrap().values();
        let answers = methods.filter_map(|method| method["responses"].as_object()).flatten();
        requests.get_mut("status").unwrap().extend(answers.map(|(status, _)| status.clone()));
    }
    let routes = requests["route"].clone();
    for part in ["bucket", "count"] {
        let durations = scrape.samples.get_mut(&format!("gatepass_http_request_duration_seconds_{part}"));
        durations.unwrap().insert("route".into(), routes.clone());
    }
    let (rules, recorded) = rule_expressions();
    let dashboard: Value = serde_json::from_str(&file("eks/components/monitoring/dashboard.json")).unwrap();
    let dashboard = dashboard_expressions(&dashboard);
    assert!(rules.len() > 30 && dashboard.len() > 30, "{} and {}", rules.len(), dashboard.len());
    let (mut used, mut checked) = (BTreeSet::new(), 0);
    for expr in rules.iter().chain(&dashboard) {
        let Asked { metrics, values } = Asked::by(expr);
        for metric in metrics {
            let is_foreign = FOREIGN.iter().any(|(_, names)| names.contains(&&*metric));
            let is_known = scrape.samples.contains_key(&metric) || recorded.contains(&metric) || is_foreign;
            assert!(is_known, "nobody has {metric}: {expr}");
            used.insert(metric);
        }
        for (metric, label, value) in values {
            let Some(labels) = scrape.samples.get(&metric) else { continue };
            if OF_PROMETHEUS.contains(&&*label) {
                continue;
            }
            let known = labels.get(&label).unwrap_or_else(|| panic!("{metric} has no {label}: {expr}"));
            let is_given = known.iter().any(|known| is_like(&value, known));
            assert!(is_given, "no {label} of {metric} is {value}, only {known:?}: {expr}");
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked}");
    for (exporter, names) in FOREIGN {
        assert!(names.iter().all(|name| used.contains(*name)), "{exporter} has more than anybody wants");
    }
}

#[test]
fn each_alert_has_its_section_in_the_runbook() {
    let (rules, runbook) = (rules(), file("docs/runbook.md"));
    let named = |prefix: &str| -> Vec<String> {
        rules.lines().filter_map(|line| line.trim().strip_prefix(prefix)).map(str::to_owned).collect()
    };
    let alerts = named("- alert: ");
    let sections: Vec<&str> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .filter(|title| title.starts_with("Gatepass"))
        .collect();
    assert_eq!(sections, alerts);
    // Whoever follows eks/README.md puts another repository into the links.
    let links = named("runbook_url: https://");
    let linked: Vec<_> = links
        .iter()
        .map(|link| link.split_once("/docs/runbook.md#").unwrap_or_else(|| panic!("{link}")).1)
        .collect();
    let anchors: Vec<_> = alerts.iter().map(|alert| alert.to_lowercase()).collect();
    assert_eq!(linked, anchors);
    for section in runbook.split("\n## ").filter(|section| section.starts_with("Gatepass")) {
        for part in ["**Means:**", "**Look:**", "**Do:**", "**Wake:**"] {
            assert!(section.contains(part), "no {part}: {section}");
        }
    }
    for test in ["rules_test.yaml", "rules_day_test.yaml"] {
        assert!(file("Makefile").contains(test), "{test} is not run");
    }
    let tests = file("eks/components/monitoring/rules_test.yaml")
        + &file("eks/components/monitoring/rules_day_test.yaml");
    for alert in alerts {
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert} has no test");
    }
}

#[tokio::test]
async fn the_documented_metrics_match_a_scrape() {
    const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    const FROM: &str = "<!-- metrics -->\n";
    const TO: &str = "<!-- /metrics -->";

    let scrape = Scrape::of(&story().await).await;
    let mut table = "| metric | type | labels | what |\n|---|---|---|---|\n".to_owned();
    for (name, (kind, about)) in &scrape.metrics {
        let sample = if kind == "histogram" { format!("{name}_count") } else { name.clone() };
        let labels: Vec<_> = scrape.samples[&sample].keys().map(|label| format!("`{label}`")).collect();
        table += &format!("| `{name}` | {kind} | {} | {about} |\n", labels.join(", "));
    }
    let page = fs::read_to_string(PATH).unwrap();
    let (before, rest) = page.split_once(FROM).unwrap();
    let (old, after) = rest.split_once(TO).unwrap();
    if env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(PATH, format!("{before}{FROM}\n{table}\n{TO}{after}")).unwrap();
    } else {
        assert!(
            old.trim() == table.trim(),
            "docs/metrics.md is out of date: run this test with UPDATE_EXPECT=1 to rewrite it\n{table}"
        );
    }
}
