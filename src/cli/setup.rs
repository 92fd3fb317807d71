//! What most subcommands need before they can begin: settings, the key, and the use cases over a database.

use std::{env, num::NonZeroUsize, path::PathBuf, sync::Arc, thread, time::Duration};

use secrecy::SecretString;

use super::{Failure, development_key};
use crate::{
    account::{self, Actor, Cause, Policy, Throttle},
    aws::{self, Aws},
    clock::Clock,
    config::{self, Environment, Gathered, Loaded, Registration, SecretPlace, Settings, Sources},
    keys,
    legacy::{self, Legacy},
    metrics::Metrics,
    password::{Pool, PoolSettings, Rules},
    random,
    revocation::Feed,
    store::PgPool,
    telemetry, tls,
    token::{Issuer, Party, SymmetricKey, refresh::RefreshKeys, ring::Schedule},
};

/// Where development keeps what it makes for itself, in the working directory.
const STATE_DIR: &str = ".gatepass";
/// How long a password may wait for its turn. A request is given up after ten seconds, and whoever changes their password
/// waits three times: for the former one, the rules and the new one.
const HASH_DEADLINE: Duration = Duration::from_secs(3);
/// The settings of this process.
pub(super) async fn load(config_file: Option<PathBuf>) -> Result<Loaded, Failure> {
    let mut given = gather(config_file)?;
    if let Some(place) = given.secret() {
        given.add_secret(secret(&place).await.map_err(|error| error.to_string()));
    }
    Ok(given.check()?)
}

/// The settings of this process without those that a secret holds, for what is done too often to ask AWS every time.
pub(super) fn load_without_secret(config_file: Option<PathBuf>) -> Result<Settings, Failure> {
    Ok(gather(config_file)?.without_secret().check()?.settings)
}

fn gather(config_file: Option<PathBuf>) -> Result<Gathered, Failure> {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let sources = Sources { working_dir: working_dir()?, config_file, environment: env::vars_os(), cores };
    Ok(config::gather(sources))
}

fn working_dir() -> Result<PathBuf, Failure> {
    env::current_dir().map_err(|error| {
        format!("cannot find the working directory, which may hold app.env: {error}; was it deleted? change to another")
            .into()
    })
}

async fn secret(place: &SecretPlace) -> Result<SecretString, aws::Error> {
    let SecretPlace { id, region, endpoint_url } = place;
    Aws::new(region.as_deref(), endpoint_url.as_deref()).await?.secret(id).await
}

/// The settings of a command that is over soon; its log holds only what somebody at a terminal should know.
pub(super) async fn begin(config_file: Option<PathBuf>) -> Result<Settings, Failure> {
    begin_with(config_file, "warn").await
}

/// The same, with another filter for the log.
pub(super) async fn begin_with(config_file: Option<PathBuf>, log: &str) -> Result<Settings, Failure> {
    let settings = load(config_file).await?.settings;
    telemetry::init(telemetry::LogFormat::Pretty, log, None)?;
    Ok(settings)
}

pub(super) fn state_dir() -> Result<PathBuf, Failure> {
    Ok(working_dir()?.join(STATE_DIR))
}

/// Whether there is a database to look into: one that the settings name, or development's own, running or not. Who only
/// looks makes none.
pub(super) fn has_database(settings: &Settings) -> Result<bool, Failure> {
    let own = state_dir()?.join("postgres");
    let look = |error| format!("cannot look for {}: {error}; is it another user's?", own.display());
    Ok(settings.db_source.is_some() || own.try_exists().map_err(look)?)
}

/// The key that tokens are made with. In development, when the settings have none, one is made once and kept.
pub(super) fn symmetric_key(settings: &Settings) -> Result<SymmetricKey, Failure> {
    match &settings.token_symmetric_key {
        Some(key) => Ok(key.clone()),
        None if settings.environment == Environment::Development => {
            development_key::read_or_make(&state_dir()?)
        }
        // The settings' own check demands it in production; never make one up if that check should change.
        None => Err("TOKEN_SYMMETRIC_KEY is not set".into()),
    }
}

/// The same for those who only look: in development there may be none yet.
pub(super) fn present_key(settings: &Settings) -> Result<Option<SymmetricKey>, Failure> {
    match settings.token_symmetric_key {
        None if settings.environment == Environment::Development => development_key::read(&state_dir()?),
        _ => symmetric_key(settings).map(Some),
    }
}

