//! AWS: settings come from a secret in Secrets Manager, and a database accepts IAM tokens as passwords.
//!
//! moto stands in for Secrets Manager and STS (`tests/aws/play_aws.py`). `tests/aws/play_rds.py` stands in for what RDS
//! does in front of Postgres: it demands TLS, and accepts as a password only what botocore makes from the same
//! credentials, host, user and time, no older than 15 minutes. Both are Python; `make test` installs what they need
//! (`scripts/other-libraries`) and names that Python in `GATEPASS_TEST_PYTHON`. Without it these tests fail in CI;
//! elsewhere they report that they have not run.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError, future},
};
use axum::{Json, Router, http::HeaderMap, routing::get};
use base64::{Engine, engine::general_purpose::STANDARD};
use gatepass::{
    aws::{Aws, LIFE, database_token, login::Login},
    clock::Clock,
    metrics::{Exposition, Metrics, Observation},
    store::{PoolConnection, Source},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::{Connection, postgres::PgConnectOptions};
use tokio::net::TcpListener;

use crate::{
    app::{KEY, PASSWORD, START, database},
    not_tested::{named_by, not_tested},
    process::{Ended, Home, QUICK, Signal, make_program, until},
};

const REGION: &str = "eu-central-1";
const ACCESS_KEY: &str = "AKIDEXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// The Python that has moto and botocore.
static PLAYERS: LazyLock<Option<OsString>> = LazyLock::new(|| named_by("GATEPASS_TEST_PYTHON", "AWS"));

/// A program from `tests/aws` that runs until its standard input is closed, at the latest when this process ends.
struct Helper {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    child: Child,
}

impl Helper {
    fn start(python: &OsStr, args: &[&str]) -> Self {
        let mut child = Command::new(python)
            .args(args)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aws"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { stdin: child.stdin.take().unwrap(), stdout, child }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "{:?}", self.child.try_wait());
        line.trim_end().to_owned()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The URL of the stand-in for AWS. One moto serves all tests; it ends with this process, which closes its standard
/// input.
fn aws() -> Option<&'static str> {
    static MOTO: LazyLock<Option<(String, Helper)>> = LazyLock::new(|| {
        let mut moto = Helper::start(PLAYERS.as_ref()?, &["play_aws.py"]);
        Some((moto.line(), moto))
    });
    MOTO.as_ref().map(|(url, _)| url.as_str())
}

/// Asks the stand-in for AWS, which checks no signature.
async fn ask(url: &str, operation: &str, body: &Value) -> Value {
    let who = format!("Credential={ACCESS_KEY}/20260102/{REGION}/secretsmanager/aws4_request");
    let answer = reqwest::Client::new()
        .post(url)
        .header("x-amz-target", format!("secretsmanager.{operation}"))
        .header("content-type", "application/x-amz-json-1.1")
        .header("authorization", format!("AWS4-HMAC-SHA256 {who}, SignedHeaders=host, Signature=00"))
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json().await.unwrap()
}

/// Stores a secret with this text, and returns its name.
async fn secret(url: &str, text: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("gatepass/test-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    ask(
        url,
        "CreateSecret",
        &json!({ "Name": name, "SecretString": text, "ClientRequestToken": "0".repeat(32) }),
    )
    .await;
    name
}

/// The environment of a machine at AWS that takes its settings from this secret.
fn at<'a>(url: &'a str, secret: &'a str) -> [(&'a str, &'a str); 6] {
    [
        ("AWS_ENDPOINT_URL", url),
        ("AWS_REGION", REGION),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        // Otherwise the SDK waits for instance metadata where there is no instance.
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("SECRETS_MANAGER_SECRET_ID", secret),
    ]
}

/// `gatepass config` with these variables.
async fn config(variables: &[(&str, &str)]) -> Ended {
    Home::new().gatepass(&["config", "--json"]).envs(variables).run().await
}

/// The setting's value and its origin.
fn line<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str) {
    let line = report.as_array().unwrap().iter().find(|line| line["name"] == name).unwrap();
    (line["value"].as_str().unwrap(), line["origin"].as_str().unwrap())
}

