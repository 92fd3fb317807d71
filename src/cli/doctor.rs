//! `gatepass doctor`: what is wrong, and what to do about it.
//!
//! A check looks at one thing and adds what it finds; it never stops the others. Nothing is changed. A further check is
//! one more function that gives [`Finding`]s, called from [`examine`] or, when it needs the database, from [`on_database`].

use std::{io, path::PathBuf};

use serde::Serialize;
use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::{
    Failure,
    open_files::OpenFiles,
    print, print_json, seconds,
    setup::{self, ClockSkew},
};
use crate::{
    chain::chain,
    clock::Clock,
    config::{ConfigErrors, DbPooler, Environment, Settings},
    http::Limits,
    keys::{self, Policy},
    legacy,
    password::{self, Params},
    store::{
        self, Access, Blocker, PgConnection, PgPool, history,
        migrations::{self, Schema},
        revocations,
        roles::{self, Privilege, Privileges, Standing},
    },
    telemetry,
    token::{
        KeyId, KeyStatus,
        ring::{self, RingKey},
    },
};

/// How far this machine's clock and the database's may be apart.
const CLOCK_TOLERANCE: Duration = Duration::SECOND;
/// How long after its time a rotation may be late.
const ROTATION_GRACE: Duration = Duration::DAY;
/// How long before its end a certificate should have been renewed: those that are good for ninety days are by then.
const RENEWAL: Duration = Duration::days(14);
/// How long a notification may take.
const NOTIFICATION_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
/// How long a change in the history may wait for its seal.
const SEAL_PATIENCE: Duration = Duration::minutes(5);
/// A key whose last tokens expire within this time is reported.
const SOON: Duration = Duration::HOUR;
/// What NIST SP 800-57 demands of signatures from 2031 on; 112 bits do until then.
const SECURITY_BITS: u32 = 128;

/// What to measure passwords against, and how to print.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 when there is no problem, whatever the notes and warnings; 1 when there is one."
)]
pub(super) struct Args {
    /// How long a password hash may take on this machine, for the parameters that are recommended
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    hash_time: u32,
    /// How much memory a password hash may take, in MiB; when not given, what it takes now
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(7..=1024))]
    hash_memory: Option<u32>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// Good to know.
    Note,
    /// Works, and will not always.
    Warning,
    /// Does not work.
    Problem,
}

impl Level {
    /// Of a risk: a warning in production; on a developer's machine good to know.
    fn risk(environment: Environment) -> Self {
        match environment {
            Environment::Production => Self::Warning,
            Environment::Development => Self::Note,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }

    /// Green, cyan, yellow, bold red.
    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Note => "\x1b[36m",
            Self::Warning => "\x1b[33m",
            Self::Problem => "\x1b[1;31m",
        }
    }
}

/// What one check found.
#[derive(Debug, Serialize)]
struct Finding {
    area: &'static str,
    level: Level,
    message: String,
    /// What to do about it.
    advice: Option<String>,
}

impl Finding {
    fn new(area: &'static str, level: Level, message: impl Into<String>) -> Self {
        Self { area, level, message: message.into(), advice: None }
    }

    fn ok(area: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, Level::Ok, message)
    }

    fn note(area: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, Level::Note, message)
    }

    fn warning(area: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, Level::Warning, message)
    }

    fn problem(area: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, Level::Problem, message)
    }

    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

pub(super) async fn run(config_file: Option<PathBuf>, args: &Args) -> Result<(), Failure> {
    telemetry::init(telemetry::LogFormat::Pretty, "error", None)?;
    let findings = examine(config_file, args).await;
    let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
    if args.json {
        print_json(&json!({ "ok": problems == 0, "findings": findings }))?;
    } else {
        let colour = telemetry::is_coloured(&io::stdout());
        print(&findings.iter().map(|finding| line(finding, colour)).collect::<String>())?;
    }
    match problems {
        0 => Ok(()),
        1 => Err("there is a problem".into()),
        many => Err(format!("there are {many} problems").into()),
    }
}