/// In place of a key that does not exist yet: neither would open anything that exists.
pub(super) fn nobodys_key() -> SymmetricKey {
    SymmetricKey::from_bytes(random::bytes(&mut random::system()))
}

/// Whoever is at the command line, for the history.
pub(super) fn operator() -> Cause {
    let uid = rustix::process::geteuid();
    // Only a name: who may do what, the database and the file system decide.
    let name =
        env::var("SUDO_USER").or_else(|_| env::var("USER")).unwrap_or_else(|_| uid.as_raw().to_string());
    Cause::new(Some(&Actor::CommandLine(name)), None)
}

/// Who makes tokens and whom they are for.
pub(super) fn party(settings: &Settings) -> Party {
    Party { issuer: settings.token_issuer.clone(), audience: settings.token_audience.clone() }
}

/// Where clients find the service: at its issuer, when that is an address; else, in development, on this machine.
pub(super) fn public_url(settings: &Settings) -> Option<String> {
    let issuer = settings.token_issuer.trim_end_matches('/');
    if issuer.starts_with("https://") || issuer.starts_with("http://") {
        return Some(issuer.to_owned());
    }
    let scheme = if tls_files(settings).is_some() { "https" } else { "http" };
    let port = settings.http_server_address.port();
    (settings.environment == Environment::Development).then(|| format!("{scheme}://localhost:{port}"))
}

/// Where the service's certificate and its key are, if it speaks TLS.
pub(super) fn tls_files(settings: &Settings) -> Option<tls::Files> {
    // The settings' own check demands both or neither.
    let (certificate, key) = settings.tls_cert_file.clone().zip(settings.tls_key_file.clone())?;
    Some(tls::Files { certificate, key })
}

/// What the settings say about keys, with `key` as the root of them. `cause` changes them.
pub(super) fn key_policy(settings: &Settings, key: &SymmetricKey, cause: Cause) -> keys::Policy {
    keys::Policy {
        format: settings.format(),
        formats_accepted: settings.formats_accepted(),
        root: key.clone(),
        roots_accepted: settings.token_symmetric_keys_accepted.clone(),
        party: party(settings),
        schedule: Schedule { interval: settings.key_rotation_interval },
        token_life: settings.access_token_duration,
        max_staleness: settings.revocation_max_staleness,
        cause,
    }
}

/// What the use cases over `db` are made of, with `threads` threads for passwords. Nobody comes from another system.
pub(super) fn account_parts(
    settings: &Settings,
    key: &SymmetricKey,
    issuer: Arc<Issuer>,
    db: PgPool,
    feed: Option<Feed>,
    metrics: Metrics,
    threads: usize,
) -> Result<account::Parts, Failure> {
    let passwords = Pool::new(PoolSettings {
        threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
        queue: settings.password_hash_queue,
        params: settings.argon2,
        peppers: settings.password_pepper.clone(),
        deadline: HASH_DEADLINE,
    })?;
    let refresh_keys = RefreshKeys::new(key, &settings.token_symmetric_keys_accepted);
    let policy = Policy {
        registration_open: settings.registration == Registration::Open,
        password_rules: Rules {
            min_length: settings.password_min_length,
            breached: settings.password_breached_file.clone(),
        },
        access_token_duration: settings.access_token_duration,
        refresh_token_duration: settings.refresh_token_duration,
        session_duration: settings.session_duration,
        refresh_reuse_interval: settings.refresh_reuse_interval,
    };
    let throttle = Throttle::new(
        db.clone(),
        key,
        settings.login_attempts_per_account,
        settings.login_attempts_per_ip,
        metrics.clone(),
    );
    let watcher = metrics.clone();
    passwords.watch(move |waited, took| watcher.password_hash(waited, took));
    let legacy = None;
    Ok(account::Parts { db, passwords, issuer, refresh_keys, throttle, legacy, feed, metrics, policy })
}

/// The system that users may still come from, when the settings name one.
pub(super) fn legacy(
    settings: &Settings,
    patience: Duration,
    clock: Clock,
    metrics: Metrics,
) -> Result<Option<Legacy>, Failure> {
    let Some(url) = settings.legacy_login_url.clone() else { return Ok(None) };
    let traceparent = telemetry::traces::traceparent;
    Ok(Some(Legacy::new(legacy::Settings { url, patience, traceparent, clock, metrics })?))
}