#[tokio::test]
async fn a_service_starts_with_all_its_settings_from_a_secret() {
    let Some(aws) = aws() else { return };
    let mut settings = json!({
        "DB_SOURCE": database().await,
        "TOKEN_SYMMETRIC_KEY": KEY,
        "TOKEN_ISSUER": "from-the-secret",
        "HTTP_SERVER_ADDRESS": "127.0.0.1:0",
        "OPS_SERVER_ADDRESS": "127.0.0.1:0",
        // An empty value counts as not set, as everywhere.
        "TOKEN_AUDIENCE": "",
    });
    for (name, value) in QUICK {
        settings[name] = value.into();
    }
    let name = secret(aws, &settings.to_string()).await;
    let home = Home::new();
    let service = home.gatepass(&["serve"]).envs(&at(aws, &name)).start().serving().await;
    let alice = json!({ "username": "alice", "email": "alice@example.com", "password": PASSWORD });
    assert_eq!(service.post("/users", &alice).await.0, 201);
    let (status, login) =
        service.post("/users/login", &json!({ "username": "alice", "password": PASSWORD })).await;
    assert_eq!(status, 200, "{login}");

    // Commands run beside the service get the same settings.
    let users = home.gatepass(&["user", "list", "--json"]).envs(&at(aws, &name)).run().await.json();
    assert!(users.to_string().contains("alice"), "{users}");
    let token = login["access_token"].as_str().unwrap();
    let seen = home.gatepass(&["token", "inspect", token]).envs(&at(aws, &name)).run().await.expect(0);
    assert!(seen.stdout.contains("from-the-secret"), "{}", seen.stdout);
    service.stop(Signal::TERM).await.expect(0);
}

#[tokio::test]
async fn the_environment_overrides_the_secret_which_overrides_app_env() {
    let Some(aws) = aws() else { return };
    let text = json!({ "TOKEN_ISSUER": "secret", "TOKEN_AUDIENCE": "secret", "DB_SOURCE": "postgres://secret@db/g" });
    let name = secret(aws, &text.to_string()).await;
    let home = Home::new();
    // The file may name the secret, too.
    home.write(
        "app.env",
        &format!("TOKEN_ISSUER=file\nREGISTRATION=closed\nSECRETS_MANAGER_SECRET_ID={name}\n"),
    );
    let file = home.write("db_source", "postgres://file@db/g\n");
    let environment =
        [&at(aws, "")[..], &[("TOKEN_AUDIENCE", "environment"), ("DB_SOURCE_FILE", &file)]].concat();
    let report = home.gatepass(&["config", "--json"]).envs(&environment).run().await.json();
    assert_eq!(line(&report, "TOKEN_ISSUER"), ("secret", "Secrets Manager"));
    assert_eq!(line(&report, "TOKEN_AUDIENCE"), ("environment", "environment"));
    assert_eq!(line(&report, "REGISTRATION"), ("closed", "app.env:2"));
    assert_eq!(line(&report, "DB_SOURCE"), ("postgres://file@db/g", &*format!("DB_SOURCE_FILE={file}")));
}