fn line(finding: &Finding, colour: bool) -> String {
    let Finding { area, level, message, advice } = finding;
    let advice = advice.as_ref().map(|advice| format!(" -> {advice}")).unwrap_or_default();
    let (paint, plain) = if colour { (level.colour(), "\x1b[0m") } else { ("", "") };
    format!("{paint}{:<7}{plain}  {area:<8}  {message}{advice}\n", level.name())
}

async fn examine(config_file: Option<PathBuf>, args: &Args) -> Vec<Finding> {
    let (settings, mut findings) = settings(config_file).await;
    let Some(settings) = settings else { return findings };
    findings.extend(passwords(&settings, args).await);
    findings.extend(certificate(&settings));
    findings.push(operators(&settings));
    findings.push(open_files(&settings));
    findings.extend(old_system(&settings).await);
    match setup::present_key(&settings) {
        Ok(root) => {
            if root.is_none() {
                let note =
                    "TOKEN_SYMMETRIC_KEY is not set: `gatepass serve` makes a key, and keeps it in .gatepass";
                findings.push(Finding::note("settings", note));
            }
            let root = root.unwrap_or_else(setup::nobodys_key);
            let policy = setup::key_policy(&settings, &root, setup::operator());
            findings.extend(rotations_under_way(&settings));
            findings.extend(database(&settings, &policy).await);
        }
        Err(error) => findings.push(failed("settings", &*error)),
    }
    findings
}

/// Something failed, with all that is behind it.
fn failed(area: &'static str, error: &dyn std::error::Error) -> Finding {
    Finding::problem(area, chain(error).replace('\n', " "))
}

async fn settings(config_file: Option<PathBuf>) -> (Option<Settings>, Vec<Finding>) {
    match setup::load(config_file).await {
        Ok(loaded) if loaded.warnings.is_empty() => {
            (Some(loaded.settings), vec![Finding::ok("settings", "nothing wrong with them")])
        }
        Ok(loaded) => {
            let warnings = loaded.warnings.into_iter();
            let findings = warnings.map(|warning| Finding::warning("settings", warning));
            (Some(loaded.settings), findings.collect())
        }
        Err(error) => match error.downcast_ref::<ConfigErrors>() {
            Some(ConfigErrors(problems)) => {
                let problems = problems.iter();
                let findings = problems.map(|problem| Finding::problem("settings", problem.to_string()));
                (None, findings.collect())
            }
            None => (None, vec![failed("settings", &*error)]),
        },
    }
}

/// What a password hash costs here, and what it should.
async fn passwords(settings: &Settings, args: &Args) -> Vec<Finding> {
    const AREA: &str = "password";

    let mut findings = Vec::new();
    let params = setup::params(settings);
    let target = std::time::Duration::from_millis(args.hash_time.into());
    let memory_kib = args.hash_memory.map_or(params.memory_kib, |mib| mib * 1024);
    let (took, choice) = match recommend(params, target, memory_kib).await {
        Ok(measured) => measured,
        Err(error) => return vec![failed(AREA, &*error)],
    };
    let threads = settings.password_hash_threads;
    let message = format!(
        "a hash takes {} ms ({params}); {threads} at a time, in {} MiB altogether",
        took.as_millis(),
        threads as u64 * u64::from(params.memory_kib) / 1024
    );
    let wish = format!("{} ms and {} MiB", args.hash_time, memory_kib / 1024);
    let finding = Finding::ok(AREA, message);
    findings.push(if choice == params {
        finding
    } else {
        let Params { memory_kib, iterations, parallelism } = choice;
        finding.advise(format!(
            "for {wish}: ARGON2_MEMORY_KIB={memory_kib} ARGON2_ITERATIONS={iterations} \
             ARGON2_PARALLELISM={parallelism} (OWASP's minimum at least)"
        ))
    });
    let peppers = settings.password_pepper.count();
    if peppers > 1 {
        let note = format!("PASSWORD_PEPPER holds {peppers}: a rotation is not finished");
        findings.push(Finding::note(AREA, note).advise(
            "keep the older ones until no stored hash names them: who has such a hash cannot log in without",
        ));
    }
    findings
}

