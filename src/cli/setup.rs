//! What most subcommands need before they can start: the settings, the key, and the use cases over a database.

use std::{env, io, num::NonZeroUsize, path::PathBuf, sync::Arc, thread, time::Duration};

use rustix::fs::{Access, access};
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
    store::PgPool,
    telemetry, tls,
    token::{Issuer, Party, SymmetricKey, refresh::RefreshKeys, ring::Schedule},
};

/// The directory, within the working directory, in which development keeps what it makes for itself.
const STATE_DIR: &str = ".gatepass";
/// How long a password may wait for its turn. A request is given up after ten seconds, and a change of password waits
/// three times: for the former password, the rules and the new password.
const HASH_DEADLINE: Duration = Duration::from_secs(3);

/// The settings of this process.
pub(super) async fn load(config_file: Option<PathBuf>) -> Result<Loaded, Failure> {
    let mut given = gather(config_file)?;
    if let Some(place) = given.secret() {
        given.add_secret(secret(&place).await.map_err(|error| error.to_string()));
    }
    Ok(given.check()?)
}

/// The settings of this process without those in an AWS secret, for commands that run too often to ask AWS every time.
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

/// The settings of a short-lived command, which logs only what somebody at a terminal should know.
pub(super) async fn begin(config_file: Option<PathBuf>) -> Result<Settings, Failure> {
    begin_with(config_file, "warn").await
}

/// Like [`begin`], with another log filter.
pub(super) async fn begin_with(config_file: Option<PathBuf>, log: &str) -> Result<Settings, Failure> {
    let settings = load(config_file).await?.settings;
    telemetry::init(telemetry::LogFormat::Pretty, log, None)?;
    Ok(settings)
}

pub(super) fn state_dir() -> Result<PathBuf, Failure> {
    Ok(working_dir()?.join(STATE_DIR))
}

/// Makes sure that we may create something in the state directory, or if it is missing, the directory itself. Asks the
/// system, which takes more into account than mode bits, and creates nothing. `setting` is the way to do without.
pub(super) fn check_state_dir(setting: &str) -> Result<(), Failure> {
    let state = state_dir()?;
    let directory = if state.try_exists().is_ok_and(|exists| !exists) { working_dir()? } else { state };
    // The dot makes it an error if this is a file.
    access(directory.join("."), Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        let error = io::Error::from(error);
        format!(
            "cannot write to {}: {error}; make sure that this user may do that, or set {setting}",
            directory.display()
        )
        .into()
    })
}

/// Whether there is a database to look into: one that the settings name, or development's own, running or not. Commands
/// that only look do not create one.
pub(super) fn has_database(settings: &Settings) -> Result<bool, Failure> {
    let own = state_dir()?.join("postgres");
    let look = |error| format!("cannot look for {}: {error}; is it another user's?", own.display());
    Ok(settings.db_source.is_some() || own.try_exists().map_err(look)?)
}

/// The key that tokens are made with. In development, if the settings have none, one is made once and kept.
pub(super) fn symmetric_key(settings: &Settings) -> Result<SymmetricKey, Failure> {
    match &settings.token_symmetric_key {
        Some(key) => Ok(key.clone()),
        None if settings.environment == Environment::Development => {
            let instead = match settings.db_source {
                Some(_) => "TOKEN_SYMMETRIC_KEY",
                None => "TOKEN_SYMMETRIC_KEY and DB_SOURCE",
            };
            development_key::read_or_make(&state_dir()?, instead)
        }
        // The check of the settings requires it in production. Never make one up, should that check change.
        None => Err("TOKEN_SYMMETRIC_KEY is not set".into()),
    }
}

/// Whoever is at the command line, for the history.
pub(super) fn operator() -> Cause {
    let uid = rustix::process::geteuid();
    // Only a name: the database and the file system decide who may do what.
    let name =
        env::var("SUDO_USER").or_else(|_| env::var("USER")).unwrap_or_else(|_| uid.as_raw().to_string());
    Cause::new(Some(&Actor::CommandLine(name)), None)
}

/// The issuer and the audience of tokens.
pub(super) fn party(settings: &Settings) -> Party {
    Party { issuer: settings.token_issuer.clone(), audience: settings.token_audience.clone() }
}

/// Where clients find the service: at its issuer, if that is a URL; otherwise, in development, on this machine.
pub(super) fn public_url(settings: &Settings) -> Option<String> {
    let issuer = settings.token_issuer.trim_end_matches('/');
    if issuer.starts_with("https://") || issuer.starts_with("http://") {
        return Some(issuer.to_owned());
    }
    let scheme = if tls_files(settings).is_some() { "https" } else { "http" };
    let port = settings.http_server_address.port();
    (settings.environment == Environment::Development).then(|| format!("{scheme}://localhost:{port}"))
}

/// The files of the service's certificate and its key, if it speaks TLS.
pub(super) fn tls_files(settings: &Settings) -> Option<tls::Files> {
    // The check of the settings requires both or neither.
    let (certificate, key) = settings.tls_cert_file.clone().zip(settings.tls_key_file.clone())?;
    Some(tls::Files { certificate, key })
}

/// What the settings say about keys, with `key` as their root. Changes are recorded as made by `cause`.
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

/// Like [`key_policy`], for commands that only look, and whether there is a key: in development there may be none yet.
/// A random one is then in its place: neither opens anything that exists.
pub(super) fn present_key_policy(settings: &Settings) -> Result<(keys::Policy, bool), Failure> {
    let root = match settings.token_symmetric_key {
        None if settings.environment == Environment::Development => development_key::read(&state_dir()?)?,
        _ => Some(symmetric_key(settings)?),
    };
    let has_root = root.is_some();
    let root = root.unwrap_or_else(|| SymmetricKey::from_bytes(random::bytes(&mut random::system())));
    Ok((key_policy(settings, &root, operator()), has_root))
}

/// The parts of the use cases over `db`, with `threads` threads for password hashes, and without an old system or a
/// feed.
pub(super) fn account_parts(
    settings: &Settings,
    key: &SymmetricKey,
    issuer: Arc<Issuer>,
    db: PgPool,
    metrics: Metrics,
    threads: NonZeroUsize,
) -> Result<account::Parts, Failure> {
    let passwords = Pool::new(PoolSettings {
        threads,
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
    Ok(account::Parts {
        db,
        passwords,
        issuer,
        refresh_keys,
        throttle,
        legacy: None,
        feed: None,
        activity: None,
        metrics,
        policy,
    })
}

/// The system that users may still come from, if the settings name one.
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