#[tokio::test]
async fn a_secret_is_found_by_name_or_arn_in_its_current_version() {
    let Some(aws) = aws() else { return };
    let name = secret(aws, r#"{"TOKEN_ISSUER": "first"}"#).await;
    let update = json!({ "SecretId": name, "SecretString": r#"{"TOKEN_ISSUER": "second"}"#,
                         "ClientRequestToken": "1".repeat(32) });
    let arn = ask(aws, "PutSecretValue", &update).await["ARN"].as_str().unwrap().to_owned();
    for id in [&name, &arn] {
        let report = config(&at(aws, id)).await.json();
        assert_eq!(line(&report, "TOKEN_ISSUER"), ("second", "Secrets Manager"));
        assert_eq!(line(&report, "SECRETS_MANAGER_SECRET_ID"), (id.as_str(), "environment"));
    }
}

#[tokio::test]
async fn all_faults_of_a_secret_are_reported_at_once_without_its_values() {
    let Some(aws) = aws() else { return };
    let text = r#"{
        "DB_SORCE": "hunter2",
        "TOKEN_SYMMETRIC_KEY_FILE": "hunter2",
        "PASSWORD_PEPPER": {"1": "hunter2"},
        "DB_MAX_CONNECTIONS": 10,
        "TOKEN_ISSUER": "hunter2",
        "TOKEN_ISSUER": "hunter2",
        "AWS_REGION": "hunter2",
        "SECRETS_MANAGER_SECRET_ID": "hunter2",
        "hunter2hunter2": "hunter2",
        "TOKEN_SYMMETRIC_KEY": "hunter2"
    }"#;
    let name = secret(aws, text).await;
    let ended = config(&[&at(aws, &name)[..], &[("REGISTRATION", "maybe")]].concat()).await;
    let ended = ended.fails(
        1,
        &[
            "has 10 problems",
            "DB_SORCE (Secrets Manager): there is no such setting; did you mean DB_SOURCE?",
            "TOKEN_SYMMETRIC_KEY_FILE (Secrets Manager): a secret cannot name a file; put the value itself in it as TOKEN_SYMMETRIC_KEY",
            "PASSWORD_PEPPER (Secrets Manager): expected a text in \"quotes\"",
            "DB_MAX_CONNECTIONS (Secrets Manager): expected a text in \"quotes\"",
            "TOKEN_ISSUER (Secrets Manager): it is there twice",
            "AWS_REGION (Secrets Manager): it says where the secret is",
            "SECRETS_MANAGER_SECRET_ID (Secrets Manager): it says where the secret is",
            "TOKEN_SYMMETRIC_KEY (Secrets Manager): expected a PASERK",
            "REGISTRATION (environment): \"maybe\": expected open or closed",
        ],
    );
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
}