/// How long a hash takes now, and the parameters that come nearest to the target from below, in that much memory.
async fn recommend(
    params: Params,
    target: std::time::Duration,
    memory_kib: u32,
) -> Result<(std::time::Duration, Params), Failure> {
    let now = password::measure(params).await?;
    let pass = password::measure(Params { memory_kib, iterations: 1, parallelism: 1 }).await?;
    Ok((now, password::recommend(pass, memory_kib, target)))
}

/// What clients will make of the certificate.
fn certificate(settings: &Settings) -> Vec<Finding> {
    const AREA: &str = "tls";

    let is_production = settings.environment == Environment::Production;
    let Some(files) = setup::tls_files(settings) else {
        let finding = Finding::ok(AREA, "none: the service speaks plain HTTP");
        return vec![if is_production {
            finding.advise("put a proxy in front that speaks TLS, or set TLS_CERT_FILE and TLS_KEY_FILE")
        } else {
            finding
        }];
    };
    let mut findings = Vec::new();
    if files.is_key_open() {
        let message = format!("TLS_KEY_FILE={}: every user of this machine may read it", files.key.display());
        findings.push(Finding::warning(AREA, message).advise(
            "take that right from others: `chmod o-r`; in Kubernetes, `defaultMode: 0440` for the secret's volume",
        ));
    }
    let now = Clock::system().now();
    let certificate = match files.read().and_then(|contents| files.parse(&contents, now)) {
        Ok(certificate) => certificate,
        Err(error) => {
            let advice = "a service that runs goes on with the certificate it has; none starts with this one";
            findings.push(failed(AREA, &error).advise(advice));
            return findings;
        }
    };
    let (until, left) = (seconds(certificate.not_after), certificate.not_after - now);
    if left < RENEWAL {
        let message = format!("the certificate expires in {} days, on {until}", left.whole_days());
        findings.push(
            Finding::warning(AREA, message)
                .advise("renew it; the service reads the files again when they change, with no restart"),
        );
    }
    if !certificate.is_ordered {
        let message = "the certificates in TLS_CERT_FILE are not in order: some clients take no such chain";
        findings.push(
            Finding::warning(AREA, message)
                .advise("put the service's own first, then each one that signed the one before"),
        );
    }
    if certificate.is_self_signed {
        let message = "the certificate is signed by itself: clients have to be told to trust it";
        findings.push(Finding::note(AREA, message));
    } else if certificate.length == 1 {
        let message =
            "TLS_CERT_FILE holds one certificate: clients that do not know who signed it cannot check it";
        findings.push(Finding::note(AREA, message).advise("use the full chain, unless the signer is a root"));
    }
    if let Some(host) = public_host(settings)
        && !certificate.is_for(&host)
    {
        let message = format!("the certificate is not for {host}, which TOKEN_ISSUER names");
        findings.push(
            Finding::warning(AREA, message)
                .advise("get one with that name, unless a proxy with another certificate is in front"),
        );
    }
    if findings.is_empty() {
        let message = format!("the certificate is valid until {until}, {} days", left.whole_days());
        findings.push(Finding::ok(AREA, message));
    }
    findings
}

/// The host by which clients call the service, when the issuer is its address.
fn public_host(settings: &Settings) -> Option<String> {
    let issuer: http::Uri = settings.token_issuer.parse().ok()?;
    let host = issuer.host().filter(|_| issuer.scheme_str() == Some("https"))?;
    Some(host.trim_matches(['[', ']']).to_owned())
}

/// Who can read the metrics.
fn operators(settings: &Settings) -> Finding {
    let address = settings.ops_server_address;
    let message = format!("metrics at {address}/metrics");
    if address.ip().is_loopback() {
        Finding::ok("ops", format!("{message}, for this machine alone"))
    } else {
        Finding::note("ops", format!("{message}, in plain HTTP and for whoever can connect"))
            .advise("let nobody but Prometheus get there")
    }
}

/// How many connections a service takes when it is started as this was.
fn open_files(settings: &Settings) -> Finding {
    let files = OpenFiles::look(settings.db_max_connections);
    match files.advice() {
        Some(advice) => Finding::warning("files", files.to_string()).advise(advice),
        None => Finding::ok("files", files.to_string()),
    }
}

/// Whether the system is there that users may still come from. It is not told a password, nor who we are.
async fn old_system(settings: &Settings) -> Option<Finding> {
    const AREA: &str = "legacy";

    let url = settings.legacy_login_url.as_ref()?;
    let patience = Limits::default().legacy_login;
    let begun = std::time::Instant::now();
    Some(match legacy::probe(url, patience).await {
        Ok(status) => {
            let took = begun.elapsed().as_millis();
            Finding::ok(AREA, format!("the old system is there: {status} after {took} ms"))
        }
        Err(error) => failed(AREA, &error).advise(
            "check LEGACY_LOGIN_URL, and the way there: users who are not here yet cannot log in meanwhile",
        ),
    })
}

/// What was begun and has to be brought to an end.
fn rotations_under_way(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !settings.token_symmetric_keys_accepted.is_empty() {
        let note = "TOKEN_SYMMETRIC_KEYS_ACCEPTED is set: the rotation of the root key is not finished";
        findings.push(Finding::note("keys", note).advise(
            "when every replica has the new key and the tokens of the former one have expired, empty it",
        ));
    }
    if !settings.token_format_accepted.is_empty() {
        let note = "TOKEN_FORMAT_ACCEPTED is set: tokens of further formats are accepted";
        let advice = "when the tokens of the former format have expired, empty it";
        findings.push(Finding::note("keys", note).advise(advice));
    }
    findings
}

async fn database(settings: &Settings, policy: &Policy) -> Vec<Finding> {
    if settings.db_source.is_none() && !setup::has_own_database() {
        let note = "there is none yet: `gatepass serve` makes one of its own, since DB_SOURCE is not set";
        return vec![Finding::note("database", note)];
    }
    let database = match setup::Database::open(settings).await {
        Ok(database) => database,
        Err(error) => return vec![failed("database", &*error)],
    };
    let mut findings = on_database(&database, settings, policy).await;
    if let Err(error) = database.close().await {
        findings.push(failed("database", &*error));
    }
    findings
}

async fn on_database(database: &setup::Database, settings: &Settings, policy: &Policy) -> Vec<Finding> {
    let begun = std::time::Instant::now();
    let mut conn = match database.connection(false).await {
        Ok(conn) => conn,
        Err(error) => return vec![failed("database", &*error)],
    };
    let connected = begun.elapsed();
    let mut findings = Vec::new();
    match clock(&mut conn).await {
        Ok((latency, finding)) => {
            let message = format!(
                "{} is there: connected in {} ms, answers in {} ms",
                database.place(),
                connected.as_millis(),
                latency.whole_milliseconds()
            );
            findings.push(Finding::ok("database", message));
            findings.push(finding);
        }
        Err(error) => findings.push(failed("database", &error)),
    }
    findings.extend(writes(&mut conn).await);
    findings.extend(locks(&mut conn).await);
    match database.check_pooler(settings.db_pooler).await {
        Ok(None) => {}
        Ok(Some(warning)) => findings.push(Finding::warning("database", warning)),
        Err(error) => findings.push(failed("database", &*error)),
    }
    findings.extend(plain_text(database, settings, &mut conn).await);
    match schema(database, settings).await {
        Ok(Schema::Current) => findings.push(Finding::ok("schema", "current")),
        Ok(Schema::Newer(version)) => {
            let message = format!("at migration {version:06}, of a later release than this");
            findings.push(Finding::note("schema", message).advise(
                "it works for one release back: finish the update, or undo it with the later release",
            ));
        }
        Err(error) => {
            let mut finding = failed("schema", &*error);
            if settings.migrate_on_start
                && matches!(error.downcast_ref(), Some(migrations::Error::Pending(_)))
            {
                finding = Finding::note("schema", "migrations are waiting")
                    .advise("`gatepass serve` applies them when it starts, since MIGRATE_ON_START is true");
            }
            findings.push(finding);
            return findings;
        }
    }
    findings.extend(roles(&mut conn, settings).await.unwrap_or_else(|error| vec![failed("roles", &error)]));
    if policy.key_pair_formats().next().is_some() {
        let db = database.pool(1);
        let found = ring(policy, &db).await;
        setup::close(&db).await;
        findings.extend(found.unwrap_or_else(|error| vec![failed("keys", &error)]));
    } else {
        findings.push(Finding::ok("keys", "shared, from the configuration"));
    }
    if settings.db_pooler == DbPooler::Session {
        findings.push(feed(database).await);
    }
    findings.push(seals(&mut conn).await);
    findings
}