#[tokio::test]
async fn an_unusable_secret_is_reported_in_one_clear_line() {
    let Some(aws) = aws() else { return };
    let name = secret(aws, r#"["hunter2"]"#).await;
    let cut = secret(aws, "{\"DB_SOURCE\":\n \"hunter2").await;
    let binary = json!({ "Name": "gatepass/binary", "SecretBinary": STANDARD.encode("{}"),
                         "ClientRequestToken": "0".repeat(32) });
    ask(aws, "CreateSecret", &binary).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let nowhere = format!("http://{nobody}");

    const ID: &str = "SECRETS_MANAGER_SECRET_ID (environment): ";
    for (variables, expected) in [
        (at(aws, "gatepass/nothing"), "there is no such secret in eu-central-1"),
        (at(aws, "gatepass/binary"), "the secret is binary; expected text, a JSON object of settings"),
        (
            at(&nowhere, &name),
            "AWS cannot be reached in eu-central-1; check AWS_REGION, AWS_ENDPOINT_URL and the network",
        ),
    ] {
        // Even in production, no setting that may be in the secret is reported missing.
        let ended = config(&[&variables[..], &[("ENVIRONMENT", "production")]].concat()).await;
        ended.fails(1, &["has a problem:", &format!("{ID}{expected}")]);
    }
    let without =
        |name: &'static str| at(aws, "gatepass/nothing").map(|(n, v)| (n, if n == name { "" } else { v }));
    config(&without("AWS_SECRET_ACCESS_KEY"))
        .await
        .fails(1, &["has a problem:", &format!("{ID}there are no AWS credentials")]);
    config(&without("AWS_REGION"))
        .await
        .fails(1, &["has a problem:", &format!("{ID}the region is not known; set AWS_REGION")]);

    const TEXT: &str = "SECRETS_MANAGER_SECRET_ID (Secrets Manager): expected the secret to be a JSON object of names \
                        and texts";
    for name in [name, cut] {
        let ended = config(&at(aws, &name)).await.fails(1, &["has a problem:", TEXT]);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
    // `doctor` reports it among its findings. `health` only asks whether the service is alive, and does not ask AWS.
    let home = Home::new();
    let doctor = home.gatepass(&["doctor"]).envs(&at(aws, "gatepass/nothing")).run().await.expect(1);
    assert!(doctor.stdout.contains("there is no such secret in eu-central-1"), "{}", doctor.stdout);
    let environment = [&at(aws, "gatepass/nothing")[..], &[("HTTP_SERVER_ADDRESS", &*nobody)]].concat();
    home.gatepass(&["health"]).envs(&environment).run().await.fails(1, &["does not answer"]);
}

#[tokio::test]
async fn production_takes_no_secret_over_plain_http() {
    let Some(aws) = aws() else { return };
    let text =
        json!({ "ENVIRONMENT": "production", "DB_SOURCE": "postgres://g@db/g", "TOKEN_SYMMETRIC_KEY": KEY });
    let name = secret(aws, &text.to_string()).await;
    config(&at(aws, &name))
        .await
        .fails(1, &["AWS_ENDPOINT_URL (environment): the secret would travel without TLS"]);
}

#[tokio::test]
async fn neither_secrets_nor_credentials_are_ever_logged() {
    let Some(aws) = aws() else { return };
    let db = database().await;
    let text = json!({ "DB_SOURCE": format!("{db}&password=hunter2"), "TOKEN_SYMMETRIC_KEY": KEY, "RUST_LOG": "trace" });
    let name = secret(aws, &text.to_string()).await;
    let environment = [&at(aws, &name)[..], &[("AWS_SESSION_TOKEN", "session-token-5f3a")]].concat();
    let home = Home::new();
    let service = home.serve(&environment).await;
    assert_eq!(service.get("/readyz").await.0, 200);
    let ended = service.stop(Signal::TERM).await.expect(0);
    for secret in ["hunter2", KEY, &KEY["k4.local.".len()..], SECRET_KEY, "session-token-5f3a"] {
        assert!(!ended.stderr.contains(secret) && !ended.stdout.contains(secret), "{secret}");
    }
    assert!(ended.stderr.contains("DEBUG"), "{}", ended.stderr);
}

/// IRSA: STS accepts a service account's token.
#[tokio::test]
async fn a_web_identity_is_enough_to_read_the_secret() {
    let Some(aws) = aws() else { return };
    let name = secret(aws, r#"{"TOKEN_ISSUER": "irsa"}"#).await;
    let home = Home::new();
    let token = home.write("token", "eyJhbGciOiJub25lIn0.e30.");
    let more = [
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/gatepass"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
    ];
    let report = home.gatepass(&["config", "--json"]).envs(&at(aws, &name)).envs(&more).run().await.json();
    assert_eq!(line(&report, "TOKEN_ISSUER"), ("irsa", "Secrets Manager"));
}

/// EKS Pod Identity: an agent on the node hands out credentials in exchange for a token.
#[tokio::test]
async fn the_pod_identity_agent_is_enough_to_read_the_secret() {
    let Some(aws) = aws() else { return };
    let name = secret(aws, r#"{"TOKEN_ISSUER": "pod-identity"}"#).await;
    let agent = Router::new().route(
        "/v1/credentials",
        get(async |headers: HeaderMap| {
            assert_eq!(headers["authorization"], "pod-token");
            Json(json!({ "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "Token": "token",
                         "Expiration": "2099-01-01T00:00:00Z" }))
        }),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/credentials", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, agent).await.unwrap() });
    let home = Home::new();
    let token = home.write("token", "pod-token");
    let more = [
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &*url),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token),
    ];
    let report = home.gatepass(&["config", "--json"]).envs(&at(aws, &name)).envs(&more).run().await.json();
    assert_eq!(line(&report, "TOKEN_ISSUER"), ("pod-identity", "Secrets Manager"));
}

#[test]
fn a_token_is_identical_to_the_one_that_botocore_makes() {
    let Some(python) = &*PLAYERS else { return };
    let now = START.unix_timestamp();
    let mut questions = Vec::new();
    for (host, port) in [
        ("db.cabc123.eu-central-1.rds.amazonaws.com", 5432),
        ("localhost", 443),
        ("db.cn-north-1.rds.amazonaws.com.cn", 6432),
    ] {
        for user in ["gatepass", "gate pass", "a+b@c/d?e&f=g%h", "~.-_", "größe"] {
            for session_token in [None, Some("IQoJb3JpZ2luX2VjEDQ//+==")] {
                for (region, at) in [(REGION, now), ("us-gov-west-1", now + 86_400 * 200)] {
                    questions.push(json!({ "host": host, "port": port, "user": user, "region": region, "at": at,
                        "access_key": ACCESS_KEY, "secret_key": SECRET_KEY, "session_token": session_token }));
                }
            }
        }
    }
    let mut helper = Command::new(python)
        .args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aws/play_rds.py"), "token"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    helper.stdin.take().unwrap().write_all(json!(questions).to_string().as_bytes()).unwrap();
    let answer: Vec<String> = serde_json::from_slice(&helper.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(answer.len(), questions.len());
    for (question, theirs) in questions.iter().zip(answer) {
        let text = |name: &str| question[name].as_str();
        let session_token = text("session_token").map(str::to_owned);
        let credentials = Credentials::new(ACCESS_KEY, SECRET_KEY, session_token, None, "test");
        let at = time::OffsetDateTime::from_unix_timestamp(question["at"].as_i64().unwrap()).unwrap();
        let server = (
            text("host").unwrap(),
            question["port"].as_u64().unwrap().try_into().unwrap(),
            text("user").unwrap(),
        );
        let ours = database_token(&credentials, text("region").unwrap(), server, at).unwrap();
        assert_eq!(ours.expose_secret(), theirs, "{question}");
    }
}

/// RDS, played by `tests/aws/play_rds.py` in front of this run's Postgres.
struct Rds {
    helper: Helper,
    /// The database's URL there, for a user with every privilege.
    url: String,
    _directory: tempfile::TempDir,
}

impl Rds {
    async fn start() -> Option<Self> {
        let python = PLAYERS.as_ref()?;
        let options: PgConnectOptions = database().await.parse().unwrap();
        let socket = options.get_socket().unwrap().join(format!(".s.PGSQL.{}", options.get_port()));
        let directory = tempfile::tempdir().unwrap();
        let certificate = directory.path().join("rds.pem");
        let certificate = certificate.to_str().unwrap();
        let mut helper =
            Helper::start(python, &["play_rds.py", "serve", socket.to_str().unwrap(), certificate]);
        let port = helper.line();
        let (user, database) = (options.get_username(), options.get_database().unwrap());
        let url = format!(
            "postgres://{user}@localhost:{port}/{database}?sslmode=verify-full&sslrootcert={certificate}"
        );
        Some(Self { helper, url, _directory: directory })
    }

    /// Sets the clock that tokens are checked against.
    fn set(&mut self, clock: &Clock) {
        writeln!(self.helper.stdin, "{}", clock.now().unix_timestamp()).unwrap();
        assert_eq!(self.helper.line(), "set");
    }

    /// When the token of the next connection was made; `None` if the token was not good.
    fn connected(&mut self) -> Option<i64> {
        serde_json::from_str::<Value>(&self.helper.line()).unwrap()["made_at"].as_i64()
    }
}

#[tokio::test]
async fn a_service_and_its_migrations_log_in_to_rds_with_tokens() {
    let Some(mut rds) = Rds::start().await else { return };
    let (home, url) = (Home::new(), rds.url.clone());
    let environment = [
        ("DB_SOURCE", &*url),
        ("DB_IAM_AUTH", "true"),
        ("AWS_REGION", REGION),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("RUST_LOG", "trace"),
    ];
    let service = home.serve(&environment).await;
    let alice = json!({ "username": "alice", "email": "alice@example.com", "password": PASSWORD });
    assert_eq!(service.post("/users", &alice).await.0, 201);
    let status = home.gatepass(&["migrate", "status"]).envs(&environment).run().await.expect(0);
    assert!(status.stdout.contains("applied"), "{}", status.stdout);
    let ended = service.stop(Signal::TERM).await.expect(0);
    // At least the migrations, the requests and the feed have connected.
    for _ in 0..3 {
        assert!(rds.connected().is_some());
    }
    assert!(!ended.stderr.contains("X-Amz-Signature=") && !ended.stderr.contains(SECRET_KEY));

    // With another secret key we are not let in, and are told what may be wrong.
    let other = [&environment[..], &[("AWS_SECRET_ACCESS_KEY", "another")]].concat();
    let refused = home.gatepass(&["migrate", "status"]).envs(&other).run().await;
    refused.fails(1, &["it does not let this user in", "rds_iam"]);
    let nobody =
        [&environment[..], &[("AWS_ACCESS_KEY_ID", ""), ("AWS_EC2_METADATA_DISABLED", "true")]].concat();
    let refused = home.gatepass(&["migrate", "status"]).envs(&nobody).run().await;
    refused.fails(1, &["DB_IAM_AUTH: there are no AWS credentials"]);
}

/// Credentials that can be taken away.
#[derive(Clone, Debug, Default)]
struct Fickle(Arc<AtomicBool>);

impl ProvideCredentials for Fickle {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(if self.0.load(Ordering::SeqCst) {
            Err(CredentialsError::not_loaded("taken away"))
        } else {
            Ok(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test"))
        })
    }
}

#[tokio::test]
async fn new_connections_use_a_renewed_token_and_never_an_expired_one() {
    let Some(mut rds) = Rds::start().await else { return };
    let clock = Clock::fixed(START);
    rds.set(&clock);
    let (fickle, metrics) = (Fickle::default(), Metrics::new());
    let source = Source::new(&rds.url.clone().into()).unwrap();
    let login = Login::new(Aws::with_credentials(REGION, fickle.clone()), source);
    let access = login.access(clock.now()).await.unwrap();
    assert_eq!(access.renew_at - START, time::Duration::minutes(10));
    let pool = access.source.pool(2);
    let keeping = tokio::spawn({
        let (clock, metrics) = (clock.clone(), metrics.clone());
        async move { login.keep(access.renew_at, &clock, &metrics).await }
    });
    let counted = |metrics: &Metrics, outcome: &str| {
        let zero = format!("gatepass_database_tokens_total{{outcome=\"{outcome}\"}} 0");
        !metrics.scrape(&Observation::default(), Exposition::OpenMetrics).lines().any(|line| line == zero)
    };
    let made_at = |rds: &mut Rds| rds.connected().map(|at| at - START.unix_timestamp());

    let mut open = pool.acquire().await.unwrap();
    assert_eq!(made_at(&mut rds), Some(0));
    // A token is used again for as long as it is good.
    clock.advance(time::Duration::minutes(9));
    rds.set(&clock);
    end(pool.acquire().await.unwrap()).await;
    assert_eq!(made_at(&mut rds), Some(0));

    // It is renewed well before it expires.
    clock.advance(time::Duration::minutes(1));
    rds.set(&clock);
    until("the token is renewed", async || {
        end(pool.acquire().await.unwrap()).await;
        made_at(&mut rds).unwrap() == 600
    })
    .await;

    // While there are no credentials, new connections are refused as soon as the last token is too old; the open one
    // keeps working.
    fickle.0.store(true, Ordering::SeqCst);
    clock.advance(time::Duration::minutes(16));
    rds.set(&clock);
    assert!(pool.acquire().await.is_err());
    assert_eq!(made_at(&mut rds), None);
    open.ping().await.unwrap();

    until("the failure is counted", async || counted(&metrics, "failed")).await;

    // When the credentials come back, so do the tokens, without any help.
    fickle.0.store(false, Ordering::SeqCst);
    clock.advance(time::Duration::seconds(10));
    rds.set(&clock);
    until("there are tokens again", async || {
        let got_in = pool.acquire().await.is_ok();
        assert_eq!(made_at(&mut rds).is_some(), got_in);
        got_in
    })
    .await;
    drop(open);
    keeping.abort();
    assert!(counted(&metrics, "made"));
}

/// Ends a connection, so that the next one is new.
async fn end(mut conn: PoolConnection) {
    let end = sqlx::raw_sql("SELECT pg_terminate_backend(pg_backend_pid())");
    end.execute(&mut *conn).await.unwrap_err();
}

#[tokio::test]
async fn a_token_is_renewed_before_its_credentials_expire() {
    let expires_at = START + time::Duration::minutes(6);
    let credentials = Credentials::new(ACCESS_KEY, SECRET_KEY, None, Some(expires_at.into()), "test");
    let source = Source::new(&"postgres://gatepass@db.example.com/gatepass".to_owned().into()).unwrap();
    let login = Login::new(Aws::with_credentials(REGION, credentials), source);
    assert_eq!(login.access(START).await.unwrap().renew_at - START, time::Duration::minutes(4));
    assert_eq!(LIFE, Duration::from_secs(900));
    // Once the credentials have expired, a renewal is due at once.
    assert_eq!(login.access(expires_at).await.unwrap().renew_at, expires_at);
}

#[tokio::test]
async fn the_script_writes_app_env_from_the_secret() {
    let Some(aws) = aws() else { return };
    let Some((_tools, path)) = tools() else { return };
    let home = Home::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/app-env");
    let run = async |secret: &str, args: &[&str]| {
        let mut invocation = home.program(&script).envs(&at(aws, "")).env("PATH", &path).arg(secret);
        for arg in args {
            invocation = invocation.arg(arg);
        }
        invocation.run().await
    };
    let odd = "a\\b\"c'd\ne\tf $HOME `id` #g ü";
    let text = json!({ "TOKEN_ISSUER": "from-the-secret", "TOKEN_SYMMETRIC_KEY": KEY, "RUST_LOG": "warn",
                       "DB_SOURCE": "postgres://g:a%22b'c$d@db/g", "ALLOWED_ORIGINS": "" });
    let name = secret(aws, &text.to_string()).await;
    run(&name, &[]).await.expect(0);
    let file = home.path("app.env");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let report = home.gatepass(&["config", "--json"]).run().await.json();
    assert_eq!(line(&report, "TOKEN_ISSUER").0, "from-the-secret");
    assert_eq!(line(&report, "DB_SOURCE").0, "postgres://g:********@db/g");

    // Any text comes back out of the file unchanged.
    let name = secret(aws, &json!({ "OTEL_EXPORTER_OTLP_ENDPOINT": odd }).to_string()).await;
    run(&name, &["odd.env"]).await.expect(0);
    let report = home.gatepass(&["--config", "odd.env", "config"]).run().await;
    report.fails(1, &[&format!("{odd:?}: expected a URL")]);

    // If anything is wrong with a secret, nothing of it is written, and no value is printed.
    let before = fs::read_to_string(&file).unwrap();
    for (text, expected) in [
        (r#"{"DB_SORCE": "hunter2"}"#, "DB_SORCE: there is no such setting for a secret"),
        (r#"{"AWS_REGION": "hunter2"}"#, "AWS_REGION: there is no such setting for a secret"),
        (r#"{"hunter2": "x"}"#, "a key: there is no such setting for a secret"),
        (r#"{"DB_SOURCE": {"a": "hunter2"}}"#, "DB_SOURCE: expected a text in \"quotes\""),
        (r#"{"DB_SOURCE": "hunter2\u0000"}"#, "DB_SOURCE: a control character is in it"),
        (r#"["hunter2"]"#, "is not a JSON object of settings"),
        ("hunter2", "is not a JSON object of settings"),
    ] {
        let name = secret(aws, text).await;
        let ended = run(&name, &[]).await.fails(1, &[expected]);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
    run("gatepass/nothing", &[]).await.fails(1, &["cannot read the secret gatepass/nothing"]);
    run("", &["a", "b"]).await.fails(2, &["usage: app-env"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    assert_eq!(fs::read_dir(home.path("")).unwrap().count(), 2);
}

/// A directory with that Python's aws CLI, and a `PATH` that begins with the directory; jq must be on `PATH` already.
fn tools() -> Option<(tempfile::TempDir, String)> {
    let path = env::var("PATH").unwrap();
    let has_jq = env::split_paths(&path).any(|directory| directory.join("jq").exists());
    if !has_jq {
        not_tested("scripts/app-env", "jq is not installed");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let aws = directory.path().join("aws");
    let python = PLAYERS.as_ref()?;
    make_program(&aws, format!("#!/bin/sh\nexec '{}' -m awscli \"$@\"\n", python.display()).as_bytes());
    let path = format!("{}:{path}", directory.path().display());
    Some((directory, path))
}