/// Whether anything can be written.
async fn writes(conn: &mut PgConnection) -> Option<Finding> {
    const AREA: &str = "database";

    match store::access(conn).await {
        Ok(Access::Full) => None,
        Ok(Access::ReadOnly) => Some(
            Finding::problem(AREA, "the database takes no writes: default_transaction_read_only is on")
                .advise(
                    "is its disk full? some hosts set that then, and take it back when there is room; otherwise RESET it \
                     where it is set: ALTER SYSTEM, DATABASE or ROLE (`\\drds` in psql)",
                ),
        ),
        Ok(Access::Standby) => Some(
            Finding::problem(AREA, store::STANDBY)
                .advise("promote it, or have DB_SOURCE lead to the primary"),
        ),
        Err(error) => Some(failed(AREA, &error)),
    }
}

/// Who keeps the service waiting.
async fn locks(conn: &mut PgConnection) -> Vec<Finding> {
    const AREA: &str = "database";

    let blockers = match store::blockers(conn).await {
        Ok(blockers) => blockers,
        Err(error) => return vec![failed(AREA, &error)],
    };
    let finding = |Blocker { pid, role, application, waiting, seconds }| {
        let whose = match (role, application) {
            (Some(role), Some(application)) => format!(" of {role} ({application})"),
            (Some(role), None) => format!(" of {role}"),
            (None, _) => String::new(),
        };
        let message = format!(
            "{waiting} statement(s) of the service wait for a lock, for {seconds:.0} s by now: the session {pid}{whose} has it"
        );
        Finding::problem(AREA, message).advise(format!(
            "end that session: `SELECT pg_terminate_backend({pid})`, as its role or the master user"
        ))
    };
    blockers.into_iter().map(finding).collect()
}

/// What others may listen to.
async fn plain_text(
    database: &setup::Database,
    settings: &Settings,
    conn: &mut PgConnection,
) -> Option<Finding> {
    let level = Level::risk(settings.environment);
    match store::is_encrypted(conn).await {
        Ok(false) if !database.is_local() => Some(
            Finding::new("database", level, "the connection is not encrypted, and leaves this machine")
                .advise(
                    "say `sslmode=verify-full&sslrootcert=…` in DB_SOURCE, and switch `ssl` on in Postgres",
                ),
        ),
        Ok(_) => None,
        Err(error) => Some(failed("database", &error)),
    }
}

/// Whether revocations reach the other replicas at once.
async fn feed(database: &setup::Database) -> Finding {
    const AREA: &str = "feed";

    // One that listens and one that notifies, as with replicas.
    let db = database.pool(2);
    let begun = std::time::Instant::now();
    let heard = revocations::is_heard(&db, NOTIFICATION_PATIENCE).await;
    let took = begun.elapsed().as_millis();
    setup::close(&db).await;
    match heard {
        Ok(true) => Finding::ok(AREA, format!("notifications come through (in {took} ms)")),
        Ok(false) => {
            let message =
                "no notification comes through: revocations reach other replicas half a second later";
            Finding::warning(AREA, message)
                .advise("let DB_SOURCE go past the pooler, or have that hand out connections for a session")
        }
        Err(error) => failed(AREA, &error),
    }
}

/// Whether somebody seals what comes into the history.
async fn seals(conn: &mut PgConnection) -> Finding {
    const AREA: &str = "history";

    let waiting = async {
        let now = store::now(conn).await?;
        Ok::<_, store::Error>((now, history::unsealed_since(conn).await?))
    };
    match waiting.await {
        Ok((now, Some(since))) if now - since > SEAL_PATIENCE => {
            let message = format!("changes wait for their seal, since {}", seconds(since));
            Finding::warning(AREA, message).advise(
                "a running service seals each minute: start one, or look into its log; by hand, `gatepass history seal`",
            )
        }
        Ok(_) => Finding::ok(AREA, "sealed; `gatepass history verify` checks all of it"),
        Err(error) => failed(AREA, &error),
    }
}

/// Whether the schema is as it should be; where `serve` would migrate, whether it may.
async fn schema(database: &setup::Database, settings: &Settings) -> Result<Schema, Failure> {
    let mut conn = database.connection(true).await?;
    let found = migrations::check(&mut conn).await;
    if settings.migrate_on_start && matches!(found, Err(migrations::Error::Pending(_))) {
        migrations::may_apply(&mut conn).await?;
    }
    Ok(found?)
}

/// Whether the service may do what it has to, and nothing else.
async fn roles(conn: &mut PgConnection, settings: &Settings) -> Result<Vec<Finding>, sqlx::Error> {
    const AREA: &str = "roles";

    let Standing { user, is_superuser, administers, owns_tables } = roles::standing(conn).await?;
    let level = Level::risk(settings.environment);
    let held = Privileges::held(conn, &user).await?;
    let wanted = Privileges::of_app();
    let missing = wanted.beyond(&held);
    if !missing.is_empty() {
        let message = format!("{user} may not do what the service has to: {}", listed(&missing));
        return Ok(vec![
            Finding::problem(AREA, message).advise("run `gatepass db setup` as the master user"),
        ]);
    }
    let excess = held.beyond(&wanted);
    let more = if is_superuser {
        "is a superuser: it may change everything, the history too".to_owned()
    } else if owns_tables {
        "owns the tables, or is a member of their owner: it may change the schema, and the history".to_owned()
    } else if !excess.is_empty() {
        format!("may do more than it has to: {}", listed(&excess))
    } else if administers {
        "may make roles or databases, replicate, or pass by row security".to_owned()
    } else {
        let message = format!("{user} may do what the service has to, and nothing else");
        let mut findings = vec![Finding::ok(AREA, message)];
        if user == roles::APP && !roles::owns_schema(conn).await? {
            let message = format!("the schema does not belong to {}: a restored database?", roles::OWNER);
            findings.push(
                Finding::warning(AREA, message)
                    .advise("run `gatepass db setup`, or the next migration belongs to whoever runs it"),
            );
        }
        if settings.environment == Environment::Production {
            findings.extend(roles::members(conn).await?.into_iter().map(|member| {
                let message = format!("{member} may log in and is a member of {}", roles::OWNER);
                Finding::new(AREA, level, message).advise(format!(
                    "when nothing logs in as it any more: REVOKE {} FROM \"{member}\"",
                    roles::OWNER
                ))
            }));
        }
        return Ok(findings);
    };
    Ok(vec![
        Finding::new(AREA, level, format!("{user} {more}")).advise(format!(
            "make roles with `gatepass db setup`, and have DB_SOURCE log in as {}",
            roles::APP
        )),
    ])
}

/// The first few.
fn listed(privileges: &[&Privilege]) -> String {
    const SHOWN: usize = 5;

    let mut shown: Vec<_> = privileges.iter().take(SHOWN).map(ToString::to_string).collect();
    if privileges.len() > SHOWN {
        shown.push(format!("{} more", privileges.len() - SHOWN));
    }
    shown.join(", ")
}

/// How long the database takes to answer, and whether its clock agrees.
async fn clock(conn: &mut PgConnection) -> Result<(Duration, Finding), store::Error> {
    let skew = ClockSkew::measure(conn, &Clock::system()).await?;
    let finding = if skew.apart() > CLOCK_TOLERANCE {
        Finding::warning("clock", skew.to_string())
            .advise("have NTP set both: tokens are refused by a clock that is wrong by 30 s")
    } else {
        Finding::ok("clock", "the database agrees to within a second")
    };
    Ok((skew.latency, finding))
}

async fn ring(policy: &Policy, db: &PgPool) -> Result<Vec<Finding>, keys::Error> {
    let now = Clock::system().now();
    let mut findings: Vec<_> =
        keys::unopenable(policy, db).await?.iter().map(|error| failed("keys", error)).collect();
    let stored = keys::list(db).await?;
    findings.extend(heads(policy, &stored.keys, now));
    for (key, root) in &stored.keys {
        findings.extend(single(policy, key, root.as_ref(), now));
    }
    findings.extend(stored.unreadable.iter().map(|(_, error)| match error {
        // As it should be while an update is rolled out, or rolled back.
        keys::Error::UnknownFormat { .. } => Finding::note("keys", error.to_string()),
        _ => failed("keys", error),
    }));
    if findings.iter().all(|finding| finding.level == Level::Ok || finding.level == Level::Note) {
        findings.insert(0, Finding::ok("keys", "every key opens"));
    }
    Ok(findings)
}

/// Whether each format has the keys that it needs.
fn heads(policy: &Policy, stored: &[(RingKey, Option<KeyId>)], now: OffsetDateTime) -> Vec<Finding> {
    let keys: Vec<_> = stored.iter().map(|(key, _)| key.clone()).collect();
    let mut findings = Vec::new();
    for format in policy.key_pair_formats() {
        let has =
            |status| keys.iter().any(|key| key.public.format() == format && key.status(now) == Some(status));
        if !has(KeyStatus::Active) && !has(KeyStatus::Next) {
            let note = format!("there are none for {format} yet");
            findings.push(Finding::note("keys", note).advise("`gatepass serve` makes them"));
        } else if !has(KeyStatus::Next) || !has(KeyStatus::Active) {
            let which = if has(KeyStatus::Active) { "next" } else { "active" };
            findings.push(
                Finding::problem("keys", format!("the ring of {format} has no {which} key"))
                    .advise("start the service again: it makes the one that is missing"),
            );
        }
        let Some((active, _)) = ring::heads(&keys, format, now) else { continue };
        let since = active.activated_at.unwrap_or(active.published_at);
        // Only the format of new tokens is rotated.
        if policy.format == format.into() && now > since + policy.schedule.interval + ROTATION_GRACE {
            let message = format!(
                "{} is old: it signs since {}, longer than KEY_ROTATION_INTERVAL and a day",
                active.id(),
                seconds(since)
            );
            findings.push(
                Finding::warning("keys", message)
                    .advise("a running service replaces it; without one, `gatepass key rotate`"),
            );
        }
    }
    findings
}

fn single(policy: &Policy, key: &RingKey, root: Option<&KeyId>, now: OffsetDateTime) -> Vec<Finding> {
    let mut findings = Vec::new();
    let id = key.id();
    let Some(status) = key.status(now) else { return findings };
    let accepted = |root: &&KeyId| policy.roots_accepted.iter().any(|accepted| accepted.id() == **root);
    if root.is_some_and(|root| *root != policy.root.id()) && root.as_ref().is_some_and(accepted) {
        let message = format!("{id} is wrapped under a root key of TOKEN_SYMMETRIC_KEYS_ACCEPTED");
        findings.push(
            Finding::warning("keys", message)
                .advise("run `gatepass key rewrap` before you remove the former key"),
        );
    }
    if key.public.security_bits() < SECURITY_BITS {
        let message = format!("{id} has {} bits of security: enough until 2030", key.public.security_bits());
        let advice = "sooner or later choose EdDSA or ES256 as JWT_ALGORITHM";
        findings.push(Finding::note("keys", message).advise(advice));
    }
    if let (KeyStatus::Retiring, Some(until)) = (status, key.verifies_until)
        && until < now + SOON
    {
        let message = format!("{id} is about to go: it verifies until {}", seconds(until));
        findings.push(Finding::note("keys", message));
    }
    findings
}
